"""A few lines of HTTP for engines with a JSON interface: one connection a request, no redirects, no encodings.

HTTP/1.0 makes the end of an answer the end of its connection, so that a stream of lines can be read as it comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import msgspec

HEAD_LIMIT = 1 << 16
CHUNK = 1 << 16


class Answer(NamedTuple):
    """code: HTTP status. body: its JSON; None if it is none."""

    code: int
    body: Any


class NotSent(Exception):
    """No connection could be opened, so that the server has not seen the request."""


async def listens(host: str, port: int, *, within: float) -> bool:
    """Return whether a server accepts connections at this address. within: seconds."""
    try:
        async with asyncio.timeout(within):
            _, writer = await asyncio.open_connection(host, port)
    except OSError:  # TimeoutError is one
        return False
    writer.close()
    return True


async def ask(host: str, port: int, path: str, body: Any = None, *, within: float) -> Answer:
    """GET a path, or POST a JSON body to it.

    Args:
        within: seconds for the connection and the answer.

    Raises:
        NotSent: the server is down.
        OSError, TimeoutError, EOFError: the request may have been carried out.
    """
    async with asyncio.timeout(within), _asked(host, port, path, body) as (code, reader):
        raw = await reader.read()
    try:
        return Answer(code, msgspec.json.decode(raw))
    except msgspec.DecodeError:
        return Answer(code, None)


async def stream(host: str, port: int, path: str, body: Any, *, within: float) -> AsyncGenerator[Any, None]:
    """POST a JSON body; yield the JSON of each line of the answer until the server ends it.

    Args:
        within: seconds until the answer begins.

    Raises:
        NotSent, OSError, TimeoutError, EOFError.
    """
    async with asyncio.timeout(within) as begin, _asked(host, port, path, body) as (code, reader):
        begin.reschedule(None)
        if code != 200:
            raise EOFError(f"HTTP status {code}")
        held = b""
        while chunk := await reader.read(CHUNK):
            *lines, held = (held + chunk).split(b"\n")
            for line in lines:
                if line:
                    yield msgspec.json.decode(line)


@asynccontextmanager
async def _asked(host: str, port: int, path: str, body: Any) -> AsyncIterator[tuple[int, asyncio.StreamReader]]:
    """Send a request; yield the status of the answer and the reader of its body."""
    try:
        reader, writer = await asyncio.open_connection(host, port, limit=HEAD_LIMIT)
    except OSError as error:
        raise NotSent(f"{host}:{port}: {error.strerror or error}") from None
    try:
        data = b"" if body is None else msgspec.json.encode(body)
        head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.0\r\nHost: {host}:{port}\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        head_lines = await reader.readuntil(b"\r\n\r\n")
        yield _code(head_lines), reader
    finally:
        writer.close()


def _code(head: bytes) -> int:
    """Return the status code in the head of an answer. Raises: EOFError."""
    words = head.split(None, 2)
    if len(words) < 2 or not words[1].isdigit():
        raise EOFError(f"no HTTP answer: {head[:100]!r}")
    return int(words[1])
