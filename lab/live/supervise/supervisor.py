"""The supervisor of one node, as a process of its own: it starts the node's program, and stands between its system
calls and the kernel.

    python -m lab.live.supervise.supervisor

Standard input is a socket, on which orders come and answers go (lab.live.supervise.orders). When it is closed, because
the lab has ended in whatever way, the supervisor kills all processes of the node and exits.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lab.live.supervise import filter as bpf
from lab.live.supervise import kernel, orders, probe, programs, syscalls
from lab.live.supervise.disk import Disk
from lab.live.supervise.links import Links
from lab.live.supervise.orders import Answer
from lab.live.supervise.processes import Paths
from lab.rows import Supervision

LINE_LIMIT = 16 << 20


class Connection:
    """The socket on which orders come and answers go."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self._received = b""

    def orders(self) -> list[bytes] | None:
        """Return the lines that have come; None at the end."""
        try:
            data = self.socket.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            return None
        *lines, self._received = (self._received + data).split(b"\n")
        return lines

    def answer(self, answer: Answer) -> None:
        """Send an answer. Where the other side has ended, orders() shows it."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(orders.encode(answer) + b"\n")


class Supervisor:
    """See the module. lab: the lab's socket."""

    def __init__(self, lab: socket.socket) -> None:
        self._lab = Connection(lab)
        self._is_over = False
        self._poll = select.poll()
        self._poll.register(lab, select.POLLIN)
        self._programs: dict[int, programs.Program] = {}
        self._waiting: dict[int, programs.Program] = {}
        """pidfd -> the program for whose end the lab waits."""
        self._listeners: set[int] = set()
        self._links = Links()
        self._disk: Disk | None = None
        self._kept: Path | None = None
        self._numbers = bpf.fd_range()
        self._handlers: dict[int, Callable[[kernel.Call], None]] = {}
        self._stops: dict[int, int] = {}
        self._busy_s = 0.0

    # ---- the loop ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the lab ends."""
        try:
            while not self._is_over:
                self._turn()
        finally:
            programs.kill_descendants()
            if self._kept is not None:
                shutil.rmtree(self._kept, ignore_errors=True)

    def _turn(self) -> None:
        wakes_after_s = None if self._disk is None else self._disk.wakes_after_s
        for fd, event in self._poll.poll(None if wakes_after_s is None else wakes_after_s * 1000):
            if fd in self._listeners:
                self._on_listener(fd, event)
            elif fd in self._waiting:
                self._on_end(fd)
            elif fd == self._lab.socket.fileno():
                self._on_orders()
                break  # An order may have closed file descriptors, whose numbers may be in use again.
        if self._disk is not None:
            self._disk.tick()

    def _on_listener(self, listener: int, event: int) -> None:
        if event & select.POLLIN:
            call = kernel.receive(listener)
            if call is not None:
                self._handle(call)
        elif event & (select.POLLHUP | select.POLLERR):
            self._close_listener(listener)

    def _handle(self, call: kernel.Call) -> None:
        began = time.perf_counter()
        self._stops[call.number] = self._stops.get(call.number, 0) + 1
        try:
            self._handlers[call.number](call)
        except OSError as error:
            # The supervisor acts in the program's place: its error is the program's.
            call.finish(-(error.errno or 5))
        self._busy_s += time.perf_counter() - began

    def _close_listener(self, listener: int) -> None:
        self._poll.unregister(listener)
        self._listeners.discard(listener)
        os.close(listener)
        if not self._listeners and self._disk is not None:
            self._disk.close_files()

    # ---- orders ------------------------------------------------------------------------------------

    def _on_orders(self) -> None:
        lines = self._lab.orders()
        self._is_over = lines is None
        for line in lines or ():
            answer = self._carry_out(orders.decode_order(line))
            if answer is not None:
                self._lab.answer(answer)

    def _carry_out(self, order: orders.Order) -> Answer | None:
        """Carry out an order; return the answer, or None if it comes later."""
        if isinstance(order, orders.Open):
            return self._open(order)
        assert self._disk is not None, "the first order opens the disk"
        match order:
            case orders.Start():
                return self._start(order)
            case orders.Wait(pid):
                return self._wait(pid)
            case orders.Obey(for_disk):
                self._disk.order(for_disk)
            case orders.Count():
                return orders.Counted(self._disk.counts())
            case orders.Redirect(table):
                self._links.table = dict(table)
            case orders.Durable():
                return orders.Prefixes(self._disk.durable_prefixes())
            case orders.CutPower(tail, seed, keep):
                self._end_all()
                return orders.Loss(self._disk.lose_power(tail, seed, keep))
            case orders.BeginAnew():
                self._disk.begin_anew()
            case orders.Measure():
                return self._figures(self._disk)
        return orders.Done()

    def _open(self, order: orders.Open) -> Answer:
        data, self._kept = Path(order.data_dir), Path(order.kept_dir)
        self._kept.mkdir(exist_ok=True)
        if data.stat().st_dev != self._kept.stat().st_dev:
            return orders.Refused(f"{data} and {self._kept} are on different file systems")
        if why := probe.why_not(self._kept):
            return orders.Refused(why)
        assert syscalls.HERE is not None
        self._disk = Disk(Paths(data, order.exempt), self._kept, self._numbers, order.writeback_s, self._die)
        handlers = self._disk.handlers | {"connect": self._links.connect}
        self._handlers = {
            syscalls.HERE.numbers[name]: handler for name, handler in handlers.items() if name in syscalls.HERE.numbers
        }
        gc.freeze()
        return orders.Done()

    def _start(self, order: orders.Start) -> Answer:
        assert syscalls.HERE is not None
        if not self._programs:
            self._end_all()  # What the earlier programs have left behind still holds locks on files.
        try:
            program = programs.start(order, bpf.program(syscalls.HERE, *self._numbers), self._numbers[1])
        except programs.NotStarted as error:
            return orders.Refused(str(error))
        kernel.wake_synchronously(program.listener)
        self._programs[program.pid] = program
        self._listeners.add(program.listener)
        self._poll.register(program.listener, select.POLLIN)
        return orders.Started(program.pid)

    def _wait(self, pid: int) -> Answer | None:
        program = self._programs.get(pid)
        if program is None:
            return orders.Refused(f"no program {pid} was started")
        self._waiting[program.pidfd] = program
        self._poll.register(program.pidfd, select.POLLIN)
        return None

    def _on_end(self, pidfd: int) -> None:
        program = self._waiting.pop(pidfd)
        self._poll.unregister(pidfd)
        del self._programs[program.pid]
        self._lab.answer(program.reap())

    def _die(self) -> None:
        """Kill the programs in the middle of what they do."""
        for pid in self._programs:
            os.killpg(pid, signal.SIGKILL)

    def _end_all(self) -> None:
        """End everything that runs, and follow none of it any longer."""
        programs.kill_descendants()
        for listener in list(self._listeners):
            self._close_listener(listener)

    def _figures(self, disk: Disk) -> orders.Figures:
        names = syscalls.names()
        stops = {names[number]: times for number, times in sorted(self._stops.items())}
        problems = tuple(dict.fromkeys(disk.problems))
        cpu_s = time.process_time()
        return orders.Figures(Supervision(stops, self._busy_s, cpu_s, self._links.redirected, problems))


def main() -> None:
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    Supervisor(socket.socket(fileno=os.dup(0))).run()


if __name__ == "__main__":
    main()
