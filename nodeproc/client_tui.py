"""The chat client at a terminal or in a pipe: python3 run_lab.py chat --host 127.0.0.1 --port 5001 --client-id 101

At a terminal it shows a prompt, delivered messages above it while you type, and a state line below. Ctrl+D leaves when
all messages are acknowledged, Ctrl+C at once. A line that begins with a slash is a command, such as /help. If stdin or
stdout is no terminal, each line of stdin is sent as a message, delivered messages go to stdout, and problems to stderr.
At the end of stdin the client waits for every acknowledgement. Blank lines are not sent.

Exit codes: 0 left from a terminal, or every message acknowledged; 1 a message was rejected, an outcome is unknown, or
standard output cannot be written; 2 wrong flags; 130 a client in a pipe was interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import contextlib
import os
import signal
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Final, TextIO

from nodeproc.importing import importing, usage_name

with importing("chat", "python3 run_lab.py chat", interrupted=130):
    from prompt_toolkit import PromptSession
    from prompt_toolkit.formatted_text import HTML
    from prompt_toolkit.input import Input, create_input
    from prompt_toolkit.patch_stdout import patch_stdout

    from nodeproc import flags
    from nodeproc.client import Address, ChatClient
    from nodeproc.core.messages import NOBODY, Line
    from nodeproc.eventlog import printable, read_messages, show_message, show_messages
    from nodeproc.lines import Shown
    from nodeproc.outcome import Outcome
    from nodeproc.session import EXPIRED, SessionSettings

PIPE_WINDOW: Final = 50_000
"""Maximum number of messages read from a pipe and without an outcome; above it the pipe is not read."""
LAST_SHOWN_S: Final = 5.0
"""At the end of a pipe, when all messages are acknowledged: the maximum wait for the next message to be shown."""

LINE_BYTES: Final = 1 << 20
"""Input lines are cut to this length, far above the longest message; a line that was cut is rejected for its length."""

NOT_CONNECTED: Final = "-- not connected"

HISTORY: Final = 20
"""Number of messages that /history shows."""
HISTORY_S: Final = 10.0
"""Maximum time for them to come."""
HELP: Final = f"""-- /help            show this
-- /history [N]     show the last N messages ({HISTORY})
-- /times           show the times of messages, or no longer
-- /quit            leave when all messages are acknowledged, as Ctrl+D
-- //text           send a message that begins with a slash
-- Ctrl+C           leave at once"""
BOLD: Final = "\x1b[1m"
COLOURS: Final = ("\x1b[36m", "\x1b[33m", "\x1b[35m", "\x1b[32m", "\x1b[34m")
"""Of the messages of other senders, by id."""
ERROR_COLOUR, PLAIN = "\x1b[31m", "\x1b[0m"


def encodable(text: str, stream: TextIO) -> str:
    """Return the text with escapes for characters that the stream's encoding, such as ASCII, lacks."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def split_messages(data: bytes) -> list[str]:
    """Split whole input lines into messages; bytes that are not UTF-8 become U+FFFD."""
    lines = (line.rstrip(b"\r") for line in data.split(b"\n"))
    return [line.decode(errors="replace") for line in lines if line.strip()]


class Chat:
    """One run of the client.

    Args:
        start: seq_no from which messages are shown; None: from now on.
        quiet: show messages only, not connections and leaders.
        times: show when each message was ordered, in local time.
        colours: own messages are bold, those of others coloured, errors red.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        client_id: int,
        *,
        start: int | None,
        deadline_s: float,
        quiet: bool,
        client_token: str = "",
        tls: ssl.SSLContext | None = None,
        times: bool = False,
        colours: bool = False,
    ) -> None:
        self.times, self._colours = times, colours
        settings = SessionSettings(deadline=deadline_s, client_token=client_token)
        self._reader = partial(ChatClient, addresses, client_id, settings=settings, tls=tls)
        self.client = self._reader(on_outcome=self._on_outcome, on_change=self._on_change)
        self.start = start
        self.failed = 0
        self.output_failed = False
        """True if delivered messages could not be written."""
        self.acknowledged_seq = 0
        self._quiet = quiet
        self._unsettled: dict[int, str] = {}
        self._again: list[str] = []
        """Messages that were not ordered because the session has expired: they are sent in the next session."""
        self._reported: object = None
        """The state that was reported last."""
        self._troubles: set[object] = set()
        """Problems reported since a leader was known."""
        self._closing = False
        self.stop: Callable[[], object] = lambda: None
        """Ends the run early; set by the caller."""

    def begin(self) -> None:
        self.client.follow(self.start, self._on_shown)
        self.client.start()

    def submit(self, messages: Sequence[str]) -> None:
        """Send messages. A message that cannot be sent is reported and counts as rejected; the others are sent."""
        for message in messages:
            try:
                n = self.client.submit_nowait([message])
            except ValueError as error:
                self._fail(f"rejected: {error}", message)
            else:
                self._unsettled[n] = message

    def _on_shown(self, shown: Shown) -> None:
        if self._closing:
            return
        try:
            print(encodable(self._show(shown.lines), sys.stdout), end="", flush=True)
        except OSError as error:
            if not isinstance(error, BrokenPipeError):  # A reader that has closed the pipe is no failure.
                self.output_failed = True
                self.warn(f"! standard output: {error.strerror}")
            # Python would otherwise try to write to it again at the exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.stop()

    def _show(self, lines: bytes) -> str:
        """Return messages as text."""
        if not self.times and not self._colours:
            return show_messages(lines)
        return "".join([f"{self._line(line)}\n" for line in read_messages(lines)])

    def _line(self, line: Line) -> str:
        text = show_message(line)
        if self.times:
            text = f"{datetime.fromtimestamp(line.timestamp):%H:%M:%S} {text}"
        own = line.sender_id == self.client.session.client_id
        return self._in(BOLD if own else COLOURS[line.sender_id % len(COLOURS)], text)

    def _in(self, colour: str, text: str) -> str:
        return f"{colour}{text}{PLAIN}" if self._colours else text

    def warn(self, text: str) -> None:
        shown = encodable(printable(text), sys.stderr)
        print(self._in(ERROR_COLOUR, shown) if text.startswith("!") else shown, file=sys.stderr, flush=True)

    async def history(self, count: int) -> None:
        """Show the last messages, over a connection of its own."""
        last = self.client.session.last_seq
        first = max(1, last - count + 1)
        reader, lines = self._reader(), list[str]()
        try:
            async with asyncio.timeout(HISTORY_S):
                if last:
                    reader.start()
                    async for shown in reader.subscribe(first):
                        lines += [self._line(line) for line in read_messages(shown.lines) if line.seq_no <= last]
                        if shown.last >= last:
                            break
        except TimeoutError:
            self.warn(f"! /history: {reader.last_error or 'no answer'} within {HISTORY_S:g} s")
            return
        finally:
            await reader.close()
        print(encodable("\n".join([*lines, f"-- {len(lines)} of {last} messages"]), sys.stdout), flush=True)

    async def obey(self, command: str) -> bool:
        """Carry out a command of the terminal, without its slash; return False if it is /quit."""
        word, _, given = command.strip().partition(" ")
        number = int(given) if given.isdecimal() else HISTORY if not given else 0
        if word == "quit" and not given:
            return False
        if word == "times" and not given:
            self.times = not self.times
            self.warn(f"-- times are {'shown' if self.times else 'not shown'}")
        elif word == "history" and number:
            await self.history(number)
        elif word == "help" and not given:
            for line in HELP.splitlines():
                self.warn(line)
        else:
            self.warn(f"! found /{command.strip()}, allowed /help, /history [N], /times, /quit; //text sends /text")
        return True

    def state(self) -> str:
        """Return the state line: node, leader, term, last seq_no, messages without an outcome."""
        session = self.client.session
        if not session.welcomed:
            return f"not connected ({self.client.last_error or 'connecting'})"
        if session.leader == NOBODY:
            return self._without_leader()
        text = f"node {session.node} | leader node {session.leader} | term {session.term}"
        waiting = f" | {session.unsettled} waiting" if session.unsettled else ""
        return f"{text} | last seq_no {session.last_seq}{waiting}"

    def _without_leader(self) -> str:
        session = self.client.session
        text, (up, members), waiting = (
            f"node {session.node} has no leader",
            session.members or (1, 1),
            session.unsettled,
        )
        if members > 1:
            text += f" ({up} of {members} nodes up)"
        return f"{text}; {waiting} message{'s' * (waiting != 1)} waiting" if waiting else text

    def _on_outcome(self, outcome: Outcome) -> None:
        if outcome.kind == "ok":
            self.acknowledged_seq = max(self.acknowledged_seq, outcome.seq_no)
        for n in range(outcome.first, outcome.last + 1):
            message = self._unsettled.pop(n, "")
            if outcome.kind == "rejected" and outcome.reason == EXPIRED:
                self._again.append(message)
            elif outcome.kind != "ok":
                self._fail(f"{outcome.kind}: {outcome.reason}", message)
        if self.client.session.ended and not self.client.session.unsettled and not self._closing:
            # Not now: this is called by the session that is replaced.
            asyncio.get_running_loop().call_soon(self._renew)

    def _renew(self) -> None:
        session = self.client.session
        if session.ended and not session.unsettled and not self._closing:
            self.client.renew()
            again, self._again = self._again, []
            self.submit(again)

    def _fail(self, why: str, message: str) -> None:
        self.failed += 1
        self.warn(f"! {why}: {printable(message)[:200]}")

    def _on_change(self) -> None:
        """Report a changed connection or leader; while there is no leader, report each problem once."""
        session = self.client.session
        news: object
        if session.welcomed and session.leader != NOBODY:
            self._troubles.clear()
            news = text = f"-- node {session.node}, leader node {session.leader}, term {session.term}"
        elif session.welcomed and session.members is not None:
            news, text = (session.node, session.members, session.unsettled > 0), f"-- {self._without_leader()}"
        elif not session.welcomed and self.client.last_error:
            news, text = NOT_CONNECTED, f"{NOT_CONNECTED}: {self.client.last_error}"
        else:
            return
        if news != self._reported and news not in self._troubles and not self._quiet and not self._closing:
            self._reported = news
            self._troubles.add(news)
            self.warn(text)

    async def finish(self) -> None:
        """Wait until every message has its outcome, and the log up to the last of them was shown."""
        client = self.client
        await client.until(lambda: not client.session.unsettled and not self._again)
        with contextlib.suppress(TimeoutError):
            if self.start is not None:
                async with asyncio.timeout(LAST_SHOWN_S):
                    await client.until(lambda: client.session.welcomed)
            last = client.session.last_seq if self.start is not None else self.acknowledged_seq
            while (place := client.session.place) <= last and last:
                async with asyncio.timeout(LAST_SHOWN_S):
                    await client.until(lambda: client.session.place > place)
            return
        self.failed += 1
        self.warn(f"! not everything was shown: {self.state()}")

    async def close(self) -> None:
        self._closing = True
        await self.client.close()


async def read_lines() -> AsyncIterator[bytes]:
    """Yield whole lines of stdin as they arrive; lines that wait are yielded together.

    A thread reads, because event loops do not support files, pipes and devices alike. It is a daemon thread, so a read
    that never ends does not delay the exit.
    """
    queue: asyncio.Queue[bytes] = asyncio.Queue(4)
    loop = asyncio.get_running_loop()

    def read() -> None:
        data = b"?"
        with contextlib.suppress(RuntimeError, concurrent.futures.CancelledError):  # The loop has ended.
            while data:
                try:
                    data = os.read(sys.stdin.fileno(), 1 << 16)
                except OSError:  # The terminal was closed.
                    data = b""
                asyncio.run_coroutine_threadsafe(queue.put(data), loop).result()

    threading.Thread(target=read, daemon=True).start()
    rest = b""
    while data := await queue.get():
        data = rest + data
        end = data.rfind(b"\n") + 1
        rest = data[end:][:LINE_BYTES]
        if end:
            yield data[:end]
    if rest:
        yield rest


async def chat_in_pipe(chat: Chat) -> None:
    """Send the lines of stdin and wait for their outcomes."""
    async for lines in read_lines():
        await chat.client.room(PIPE_WINDOW)
        chat.submit(split_messages(lines))
    await chat.finish()


def keyboard() -> Input:
    """Return the terminal's input, reserved for the prompt while messages are printed.

    While it prints a message, prompt_toolkit would switch the terminal back to its normal mode. A key that is pressed
    at that moment would go to the system and be lost: Ctrl+D and backspace have no effect there, because the system has
    no line. So the mode is not switched back.
    """
    keys = create_input()
    keys.cooked_mode = contextlib.nullcontext  # type: ignore[method-assign]
    return keys


async def chat_at_terminal(chat: Chat) -> None:
    """Prompt for messages until Ctrl+D, /quit or Ctrl+C."""
    keys = keyboard()
    prompt: PromptSession[str] = PromptSession(
        "> ", bottom_toolbar=lambda: HTML("<b>{}</b>").format(chat.state()), refresh_interval=0.5, input=keys
    )
    with patch_stdout(raw=True):  # Messages contain no escape sequences: printable() has replaced them.
        with keys.raw_mode():  # also between two prompts
            while True:
                try:
                    text = await prompt.prompt_async(handle_sigint=False)
                except KeyboardInterrupt:
                    return
                except EOFError:
                    break
                if text.startswith("/") and not text.startswith("//"):
                    if not await chat.obey(text[1:]):
                        break
                    continue
                chat.submit(split_messages(text.removeprefix("/").encode(errors="replace")))
        if chat.client.session.unsettled:
            chat.warn(f"-- waiting for {chat.client.session.unsettled} acknowledgements, Ctrl+C leaves")
        await chat.finish()


async def run(chat: Chat) -> int:
    """Chat until the user leaves or stdin ends. Return the exit code."""
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    chatting = asyncio.ensure_future(chat_at_terminal(chat) if interactive else chat_in_pipe(chat))
    loop = asyncio.get_running_loop()
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        interrupted = True
        chatting.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl+C stays a KeyboardInterrupt
            loop.add_signal_handler(number, interrupt)
    chat.stop = interrupt
    chat.begin()
    try:
        await chatting
    except asyncio.CancelledError:
        if not interrupted:
            raise
    finally:
        await chat.close()
    if interactive:
        return 0
    if interrupted and not chat.output_failed:
        return 130
    return 1 if chat.failed or chat.output_failed else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    prog = usage_name("nodeproc.client_tui", "chat")
    parser = argparse.ArgumentParser(prog, description="Chat client of the lab's nodes.")
    parser.add_argument("--host", default="127.0.0.1", help="host of the nodes (default %(default)s)")
    parser.add_argument(
        "--port", type=int, action="append", metavar="PORT",
        help="port of a node (default 5001); repeat it to name several nodes",
    )  # fmt: skip
    parser.add_argument("--client-id", type=int, default=9999, metavar="N", help="sender id (default %(default)s)")
    parser.add_argument("--from", type=int, dest="start", metavar="SEQ", help="show messages from this seq_no on")
    parser.add_argument(
        "--deadline",
        type=float,
        default=30.0,
        metavar="S",
        help="maximum wait for one message in seconds (%(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="do not show connections and leaders")
    parser.add_argument("--times", action="store_true", help="show when each message was ordered")
    flags.add_token_flag(parser)
    flags.add_tls_flags(parser)
    options = parser.parse_args(arguments)
    options.port = options.port or [5001]
    for port in options.port:
        if not 0 < port < 65536:
            parser.error(f"--port {port}: allowed 1..65535")
    if not 0 <= options.client_id < 2**53:
        parser.error(f"--client-id {options.client_id}: allowed 0..{2**53 - 1}")
    if options.start is not None and options.start < 1:
        parser.error(f"--from {options.start}: allowed 1 and above")
    if not 0 < options.deadline < 1e9:
        parser.error(f"--deadline {options.deadline:g}: allowed above 0, below 1e9")
    options.tls = flags.tls_of(options, parser)
    options.client_token = flags.token_of(options, parser)
    return options


async def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return the exit code."""
    options = parse(arguments)
    addresses = [(options.host, port) for port in options.port]
    chat = Chat(
        addresses,
        options.client_id,
        start=options.start,
        deadline_s=options.deadline,
        quiet=options.quiet,
        client_token=options.client_token,
        tls=options.tls,
        times=options.times,
        colours=sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb",
    )
    return await run(chat)


def start(arguments: Sequence[str] | None = None) -> int:
    """Run the command in an event loop. Return the exit code."""
    try:
        return asyncio.run(main(arguments))
    except KeyboardInterrupt:  # Before the loop handles signals.
        return 130


if __name__ == "__main__":
    sys.exit(start())
