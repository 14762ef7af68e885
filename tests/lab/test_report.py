"""report.html: what it says, that texts of a run stay texts, that it stays small, and that it changes no verdict."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from lab import cli
from lab.check.invariants import check
from lab.check.metrics import encode_metrics, measure
from lab.check.verdict import Check, ExpectationResult, Quote, Violation, decode_verdict, encode_verdict
from lab.places import DOCS
from lab.plan import scenario as plan
from lab.plan.scenario import Scenario
from lab.rows import FaultRow, NodeUse, Sample, encode_row
from lab.rundir import RunDir
from lab.runs import How, judge, run_once
from lab.show import closeup, evidence, plots, report, sentences
from lab.show.lanes import BARS_MOST, Bar, lanes
from lab.show.story import Arrow, Note, Skipped
from tests.lab.synthetic import MS, T_START, build_run, doctor_lines, doctor_meta

PROJECT = Path(__file__).parents[2]
VENDORS = [*sorted((PROJECT / "lab").glob("*/static/vendor")), PROJECT / "tests" / "browser" / "vendor"]
HOSTILE = """</script><script>alert("1")</script><img src=x onerror=alert(2)>{{ 7 * 7 }}&lt;'"""


class Page(HTMLParser):
    """The elements of a page, and its text without scripts and styles."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.inside: dict[str, list[str]] = {"script": [], "style": [], "title": []}
        self._open = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag in self.inside:
            self.inside[tag].append("")
            self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.inside[self._open][-1] += data
        else:
            self.text += data

    def all(self, attribute: str) -> list[str]:
        return [attributes[attribute] for _, attributes in self.elements if attribute in attributes]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run in which the leader is killed, judged."""
    return judged(build_run(tmp_path))


def judged(run: RunDir) -> RunDir:
    metrics = measure(run)
    run.metrics.write_bytes(encode_metrics(metrics))
    run.verdict.write_bytes(encode_verdict(check(run, metrics)))
    return run


def page_of(run: RunDir) -> Page:
    return Page(report.Report(run).render())


# ---- what it says --------------------------------------------------------------------------------


def test_a_run_is_told_in_sentences(run: RunDir) -> None:
    text = page_of(run).text
    for sentence in (
        "No invariant is broken: 12 checks passed.",
        "Three nodes ran as processes of one machine for 1.2 s. Clients sent 200 messages; 200 were acknowledged.",
        "At 0.02 s the leader, node 3, was killed. The first node suspected it after 20 ms. Node 2 became leader after "
        "40 ms. The next message was acknowledged 100 ms after the fault.",
        "After the heal all nodes had delivered the same messages within 10 ms.",
        "✓ PASS",
        "After kill: leader at 0.020 s: node 2 leads term 2 after 40.0 ms",
        "the first acknowledgement after the election",
    ):
        assert sentence in text, sentence


def test_a_broken_run_opens_with_the_line_and_its_neighbours(run: RunDir) -> None:
    doctor_lines(run.message_log(2), lambda lines: lines.__delitem__(16))
    page = page_of(judged(run))
    text = page.text
    first = next(at for at, (tag, values) in enumerate(page.elements) if values.get("id") == "violation")
    assert first < next(at for at, (tag, values) in enumerate(page.elements) if values.get("id") == "story")
    assert "✗ A1 agreement" in text and "line 17 of node 2 differs from that of node 1, node 3" in text
    assert "The rule: Of any two message logs one is a prefix of the other, byte for byte." in text
    assert "nodes/node_2/logs/node_2_messages.jsonl, line 17" in text
    assert re.search(r"▶ +17 +\{\"seq_no\":18,", text) and re.search(r" +14 +\{\"seq_no\":14,", text)
    assert re.search(r" +20 +\{\"seq_no\":21,", text) and '{"seq_no":22,' not in text


def test_a_missed_expectation_and_an_undecided_check_are_named_at_the_top(run: RunDir) -> None:
    verdict = decode_verdict(run.verdict.read_bytes())
    expectations = (*verdict.expectations, ExpectationResult("acknowledged: 900", False, "200 of 200"))
    run.verdict.write_bytes(
        encode_verdict(msgspec.structs.replace(verdict, outcome="missed", expectations=expectations))
    )
    assert "✗ expected acknowledged: 900; found 200 of 200" in page_of(run).text
    checks = (*verdict.checks, Check("A8", "subscribers", "UNKNOWN", "no line was shown"))
    run.verdict.write_bytes(encode_verdict(msgspec.structs.replace(verdict, outcome="undecided", checks=checks)))
    text = page_of(run).text
    assert "? A8 subscribers: no line was shown" in text
    assert "The run does not show whether these hold: A8 (subscribers)." in text


def test_every_rule_is_quoted_from_the_protocol() -> None:
    rules = sentences.rules(DOCS / "protocol.md")
    assert list(rules) == [f"A{number}" for number in range(1, 11)]
    assert rules["A6"] == "If A was acknowledged before B was sent, A's seq_no is the lower one."
    assert sentences.rules(DOCS / "no_such_file.md") == {}


def test_a_simulated_run_shows_the_frames_of_its_failover(tmp_path: Path) -> None:
    result = run_once(short_scenario("[{kill: leader}, {wait: new_leader}]"), 1, tmp_path, How(sim=True))
    assert result.directory is not None
    page = page_of(RunDir(result.directory))
    assert re.search(r"2 → 1 VOTE_REQUEST term 2", page.text) and "node 3: kill" in page.text
    assert sum(tag == "polygon" for tag, _ in page.elements) > 3
    assert "were simulated, in virtual time," in page.text


def test_a_run_of_a_mutant_shows_the_moments_before_the_violation(tmp_path: Path) -> None:
    story = plan.load(PROJECT / "lab" / "selftest" / "stories" / "two_votes_in_one_term.yml")
    result = run_once(story, 1, tmp_path, How(sim=True, mutant="two_votes_in_one_term"))
    assert result.directory is not None and result.exit_code == 1
    text = page_of(RunDir(result.directory)).text
    assert "✗ A7 one leader a term" in text and "The rule: A term has at most one leader." in text
    assert "vote granted: term 2, candidate 2" in text.partition("What happened")[0]
    assert "The nodes ran with a planted bug, the mutant two_votes_in_one_term." in text


def short_scenario(steps: str) -> Scenario:
    return plan.load("test.yml", text=f"name: test\ndescription: A test.\nsteps: {steps}")


def test_the_roles_over_time_are_those_of_the_events_and_exits(run: RunDir) -> None:
    meta = run.read_meta()
    killed = T_START + 20 * MS
    assert lanes(run, meta, run.read_faults())[3] == [
        Bar(T_START, killed + MS // 2, "leader", 1),
        Bar(killed + MS // 2, killed + 150 * MS, "down", 1),
        Bar(killed + 150 * MS, killed + 160 * MS, "follower", 1),
        Bar(killed + 160 * MS, meta.t_end, "follower", 2),
    ]


def test_a_pause_is_a_bar_and_the_node_is_then_what_it_was_before(run: RunDir) -> None:
    at = T_START + 300 * MS
    with run.faults.open("ab") as file:
        row = FaultRow("pause", 2, "leader", at - MS, at, {"state": "stopped"}, True, 1, at + 100 * MS, "pause: 2")
        file.write(encode_row(row))
    roles = [(bar.role, bar.term) for bar in lanes(run, run.read_meta(), run.read_faults())[2]]
    assert roles == [("follower", 1), ("leader", 2), ("paused", 2), ("leader", 2)]


# ---- texts stay texts, and nothing is loaded -----------------------------------------------------


def test_hostile_texts_of_a_run_stay_text(run: RunDir) -> None:
    doctor_lines(run.message_log(2), lambda lines: lines.__setitem__(4, hostile_line(lines[4])))
    judged(run)
    verdict = decode_verdict(run.verdict.read_bytes())
    spoiled = Check(
        HOSTILE, HOSTILE, "FAIL", HOSTILE, violations=1, first=Violation("x", HOSTILE, (Quote("x", HOSTILE),))
    )
    findings = (ExpectationResult(HOSTILE, False, HOSTILE),)
    verdict = msgspec.structs.replace(verdict, checks=(*verdict.checks, spoiled), expectations=findings)
    run.verdict.write_bytes(encode_verdict(verdict))
    fault = msgspec.structs.replace(run.read_faults()[0], asked=HOSTILE, role=HOSTILE, evidence={HOSTILE: HOSTILE})
    run.write_faults([fault])
    doctor_meta(
        run, scenario=HOSTILE, mutant=HOSTILE, problem=HOSTILE, host={"system": HOSTILE}, versions={"x": HOSTILE}
    )
    page = page_of(run)
    assert [tag for tag, _ in page.elements].count("script") == 3
    assert [
        tag for tag, _ in page.elements if tag in ("img", "iframe", "object", "embed", "link", "base", "form")
    ] == []
    assert [name for _, values in page.elements for name in values if name.startswith("on") or name == "style"] == []
    assert page.text.count(HOSTILE) > 10 and "49" not in page.inside["title"][0]
    assert msgspec.json.decode(page.inside["script"][0])["windows"]


def hostile_line(line: bytes) -> bytes:
    found = msgspec.json.decode(line)
    return msgspec.json.encode(found | {"payload": HOSTILE}) + b"\n"


def test_only_the_pages_own_scripts_and_style_are_allowed(run: RunDir) -> None:
    page = page_of(run)
    policy = next(values["content"] for tag, values in page.elements if values.get("http-equiv"))
    for kind, texts in (("script-src", page.inside["script"][1:]), ("style-src", page.inside["style"])):
        hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        allowed = " ".join(f"'sha256-{each}'" for each in hashes)
        assert f"{kind} {allowed};" in policy
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy


def test_links_lead_to_parts_of_the_page_and_files_of_the_run(run: RunDir) -> None:
    doctor_lines(run.message_log(2), lambda lines: lines.__delitem__(16))
    page = page_of(judged(run))
    identities = page.all("id")
    assert len(set(identities)) == len(identities)
    links = page.all("href")
    assert all(link[1:] in identities if link.startswith("#") else (run.path / link).is_file() for link in links)
    assert page.all("src") == []
    assert {label for value in page.all("aria-labelledby") for label in value.split()} <= set(identities)


def test_a_place_outside_of_the_run_is_not_read(run: RunDir, tmp_path: Path) -> None:
    (tmp_path.parent / "secret").write_text("a secret\n")
    for place in ("../secret:1", f"{tmp_path.parent}/secret:1", "nodes/../../secret:1", "nodes:1", "history.jsonl:x"):
        broken = Check("A1", "t", "FAIL", "d", violations=1, first=Violation("x", "m", (Quote(place, "quoted"),)))
        (excerpt,) = evidence.excerpts(run, broken)
        assert (excerpt.file, [line.text for line in excerpt.lines]) == ("", ["quoted"])


@pytest.mark.parametrize("vendor", VENDORS, ids=lambda path: path.parents[1].name)
def test_the_files_of_others_are_as_their_packages_have_them(vendor: Path) -> None:
    listed: dict[str, str] = {}
    for package in tomllib.loads((vendor / "vendor.toml").read_text("utf-8"))["package"]:
        listed |= {name: checksum for name, (_, checksum) in package["files"].items()}
        assert any(name.endswith("LICENSE") for name in package["files"])
    found = {path.name for path in vendor.iterdir() if path.suffix not in (".toml", ".py") and path.is_file()}
    assert found == set(listed)
    for name, checksum in listed.items():
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == checksum, name


# ---- size and cost -------------------------------------------------------------------------------


def test_the_page_stays_small_however_long_the_run(run: RunDir) -> None:
    """Nine nodes, thousands of faults, elections, expectations and long texts."""
    long = "<&\"'>é" * 400
    meta = run.read_meta()
    for node in range(1, 10):
        run.node_dir(node).mkdir(parents=True, exist_ok=True)
        with run.events(node).open("ab") as file:
            for number in range(3000):
                t, term = T_START + number * MS, number + 3
                name = "became_leader" if number % 9 == node - 1 else "new_coordinator"
                file.write(
                    msgspec.json.encode({"t_ns": t, "node": node, "event": name, "term": term, "x": long}) + b"\n"
                )
    faults = []
    for at in range(2000):
        t = T_START + at * MS
        faults.append(FaultRow("kill", 1 + at % 9, "leader", t, t, {"says": long}, True, 1, 0, long, at))
    run.write_faults(faults)
    verdict = decode_verdict(run.verdict.read_bytes())
    expectations = tuple(ExpectationResult(f"{number} {long}", False, long) for number in range(2000))
    violation = Violation("x", long, tuple(Quote("history.jsonl:9", long) for _ in range(50)))
    checks = tuple(Check(f"A{at}", long, "FAIL", long, True, 9, violation) for at in range(1, 14))
    run.verdict.write_bytes(encode_verdict(msgspec.structs.replace(verdict, checks=checks, expectations=expectations)))
    samples = tuple(Sample(T_START + at * MS, 1 + at % 9, at / 1e3, 1) for at in range(20_000))
    nodes = {node: NodeUse(1, 1.0, 1, ()) for node in range(1, 10)}
    doctor_meta(run, t_end=T_START + 20_000 * MS, samples=samples, nodes=nodes, scenario=long, frames="chosen")
    assert meta.nodes.keys() < nodes.keys()
    size = len(report.Report(run).render().encode())
    assert size < report.SIZE_MOST
    assert all(len(bars) <= BARS_MOST for bars in lanes(run, run.read_meta(), run.read_faults()).values())


PEAK = """
import resource, sys
from pathlib import Path
from lab.rundir import RunDir
from lab.show.report import write
assert not write(RunDir(Path(sys.argv[1])))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_the_memory_for_a_page_does_not_grow_with_the_history(tmp_path: Path) -> None:
    peaks = []
    for name, batches in (("small", 20), ("large", 20_000)):
        run = judged(build_run(tmp_path / name, batches=batches, batch=1))
        ended = subprocess.run(
            [sys.executable, "-c", PEAK, str(run.path)], cwd=PROJECT, capture_output=True, check=True
        )
        peaks.append(int(ended.stdout))
        assert run.report.stat().st_size < report.SIZE_MOST
    assert peaks[1] - peaks[0] < 3 << 10


def test_of_many_items_the_plain_traffic_and_the_middle_are_left_out() -> None:
    notes = [Note(at, 1, "*", f"event {at}") for at in range(100)]
    traffic = [Arrow(at, at, 1, 2, "APPEND", "", False) for at in range(100)]
    assert closeup._fewer([*notes[:10], *traffic], 20) == notes[:10]
    kept = closeup._fewer(notes, 30)
    assert len(kept) == 30 and kept[:10] == notes[:10] and kept[-19:] == notes[-19:]
    assert kept[10] == Skipped(9, 71, "more")


@pytest.mark.parametrize("histogram", [[(0.001, 1)], [(5.0, 1_000_000)], [(ms / 10, 1) for ms in range(1, 5000)]])
def test_a_curve_by_percentile_never_falls_and_stays_inside(histogram: list[tuple[float, int]]) -> None:
    curve = plots.percentiles(histogram)
    assert curve is not None
    points = [tuple(map(float, point.split(","))) for point in curve.points.split()]
    assert points == sorted(points, key=lambda point: (point[0], -point[1]))
    assert all(0 <= x <= curve.width and 0 <= y <= curve.height for x, y in points)
    assert len(points) < 200


# ---- the commands --------------------------------------------------------------------------------


def test_a_run_leaves_its_report_unless_it_is_not_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenario = tmp_path / "quiet.yml"
    scenario.write_text("name: quiet\ndescription: d\nsteps: [{sleep: 10ms}]\nexpectations: []\n")
    command = [str(scenario), "--sim", "--seed", "1", "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--no-report"]) == 2
    run = RunDir((tmp_path / "out" / "latest").resolve())
    assert not run.report.exists()
    assert cli.main(["check", "--no-report", str(run.path)]) == 2 and not run.report.exists()
    assert cli.main(["report", str(run.path)]) == 0
    made = run.report.read_bytes()
    assert capsys.readouterr().out.endswith("report.html\n")
    run.report.unlink()
    assert cli.main(["check", str(run.path)]) == 2
    assert run.report.read_bytes() == made
    assert cli.main([*command, "--repeat", "2"]) == 2
    assert RunDir((tmp_path / "out" / "latest").resolve()).report.is_file()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("two\nlines"), KeyError("x")])
def test_a_failure_of_the_report_is_one_line_and_changes_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    run = build_run(tmp_path)
    before = judge(run, "synthetic", None)

    def fail(run: RunDir) -> None:
        raise error

    monkeypatch.setattr(report, "Report", fail)
    assert cli.main(["check", str(run.path)]) == before.exit_code == 0
    said = capsys.readouterr().err
    assert said.startswith("no report.html: ") and said.count("\n") == 1
    assert not run.report.exists()


def test_without_jinja2_a_run_is_judged_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("lab.show.report", "lab.show.page"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert cli.main(["check", str(build_run(tmp_path).path)]) == 0
    assert capsys.readouterr().err.startswith("no report.html: import of jinja2")


def test_the_report_of_what_is_no_judged_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path)]) == 64
    run = build_run(tmp_path / "run")
    assert cli.main(["report", str(run.path)]) == 70
    assert "verdict.json: No such file" in capsys.readouterr().err
