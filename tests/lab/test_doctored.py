"""One honest run, doctored in many ways, and what the judges have to say of each.

The honest run is simulated once. Each row of DOCTORED spoils a copy of it as a broken product, a broken lab or a forger
would, and names every check that may then not pass: `A4!` is FAIL, `A4?` is UNKNOWN, `missed` an expectation. A check
that is not named must pass, so that the list also shows that nobody else is blamed.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from lab.check.verdict import Verdict
from lab.plan import scenario as plan
from lab.rundir import RunDir, RunDirError
from lab.runs import USAGE, judge
from lab.sim import simulator
from nodeproc.eventlog import part

SCENARIO = """\
name: honest
description: Enough happens that every judge has something to judge.
cluster: {nodes: 3}
subscribers: 2
load: {clients: 3, rate: 60, size: 40}
steps:
  - expect: {leader: 3}
  - send: {client: 1, via: 1, messages: [one, Grüße, three]}
  - load: start
  - when: {so: {for: acknowledged, count: 30}, do: [{reset: {}}]}
  - wait: {for: acknowledged, count: 40}
  - kill: leader
  - wait: new_leader
  - wait: {for: acknowledged, count: 30}
  - start: killed
  - wait: {for: caught_up, on: all}
  - pause: 1
  - sleep: 300ms
  - resume: 1
  - cut: {from: 2, to: 1}
  - sleep: 200ms
  - heal: links
  - nemesis: {for: 2s, every: 1s, faults: [{kill: follower}, {pause: follower}]}
  - load: stop
  - wait: idle
expectations:
  - acknowledged: 100
  - order: [one, Grüße, three]
  - event: {is: became_leader, at_least: 2}
"""
SEED = 7
NODES = (1, 2, 3)

Row = dict[str, Any]
Lines = list[bytes]
Doctor = Callable[[RunDir], object]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = RunDir(tmp_path_factory.mktemp("honest") / "honest" / "stamp")
    run.path.mkdir(parents=True)
    simulator.run(plan.load("honest.yml", text=SCENARIO), run, seed=SEED)
    return run.path


# ---- ways to spoil -------------------------------------------------------------------------------


def lines_of(path: Path, change: Callable[[Lines], None]) -> None:
    """Change a file as a list of its lines, newlines included."""
    lines = path.read_bytes().splitlines(keepends=True)
    before = list(lines)
    change(lines)
    assert lines != before, "nothing was changed"
    path.write_bytes(b"".join(lines))


def in_log(change: Callable[[Lines], None], *nodes: int) -> Doctor:
    """The same change in the logs of these nodes, or of all."""

    def doctor(run: RunDir) -> None:
        for node in nodes or NODES:
            lines_of(run.message_log(node), change)

    return doctor


def in_history(change: Callable[[Lines], None]) -> Doctor:
    return lambda run: lines_of(run.history, change)


def in_faults(change: Callable[[Lines], None]) -> Doctor:
    return lambda run: lines_of(run.faults, change)


def in_events(node: int, change: Callable[[Lines], None]) -> Doctor:
    return lambda run: lines_of(run.events(node), change)


def in_meta(**fields: Any) -> Doctor:
    """Replace fields of meta.json; a function gets the old value."""

    def doctor(run: RunDir) -> None:
        meta = msgspec.json.decode(run.meta.read_bytes())
        for name, value in fields.items():
            old = meta[name]
            meta[name] = value(old) if callable(value) else value
            assert meta[name] != old or callable(value), name
        run.meta.write_bytes(msgspec.json.format(msgspec.json.encode(meta), indent=1) + b"\n")

    return doctor


def in_scenario(old: str, new: str) -> Doctor:
    def doctor(run: RunDir) -> None:
        text = run.scenario.read_text()
        assert old in text, text
        run.scenario.write_text(text.replace(old, new, 1))

    return doctor


def both(*doctors: Doctor) -> Doctor:
    def doctor(run: RunDir) -> None:
        for each in doctors:
            each(run)

    return doctor


def delete(at: int) -> Callable[[Lines], None]:
    return lambda lines: lines.__delitem__(at)


def double(at: int) -> Callable[[Lines], None]:
    return lambda lines: lines.insert(at, lines[at])


def swap(at: int) -> Callable[[Lines], None]:
    def change(lines: Lines) -> None:
        lines[at], lines[at + 1] = lines[at + 1], lines[at]

    return change


def insert(at: int, line: bytes) -> Callable[[Lines], None]:
    return lambda lines: lines.insert(at if at >= 0 else len(lines), line)


def clear(lines: Lines) -> None:
    lines.clear()


def keep(part: slice) -> Callable[[Lines], None]:
    def change(lines: Lines) -> None:
        lines[:] = lines[part]

    return change


def each_line(change: Callable[[bytes], bytes]) -> Callable[[Lines], None]:
    def all_of(lines: Lines) -> None:
        lines[:] = map(change, lines)

    return all_of


def line(at: int, change: Callable[[bytes], bytes]) -> Callable[[Lines], None]:
    def one(lines: Lines) -> None:
        lines[at] = change(lines[at])

    return one


def field(at: int, **fields: Any) -> Callable[[Lines], None]:
    """Fields of the JSON object in one line; a function gets the old value."""
    return line(at, lambda text: with_fields(text, **fields))


def with_fields(text: bytes, **fields: Any) -> bytes:
    row = msgspec.json.decode(text)
    for name, value in fields.items():
        row[name] = value(row.get(name)) if callable(value) else value
        if row[name] is None:
            del row[name]
    return msgspec.json.encode(row) + b"\n"


def where(number: int, wanted: Row, change: Callable[[Lines, int], None]) -> Callable[[Lines], None]:
    """Change what stands at the number-th row (0, 1, …, or -1) that has all these fields."""

    def found(lines: Lines) -> None:
        rows = [at for at, text in enumerate(lines) if wanted.items() <= msgspec.json.decode(text).items()]
        change(lines, rows[number])

    return found


def set_at(**fields: Any) -> Callable[[Lines, int], None]:
    def change(lines: Lines, at: int) -> None:
        lines[at] = with_fields(lines[at], **fields)

    return change


def delete_at(lines: Lines, at: int) -> None:
    del lines[at]


def double_at(lines: Lines, at: int) -> None:
    lines.insert(at, lines[at])


def delete_all(**wanted: Any) -> Callable[[Lines], None]:
    def change(lines: Lines) -> None:
        lines[:] = [text for text in lines if not wanted.items() <= msgspec.json.decode(text).items()]

    return change


def reordered(text: bytes) -> bytes:
    row = msgspec.json.decode(text)
    return msgspec.json.encode(dict(sorted(row.items()))) + b"\n"


def renumber(lines: Lines) -> None:
    lines[:] = [with_fields(text, seq_no=number) for number, text in enumerate(lines, 1)]


def link_logs(run: RunDir) -> None:
    run.message_log(2).unlink()
    os.link(run.message_log(1), run.message_log(2))


def symlink_logs(run: RunDir) -> None:
    run.message_log(2).unlink()
    run.message_log(2).symlink_to(run.message_log(1).resolve())


def as_directory(path: Callable[[RunDir], Path]) -> Doctor:
    def doctor(run: RunDir) -> None:
        path(run).unlink(missing_ok=True)
        path(run).mkdir()

    return doctor


def remove(path: Callable[[RunDir], Path]) -> Doctor:
    def doctor(run: RunDir) -> None:
        shutil.rmtree(path(run)) if path(run).is_dir() else path(run).unlink()

    return doctor


def of_each_node(path: Callable[[RunDir, int], Path]) -> Doctor:
    """Remove a file or directory of every node."""

    def doctor(run: RunDir) -> None:
        for node in NODES:
            found = path(run, node)
            shutil.rmtree(found) if found.is_dir() else found.unlink()

    return doctor


def overwrite(path: Callable[[RunDir], Path], content: bytes) -> Doctor:
    return lambda run: path(run).write_bytes(content)


def append(path: Callable[[RunDir], Path], content: bytes) -> Doctor:
    def doctor(run: RunDir) -> None:
        with path(run).open("ab") as file:
            file.write(content)

    return doctor


def rejection(ok: bytes, op: str = "fail") -> bytes:
    """In place of an acknowledgement of message n."""
    row = msgspec.json.decode(ok)
    outcome = {"op": op, "t": row["t"], "session": row["session"], "n": row["n"], "count": 1}
    return msgspec.json.encode(outcome | ({"reason": "full"} if op == "fail" else {})) + b"\n"


def starve(lines: Lines, client: int, shown: int) -> None:
    """The client is shown so many pieces and no more."""
    rows = [at for at, text in enumerate(lines) if b'"op":"shown"' in text and b'"client":%d' % client in text]
    for at in reversed(rows[shown:]):
        del lines[at]


def exits(nodes: Row, node: str, at: int, **fields: Any) -> Row:
    """Change fields of one end of a node; without any, take it out."""
    ends = list(nodes[node]["exits"])
    if fields:
        ends[at] = ends[at] | {
            name: value(ends[at][name]) if callable(value) else value for name, value in fields.items()
        }
    else:
        del ends[at]
    return {**nodes, node: {**nodes[node], "exits": ends}}


def read_only(run: RunDir) -> None:
    """Nothing can be written into the directory, not even by root: each file that a judge writes is a directory."""
    for path in (run.verdict, run.metrics, run.summary, run.junit):
        path.unlink(missing_ok=True)
        path.mkdir()


NESTED = b"[" * 100_000 + b"]" * 100_000
NESTED_EVENT = b'{"t_ns":1000200000000,"node":2,"event":"became_leader","more":' + NESTED + b"}\n"
LEADS = {"event": "became_leader"}


class Case(NamedTuple):
    """How to spoil the run, and every check that may not pass then."""

    name: str
    expected: str
    exit_code: int
    doctor: Doctor


def misreported(what: str, done: str, /, **fields: Any) -> Case:
    """The first row of this fault says something else than was done: what the run shows can't be told."""
    return Case(f"faults: {what}", "faults?", 2, in_faults(where(0, {"fault": done}, set_at(**fields))))


def evidence(fault: str, **fields: Any) -> Doctor:
    """Other evidence in the first row of this fault."""
    return in_faults(where(0, {"fault": fault}, set_at(evidence=lambda old: {**old, **fields})))


def no_leader_of_term_2(lines: Lines) -> None:
    lines[:] = [text for text in lines if b'"term":2' not in text or b'"starting"' in text]


def given_up_twice(lines: Lines) -> None:
    """The first acknowledgement is that of three messages: two have an unknown outcome instead, one of them twice."""
    at = next(at for at, text in enumerate(lines) if b'"op":"ok"' in text)
    row = msgspec.json.decode(rejection(lines[at], "unknown"))
    lines[at : at + 1] = [msgspec.json.encode({**row, "n": n, "count": count}) + b"\n" for n, count in ((1, 2), (2, 1))]


UNUSABLE_HISTORY = "A3? A4? A5? A6? A8? A9? run? unjudged"
UNUSABLE_FAULTS = "A9? A10? faults? run?"
HUGE = 10**400

DOCTORED = [
    # ---- one node's log
    Case("log: a line is missing on one node", "A1! A2! A9!", 1, in_log(delete(9), 2)),
    Case("log: two lines changed places on one node", "A1! A2!", 1, in_log(swap(9), 2)),
    Case("log: a payload differs on one node", "A1! A9!", 1, in_log(field(9, payload="other"), 2)),
    Case("log: a line stands twice on one node", "A1! A2! A9!", 1, in_log(double(9), 2)),
    Case("log: the first line is missing on one node", "A1! A2! A9! missed", 1, in_log(delete(0), 3)),
    Case("log: the last line is missing on one node", "A2! A9!", 1, in_log(delete(-1), 2)),
    Case("log: one node's is empty", "A2! A9! missed", 1, in_log(clear, 2)),
    Case("log: one node's is gone", "A1?", 2, remove(lambda run: run.message_log(2))),
    Case("log: one node's is a directory", "A1?", 2, as_directory(lambda run: run.message_log(2))),
    Case("log: one node's ends with an empty line", "A1! A2! A9!", 1, in_log(insert(-1, b"\n"), 2)),
    Case("log: one node's ends with an unreadable line", "A1! A2! A9!", 1, in_log(insert(-1, b"{}\n"), 2)),
    Case("log: an empty line in the middle on one node", "A1! A2! A9!", 1, in_log(insert(9, b"\n"), 2)),
    Case("log: one node's last line has no end", "A1! A2! A9!", 1, in_log(line(-1, lambda text: text[:-1]), 2)),
    Case("log: one node's last line is torn", "A1! A2! A9!", 1, in_log(line(-1, lambda text: text[:-9]), 2)),
    Case("log: one node writes CR LF", "A1! A2! A9!", 1, in_log(each_line(lambda text: text[:-1] + b"\r\n"), 2)),
    Case(
        "log: one node's begins with a byte order mark",
        "A1! A2! A9! missed",
        1,
        in_log(line(0, lambda text: b"\xef\xbb\xbf" + text), 2),
    ),
    Case("log: two nodes' are one file by a hard link", "A1?", 2, link_logs),
    Case("log: two nodes' are one file by a symbolic link", "A1?", 2, symlink_logs),
    Case(
        "log: one node has a message that no other has",
        "A3! A9!",
        1,
        in_log(lambda lines: lines.append(with_fields(lines[-1], seq_no=lambda n: n + 1, msg_id="stranger-1")), 2),
    ),
    # ---- all logs, one mistake
    Case("logs: a line is missing", "A2! A4! A5! A8?", 1, in_log(delete(9))),
    Case(
        "logs: a line is missing and the rest renumbered",
        "A2! A4! A5! A8!",
        1,
        both(in_log(delete(9)), in_log(renumber)),
    ),
    Case("logs: the last line is missing", "A2! A4! A8!", 1, in_log(delete(-1))),
    Case("logs: the first line is missing", "A2! A4! A5! A8? missed", 1, in_log(delete(0))),
    Case("logs: two lines changed places", "A2! A8?", 1, in_log(swap(9))),
    Case(
        "logs: two lines changed places and were renumbered", "A4! A6! A8!", 1, both(in_log(swap(9)), in_log(renumber))
    ),
    Case("logs: a line stands twice", "A2! A3! A8?", 1, in_log(double(9))),
    Case(
        "logs: a line stands twice and the rest renumbered",
        "A3! A4! A7! A8!",
        1,
        both(in_log(double(9)), in_log(renumber)),
    ),
    Case("logs: empty", "A1? A2! A3? A4! A5? A6? A8! missed", 1, in_log(clear)),
    Case(
        "logs: gone",
        "A1? A2? A3? A4? A5? A6? A8? A9? unjudged",
        2,
        of_each_node(lambda run, node: run.message_log(node)),
    ),
    Case("logs: a payload is another", "A3! A8!", 1, in_log(field(9, payload="other"))),
    Case("logs: a payload is cut", "A3! A8!", 1, in_log(field(9, payload=lambda text: text[:-1]))),
    Case("logs: a sender is another", "A3! A8!", 1, in_log(field(9, sender_id=1))),
    Case("logs: a msg_id of nobody", "A3! A4! A5! A8!", 1, in_log(field(9, msg_id="0123456789abcdef-1"))),
    Case(
        "logs: a msg_id with a leading zero",
        "A3! A4! A5! A8!",
        1,
        in_log(field(9, msg_id=lambda text: text.replace("-", "-0"))),
    ),
    Case("logs: a msg_id without number", "A3! A4! A5! A8!", 1, in_log(field(9, msg_id="x"))),
    Case("logs: an unreadable line", "A2! A3? A4? A5? A6? A8?", 1, in_log(line(9, lambda text: b"junk\n"))),
    Case("logs: an empty line", "A2! A3? A4? A5? A6? A8?", 1, in_log(insert(9, b"\n"))),
    Case("logs: an empty line at the end", "A2! A3? A4? A5? A6? A8?", 1, in_log(insert(-1, b"\n"))),
    Case(
        "logs: an empty line in place of a message", "A2! A3? A4? A5? A6? A8?", 1, in_log(line(9, lambda text: b"\n"))
    ),
    Case(
        "logs: a line of zeros",
        "A2! A3? A4? A5? A6? A8?",
        1,
        in_log(line(9, lambda text: bytes(len(text) - 1) + b"\n")),
    ),
    Case(
        "logs: invalid UTF-8 in a payload",
        "A2! A3? A4? A5? A6? A8?",
        1,
        in_log(line(9, lambda text: text.replace(b'"payload":"', b'"payload":"\xff'))),
    ),
    Case("logs: a deeply nested line", "A2! A3? A4? A5? A6? A8?", 1, in_log(line(9, lambda text: NESTED + b"\n"))),
    Case(
        "logs: a key is missing",
        "A2! A3? A4? A5? A6? A8?",
        1,
        in_log(line(9, lambda text: text.replace(b'"term":1,', b""))),
    ),
    Case(
        "logs: a key too many",
        "A2! A3? A4? A5? A6? A8?",
        1,
        in_log(line(9, lambda text: text.replace(b"}\n", b',"more":1}\n'))),
    ),
    Case(
        "logs: a key stands twice",
        "A2! A8?",
        1,
        in_log(line(9, lambda text: text.replace(b'"term":1,', b'"term":1,"term":1,'))),
    ),
    Case("logs: keys in another order", "A2! A8?", 1, in_log(each_line(reordered))),
    Case("logs: keys of one line in another order", "A2! A8?", 1, in_log(line(9, reordered))),
    Case("logs: white space behind a colon", "A2! A8?", 1, in_log(line(9, lambda text: text.replace(b'":', b'": ')))),
    Case("logs: white space at the end of a line", "A2! A8?", 1, in_log(line(9, lambda text: text[:-1] + b" \n"))),
    Case("logs: CR LF", "A2! A8?", 1, in_log(each_line(lambda text: text[:-1] + b"\r\n"))),
    Case(
        "logs: a byte order mark",
        "A2! A3? A4? A5? A6? A8? missed",
        1,
        in_log(line(0, lambda text: b"\xef\xbb\xbf" + text)),
    ),
    Case(
        "logs: Latin-1",
        "A2! A3? A4? A5? A6? A8? missed",
        1,
        in_log(each_line(lambda text: text.decode().encode("latin-1"))),
    ),
    Case("logs: the last line has no end", "A2! A3? A4? A5? A6? A8?", 1, in_log(line(-1, lambda text: text[:-1]))),
    Case("logs: a seq_no is a text", "A2! A3? A4? A5? A6? A8?", 1, in_log(field(9, seq_no=str))),
    Case("logs: a seq_no is 0", "A2! A8?", 1, in_log(field(0, seq_no=0))),
    Case("logs: a seq_no is negative", "A2! A8?", 1, in_log(field(9, seq_no=-10))),
    Case("logs: a seq_no is huge", "A2! A3? A4? A5? A6? A8?", 1, in_log(field(9, seq_no=2**70))),
    Case(
        "logs: numbering goes on one too high",
        "A2! A8?",
        1,
        in_log(
            lambda lines: lines.__setitem__(
                slice(50, None), [with_fields(each, seq_no=lambda n: n + 1) for each in lines[50:]]
            )
        ),
    ),
    Case("logs: a term falls", "A2! A8?", 1, in_log(field(-1, term=1))),
    Case("logs: a term is 0", "A2! A8?", 1, in_log(field(0, term=0))),
    Case("logs: a term is negative", "A2! A8?", 1, in_log(field(0, term=-1))),
    Case("logs: a term that nobody led", "A7! A8!", 1, in_log(field(-1, term=99))),
    Case(
        "logs: a term begins one message late",
        "A7! A8!",
        1,
        in_log(lambda lines: where(0, {"term": 2}, set_at(term=1))(lines)),
    ),
    Case(
        "logs: a term begins one message early",
        "A7! A8!",
        1,
        in_log(lambda lines: where(-1, {"term": 1}, set_at(term=2))(lines)),
    ),
    Case("logs: a time before the run", "A2! A8?", 1, in_log(field(9, timestamp=1e9))),
    Case("logs: a time of 0", "A2! A8?", 1, in_log(field(9, timestamp=0.0))),
    Case("logs: a time in milliseconds", "A2! A8?", 1, in_log(field(9, timestamp=lambda t: t * 1000))),
    Case("logs: a time a day after the run", "A2! A8?", 1, in_log(field(9, timestamp=lambda t: t + 86_400))),
    Case("logs: a time as a text", "A2! A3? A4? A5? A6? A8?", 1, in_log(field(9, timestamp=str))),
    # ---- the history
    Case("history: gone", "A3? A4? A5? A6? A8? A9? run? unjudged", 2, remove(lambda run: run.history)),
    Case("history: empty", "A3? A4? A5? A6? A8? A9? run? unjudged", 2, overwrite(lambda run: run.history, b"")),
    Case("history: a directory", "A3? A4? A5? A6? A8? A9? run? unjudged", 2, as_directory(lambda run: run.history)),
    Case(
        "history: its second half is missing",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(lambda lines: keep(slice(0, len(lines) // 2))(lines)),
    ),
    Case(
        "history: its first half is missing",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(lambda lines: keep(slice(len(lines) // 2, None))(lines)),
    ),
    Case(
        "history: its last row is missing",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(where(-1, {"phase": "converged"}, delete_at)),
    ),
    Case(
        "history: an unreadable row",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(line(20, lambda text: b"junk\n")),
    ),
    Case("history: an empty line", "A3? A4? A5? A6? A8? A9? run? unjudged", 2, in_history(insert(20, b"\n"))),
    Case(
        "history: an empty line at the end", "A3? A4? A5? A6? A8? A9? run? unjudged", 2, in_history(insert(-1, b"\n"))
    ),
    Case(
        "history: the last line has no end",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(line(-1, lambda text: text[:-1])),
    ),
    Case(
        "history: the last line is torn",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(line(-1, lambda text: text[:-9])),
    ),
    Case(
        "history: invalid UTF-8",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(line(20, lambda text: b"\xff" + text)),
    ),
    Case(
        "history: zeros at the end",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        append(lambda run: run.history, bytes(4096)),
    ),
    Case(
        "history: a deeply nested row",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(line(20, lambda text: NESTED + b"\n")),
    ),
    Case(
        "history: an unknown kind of row",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(where(0, {"op": "ok"}, set_at(op="okay"))),
    ),
    Case(
        "history: a row has a key too many",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(where(0, {"op": "ok"}, set_at(more=1))),
    ),
    Case(
        "history: a key stands twice",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(
            where(0, {"op": "ok"}, lambda lines, at: line(at, lambda text: text.replace(b'"n":', b'"n":1,"n":'))(lines))
        ),
    ),
    Case(
        "history: a row has white space",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(line(20, lambda text: text.replace(b":", b": "))),
    ),
    Case("history: two rows changed places", "A3? A4? A5? A6? A8? A9? run? unjudged", 2, in_history(swap(20))),
    Case("history: a time before the run", "A3? A4? A5? A6? A8? A9? run? unjudged", 2, in_history(field(0, t=5))),
    Case("history: a time after the run", "A3? A4? A5? A6? A8? A9? run? unjudged", 2, in_history(field(-1, t=2**60))),
    Case(
        "history: a sending is missing",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(where(5, {"op": "invoke"}, delete_at)),
    ),
    Case(
        "history: a session's last sending is missing",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(where(-1, {"op": "invoke"}, delete_at)),
    ),
    Case(
        "history: a sending stands twice",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(where(5, {"op": "invoke"}, double_at)),
    ),
    Case(
        "history: a sending of another client",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(where(9, {"op": "invoke"}, set_at(client=5))),
    ),
    Case(
        "history: a sending of other messages",
        "A3!",
        1,
        in_history(where(0, {"op": "invoke"}, set_at(payloads=["eins", "zwei", "drei"]))),
    ),
    Case(
        "history: a sending with too few payloads",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(where(0, {"op": "invoke"}, set_at(payloads=["one"]))),
    ),
    Case(
        "history: a sending of no message",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(where(0, {"op": "invoke"}, set_at(count=0))),
    ),
    Case("history: an acknowledgement is missing", "", 0, in_history(where(5, {"op": "ok"}, delete_at))),
    Case("history: all acknowledgements are missing", "A4? A9? run? missed", 3, in_history(delete_all(op="ok"))),
    Case(
        "history: the last acknowledgement is missing", "run? missed", 3, in_history(where(-1, {"op": "ok"}, delete_at))
    ),
    Case(
        "history: an acknowledgement stands twice",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(where(5, {"op": "ok"}, double_at)),
    ),
    Case(
        "history: an acknowledgement above what was sent",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(where(-1, {"op": "ok"}, set_at(n=lambda n: n + 500, seq_no=lambda n: n + 500))),
    ),
    Case(
        "history: an acknowledgement of a session of nobody",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(where(5, {"op": "ok"}, set_at(session="nobody"))),
    ),
    Case(
        "history: an acknowledgement names another place",
        "A4!",
        1,
        in_history(where(5, {"op": "ok"}, set_at(seq_no=lambda n: n + 1))),
    ),
    Case(
        "history: an acknowledgement names a place behind the log",
        "A4!",
        1,
        in_history(where(-1, {"op": "ok"}, set_at(seq_no=9999))),
    ),
    Case(
        "history: an acknowledgement at seq_no 0",
        "A4!",
        1,
        in_history(where(5, {"op": "ok"}, set_at(seq_no=0))),
    ),
    Case(
        "history: an acknowledgement before its sending",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(
            lambda lines: lines.insert(0, lines.pop(next(at for at, text in enumerate(lines) if b'"op":"ok"' in text)))
        ),
    ),
    Case(
        "history: an acknowledged message was rejected",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(where(-1, {"op": "ok"}, lambda lines, at: lines.insert(at + 1, rejection(lines[at])))),
    ),
    Case(
        "history: a message that is in the log was rejected instead",
        "A3! missed",
        1,
        both(
            in_history(where(-1, {"op": "ok"}, lambda lines, at: lines.__setitem__(at, rejection(lines[at])))),
            in_meta(load=lambda old: {**old, "rejected": 1}),
        ),
    ),
    Case(
        "history: a message that is in the log is unknown instead",
        "missed",
        3,
        both(
            in_history(
                where(-1, {"op": "ok"}, lambda lines, at: lines.__setitem__(at, rejection(lines[at], "unknown")))
            ),
            in_meta(load=lambda old: {**old, "unknown": 1}),
        ),
    ),
    Case("history: shown other bytes", "A8!", 1, in_history(where(3, {"op": "shown"}, set_at(crc=1)))),
    Case("history: a piece was not shown", "A8!", 1, in_history(where(3, {"op": "shown"}, delete_at))),
    Case(
        "history: the first piece was not shown",
        "A8!",
        1,
        in_history(where(0, {"op": "shown", "client": 900_001}, delete_at)),
    ),
    Case(
        "history: the last piece was not shown",
        "A8!",
        1,
        in_history(where(-1, {"op": "shown", "client": 900_001}, delete_at)),
    ),
    Case(
        "history: one subscriber was shown three lines", "A8!", 1, in_history(lambda lines: starve(lines, 900_002, 1))
    ),
    Case("history: one subscriber was shown nothing", "A8!", 1, in_history(delete_all(op="shown", client=900_002))),
    Case("history: no subscriber was shown anything", "A8!", 1, in_history(delete_all(op="shown"))),
    Case("history: a piece was shown twice", "A8!", 1, in_history(where(3, {"op": "shown"}, double_at))),
    Case("history: shown backwards", "A8!", 1, in_history(where(3, {"op": "shown"}, set_at(last=0)))),
    Case(
        "history: shown more than the log has",
        "A8!",
        1,
        in_history(where(-1, {"op": "shown"}, set_at(last=lambda n: n + 5))),
    ),
    Case(
        "history: shown line 0",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(where(0, {"op": "shown"}, set_at(first=0))),
    ),
    Case("history: a step is missing", "run?", 2, in_history(where(4, {"op": "phase", "phase": "step"}, delete_at))),
    Case("history: all steps are missing", "faults? run?", 2, in_history(delete_all(op="phase", phase="step"))),
    Case(
        "history: a step of another text",
        "run?",
        2,
        in_history(where(4, {"op": "phase", "phase": "step"}, set_at(detail="kill: 9"))),
    ),
    Case(
        "history: the last steps are missing",
        "run?",
        2,
        in_history(where(-1, {"op": "phase", "phase": "step"}, delete_at)),
    ),
    Case(
        "history: it says that the nodes diverged",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(where(0, {"phase": "converged"}, set_at(phase="diverged"))),
    ),
    Case(
        "history: an unknown phase",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_history(where(0, {"phase": "healed"}, set_at(phase="cured"))),
    ),
    Case("history: messages were given up twice", UNUSABLE_HISTORY, 2, in_history(given_up_twice)),
    Case(
        "history: a sending of a trillion messages",
        UNUSABLE_HISTORY,
        2,
        in_history(where(-1, {"op": "invoke"}, set_at(count=10**12))),
    ),
    Case(
        "history: payloads of a terabyte",
        UNUSABLE_HISTORY,
        2,
        in_history(where(3, {"op": "invoke"}, set_at(gen={"seed": 7, "size": 10**12}))),
    ),
    Case(
        "history: payloads of less than nothing",
        UNUSABLE_HISTORY,
        2,
        in_history(where(3, {"op": "invoke"}, set_at(gen={"seed": 7, "size": -1}))),
    ),
    Case(
        "history: a message was due after it was sent",
        UNUSABLE_HISTORY,
        2,
        in_history(where(3, {"op": "invoke"}, set_at(intended=lambda t: t + 10**9))),
    ),
    Case(
        "history: an acknowledgement names a huge place",
        "A4!",
        1,
        in_history(where(5, {"op": "ok"}, set_at(seq_no=HUGE))),
    ),
    Case("history: healed at another time", UNUSABLE_HISTORY, 2, in_meta(t_healed=lambda t: t - 60_000_000_000)),
    # ---- the faults
    Case("faults: a link is no pair", UNUSABLE_FAULTS, 2, evidence("link", pairs=["a"])),
    Case("faults: the links are a number", UNUSABLE_FAULTS, 2, evidence("reset", pairs=5)),
    Case("faults: a rule that does not exist", UNUSABLE_FAULTS, 2, evidence("link", rule={"vanish": 1})),
    Case("faults: a clock jumped by a text", UNUSABLE_FAULTS, 2, evidence("kill", jump_s="x")),
    Case(
        "faults and logs: a kill explains a time a day after the run",
        "A2! A8?",
        1,
        both(evidence("kill", jump_s=1e9), in_log(field(9, timestamp=lambda t: t + 86_400))),
    ),
    Case("faults: a kill without an exit", "faults?", 2, in_faults(where(0, {"fault": "kill"}, set_at(evidence={})))),
    Case("faults: a kill with another exit", "faults?", 2, evidence("kill", exit=70)),
    Case(
        "faults: a start without evidence", "faults?", 2, in_faults(where(0, {"fault": "start"}, set_at(evidence={})))
    ),
    Case("faults: a cut that lost no frame", "faults?", 2, evidence("link", lost=0)),
    misreported("the cut was never healed", "link", t_healed=None),
    misreported("the killed node was never started", "kill", t_healed=None),
    Case(
        "faults: a row of a step below the first",
        "faults?",
        2,
        in_faults(
            where(-1, {"fault": "pause"}, lambda lines, at: lines.insert(at + 1, with_fields(lines[at], step=-2)))
        ),
    ),
    Case("faults: a time beyond all clocks", "faults?", 2, in_faults(field(-1, t=HUGE, t_done=HUGE))),
    Case("faults: gone", "A9? A10? faults? run?", 2, remove(lambda run: run.faults)),
    Case("faults: empty", "faults?", 2, overwrite(lambda run: run.faults, b"")),
    Case("faults: a directory", "A9? A10? faults? run?", 2, as_directory(lambda run: run.faults)),
    Case("faults: the kill is missing", "faults?", 2, in_faults(where(0, {"fault": "kill"}, delete_at))),
    Case("faults: the start is missing", "faults?", 2, in_faults(where(0, {"fault": "start"}, delete_at))),
    Case("faults: the pause is missing", "faults?", 2, in_faults(where(0, {"fault": "pause"}, delete_at))),
    Case("faults: the resume is missing", "faults?", 2, in_faults(where(0, {"fault": "resume"}, delete_at))),
    Case("faults: the cut is missing", "faults?", 2, in_faults(where(0, {"fault": "link"}, delete_at))),
    Case("faults: the trigger's reset is missing", "faults?", 2, in_faults(where(0, {"fault": "reset"}, delete_at))),
    Case(
        "faults: the nemesis's last is missing",
        "faults?",
        2,
        in_faults(lambda lines: lines.__setitem__(slice(None), [text for text in lines if b'"round":2' not in text])),
    ),
    Case(
        "faults: one of the nemesis's kills is missing, not its start",
        "faults?",
        2,
        in_faults(
            lambda lines: lines.remove(
                next(text for text in lines if b'"round":' in text and b'"fault":"kill"' in text)
            )
        ),
    ),
    Case(
        "faults: the nemesis's are missing",
        "faults?",
        2,
        in_faults(lambda lines: lines.__setitem__(slice(None), [text for text in lines if b'"round":' not in text])),
    ),
    misreported("the kill had no effect", "kill", effect=False),
    misreported("the cut had no effect", "link", effect=False),
    misreported("the kill was of another node", "kill", target=1),
    misreported("the pause was of another node", "pause", target=2),
    misreported("the kill was of a node that is not there", "kill", target=9),
    misreported("the kill was a pause", "kill", fault="pause"),
    misreported("a fault that no step asked for", "kill", step=None),
    misreported("the kill belongs to another step", "kill", step=0),
    misreported("the kill belongs to a step that is not there", "kill", step=99),
    misreported("the kill was asked in other words", "kill", asked="kill: 1"),
    misreported("the kill was a nemesis's", "kill", round=1),
    misreported("an unknown fault", "kill", fault="kil"),
    misreported("a time before the run", "reset", t=5),
    Case("faults: a time after the run", "faults?", 2, in_faults(where(-1, {"fault": "heal"}, set_at(t_done=2**60)))),
    misreported("a row ends before it begins", "pause", t_done=lambda t: t - 10**9),
    Case("faults: two rows changed places", "faults?", 2, in_faults(swap(0))),
    Case("faults: a row stands twice", "faults?", 2, in_faults(where(0, {"fault": "kill"}, double_at))),
    Case("faults: an unreadable row", "A9? A10? faults? run?", 2, in_faults(line(0, lambda text: b"junk\n"))),
    Case("faults: an empty line", "A9? A10? faults? run?", 2, in_faults(insert(1, b"\n"))),
    Case("faults: the last line has no end", "A9? A10? faults? run?", 2, in_faults(line(-1, lambda text: text[:-1]))),
    Case("faults: a key too many", "A9? A10? faults? run?", 2, in_faults(field(0, more=1))),
    Case(
        "faults: a key stands twice",
        "A9? A10? faults? run?",
        2,
        in_faults(line(0, lambda text: text.replace(b'"target":', b'"target":0,"target":'))),
    ),
    Case("faults: invalid UTF-8", "A9? A10? faults? run?", 2, in_faults(line(0, lambda text: b"\xff\xfe" + text))),
    Case("faults: a deeply nested row", "A9? A10? faults? run?", 2, in_faults(line(0, lambda text: NESTED + b"\n"))),
    # ---- events
    Case("events: one node's are gone", "A7? A10? unjudged", 2, remove(lambda run: run.events(2))),
    Case("events: all are gone", "A7? A10? unjudged", 2, of_each_node(lambda run, node: run.events(node))),
    Case("events: one node's are empty", "A7? A10? unjudged", 2, overwrite(lambda run: run.events(2), b"")),
    Case("events: one node's are a directory", "A7? A10? unjudged", 2, as_directory(lambda run: run.events(2))),
    Case(
        "events: one node's are another's",
        "A7? A10? unjudged",
        2,
        lambda run: shutil.copy(run.events(1), run.events(2)),
    ),
    Case("events: an unreadable line", "A7? A10? unjudged", 2, in_events(2, line(5, lambda text: b"junk\n"))),
    Case("events: an empty line", "A7? A10? unjudged", 2, in_events(2, insert(5, b"\n"))),
    Case(
        "events: a torn line in the middle",
        "A7? A10? unjudged",
        2,
        in_events(2, line(5, lambda text: text[:20] + b"\n")),
    ),
    Case(
        "events: a torn line at the end, of a killed node", "", 0, append(lambda run: run.events(3), b'{"t_ns":99,"no')
    ),
    Case(
        "events: a torn line that a start writes on",
        "",
        0,
        in_events(
            3, where(1, {"event": "starting"}, lambda lines, at: line(at, lambda text: b'{"t_ns":99,"no' + text)(lines))
        ),
    ),
    Case(
        "events: a torn line that hides another event",
        "A7? A10? unjudged",
        2,
        in_events(
            2,
            where(
                0,
                {"event": "new_coordinator"},
                lambda lines, at: line(at, lambda text: b'{"t_ns":99,"no' + text)(lines),
            ),
        ),
    ),
    Case("events: invalid UTF-8", "A7? A10? unjudged", 2, in_events(2, line(5, lambda text: b"\xff" + text))),
    Case("events: a deeply nested line", "A7? A10? unjudged", 2, in_events(2, line(5, lambda text: NESTED + b"\n"))),
    Case(
        "events: a key stands twice",
        "A7? A10? unjudged",
        2,
        in_events(
            2,
            where(
                0,
                {"event": "new_coordinator"},
                lambda lines, at: line(at, lambda text: text.replace(b'"term":', b'"term":9,"term":'))(lines),
            ),
        ),
    ),
    Case("events: an event of another node", "A7? A10? unjudged", 2, in_events(2, field(5, node=1))),
    Case("events: clocks run back", "A7? A10? unjudged", 2, in_events(2, field(-1, t_ns=5))),
    Case(
        "events: two changed places", "A7? A10? unjudged", 2, in_events(2, lambda lines: lines.insert(0, lines.pop(8)))
    ),
    Case("events: a time after the run", "A7? A10? unjudged", 2, in_events(2, field(-1, t_ns=2**60))),
    Case("events: two leaders of one term", "A7!", 1, in_events(2, where(0, LEADS, set_at(term=1)))),
    Case(
        "events: a follower of another leader",
        "A7!",
        1,
        in_events(1, where(0, {"event": "new_coordinator", "term": 2}, set_at(leader=1))),
    ),
    Case("events: a term falls", "A7!", 1, in_events(2, where(-1, {"event": "new_coordinator"}, set_at(term=0)))),
    Case(
        "events: the term falls over a restart", "A7!", 1, in_events(3, where(1, {"event": "starting"}, set_at(term=0)))
    ),
    Case(
        "events: nobody became leader of the second term",
        "A7! missed",
        1,
        both(*(in_events(node, no_leader_of_term_2) for node in NODES)),
    ),
    Case(
        "events: all of the second term are missing",
        "A7? A10? unjudged",
        2,
        both(*(in_events(node, delete_all(term=2)) for node in NODES)),
    ),
    Case("events: the second half is missing", "A7? A10? unjudged", 2, in_events(2, keep(slice(0, 20)))),
    Case("events: the first half is missing", "A7? A10? unjudged", 2, in_events(2, keep(slice(20, None)))),
    Case("events: the clean end is missing", "A7? A10? unjudged", 2, in_events(2, delete(-1))),
    Case(
        "events: a start is missing", "A7? A10? unjudged", 2, in_events(3, where(1, {"event": "starting"}, delete_at))
    ),
    Case(
        "events: a start too many",
        "A7? A10? unjudged",
        2,
        in_events(3, where(1, {"event": "starting"}, double_at)),
    ),
    Case("events: the leader does not say that it leads", "A7? missed", 3, in_events(2, where(0, LEADS, delete_at))),
    Case(
        "events: of another run",
        "A7? A10? unjudged",
        2,
        in_events(2, each_line(lambda text: with_fields(text, t_ns=lambda t: t - 10**12))),
    ),
    Case("events: in a file that is full", "A7? A10? unjudged", 2, append(lambda run: part(run.events(2), 1), b"")),
    Case("events: a deeply nested field", "A7? A10? unjudged", 2, in_events(2, insert(5, NESTED_EVENT))),
    Case("events: a time that is no number", "A7? A10? unjudged", 2, in_events(2, field(-1, t_ns="late"))),
    Case(
        "events: the leader's log ended elsewhere",
        "A7!",
        1,
        in_events(2, where(0, LEADS, set_at(last_seq=lambda n: n + 1))),
    ),
    Case(
        "events: a node reports a failure",
        "A10!",
        1,
        in_events(
            2, where(-1, {}, lambda lines, at: lines.append(with_fields(lines[at], event="failed", reason="disk")))
        ),
    ),
    Case(
        "events: a node refuses another's identity",
        "A10!",
        1,
        in_events(
            2,
            where(
                -1,
                {},
                lambda lines, at: lines.append(with_fields(lines[at], event="unknown_member_refused", reason="x")),
            ),
        ),
    ),
    Case("events: an unknown event", "A7? A10? unjudged", 2, in_events(2, field(-1, event="exploded"))),
    # ---- meta.json
    Case(
        "meta: STATUS and events name two leaders of a term",
        "A7!",
        1,
        in_meta(led=lambda old: [old[0], {**old[1], "node": 1}]),
    ),
    Case("meta: a leader that no event knows", "A7?", 2, in_meta(led=lambda old: [*old, {**old[1], "term": 77}])),
    Case("meta: healed at no time", UNUSABLE_HISTORY, 2, in_meta(t_healed=0)),
    Case("meta: a time beyond all clocks", UNUSABLE_FAULTS, 2, in_meta(t_end=HUGE)),
    Case("meta: begun in the year 1", UNUSABLE_FAULTS, 2, in_meta(started_utc="0001-01-01T00:00:00")),
    Case(
        "meta: more memory than there is",
        UNUSABLE_FAULTS,
        2,
        in_meta(nodes=lambda old: {**old, "1": {**old["1"], "rss_peak_bytes": HUGE}}),
    ),
    Case("meta: the load gave up a text", UNUSABLE_HISTORY, 2, in_meta(load=lambda old: {**old, "rejected": "x"})),
    Case(
        "meta: a disk fault explains a failed assertion",
        "A10! faults?",
        1,
        in_meta(nodes=lambda old: exits(old, "2", -1, because="full", code=70)),
    ),
    Case("meta: live, without what the nodes wrote to standard error", "A10?", 2, in_meta(kind="live")),
    Case("meta: gone", "", 64, remove(lambda run: run.meta)),
    Case("meta: empty", "A9? A10? faults? run?", 2, overwrite(lambda run: run.meta, b"")),
    Case("meta: unreadable", "A9? A10? faults? run?", 2, overwrite(lambda run: run.meta, b"junk")),
    Case("meta: invalid UTF-8", "A9? A10? faults? run?", 2, overwrite(lambda run: run.meta, b'{"scenario":"\xff"}')),
    Case("meta: deeply nested", "A9? A10? faults? run?", 2, overwrite(lambda run: run.meta, NESTED)),
    Case("meta: a directory", "", 64, as_directory(lambda run: run.meta)),
    Case(
        "meta: a key stands twice",
        "A9? A10? faults? run?",
        2,
        lambda run: run.meta.write_bytes(run.meta.read_bytes().replace(b'"seed":', b'"seed": 1, "seed":', 1)),
    ),
    Case("meta: a problem", "run?", 2, in_meta(problem="OSError: no space left on device")),
    Case("meta: another scenario", "run?", 2, in_meta(scenario="other")),
    Case("meta: another seed", "run?", 2, in_meta(seed=8)),
    Case("meta: a wider bound", "run?", 2, in_meta(recovery_bound_s=500.0)),
    Case("meta: a wider convergence bound", "run?", 2, in_meta(convergence=lambda old: {**old, "bound_s": 900.0})),
    Case("meta: no convergence", "A9?", 2, in_meta(convergence=None)),
    Case(
        "meta: not converged",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_meta(convergence=lambda old: {**old, "reached": False}),
    ),
    Case("meta: converged later than allowed", "run?", 2, in_meta(convergence=lambda old: {**old, "took_s": 99.0})),
    Case(
        "meta: a node delivered more than its log has",
        "A2! A8! run?",
        1,
        in_meta(convergence=lambda old: {**old, "delivered": {**old["delivered"], "2": 9999}}),
    ),
    Case(
        "meta: a node is missing in the convergence",
        "run?",
        2,
        in_meta(convergence=lambda old: {**old, "delivered": {"1": 1, "2": 1}}),
    ),
    Case("meta: the nodes showed a lower term", "A7!", 1, in_meta(convergence=lambda old: {**old, "term": 1})),
    Case(
        "meta: two nodes said that they lead a term", "A7!", 1, in_meta(led=lambda old: [*old, {**old[0], "node": 1}])
    ),
    Case(
        "meta: it ends before it begins",
        "A3? A4? A5? A6? A7? A8? A9? A10? run? unjudged",
        2,
        in_meta(t_end=lambda t: 5),
    ),
    Case("meta: it began before itself", "run?", 2, in_meta(t_start=0)),
    Case(
        "meta: a node is missing",
        "run?",
        2,
        in_meta(nodes=lambda old: {node: use for node, use in old.items() if node != "2"}),
    ),
    Case("meta: no node", "A10? run?", 2, in_meta(nodes={})),
    Case(
        "meta: a node too many",
        "A1? A7? A10? faults? run? unjudged",
        2,
        in_meta(nodes=lambda old: {**old, "4": old["1"]}),
    ),
    Case("meta: a node crashed", "A10!", 1, in_meta(nodes=lambda old: exits(old, "2", -1, expected=False, code=1))),
    Case(
        "meta: a node ended with an error when asked", "A10!", 1, in_meta(nodes=lambda old: exits(old, "2", -1, code=1))
    ),
    Case(
        "meta: a crash passes for a kill",
        "faults?",
        2,
        in_meta(nodes=lambda old: exits(old, "1", 0, t=lambda t: t - 1_500_000_000)),
    ),
    Case("meta: an end is missing", "faults? run?", 2, in_meta(nodes=lambda old: exits(old, "3", 0))),
    Case(
        "meta: an end by a disk that nobody spoilt",
        "faults?",
        2,
        in_meta(nodes=lambda old: exits(old, "1", -1, because="full", code=4)),
    ),
    Case("meta: a start too many", "run?", 2, in_meta(nodes=lambda old: {**old, "1": {**old["1"], "starts": 9}})),
    Case(
        "meta: a node that grew and grew",
        "A10!",
        1,
        in_meta(nodes=lambda old: {**old, "1": {**old["1"], "rss_peak_bytes": 2**31}}),
    ),
    Case("meta: a missed step passes for met", "run?", 2, in_meta(expectations=lambda old: old[:-1])),
    Case("meta: no step has a finding", "run?", 2, in_meta(expectations=[])),
    Case(
        "meta: a step was missed", "missed", 3, in_meta(expectations=lambda old: [{**old[0], "met": False}, *old[1:]])
    ),
    Case(
        "meta: a finding of another step",
        "run?",
        2,
        in_meta(expectations=lambda old: [{**old[0], "text": "leader: 1"}, *old[1:]]),
    ),
    Case(
        "meta: a finding of a step that is not there",
        "run?",
        2,
        in_meta(expectations=lambda old: [*old, {**old[-1], "step": 77}]),
    ),
    Case(
        "meta: the load sent more",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_meta(load=lambda old: {**old, "sent": 9999}),
    ),
    Case(
        "meta: the load gave up some",
        "A3? A4? A5? A6? A8? A9? run? unjudged",
        2,
        in_meta(load=lambda old: {**old, "unknown": 3}),
    ),
    Case("meta: an online check failed", "watch!", 1, in_meta(watched="A4: lost")),
    Case("meta: begun on another day", "A2! A8?", 1, in_meta(started_utc="2030-01-01T00:00:00+00:00")),
    Case("meta: begun at no time", "A9? A10? faults? run?", 2, in_meta(started_utc="yesterday")),
    Case(
        "meta and history: diverged",
        "A9!",
        1,
        both(
            in_meta(convergence=lambda old: {**old, "reached": False}),
            in_history(where(0, {"phase": "converged"}, set_at(phase="diverged"))),
        ),
    ),
    # ---- scenario.yml
    Case("scenario: gone", "", 64, remove(lambda run: run.scenario)),
    Case("scenario: empty", "run? unjudged", 2, overwrite(lambda run: run.scenario, b"")),
    Case("scenario: unreadable", "run? unjudged", 2, overwrite(lambda run: run.scenario, b"steps: [")),
    Case("scenario: invalid UTF-8", "run? unjudged", 2, overwrite(lambda run: run.scenario, b"name: \xff\n")),
    Case("scenario: deeply nested", "run? unjudged", 2, overwrite(lambda run: run.scenario, NESTED)),
    Case("scenario: a directory", "", 64, as_directory(lambda run: run.scenario)),
    Case("scenario: another name", "run?", 2, in_scenario("name: honest", "name: other")),
    Case("scenario: another seed", "run?", 2, in_scenario("seed: 7", "seed: 8")),
    Case("scenario: five nodes", "A1? A7? A10? run? unjudged", 2, in_scenario("nodes: 3", "nodes: 5")),
    Case("scenario: a step less", "faults? run?", 2, in_scenario("- sleep:\n    for: 300ms\n", "")),
    Case(
        "scenario: a step more",
        "faults? run?",
        2,
        in_scenario("- sleep:\n    for: 300ms\n", "- sleep:\n    for: 300ms\n- kill: 1\n"),
    ),
    Case("scenario: the kill is a stop", "faults? run?", 2, in_scenario("- kill:\n", "- stop:\n")),
    Case("scenario: a wider bound", "run?", 2, in_scenario("recovery: 5s", "recovery: 500s")),
    Case("scenario: one subscriber more", "A8!", 1, in_scenario("subscribers: 2", "subscribers: 3")),
    Case("scenario: one subscriber less", "run?", 2, in_scenario("subscribers: 2", "subscribers: 1")),
    Case("scenario: one client less", "run?", 2, in_scenario("clients: 3", "clients: 2")),
    Case("scenario: longer messages", "run?", 2, in_scenario("size: 40", "size: 41")),
    Case("scenario: expects more", "missed", 3, in_scenario("at_least: 100", "at_least: 100000")),
    Case("scenario: expects another order", "missed", 3, in_scenario("- Grüße\n    - three", "- three\n    - Grüße")),
    # ---- what the judges don't read, or write
    Case("wal: gone", "", 0, of_each_node(lambda run, node: run.node_dir(node) / "wal")),
    Case(
        "node.log: a traceback",
        "A10!",
        1,
        overwrite(lambda run: run.node_log(2), b"Traceback (most recent call last):\n  x\nKeyError: 1\n"),
    ),
    Case("node.log: no text", "", 0, overwrite(lambda run: run.node_log(2), b"\xff\x00\xfe" * 1000)),
    Case(
        "nodes: a directory of a node that is not there",
        "A1? A7? A10? unjudged",
        2,
        lambda run: run.node_dir(7).mkdir(),
    ),
    Case("nodes: gone", "A1? A2? A3? A4? A5? A6? A7? A8? A9? A10? unjudged", 2, remove(lambda run: run.nodes)),
    Case("verdict: says pass", "", 0, overwrite(lambda run: run.verdict, b'{"outcome":"pass"}')),
    Case("verdict: a directory", "", 0, as_directory(lambda run: run.verdict)),
    Case("summary: a directory", "", 0, as_directory(lambda run: run.summary)),
    Case("run: read only", "", 0, read_only),
]


def described(verdict: Verdict) -> str:
    """Every check that did not pass, as the table writes it."""
    marks = {"FAIL": "!", "UNKNOWN": "?"}
    found = [each.name + marks[each.result] for each in verdict.checks if each.result != "PASS" and each.decisive]
    found += ["missed"] * any(each.met is False for each in verdict.expectations)
    found += ["unjudged"] * any(each.met is None for each in verdict.expectations)
    return " ".join(found)


def copied(honest: Path, tmp_path: Path) -> RunDir:
    return RunDir(Path(shutil.copytree(honest, tmp_path / "honest" / "stamp")))


def test_the_honest_run_passes_every_check(honest: Path, tmp_path: Path) -> None:
    result = judge(copied(honest, tmp_path), "honest", None)
    assert result.verdict is not None
    assert (described(result.verdict), result.exit_code) == ("", 0)
    assert all(check.result == "PASS" for check in result.verdict.checks)


def test_there_are_at_least_120_ways_each_with_a_name_of_its_own() -> None:
    assert len({case.name for case in DOCTORED}) == len(DOCTORED) >= 120


@pytest.mark.parametrize("case", DOCTORED, ids=[case.name for case in DOCTORED])
def test_a_doctored_run_is_judged_as_it_has_to_be(honest: Path, tmp_path: Path, case: Case) -> None:
    run = copied(honest, tmp_path)
    case.doctor(run)
    try:
        result = judge(RunDir.open(run.path), "honest", None)
    except RunDirError:
        assert case.exit_code == USAGE
        return
    assert result.verdict is not None, result.problem
    assert (described(result.verdict), result.exit_code) == (case.expected, case.exit_code)
    for check in result.verdict.checks:
        if check.result == "FAIL":
            assert check.first is not None and check.first.place and check.first.message


# ---- a run whose members change ------------------------------------------------------------------

GROWING = """\
name: growing
description: Node 4 is added and node 1 removed.
cluster: {nodes: 4, founders: 3}
load: {clients: 2, rate: 40, size: 40}
steps:
  - load: start
  - add_node: 4
  - wait: {for: acknowledged, count: 20}
  - remove_node: 1
  - wait: {for: acknowledged, count: 20}
  - kill: leader
  - wait: new_leader
  - wait: {for: acknowledged, count: 20}
  - start: killed
  - load: stop
  - wait: idle
"""


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = RunDir(tmp_path_factory.mktemp("growing") / "honest" / "stamp")
    run.path.mkdir(parents=True)
    simulator.run(plan.load("growing.yml", text=GROWING), run, seed=SEED)
    return run.path


def in_lists(wanted: int, /, *, count: int = -1, **fields: Any) -> Doctor:
    """Change the events about the list of this version, on all nodes, or the first `count` of them."""

    def doctor(run: RunDir) -> None:
        left = count
        for path in map(run.events, (1, 2, 3, 4)):
            lines = path.read_bytes().splitlines(keepends=True)
            for at, text in enumerate(lines):
                row = msgspec.json.decode(text)
                if left and row["event"].startswith("members_") and row["version"] == wanted:
                    lines[at] = with_fields(text, **fields)
                    left -= 1
            path.write_bytes(b"".join(lines))
        assert left != count, "nothing was changed"

    return doctor


MEMBERS = [
    Case("members: honest", "", 0, lambda run: None),
    Case("members: one node shows other voters", "A7!", 1, in_lists(2, count=1, voters=[1, 2, 4])),
    Case("members: one node shows another version", "A7!", 1, in_lists(2, count=1, version=7)),
    Case("members: one node has not removed a node", "A7!", 1, in_lists(3, count=1, removed=[])),
    Case("members: a node stops that no list has removed", "A7!", 1, in_lists(3, removed=[])),
    Case("members: a change takes two voters along", "A7!", 1, in_lists(3, voters=[3, 4], removed=[1, 2])),
    Case("members: a change exchanges a voter", "A7!", 1, in_lists(2, voters=[1, 2, 4])),
    Case(
        "members: a later leader has an older list",
        "A7!",
        1,
        in_lists(3, version=1, voters=[1, 2, 3], learners=[4], removed=[]),
    ),
    Case("members: a list is forgotten by all", "A7!", 1, in_lists(3, version=2, voters=[2, 3, 4], removed=[1])),
]


@pytest.mark.parametrize("case", MEMBERS, ids=[case.name for case in MEMBERS])
def test_a_doctored_run_whose_members_change_is_judged_as_it_has_to_be(
    growing: Path, tmp_path: Path, case: Case
) -> None:
    test_a_doctored_run_is_judged_as_it_has_to_be(growing, tmp_path, case)


@pytest.mark.parametrize(
    "file", ["scenario.yml", "meta.json", "history.jsonl", "faults.jsonl", "nodes/node_2/events.jsonl"]
)
def test_a_file_that_is_cut_anywhere_or_has_a_flipped_byte_never_crashes_the_judge(
    honest: Path, tmp_path: Path, file: str
) -> None:
    rng = random.Random(SEED)
    run = copied(honest, tmp_path)
    whole = (run.path / file).read_bytes()
    for _ in range(15):
        at = rng.randrange(len(whole))
        for spoilt in (whole[:at], whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]):
            (run.path / file).write_bytes(spoilt)
            assert judge(run, "honest", None).verdict is not None
