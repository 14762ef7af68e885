"""Tables, junit.xml and summary pages of a verdict."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from msgspec import structs

from lab.check.invariants import check
from lab.check.metrics import measure
from lab.check.verdict import Check, ExpectationResult, Outcomes, Quote, Verdict, Violation, decide, quote
from lab.rundir import RunDir
from lab.show import junit, stepsummary, table
from tests.lab.synthetic import build_run, doctor_all_logs, doctor_lines

PASSED = Check("A1", "agreement", "PASS", "3 logs, equal")
BROKEN = Check(
    "A2", "contiguity", "FAIL", "gap", violations=3, first=Violation("log:7", "gap", (Quote("log:7", '{"seq_no":8}'),))
)
UNKNOWN = Check("A4", "durability", "UNKNOWN", "no message was acknowledged")
NOT_ASKED = Check("A8", "subscribers", "UNKNOWN", "nobody subscribed", decisive=False)
MET = ExpectationResult("leader: 3", True, "1 names 3")
MISSED = ExpectationResult("acknowledged: 5", False, "4 of 5 <acknowledged>")
SOFT = ExpectationResult("throughput: 9", False, "8 messages/s", soft=True)
OPEN = ExpectationResult("order: [a]", None, "no message log")


def verdict_of(*parts: Check | ExpectationResult) -> Verdict:
    checks = tuple(part for part in parts if isinstance(part, Check))
    expectations = tuple(part for part in parts if isinstance(part, ExpectationResult))
    return Verdict(decide(checks, expectations), checks, expectations, Outcomes())


@pytest.mark.parametrize(
    ("parts", "exit_code"),
    [
        ((PASSED, MET), 0),
        ((PASSED, NOT_ASKED, SOFT), 0),
        ((PASSED, UNKNOWN), 2),
        ((PASSED, OPEN), 2),
        ((PASSED, MISSED), 3),
        ((PASSED, UNKNOWN, MISSED), 3),
        ((BROKEN, UNKNOWN, MISSED), 1),
    ],
)
def test_the_gravest_finding_decides(parts: tuple[Check | ExpectationResult, ...], exit_code: int) -> None:
    assert verdict_of(*parts).exit_code == exit_code


def cases(document: str) -> dict[str, str]:
    """Test case -> passed, or the tag of what is in it."""
    root = ElementTree.fromstring(document)
    return {case.attrib["name"]: case[0].tag if len(case) else "passed" for case in root.iter("testcase")}


def test_junit_takes_undecided_for_an_error_and_never_for_a_pass() -> None:
    document = junit.render("story", verdict_of(PASSED, BROKEN, UNKNOWN, NOT_ASKED, MET, MISSED, SOFT, OPEN), None)
    assert cases(document) == {
        "A1 agreement": "passed",
        "A2 contiguity": "failure",
        "A4 durability": "error",
        "A8 subscribers": "skipped",
        "leader: 3": "passed",
        "acknowledged: 5": "failure",
        "throughput: 9": "skipped",
        "order: [a]": "error",
    }
    suite = ElementTree.fromstring(document)[0].attrib
    assert (suite["tests"], suite["failures"], suite["errors"], suite["skipped"]) == ("8", "2", "2", "2")


def test_junit_shows_the_violation_with_its_lines() -> None:
    root = ElementTree.fromstring(junit.render("story", verdict_of(BROKEN), None))
    failure = root.find(".//failure")
    assert failure is not None
    assert failure.text == 'log:7: gap\n    log:7: {"seq_no":8}'


def test_junit_stays_xml_whatever_a_log_holds() -> None:
    nasty = Check("A3", "integrity", "FAIL", "\x00 ]]> <&> \ud800", violations=1, first=Violation("log:1", "\x1b[0m"))
    root = ElementTree.fromstring(junit.render("story", verdict_of(nasty), None))
    failure = root.find(".//failure")
    assert failure is not None
    assert failure.attrib["message"] == "\ufffd ]]> <&> \ufffd"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return build_run(tmp_path)


def shown(run: RunDir) -> str:
    metrics = measure(run)
    return table.render(run, check(run, metrics), metrics)


def test_the_summary_of_an_honest_run(run: RunDir) -> None:
    text = shown(run)
    for part in (
        "A9      recovery",
        "1,434 messages/s over 0.140 s (direct)",
        "ms: p50 0.50, p90 0.50, p99 0.50, p99.9 0.50, max 0.50",
        "101.0 ms without an acknowledgement, at 0.019 s",
        "during kill node 3",
        "peak memory\n",
    ):
        assert part in text, text
    failover = next(line for line in text.splitlines() if line.startswith("kill node 3"))
    assert failover.split()[3:] == ["0.020", "20.0", "40.0", "node", "2", "100.5"]


def test_the_summary_shows_the_first_violation_with_file_and_lines(run: RunDir) -> None:
    doctor_lines(run.message_log(2), lambda lines: lines.__delitem__(16))
    text = shown(run)
    assert "A1 nodes/node_2/logs/node_2_messages.jsonl:17: line 17 of node 2 differs" in text
    assert '    nodes/node_2/logs/node_2_messages.jsonl:17: {"seq_no":18,' in text
    assert '    nodes/node_1/logs/node_1_messages.jsonl:17: {"seq_no":17,' in text


def test_the_summary_counts_further_violations(run: RunDir) -> None:
    doctor_all_logs(run, lambda lines: lines.reverse())
    assert "    and 199 more" in shown(run)


def test_the_summary_of_a_run_without_figures(run: RunDir) -> None:
    text = table.render(run, check(run, None), None)
    assert "throughput" not in text
    assert text.startswith(run.path.parent.name)


@pytest.mark.parametrize("width", [80, 100, 200])
def test_tables_fit_into_the_terminal(run: RunDir, width: int) -> None:
    doctor_lines(run.message_log(2), lambda lines: lines.__delitem__(16))
    metrics = measure(run)
    kind = structs.replace(metrics.availability[0], asked="every step that is asked for at one time " * 3)
    verdict = structs.replace(check(run, metrics), expectations=(MET, structs.replace(MISSED, found="word " * 50)))
    text = table.render(run, verdict, structs.replace(metrics, availability=(kind,)), width)
    evidence = text.split("\n\n")[2]
    tables = text.replace(evidence, "").splitlines()
    assert "suspected" in text and max(map(len, tables)) <= width


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ((PASSED, MET, SOFT, NOT_ASKED), "PASS"),
        ((UNKNOWN, MISSED, BROKEN), "FAIL: A2 contiguity: log:7: gap"),
        ((UNKNOWN, MET, MISSED), "FAIL: expected acknowledged: 5; found 4 of 5 <acknowledged>"),
        ((NOT_ASKED, UNKNOWN, OPEN), "UNKNOWN: A4 durability: no message was acknowledged"),
        ((PASSED, SOFT, OPEN), "UNKNOWN: expected order: [a]; found no message log"),
    ],
)
def test_the_last_line_is_the_first_cause(parts: tuple[Check | ExpectationResult, ...], line: str) -> None:
    assert table.closing(verdict_of(*parts)) == line


def test_long_lines_are_cut_in_evidence() -> None:
    cut = quote("log:1", b"x" * 100_000)
    assert len(cut.text) < 500
    assert cut.text.endswith("(100000 characters)")


def test_bytes_that_are_no_text_are_shown_all_the_same() -> None:
    assert quote("log:1", b"\xff\n").text == "\\xff"


# ---- the summary page of a workflow step ------------------------------------------------------------


def test_a_step_summary_has_a_row_for_each_run_and_the_text_of_failed_ones() -> None:
    rows = [
        (stepsummary.row_of("calm", 7, "results/calm/1", verdict_of(PASSED), None, ""), "not shown"),
        (stepsummary.row_of("wild", None, "", verdict_of(BROKEN), None, ""), "A2 FAIL ``` <b>\n"),
        (stepsummary.row_of("lost", 1, "", None, None, "no | space\nleft"), "the lab failed"),
    ]
    page = stepsummary.render(rows)
    assert page.startswith("### chatlab: 1 of 3 runs passed\n\n| scenario | verdict |")
    assert "\n| calm | PASS | 7 | - | - | - | - | - | results/calm/1 |  |\n" in page
    assert {line.replace("\\|", "").count("|") for line in page.splitlines() if line.startswith("|")} == {11}
    assert "\n| wild | FAIL: A2 contiguity: log:7: gap | - |" in page
    assert "| the lab failed: no \\| space left |" in page
    assert "\n````text\nA2 FAIL ``` <b>\n````\n" in page
    assert "not shown" not in page


def test_a_step_summary_has_the_figures(run: RunDir) -> None:
    metrics = measure(run)
    row = stepsummary.row_of("story", 7, "there", check(run, metrics), metrics, "")
    assert metrics.load.latency is not None
    assert row.acknowledged == metrics.load.acknowledged > 0
    assert (row.latency_p50_ms, row.latency_p99_ms) == (metrics.load.latency.p50_ms, metrics.load.latency.p99_ms)
    assert f"| {metrics.load.throughput_per_s:,.0f} |" in stepsummary.render([(row, "")])


def test_a_step_summary_stays_within_the_limit_of_its_page() -> None:
    row = stepsummary.row_of("wild", 7, "", verdict_of(BROKEN), None, "")
    page = stepsummary.render([(row, "x" * 300_000), (row, "y" * 300_000), (row, "z")])
    assert "xxx" in page and "yyy" not in page and "\nz\n" in page
    assert page.count("too long to be shown here") == 1


def test_a_step_summary_is_appended_where_the_environment_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = stepsummary.row_of("calm", 7, "", verdict_of(PASSED), None, "")
    monkeypatch.delenv(stepsummary.VARIABLE, raising=False)
    stepsummary.append_where_asked([(row, "")])
    monkeypatch.setenv(stepsummary.VARIABLE, str(tmp_path / "page.md"))
    (tmp_path / "page.md").write_text("before\n")
    stepsummary.append_where_asked([(row, "")])
    stepsummary.append_where_asked([])
    assert (tmp_path / "page.md").read_text() == "before\n" + stepsummary.render([(row, "")])
    monkeypatch.setenv(stepsummary.VARIABLE, str(tmp_path))
    stepsummary.append_where_asked([(row, "")])
    assert capsys.readouterr().err.startswith("GITHUB_STEP_SUMMARY: ")
