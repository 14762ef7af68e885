"""The command compare: two runs, two measurements, and words that are neither."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from lab import cli
from lab.bench.figures import Bench, Figure, encode
from lab.check.metrics import measure
from lab.compare.compare import differences
from lab.compare.figures import NAMES, QUANTITIES, values
from lab.compare.page import percentiles
from lab.rundir import RunDir
from tests.lab.synthetic import build_run, doctor_meta


@pytest.fixture
def runs(tmp_path: Path) -> tuple[RunDir, RunDir]:
    return build_run(tmp_path / "a"), build_run(tmp_path / "b")


def rows(text: str) -> dict[str, list[str]]:
    """First word -> the other words of each line."""
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}


def test_equal_runs_do_not_differ(runs: tuple[RunDir, RunDir], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", *(str(run.path) for run in runs)]) == 0
    text = capsys.readouterr().out
    assert "no difference of machine, versions, settings or scenario" in text
    assert rows(text)["p50"] == ["ms", "0.500", "0.500", "1.000", "less", "is", "better"]
    assert "a ratio alone does not show" in text


def test_differences_come_before_the_figures(runs: tuple[RunDir, RunDir], capsys: pytest.CaptureFixture[str]) -> None:
    a, b = runs
    doctor_meta(b, links="proxied", host={"cpus": 64}, interpreter="CPython 3.99", versions={"msgspec": "9"})
    b.scenario.write_text(b.scenario.read_text().replace("seed: 7", "seed: 8") + "subscribers: 7\n")
    assert cli.main(["compare", str(a.path), str(b.path)]) == 0
    text = capsys.readouterr().out
    found = rows(text[: text.index("figure ")])
    assert found["links"] == ["direct", "proxied"]
    assert found["cpus"][-1] == "64"
    assert found["interpreter"][-1] == "3.99"
    assert found["msgspec"][-1] == "9"
    assert found["scenario.yml"] == ["-", "subscribers:", "7"]


def test_the_ratio_is_that_of_both_values(runs: tuple[RunDir, RunDir], capsys: pytest.CaptureFixture[str]) -> None:
    a, b = runs
    metrics = msgspec.to_builtins(measure(b))
    metrics["load"]["latency"]["p50_ms"] = 1.5
    b.metrics.write_bytes(msgspec.json.encode(metrics))
    assert cli.main(["compare", str(a.path), str(b.path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (p50,) = [each for each in document["figures"] if each["name"] == "p50"]
    assert p50["a"] == pytest.approx(0.5, rel=1e-3)
    assert (p50["b"], p50["ratio"], p50["better"]) == (1.5, pytest.approx(3, rel=1e-3), "less")
    assert document["exit_code"] == 0


def test_what_only_one_has_is_shown_as_missing() -> None:
    assert list(differences({"a": "1", "b": "2"}, {"b": "3", "c": "4"})) == [
        ("a", "1", "-"),
        ("b", "2", "3"),
        ("c", "-", "4"),
    ]


def bench_file(path: Path, *rates: float, cpus: int = 2) -> str:
    figure = Figure("closed", "64 clients", "messages/s", "more", "", rates)
    path.write_bytes(encode(Bench("2024-10-21T12:34:56", True, {"cpus": cpus}, (figure,))))
    return str(path)


def test_two_measurements_are_judged_by_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = bench_file(tmp_path / "a.json", *[100, 101, 102, 100, 101, 102])
    b = bench_file(tmp_path / "b.json", *[80, 81, 82, 80, 81, 82], cpus=4)
    assert cli.main(["compare", a, b]) == 0
    text = capsys.readouterr().out
    assert rows(text)["cpus"] == ["2", "4"]
    assert next(line for line in text.splitlines() if line.startswith("closed")).endswith("  worse")
    assert cli.main(["compare", a, b, "--json"]) == 0
    (figure,) = json.loads(capsys.readouterr().out)["figures"]
    assert (figure["answer"], figure["a"], figure["b"]) == ("worse", 101, 81)


def test_what_can_not_be_compared_is_named(
    runs: tuple[RunDir, RunDir], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, broken = str(runs[0].path), runs[1]
    bench = bench_file(tmp_path / "a.json", 1)
    broken.meta.write_text("{")
    (tmp_path / "no.json").write_text("{}")
    for words, said in (
        ([run, str(tmp_path / "none")], "none: no such run directory, and no measurement"),
        ([str(tmp_path), run], f"{tmp_path}: no scenario.yml in it, so it is not a finished run"),
        ([run, str(broken.path)], "meta.json"),
        ([run, bench], f"{run} is a run and {bench} a measurement; allowed: two runs, or two measurements"),
        ([bench, str(tmp_path / "no.json")], "no.json: not a measurement"),
    ):
        assert cli.main(["compare", *words]) == 64
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error


# ---- figures ------------------------------------------------------------------------------------


def test_every_figure_but_the_simulator_s_is_one_of_the_metrics(runs: tuple[RunDir, RunDir]) -> None:
    """The paths exist: an honest run with a killed leader has them all. It has too few messages for `cpu`."""
    found = values([msgspec.to_builtins(measure(runs[0]))])
    assert set(NAMES) - set(found) == {"cpu", "seeds"}
    assert found["failover"] == pytest.approx(100.5, rel=1e-3)


def test_of_several_values_the_median_or_the_largest_counts() -> None:
    metrics = {"failovers": [{"acknowledged_ms": 5.0}, {"acknowledged_ms": None}, {"acknowledged_ms": 9.0}]}
    metrics["nodes"] = [{"rss_peak_bytes": 1 << 20}, {"rss_peak_bytes": 3 << 20}]
    assert values([metrics]) == {"failover": 7.0, "memory": 3.0}
    assert values([metrics, {"failovers": [{"acknowledged_ms": 1.0}]}])["failover"] == 4.0


def test_a_figure_of_zero_and_a_missing_one_have_no_value() -> None:
    assert values([{"load": {"throughput_per_s": 0.0, "latency": None}, "converged_s": None}]) == {}
    assert len({each.name for each in QUANTITIES}) == len(QUANTITIES)


# ---- the page -------------------------------------------------------------------------------------------


def test_the_page_shows_differences_percentiles_and_figures(
    runs: tuple[RunDir, RunDir], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = runs
    doctor_meta(b, interpreter="<script>alert(1)</script>")
    page = tmp_path / "page.html"
    assert cli.main(["compare", str(a.path), str(b.path), "--html", str(page)]) == 0
    text = page.read_text("utf-8")
    assert "<script" not in text and "&lt;script&gt;" in text
    assert text.count('<path class="') == 2 and 'scope="row">p50<' in text
    assert "http:" not in text and "https:" not in text and "src=" not in text, "it loads nothing"
    assert cli.main(["compare", str(a.path), str(b.path), "--html", str(tmp_path / "no" / "page.html")]) == 64
    assert "--html" in capsys.readouterr().err


def test_a_percentile_is_as_far_to_the_right_as_it_has_nines() -> None:
    plot = percentiles((((1.0, 900), (10.0, 90), (100.0, 10)), ()))
    (curve,) = plot.curves
    assert curve.name == "A" and [tick.text for tick in plot.across] == ["0 %", "90 %", "99 %", "99.9 %"]
    points = [tuple(map(float, point.split())) for point in curve.path[1:].split(" L")]
    xs = [tick.at for tick in plot.across]
    assert [x for x, _ in points] == [xs[0], xs[1], xs[2], xs[3]]
    assert [tick.text for tick in plot.up] == ["1 ms", "10 ms", "100 ms"]
    assert [y for _, y in points] == [tick.at for tick in (plot.up[0], *plot.up)]
    assert percentiles(((), ())).curves == []
