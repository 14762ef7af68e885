"""A supervisor, as seen by the lab: every method is one order and waits for its answer."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from lab.live.children import EXIT_PATIENCE_S, child_environment, last_line
from lab.live.supervise import orders
from lab.live.supervise.contents import Tail
from lab.live.supervise.disk import Lost
from lab.live.supervise.links import Address
from lab.rows import Supervision
from lab.steps.machine import RunFailed
from lab.steps.orders import Counts, Orders

ANSWER_PATIENCE_S = 120.0
"""Maximum time to an answer. Most take less than a millisecond; a power loss reads all files of the node."""

_Answer = TypeVar("_Answer", bound=orders.Answer)


class Refused(RunFailed):
    """This system does not allow a supervisor, or a program could not be started; the text says why."""


class Supervisor:
    """The supervisor of one node. See lab.live.supervise.

    Not for several threads at once. Every method raises RunFailed if the supervisor has ended.
    """

    def __init__(self, channel: socket.socket, process: subprocess.Popen[bytes], log: Path) -> None:
        self._channel, self._process, self._log = channel, process, log
        self._channel.settimeout(ANSWER_PATIENCE_S)
        self._answers = channel.makefile("rb")

    @classmethod
    def open(
        cls,
        data_dir: Path,
        log: Path,
        *,
        exempt: Sequence[str] = (),
        writeback_s: float = 0.0,
        inherited_fds: Sequence[int] = (),
    ) -> Supervisor:
        """Start a supervisor.

        Args:
            data_dir: must exist. Only files below it are supervised. Removed files are kept for a while beside it, in
                DATA_DIR.kept.
            exempt: beginnings of names below data_dir that are left alone, such as `events.jsonl` or `logs/`: a power
                loss takes nothing of them.
            log: receives the supervisor's own errors.
            writeback_s: what was not synced for this long is durable, as if the kernel had written it; 0: never.
            inherited_fds: file descriptors that the supervisor and its programs inherit.

        Raises:
            Refused: this system does not allow a supervisor.
        """
        if sys.platform != "linux":
            raise Refused(f"a supervisor needs Linux, found {sys.platform}")
        ours, theirs = socket.socketpair()
        with log.open("ab") as errors, theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "lab.live.supervise.supervisor"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=child_environment(),
                pass_fds=tuple(inherited_fds),
                process_group=0,
            )
        supervisor = cls(ours, process, log)
        data_dir = data_dir.resolve()
        try:
            kept = data_dir.with_name(data_dir.name + ".kept")
            supervisor._ask(orders.Open(str(data_dir), str(kept), tuple(exempt), writeback_s), orders.Done)
        except BaseException:
            supervisor.close()
            raise
        return supervisor

    @property
    def pid(self) -> int:
        """The supervisor's own process id."""
        return self._process.pid

    def close(self) -> None:
        """End the supervisor; it kills all that runs under it. Does nothing if it has ended."""
        with contextlib.suppress(OSError):
            self._answers.close()
            self._channel.close()
        try:
            self._process.wait(EXIT_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    # ---- programs ----------------------------------------------------------------------------------

    def start(
        self,
        command: Sequence[str],
        *,
        directory: Path,
        output: Path,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Start a program in a process group of its own; return its process id, which is also that of its group.

        Signals may be sent to it until wait() has returned.

        Args:
            output: standard output and standard error are appended to it.
            environment: None: that of this process.

        Raises:
            Refused: it could not be started. A command that does not exist ends with code 127 instead.
        """
        given = dict(os.environ if environment is None else environment)
        order = orders.Start(tuple(command), str(directory.resolve()), str(output.resolve()), given)
        return self._ask(order, orders.Started).pid

    def wait(self, pid: int) -> orders.Ended:
        """Wait until a program has ended, at most ANSWER_PATIENCE_S. A pidfd says when it has."""
        return self._ask(orders.Wait(pid), orders.Ended)

    # ---- links -------------------------------------------------------------------------------------

    def redirect(self, table: Mapping[Address, Address]) -> None:
        """From now on, a connection to an address of this table goes to the other one instead. Replaces the table."""
        self._ask(orders.Redirect(tuple(table.items())), orders.Done)

    # ---- the disk ----------------------------------------------------------------------------------

    def order(self, disk: Orders) -> None:
        """Inject disk faults from now on: slow_s, room, die_at, fail_sync, fail_append and hang."""
        self._ask(orders.Obey(disk), orders.Done)

    def counts(self) -> Counts:
        """Return how often orders took effect."""
        return self._ask(orders.Count(), orders.Counted).counts

    def durable(self) -> dict[str, int]:
        """Return the number of durable bytes at the start of each data file that a program has opened for writing."""
        return self._ask(orders.Durable(), orders.Prefixes).durable

    def cut_power(self, tail: Tail = "none", *, seed: int = 0, keep: Mapping[str, int] | None = None) -> Lost:
        """Kill all that runs, and change the files to what a power loss leaves.

        Args:
            tail: see lab.live.supervise.contents.
            seed: of the random choices.
            keep: file name below the data directory -> number of its first bytes that survive, whatever the tail. If
                there is one, all names survive.
        """
        return self._ask(orders.CutPower(tail, seed, dict(keep or {})), orders.Loss).lost

    def begin_anew(self) -> None:
        """Everything that is on the disk now is durable: the lab has replaced it while no program ran."""
        self._ask(orders.BeginAnew(), orders.Done)

    def figures(self) -> Supervision:
        """Return the cost so far."""
        return self._ask(orders.Measure(), orders.Figures).supervision

    def _ask(self, order: orders.Order, expected: type[_Answer]) -> _Answer:
        try:
            self._channel.sendall(orders.encode(order) + b"\n")
            line = self._answers.readline()
        except TimeoutError:
            raise RunFailed(f"the supervisor did not answer within {ANSWER_PATIENCE_S:g} s") from None
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise RunFailed(f"the supervisor has ended: {last_line(self._log)}")
        answer = orders.decode_answer(line)
        if isinstance(answer, orders.Refused):
            raise Refused(answer.why)
        assert isinstance(answer, expected), (order, answer)
        return answer


def missing() -> str:
    """Return why this machine has no supervisors; "" if it has.

    A process of its own tries it, so that the lab may be killed meanwhile, and nothing remains.
    """
    done = subprocess.run(
        [sys.executable, "-m", __package__], env=child_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return ""
    said = (done.stdout or done.stderr).strip().splitlines() or [f"a trial ended with exit code {done.returncode}"]
    return f"cluster.disks: supervised: {said[-1]}"
