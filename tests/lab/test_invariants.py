"""Every invariant passes an honest run and rejects doctored ones, with the file and line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lab.check.health import check_faults
from lab.check.history import form_fault
from lab.check.invariants import check
from lab.check.metrics import measure
from lab.check.recovery import largest_connected, stretches_between
from lab.check.verdict import Check, Verdict, decode_verdict, encode_verdict
from lab.rows import Acked, Convergence, Failed, FaultRow, Invoke, NodeExit, NodeUse, Shown, Unknown, encode_row
from lab.rundir import RunDir
from tests.lab.synthetic import MS, NODES, SUBSCRIBER, T_START, build_run, doctor_all_logs, doctor_lines, doctor_meta

Lines = list[bytes]
LOG_1 = "nodes/node_1/logs/node_1_messages.jsonl"
LOG_2 = "nodes/node_2/logs/node_2_messages.jsonl"
EVENTS_2 = "nodes/node_2/events.jsonl"
BEHIND_ALL = T_START + 400 * MS
"""A time behind the last row of the history."""
LATE = T_START + 300 * MS
"""A time behind the last event of every node."""
S = 1_000_000_000
OF_HISTORY = ("A3", "A4", "A5", "A6", "A8", "A9")
FAILED = '{"t_ns":%d,"node":2,"event":"failed","reason":"no space left"}\n'


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("honest")
    build_run(path)
    return path


@pytest.fixture
def run(honest: Path, tmp_path: Path) -> RunDir:
    return RunDir(Path(shutil.copytree(honest, tmp_path / "run")))


def found(verdict: Verdict, name: str) -> Check:
    return next(each for each in verdict.checks if each.name == name)


def judged(run: RunDir, name: str) -> Check:
    return found(check(run, None), name)


def assert_fails(run: RunDir, name: str, place: str, message: str = "") -> None:
    verdict = check(run, None)
    answer = found(verdict, name)
    assert answer.result == "FAIL", answer
    assert answer.first is not None
    assert answer.first.place == place, answer.first
    assert message in answer.first.message, answer.first
    assert verdict.outcome == "broken"
    assert verdict.exit_code == 1


def replace(index: int, old: bytes, new: bytes) -> Callable[[Lines], None]:
    def change(lines: Lines) -> None:
        assert old in lines[index], lines[index]
        lines[index] = lines[index].replace(old, new)

    return change


def delete(index: int) -> Callable[[Lines], None]:
    return lambda lines: lines.__delitem__(index)


def swap(index: int) -> Callable[[Lines], None]:
    def change(lines: Lines) -> None:
        lines[index], lines[index + 1] = lines[index + 1], lines[index]

    return change


def duplicate(index: int) -> Callable[[Lines], None]:
    return lambda lines: lines.insert(index, lines[index])


def renumber(lines: Lines) -> None:
    """Make seq_no run 1, 2, 3, … again, as a careful forger would."""
    for number, line in enumerate(lines, 1):
        row = msgspec.json.decode(line)
        lines[number - 1] = msgspec.json.encode({**row, "seq_no": number}) + b"\n"


# ---- the honest run ------------------------------------------------------------------------------


def test_an_honest_run_passes_every_invariant(run: RunDir) -> None:
    verdict = check(run, None)
    assert {each.name: each.result for each in verdict.checks} == dict.fromkeys(
        ["A1", "A2", "A3", "A4", "A5", "A6", "A7", "A8", "A9", "A10", "faults", "run"], "PASS"
    )
    assert verdict.outcome == "pass"
    assert verdict.messages.sent == verdict.messages.acknowledged == verdict.messages.in_log == 200


def test_a_verdict_survives_its_file(run: RunDir) -> None:
    verdict = check(run, None)
    assert decode_verdict(encode_verdict(verdict)) == verdict


def test_a_long_run_is_judged_over_several_chunks(tmp_path: Path) -> None:
    run = build_run(tmp_path, batches=600, batch=30)
    assert check(run, None).outcome == "pass"
    doctor_all_logs(run, delete(15_000))
    assert_fails(run, "A2", f"{LOG_1}:15001", "seq_no 15002 instead of 15001")
    assert_fails(run, "A4", "history.jsonl:1502", "session103-")


# ---- one node's log doctored ---------------------------------------------------------------------


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize(
    ("change", "line"),
    [
        (delete(16), 17),
        (swap(16), 17),
        (replace(16, b'"payload":"', b'"payload":"X'), 17),
        (duplicate(16), 18),
        (delete(0), 1),
        (replace(199, b"103:", b"104:"), 200),
    ],
    ids=["deleted", "swapped", "changed", "duplicated", "first deleted", "last changed"],
)
def test_one_spoilt_line_in_one_log_breaks_agreement(
    run: RunDir, node: int, change: Callable[[Lines], None], line: int
) -> None:
    if line == 200:
        change = replace(199, b'"payload":"', b'"payload":"X')
    doctor_lines(run.message_log(node), change)
    assert_fails(run, "A1", f"nodes/node_{node}/logs/node_{node}_messages.jsonl:{line}")
    answer = judged(run, "A1")
    assert answer.first is not None
    assert len(answer.first.lines) == 3
    assert answer.first.lines[0].place == answer.first.place


def test_a_log_that_lacks_its_last_line_is_a_prefix_but_has_not_recovered(run: RunDir) -> None:
    doctor_lines(run.message_log(2), delete(199))
    assert judged(run, "A1").result == "PASS"
    assert_fails(run, "A9", f"{LOG_2}:199", "differ in length")


def test_the_log_of_a_deviating_node_is_judged_for_contiguity_too(run: RunDir) -> None:
    doctor_lines(run.message_log(2), delete(16))
    assert_fails(run, "A2", f"{LOG_2}:17", "seq_no 18 instead of 17")


def test_two_logs_that_differ_name_a_line_of_both(run: RunDir) -> None:
    shutil.rmtree(run.node_dir(3))
    doctor_lines(run.message_log(1), replace(4, b'"payload":"', b'"payload":"X'))
    answer = judged(run, "A1")
    assert answer.result == "FAIL"
    assert answer.first is not None
    assert {quoted.place for quoted in answer.first.lines} == {f"{LOG_1}:5", f"{LOG_2}:5"}


# ---- all logs doctored ---------------------------------------------------------------------------


def test_a_deleted_acknowledged_message_breaks_durability(run: RunDir) -> None:
    doctor_all_logs(run, delete(16))
    assert_fails(run, "A2", f"{LOG_1}:17", "seq_no 18 instead of 17")
    assert_fails(run, "A5", f"{LOG_1}:17")
    assert_fails(run, "A4", "history.jsonl:11", "message session101-7 was acknowledged")


def test_the_last_acknowledged_message_may_not_be_missing(run: RunDir) -> None:
    doctor_all_logs(run, delete(199))
    assert_fails(run, "A2", LOG_1, "ends at seq_no 199; STATUS of node 1 said that 200 were delivered")
    assert_fails(run, "A4", "history.jsonl:119", "acknowledged as seq_no 200")


def test_renumbering_does_not_hide_a_deleted_message(run: RunDir) -> None:
    doctor_all_logs(run, delete(16))
    doctor_all_logs(run, renumber)
    doctor_meta(run, convergence=None)
    assert judged(run, "A2").result == "PASS"
    assert_fails(run, "A4", "history.jsonl:11", "acknowledged as seq_no 20")


def test_emptied_logs_break_durability(run: RunDir) -> None:
    doctor_all_logs(run, lambda lines: lines.clear())
    assert_fails(run, "A2", LOG_1, "ends at seq_no 0")
    assert_fails(run, "A4", "history.jsonl:2", "no line has that seq_no")


def test_swapped_lines_break_contiguity_and_sender_order(run: RunDir) -> None:
    doctor_all_logs(run, swap(16))
    assert_fails(run, "A2", f"{LOG_1}:17", "seq_no 18 instead of 17")
    assert_fails(run, "A5", f"{LOG_1}:17", "session101-8 instead of n=7")
    assert judged(run, "A4").result == "PASS"


def test_a_falling_term_breaks_contiguity(run: RunDir) -> None:
    doctor_all_logs(run, replace(150, b'"term":2', b'"term":1'))
    assert_fails(run, "A2", f"{LOG_1}:151", "term 1 after term 2")


def test_a_message_of_term_0_breaks_contiguity(run: RunDir) -> None:
    """Term 0 is "nothing yet": nobody orders in it."""
    doctor_all_logs(run, replace(0, b'"term":1', b'"term":0'))
    assert_fails(run, "A2", f"{LOG_1}:1", "term 0 after term 1")


def test_a_log_that_does_not_start_at_1_breaks_contiguity(run: RunDir) -> None:
    doctor_all_logs(run, delete(0))
    assert_fails(run, "A2", f"{LOG_1}:1", "seq_no 2 instead of 1")


def test_a_torn_last_line_breaks_contiguity(run: RunDir) -> None:
    for node in NODES:
        path = run.message_log(node)
        path.write_bytes(path.read_bytes()[:-10])
    assert_fails(run, "A2", f"{LOG_1}:200", "no end")


@pytest.mark.parametrize(("old", "new"), [(b'"payload"', b'"text"'), (b'{"seq_no"', b'{"extra":1,"seq_no"')])
def test_a_line_that_is_no_message_breaks_contiguity_and_leaves_the_others_unknown(
    run: RunDir, old: bytes, new: bytes
) -> None:
    doctor_all_logs(run, replace(16, old, new))
    assert_fails(run, "A2", f"{LOG_1}:17", "not a line of a message log")
    for name in ("A3", "A4", "A5", "A6"):
        assert (judged(run, name).result, judged(run, name).detail) == ("UNKNOWN", f"{LOG_1}:17 cannot be read (A2)")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"seq_no":1,"term":2,"sender_id":3,"msg_id":"s-1","timestamp":1700000000,"payload":"\\u00fc\\n"}', ""),
        (b'{"seq_no":1,"term":2,"sender_id":3,"msg_id":"s-1","timestamp":1.7E9,"payload":"\xc3\xbc"}', ""),
        (b'{"seq_no":1,"term":2,"sender_id":3,"msg_id":"s-1","timestamp":1.7,"payload":"p"}\r', "CR LF"),
        (b'{"term":2,"seq_no":1,"sender_id":3,"msg_id":"s-1","timestamp":1.7,"payload":"p"}', "keys are term, seq_no"),
        (b'{"seq_no":1,"term":2,"sender_id":3,"msg_id":"s-1","timestamp":1,"timestamp":1,"payload":"p"}', "keys are"),
        (b'{"seq_no":1, "term":2,"sender_id":3,"msg_id":"s-1","timestamp":1,"payload":"p"}', "white space"),
        (b'{"seq_no":-1,"term":2,"sender_id":3,"msg_id":"s-1","timestamp":1,"payload":"p"}', "white space"),
    ],
)
def test_the_form_of_a_line_is_told(line: bytes, fault: str) -> None:
    assert fault in form_fault(line)
    assert bool(fault) == bool(form_fault(line))


def test_a_changed_payload_breaks_integrity(run: RunDir) -> None:
    doctor_all_logs(run, replace(16, b'"payload":"101', b'"payload":"102'))
    assert_fails(run, "A3", f"{LOG_1}:17", "does not hold what its client sent")


def test_a_changed_sender_breaks_integrity(run: RunDir) -> None:
    doctor_all_logs(run, replace(16, b'"sender_id":101', b'"sender_id":102'))
    assert_fails(run, "A3", f"{LOG_1}:17", "does not hold what its client sent")


@pytest.mark.parametrize("msg_id", [b"session101-71", b"stranger-1", b"nonsense", b"session101-07", b"session101-0"])
def test_a_message_that_nobody_sent_breaks_integrity(run: RunDir, msg_id: bytes) -> None:
    doctor_all_logs(run, replace(16, b'"session101-7"', b'"' + msg_id + b'"'))
    assert_fails(run, "A3", f"{LOG_1}:17")


def test_a_message_in_the_log_before_it_was_sent_breaks_real_time(run: RunDir) -> None:
    """The second client's first messages stand in front of those of the first, whose acknowledgement came before."""

    def exchange(lines: Lines) -> None:
        lines[0:10] = lines[5:10] + lines[0:5]

    doctor_all_logs(run, exchange)
    doctor_all_logs(run, renumber)
    assert judged(run, "A3").result == "PASS"
    assert_fails(run, "A6", f"{LOG_1}:1", "seq_no 5 had been acknowledged before it was sent")


def test_a_msg_id_twice_breaks_integrity(run: RunDir) -> None:
    doctor_all_logs(run, duplicate(199))
    doctor_all_logs(run, renumber)
    assert_fails(run, "A3", f"{LOG_1}:201", "for the second time")


def test_a_rejected_message_in_the_log_breaks_integrity(run: RunDir) -> None:
    rejection = encode_row(Failed(T_START + 300 * MS, "session101", 66, 5, "too large"))
    doctor_lines(run.history, lambda lines: lines.__delitem__(118))
    doctor_lines(run.history, lambda lines: lines.append(rejection))
    assert_fails(run, "A3", f"{LOG_1}:196", "session101-66 was reported as rejected")


def test_a_message_rejected_before_the_log_has_it_breaks_integrity(run: RunDir) -> None:
    doctor_lines(run.history, lambda lines: lines.insert(1, encode_row(Failed(T_START, "session101", 3, 1, "no"))))
    assert_fails(run, "A3", f"{LOG_1}:3", "session101-3 was reported as rejected")


def test_a_session_that_starts_with_its_second_message_breaks_sender_order(run: RunDir) -> None:
    doctor_all_logs(run, delete(0))
    assert_fails(run, "A5", f"{LOG_1}:1", "session101-2 instead of n=1")


def test_two_messages_of_a_session_in_exchanged_places_break_sender_order(run: RunDir) -> None:
    doctor_all_logs(run, swap(16))
    doctor_all_logs(run, renumber)
    assert judged(run, "A2").result == "PASS"
    assert_fails(run, "A5", f"{LOG_1}:17", "session101-8 instead of n=7")


def test_order_against_real_time_is_found(run: RunDir) -> None:
    def exchange(lines: Lines) -> None:
        # Batch 4 (client 101) and batch 5 (client 102) change places; the second was sent after the first's ack.
        lines[15:25] = lines[20:25] + lines[15:20]

    doctor_all_logs(run, exchange)
    doctor_all_logs(run, renumber)
    assert judged(run, "A5").result == "PASS"
    assert_fails(run, "A6", f"{LOG_1}:16", "had been acknowledged before it was sent")


# ---- the history doctored ------------------------------------------------------------------------


def add_row(run: RunDir, *rows: Acked | Failed | Invoke | Shown | Unknown) -> None:
    with run.history.open("ab") as file:
        file.write(b"".join(map(encode_row, rows)))


def test_an_acknowledgement_of_another_place_breaks_durability(run: RunDir) -> None:
    doctor_lines(run.history, replace(10, b'"seq_no":20', b'"seq_no":19'))
    assert_fails(run, "A4", "history.jsonl:11", "acknowledged as seq_no 19")


def test_an_acknowledgement_behind_the_log_breaks_durability(run: RunDir) -> None:
    late = T_START + 300 * MS
    add_row(
        run,
        Invoke(late, 101, "session101", 71, 1, late, payloads=("more",)),
        Acked(late + 1, "session101", 71, 201),
    )
    assert_fails(run, "A4", "history.jsonl:127", "no line has that seq_no")


def test_unknown_outcomes_are_resolved_from_the_log(run: RunDir) -> None:
    late = T_START + 300 * MS
    doctor_lines(run.history, delete(118))
    add_row(
        run,
        Invoke(late, 101, "fresh", 1, 3, late, payloads=("a", "b", "c")),
        Unknown(late + 1, "fresh", 1, 3),
        Unknown(late + 2, "session101", 66, 5),
    )
    messages = check(run, None).messages
    assert (messages.unknown_in_log, messages.unknown_not_in_log, messages.unresolved) == (5, 3, 0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'"crc":', b'"crc":1', "other bytes"),
        (b'"first":16', b'"first":17', "was shown line 17 instead of 16"),
        (b'"last":20', b'"last":15', "backwards"),
    ],
    ids=["other bytes", "gap", "backwards"],
)
def test_a_subscriber_that_was_shown_something_else_is_found(run: RunDir, old: bytes, new: bytes, message: str) -> None:
    doctor_lines(run.history, replace(11, old, new))
    assert_fails(run, "A8", "history.jsonl:12", message)


def test_a_subscriber_that_missed_a_piece_is_found(run: RunDir) -> None:
    doctor_lines(run.history, delete(11))
    assert_fails(run, "A8", "history.jsonl:14", "was shown line 21 instead of 16")


def test_a_subscriber_that_begins_in_the_middle_is_found(run: RunDir) -> None:
    doctor_lines(run.history, delete(2))
    assert_fails(run, "A8", "history.jsonl:5", "was shown line 6 instead of 1")


def test_a_subscriber_that_stays_behind_is_found(run: RunDir) -> None:
    doctor_lines(run.history, delete(119))
    assert_fails(run, "A8", "history.jsonl", "was shown lines up to 195; all nodes had delivered 200")


def test_a_subscriber_that_is_shown_nothing_while_all_is_well_is_found(run: RunDir) -> None:
    def starve(lines: Lines) -> None:
        rows = [msgspec.json.decode(line) for line in lines]
        shown = [row for row in rows if row["op"] == "shown"]
        rest = [row for row in rows if row["op"] != "shown"]
        late = [row | {"t": T_START + 9_000 * MS} for row in shown[30:]]
        lines[:] = [
            msgspec.json.encode(row) + b"\n" for row in [*sorted(rest + shown[:30], key=lambda row: row["t"]), *late]
        ]

    doctor_lines(run.history, starve)
    doctor_meta(run, t_end=T_START + 9_100 * MS)
    assert_fails(run, "A8", "history.jsonl:116", "was shown lines up to 150 and then nothing for 8.")


def test_a_subscriber_may_wait_while_a_fault_is_in_force() -> None:
    kill = FaultRow("kill", 1, "leader", 2 * S, 3 * S, {"exit": -9}, True, 0, t_healed=9 * S)
    reset = FaultRow("reset", 1, "leader", 10 * S, 11 * S, {}, True, 0, t_healed=11 * S)
    pause = FaultRow("pause", 1, "leader", 15 * S, 16 * S, {}, True, 0)
    back = FaultRow("start", 1, "down", 8 * S, 9 * S, {}, True, 0)
    assert quiet_spans([kill, back, reset]) == [(0, 2 * S), (9 * S, 10 * S), (11 * S, 20 * S)]
    assert quiet_spans([pause]) == [(0, 15 * S)]
    start = FaultRow("start", 2, "down", 4 * S, 5 * S, {}, True, 0)
    assert quiet_spans([start], 2) == quiet_spans([start]) == [(5 * S, 20 * S)]
    assert quiet_spans([], 3) == []
    disk = FaultRow("disk", 1, "leader", 4 * S, 4 * S, {}, True, 0, t_healed=6 * S)
    link = FaultRow("link", 1, "leader", 4 * S, 4 * S, {}, True, 0, t_healed=6 * S)
    assert quiet_spans([link]) == quiet_spans([disk]) == [(0, 4 * S), (6 * S, 20 * S)]


def test_a_rule_that_was_replaced_does_not_return_when_the_newer_one_ends() -> None:
    older = FaultRow("link", 1, "leader", 2 * S, 2 * S, {"pairs": [[1, 2]]}, True, 0, t_healed=12 * S)
    newer = FaultRow("link", 1, "leader", 4 * S, 4 * S, {"pairs": [[1, 2]]}, True, 1, t_healed=6 * S)
    stretches = stretches_between([older, newer], NODES, set(), 0, 20 * S)
    assert [(each.start, each.end) for each in stretches] == [(0, 2 * S), (6 * S, 12 * S), (12 * S, 20 * S)]


def test_a_disk_too_slow_for_the_clients_deadline_does_not_count_towards_the_majority() -> None:
    killed = FaultRow("kill", 3, "leader", 2 * S, 2 * S, {"exit": -9}, True, 0)
    slow = FaultRow("disk", 2, "follower", 4 * S, 4 * S, {"slow_s": 0.5}, True, 1, t_healed=9 * S)

    def spans(deadline_s: float) -> list[tuple[int, int]]:
        stretches = stretches_between([killed, slow], NODES, set(), 0, 20 * S, deadline_s=deadline_s)
        return [(each.start, each.end) for each in stretches]

    before, after = [(0, 2 * S), (2 * S, 4 * S)], [(9 * S, 20 * S)]
    assert spans(2.0) == [*before, (4 * S, 9 * S), *after]
    assert spans(1.9) == before + after


def test_a_node_that_lost_its_disk_counts_when_it_says_so_or_when_others_had_the_time_to_readmit_it() -> None:
    def row(fault: str, node: int, t: int, lasts: int = 0) -> FaultRow:
        return FaultRow(fault, node, "follower", t * S, (t + lasts) * S, {}, True, 0)

    def spans(paused_at: int, *readmitted_at: int, down_until: int = 2) -> list[tuple[int, int]]:
        rows = [row("rebuild", 3, 1, 1), row("start", 3, down_until), row("pause", 2, paused_at), row("resume", 2, 15)]
        readmitted = [(t * S, 3) for t in readmitted_at]
        stretches = stretches_between(rows, NODES, set(), 0, 20 * S, readmitted=readmitted, bound=5 * S)
        return [(each.start // S, each.end // S) for each in stretches if each.end > down_until * S]

    assert spans(4) == [(2, 4), (15, 20)], "node 1 alone can't readmit node 3"
    assert spans(4, 3) == [(2, 4), (4, 15), (15, 20)]
    assert spans(4, 6) == [(2, 4), (6, 15), (15, 20)]
    assert spans(4, 2) == spans(4), "the node before it lost its disk"
    assert spans(7) == [(2, 7), (7, 15), (15, 20)], "without an event"
    assert spans(9, down_until=5) == [(5, 9), (15, 20)], "while it is down, nobody can"


def test_an_undecided_change_of_the_members_is_decided_by_a_later_list_or_by_the_end_of_the_node() -> None:
    def spans(*after: FaultRow) -> list[tuple[int, int]]:
        stretches = stretches_between([start, begun, *after], NODES, set(), 0, 20 * S)
        return [(each.start, each.end) for each in stretches if each.start >= 2 * S]

    def row(fault: str, target: int, t: int, *voters: int, effect: bool = True, version: int = 0) -> FaultRow:
        evidence = {"voters": voters, "version": version}
        return FaultRow(fault, target, "unknown", t * S, t * S, evidence, effect, 0)

    start, begun = row("start", 4, 1), row("add_node", 4, 2, 1, 2, 3, effect=False)
    other = row("start", 5, 3), row("add_node", 5, 4, 1, 2, 3, 4, 5)
    assert spans() == []
    assert spans(row("add_node", 5, 6, 1, 2, 3, 5)) == []  # Node 4 may be a learner that gets its vote later.
    assert spans(row("remove_node", 4, 6, 1, 2, 3)) == spans(row("left", 4, 6)) == [(6 * S, 20 * S)]
    assert spans(row("left", 4, 6), row("add_node", 4, 9, 1, 2, 3, effect=False)) == [
        (6 * S, 9 * S),
        (9 * S, 20 * S),
    ]
    assert spans(*other) == [(4 * S, 20 * S)]
    assert spans(*other, row("remove_node", 2, 6, 1, 3, 4, 5, effect=False)) == [(4 * S, 6 * S)]
    assert spans(*other, row("remove_node", 2, 6, 1, 2, 3, 4, 5, effect=False), row("left", 2, 7)) == [
        (4 * S, 6 * S),
        (7 * S, 20 * S),
    ]
    removal = row("remove_node", 2, 3, 1, 2, 3, effect=False, version=2)
    older, newer = (row("add_node", 4, 5, 1, 2, 3, 4, version=version) for version in (2, 3))
    assert spans(removal, older) == [] and spans(removal, newer) == [(5 * S, 20 * S)]
    kills = [row("kill", node, 7) for node in (1, 2)]
    assert spans(*other, *kills)[-1] == (7 * S, 20 * S)
    assert spans(row("kill", 4, 3), *other, *kills)[-1] == (4 * S, 7 * S)  # 3 of 5 are down.


def quiet_spans(faults: list[FaultRow], *late: int) -> list[tuple[int, int]]:
    """The quiet parts of 20 s."""
    return [(each.start, each.end) for each in stretches_between(faults, NODES, {*late}, 0, 20 * S) if each.quiet]


def test_a_subscriber_that_was_shown_more_than_the_log_has_is_found(run: RunDir) -> None:
    add_row(run, Shown(T_START + 300 * MS, SUBSCRIBER, 201, 202, 5))
    assert_fails(run, "A8", "history.jsonl:126", "ends at 200")


def test_a_history_out_of_time_leaves_its_invariants_unknown(run: RunDir) -> None:
    doctor_lines(run.history, swap(11))
    verdict = check(run, None)
    assert [each.name for each in verdict.checks if each.result == "UNKNOWN"] == [*OF_HISTORY, "run"]
    assert found(verdict, "A3").detail.startswith("history.jsonl:13: t=")
    assert verdict.exit_code == 2


def test_a_history_that_is_no_history_leaves_its_invariants_unknown(run: RunDir) -> None:
    doctor_lines(run.history, replace(4, b'"op":"ok"', b'"op":"oh"'))
    assert judged(run, "A4").detail.startswith("history.jsonl:5: not a row of the history")


# ---- events --------------------------------------------------------------------------------------


def test_two_leaders_of_one_term_are_found(run: RunDir) -> None:
    doctor_lines(run.events(2), replace(3, b'"became_leader","term":2', b'"became_leader","term":1'))
    assert_fails(run, "A7", f"{EVENTS_2}:4", "term 1 has two leaders, node 3 and node 2")


def test_a_node_that_follows_another_leader_of_the_term_is_found(run: RunDir) -> None:
    doctor_lines(run.events(1), replace(3, b'"leader":2', b'"leader":3'))
    assert_fails(run, "A7", f"{EVENTS_2}:4", "term 2 has two leaders")


def test_a_term_that_falls_over_a_restart_is_found(run: RunDir) -> None:
    doctor_lines(run.events(3), replace(2, b'"term":1', b'"term":0'))
    assert_fails(run, "A7", "nodes/node_3/events.jsonl:3", "shows term 0 after term 1")


def test_a_torn_line_of_events_is_passed_over_where_a_start_writes_on(run: RunDir) -> None:
    doctor_lines(run.events(3), lambda lines: lines.__setitem__(2, b'{"t_ns":5,"node":3,"ev' + lines[2]))
    assert judged(run, "A7").result == "PASS"


def test_another_torn_line_of_events_leaves_the_elections_unknown(run: RunDir) -> None:
    doctor_lines(run.events(3), lambda lines: lines.insert(2, b'{"t_ns":5,"node":3,"ev\n'))
    assert judged(run, "A7").detail.startswith("nodes/node_3/events.jsonl:3: not an event")


# ---- recovery ------------------------------------------------------------------------------------


def test_no_acknowledgement_after_the_heal_is_found(run: RunDir) -> None:
    def silence(lines: Lines) -> None:
        lines[:] = [line for at, line in enumerate(lines) if at < 60 or b'"op":"ok"' not in line]

    doctor_lines(run.history, silence)
    add_row(run, Unknown(T_START + 6_000 * MS, "session102", 61, 5))
    doctor_meta(run, t_end=T_START + 6_000 * MS)
    assert_fails(run, "A9", "history.jsonl:106", "waited")


def starve(run: RunDir, *faults: dict[str, Any]) -> None:
    """One client waits 20 s for its own acknowledgement, while the other is acknowledged every second."""
    late = T_START + 300 * MS
    rows: list[Invoke | Acked | Unknown] = [Invoke(late, 101, "session101", 71, 1, late, payloads=("more",))]
    for second in range(20):
        t, n = late + second * 1000 * MS, 66 + second
        rows += [Invoke(t, 102, "session102", n, 1, t, payloads=("more",)), Acked(t, "session102", n, 200)]
    add_row(run, *rows, Unknown(late + 20_000 * MS, "session101", 71, 1))
    doctor_meta(run, t_end=late + 20_000 * MS)
    with run.faults.open("ab") as file:
        for row in faults:
            known: dict[str, Any] = {"target": 0, "role": "", "t": late - MS, "t_done": late - MS, "effect": True}
            file.write(encode_row(FaultRow(**known | row)))


def test_a_client_that_starves_while_others_are_served_is_found(run: RunDir) -> None:
    starve(run)
    finding = judged(run, "A9")
    assert finding.result == "FAIL" and "messages of session session101 waited 20.000 s" in str(finding)


@pytest.mark.parametrize(("pause_s", "result"), [(0.001, "FAIL"), (1, "PASS")])
@pytest.mark.parametrize("others_are_served", [False, True])
def test_a_client_that_gives_up_and_sends_again_at_once_still_waits(
    run: RunDir, pause_s: float, result: str, others_are_served: bool
) -> None:
    t, rows = T_START + 300 * MS, list[Invoke | Acked | Unknown]()
    for n in range(71, 81):
        rows += [Invoke(t, 101, "session101", n, 1, t, payloads=("more",)), Unknown(t + 2 * S, "session101", n, 1)]
        if others_are_served:
            other = n - 5
            rows[-1:-1] = [
                Invoke(t, 102, "session102", other, 1, t, payloads=("more",)),
                Acked(t, "session102", other, 200),
            ]
        t += int((2 + pause_s) * S)
    add_row(run, *rows)
    doctor_meta(run, t_end=t)
    assert judged(run, "A9").result == result


@pytest.mark.parametrize(("down", "result"), [(1, "FAIL"), (3, "PASS")])
def test_a_link_rule_counts_only_between_nodes_that_are_up(run: RunDir, down: int, result: str) -> None:
    link: dict[str, Any] = {"fault": "link", "evidence": {"pairs": [[1, 2]]}, "step": 2}
    starve(run, link, {"fault": "kill", "target": down, "role": "follower", "evidence": {}, "step": 3})
    assert judged(run, "A9").result == result


def test_a_client_may_starve_where_a_disk_is_slow(run: RunDir) -> None:
    starve(run, {"fault": "disk", "target": 1, "evidence": {"state": "slow by 60s", "slowed": 3}, "step": 2})
    assert judged(run, "A9").result == "PASS"


LASTING: dict[str, dict[str, Any]] = {
    "link": {"fault": "link", "evidence": {"pairs": [[1, 2]]}, "step": 2},
    "disk": {"fault": "disk", "target": 1, "evidence": {"state": "slow by 60s", "slowed": 3}, "step": 2},
    "busy": {"fault": "busy", "evidence": {"processes": 4}, "step": 2},
}


@pytest.mark.parametrize("fault", LASTING.values(), ids=LASTING)
@pytest.mark.parametrize(("over_s", "result"), [(1, "FAIL"), (19, "PASS")])
def test_a_fault_excuses_no_wait_after_its_end_even_if_no_row_follows(
    run: RunDir, fault: dict[str, Any], over_s: int, result: str
) -> None:
    starve(run, fault | {"t_healed": LATE + over_s * S})
    assert judged(run, "A9").result == result


def test_a_rule_outlasts_a_reset_of_its_link(run: RunDir) -> None:
    starve(run, LASTING["link"], LASTING["link"] | {"fault": "reset", "step": 3, "t_healed": LATE - MS})
    assert judged(run, "A9").result == "PASS"


def test_a_wait_without_a_majority_is_no_breach(run: RunDir) -> None:
    late = T_START + 300 * MS
    add_row(
        run,
        Invoke(late, 101, "session101", 71, 1, late, payloads=("more",)),
        Unknown(late + 20_000 * MS, "session101", 71, 1),
    )
    doctor_meta(run, t_end=late + 20_000 * MS)
    assert judged(run, "A9").result == "FAIL"
    with run.faults.open("ab") as file:
        for node, t in ((1, late - 2 * MS), (2, late - MS)):
            row = {"fault": "kill", "target": node, "role": "follower", "t": t, "t_done": t, "evidence": {}}
            file.write(msgspec.json.encode({**row, "effect": True, "step": 2}) + b"\n")
    assert judged(run, "A9").result == "PASS"


SILENT = {"loss": 1.0}
BETWEEN_3_AND_THE_OTHERS = [[1, 3], [3, 1], [2, 3], [3, 2]]


def cut_off(run: RunDir, *, pairs: list[list[int]], rule: dict[str, Any], seconds: float = 20.0) -> None:
    """Links have a rule, and then a client waits so long for an acknowledgement without success."""
    late = T_START + 300 * MS
    end = late + int(seconds * S)
    add_row(
        run,
        Invoke(late, 101, "session101", 71, 1, late, payloads=("more",)),
        Unknown(end, "session101", 71, 1),
    )
    doctor_meta(run, t_end=end)
    evidence = {"pairs": pairs, "rule": rule, "lost": 1}
    add_fault(run, FaultRow("link", 0, "", late - MS, late - MS, evidence, True, 2))


def test_a_connected_majority_must_serve_although_another_node_is_up_and_cut_off(run: RunDir) -> None:
    cut_off(run, pairs=BETWEEN_3_AND_THE_OTHERS, rule=SILENT)
    finding = judged(run, "A9")
    assert finding.result == "FAIL" and "with a majority up and connected, messages waited 20.000 s" in str(finding)


def test_a_client_may_first_have_to_leave_the_node_that_is_cut_off(run: RunDir) -> None:
    cut_off(run, pairs=BETWEEN_3_AND_THE_OTHERS, rule=SILENT, seconds=6.9)
    assert judged(run, "A9").result == "PASS"


@pytest.mark.parametrize(
    ("pairs", "rule"),
    [
        ([*BETWEEN_3_AND_THE_OTHERS, [1, 2]], SILENT),
        (BETWEEN_3_AND_THE_OTHERS, {"loss": 1.0, "frames": ["APPEND"]}),
        (BETWEEN_3_AND_THE_OTHERS, {"delay": 1.0}),
        ([*BETWEEN_3_AND_THE_OTHERS, [0, 1]], SILENT),
    ],
)
def test_nothing_is_required_without_a_connected_majority_or_where_some_frames_pass(
    run: RunDir, pairs: list[list[int]], rule: dict[str, Any]
) -> None:
    cut_off(run, pairs=pairs, rule=rule)
    assert judged(run, "A9").result == "PASS"


def test_nothing_is_required_where_clients_know_only_some_of_the_nodes(run: RunDir) -> None:
    cut_off(run, pairs=BETWEEN_3_AND_THE_OTHERS, rule=SILENT)
    run.scenario.write_text(run.scenario.read_text().replace("clients: 3,", "clients: 3, via: [3],"))
    assert judged(run, "A9").result == "PASS"


@pytest.mark.parametrize(
    "lost",
    [
        FaultRow("rebuild", 1, "down", T_START, T_START, {"lost_bytes": 9}, True, 2),
        FaultRow("disk", 1, "follower", T_START, T_START, {"state": "hanging"}, True, 2),
    ],
)
def test_a_node_with_a_bad_or_lost_disk_is_not_counted_in_a_connected_majority(run: RunDir, lost: FaultRow) -> None:
    cut_off(run, pairs=BETWEEN_3_AND_THE_OTHERS, rule=SILENT)
    add_fault(run, lost)
    assert judged(run, "A9").result == "PASS"


def test_the_end_of_a_rule_is_known_from_its_own_row(run: RunDir) -> None:
    """Also where no `heal` has a row: another rule, or the fault itself, may have ended it."""
    cut_off(run, pairs=[*BETWEEN_3_AND_THE_OTHERS, [1, 2]], rule=SILENT)
    rows = run.read_faults()
    run.write_faults([*rows[:-1], msgspec.structs.replace(rows[-1], t_healed=rows[-1].t + S)])
    assert judged(run, "A9").result == "FAIL"


@pytest.mark.parametrize(
    ("cut", "size"),
    [
        (set(), 5),
        ({(1, 2)}, 4),
        ({(a, b) for a in (1, 2) for b in (3, 4, 5)}, 3),
        ({(1, 2), (3, 2), (2, 4), (2, 5)}, 4),
        ({(1, 2), (2, 3), (3, 4), (4, 5), (5, 1)}, 2),
    ],
)
def test_the_largest_connected_part_of_five_nodes(cut: set[tuple[int, int]], size: int) -> None:
    assert len(largest_connected(frozenset(range(1, 6)), cut)) == size


def test_a_run_that_did_not_converge_is_found(run: RunDir) -> None:
    doctor_meta(run, convergence=Convergence(15.0, False, 15.0, {1: 200, 2: 200, 3: 100}))
    doctor_lines(run.history, replace(120, b"converged", b"diverged"))
    assert_fails(run, "A9", "meta.json:1", "node 3: 100")


def test_a_run_without_a_message_after_its_fault_leaves_recovery_unknown(run: RunDir) -> None:
    doctor_lines(run.history, lambda lines: lines.__delitem__(slice(60, 120)))
    doctor_meta(run, convergence=Convergence(15.0, True, 0.1, dict.fromkeys(NODES, 100)))
    doctor_all_logs(run, lambda lines: lines.__delitem__(slice(100, 200)))
    run.scenario.write_text(run.scenario.read_text().replace("over_terms: 2", "over_terms: 1"))
    assert judged(run, "A9").result == "UNKNOWN"
    assert check(run, None).exit_code == 2


# ---- nothing to judge ----------------------------------------------------------------------------


def test_where_all_messages_are_gone_durability_is_broken_and_agreement_says_why_it_is_not_judged(run: RunDir) -> None:
    for node in run.node_ids():
        run.message_log(node).write_bytes(b"")
    assert (judged(run, "A1").result, judged(run, "A4").result) == ("UNKNOWN", "FAIL")
    assert judged(run, "A1").detail == "every node's log is empty, so nothing is compared (see A4)"


def test_no_acknowledgement_at_all_leaves_durability_unknown(run: RunDir) -> None:
    doctor_lines(run.history, lambda lines: lines.__setitem__(slice(None), [x for x in lines if b'"ok"' not in x]))
    verdict = check(run, None)
    assert found(verdict, "A4").result == found(verdict, "A6").result == found(verdict, "A9").result == "UNKNOWN"
    assert "messages of session session101 have no outcome" in found(verdict, "run").detail
    assert verdict.exit_code == 2


def test_a_kill_that_hit_nobody_leaves_the_run_undecided(run: RunDir) -> None:
    doctor_lines(run.faults, replace(0, b'"effect":true', b'"effect":false'))
    verdict = check(run, None)
    assert found(verdict, "faults").result == "UNKNOWN"
    assert found(verdict, "faults").detail.startswith("faults.jsonl:1: kill of node 3 had no effect")
    assert verdict.exit_code == 2


@pytest.mark.parametrize(
    ("missing", "unknown"),
    [
        ("history.jsonl", {*OF_HISTORY, "run"}),
        ("faults.jsonl", {"A9", "A10", "faults", "run"}),
        ("meta.json", {"A9", "A10", "faults", "run"}),
        (LOG_2, {"A1"}),
        (EVENTS_2, {"A7", "A10"}),
    ],
)
def test_a_missing_file_leaves_what_needs_it_unknown(run: RunDir, missing: str, unknown: set[str]) -> None:
    (run.path / missing).unlink()
    verdict = check(run, None)
    assert {each.name for each in verdict.checks if each.result == "UNKNOWN"} == unknown
    assert not [each for each in verdict.checks if each.result == "FAIL"]
    assert verdict.exit_code == 2


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\x00\n", b"{}\n"])
def test_a_node_without_any_readable_event_leaves_a7_unknown(run: RunDir, content: bytes) -> None:
    run.events(1).write_bytes(content)
    assert judged(run, "A7").result == "UNKNOWN"
    expected = "nodes/node_1/events.jsonl:1: not an event" if content else "no events of node 1"
    assert judged(run, "A7").detail.startswith(expected)


def test_nodes_of_another_make_need_no_events_but_all_have_them_if_one_has(run: RunDir) -> None:
    text = run.scenario.read_text()
    run.scenario.write_text(text + "cluster: {command: 'node {port}'}\n")
    assert judged(run, "A7").result == "PASS"
    run.events(1).unlink()
    assert (judged(run, "A7").result, judged(run, "A7").decisive) == ("UNKNOWN", True)
    for node in (2, 3):
        run.events(node).unlink()
    assert (judged(run, "A7").result, judged(run, "A7").decisive) == ("UNKNOWN", False)
    assert check(run, None).outcome == "pass"
    run.scenario.write_text(text)
    assert judged(run, "A7").decisive


@pytest.mark.parametrize(
    "row",
    [
        Invoke(BEHIND_ALL, 101, "s", 1, 3, BEHIND_ALL, payloads=("one",)),
        Invoke(BEHIND_ALL, 101, "s", 1, 0, BEHIND_ALL),
        Invoke(BEHIND_ALL, 101, "s", 0, 1, BEHIND_ALL, payloads=("one",)),
        Shown(BEHIND_ALL, 900_001, 0, 5, 0),
        Shown(BEHIND_ALL, 900_001, -4, 5, 0),
    ],
    ids=["payloads missing", "of nothing", "numbered 0", "line 0", "line -4"],
)
def test_a_row_that_contradicts_itself_leaves_what_needs_the_history_unknown(run: RunDir, row: Invoke | Shown) -> None:
    doctor_lines(run.history, lambda lines: lines.append(encode_row(row)))
    assert judged(run, "A3").result == "UNKNOWN"
    assert "contradicts itself" in judged(run, "A3").detail


def test_a_seq_no_beyond_all_numbers_is_found(run: RunDir) -> None:
    for node in (1, 2, 3):
        doctor_lines(run.message_log(node), replace(0, b'"seq_no":1,', b'"seq_no":%d,' % 2**63))
    assert_fails(run, "A2", "nodes/node_1/logs/node_1_messages.jsonl:1", "not a line of a message log")


def test_without_any_node_directory_nothing_passes_by_accident(run: RunDir) -> None:
    shutil.rmtree(run.nodes)
    results = {each.name: each.result for each in check(run, None).checks}
    assert [name for name in ("A1", "A2", *OF_HISTORY, "A7") if results[name] != "UNKNOWN"] == []


def test_no_subscriber_is_decisive_only_where_one_was_asked_for(run: RunDir) -> None:
    doctor_lines(run.history, lambda lines: lines.__setitem__(slice(None), [x for x in lines if b"shown" not in x]))
    assert_fails(run, "A8", "history.jsonl", "was shown lines up to 0")
    run.scenario.write_text(run.scenario.read_text() + "subscribers: 0\n")
    verdict = check(run, None)
    assert found(verdict, "A8").result == "UNKNOWN"
    assert verdict.exit_code == 0


# ---- health of nodes and of the harness ----------------------------------------------------------


def test_a_node_that_ended_by_itself_is_named(run: RunDir) -> None:
    doctor_meta(run, nodes={1: NodeUse(1, 0.1, 1, (NodeExit(T_START, 70, False),))})
    assert_fails(run, "A10", "meta.json:1", "node 1 ended by itself with code 70")


def test_a_node_that_fails_while_it_stops_is_named(run: RunDir) -> None:
    doctor_meta(run, nodes={1: NodeUse(1, 0.1, 1, (NodeExit(T_START, 4, True),))})
    assert_fails(run, "A10", "meta.json:1", "node 1, asked to stop, ended with code 4")


def test_a_killed_node_is_healthy(run: RunDir) -> None:
    doctor_meta(run, nodes={1: NodeUse(1, 0.1, 1, (NodeExit(T_START, -9, True),))})
    assert judged(run, "A10").result == "PASS"


def test_only_a_machine_whose_node_never_ran_may_lack_its_log(run: RunDir) -> None:
    run.node_log(3).unlink()
    for starts, result in ((0, "PASS"), (1, "UNKNOWN")):
        nodes = {**run.read_meta().nodes, 3: NodeUse(starts, 0.1, 1, ())}
        doctor_meta(run, nodes=nodes)
        assert judged(run, "A10").result == result


def test_a_traceback_in_a_node_log_is_named(run: RunDir) -> None:
    with run.node_log(2).open("a") as file:
        file.write('Traceback (most recent call last):\n  File "x.py", line 1\nAssertionError: (1, 2)\n')
    assert_fails(run, "A10", "nodes/node_2/node.log:2", "traceback")
    answer = judged(run, "A10")
    assert answer.first is not None
    assert answer.first.lines[0].text == "AssertionError: (1, 2)"


def test_a_failure_that_a_node_reports_is_named(run: RunDir) -> None:
    add_events(run, FAILED % LATE)
    assert_fails(run, "A10", f"{EVENTS_2}:5", "node 2 reports a failure")


def test_a_node_with_a_full_disk_may_report_it_although_a_signal_ends_the_node_first(run: RunDir) -> None:
    """The signal came after the report and before the exit."""
    add_events(run, FAILED % LATE)
    doctor_meta(run, nodes={2: NodeUse(1, 0.1, 1, (NodeExit(LATE + 2, -15, True),))})
    assert judged(run, "A10").result == "FAIL"
    full = FaultRow("disk", 2, "follower", LATE - 5, LATE - 5, {"state": "full", "refused": 1}, True, 1)
    slow = FaultRow("disk", 2, "follower", LATE - 5, LATE - 5, {"state": "slow by 0.1", "slowed": 1}, True, 1)
    of_another, healed = msgspec.structs.replace(full, target=3), msgspec.structs.replace(full, t_healed=LATE - 1)
    for row in (of_another, healed, slow):
        add_fault(run, row)
        assert judged(run, "A10").result == "FAIL"
    add_fault(run, full)
    assert judged(run, "A10").result == "PASS"
    doctor_meta(run, nodes={2: NodeUse(1, 0.1, 1, (NodeExit(LATE + 2, -15, False),))})
    assert judged(run, "A10").result == "FAIL"


@pytest.mark.parametrize("text", ["Fatal Python error: Segmentation fault", "Task exception was never retrieved"])
def test_an_error_of_python_s_own_is_named(run: RunDir, text: str) -> None:
    with run.node_log(2).open("a") as file:
        file.write(f"{text}\n")
    assert_fails(run, "A10", "nodes/node_2/node.log:2", "an error of Python")


def add_event(run: RunDir, t_ns: int, event: str) -> None:
    add_events(run, f'{{"t_ns":{t_ns},"node":2,"event":"{event}","peer":1,"reason":"the reason"}}\n')


def add_events(run: RunDir, text: str) -> None:
    """Node 2 reports this just before it stops."""
    doctor_lines(run.events(2), lambda lines: lines.insert(-1, text.encode()))


def add_fault(run: RunDir, row: FaultRow) -> None:
    run.write_faults(sorted([*run.read_faults(), row], key=lambda each: each.t))


@pytest.mark.parametrize("event", ["peer_refused", "unknown_member_refused"])
def test_an_error_that_a_node_reports_is_named(run: RunDir, event: str) -> None:
    add_event(run, LATE, event)
    assert_fails(run, "A10", f"{EVENTS_2}:5", f"node 2 reports an error, {event}")


def test_what_arrives_on_treated_links_may_be_refused_but_not_before(run: RunDir) -> None:
    add_event(run, LATE, "peer_refused")
    add_fault(run, FaultRow("link", 2, "follower", LATE - 5, LATE - 5, {"corrupted": 1}, True, 1))
    assert judged(run, "A10").result == "PASS"
    doctor_lines(run.faults, replace(2, b'"t":%d' % (LATE - 5), b'"t":%d' % (LATE + 5)))
    assert judged(run, "A10").result == "FAIL"


def test_a_node_that_lost_its_data_directory_may_be_refused_but_no_other_node(run: RunDir) -> None:
    add_event(run, LATE, "peer_refused")
    add_fault(run, FaultRow("disk", 3, "follower", LATE - 5, LATE - 5, {"emptied": "9 bytes"}, True, 1))
    assert_fails(run, "A10", f"{EVENTS_2}:5", "node 2 reports an error, peer_refused")
    add_fault(run, FaultRow("disk", 2, "follower", LATE - 3, LATE - 3, {"emptied": "9 bytes"}, True, 1))
    assert judged(run, "A10").result == "PASS"


def test_a_data_directory_may_be_refused_once_its_node_lost_the_one_before_but_no_other(run: RunDir) -> None:
    add_event(run, LATE, "unknown_member_refused")
    add_fault(run, FaultRow("rebuild", 3, "follower", LATE - 5, LATE - 5, {}, True, 1))
    assert_fails(run, "A10", f"{EVENTS_2}:5", "node 2 reports an error, unknown_member_refused")
    add_fault(run, FaultRow("rebuild", 1, "follower", LATE + 5, LATE + 5, {}, True, 1))
    assert judged(run, "A10").result == "FAIL"
    add_fault(run, FaultRow("disk", 1, "follower", LATE - 3, LATE - 3, {"emptied": "all"}, True, 1))
    assert judged(run, "A10").result == "PASS"


def test_of_a_nemesis_each_kind_of_fault_must_have_had_effect_once(run: RunDir) -> None:
    rows = [
        FaultRow("link", 2, "", T_START, T_START, {}, effect, 1, asked="link: {loss: 0.1}", round=number)
        for number, effect in ((1, False), (2, True))
    ]
    assert check_faults(run, rows, "").detail == "2 faults, all but 1 of a nemesis with effect"
    rows.append(FaultRow("link", 2, "", T_START, T_START, {}, False, 1, asked="cut: {}", round=3))
    assert check_faults(run, rows, "").result == "UNKNOWN"


def test_a_heal_with_effect_does_not_speak_for_its_fault(run: RunDir) -> None:
    rows = [
        FaultRow("link", 2, "", T_START, T_START, {}, False, 1, asked="cut: {}", round=1),
        FaultRow("heal", 0, "", T_START, T_START, {"links": 1}, True, 1, asked="cut: {}", round=1),
    ]
    assert check_faults(run, rows, "").result == "UNKNOWN"


FULL = NodeExit(LATE + 2 * MS, 4, True, "full")


def test_a_node_whose_disk_was_full_ends_as_it_should(run: RunDir) -> None:
    doctor_meta(run, nodes={2: NodeUse(2, 0.1, 1, (FULL, NodeExit(LATE + 9 * MS, 0, True)))})
    add_events(run, FAILED % (LATE + MS))
    answer = judged(run, "A10")
    assert (answer.result, answer.detail) == (
        "PASS",
        "1 node, 2 starts, no unexpected end, 1 by a fault of their disk",
    )


def test_a_failure_after_the_one_that_was_brought_about_is_named(run: RunDir) -> None:
    doctor_meta(run, nodes={2: NodeUse(2, 0.1, 1, (FULL, NodeExit(LATE + 9 * MS, 0, True)))})
    add_events(run, FAILED % (LATE + MS) + FAILED % (LATE + 3 * MS))
    assert_fails(run, "A10", f"{EVENTS_2}:6", "node 2 reports a failure")


@pytest.mark.parametrize("fault", ["power_loss", "exit", "rebuild"])
def test_a_leader_that_its_disk_takes_down_is_replaced_as_after_a_kill(run: RunDir, fault: str) -> None:
    before = judged(run, "A9")
    doctor_lines(run.faults, replace(0, b'"kill"', b'"%s"' % fault.encode()))
    assert judged(run, "A9") == before
    assert [each.fault for each in measure(run).failovers] == [fault]


def test_a_rebuilt_node_has_forgotten_its_term_and_no_other_has(run: RunDir) -> None:
    events = b'{"t_ns":%d,"node":2,"event":"starting","term":0,"last_seq":0}\n'
    late, ends = T_START + 900 * MS, (NodeExit(T_START + 899 * MS, 0, True), *run.read_meta().nodes[2].exits)
    doctor_meta(run, nodes={**run.read_meta().nodes, 2: NodeUse(2, 0.5, 1, ends)})
    doctor_lines(run.events(2), lambda lines: lines.insert(-1, events % late))
    assert_fails(run, "A7", f"{EVENTS_2}:5", "node 2 shows term 0 after term 2")
    other, own = (FaultRow("rebuild", node, "down", late - 1, late - 1, {}, True, 1) for node in (1, 2))
    doctor_lines(run.faults, lambda lines: lines.append(encode_row(other)))
    assert judged(run, "A7").result == "FAIL"
    doctor_lines(run.faults, lambda lines: lines.append(encode_row(own)))
    assert judged(run, "A7").result == "PASS"
    still = b'{"t_ns":%d,"node":2,"event":"became_follower","term":2}\n' % (late - 2)
    doctor_lines(run.events(2), lambda lines: lines.insert(-2, still))
    doctor_lines(run.faults, replace(-1, b'"t":%d' % (late - 1), b'"t":%d' % (late - 3)))
    assert judged(run, "A7").result == "PASS", "it was still running when the lab began to take its disk away"
    again = [events.replace(b"0,", b"3,", 1) % late, events % late]
    doctor_lines(run.events(2), lambda lines: lines.__setitem__(slice(-1, -1), again))
    assert judged(run, "A7").result == "FAIL"


def test_a_run_that_was_not_carried_out_is_undecided(run: RunDir) -> None:
    doctor_meta(run, problem="node 2 did not answer within 10 s")
    assert judged(run, "run").detail == "node 2 did not answer within 10 s"
    assert check(run, None).exit_code == 2


def test_what_a_simulation_saw_break_is_broken(run: RunDir) -> None:
    doctor_meta(run, kind="sim")
    assert judged(run, "watch").result == "PASS"
    doctor_meta(run, watched="A7: term 2 has two leaders")
    assert_fails(run, "watch", "meta.json:1", "A7: term 2 has two leaders")


def test_asked_faults_without_a_row_leave_the_run_undecided(run: RunDir) -> None:
    doctor_lines(run.faults, delete(0))
    assert (
        judged(run, "faults").detail == "faults.jsonl: no row of step 2, `kill: leader`, shows that it was done (kill)"
    )


@pytest.mark.parametrize("name", ["A7", "A10"])
def test_events_in_files_that_are_not_read_leave_the_check_undecided(run: RunDir, name: str) -> None:
    run.path.joinpath(f"{EVENTS_2}.1").write_bytes(b"")
    answer = judged(run, name)
    assert answer.result == "UNKNOWN" and f"{EVENTS_2}.1 is not read" in answer.detail
    assert check(run, None).outcome == "undecided"
