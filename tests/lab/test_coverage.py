"""Coverage marks: comments that count executed branches, and have no effect while coverage is off."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tokenize
from pathlib import Path
from types import CodeType

import pytest

from lab.places import ROOT
from lab.search import coverage
from tests import TOO_LONG_S

MODULES = coverage.marked_files()
each_module = pytest.mark.parametrize("path", MODULES.values(), ids=MODULES)

STORY = """
import json, traceback
from lab.search import coverage
coverage.install()
coverage.install()
from tests.core.cluster import Cluster
from nodeproc.core import failure
cluster = Cluster(3)
cluster.run(5)
leader = cluster.leader()
quiet = coverage.hits()
coverage.reset()
cluster.submit(leader, "s", 1, "a", "b")
cluster.submit(leader, "s", 9, "too early")
cluster.run(1)
cluster.submit(leader, "s", 2, "b", "c")
cluster.run(1)
try:
    failure.lose_candidacy(None, None, 0.0, None)
except AttributeError as error:
    line = traceback.extract_tb(error.__traceback__)[-1].lineno
print(json.dumps({"quiet": quiet, "busy": coverage.hits(), "line": line, "delivered": cluster.payloads(1)}))
"""


def python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=TOO_LONG_S)


def test_marks_are_found_in_every_package_of_the_product() -> None:
    assert {"nodeproc.core.election", "nodeproc.disk.reading", "nodeproc.net.silence", "nodeproc.session"} <= {*MODULES}


# ---- a process that counts ------------------------------------------------------------------------


def test_a_small_story_hits_some_marks_and_not_others() -> None:
    done = python(STORY)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    quiet, busy = told["quiet"], told["busy"]
    assert told["delivered"] == ["a", "b", "c"]
    assert {"E5 a majority of votes makes a leader", "E4 a durable vote is sent"} <= set(quiet)
    assert {"S2 a gap is refused", "S2 the known messages of a submission are dropped", "C1 a majority commits"} <= set(
        busy
    )
    assert not {"S2 a gap is refused", "C1 a majority commits"} & set(quiet)
    assert not {"E5 a majority of votes makes a leader", "F3 a leader without a quorum steps down"} & set(busy)
    assert set(quiet) | set(busy) < set(coverage.marks())
    assert told["line"] == coverage.marks()["E3 a candidate does not win in time"][1]


def test_it_is_too_late_once_a_marked_module_is_imported() -> None:
    done = python("import nodeproc.core.log\nfrom lab.search import coverage\ncoverage.install()")
    assert "RuntimeError: imported before coverage.install() and so without marks: nodeproc.core.log" in done.stderr


def test_the_module_of_the_marks_imports_none_that_has_marks() -> None:
    script = "import sys, json, lab.search.coverage\nprint(json.dumps([*sys.modules]))"
    assert not MODULES.keys() & set(json.loads(python(script).stdout))


def codes(code: CodeType) -> dict[tuple[str, int], CodeType]:
    """All code objects within one: (name, first line) -> code."""
    found = {(code.co_qualname, code.co_firstlineno): code}
    for const in code.co_consts:
        if isinstance(const, CodeType):
            found |= codes(const)
    return found


def lines(code: CodeType) -> set[int]:
    return {line for _, _, line in code.co_lines() if line}


@each_module
def test_every_line_keeps_its_number(path: Path) -> None:
    source = path.read_text("utf-8")
    plain = codes(compile(source, str(path), "exec", dont_inherit=True))
    noted = codes(compile(coverage.countable(source, str(path)), str(path), "exec", dont_inherit=True))
    added = {mark.line for mark in coverage.marks_of(source) if mark.alone}
    assert {name: lines(code) - added for name, code in noted.items()} == {
        name: lines(code) for name, code in plain.items()
    }


def test_a_mark_counts_just_before_its_statement() -> None:
    source = (
        "def f(x):\n"
        "    if x:\n"
        "        return 1 / 0  # hit: E1 x holds\n"
        "    # hit: E2 x does not hold\n"
        "    y = [\n"
        "        x\n"
        "    ]\n"
        "    return y\n"
    )
    seen: dict[str, bool] = {}
    names: dict[str, object] = {coverage.NOTES: seen}
    exec(compile(coverage.countable(source, "made.py"), "made.py", "exec"), names)
    f = names["f"]
    assert callable(f)
    assert (f(0), seen) == ([0], {"E2 x does not hold": True})
    with pytest.raises(ZeroDivisionError) as caught:
        f(1)
    assert (caught.traceback[-1].lineno, list(seen)) == (2, ["E2 x does not hold", "E1 x holds"])  # From 0 on.


# ---- a process that does not ----------------------------------------------------------------------


def without_comments(source: str) -> str:
    rows = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            rows[token.start[0] - 1] = rows[token.start[0] - 1][: token.start[1]].rstrip()
    return "\n".join(rows) + "\n"


@each_module
def test_marks_leave_no_trace_while_they_are_off(path: Path) -> None:
    source = path.read_text("utf-8")
    bare = without_comments(source)
    assert "# hit:" not in bare
    code = compile(source, str(path), "exec", dont_inherit=True)
    assert code == compile(bare, str(path), "exec", dont_inherit=True)
    assert not any(coverage.NOTES in each.co_names for each in codes(code).values())


# ---- the marks and the rules ----------------------------------------------------------------------


def test_every_mark_names_a_rule_of_the_protocol() -> None:
    assert not {coverage.rule_of(mark) for mark in coverage.marks()} - set(coverage.rules())


def test_every_rule_has_a_mark_or_a_reason_why_not() -> None:
    marked = {coverage.rule_of(mark) for mark in coverage.marks()}
    assert not set(coverage.rules()) - marked - set(coverage.EXEMPT)


def test_no_exemption_is_left_over() -> None:
    marks = coverage.marks()
    assert not set(coverage.EXEMPT) - set(marks) - set(coverage.rules())
    assert not set(coverage.EXEMPT) & {coverage.rule_of(mark) for mark in marks}


def test_the_rules_are_those_of_the_protocol() -> None:
    groups = {"M": 6, "F": 4, "E": 7, "R": 5, "C": 2, "D": 1, "P": 1, "G": 5, "S": 7, "K": 6, "L": 1}
    assert coverage.rules() == [f"{letter}{n}" for letter, last in groups.items() for n in range(1, last + 1)]


def test_a_text_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nodeproc").mkdir()
    (tmp_path / "nodeproc" / "made.py").write_text("x = 1  # hit: E1 it happens\ny = 2  # hit: E1 it happens\n")
    with pytest.raises(ValueError, match=r"made.py:2: 'E1 it happens' stands at \('nodeproc/made.py', 1\) too"):
        coverage.marks(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1  # hit: no rule\n", "line 1: '# hit: no rule'"),
        ("x = 1  # hit: E1\n", "line 1: '# hit: E1'"),
        ("if x:\n    y = 1\nelse:  # hit: E1 else\n    y = 2\n", "no statement begins"),
        ("if x:  # hit: E1 beside a compound statement\n    y = 1\n", "no statement begins"),
        ("# hit: E1 too far away\n\nx = 1\n", "no statement begins"),
        ("# hit: E1 before\nx = 1  # hit: E2 beside\n", "two marks at one statement: .'E1 before'"),
    ],
)
def test_a_mark_that_could_not_count_is_refused(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        coverage.countable(source, "made.py")


def test_comments_that_only_look_like_a_mark_are_ignored() -> None:
    assert coverage.marks_of("x = '# hit: E1 in a text'\n# A comment about # hit: E1\n") == []


# ---- the report -----------------------------------------------------------------------------------


def all_events() -> dict[str, int]:
    return dict.fromkeys(coverage.event_kinds(), 1)


def test_the_report_names_marks_and_rules_without_a_hit() -> None:
    marks = coverage.marks()
    missed = "E4 a durable vote is sent"
    hit = {mark: 7 for mark in marks if mark != missed and coverage.rule_of(mark) != "C1"}
    hit["E4 a vote request of an older term is answered"] = 3
    events = {kind: 1 for kind, _ in all_events().items() if kind != "session_expired"}
    text = coverage.render(hit, events)
    file, line = marks[missed]
    assert f"\n  {missed}  ({file}:{line})\n" in text
    own = [mark for mark in marks if coverage.rule_of(mark) == "E4"]
    assert ["E4", str(len(own) - 1), str(len(own)), "3"] in [row.split() for row in text.splitlines()]
    assert "\nrules without a hit: 1\n  C1\n" in text
    assert "\nevents never reported: 1\n  session_expired\n" in text
    assert coverage.unhit_rules(hit) == ["C1"] and coverage.unreported(events) == ["session_expired"]


def test_the_report_of_a_full_house_names_nothing_but_the_exemptions() -> None:
    text = coverage.render(dict.fromkeys(coverage.marks(), 1), all_events())
    for title in ("marks never hit", "rules without a hit", "events never reported"):
        assert f"{title}: none\n" in text
    assert f"\n  M3: {coverage.EXEMPT['M3']}\n" in text
    assert coverage.unhit_rules(set()) == [rule for rule in coverage.rules() if rule not in coverage.EXEMPT]


def test_every_event_kind_is_known_and_no_exempt_one_is_left_over() -> None:
    kinds = coverage.event_kinds()
    assert {"starting", "became_leader", "delivered", "bad_input"} < set(kinds)
    assert len(set(kinds)) == len(kinds)
    assert set(coverage.EXEMPT_EVENTS) < set(kinds)
    assert coverage.unreported({}) == [kind for kind in kinds if kind not in coverage.EXEMPT_EVENTS]
