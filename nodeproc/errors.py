"""What can go wrong with a node through no fault of its code.

    ChatError
    ├── ConfigError         the configuration file or a flag is wrong          exit code 2
    │   ├── FileProblem     its place in a file is known
    │   └── TlsProblem      a PEM file is missing or does not fit (nodeproc.tls)
    ├── StorageError
    │   ├── CorruptionError durable data is not what was written               exit code 3
    │   ├── ReadFailed      the disk gave an error instead of bytes            what needed them is put off
    │   ├── Unreadable      delivered records can't be read, or are damaged    a copy is fetched from a peer
    │   └── WriteFailed     a write or fdatasync failed; the file is given up  exit code 4
    ├── Unreachable         no node answered a client at the addresses given
    ├── LinkRefused         a peer is not of this cluster, or says so of us    the link is closed
    └── FrameError          bytes from outside that are not a frame or a line  the connection is closed

A broken invariant of our own is an AssertionError and ends the process with exit code 70.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Final

import msgspec

EXIT_CLEAN: Final = 0
EXIT_CONFIG: Final = 2
EXIT_CORRUPTION: Final = 3
EXIT_WRITE_FAILED: Final = 4
EXIT_INTERNAL: Final = 70

MALFORMED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what they should be: the last two for bad UTF-8 and for deep nesting."""

REASON_MAX = 300
"""Characters of a complaint about somebody's bytes, which may quote them: no stranger fills our log, or our answers."""


class ChatError(Exception):
    """Base of all; its text is one line that names what was found and what is allowed."""


class ConfigError(ChatError):
    """The user's configuration can't be used."""


class FileProblem(ConfigError):
    """A configuration file or scenario can't be used.

    Attributes:
        path: the file.
        line, column: from 1; 0 where the whole file is meant.
        message: what was found and what is allowed, without the place.
        source: the line and a caret beneath, each behind a newline; "" where there is nothing to see.
        allowed: the words that may stand there, where they are a list.
    """

    def __init__(
        self, path: str, message: str, line: int = 0, column: int = 0, source: str = "", allowed: Sequence[str] = ()
    ) -> None:
        at = f":{line}:{column}" if line else ""
        super().__init__(f"{path}{at}: {message}{source}")
        self.path, self.line, self.column, self.message = path, line, column, message
        self.source, self.allowed = source, tuple(allowed)


class StorageError(ChatError):
    """The data directory can't be used."""


class CorruptionError(StorageError):
    """Durable data is damaged: nothing was changed. Names file and offset. Rule: K2, R2."""


class ReadFailed(StorageError):
    """The disk gave an error instead of bytes; unlike a failed write, this says nothing about others. Rule: K6."""


class Unreadable(StorageError):
    """Delivered records can't be read, or are not what was written; the node goes on. Rule: K6.

    after: (term, seq_no) of the record before the first of them.
    file, at: where that was seen.
    """

    def __init__(self, after: tuple[int, int], file: str, at: int, what: str) -> None:
        super().__init__(f"{file}: offset {at}: {what}")
        self.after, self.file, self.at, self.what = after, file, at, what


class WriteFailed(StorageError):
    """A write or fdatasync failed; the node must stop. Rule: K5."""


class LinkRefused(ChatError):
    """The two ends of a link don't prove to belong to the same cluster. Rule: M3."""


class FrameError(ChatError):
    """Bytes from a peer or client can't be understood: the stream is not to be trusted any more. Rule: S7."""


class Unreachable(ChatError):
    """No node answered a client in time; names the addresses and the last error."""


def did_you_mean(found: str, allowed: Iterable[str]) -> str:
    """` (did you mean X?)` with the allowed word that is most like the one found; "" where none is like it."""
    by_small = {each.lower(): each for each in allowed}
    near = get_close_matches(found.lower()[:200], by_small, 1)
    return f" (did you mean {by_small[near[0]]}?)" if near else ""


def brief(reason: object) -> str:
    """What is told of a complaint."""
    text = str(reason)
    return text if len(text) <= REASON_MAX else f"{text[:REASON_MAX]} …"
