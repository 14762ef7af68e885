"""Node processes: their ports, their life, what they cost, and that none of them outlives the harness."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from lab.live import launch as launcher
from lab.live.children import child_environment, last_line
from lab.rows import NodeExit, NodeUse, Sample
from lab.steps.machine import RunFailed
from nodeproc.client import status
from nodeproc.core.messages import NodeId
from nodeproc.errors import Unreachable

READY_PATIENCE_S = 60.0
"""From start to the first STATUS answer. A start takes 0.2 s; the rest is for busy machines and large logs."""
ASK_AGAIN_S = 0.01
OUBLOCK_BYTES = 512
"""One of ru_oublock (Linux)."""
STATE_PATIENCE_S = 2.0
"""From a signal to the state that it brings about; it takes a millisecond or two."""
STOP_PATIENCE_S = 30.0
"""From SIGTERM to the end; a node promises one second, of a machine that has one for it."""
KILL_PATIENCE_S = 10.0
"""From SIGKILL to the end, which only a kernel with much to do delays."""


BROKEN_MODULE = "lab.mutants.broken_node"
"""What a node that is a mutant runs, and tells which."""
FAULTY_MODULE = "lab.live.inside.faulty_node"
"""What a node runs whose disk and clock obey orders; it runs the one above where the node is a mutant too."""
_NO_ERRORS = (0, -signal.SIGKILL, -signal.SIGTERM)
"""Exit codes of a process that did not end by an error of its own."""


class HeldPort:
    """A port that is this node's for the whole run: connections are refused while the node is down.

    The socket is bound and never listens. Both it and the node's set SO_REUSEADDR, which lets the node listen there.
    """

    def __init__(self, host: str) -> None:
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((host, 0))
        self.port = int(self._socket.getsockname()[1])

    def release(self) -> None:
        self._socket.close()


class Lifeline:
    """A pipe whose other end only this process holds: nodes that watch it see its end when the harness is gone."""

    def __init__(self) -> None:
        self.fd, self._held = os.pipe()

    def cut(self) -> None:
        os.close(self.fd)
        os.close(self._held)


@dataclass(slots=True)
class _Life:
    """One process of a node, from start to exit.

    Signals are sent by pid, which stays its own until _reap: Popen's methods would reap it themselves.
    """

    popen: subprocess.Popen[bytes]
    gone: asyncio.Future[NodeExit]
    pidfd: int = -1
    asked_to_end: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """What is started in place of the lab's own node: arguments, and the directory in which it runs."""

    command: tuple[str, ...]
    directory: str


@dataclass(slots=True)
class NodeProcess:
    """One node of the cluster over all its starts. Signals go to its whole process group.

    config, log: files of the run directory. lifeline_fd: see Lifeline.
    on_sample: is handed CPU and memory each time they are looked at.
    module: what is run; another one in tests. mutant: the rule that it breaks; "": none.
    program: what is run instead; None: the module.
    client_token: what it asks of those that ask for its STATUS.
    ledger: its disk and clock obey what is ordered there; None: they are the machine's own.
    on_end: called with node and exit code when the process has ended with an error; returns what the lab did to bring
        that about, "" if nothing.
    """

    node: NodeId
    host: str
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
    on_end: Callable[[NodeId, int], str] = lambda node, code: ""
    paused: bool = False
    starts: int = 0
    exits: list[NodeExit] = field(default_factory=list)
    _life: _Life | None = None
    _ended_cpu_s: float = 0.0
    """Of the processes that are gone."""
    _ended_written: int = 0
    _rss_peak: int = 0

    @property
    def running(self) -> bool:
        return self._life is not None

    @property
    def pid(self) -> int:
        """0: not running."""
        return self._life.popen.pid if self._life is not None else 0

    # ---- life ------------------------------------------------------------------------------------

    def start(self, *more: str) -> None:
        """Start the process, with more arguments; it answers a little later (ready)."""
        assert self._life is None, f"node {self.node} runs already"
        own = self.program is None
        with self.log.open("ab") as errors:
            popen = subprocess.Popen(
                self._command(more),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if own else errors,
                stderr=errors,
                env=child_environment() if own else None,
                pass_fds=(self.lifeline_fd,),
                process_group=0,  # Ctrl+C is the harness's to handle
            )
        self.starts += 1
        self._life = _Life(popen, asyncio.get_running_loop().create_future())
        self._watch(self._life)

    def _command(self, more: Sequence[str]) -> list[str]:
        if self.program is not None:
            launch = [sys.executable, "-I", "-S", launcher.__file__, str(self.lifeline_fd), self.program.directory]
            return [*launch, *self.program.command]
        run = [BROKEN_MODULE, "--mutant", self.mutant] if self.mutant else [self.module]
        if self.ledger is not None:
            run = [FAULTY_MODULE, "--ledger", str(self.ledger), "--run", *run]
        command = [sys.executable, "-m", *run, "--config", str(self.config), "--quiet"]
        return [*command, "--die-with-parent", "--lifeline", str(self.lifeline_fd), *more]

    async def ready(self) -> float:
        """Wait for the first answer to STATUS.

        Returns:
            seconds that it took.

        Raises:
            RunFailed: it ended instead, or did not answer in time; quotes its log.
        """
        began, heard = time.monotonic(), ""
        while self._life is not None and time.monotonic() - began < READY_PATIENCE_S:
            try:
                answer = await status(self.host, self.port, client_token=self.client_token)
            except Unreachable as error:
                heard = str(error)
                await asyncio.sleep(ASK_AGAIN_S)
                continue
            if self.program is not None or answer.pid == self.pid:
                return time.monotonic() - began
        if self._life is None:
            raise RunFailed(f"node {self.node} ended with exit code {self.exits[-1].code}: {last_line(self.log)}")
        words = f"{heard}; the end of its log: {last_line(self.log)}"
        raise RunFailed(f"node {self.node} did not answer within {READY_PATIENCE_S:g} s: {words}")

    async def end(self, how: signal.Signals) -> NodeExit | None:
        """Send SIGTERM or SIGKILL and wait until the process is gone. A paused one is woken to hear SIGTERM.

        Returns:
            None: SIGKILL had no effect, the process still runs.
        """
        life = self._life
        assert life is not None, f"node {self.node} does not run"
        life.asked_to_end = True
        self.look()
        os.killpg(life.popen.pid, how)
        if self.paused and how is not signal.SIGKILL:
            os.killpg(life.popen.pid, signal.SIGCONT)
        try:
            async with asyncio.timeout(KILL_PATIENCE_S if how is signal.SIGKILL else STOP_PATIENCE_S):
                return await asyncio.shield(life.gone)
        except TimeoutError:
            life.asked_to_end = False  # not with this: the judges shall see it
            if how is signal.SIGKILL:
                return None
            os.killpg(life.popen.pid, signal.SIGKILL)
            return await life.gone

    async def doomed(self, patience_s: float) -> bool:
        """Wait for an end that the lab brings about without a signal. False: it did not come."""
        life = self._life
        assert life is not None, f"node {self.node} does not run"
        life.asked_to_end = True
        self.look()
        life.asked_to_end = gone = await self.ended(patience_s)
        return gone

    async def ended(self, patience_s: float) -> bool:
        """Wait for an end that has to come by itself. False: it did not come."""
        if self._life is None:
            return True
        try:
            async with asyncio.timeout(patience_s):
                await asyncio.shield(self._life.gone)
        except TimeoutError:
            return False
        return True

    async def pause(self) -> bool:
        """SIGSTOP, and wait until the process is seen to stand still. False: it never was."""
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
        """What the kernel says of the process: running, sleeping, stopped, …; "gone"."""
        try:
            return str(psutil.Process(self.pid).status()) if self._life is not None else "gone"
        except psutil.Error:
            return "gone"

    def memory_bytes(self) -> tuple[int, int]:
        """Its resident size now, and the largest that this process ever had; zeros where it does not run."""
        try:
            return (psutil.Process(self.pid).memory_info().rss, _peak_rss(self.pid)) if self._life else (0, 0)
        except psutil.Error:
            return 0, 0

    def wake(self) -> None:
        """SIGCONT."""
        assert self._life is not None
        os.killpg(self.pid, signal.SIGCONT)
        self.paused = False

    def kill_now(self) -> None:
        """SIGKILL and reap, without waiting in the loop: for the end of a run that failed."""
        if self._life is not None:
            self._life.asked_to_end = True
            os.killpg(self.pid, signal.SIGKILL)
            self._reap(self._life)

    # ---- its end ---------------------------------------------------------------------------------

    def _watch(self, life: _Life) -> None:
        """Have _reap called as soon as the process is gone: by a pidfd, or by asking where there is none."""
        loop = asyncio.get_running_loop()
        if hasattr(os, "pidfd_open"):
            life.pidfd = os.pidfd_open(life.popen.pid)
            loop.add_reader(life.pidfd, self._reap, life)
        else:
            loop.call_later(ASK_AGAIN_S, self._ask, life)

    def _ask(self, life: _Life) -> None:
        if os.waitid(os.P_PID, life.popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            self._reap(life)
        elif not life.gone.done():
            asyncio.get_running_loop().call_later(ASK_AGAIN_S, self._ask, life)

    def _reap(self, life: _Life) -> None:
        if life.gone.done():
            return
        now = time.monotonic_ns()
        os.killpg(life.popen.pid, signal.SIGKILL)  # what it has left behind; the group lasts until the wait below
        # wait4 and not Popen.wait: it also tells what the process cost.
        _, wait_status, usage = os.wait4(life.popen.pid, 0)
        code = life.popen.returncode = os.waitstatus_to_exitcode(wait_status)
        if life.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(life.pidfd)
            os.close(life.pidfd)
        self._ended_cpu_s += usage.ru_utime + usage.ru_stime
        self._ended_written += usage.ru_oublock * OUBLOCK_BYTES
        because = "" if code in _NO_ERRORS else self.on_end(self.node, code)
        self._life, self.paused = None, False
        exited = NodeExit(now, code, life.asked_to_end or bool(because), because)
        self.exits.append(exited)
        life.gone.set_result(exited)

    # ---- what it costs ---------------------------------------------------------------------------

    def look(self) -> None:
        """Take a sample of CPU and memory, if the process is there."""
        if self._life is None:
            return
        try:
            process = psutil.Process(self.pid)
            with process.oneshot():
                times, rss = process.cpu_times(), process.memory_info().rss
        except psutil.Error:
            return
        self._rss_peak = max(self._rss_peak, rss, _peak_rss(self.pid))
        self.on_sample(Sample(time.monotonic_ns(), self.node, times.user + times.system, rss))

    def use(self) -> NodeUse:
        """What all its processes cost; complete once the last one is gone."""
        return NodeUse(self.starts, round(self._ended_cpu_s, 3), self._rss_peak, tuple(self.exits), self._ended_written)


def _peak_rss(pid: int) -> int:
    """The largest resident size so far, bytes, as the kernel remembers it; 0 where it can't be asked.

    Not ru_maxrss: a new process starts with its parent's.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found[0]) * 1024 if found else 0
