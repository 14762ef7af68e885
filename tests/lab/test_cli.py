"""The command line: exit codes and outputs; runner and judges are replaced by fakes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lab import __version__, cli, runs
from lab.check.metrics import Load, Metrics
from lab.check.verdict import Check, ExpectationResult, Outcomes, Verdict, decide
from lab.places import PACKAGED, ROOT
from lab.plan.scenario import Scenario
from lab.rundir import RunDir

PROJECT = Path(__file__).resolve().parents[2]

GOOD = """\
name: quiet
description: Nothing happens.
steps:
  - send: {client: 1, messages: [a]}
"""

CHECKS = {
    "pass": Check("A1", "agreement", "PASS", "all equal"),
    "broken": Check("A1", "agreement", "FAIL", "two lines differ"),
    "undecided": Check("A1", "agreement", "UNKNOWN", "no log"),
}
MISSED = ExpectationResult("last_seq: 3", False, "2")


def verdict_of(outcome: str) -> Verdict:
    """A verdict with that outcome."""
    checks = (CHECKS.get(outcome, CHECKS["pass"]),)
    expectations = (MISSED,) if outcome == "missed" else ()
    verdict = Verdict(decide(checks, expectations), checks, expectations, Outcomes())
    assert verdict.outcome == outcome
    return verdict


@dataclass
class FakeLab:
    """Stands in for runner and checker.

    outcomes: what the next runs come to; an exception is raised by the runner instead.
    """

    outcomes: list[str | BaseException] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    mutants: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    networks: list[str] = field(default_factory=list)

    def run(
        self,
        scenario: Scenario,
        run: RunDir,
        *,
        seed: int,
        progress: Callable[[str], None],
        mutant: str = "",
        person: object = None,
    ) -> None:
        self.seeds.append(seed)
        self.mutants.append(mutant)
        self.runs.append(scenario.name)
        self.networks.append(scenario.cluster.network)
        progress("half way")
        run.scenario.write_text(GOOD)
        run.meta.write_text("{}")
        if self.outcomes and isinstance(self.outcomes[0], BaseException):
            raise self.outcomes.pop(0)  # type: ignore[misc]

    def check(self, run: RunDir, metrics: Metrics | None) -> Verdict:
        outcome = self.outcomes.pop(0) if self.outcomes else "pass"
        assert isinstance(outcome, str)
        return verdict_of(outcome)

    def measure(self, run: RunDir) -> Metrics:
        load = Load(0, 0, 0, 0, 0.0, 0.0, 0, 0.0, 0.0, None)
        return Metrics("quiet", "direct", "fsync", 3, 1.0, load, (), (), (), None, None)


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeLab]:
    fake = FakeLab()
    monkeypatch.setattr("lab.live.live.run", fake.run)
    monkeypatch.setattr("lab.check.invariants.check", fake.check)
    monkeypatch.setattr("lab.check.metrics.measure", fake.measure)
    monkeypatch.setattr("lab.show.table.render", lambda *_: "the table")
    monkeypatch.setattr("lab.show.junit.render", lambda *_: "<testsuites/>")
    monkeypatch.setattr("lab.show.report.write", lambda _: "")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quiet.yml").write_text(GOOD)
    (tmp_path / "other.yml").write_text(GOOD.replace("quiet", "other"))
    yield fake


def run(*arguments: str) -> int:
    """run_lab.py with these arguments; its exit code."""
    try:
        return cli.main(arguments)
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        return ended.code


# ---- exit codes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "code"), [("pass", 0), ("broken", 1), ("undecided", 2), ("missed", 3)], ids=lambda value: str(value)
)
def test_a_run_ends_as_its_verdict_says(lab: FakeLab, outcome: str, code: int) -> None:
    lab.outcomes = [outcome]
    assert run("quiet.yml", "--out", "out") == code


@pytest.mark.parametrize("error", [OSError("no space"), AssertionError("ours"), ValueError("x")], ids=repr)
def test_a_failure_of_the_lab_is_70(lab: FakeLab, error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    lab.outcomes = [error]
    assert run("quiet.yml", "--out", "out") == 70
    assert str(error) in capsys.readouterr().err


def test_a_failure_outside_of_a_run_is_70_and_no_broken_invariant(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(options: object) -> None:
        raise ValueError("ours")

    monkeypatch.setattr(cli, "_choice", fail)
    assert cli.main(["validate", "quiet.yml"]) == 70


@pytest.mark.parametrize("out", ["/proc/out", "quiet.yml", "quiet.yml/out", "x" * 300])
def test_runs_that_can_t_be_written_are_wrong_usage_before_anything_starts(
    out: str, lab: FakeLab, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("quiet.yml", "--out", out) == 64
    assert f"--out: found {out}, allowed a directory that can be written: " in capsys.readouterr().err
    assert lab.runs == []


def test_a_checker_that_fails_is_70_and_no_pass(lab: FakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Verdict:
        raise ZeroDivisionError

    monkeypatch.setattr("lab.check.invariants.check", broken)
    assert run("quiet.yml", "--out", "out") == 70


def test_an_interrupted_run_is_130_and_the_next_one_is_not_started(lab: FakeLab) -> None:
    lab.outcomes = [KeyboardInterrupt()]
    assert run("quiet.yml", "other.yml", "--out", "out") == 130
    assert lab.runs == ["quiet"]


def test_of_repeated_simulations_those_that_did_not_pass_and_the_last_are_kept(
    lab: FakeLab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def simulate(scenario: Scenario, run: RunDir, *, seed: int, mutant: str, frames: bool) -> None:
        lab.run(scenario, run, seed=seed, progress=lambda text: None, mutant=mutant)

    monkeypatch.setattr("lab.sim.simulator.run", simulate)
    lab.outcomes = ["pass", "broken", "pass", "pass"]
    assert run("quiet.yml", "--sim", "--repeat", "4", "--seed", "5", "--out", "out") == 1
    assert lab.seeds == [5, 6, 7, 8]
    kept = sorted(path for path in Path("out/quiet").iterdir() if not path.is_symlink())
    assert [json.loads((path / "verdict.json").read_text())["outcome"] for path in kept] == ["broken", "pass"]
    assert Path("out/latest").resolve() == kept[-1].resolve()
    shown = capsys.readouterr().out
    assert "quiet: PASS  (seed 5, not kept)\n" in shown and "quiet: PASS  (seed 7, not kept)\n" in shown
    assert "seed 6, out/quiet" in shown and "the lab failed" not in shown
    assert shown.count("the table") == 1
    assert shown.endswith(
        "3 of 4 runs passed\n  quiet: FAIL: A1 agreement: two lines differ\n"
        "      python3 run_lab.py quiet.yml --sim --seed 6\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("missing.yml",),
        ("quiet.yml", "--repeat", "0"),
        ("quiet.yml", "--repeat", "two"),
        ("quiet.yml", "--seed", "-1"),
        ("quiet.yml", "--nonsense"),
        ("quiet.yml", "--frames"),
        ("quiet.yml", "--mutant", "nothing"),
        ("run",),
        ("check", "no_such_run"),
        ("validate", "missing.yml"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_64(lab: FakeLab, arguments: tuple[str, ...]) -> None:
    assert run(*arguments) == 64
    assert lab.runs == []


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [(["serve"], "ui"), (["watch"], "ui"), (["campaign", "new", "x", "--seeds", "1"], "campaign")],
)
def test_a_missing_extra_is_installed_from_this_checkout_for_this_interpreter(
    arguments: list[str], extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lab is on no package index, where another project has its name."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(arguments) != 0
    assert capsys.readouterr().err.endswith(f": {sys.executable} -m pip install '{ROOT}[{extra}]'\n")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_are_0(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(option) == 0
    assert option == "--help" or capsys.readouterr().out == f"chatlab {__version__}\n"


@pytest.mark.parametrize(
    ("codes", "worst"), [([0, 0], 0), ([0, 2], 2), ([2, 3], 3), ([3, 70], 70), ([70, 1], 1), ([1, 130], 130)]
)
def test_the_exit_code_of_several_runs_is_that_of_the_worst(codes: list[int], worst: int) -> None:
    assert runs.worst(codes) == worst
    assert runs.worst(reversed(codes)) == worst


# ---- several runs -------------------------------------------------------------------------------


def test_all_scenarios_are_run_and_each_as_often_as_asked(lab: FakeLab) -> None:
    assert run("quiet.yml", "other.yml", "--repeat", "2", "--out", "out") == 0
    assert lab.runs == ["quiet", "quiet", "other", "other"]


def test_without_x_a_failure_does_not_stop_the_others(lab: FakeLab) -> None:
    lab.outcomes = ["broken", "pass"]
    assert run("quiet.yml", "other.yml", "--out", "out") == 1
    assert lab.runs == ["quiet", "other"]


def test_with_x_the_first_failure_is_the_last_run(lab: FakeLab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.outcomes = ["pass", "missed", "pass"]
    assert run("quiet.yml", "-x", "--repeat", "3", "--out", "out") == 3
    assert len(lab.runs) == 2
    assert "1 of 3 runs passed, 1 not run" in capsys.readouterr().out


def test_a_mistake_in_one_scenario_starts_none(lab: FakeLab, capsys: pytest.CaptureFixture[str]) -> None:
    Path("wrong.yml").write_text(GOOD.replace("send:", "sennd:"))
    assert run("quiet.yml", "wrong.yml", "--out", "out") == 64
    assert lab.runs == []
    assert "wrong.yml:4:5" in capsys.readouterr().err


def test_each_repetition_has_the_next_seed(lab: FakeLab) -> None:
    run("quiet.yml", "--seed", "7", "--repeat", "3", "--out", "out")
    assert lab.seeds == [7, 8, 9]


def test_without_a_seed_one_is_drawn_for_each_run(lab: FakeLab) -> None:
    run("quiet.yml", "--repeat", "2", "--out", "out")
    assert lab.seeds[0] != lab.seeds[1]


def test_the_seed_of_the_file_counts_where_none_is_given(lab: FakeLab) -> None:
    Path("seeded.yml").write_text(GOOD + "seed: 41\n")
    run("seeded.yml", "--out", "out")
    assert lab.seeds == [41]


def test_nodes_are_started_as_the_mutant_that_is_asked_for(lab: FakeLab) -> None:
    assert run("quiet.yml", "--mutant", "two_votes_in_one_term", "--out", "out") == 0
    assert lab.mutants == ["two_votes_in_one_term"]


# ---- what is left and what is shown -------------------------------------------------------------


def test_a_run_directory_contains_the_judges_files(lab: FakeLab) -> None:
    run("quiet.yml", "--out", "out")
    left = {path.name for path in Path("out/latest").iterdir()}
    assert left >= {"verdict.json", "metrics.json", "summary.txt", "junit.xml"}


def test_the_table_is_shown_and_the_last_line_says_how_it_ended(
    lab: FakeLab, capsys: pytest.CaptureFixture[str]
) -> None:
    run("quiet.yml", "--seed", "5", "--out", "out")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "the table"
    assert lines[-2].startswith("seed 5, out/quiet/") and lines[-1] == "quiet: PASS"
    assert not [line for line in lines if line.startswith("again: ")]


@pytest.mark.parametrize(
    ("outcome", "cause"),
    [
        ("broken", "FAIL: A1 agreement: two lines differ"),
        ("missed", "FAIL: expected last_seq: 3; found 2"),
        ("undecided", "UNKNOWN: A1 agreement: no log"),
        (OSError("no space"), "the lab failed: no space"),
    ],
    ids=str,
)
def test_the_end_of_a_run_that_did_not_pass_is_its_cause_and_how_to_repeat_it(
    lab: FakeLab, outcome: str | BaseException, cause: str, capfd: pytest.CaptureFixture[str]
) -> None:
    lab.outcomes = [outcome]
    run("quiet.yml", "--seed", "5", "--out", "out", "--mutant", "two_votes_in_one_term")
    captured = capfd.readouterr()
    assert (captured.out or captured.err).splitlines()[-2:] == [
        "again: python3 run_lab.py quiet.yml --seed 5 --mutant two_votes_in_one_term",
        f"quiet: {cause}",
    ]


def test_of_several_runs_only_those_that_did_not_pass_show_their_table(
    lab: FakeLab, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.outcomes = ["pass", "missed"]
    assert run("quiet.yml", "other.yml", "--out", "out") == 3
    captured = capsys.readouterr()
    assert captured.out.startswith("quiet: PASS  (seed ") and captured.out.count("the table") == 1
    first, second = captured.err.splitlines()
    assert first == "1 of 2, quiet" and second.startswith("2 of 2, about 0 s left, other")


def test_verdicts_are_coloured_on_a_terminal_that_wants_it(
    lab: FakeLab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    lab.outcomes = ["pass", "broken"]
    run("quiet.yml", "--out", "out")
    assert capsys.readouterr().out.endswith("quiet: \x1b[32mPASS\x1b[0m\n")
    monkeypatch.setenv("NO_COLOR", "1")
    run("quiet.yml", "--out", "out")
    assert capsys.readouterr().out.endswith("quiet: FAIL: A1 agreement: two lines differ\n")


def lab_process(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(PROJECT / "run_lab.py"), *arguments], **options)


def test_a_reader_that_has_gone_is_no_failure() -> None:
    process = lab_process("list", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate()
    assert (process.returncode, errors) == (0, b"")


def test_a_reader_that_has_gone_changes_no_verdict(
    lab: FakeLab, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def gone(text: str) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(cli, "_drop_output", lambda: None)
    monkeypatch.setattr(sys.stdout, "write", gone)
    lab.outcomes = ["broken", "pass"]
    assert run("quiet.yml", "other.yml", "--out", "out") == 1
    assert lab.runs == ["quiet", "other"]


@pytest.mark.parametrize("closed", [1, 2])
def test_a_standard_stream_that_was_closed_at_the_start_is_no_failure(closed: int) -> None:
    process = lab_process("list", preexec_fn=lambda: os.close(closed), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.communicate()
    assert process.returncode == 0


def test_a_full_disk_is_one_line_that_names_the_run(lab: FakeLab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.outcomes = [OSError(errno.ENOSPC, "No space left on device")]
    assert run("quiet.yml", "--out", "out") == 70
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("quiet: the lab failed: out/quiet/") and last.endswith("Z: No space left on device")


def test_json_is_alone_on_standard_output(lab: FakeLab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.outcomes = ["missed", OSError("disk")]
    assert run("quiet.yml", "--repeat", "2", "--json", "--seed", "1", "--out", "out") == 70
    captured = capsys.readouterr()
    document: dict[str, Any] = json.loads(captured.out)
    assert document["exit_code"] == 70
    assert [each["exit_code"] for each in document["runs"]] == [3, 70]
    assert document["runs"][0]["verdict"]["outcome"] == "missed"
    assert "the table" in captured.err


def test_a_build_server_s_summary_page_gets_every_run(lab: FakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "page.md")
    lab.outcomes = ["pass", "broken", OSError("no space")]
    assert run("quiet.yml", "--repeat", "3", "--out", "out") == 1
    page = Path("page.md").read_text()
    assert page.startswith("### chatlab: 1 of 3 runs passed\n")
    assert "| quiet | FAIL: A1 agreement: two lines differ |" in page and "the table" in page
    assert page.count("| python3 run_lab.py quiet.yml --seed ") == 2
    assert "| quiet | the lab failed: no space |" in page


def test_progress_off_a_terminal_is_plain_lines(lab: FakeLab, capsys: pytest.CaptureFixture[str]) -> None:
    run("quiet.yml", "--out", "out")
    assert "quiet: half way\n" in capsys.readouterr().err


def test_progress_on_a_terminal_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = runs.Progress("quiet")
    progress("one")
    progress("two")
    progress.close()
    assert capsys.readouterr().err == "\r\x1b[Kquiet: one\r\x1b[Kquiet: two\r\x1b[K"


def test_progress_fits_into_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    runs.Progress("quiet")("a very long step that would go on in the next line")
    assert capsys.readouterr().err == "\r\x1b[Kquiet: a very long "


# ---- which scenarios ----------------------------------------------------------------------------


@pytest.fixture
def home(lab: FakeLab, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's scenarios: two in the directory itself, one below it."""
    home = Path("home")
    (home / "perf").mkdir(parents=True)
    (home / "calm.yml").write_text(GOOD.replace("quiet", "calm"))
    (home / "wild.yml").write_text(GOOD.replace("quiet", "wild") + "tags: [network, slow]\n")
    (home / "perf" / "heavy.yml").write_text(GOOD.replace("quiet", "heavy") + "tags: [slow]\n")
    monkeypatch.setattr(cli, "SCENARIOS", (home,))
    return home


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("calm",), ["calm"]),
        (("heavy",), ["heavy"]),
        (("quiet.yml", "wild"), ["quiet", "wild"]),
        (("home",), ["calm", "wild"]),
        (("home/perf/",), ["heavy"]),
        (("all",), ["calm", "wild"]),
        (("--tag", "slow"), ["wild"]),
        (("home", "home/perf", "--tag", "slow"), ["wild", "heavy"]),
        (("home", "--tag", "slow", "--tag", "none"), ["wild"]),
    ],
    ids=" ".join,
)
def test_scenarios_are_chosen_by_name_tag_and_directory(
    lab: FakeLab, home: Path, arguments: tuple[str, ...], names: list[str]
) -> None:
    assert run(*arguments, "--out", "out") == 0
    assert lab.runs == names


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("clam",), "clam: no such file, directory or scenario; did you mean calm?\n"),
        (("lits",), "lits: no such file, directory or scenario; did you mean list?\n"),
        (("home/xyz.yml",), "home/xyz.yml: no such file, directory or scenario\n"),
        (("out",), "out: no scenario files in this directory; they end in .yml or .yaml\n"),
        (("home", "--tag", "netwrk"), "no scenario has the tag netwrk\n"),
        (
            ("run",),
            "no scenario given: `run_lab.py list` shows all, `run_lab.py run all` runs all\n",
        ),
    ],
    ids=str,
)
def test_arguments_that_name_no_scenario_are_reported(
    lab: FakeLab, home: Path, arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    assert run(*arguments) == 64
    assert capsys.readouterr().err == says
    assert lab.runs == []


def test_a_scenario_that_cannot_be_simulated_is_skipped_in_a_directory_and_refused_by_name(
    lab: FakeLab, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "calm.yml").write_text(
        "name: calm\ndescription: d\nsteps: [{load: start}]\nload: {rate: 5}\nexpectations: [{throughput: 5}]\n"
    )
    assert run("home", "--sim", "--seed", "1", "--out", "out") == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("calm: skipped: expectations[0].throughput: measures the machine")
    assert captured.out.endswith("\nwild: PASS\n")
    assert run("calm", "--sim", "--out", "out") == 64


KERNEL = "name: calm\ndescription: d\ncluster: {network: kernel}\nsteps: [{send: {client: 1, messages: 1}}]\n"


def test_where_there_is_no_kernel_network_its_scenarios_are_skipped_in_a_directory_and_refused_by_name(
    lab: FakeLab, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.live.enclosed.missing", lambda: "cluster.network: kernel needs Linux")
    (home / "calm.yml").write_text(KERNEL)
    assert run("home", "--out", "out") == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("calm: skipped: cluster.network: kernel needs Linux\n")
    assert lab.runs == ["wild"]
    assert run("calm", "--out", "out") == 64
    assert capsys.readouterr().err == "calm: cluster.network: kernel needs Linux\n"
    assert run("home", "--network", "kernel", "--out", "out") == 2
    assert capsys.readouterr().err.endswith("\nnothing was run: every scenario was skipped\n")
    assert run("home", "--sim", "--seed", "1", "--out", "out") == 0


def test_any_scenario_that_drops_packets_can_be_run_in_the_kernels_network(
    lab: FakeLab, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.live.enclosed.missing", lambda: "")
    (home / "wild.yml").write_text(KERNEL.replace("calm", "wild").replace("network: kernel", ""))
    (home / "calm.yml").write_text(KERNEL.replace("network: kernel", "").replace("steps: [", "steps: [reset: {}, "))
    lab.outcomes = ["missed"]
    assert run("home", "--network", "kernel", "--seed", "5", "--out", "out") == 3
    captured = capsys.readouterr()
    assert captured.err.startswith("calm: skipped: steps[0].reset: network: kernel drops packets")
    assert lab.networks == ["kernel"]
    assert "wild.yml --seed 5 --network kernel\n" in captured.out
    assert run("wild", "--network", "kernel", "--sim", "--out", "out") == 64
    assert "--network: not with --sim" in capsys.readouterr().err


def test_any_scenario_without_faults_of_clocks_can_be_run_under_supervisors(
    lab: FakeLab, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.live.supervise.missing", lambda: "")
    plain = KERNEL.replace("network: kernel", "")
    (home / "wild.yml").write_text(plain.replace("calm", "wild"))
    (home / "calm.yml").write_text(plain.replace("steps: [", "steps: [clock: {on: 1, jump: 1s}, "))
    lab.outcomes = ["missed"]
    assert run("home", "--disks", "supervised", "--seed", "5", "--out", "out") == 3
    captured = capsys.readouterr()
    assert captured.err.startswith("calm: skipped: steps[0].clock: disks: supervised does not change clocks")
    assert lab.runs == ["wild"]
    assert "wild.yml --seed 5 --disks supervised\n" in captured.out
    assert run("wild", "--disks", "supervised", "--sim", "--out", "out") == 64
    assert "--disks: not with --sim" in capsys.readouterr().err
    monkeypatch.setattr("lab.live.supervise.missing", lambda: "cluster.disks: supervised: pidfd_getfd")
    assert run("wild", "--disks", "supervised", "--out", "out") == 64
    assert capsys.readouterr().err == "wild: cluster.disks: supervised: pidfd_getfd\n"


# ---- clean --------------------------------------------------------------------------------------


def test_clean_removes_the_oldest_runs_of_each_scenario(lab: FakeLab, capsys: pytest.CaptureFixture[str]) -> None:
    run("quiet.yml", "--repeat", "4", "--out", "out")
    run("other.yml", "--out", "out")
    newest = Path("out/quiet/latest").resolve()
    Path("out/notes").mkdir()
    Path("out/notes/mine.txt").write_text("kept")
    capsys.readouterr()
    assert run("clean", "--keep", "1", "--dry-run", "--out", "out") == 0
    assert capsys.readouterr().out.startswith("would remove 3 runs (")
    assert len([each for each in Path("out/quiet").iterdir() if not each.is_symlink()]) == 4
    assert run("clean", "--keep", "1", "--out", "out") == 0
    assert "removed 3 runs (" in (told := capsys.readouterr().out) and "2 runs (" in told
    assert [each for each in Path("out/quiet").iterdir() if not each.is_symlink()] == [Path("out/quiet") / newest.name]
    assert Path("out/latest").exists() and Path("out/notes/mine.txt").exists()


def test_clean_leaves_a_run_that_may_be_under_way_and_no_dead_link(lab: FakeLab) -> None:
    run("quiet.yml", "--out", "out")
    run("other.yml", "--out", "out")
    (Path("out/other/latest").resolve() / "meta.json").unlink()
    assert run("clean", "--keep", "0", "--out", "out") == 0
    assert sorted(each.name for each in Path("out").iterdir()) == ["latest", "other"]


# ---- check, validate, list ----------------------------------------------------------------------


def test_check_judges_a_finished_run_again(lab: FakeLab) -> None:
    run("quiet.yml", "--out", "out")
    lab.outcomes = ["broken"]
    assert run("check", "out/latest") == 1
    assert json.loads(Path("out/latest/verdict.json").read_text())["outcome"] == "broken"


def test_validate_names_the_place_of_a_mistake(lab: FakeLab, capsys: pytest.CaptureFixture[str]) -> None:
    Path("wrong.yml").write_text(GOOD + "colour: blue\n")
    assert run("validate", "quiet.yml", "wrong.yml") == 64
    captured = capsys.readouterr()
    assert "quiet.yml: ok" in captured.out
    assert "wrong.yml:5:1" in captured.err


def test_validate_with_sim_reports_steps_that_cannot_be_simulated(
    lab: FakeLab, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("fast.yml").write_text(
        "name: fast\ndescription: d\nsteps: [{load: start}]\nload: {rate: 5}\nexpectations: [{throughput: 5}]\n"
    )
    assert run("validate", "quiet.yml", "fast.yml") == 0
    assert run("validate", "--sim", "quiet.yml", "fast.yml") == 64
    captured = capsys.readouterr()
    assert captured.out.count("quiet.yml: ok") == 2
    assert captured.out.count("fast.yml: ok") == 1
    assert captured.err.startswith("fast.yml: expectations[0].throughput: measures the machine")


def test_list_and_validate_show_tags(lab: FakeLab, capsys: pytest.CaptureFixture[str]) -> None:
    Path("tagged.yml").write_text(GOOD + "tags: [network, slow]\n")
    assert run("validate", "quiet.yml", "tagged.yml") == 0
    assert capsys.readouterr().out.splitlines() == [
        "quiet.yml: ok, quiet: 1 step",
        "tagged.yml: ok, quiet: 1 step  [network, slow]",
    ]
    assert run("list", "tagged.yml") == 0
    assert capsys.readouterr().out.splitlines()[0] == "tagged.yml  [network, slow]"


def test_list_shows_every_scenario_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    shown = capsys.readouterr().out
    names = {path.name for path in PACKAGED.glob("*.yml")}
    assert "leader_failure.yml" in names
    assert all(name in shown for name in names)


def test_help_loads_neither_the_runner_nor_the_checks() -> None:
    code = (
        "import sys; from lab import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = ('lab.live.', 'lab.course', 'lab.steps', 'lab.check', 'nodeproc', 'msgspec', 'yaml')\n"
        "sys.exit(','.join(name for name in sys.modules if name.startswith(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# ---- the chat's own programs ----------------------------------------------------------------------------


def test_a_node_and_a_chat_by_hand_get_their_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    import nodeproc.__main__
    from nodeproc import client_tui

    given: list[list[str]] = []

    def program(code: int) -> Callable[[Sequence[str]], int]:
        def run(arguments: Sequence[str]) -> int:
            given.append(list(arguments))
            return code

        return run

    monkeypatch.setattr(nodeproc.__main__, "main", program(4))
    monkeypatch.setattr(client_tui, "start", program(130))
    assert cli.main(["node", "1", "--log-level", "DEBUG"]) == 4
    assert cli.main(["node", "some/file.yml"]) == 4
    assert cli.main(["node", "--config", "x"]) == 4
    assert cli.main(["node", "recover", "data/node_1"]) == 4
    assert cli.main(["chat", "--port", "5002"]) == 130
    first = str(PROJECT / "configs" / "node1.yml")
    assert given == [
        ["--config", first, "--log-level", "DEBUG"],
        ["--config", "some/file.yml"],
        ["--config", "x"],
        ["recover", "data/node_1"],
        ["--port", "5002"],
    ]


def test_a_missing_node_argument_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["node"]) == 64
    assert capsys.readouterr().err == "run_lab: no node given, allowed: 1, 2, 3, or a configuration file\n"
