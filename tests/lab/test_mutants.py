"""Mutants are applied and undone completely, and their descriptions are well-formed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lab.mutants.catalogue import MUTANTS, PARTS, UNSEEN, Patch, apply_for_good, mutated
from lab.search.coverage import rules
from nodeproc.core import catchup, failure, ordering
from nodeproc.lines import Ack, Chat, LeaderLine, Reject, Subscribe, Welcome, decode_client_line, session_of
from nodeproc.net.nodestream import read_run
from nodeproc.session import Session, SessionSettings
from tests import TOO_LONG_S

PROJECT = Path(__file__).resolve().parents[2]
each_mutant = pytest.mark.parametrize("name", MUTANTS)


@each_mutant
def test_a_mutant_changes_something_and_is_undone(name: str) -> None:
    patch = Patch()
    MUTANTS[name].apply(patch)
    changes = list(patch.changes)
    try:
        assert changes
        assert len({(id(owner), attribute) for owner, attribute, _ in changes}) == len(changes), "changed twice"
        assert all(vars(owner)[attribute] is not before for owner, attribute, before in changes)
    finally:
        patch.undo()
    assert all(vars(owner)[attribute] is before for owner, attribute, before in changes)


@each_mutant
def test_a_mutants_description_is_well_formed(name: str) -> None:
    mutant = MUTANTS[name]
    rules = re.findall(r"^\*\*([A-Z]\d)\b", (PROJECT / "docs" / "protocol.md").read_text("utf-8"), re.MULTILINE)
    assert mutant.name == name and re.fullmatch(r"[a-z]+(_[a-z]+)+", name)
    assert mutant.rule in rules
    assert mutant.says.endswith(".") and mutant.says[0].isupper()


def test_there_are_enough_and_no_two_have_one_name() -> None:
    assert len(MUTANTS) == sum(map(len, PARTS)) >= 30
    liveness = {name for name, mutant in MUTANTS.items() if mutant.kind == "liveness"}
    assert liveness == {
        "heartbeats_not_answered",
        "ok_vetoes",
        "proposed_term_taken_over",
        "leader_never_steps_down",
        "link_never_redialled",
        "leader_keeps_on_with_a_stalled_disk",
        "leader_keeps_on_with_its_whole_log_durable",
        "hole_at_the_end_never_noticed",
        "candidacy_time_never_doubled",
        "older_term_not_answered",
        "catch_up_asked_once",
        "idle_cluster_readmits_nobody",
        "members_sent_once",
        "poll_while_a_vote_has_its_time",
        "silent_leader_never_suspected",
        "vote_though_a_leader_is_heard",
        "starting_node_waits_for_nobody",
        "returning_node_takes_the_lead",
        "readmission_not_shown",
        "transfer_without_an_end",
        "change_without_a_live_majority",
        "change_during_a_rebuild",
        "newcomer_votes_unseen",
        "vote_refused_to_unknown_candidates",
        "newcomer_refuses_its_vote",
        "removed_node_keeps_deposing",
    }


def test_every_rule_has_a_mutant_or_a_reason_why_none_can_be_seen() -> None:
    broken = {mutant.rule for mutant in MUTANTS.values()}
    assert [rule for rule in rules() if rule not in broken] == list(UNSEEN)
    assert all(UNSEEN.values())


def test_the_guide_shows_every_mutant_with_its_rule() -> None:
    """`run_lab.py selftest` prints the table; docs/teaching.md has its latest output."""
    guide = (PROJECT / "docs" / "teaching.md").read_text("utf-8").partition("\n## All of them\n")[2]
    rows = re.findall(r"^([a-z_]+) +([A-Z]\d+) +\S+ +(?:story|drawn) ", guide, re.MULTILINE)
    assert rows == [(name, mutant.rule) for name, mutant in MUTANTS.items()]
    assert f"\n{len(MUTANTS)} of {len(MUTANTS)} mutants caught; " in guide


def test_an_unknown_mutant_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"mutant 'nothing', allowed: vote_without.*unknown_reported"):
        apply_for_good("nothing")
    with pytest.raises(ValueError, match="mutant 'nothing'"), mutated("nothing"):
        pass


def test_a_mutant_is_undone_when_something_fails() -> None:
    right = ordering.store
    with pytest.raises(ZeroDivisionError), mutated("acknowledge_before_durable"):
        assert ordering.store is not right
        raise ZeroDivisionError
    assert ordering.store is right


def test_a_function_is_replaced_in_all_that_have_imported_it() -> None:
    with mutated("commit_seq_used_before_the_own_mark"):
        assert len({vars(module)["follow_commit"] for module in (ordering, catchup, failure)}) == 1
        assert ordering.follow_commit.__module__ == "lab.mutants.logs"


def test_an_attribute_that_is_not_there_is_no_place_for_a_patch() -> None:
    patch = Patch()
    with pytest.raises(AssertionError, match="has no 'missing'"):
        patch.set(SimpleNamespace(there=1), "missing", 2)
    with pytest.raises(AssertionError, match="no module of the product"):
        patch.everywhere(test_an_attribute_that_is_not_there_is_no_place_for_a_patch, None)
    assert not patch.changes


# ---- the mutants of the client do what they say -----------------------------------------------------


TOKEN = "5f0c2a9be1d044171d3c7e0f96b25a48"
ID = session_of(TOKEN)


def connected(session: Session, acknowledged: int = 0) -> list[Chat]:
    """Open a connection; the CHAT lines that the session says on it."""
    session.connected(0.0)
    assert session.next_line(0.0)
    session.received(Welcome(1, ID, 0, acknowledged, acknowledged, 9, 1, 1), 0.0)
    lines = []
    while (line := session.next_line(0.0)) is not None:
        lines.append(decode_client_line(line.rstrip()))
    return [line for line in lines if isinstance(line, Chat)]


def test_a_retry_with_a_new_n() -> None:
    with mutated("client_gives_a_retry_a_new_n"):
        session = Session(7, TOKEN)
        session.submit(["a", "b"], 0.0)
        assert connected(session) == [Chat(1, ("a", "b"))]
        session.disconnected()
        assert connected(session, acknowledged=2) == [Chat(3, ("a", "b"))]
        assert not session.take_outcomes()
        session.received(Ack(ID, 4, 4), 0.0)
        assert [(each.kind, each.last) for each in session.take_outcomes()] == [("ok", 2)]


def test_sent_messages_counted_as_acknowledged() -> None:
    with mutated("client_counts_sent_as_acknowledged"):
        session = Session(7, TOKEN)
        session.submit(["a", "b"], 0.0)
        assert not session.take_outcomes()
        connected(session)
        assert [(each.kind, each.first, each.last) for each in session.take_outcomes()] == [("ok", 1, 2)]
        session.disconnected()
        assert connected(session) == [], "and it is never sent again"


def test_unknown_reported_as_rejected() -> None:
    with mutated("unknown_reported_as_rejected"):
        session = Session(7, TOKEN, SessionSettings(deadline=1.0))
        session.submit(["a"], 0.0)
        connected(session)
        session.tick(2.0)
        assert [each.kind for each in session.take_outcomes()] == ["rejected"]


def test_patience_renewed_by_deadlines() -> None:
    with mutated("patience_renewed_by_deadlines"):
        session = Session(7, TOKEN, SessionSettings(deadline=1.0, patience=3.0, keepalive=1000))
        connected(session)
        for now in range(1, 50, 2):
            session.submit(["a"], now)
            session.tick(now + 1.9)
            assert not session.gave_up(now + 2)


def test_a_resubscription_that_skips_one() -> None:
    with mutated("resubscription_skips_one"):
        session = Session(7, TOKEN)
        session.subscribe(1)
        asked = []
        for last in (3, 5):
            connected(session)
            asked.append(session.place)
            session.received(read_run(b"".join(b'{"seq_no":%d,}\n' % n for n in range(session.place, last + 1))), 0.0)
            session.disconnected()
        session.connected(0.0)
        session.received(Welcome(1, ID, 0, 0, 9, 9, 1), 0.0)
        lines = [decode_client_line(session.next_line(0.0) or b"") for _ in range(2)]
        assert asked == [1, 4] and lines[1] == Subscribe(7)


def test_lines_without_numbers_are_taken_as_they_are() -> None:
    with mutated("client_gives_a_retry_a_new_n"):
        session = Session(7, TOKEN)
        session.submit(["a"], 0.0)
        connected(session)
        session.received(LeaderLine(2, 2), 0.0)
        session.received(Reject(ID, 1, "gap", True, 1), 0.0)
        assert session.leader == 2


# ---- a node of its own ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--mutant", "nothing"], "mutant 'nothing', allowed: "),
        (["--mutant", "two_votes_in_one_term", "--config", "missing.yml"], "nodeproc: "),
    ],
)
def test_the_broken_node_takes_a_mutant_and_a_nodes_arguments(arguments: list[str], complaint: str) -> None:
    command = [sys.executable, "-m", "lab.mutants.broken_node", *arguments]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=TOO_LONG_S, check=False)
    assert ended.returncode == 2 and complaint in ended.stderr, ended.stderr
