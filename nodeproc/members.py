"""Show and change the members of a running cluster: python -m nodeproc members list|add|remove|replace|transfer

A change is asked of the leader, whose list shows when it is done. If the leader changes, or if it can't begin at the
moment, it is asked again until the timeout.

Exit codes: 0 done; 1 refused, or not done within the timeout: standard error says which; 2 wrong flags.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from msgspec import UNSET, structs

from nodeproc import flags
from nodeproc.client import Address, administer, status
from nodeproc.core.changes import OLDER
from nodeproc.core.messages import NOBODY, MemberList, NodeId
from nodeproc.core.recovered import MAX_MEMBERS
from nodeproc.errors import Unreachable
from nodeproc.importing import usage_name
from nodeproc.lines import AddRequest, AdminRequest, ChangeIs, MembersStatus, RemoveRequest, Status, TransferRequest

DONE, NOT_DONE = 0, 1
ASK_EVERY_S: Final = 0.2
DEFAULT_ADDRESS: Final = ("127.0.0.1", 5001)


def main(arguments: Sequence[str]) -> int:
    """Carry out a command line; return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not 0 < options.timeout < 1e6:
        parser.error(f"--timeout {options.timeout:g}: allowed above 0, below 1e6")
    operator = Operator(
        options.at or [DEFAULT_ADDRESS],
        flags.token_of(options, parser),
        flags.token_of(options, parser, "admin", flags.ADMIN_VARIABLE),
        flags.tls_of(options, parser),
        options.timeout,
    )
    try:
        asyncio.run(_carry_out(options, operator))
        return DONE
    except (Refused, Unreachable) as error:
        print(f"members: {error}", file=sys.stderr)
        return NOT_DONE
    except KeyboardInterrupt:
        print("members: interrupted; what has begun goes on", file=sys.stderr)
        return NOT_DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=usage_name("nodeproc", "node") + " members",
        description="Show or change the members of a running cluster, or transfer the leadership.",
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--at",
        type=flags.address,
        action="append",
        metavar="HOST:PORT",
        help="a member; repeat it to name several (default 127.0.0.1:5001). The others are learned from it",
    )
    common.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="maximum time in seconds (%(default)s)"
    )
    flags.add_token_flag(common)
    flags.add_token_flag(common, "admin", flags.ADMIN_VARIABLE)
    flags.add_tls_flags(common)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="command")
    commands.add_parser("list", parents=[common], help="show the members")
    add = commands.add_parser("add", parents=[common], help="add a node; it gets a vote once it has caught up")
    add.add_argument("node", type=flags.node_id, metavar="ID", help="an id that this cluster has never used")
    add.add_argument("address", type=flags.address, metavar="HOST:PORT", help="where the members reach it")
    remove = commands.add_parser("remove", parents=[common], help="remove a member, whether it runs or not")
    remove.add_argument("node", type=flags.node_id, metavar="ID", help="the member")
    replace = commands.add_parser("replace", parents=[common], help="add a node, then remove a member; resumable")
    replace.add_argument("node", type=flags.node_id, metavar="OLD", help="the member, whether it runs or not")
    replace.add_argument(
        "newcomer",
        type=_newcomer,
        metavar="NEW=HOST:PORT",
        help="id of the new node, never used before, and its address",
    )
    transfer = commands.add_parser("transfer", parents=[common], help="transfer the leadership to a follower")
    to = "the follower; left out: the leader chooses"
    transfer.add_argument("node", type=flags.node_id, metavar="ID", nargs="?", default=NOBODY, help=to)
    return parser


async def _carry_out(options: argparse.Namespace, operator: Operator) -> None:
    match options.command:
        case "list":
            print(listing(await operator.statuses()))
        case "add":
            host, port = options.address
            await operator.change(AddRequest(node=options.node, host=host, port=port))
        case "remove":
            await operator.change(RemoveRequest(node=options.node))
        case "replace":
            await operator.replace(options.node, options.newcomer)
        case "transfer":
            await operator.transfer(options.node)


def _newcomer(text: str) -> AddRequest:
    """Parse NEW=HOST:PORT, as the type of an argument. Raises: argparse.ArgumentTypeError."""
    node, _, address = text.partition("=")
    host, port = flags.address(address)
    return AddRequest(node=flags.node_id(node), host=host, port=port)


def removes_first(members: MembersStatus | MemberList, old: NodeId) -> bool:
    """Return whether a replacement removes the old node before it adds the new one.

    Otherwise the new node is added first: until it has a vote, the old one, and all its data, can still return. That is
    impossible while another node is being added, and in a list that is full. Rule: G2.
    """
    return old in members.learners or len(members.voters) + len(members.learners) >= MAX_MEMBERS


class Refused(Exception):
    """The cluster refuses the request, or has not carried it out in time."""


@dataclass
class Operator:
    """Asks the cluster, and learns its members' addresses from the answers.

    Args:
        timeout_s: for everything together.
    """

    addresses: list[Address]
    client_token: str = ""
    admin_token: str = ""
    tls: ssl.SSLContext | None = None
    timeout_s: float = 30.0
    _until: float = field(init=False)
    _last: str = ""
    """The latest line that was printed, or the latest reason to wait."""

    def __post_init__(self) -> None:
        self._until = time.monotonic() + self.timeout_s

    async def statuses(self) -> list[tuple[Address, Status]]:
        """Return the answers of all known members, also of those that were just learned.

        Raises:
            Unreachable: none of them answers.
        """
        found: dict[Address, Status] = {}
        failed: dict[Address, str] = {}
        while missing := [each for each in self.addresses if each not in found and each not in failed]:
            asked = (status(*each, client_token=self.client_token, tls=self.tls) for each in missing)
            for each, answer in zip(missing, await asyncio.gather(*asked, return_exceptions=True), strict=True):
                if isinstance(answer, Unreachable):
                    failed[each] = str(answer)
                elif isinstance(answer, BaseException):
                    raise answer
                else:
                    found[each] = answer
                    self._learn(answer)
        if not found:
            raise Unreachable("; ".join(failed.values()))
        return list(found.items())

    def _learn(self, answer: Status) -> None:
        listed = answer.members.addresses if answer.members is not None else ()
        new = ((member.host, member.port) for member in listed if member.node != answer.node)
        self.addresses += [each for each in new if each not in self.addresses]

    async def leader(self) -> tuple[Address, Status] | None:
        """Return the leader of the highest term, and where it answers; None if none does at the moment.

        Raises:
            Refused: the leader runs an older version.
        """
        try:
            leading = [each for each in await self.statuses() if each[1].role == "leader"]
        except Unreachable as error:
            self._show(str(error))
            return None
        leader = max(leading, key=lambda each: each[1].term, default=None)
        if leader is not None and leader[1].members is None:
            raise Refused(f"refused: node_{leader[1].node}, the leader, {OLDER}")
        return leader

    async def change(self, request: AddRequest | RemoveRequest) -> None:
        """Ask the leader for a change, again and again until it is done.

        Raises:
            Refused: the reason.
        """
        while True:
            leader = await self.leader()
            if leader is not None:
                answer = await self._ask(leader[0], request)
                if answer is not None and answer.state == "done":
                    _, seen = await self.leader() or leader
                    self._show(f"done: {in_words(seen)}")
                    return
                self._show_stage(request, leader[1], answer)
            await self._pause()

    async def replace(self, old: NodeId, new: AddRequest) -> None:
        """Add a node and remove a member, in the order of removes_first(). What is done already is not done again.

        Raises:
            Refused: the reason. If the two can't be a member and its replacement, nothing is changed.
        """
        while (leader := await self.leader()) is None:
            await self._pause()
        members = leader[1].members
        assert members is not None, leader
        present = sorted(members.voters + members.learners)
        if old not in present and old not in members.removed:
            raise Refused(f"refused: found node {old}, allowed {', '.join(map(str, present))}")
        if new.node in members.removed or new.node == old:
            raise Refused(
                f"refused: no id is used again; give the node that replaces node_{old} an id other than {new.node}"
            )
        steps: list[AddRequest | RemoveRequest] = [new, RemoveRequest(node=old)]
        for request in reversed(steps) if removes_first(members, old) else steps:
            await self.change(request)

    async def transfer(self, to: NodeId) -> None:
        """Ask the leader for a transfer until another node leads, or this one.

        Args:
            to: the node that is to lead; NOBODY: any other than the present leader.

        Raises:
            Refused: the reason.
        """
        first: Status | None = None
        asked_term = 0
        while True:
            leader = await self.leader()
            if leader is not None:
                place, seen = leader
                first = first or seen
                if seen.node == to or (to == NOBODY and seen.node != first.node):
                    self._show(f"done: node_{seen.node} leads term {seen.term}")
                    return
                # A transfer that fails ends within election_timeout, and then the leader is asked again.
                answer = await self._ask(place, TransferRequest(to=to))
                if answer is not None and answer.state == "begun" and asked_term != seen.term:
                    asked_term = seen.term
                    self._show(f"node_{seen.node} transfers its leadership of term {seen.term}")
            await self._pause()

    async def _ask(self, leader: Address, request: AdminRequest) -> ChangeIs | None:
        """Return the leader's answer; None if there is none, or if it is to be asked again.

        Raises:
            Refused: for a reason that does not pass by itself.
        """
        tokens = {"client_token": self.client_token or UNSET, "admin_token": self.admin_token or UNSET}
        try:
            answer = await administer(leader, structs.replace(request, **tokens), tls=self.tls)
        except Unreachable as error:
            if "refused:" in str(error):
                raise
            self._show(str(error))
            return None
        if answer.state != "refused":
            return answer
        if not answer.retry:
            raise Refused(f"refused: {answer.reason}")
        self._last = answer.reason
        return None

    def _show_stage(self, request: AddRequest | RemoveRequest, seen: Status, answer: ChangeIs | None) -> None:
        """Report how far a change is."""
        members = seen.members
        if answer is None or members is None:
            return
        if isinstance(request, AddRequest) and request.node in members.learners:
            self._show(f"node_{request.node} is a learner: it gets a vote once it runs and has caught up")
        elif request.node == seen.node:
            self._show(f"node_{seen.node} leads, and transfers its leadership before it is removed")

    async def _pause(self) -> None:
        """Wait a little. Raises: Refused: the time is over."""
        if time.monotonic() + ASK_EVERY_S > self._until:
            last = self._last or "no leader answers"
            raise Refused(f"not done within {self.timeout_s:g} s: {last}; what has begun goes on, ask again")
        await asyncio.sleep(ASK_EVERY_S)

    def _show(self, text: str) -> None:
        """Print a line, once."""
        if text != self._last:
            self._last = text
            print(text, flush=True)


def listing(answers: Sequence[tuple[Address, Status]]) -> str:
    """Return a table of the members, as the leader of the highest term knows them, else the newest list of a node.

    Raises:
        Unreachable: all nodes that answer run an older version.
    """

    def newness(answer: tuple[Address, Status]) -> tuple[bool, bool, int, int]:
        _, seen = answer
        return seen.members is not None, seen.role == "leader", seen.term, seen.members.version if seen.members else 0

    (place, seen), by_node = max(answers, key=newness), {each.node: (place, each) for place, each in answers}
    members = seen.members
    if members is None:
        raise Unreachable(f"{place[0]}:{place[1]}: {OLDER}")
    addresses = {each.node: (each.host, each.port) for each in members.addresses}
    lines = []
    for node in sorted(members.voters + members.learners):
        where, answer = by_node.get(node, (addresses.get(node), None))
        state = "does not answer" if answer is None else f"{answer.role}, term {answer.term}"
        kind = "voter" if node in members.voters else "learner"
        lines.append(f"node_{node:<4} {'?' if where is None else ':'.join(map(str, where)):<21} {kind:<8} {state}")
    if seen.role != "leader":
        lines.append(f"no leader reports its list; this is what node_{seen.node} knows")
    return "\n".join([*lines, in_words(seen)])


def in_words(seen: Status) -> str:
    """Return the list of members that a node has reported, in one line."""
    members = seen.members
    assert members is not None, seen

    def ids(nodes: Sequence[NodeId]) -> str:
        return ", ".join(map(str, nodes))

    text = f"list {members.version}: voters {ids(members.voters)}"
    text += f"; learner {ids(members.learners)}" if members.learners else ""
    return text + (f"; removed {ids(members.removed)}" if members.removed else "")
