"""The processes of a node: ports, starts and ends, resources. No process outlives the harness."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

from lab.course.manifest import HOST
from lab.live import launch as launcher
from lab.live.children import child_environment, last_line
from lab.live.supervise import Ended, Supervisor
from lab.rows import NodeExit, NodeUse, Sample
from lab.steps.machine import RunFailed
from nodeproc import native
from nodeproc.client import Address, status
from nodeproc.core.messages import NodeId
from nodeproc.errors import Unreachable

READY_PATIENCE_S = 60.0
"""Maximum time from the start to the first STATUS answer. A start takes 0.2 s; busy machines and large logs need more.
"""
ENGINE_READY_PATIENCE_S = 240.0
"""The same for an engine: servers on a virtual machine need up to 20 s of CPU for a start, a busy machine minutes."""
POLL_S = 0.01
OUBLOCK_BYTES = 512
"""Bytes per unit of ru_oublock (Linux)."""
STATE_PATIENCE_S = 2.0
"""Maximum time from a signal to the state that it causes, which usually takes a millisecond or two."""
STOP_PATIENCE_S = 30.0
"""Maximum time from SIGTERM to the exit; a node needs one second, a busy machine more."""
KILL_PATIENCE_S = 10.0
"""Maximum time from SIGKILL to the exit, which only a busy kernel delays."""


BROKEN_MODULE = "lab.mutants.broken_node"
"""The module that runs a node as a mutant; the name of the mutant is its first argument."""
FAULTY_MODULE = "lab.live.inside.faulty_node"
"""The module that runs a node with a faulty disk or clock; it runs the module above if the node is also a mutant."""
_NO_ERRORS = (0, -signal.SIGKILL, -signal.SIGTERM)
"""Exit codes of a process that did not exit by an error of its own."""


class HeldPort:
    """A port reserved for one node for the whole run: connections are refused while the node is down.

    The socket is bound and never listens. This socket and the node's both set SO_REUSEADDR, so the node can listen
    there.
    """

    def __init__(self, host: str = HOST) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((host, 0))
        self.address: Address = self._socket.getsockname()
        self.port = self.address[1]

    def release(self) -> None:
        self._socket.close()


class Lifeline:
    """A pipe whose writing end only the harness holds: nodes at the other end notice when the harness is gone."""

    def __init__(self) -> None:
        self.fd, self._held = os.pipe()

    def cut(self) -> None:
        os.close(self.fd)
        os.close(self._held)


class _Use(NamedTuple):
    """CPU seconds, resident bytes, and bytes written to files."""

    cpu_s: float
    rss: int
    written: int


NOTHING_USED = _Use(0.0, 0, 0)


@dataclass(slots=True)
class _Life:
    """One process of a node, from start to exit.

    Signals are sent by pid, which stays valid until _reap.
    """

    pid: int
    reap: Callable[[], Ended]
    """Wait for the exit, and kill what is left of the process group."""
    gone: asyncio.Future[NodeExit]
    used: _Use = NOTHING_USED
    """By its process group, in the latest sample."""
    pidfd: int = -1
    asked_to_end: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """A program that is started instead of the lab's own node: its arguments, and the directory in which it runs.

    is_adapter: it is the lab's adapter of an engine, and imports the lab.
    """

    command: tuple[str, ...]
    directory: str
    is_adapter: bool = False


@dataclass(slots=True)
class NodeProcess:
    """One node of the cluster over all its starts. Signals go to its whole process group.

    config, log: files of the run directory. lifeline_fd: see Lifeline.
    on_sample: called with each sample of CPU and memory.
    module: the module that is run; tests use another one. mutant: the name of a mutant; "": none.
    program: run instead of the module; None: the module.
    client_token: sent with STATUS; "": none.
    ledger: its orders control the node's disk and clock; None: real disk and clock.
    host: where the node listens. polled_from: the address from which STATUS is asked; "": any.
    namespace: the context in which the process is started.
    supervisor: starts the processes; None: the harness does.
    on_end: called with node and exit code when the process has exited with an error; returns the injected fault that
        caused it, or "".
    on_leave: called when the process has ended cleanly by itself; returns whether the node is a member no more.
    """

    node: NodeId
    port: int
    config: Path
    log: Path
    lifeline_fd: int
    on_sample: Callable[[Sample], None] = lambda _: None
    module: str = "nodeproc"
    mutant: str = ""
    program: Program | None = None
    client_token: str = ""
    ledger: Path | None = None
    host: str = HOST
    namespace: AbstractContextManager[None] = field(default_factory=nullcontext)
    polled_from: str = ""
    supervisor: Supervisor | None = None
    on_end: Callable[[NodeId, int], str] = lambda node, code: ""
    on_leave: Callable[[NodeId], bool] = lambda node: False
    paused: bool = False
    starts: int = 0
    exits: list[NodeExit] = field(default_factory=list)
    _life: _Life | None = None
    _ended_cpu_s: float = 0.0
    """CPU seconds of the processes that have ended."""
    _ended_written: int = 0
    _rss_peak: int = 0

    @property
    def running(self) -> bool:
        return self._life is not None

    @property
    def pid(self) -> int:
        """The process id; 0 if the node is not running."""
        return self._life.pid if self._life is not None else 0

    # ---- life ------------------------------------------------------------------------------------

    def start(self, *more: str) -> None:
        """Start the process, with additional arguments; ready() waits until it answers."""
        assert self._life is None, f"node {self.node} runs already"
        pid, reap = (self._supervised if self.supervisor is not None else self._spawned)(self._command(more))
        self.starts += 1
        self._life = _Life(pid, reap, asyncio.get_running_loop().create_future())
        self._watch(self._life)

    def _spawned(self, command: Sequence[str]) -> tuple[int, Callable[[], Ended]]:
        """Start a process of the harness's own; return its id and what reaps it."""
        with self.log.open("ab") as errors, self.namespace:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if self.program is None else errors,
                stderr=errors,
                env=self._environment(),
                pass_fds=(self.lifeline_fd,),
                process_group=0,  # Ctrl+C is the harness's to handle
            )

        def reap() -> Ended:
            os.killpg(popen.pid, signal.SIGKILL)  # what it has left behind; the group lasts until the wait below
            # wait4 and not Popen.wait: it also tells what the process cost. Popen's own methods would reap it earlier.
            _, wait_status, usage = os.wait4(popen.pid, 0)
            popen.returncode = os.waitstatus_to_exitcode(wait_status)
            return Ended(popen.returncode, usage.ru_utime + usage.ru_stime, usage.ru_oublock)

        return popen.pid, reap

    def _supervised(self, command: Sequence[str]) -> tuple[int, Callable[[], Ended]]:
        """As _spawned, under the node's supervisor."""
        supervisor = self.supervisor
        assert supervisor is not None
        pid = supervisor.start(command, directory=Path(), output=self.log, environment=self._environment())

        def reap() -> Ended:
            try:
                return supervisor.wait(pid)
            except RunFailed:  # The supervisor has died, and its programs with it; the end of the run says so.
                return Ended(-signal.SIGKILL, 0.0, 0)

        return pid, reap

    def _command(self, more: Sequence[str]) -> list[str]:
        if self.program is not None:
            launch = [sys.executable, "-I", "-S", launcher.__file__, str(self.lifeline_fd), self.program.directory]
            return [*launch, *self.program.command]
        run = [BROKEN_MODULE, "--mutant", self.mutant] if self.mutant else [self.module]
        if self.ledger is not None:
            run = [FAULTY_MODULE, "--ledger", str(self.ledger), "--run", *run]
        command = [sys.executable, "-m", *run, "--config", str(self.config), "--quiet"]
        return [*command, "--die-with-parent", "--lifeline", str(self.lifeline_fd), *more]

    def _environment(self) -> dict[str, str] | None:
        if self.program is not None and not self.program.is_adapter:
            return None
        plain = self.mutant or self.ledger is not None  # These replace parts of the product.
        return child_environment() | ({native.SWITCH: "0"} if plain else {})

    async def ready(self) -> float:
        """Wait for the first answer to STATUS.

        Returns:
            The time that this took, in seconds.

        Raises:
            RunFailed: the process ended, or did not answer in time; quotes its log.
        """
        began, heard = time.monotonic(), ""
        is_engine = self.program is not None and self.program.is_adapter
        patience = ENGINE_READY_PATIENCE_S if is_engine else READY_PATIENCE_S
        while self._life is not None and time.monotonic() - began < patience:
            try:
                answer = await status(self.host, self.port, client_token=self.client_token, source=self.polled_from)
            except Unreachable as error:
                heard = str(error)
                await asyncio.sleep(POLL_S)
                continue
            if self.program is not None or answer.pid == self.pid:
                return time.monotonic() - began
        if self._life is None:
            raise RunFailed(f"node {self.node} ended with exit code {self.exits[-1].code}: {last_line(self.log)}")
        words = f"{heard}; the end of its log: {last_line(self.log)}"
        raise RunFailed(f"node {self.node} did not answer within {patience:g} s: {words}")

    async def end(self, how: signal.Signals) -> NodeExit | None:
        """Send SIGTERM or SIGKILL and wait until the process is gone. A paused process is resumed so that it receives
        SIGTERM.

        Returns:
            None if SIGKILL had no effect and the process still runs.
        """
        life = self._life
        assert life is not None, f"node {self.node} does not run"
        life.asked_to_end = True
        self.sample()
        if how is signal.SIGTERM and self.program is not None and self.program.is_adapter:
            os.kill(life.pid, how)  # The adapter first reads the engine's store, and then ends the engine.
        else:
            os.killpg(life.pid, how)
        if self.paused and how is not signal.SIGKILL:
            os.killpg(life.pid, signal.SIGCONT)
        try:
            async with asyncio.timeout(KILL_PATIENCE_S if how is signal.SIGKILL else STOP_PATIENCE_S):
                return await asyncio.shield(life.gone)
        except TimeoutError:
            life.asked_to_end = False  # not with this: the judges shall see it
            if how is signal.SIGKILL:
                return None
            os.killpg(life.pid, signal.SIGKILL)
            return await life.gone

    async def doomed(self, patience_s: float) -> bool:
        """Wait for an exit that the lab causes without a signal. Return False if it did not come."""
        life = self._life
        assert life is not None, f"node {self.node} does not run"
        life.asked_to_end = True
        self.sample()
        life.asked_to_end = gone = await self.ended(patience_s)
        return gone

    async def ended(self, patience_s: float) -> bool:
        """Wait for an exit by itself. Return False if it did not come."""
        if self._life is None:
            return True
        try:
            async with asyncio.timeout(patience_s):
                await asyncio.shield(self._life.gone)
        except TimeoutError:
            return False
        return True

    async def pause(self) -> bool:
        """Send SIGSTOP and wait until the process is observed to be stopped. Return False if it never was."""
        assert self._life is not None
        os.killpg(self.pid, signal.SIGSTOP)
        self.paused = True
        began = time.monotonic()
        while self._life is not None and self.state() != psutil.STATUS_STOPPED:
            if time.monotonic() - began > STATE_PATIENCE_S:
                self.paused = False
            if not self.paused:
                return False
            await asyncio.sleep(0.001)
        return self._life is not None

    def state(self) -> str:
        """Return the state that the kernel reports: running, sleeping, stopped, …; "gone" without a process."""
        try:
            return str(psutil.Process(self.pid).status()) if self._life is not None else "gone"
        except psutil.Error:
            return "gone"

    def memory_bytes(self) -> tuple[int, int]:
        """Return the current and the largest resident size of this process, in bytes; zeros if it is not running."""
        try:
            return (psutil.Process(self.pid).memory_info().rss, _peak_rss(self.pid)) if self._life else (0, 0)
        except psutil.Error:
            return 0, 0

    def wake(self) -> None:
        """Send SIGCONT."""
        assert self._life is not None
        os.killpg(self.pid, signal.SIGCONT)
        self.paused = False

    def transfer(self) -> None:
        """Send SIGUSR1."""
        assert self._life is not None
        os.kill(self.pid, signal.SIGUSR1)

    def kill_now(self) -> None:
        """Send SIGKILL and reap the process, without waiting in the event loop. For the end of a run that failed."""
        if self._life is not None:
            self._life.asked_to_end = True
            os.killpg(self.pid, signal.SIGKILL)
            self._reap(self._life)

    # ---- its end ---------------------------------------------------------------------------------

    def _watch(self, life: _Life) -> None:
        """Call _reap as soon as the process is gone, by means of a pidfd, or by polling on systems without pidfds."""
        loop = asyncio.get_running_loop()
        if hasattr(os, "pidfd_open"):
            life.pidfd = os.pidfd_open(life.pid)
            loop.add_reader(life.pidfd, self._reap, life)
        else:
            loop.call_later(POLL_S, self._poll, life)

    def _poll(self, life: _Life) -> None:
        if os.waitid(os.P_PID, life.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            self._reap(life)
        elif not life.gone.done():
            asyncio.get_running_loop().call_later(POLL_S, self._poll, life)

    def _reap(self, life: _Life) -> None:
        if life.gone.done():
            return
        now = time.monotonic_ns()
        ended = life.reap()
        if life.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(life.pidfd)
            os.close(life.pidfd)
        # The usage leaves out other processes of the group that were killed: for them, the last sample is known.
        self._ended_cpu_s += max(ended.cpu_s, life.used.cpu_s)
        self._ended_written += max(ended.written_blocks * OUBLOCK_BYTES, life.used.written)
        because = "" if ended.code in _NO_ERRORS else self.on_end(self.node, ended.code)
        left = ended.code == 0 and not life.asked_to_end and self.on_leave(self.node)
        self._life, self.paused = None, False
        exited = NodeExit(now, ended.code, life.asked_to_end or left or bool(because), because)
        self.exits.append(exited)
        life.gone.set_result(exited)

    # ---- what it costs ---------------------------------------------------------------------------

    def sample(self) -> None:
        """Take a sample of CPU and memory, if the process is running; of a program, those of its whole group."""
        if self._life is None:
            return
        used = _use_of([self.pid] if self.program is None else _group(self.pid))
        if used is None:
            return
        self._life.used = used
        self._rss_peak = max(self._rss_peak, used.rss, _peak_rss(self.pid))
        self.on_sample(Sample(time.monotonic_ns(), self.node, used.cpu_s, used.rss))

    def use(self) -> NodeUse:
        """Return the resources of all processes of this node; complete once the last one is gone."""
        return NodeUse(self.starts, round(self._ended_cpu_s, 3), self._rss_peak, tuple(self.exits), self._ended_written)


def _group(leader: int) -> list[int]:
    """Return the processes of a process group."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if os.getpgid(pid) == leader:
                found.append(pid)
    return found


def _use_of(pids: Sequence[int]) -> _Use | None:
    """Return what these processes have used, added up; None if none of them is there any more."""
    uses = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            with process.oneshot():
                times = process.cpu_times()
                written = process.io_counters().write_bytes if hasattr(process, "io_counters") else 0
                uses.append(_Use(times.user + times.system, process.memory_info().rss, written))
    return _Use(*map(sum, zip(*uses, strict=True))) if uses else None


def _peak_rss(pid: int) -> int:
    """Return the largest resident size so far, in bytes, from the kernel; 0 if it is not available.

    ru_maxrss cannot be used: a new process begins with its parent's.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found[0]) * 1024 if found else 0
