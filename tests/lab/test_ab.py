"""The gate: which pairs count, what is decided, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from lab import cli
from lab.compare import trees
from lab.compare.ab import PAIRS
from lab.compare.decision import Pair, Report
from lab.compare.figures import JUDGED
from lab.compare.trees import Ran, Tree
from lab.paired import PAIRS_MIN
from lab.places import PACKAGED
from tests import TOO_LONG_S

PROJECT = Path(__file__).resolve().parents[2]
SCENARIO = str(PACKAGED / "leader_failure.yml")

# ---- decisions ----------------------------------------------------------------------------------

WAVE = (1.0, 1.01, 0.99, 1.02, 0.98, 1.0, 1.01, 0.99, 1.0, 1.01)


def pair(number: int, change: float = 1.0, **how: Ran) -> Pair:
    """A pair of runs of which the second one takes `change` times as long."""
    base, now = 10.0, 10.0 * change * WAVE[number]
    runs = {
        "base": Ran(0, values={"throughput": 1000 / base, "p50": base, "p99": base}),
        "candidate": Ran(0, values={"throughput": 1000 / now, "p50": now, "p99": now}),
    } | how
    return Pair(number, number, **runs)


def report(*pairs: Pair, judged: tuple[str, ...] = JUDGED, aa: bool = False, interrupted: bool = False) -> Report:
    return Report("story", "main", "this directory", aa, PAIRS, (pair(0), *pairs), judged, interrupted)


def steady(change: float = 1.0) -> list[Pair]:
    return [pair(number, change) for number in range(1, PAIRS + 1)]


BROKEN = Ran(1, "FAIL: A4 durability: message 7 is lost (results/ab/x)")
MISSED = Ran(3, "FAIL: expected throughput: 900; found 800 (results/ab/y)")


@pytest.mark.parametrize(
    ("change", "decision", "code"), [(1.1, "WORSE", 3), (1.0, "PASS", 0), (0.8, "PASS", 0), (1.04, "PASS", 0)]
)
def test_a_steady_machine_decides(change: float, decision: str, code: int) -> None:
    found = report(*steady(change))
    assert (found.decision[0], found.exit_code) == (decision, code)
    assert found.text().splitlines()[-1].startswith(f"ab: {decision}: ")


def test_the_reason_names_the_figures_that_are_worse_with_their_intervals() -> None:
    assert report(*steady(1.2), judged=("p50",)).decision == ("WORSE", "p50 x 1.20 (1.19 .. 1.21)")


def test_a_figure_that_is_not_judged_is_shown_and_does_not_decide() -> None:
    pairs = steady()
    for number, each in enumerate(pairs):
        each.candidate.values["p99"] *= 3 + number
    found = report(*pairs)
    assert found.exit_code == 0
    assert "(not judged)" in next(line for line in found.text().splitlines() if line.startswith("p99"))
    assert report(*pairs, judged=("p99",)).exit_code == 3


def test_a_noisy_machine_is_undecided_and_says_how_noisy() -> None:
    pairs = [pair(number, 1.4 if number % 2 else 0.7) for number in range(1, PAIRS + 1)]
    word, reason = report(*pairs).decision
    assert (word, reason[:39]) == ("UNDECIDED", "a change of 10% or more is not excluded")
    assert "p50 x " in reason


def test_identical_code_must_differ_in_neither_direction() -> None:
    assert report(*steady(), aa=True).exit_code == 0
    assert report(*steady(0.8), aa=True).exit_code == 2
    assert report(*steady(1.25), aa=True).exit_code == 3


def test_a_pair_with_a_run_that_did_not_pass_is_named_and_not_counted() -> None:
    pairs = steady()
    pairs[2] = pair(3, 50.0, base=MISSED)
    found = report(*pairs)
    assert (found.exit_code, len(found.counted)) == (0, PAIRS - 1)
    assert f"not counted: pair 3, base: {MISSED.problem}" in found.text()
    assert found.plain()["pairs"][3]["not_counted"] == [f"pair 3, base: {MISSED.problem}"]


def test_a_candidate_that_fails_where_the_base_passes_does_not_pass() -> None:
    """Its slow runs may be those that missed an expectation."""
    pairs = steady()
    pairs[2] = pair(3, candidate=MISSED)
    assert report(*pairs).decision == ("UNDECIDED", "runs of the candidate did not pass where those of the base did")
    assert report(*[*steady(1.2)[:-1], pair(PAIRS, candidate=MISSED)]).exit_code == 3


def test_a_broken_invariant_of_the_candidate_outweighs_all_figures() -> None:
    pairs = steady(1.2)
    pairs[5] = pair(6, candidate=BROKEN)
    found = report(*pairs)
    assert found.exit_code == 1
    assert BROKEN.problem in found.text()
    assert report(*steady(), pair(PAIRS, base=BROKEN)).exit_code == 0


def test_too_few_pairs_are_undecided() -> None:
    pairs = [*steady(2.0)[: PAIRS_MIN - 1], *(pair(number, base=MISSED) for number in range(PAIRS_MIN, PAIRS + 1))]
    assert report(*pairs).decision == ("UNDECIDED", "5 of 8 pairs count, 6 are needed")
    assert report().exit_code == 2


def test_a_judged_figure_that_some_runs_lack_is_undecided() -> None:
    pairs = steady()
    del pairs[1].candidate.values["p50"]
    assert report(*pairs).decision == ("UNDECIDED", "p50 was measured in 15 of 16 runs")
    assert report(*steady(), judged=("cpu",)).decision == ("UNDECIDED", "no run has cpu")


def test_an_interrupted_gate_reports_its_pairs() -> None:
    found = report(*steady()[:3], interrupted=True)
    assert (found.decision, found.exit_code) == (("INTERRUPTED", "after 3 of 8 pairs"), 130)
    assert found.plain()["figures"][0]["interval"] is None
    json.dumps(found.plain(), allow_nan=False)


# ---- runs of fake versions ----------------------------------------------------------------------

FAKE = """
import json, os, pathlib, sys
assert os.environ["CHATLAB_NATIVE"] == "0" and os.environ["PYTHONPATH"].startswith(str(pathlib.Path(__file__).parent))
here, words = pathlib.Path(__file__).parent, sys.argv[1:]
out, seed = pathlib.Path(words[words.index("--out") + 1]), int(words[words.index("--seed") + 1])
with open(here.parent / "order", "a") as order:
    order.write(f"{here.name} {seed}\\n")
(out / "story").mkdir(parents=True)
if seed in fails:
    fails[seed]()
metrics = {"load": {"throughput_per_s": 1000 / time, "latency": {"p50_ms": time * (1 + seed % 3 / 100)}}}
print(json.dumps({"exit_code": 0, "runs": [{"exit_code": 0, "problem": "", "metrics": metrics}]}))
"""
CHECKS = '[{"name": "A1", "title": "agreement", "result": "FAIL", "detail": "two lines differ"}]'
VERDICT = f'{{"outcome": "broken", "checks": {CHECKS}, "expectations": [], "messages": {{}}}}'
FAILS_A1 = f"""lambda: print('{{"runs": [{{"exit_code": 1, "problem": "", "verdict": {VERDICT}}}]}}') or sys.exit(1)"""
CRASHES = "lambda: sys.exit('Traceback\\nno such module')"
REFUSES = "lambda: print('story.yml:1:1: unknown word', file=sys.stderr) or sys.exit(64)"


def fake(directory: Path, time: float = 10.0, fails: str = "{}") -> Tree:
    """A version whose run_lab.py measures this time, and does something else with some seeds."""
    directory.mkdir()
    (directory / "run_lab.py").write_text(f"time, fails = {time}, {fails}\n{FAKE}")
    return Tree(directory, directory.name)


def ab(monkeypatch: pytest.MonkeyPatch, candidate: Tree, *words: str) -> int:
    """The exit code of `ab` that takes `candidate` for the directory that it runs in."""
    monkeypatch.setattr("lab.compare.ab.this_tree", lambda: candidate)
    return cli.main(["ab", SCENARIO, "--out", str(candidate.path.parent / "out"), *words])


def test_pairs_alternate_after_a_run_of_each_that_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, new = fake(tmp_path / "old"), fake(tmp_path / "new", 12.0)
    assert ab(monkeypatch, new, "--base", str(base.path), "--pairs", "6", "--json", "--seed", "100") == 3
    document = json.loads(capsys.readouterr().out)
    order = [line.split() for line in (tmp_path / "order").read_text().splitlines()]
    assert [name for name, _ in order] == ["new", "old", "old", "new"] * 3 + ["new", "old"]
    assert [int(seed) for _, seed in order] == [seed for number in range(7) for seed in [100 + number] * 2]
    assert (document["decision"], len(document["pairs"])) == ("WORSE", 7)
    assert [each["ratio"] for each in document["figures"]] == [pytest.approx(1 / 1.2), pytest.approx(1.2)]
    assert list((tmp_path / "out").iterdir()) == []  # Runs that passed are removed.


def test_failed_runs_are_kept_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, new = fake(tmp_path / "old", fails=f"{{3: {CRASHES}}}"), fake(tmp_path / "new", fails=f"{{5: {FAILS_A1}}}")
    assert ab(monkeypatch, new, "--base", str(base.path), "--pairs", "8") == 1
    text = capsys.readouterr().out
    assert "not counted: pair 2, base: no such module (" in text
    assert "not counted: pair 4, candidate: FAIL: A1 agreement: two lines differ (" in text
    assert sorted(each.name for each in (tmp_path / "out" / "ab").glob("*/*")) == ["2-base", "4-candidate"]


def test_it_stops_when_too_few_pairs_can_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, new = fake(tmp_path / "old", fails=f"{{2: {CRASHES}, 3: {CRASHES}}}"), fake(tmp_path / "new")
    assert ab(monkeypatch, new, "--base", str(base.path), "--pairs", "7") == 2
    assert len((tmp_path / "order").read_text().splitlines()) == 2 * 3


def test_a_version_that_refuses_the_scenario_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, new = fake(tmp_path / "old", fails=f"{{1: {REFUSES}}}"), fake(tmp_path / "new")
    assert ab(monkeypatch, new, "--base", str(base.path)) == 64
    assert "\nbase: story.yml:1:1: unknown word" in "\n" + capsys.readouterr().err


def test_a_version_can_be_compared_with_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ab(monkeypatch, fake(tmp_path / "new"), "--aa", "--pairs", "6") == 0
    assert "PASS: no change of 10% or more in throughput, p50" in capsys.readouterr().out


def test_the_speed_of_simulations_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    busy = "{seed: lambda: sum(range(10_000_000)) for seed in range(1000)}"
    base, new = fake(tmp_path / "old"), fake(tmp_path / "new", fails=busy)
    assert ab(monkeypatch, new, "--base", str(base.path), "--pairs", "6", "--sim", "--seeds", "2", "--json") in (2, 3)
    document = json.loads(capsys.readouterr().out)
    assert {each["name"]: each["judged"] for each in document["figures"]} == {
        "throughput": False,
        "p50": False,
        "seeds": True,
    }
    assert [each["seed"] for each in document["pairs"]] == [1, 3, 5, 7, 9, 11, 13]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--base REF is missing"),
        (("--base", "no such commit"), "--base: found no such commit; allowed: a directory with run_lab.py in it, or"),
        (("--base", "--output=x"), "--base: found --output=x; allowed:"),
        (("--base", "."), "--base: found .; allowed:"),
        (("--aa", "--metric", "seeds"), "--metric seeds: only with --sim"),
        (("--aa", "--seeds", "3"), "--seeds: only with --sim"),
    ],
)
def test_wrong_options_are_one_error(
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = (f"--base={words[1]}",) if words[:1] == ("--base",) else words
    assert ab(monkeypatch, fake(tmp_path / "new"), *words) == 64
    error = capsys.readouterr().err
    assert error.startswith(said) and error.count("\n") == 1


def test_an_installed_lab_says_that_it_needs_a_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trees, "ROOT", tmp_path)
    assert cli.main(["ab", SCENARIO, "--aa"]) == 64
    assert "only checkouts can be compared" in capsys.readouterr().err


# ---- real nodes ---------------------------------------------------------------------------------

TINY = """
name: tiny
description: One node and few messages.
cluster: {nodes: 1, durability: os}
load: {clients: 1, in_flight: 1, count: 10}
steps: [load: start, wait: {for: load_done, within: 60s}]
"""
WAIT = """
import time as _time
_write = Storage.write
def _slow_write(self, ops):
    _time.sleep(0.02)
    _write(self, ops)
Storage.write = _slow_write
"""
HANGING = """
name: hanging
description: The node opens a pipe and does not answer.
cluster: {nodes: 1, command: [sh, -c, "echo started > $STARTED; sleep 600", "{port}"]}
steps: [send: {client: 1, messages: [a]}]
"""


def git(repository: Path, *words: str) -> None:
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(repository), *who, *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with this version as its only commit, and with a wait at each write in its directory."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    path = tmp_path_factory.mktemp("repository")
    shutil.copy(PROJECT / "run_lab.py", path)
    for package in ("lab", "nodeproc"):
        shutil.copytree(PROJECT / package, path / package, ignore=shutil.ignore_patterns("__pycache__"))
    git(path, "init", "--quiet")
    git(path, "add", ".")
    git(path, "commit", "--quiet", "--message", "one")
    with (path / "nodeproc" / "disk" / "storage.py").open("a") as file:
        file.write(WAIT)
    return path


def command(repository: Path, scenario: str, *words: str) -> list[str]:
    story = repository / "story.yml"
    story.write_text(scenario)
    run = [sys.executable, str(repository / "run_lab.py"), "ab", str(story), "--base", "HEAD", *words]
    return [*run, "--out", str(repository / "results")]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    return kept | more


def test_a_wait_in_the_node_is_found_or_undecided(repository: Path, tmp_path: Path) -> None:
    ended = subprocess.run(
        command(repository, TINY, "--pairs", "6", "--metric", "p50", "--json"),
        env=environment(TMPDIR=str(tmp_path)),
        capture_output=True,
        timeout=10 * TOO_LONG_S,
    )
    document: dict[str, Any] = json.loads(ended.stdout)
    assert document["decision"] in ("WORSE", "UNDECIDED"), ended.stderr
    assert ended.returncode == {"WORSE": 3, "UNDECIDED": 2}[document["decision"]]
    assert [each["candidate"]["p50"] >= 20 for each in document["pairs"] if each["counts"]] == [True] * 6
    assert document["base"].startswith("HEAD, ") and document["candidate"].endswith("-dirty")
    assert list(tmp_path.iterdir()) == []


def first_bytes(pipe: Path, writer: subprocess.Popen[bytes]) -> bytes:
    """The first bytes in a named pipe; b"" if the process above its writer ends before."""
    assert writer.stdout is not None
    end = os.open(pipe, os.O_RDWR)
    try:
        ready, _, _ = select.select([end, writer.stdout.fileno()], [], [], TOO_LONG_S)
        return os.read(end, 100) if end in ready else b""
    finally:
        os.close(end)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_gate_that_was_ended(how: signal.Signals, repository: Path, tmp_path: Path) -> None:
    temporary, pipe = tmp_path / "tmp", tmp_path / "pipe"
    temporary.mkdir()
    os.mkfifo(pipe)
    gate = subprocess.Popen(
        command(repository, HANGING),
        env=environment(TMPDIR=str(temporary), STARTED=str(pipe)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert first_bytes(pipe, gate) == b"started\n"
        below = psutil.Process(gate.pid).children(recursive=True)
        assert len(below) >= 3  # The sweeper, the run, the node.
        assert len(list(temporary.glob("chatlab-base-*/run_lab.py"))) == 1
        gate.send_signal(how)
        _, left = psutil.wait_procs(below, timeout=TOO_LONG_S)
        assert left == []
        output, _ = gate.communicate(timeout=TOO_LONG_S)
    finally:
        gate.kill()
        gate.communicate()
    assert list(temporary.glob("chatlab-base-*")) == []
    if how != signal.SIGKILL:
        assert (gate.returncode, output.splitlines()[-1]) == (130, b"ab: INTERRUPTED: after 0 of 8 pairs")
        assert not (repository / "results" / "ab").exists()
