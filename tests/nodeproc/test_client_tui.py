"""The chat in a pipe and at a terminal, as a process of its own against fake nodes in this one."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nodeproc import flags
from nodeproc.client_tui import LINE_BYTES, keyboard, parse, read_lines, split_messages
from nodeproc.eventlog import printable
from nodeproc.lines import Chat, Hello, StatusRequest
from tests import TOO_LONG_S
from tests.nodeproc.fakenode import FakeCluster

ROOT = Path(__file__).resolve().parents[2]
pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")
termios = pytest.importorskip("termios")


def run(story: Callable[[FakeCluster], Awaitable[None]], nodes: int = 1) -> None:
    """Run one story with its cluster, within a minute."""

    async def timed() -> None:
        cluster = FakeCluster()
        await cluster.start(nodes)
        try:
            async with asyncio.timeout(TOO_LONG_S):
                await story(cluster)
        finally:
            await cluster.stop()

    asyncio.run(timed())


def command(cluster: FakeCluster, *flags: str) -> list[str]:
    ports = [flag for node in cluster.nodes for flag in ("--port", str(node.port))]
    return [sys.executable, "-m", "nodeproc.client_tui", *ports, *flags]


@asynccontextmanager
async def piped(
    cluster: FakeCluster, *flags: str, stdout: Any = asyncio.subprocess.PIPE, environment: dict[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command(cluster, *flags),
        cwd=ROOT,
        stdin=pipe,
        stdout=stdout,
        stderr=pipe,
        env=os.environ | (environment or {}),
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


# ---- in a pipe ----------------------------------------------------------------------------------


def test_a_closed_stdin_is_an_empty_one() -> None:
    async def story(cluster: FakeCluster) -> None:
        process = await asyncio.create_subprocess_exec(
            *command(cluster), cwd=ROOT, stderr=asyncio.subprocess.PIPE, preexec_fn=lambda: os.close(0)
        )
        _, stderr = await process.communicate()
        assert (process.returncode, b"Traceback" in stderr) == (0, False)

    run(story)


def test_each_line_of_a_pipe_is_sent_and_shown_as_delivered() -> None:
    async def story(cluster: FakeCluster) -> None:
        async with piped(cluster) as process:
            out, err = await process.communicate("Hello from node 1!\n\nzwei äöü\r\nlast without newline".encode())
        assert out.decode() == (
            "[seq=1] node_9999: Hello from node 1!\n"
            "[seq=2] node_9999: zwei äöü\n"
            "[seq=3] node_9999: last without newline\n"
        )
        assert err.decode() == "-- node 1, leader node 3, term 1\n"
        assert process.returncode == 0

    run(story)


def test_the_client_id_and_from_flags_choose_sender_and_start() -> None:
    async def story(cluster: FakeCluster) -> None:
        cluster.order(7, "other", Chat(1, ("a", "b", "c")))
        async with piped(cluster, "--client-id", "101", "--from", "2", "--quiet") as process:
            out, err = await process.communicate(b"d\n")
        assert out.decode() == "[seq=2] node_7: b\n[seq=3] node_7: c\n[seq=4] node_101: d\n"
        assert (err, process.returncode) == (b"", 0)
        async with piped(cluster, "--from", "1") as process:
            out, _ = await process.communicate(b"")
        assert len(out.splitlines()) == 4 and process.returncode == 0

    run(story)


def test_many_lines_arrive_in_order() -> None:
    async def story(cluster: FakeCluster) -> None:
        lines = [f"message {i}" for i in range(5000)]
        async with piped(cluster) as process:
            out, _ = await process.communicate("\n".join(lines).encode())
        assert cluster.payloads() == lines
        assert out.decode().splitlines() == [f"[seq={i + 1}] node_9999: {line}" for i, line in enumerate(lines)]

    run(story)


def test_where_the_encoding_lacks_a_character_it_is_shown_escaped() -> None:
    async def story(cluster: FakeCluster) -> None:
        async with piped(cluster, environment={"PYTHONIOENCODING": "ascii"}) as process:
            out, err = await process.communicate("zwei äöü €\n".encode() + "ü".encode() * 40_000)
        assert out == b"[seq=1] node_9999: zwei \\xe4\\xf6\\xfc \\u20ac\n"
        assert b": \\xfc\\xfc" in err and len(cluster.nodes[0].lines) < 10
        assert cluster.payloads() == ["zwei äöü €"]

    run(story)


def test_a_standard_output_that_is_full_ends_the_client_with_a_clear_line() -> None:
    async def story(cluster: FakeCluster) -> None:
        with Path("/dev/full").open("wb") as full:
            async with piped(cluster, stdout=full) as process:
                _, err = await process.communicate(b"a\n")
        assert err.decode().splitlines()[1] == "! standard output: No space left on device"
        assert process.returncode == 1

    run(story)


def test_a_message_that_is_rejected_makes_the_exit_code_1_and_the_others_are_sent() -> None:
    async def story(cluster: FakeCluster) -> None:
        async with piped(cluster) as process:
            out, err = await process.communicate(b"a\n" + b"x" * 70_000 + b"\nb\n")
        assert out.decode() == "[seq=1] node_9999: a\n[seq=2] node_9999: b\n"
        assert "! rejected: message of 70000 bytes, allowed 65536: xxx" in err.decode()
        assert process.returncode == 1

    run(story)


def test_a_message_without_an_answer_makes_the_exit_code_1() -> None:
    async def story(cluster: FakeCluster) -> None:
        cluster.leader = 0
        async with piped(cluster, "--deadline", "0.3") as process:
            _, err = await process.communicate(b"a\n")
        assert "! unknown: no answer within 0.3 s: a" in err.decode()
        assert process.returncode == 1

    run(story)


def test_a_pipe_without_a_node_ends_with_a_clear_line() -> None:
    async def story(cluster: FakeCluster) -> None:
        await cluster.stop()
        async with piped(cluster, "--deadline", "0.3") as process:
            out, err = await process.communicate(b"a\n")
        assert "-- not connected: 127.0.0.1:" in err.decode() and "refused" in err.decode()
        assert "Traceback" not in err.decode()
        assert (out, process.returncode) == (b"", 1)

    run(story)


def test_a_lost_cluster_is_told_once_and_not_at_every_attempt() -> None:
    async def story(cluster: FakeCluster) -> None:
        await cluster.stop()
        async with piped(cluster, "--deadline", "0.5") as process:
            _, err = await process.communicate(b"a\n")
        assert err.count(b"-- not connected") == 1

    run(story, nodes=3)


def test_a_pipe_moves_to_the_next_node_and_repeats_nothing() -> None:
    async def story(cluster: FakeCluster) -> None:
        first, second = cluster.nodes
        first.hold_acks = True
        async with piped(cluster) as process:
            assert process.stdin is not None
            process.stdin.write(b"one\ntwo\n")
            await process.stdin.drain()
            await first.saw(lambda: len(cluster.messages) == 2)
            await first.stop()
            out, err = await process.communicate(b"three\n")
        assert cluster.payloads() == ["one", "two", "three"]
        assert [line.split(": ")[1] for line in out.decode().splitlines()] == ["one", "two", "three"]
        assert "-- node 2, leader node 3" in err.decode()
        assert process.returncode == 0
        assert isinstance(second.lines[0], Hello)

    run(story, nodes=2)


def test_a_chat_goes_on_in_a_new_session_when_the_old_one_has_expired() -> None:
    """Rule: S3. What was not ordered for that reason is sent again."""

    async def story(cluster: FakeCluster) -> None:
        node = cluster.nodes[0]
        async with piped(cluster) as process:
            assert process.stdin is not None and process.stderr is not None
            process.stdin.write(b"one\n")
            await node.saw(lambda: len(cluster.messages) == 1)
            cluster.expired.update(cluster.sessions)
            out, err = await process.communicate(b"two\nthree\n")
        assert out.decode() == "[seq=1] node_9999: one\n[seq=2] node_9999: two\n[seq=3] node_9999: three\n"
        assert len(cluster.sessions) == 2
        assert (process.returncode, b"!" in err) == (0, False)

    run(story)


def test_a_chat_says_so_when_another_client_used_its_session() -> None:
    """Rule: S1."""

    async def story(cluster: FakeCluster) -> None:
        node = cluster.nodes[0]
        async with piped(cluster) as process:
            assert process.stdin is not None and process.stderr is not None
            process.stdin.write(b"one\n")
            await node.saw(lambda: len(cluster.messages) == 1)
            node.drop_chats = 1
            process.stdin.write(b"lost\n")
            await node.saw(lambda: not node.drop_chats)
            cluster.order(7, next(iter(cluster.sessions)), Chat(2, ("by another", "and one more")))
            node.reset_connections()
            await process.stderr.readuntil(b"! unknown: another client used this session: lost")
            out, _ = await process.communicate(b"two\n")
        assert out.decode().endswith("[seq=4] node_9999: two\n")
        assert process.returncode == 1

    run(story)


def test_without_a_leader_the_chat_says_so_once_and_stays() -> None:
    async def story(cluster: FakeCluster) -> None:
        node = cluster.nodes[0]
        cluster.leader = 0
        async with piped(cluster, "--deadline", "60") as process:
            assert process.stdin is not None and process.stderr is not None
            process.stdin.write(b"one\n")
            await node.saw(lambda: sum(isinstance(line, StatusRequest) for line in node.lines) == 2)
            cluster.change_leader(2)
            _, err = await process.communicate(b"")
        assert err.decode().splitlines() == [
            "-- node 1 has no leader (2 of 2 nodes up); 1 message waiting",
            "-- node 1, leader node 2, term 2",
        ]
        assert sum(isinstance(line, Hello) for line in node.lines) == 1
        assert cluster.payloads() == ["one"]

    run(story)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_pipe_leaves_at_once_without_a_traceback(number: signal.Signals) -> None:
    async def story(cluster: FakeCluster) -> None:
        async with piped(cluster) as process:
            assert process.stdin is not None and process.stderr is not None
            process.stdin.write(b"one\n")
            await cluster.nodes[0].saw(lambda: len(cluster.messages) == 1)
            process.send_signal(number)
            await process.wait()
            err = await process.stderr.read()
        assert b"Traceback" not in err
        assert process.returncode == 130

    run(story)


def test_a_reader_that_goes_away_ends_the_chat_without_a_traceback() -> None:
    async def story(cluster: FakeCluster) -> None:
        cluster.order(7, "other", Chat(1, ("a",)))
        reading, writing = os.pipe()
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command(cluster, "--from", "1"), cwd=ROOT, stdin=pipe, stdout=writing, stderr=pipe
        )
        os.close(writing)
        os.close(reading)
        assert process.stderr is not None
        err = await process.stderr.read()
        assert await process.wait() == 130
        assert b"Traceback" not in err and b"BrokenPipe" not in err

    run(story)


# ---- at a terminal ------------------------------------------------------------------------------


class Terminal:
    """A process at a pseudo-terminal, and all it has written there."""

    def __init__(self, master: int, process: asyncio.subprocess.Process) -> None:
        self.master, self.process = master, process
        self.text = ""
        self._changed = asyncio.Event()
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self.master, 1 << 16)
        except OSError:  # The process has closed its end.
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self.master)
        self.text += data.decode(errors="replace")
        # Where is the cursor? A terminal answers that; without the answer there is no state line.
        for _ in range(data.count(b"\x1b[6n")):
            self.type("\x1b[1;1R")
        self._changed.set()

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    async def shows(self, text: str) -> None:
        """Wait until the text was written."""
        try:
            async with asyncio.timeout(TOO_LONG_S):
                while text not in self.text:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"{text!r} is not in {self.text!r}") from None


@asynccontextmanager
async def at_terminal(cluster: FakeCluster, *flags: str) -> AsyncIterator[Terminal]:
    master, slave = pty.openpty()
    termios.tcsetwinsize(master, (40, 120))
    environment = {**os.environ, "TERM": "xterm"}

    def take_terminal() -> None:
        # While acknowledgements are waited for the terminal is in its normal mode, and Ctrl+C is a signal to whoever
        # has it as controlling terminal; without one that key would be lost.
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = await asyncio.create_subprocess_exec(
        *command(cluster, *flags), cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, env=environment,
        start_new_session=True, preexec_fn=take_terminal,
    )  # fmt: skip
    os.close(slave)
    terminal = Terminal(master, process)
    try:
        yield terminal
    finally:
        asyncio.get_running_loop().remove_reader(master)
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(master)


def test_a_terminal_shows_prompt_messages_and_state_line() -> None:
    async def story(cluster: FakeCluster) -> None:
        async with at_terminal(cluster, "--client-id", "101") as terminal:
            await terminal.shows("node 1 | leader node 3 | term 1 | last seq_no 0")
            assert "\x1b[0m>" in terminal.text
            terminal.type("Hello from node 1!\r")
            await terminal.shows("[seq=1] node_101: Hello from node 1!")
            cluster.order(7, "other", Chat(1, ("while you type",)))
            await terminal.shows("[seq=2] node_7: while you type")
            cluster.change_leader(2)
            await terminal.shows("-- node 1, leader node 2, term 2")
            await terminal.shows("leader node 2 | term 2 | last seq_no 2")
            terminal.type("\x03")
            assert await terminal.process.wait() == 0
            assert "Traceback" not in terminal.text

    run(story)


def test_a_terminal_takes_commands() -> None:
    async def story(cluster: FakeCluster) -> None:
        for number in range(1, 31):
            cluster.order(7, "other", Chat(number, (f"old {number}",)))
        async with at_terminal(cluster) as terminal:
            await terminal.shows("last seq_no 30")
            terminal.type("/history 2\r")
            await terminal.shows("-- 2 of 30 messages")
            assert "[seq=29] node_7: old 29" in terminal.text and "old 28" not in terminal.text
            terminal.type("/history\r")
            await terminal.shows("-- 20 of 30 messages")
            assert "[seq=11] node_7: old 11" in terminal.text and "old 10" not in terminal.text
            terminal.type("/help\r")
            await terminal.shows("-- /quit")
            for wrong in ("/fly", "/history 0", "/history all", "/quit now"):
                terminal.type(f"{wrong}\r")
                await terminal.shows(f"! found {wrong}, allowed /help")
            terminal.type("//slash\r")
            await terminal.shows("[seq=31] node_9999: /slash")
            terminal.type("/quit\r")
            assert await terminal.process.wait() == 0
            assert cluster.payloads()[30:] == ["/slash"]

    run(story)


def test_an_empty_cluster_has_no_history() -> None:
    async def story(cluster: FakeCluster) -> None:
        async with at_terminal(cluster) as terminal:
            await terminal.shows("last seq_no 0")
            terminal.type("/history\r")
            await terminal.shows("-- 0 of 0 messages")

    run(story)


def test_times_are_shown_on_request() -> None:
    async def story(cluster: FakeCluster) -> None:
        async with at_terminal(cluster) as terminal:
            await terminal.shows("last seq_no 0")
            terminal.type("/times\r")
            await terminal.shows("-- times are shown")
            terminal.type("hello\r")
            await terminal.shows("] node_9999: hello")
            assert re.search(r"\d\d:\d\d:\d\d \[seq=1\] node_9999: hello", terminal.text)
            terminal.type("/times\r")
            await terminal.shows("-- times are not shown")
        async with piped(cluster, "--from", "1", "--times") as process:
            out, _ = await process.communicate(b"")
        assert re.fullmatch(r"\d\d:\d\d:\d\d \[seq=1\] node_9999: hello\n", out.decode())

    run(story)


@pytest.mark.parametrize("no_color", ["", "1"])
def test_own_messages_stand_out_unless_colours_are_off(no_color: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)

    async def story(cluster: FakeCluster) -> None:
        async with at_terminal(cluster) as terminal:
            await terminal.shows("last seq_no 0")
            terminal.type("mine\r")
            await terminal.shows("[seq=1] node_9999: mine")
            cluster.order(7, "other", Chat(1, ("theirs",)))
            await terminal.shows("[seq=2] node_7: theirs")
            assert ("\x1b[1m[seq=1]" in terminal.text) == (not no_color)
            assert ("\x1b[35m[seq=2]" in terminal.text) == (not no_color)

    run(story)


def test_in_a_pipe_a_slash_begins_a_message() -> None:
    async def story(cluster: FakeCluster) -> None:
        async with piped(cluster) as process:
            await process.communicate(b"/quit\n//x\n")
        assert cluster.payloads() == ["/quit", "//x"]

    run(story)


def test_a_terminal_reconnects_by_itself_to_the_same_node() -> None:
    async def story(cluster: FakeCluster) -> None:
        node = cluster.nodes[0]
        async with at_terminal(cluster) as terminal:
            await terminal.shows("-- node 1, leader")
            await node.stop()
            await terminal.shows("not connected")
            terminal.type("typed while it was down\r")
            await node.start()
            await terminal.shows("[seq=1] node_9999: typed while it was down")
            terminal.type("\x04")
            assert await terminal.process.wait() == 0

    run(story)


def test_ctrl_d_waits_for_acknowledgements_and_ctrl_c_does_not() -> None:
    async def story(cluster: FakeCluster) -> None:
        cluster.nodes[0].hold_acks = True
        async with at_terminal(cluster) as terminal:
            await terminal.shows("-- node 1, leader")
            terminal.type("hello\r")
            await terminal.shows("[seq=1] node_9999: hello")
            terminal.type("\x04")
            await terminal.shows("-- waiting for 1 acknowledgements, Ctrl+C leaves")
            terminal.process.send_signal(signal.SIGINT)
            assert await terminal.process.wait() == 0
            await terminal.shows("! unknown: client closed: hello")
            assert "Traceback" not in terminal.text

    run(story)


def test_keys_that_come_faster_than_prompts_are_all_taken() -> None:
    async def story(cluster: FakeCluster) -> None:
        async with at_terminal(cluster) as terminal:
            await terminal.shows("-- node 1, leader")
            for number in range(1, 21):
                terminal.type(f"number {number}x\x7f\r")
            terminal.type("\x04")
            assert await terminal.process.wait() == 0
            assert cluster.payloads() == [f"number {number}" for number in range(1, 21)]

    run(story)


def test_a_key_pressed_while_a_message_is_printed_is_the_prompt_s(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave) as stdin, os.fdopen(master, "wb", buffering=0) as terminal:
        monkeypatch.setattr(sys, "stdin", stdin)
        keys = keyboard()
        with keys.raw_mode(), keys.cooked_mode():  # so does prompt_toolkit print
            assert not termios.tcgetattr(stdin)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
            terminal.write(b"ab\x04\x7f")
            assert os.read(stdin.fileno(), 10) == b"ab\x04\x7f"
        assert termios.tcgetattr(stdin)[3] & termios.ICANON


def test_a_terminated_chat_gives_the_terminal_back() -> None:
    async def story(cluster: FakeCluster) -> None:
        async with at_terminal(cluster) as terminal:
            await terminal.shows("last seq_no")
            assert not termios.tcgetattr(terminal.master)[3] & termios.ICANON
            terminal.process.terminate()
            assert await terminal.process.wait() == 0
            assert termios.tcgetattr(terminal.master)[3] & termios.ICANON

    run(story)


# ---- pieces -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 漢字 🎉", "plain ü 漢字 🎉"),
        ("tab\tstays", "tab\tstays"),
        ("two\nlines", "two\\nlines"),
        ("\x1b[2Jclear", "\\x1b[2Jclear"),
        ("\x9b31m", "\\x9b31m"),
        ("a\u202eb", "a\\u202eb"),
        ("\x00\x7f", "\\x00\\x7f"),
    ],
)
def test_nothing_in_a_message_commands_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_an_input_line_without_an_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(b"x" * (4 * LINE_BYTES) + b"\nnext\n")

    async def story() -> list[bytes]:
        return b"".join([lines async for lines in read_lines()]).splitlines()

    with os.fdopen(reading) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        writer = threading.Thread(target=write)
        writer.start()
        first, last = asyncio.run(story())
        writer.join()
    assert set(first) == {ord("x")} and LINE_BYTES <= len(first) < 2 * LINE_BYTES
    assert last == b"next"


def test_input_is_split_at_newlines_only_and_broken_utf8_is_replaced() -> None:
    assert split_messages(b"a\r\n\n  \nb\x0bc\xff\nd") == ["a", "b\x0bc\ufffd", "d"]


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--port", "0"], "--port 0: allowed 1..65535"),
        (["--port", "x"], "invalid int value: 'x'"),
        (["--from", "0"], "--from 0: allowed 1 and above"),
        (["--deadline", "nan"], "--deadline nan: allowed above 0"),
        (["--deadline", "0"], "--deadline 0: allowed above 0"),
        (["--client-id", "-1"], "--client-id -1: allowed 0..9007199254740991"),
        (["--tls-ca", "no/such/file"], "--tls-ca: no/such/file: No such file or directory"),
        (["--tls-cert", "x"], "--tls-cert, --tls-key and --tls-any-name: allowed with --tls-ca only"),
        (["--tls-any-name"], "allowed with --tls-ca only"),
        (["--client-token-file", "no/such/file"], "--client-token-file no/such/file: "),
        (["--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_wrong_flags_are_refused_with_exit_code_2(
    flags: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(flags)
    assert stopped.value.code == 2
    assert complaint in capsys.readouterr().err


def test_the_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse([]).client_token == ""
    monkeypatch.setenv(flags.TOKEN_VARIABLE, "from the environment")
    assert parse([]).client_token == "from the environment"
    (tmp_path / "token").write_text("from a file\n")
    assert parse(["--client-token-file", str(tmp_path / "token")]).client_token == "from a file"


def test_the_token_is_shown_to_the_node() -> None:
    async def story(cluster: FakeCluster) -> None:
        environment = {**os.environ, flags.TOKEN_VARIABLE: "secret"}
        process = await asyncio.create_subprocess_exec(
            *command(cluster), cwd=ROOT, env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        await process.communicate(b"hello\n")
        hellos = [line for line in cluster.nodes[0].lines if isinstance(line, Hello)]
        assert [hello.client_token for hello in hellos] == ["secret"]

    run(story)


def test_the_defaults_fit_the_first_node_of_the_tour() -> None:
    options = parse([])
    assert (options.host, options.port, options.client_id, options.start) == ("127.0.0.1", [5001], 9999, None)
    assert parse(["--port", "5002", "--port", "5003"]).port == [5002, 5003]
