"""Names of hosts while no name server answers: nobody waits for the system's resolver."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from nodeproc.net.sockets import resolve
from tests import TOO_LONG_S
from tests.nodeproc.nodes import PROJECT, free_ports, until


class Resolver:
    """Stands in for socket.getaddrinfo. A question about a host named slow is answered after let_go()."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self._answers = threading.Event()
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host: str, port: None, **more: Any) -> Any:
        if more.get("flags"):
            return self._real(host, port, **more)
        self.asked.append(host)
        if host == "slow":
            assert self._answers.wait(TOO_LONG_S)
        if host == "gone":
            raise socket.gaierror(socket.EAI_NONAME, "no such host")
        return self._real("127.0.0.1", port, **more)

    def let_go(self) -> None:
        self._answers.set()


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    return Resolver(monkeypatch)


def test_callers_share_one_question_and_other_names_do_not_wait_for_it(resolver: Resolver) -> None:
    async def story() -> None:
        for _ in range(20):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await resolve("slow")
        assert await resolve("quick") == ["127.0.0.1"]
        assert resolver.asked == ["slow", "quick"]
        resolver.let_go()

    asyncio.run(story())


def test_an_answer_that_came_too_late_serves_the_next_caller(resolver: Resolver) -> None:
    async def story() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await resolve("slow")
        resolver.let_go()
        assert await resolve("slow") == ["127.0.0.1"]
        assert resolver.asked == ["slow"]
        await resolve("slow")
        assert resolver.asked == ["slow", "slow"], "an answer is used once: addresses change"

    asyncio.run(story())


def test_a_host_that_does_not_exist_is_asked_for_again(resolver: Resolver) -> None:
    async def story() -> None:
        for _ in range(2):
            with pytest.raises(OSError, match="no such host"):
                await resolve("gone")
        assert resolver.asked == ["gone", "gone"]

    asyncio.run(story())


def test_an_address_needs_no_resolver(resolver: Resolver) -> None:
    async def story() -> None:
        for address in ("127.0.0.1", "::1", "fe80::1%lo"):
            assert await resolve(address) == [address]
        assert resolver.asked == []

    asyncio.run(story())


@pytest.mark.parametrize("text", ["a..b", "", "127.0.0.1\0", "localhost\0", "127.0.0.1 ", "a\nb", "x" * 64])
def test_what_is_no_host_is_not_asked_for(resolver: Resolver, text: str) -> None:
    """The system takes a name up to its first NUL, and the event loop ends with ValueError at the rest."""
    with pytest.raises(OSError, match="not a host name"):
        asyncio.run(resolve(text))
    assert resolver.asked == []


PROGRAM = """\
import runpy, socket, sys, threading
asked, module = sys.argv[1:3]
real = socket.getaddrinfo
def getaddrinfo(host, *arguments, flags=0, **more):
    if host == "no.answer" and not flags:
        open(asked, "w").close()
        threading.Event().wait()
    return real(host, *arguments, flags=flags, **more)
socket.getaddrinfo = getaddrinfo
sys.modules["uvloop"] = None  # It does not resolve names with this function.
sys.argv = [module, *sys.argv[3:]]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
"""Run a module whose name server never answers questions about one host; create a file at the first one."""


def ended_by(number: signal.Signals, tmp_path: Path, module: str, *arguments: str) -> int:
    """Start the module, end it with a signal while it waits for the name server, and return its exit code."""
    asked = tmp_path / "asked"
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, asked, module, *arguments],
        cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            until(lambda: asked.exists() or process.poll() is not None)
            process.send_signal(number)
            return process.wait(TOO_LONG_S)
        finally:
            process.kill()


def test_a_node_stops_while_no_name_server_answers(tmp_path: Path) -> None:
    """The last container of a cluster: the others' names are gone, and `docker stop` had to kill it after 30 s."""
    [port] = free_ports(1)
    config: dict[str, Any] = {"node_id": 1, "port": port, "data_dir": str(tmp_path / "data")}
    config["peers"] = [{"id": 2, "host": "no.answer", "port": 5002}]
    (tmp_path / "n.yml").write_text(json.dumps(config))
    assert ended_by(signal.SIGTERM, tmp_path, "nodeproc", "--config", str(tmp_path / "n.yml")) == 0


def test_a_client_stops_while_no_name_server_answers(tmp_path: Path) -> None:
    assert ended_by(signal.SIGINT, tmp_path, "nodeproc.client_tui", "--host", "no.answer") == 130
