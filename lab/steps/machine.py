"""The interfaces through which a step acts on its run and on machines, the same for real processes and in
virtual time.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from lab.rows import NodeExit
from lab.steps.orders import Counts
from lab.steps.rules import LinkCounts, Pair, Rule
from lab.steps.targets import ClusterView
from lab.words import LinkEnd, Target
from nodeproc.client import Address, ChatClient
from nodeproc.core.messages import Change, MemberList, NodeId, SeqNo, Term
from nodeproc.lines import Status

if TYPE_CHECKING:
    from lab.steps.book import FaultBook
    from lab.steps.damage import Loss, Rot
    from lab.steps.expect import Expectation
    from lab.steps.garbage import Garbage
    from lab.steps.send import Sender
    from lab.steps.step import Fault, Step
    from lab.steps.when import Triggers

Addresses: TypeAlias = dict[NodeId, Address]
Condition: TypeAlias = Callable[[], Awaitable[bool]]


class RunFailed(Exception):
    """The lab itself failed, so the run says nothing about the chat."""


class StepMissed(Exception):
    """A step was not fulfilled in its time; the text says what was found instead."""


class Machine(Protocol):
    """One node's machine: the process on it, its disk and its clock."""

    node: NodeId

    @property
    def starts(self) -> int:
        """The number of processes started so far."""

    @property
    def running(self) -> bool:
        """True if its process runs."""

    @property
    def paused(self) -> bool: ...

    @property
    def exits(self) -> Sequence[NodeExit]: ...

    @property
    def role(self) -> str:
        """leader, follower or candidate in its latest STATUS; down; or unknown if it did not answer."""

    def identity(self) -> dict[str, Any]:
        """Return the fields that identify its process in rows: `{"pid": 4711}`; empty in virtual time."""

    # ---- its process -----------------------------------------------------------------------------

    async def end(self, how: signal.Signals) -> NodeExit | None:
        """Send SIGKILL or SIGTERM and wait until the process is gone. Return None if it survived SIGKILL."""

    def transfer(self) -> None:
        """Send SIGUSR1: the node is to transfer its leadership."""

    async def freeze(self) -> bool:
        """Send SIGSTOP and wait until the process is stopped. Return False if it never was."""

    def wake(self) -> None:
        """Send SIGCONT."""

    async def ready(self) -> float:
        """Wait until the node answers STATUS; return the seconds that this took.

        Raises:
            RunFailed: the process ended, or did not answer in time.
        """

    def state(self) -> str:
        """Return the state of the process as the system reports it: running, sleeping, stopped, …"""

    def says(self) -> str:
        """Return the last line of its log."""

    async def doomed(self, patience_s: float) -> bool:
        """Wait for an exit that an order causes. Return False if it did not come."""

    async def ended(self, patience_s: float) -> bool:
        """Wait for an exit by itself. Return False if it did not come."""

    # ---- its disk and its clock ------------------------------------------------------------------

    def order(self, **changes: Any) -> None:
        """Change some of its disk's Orders."""

    def set_clock(self, drift: float, forward_s: float = 0.0) -> None:
        """Let its clock run fast or slow by this share from now on, and set its wall clock forward once."""

    def counts(self) -> Counts: ...

    def tearable(self) -> bool:
        """Return whether an entry of its WAL waits for its fdatasync."""

    def cut_power(self, torn: bool, *, everything: bool = False) -> Loss:
        """Remove what a power loss may remove from its disk, after its process has ended.

        torn: the WAL must end in the middle of an unsynced entry, if there is one.
        everything: all that is not synced is lost; for other programs only.
        """

    def rot(self, what: str, rng: random.Random, file: str = "") -> Rot | None:
        """Change a byte of its files; return None if there is none to change. what, file: as in Disk."""

    @property
    def rotten(self) -> list[str]:
        """Return the bytes that an `old_*` rot has changed and the node has not repaired yet."""

    def lose(self, what: str) -> tuple[str, str]:
        """Delete a file. Return its name, or "" if there was none, and the path that the node must name, or "" if all
        other files are empty: then the node takes itself for a new one.
        """

    async def copy(self) -> int:
        """Copy the node's data while its process is stopped; return the number of bytes."""

    def restore(self) -> str:
        """Replace the node's data by the latest copy; return what that changed, or ""."""

    def wipe(self) -> int:
        """Replace the disk by an empty one; return the bytes that were on the old one."""


class World(Protocol):
    """The machines of a run and the links between them."""

    @property
    def drops_packets(self) -> bool:
        """True if rules of links drop packets, which TCP sends again, so that they can be lost on links whose frames
        are not known.
        """

    @property
    def machines(self) -> Mapping[NodeId, Machine]: ...

    @property
    def statuses(self) -> dict[NodeId, Status]:
        """The latest STATUS of each node, without nodes that did not answer the latest request."""

    @property
    def addresses(self) -> Addresses:
        """The addresses at which clients reach each node."""

    @property
    def members(self) -> tuple[NodeId, ...]:
        """The voters and learners of member_list, ascending."""

    @property
    def member_list(self) -> MemberList:
        """The newest list of members that is known to be committed; version 0 is that of the founders."""

    async def change_members(self, node: NodeId, change: Change) -> str:
        """Ask this node for a change of the members; return why it does not begin it, or ""."""

    async def launch(self, nodes: Sequence[NodeId], *, rebuild: bool = False) -> dict[NodeId, float]:
        """Start those of these nodes that are down, all at once, and wait until they answer.

        Returns:
            Node -> seconds until it answered. A node that cannot run because of its disk is missing.
        """

    async def together(self, parts: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        """Run actions on several machines in parallel."""

    async def breathe(self) -> None:
        """Let the immediate effects of a fault happen before the next action."""

    async def set_rule(self, pairs: Sequence[Pair], rule: Rule | None) -> dict[Pair, LinkCounts]:
        """Set a rule on links, or remove their rules (None). Return the evidence so far."""

    async def reset(self, pairs: Sequence[Pair]) -> int:
        """Reset the connections of these links once; return their number."""

    async def start_busy(self, processes: int) -> None:
        """Start this many processes that burn CPU."""

    async def end_busy(self) -> list[float]:
        """End all of them; return for each start_busy the CPU seconds that they used."""

    async def send_garbage(self, garbage: Garbage, nodes: Sequence[NodeId], rng: random.Random) -> dict[NodeId, Any]:
        """Open connections that send garbage; return for each node how they ended."""

    def count_events(
        self, nodes: Sequence[NodeId], event: str, where: Mapping[str, str | int | bool]
    ) -> Callable[[], int]:
        """Return a counter of these nodes' events of one kind since the latest fault began."""


class Total(Protocol):
    """Numbers of a load's messages so far."""

    @property
    def acknowledged(self) -> int: ...

    @property
    def pending(self) -> int: ...


class RunningLoad(Protocol):
    """The load of a run."""

    @property
    def finished(self) -> bool: ...

    @property
    def total(self) -> Total: ...


class SendingClient(Protocol):
    """A client of `send` steps."""

    client: int
    chat: ChatClient

    @property
    def outcomes(self) -> Mapping[str, int]: ...


class SendingClients(Protocol):
    """All clients of `send` steps."""

    @property
    def waiting(self) -> int:
        """The number of their messages without an outcome."""

    async def send(self, sender: Sender, addresses: Addresses) -> SendingClient: ...


class Run(Protocol):
    """The run of which a step is a part; implemented by lab.course.runner."""

    term_before: Term
    """The highest term that any node showed before the latest fault began."""
    delivered: dict[NodeId, SeqNo]
    """The last seq_no that each node had delivered in its latest STATUS."""
    seed: int
    is_foreign: bool
    """True if `cluster.command` starts the nodes."""
    rng: random.Random
    """Random generator for the choice of targets."""
    draws: random.Random
    """Random generator for everything else that a fault leaves open."""
    view: ClusterView
    """The nodes when the latest fault began, from which its targets are chosen."""
    book: FaultBook
    triggers: Triggers

    @property
    def world(self) -> World: ...

    @property
    def named(self) -> SendingClients: ...

    @property
    def load(self) -> RunningLoad | None: ...

    def now(self) -> float:
        """Return the time in monotonic seconds."""

    def now_ns(self) -> int: ...

    async def look(self) -> ClusterView:
        """Poll the nodes; update `delivered`."""

    async def view_now(self) -> ClusterView:
        """Poll the nodes without updating `delivered`."""

    def others_allowed(self) -> AbstractAsyncContextManager[None]:
        """Return a context in which other faults are injected while the present one waits for something."""

    def choose(self, target: Target) -> list[Machine]:
        """Return the machines that a target means.

        Raises:
            NoSuchTarget: a part of the target matches no node.
        """

    def pairs(self, source: LinkEnd, to: LinkEnd) -> tuple[Pair, ...]:
        """Return the directed links between these ends."""

    def note(self, index: int, what: Step | Expectation, *, met: bool, found: str) -> None:
        """Record the result of a step, or of one of its expectations."""

    def tell(self, text: str) -> None:
        """Print a line of progress."""

    def check(self) -> None:
        """Report the progress of the run from time to time.

        Raises:
            Exception: the error that ended a part of the lab.
        """

    async def show(self) -> str:
        """Return the state of the run in a line, for a step that was missed."""

    async def start_load(self) -> None: ...

    async def stop_load(self) -> None:
        """Stop sending, and wait for the messages under way."""

    async def hold(self, most_s: float) -> None:
        """Wait until the presenter lets the run continue, at most this long; return at once if there is none."""

    async def do_fault(self, fault: Fault, index: int, number: int = 0, *, of: Fault | None = None) -> None:
        """Inject a fault when no other is being injected.

        Args:
            number: of a nemesis's faults, from 1.
            of: the fault that this one heals; its words stand in the rows.
        """
