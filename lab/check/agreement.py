"""A1: of any two nodes' message logs one is a prefix of the other, byte for byte.

Nothing is parsed: the longest file is compared with each other file, chunk by chunk. If two differ, the first line that
differs is shown for all nodes, beginning with the node that is alone with its version.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import IO, ClassVar, NamedTuple

from lab.check.history import CHUNK_BYTES, NOT_A_MESSAGE, NodeFile, decode_log_lines
from lab.check.judge import Case, Judge
from lab.check.verdict import Check, Findings, quote
from lab.words import counted
from nodeproc.core.messages import Batch, NodeId, Record, SeqNo


class Agreement(Judge):
    """Compares the message logs at the end of a run; in a simulation also each batch when a node delivers it."""

    invariants: ClassVar = {"A1": "agreement"}

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self._found = self.found()
        self._at = dict.fromkeys(case.nodes, 0)
        """Node -> batches of case.order that it delivered."""
        self._ends: list[SeqNo] = [0]
        """Each seq_no at which a log of whole batches can end; 0 for the empty log."""

    def on_delivered(self, node: NodeId, records: Sequence[Record]) -> None:
        order = self.case.order
        for record in records:
            if not isinstance(record.header, Batch):
                continue
            at = self._at[node]
            self._at[node] = at + 1
            if at == len(order):
                order.append(record)
                self._ends.append(record.header.last)
            elif order[at].raw != record.raw:
                first, last = record.header.first, record.header.last
                self._differs(f"node {node} delivered another batch {first}..{last}")

    def on_started(self, node: NodeId, delivered_seq: SeqNo) -> None:
        self._at[node] = at = bisect_left(self._ends, delivered_seq)
        if delivered_seq not in self._ends[at : at + 1]:
            message = f"node {node} came back with {delivered_seq} delivered; no batch ends there"
            self._differs(message)

    def _differs(self, message: str) -> None:
        self._found.add(self.case.log.name, message)

    def check(self) -> Check:
        if self.case.agreement is not None:
            return self.case.agreement
        delivered, meta = b"".join(record.body for record in self.case.order), self.case.meta
        members = meta.convergence.delivered if meta is not None and meta.convergence is not None else {}
        for file in self.case.files:  # A node that is a member no more has the beginning.
            if file.data != (delivered if file.node in members else delivered[: file.size]):
                self._found.add(file.name, f"the message log of node {file.node} differs from the delivered messages")
        return self._found.passed(f"{counted(len(self.case.files), 'log')}, equal")


class Compared(NamedTuple):
    """The result of comparing the files."""

    check: Check
    reference: NodeFile | None
    """The log that the other invariants are judged on: the longest of those that most nodes agree with."""
    deviating: tuple[NodeFile, ...]
    """Files that are not a prefix of the reference."""


def compare(findings: Findings, files: Sequence[NodeFile], missing: Sequence[NodeId]) -> Compared:
    """Judge A1 on the files.

    Args:
        files: the logs that exist, by ascending node.
        missing: nodes of the cluster that have none.
    """
    reference: NodeFile | None = max(files, key=lambda file: file.size, default=None)
    if reference is None:
        return Compared(findings.unknown("no message log of any node"), reference, ())
    if reference.size == 0:
        return Compared(findings.unknown("every node's log is empty, so nothing is compared (see A4)"), reference, ())
    if shared := _shared_file(files):
        return Compared(findings.unknown(shared), reference, ())
    lines = {file: differing_line(file, reference) for file in files if file is not reference}
    first = min((line for line in lines.values() if line), default=0)
    if first:
        odd = _report(findings, files, first)
        reference = _most_agreed(files, odd)
    deviating = (
        tuple(file for file in files if file is not reference and differing_line(file, reference)) if first else ()
    )
    if missing:
        absent = ", ".join(f"node {node}" for node in missing)
        return Compared(findings.unknown(f"no message log of {absent}"), reference, deviating)
    if len(files) < 2:
        detail = "one node only: nothing to compare"
        return Compared(findings.unknown(detail, decisive=False), reference, deviating)
    sizes = sorted({file.size for file in files})
    if sizes[0] < sizes[-1] and not first and _has_other_lines_after(findings, reference, sizes[0]):
        deviating, reference = (reference,), _most_agreed(files, [reference])
    equal = "equal" if len(sizes) == 1 else f"one a prefix of the other, {sizes[0]} to {sizes[-1]} bytes"
    return Compared(findings.passed(f"{counted(len(files), 'log')}, {equal}"), reference, deviating)


def _shared_file(files: Sequence[NodeFile]) -> str:
    """Return which two nodes have the same file as their log, so that comparing is meaningless, or ""."""
    seen: dict[tuple[int, int], NodeFile] = {}
    for file in files:
        if file.data is not None:
            continue
        status = file.path.stat()
        other = seen.setdefault((status.st_dev, status.st_ino), file)
        if other is not file:
            return f"{file.name} and {other.name} are one file: there is nothing to compare"
    return ""


def _has_other_lines_after(findings: Findings, reference: NodeFile, size: int) -> bool:
    """Whether the longest log has a line that is not a message after the end of the shortest one."""
    with reference.open() as file:
        number = 1 + sum(block.count(b"\n") for block in _blocks(file, size))
        file.seek(size)
        while line := file.readline():
            if line.endswith(b"\n") and decode_log_lines(line, 1)[0] is NOT_A_MESSAGE:
                place = f"{reference.name}:{number}"
                message = f"line {number} of node {reference.node} is no message, and other nodes end before it"
                findings.add(place, message, quote(place, line))
                return True
            number += 1
    return False


def differing_line(file: NodeFile, other: NodeFile) -> int:
    """Number of the first line in which two files differ; 0 if one is a prefix of the other."""
    at = 0
    with file.open() as a, other.open() as b:
        while True:
            left, right = a.read(CHUNK_BYTES), b.read(CHUNK_BYTES)
            if left != right:
                shared = _common_prefix(left, right)
                if shared == min(len(left), len(right)):
                    return 0
                return 1 + _newlines_before(file, at + shared)
            if not left:
                return 0
            at += len(left)


def _newlines_before(file: NodeFile, offset: int) -> int:
    with file.open() as opened:
        return sum(block.count(b"\n") for block in _blocks(opened, offset))


def _blocks(file: IO[bytes], size: int) -> Iterator[bytes]:
    """The first `size` bytes, in pieces."""
    while size and (block := file.read(min(CHUNK_BYTES, size))):
        size -= len(block)
        yield block


def _common_prefix(left: bytes, right: bytes) -> int:
    """Length of the longest common prefix, by halving."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[:middle] == right[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _report(findings: Findings, files: Sequence[NodeFile], number: int) -> list[NodeFile]:
    """Report the files that differ from most others at this line, and return them."""
    found = {file: line for file in files if (line := file.line(number)) is not None}
    usual, votes = Counter(found.values()).most_common(1)[0]
    odd = [file for file, line in found.items() if line != usual]
    if votes == 1:
        # No two logs agree. The shortest, which is never the reference, is reported.
        odd = [min(found, key=lambda file: file.size)]
    shown = [*odd, *(file for file in found if file not in odd)]
    quotes = [quote(f"{file.name}:{number}", found[file]) for file in shown]
    others = ", ".join(f"node {file.node}" for file in shown[len(odd) :])
    for file in odd:
        findings.add(
            f"{file.name}:{number}", f"line {number} of node {file.node} differs from that of {others}", *quotes
        )
    return odd


def _most_agreed(files: Sequence[NodeFile], odd: list[NodeFile]) -> NodeFile:
    return max((file for file in files if file not in odd), key=lambda file: file.size)
