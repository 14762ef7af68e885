"""Errors that have their cause outside the code: configuration, disk, network, other programs.

    ChatError
    ├── ConfigError         the configuration file or a flag is wrong          exit code 2
    │   ├── FileProblem     with its place in a file
    │   └── TlsProblem      a PEM file is missing or does not fit (nodeproc.tls)
    ├── StorageError
    │   ├── CorruptionError durable data differs from what was written         exit code 3
    │   ├── ReadFailed      the disk reported an error on a read               at the start exit code 4, later a retry
    │   ├── Unreadable      delivered records are damaged or can't be read     a copy is fetched from a peer
    │   └── WriteFailed     a write or fdatasync failed                        exit code 4
    ├── Unreachable         no node answered a client at the given addresses
    ├── LinkRefused         the two ends of a link don't belong together       the link is closed
    └── FrameError          received bytes are not a frame or a line           the connection is closed

A broken invariant of the code itself is an AssertionError and ends the process with exit code 70.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Final

import msgspec

EXIT_CLEAN: Final = 0
EXIT_CONFIG: Final = 2
EXIT_CORRUPTION: Final = 3
EXIT_DISK_FAILED: Final = 4
EXIT_INTERNAL: Final = 70

MALFORMED: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""The errors that msgspec raises for malformed bytes; the last two for bad UTF-8 and for deep nesting."""

REASON_MAX: Final = 300
"""Characters of a message about received bytes. Such a message may quote them, so a sender could fill the log."""


class ChatError(Exception):
    """Base class. The text of an error is one line that names what was found and what is allowed."""


class ConfigError(ChatError):
    """The user's configuration can't be used."""


class FileProblem(ConfigError):
    """A configuration file or scenario can't be used.

    Attributes:
        path: the file.
        line, column: counted from 1; 0 if the problem concerns the whole file.
        message: what was found and what is allowed, without the place.
        source: the line and a caret beneath it, each after a newline; "" if there is nothing to show.
        allowed: the words that are allowed at the place, if they form a list.
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
    """Durable data is damaged; nothing was changed. Rule: K2, R2.

    file, at, what: the place and what was found there; "" and 0 if the error concerns no file.
    """

    def __init__(self, text: str, file: str = "", at: int = 0, what: str = "") -> None:
        super().__init__(text)
        self.file, self.at, self.what = file, at, what


class ReadFailed(StorageError):
    """The disk reported an error on a read. Unlike a failed write, this does not affect other data. Rule: K6.

    file, what: the file and the reason; file is "" if the caller knows it.
    """

    def __init__(self, what: str, file: str = "") -> None:
        super().__init__(f"{file}: {what}" if file else what)
        self.file, self.what = file, what


class Unreadable(StorageError):
    """Delivered records are damaged or can't be read. The node continues. Rule: K6.

    after: (term, seq_no) of the record before the first of them.
    file, at: where the damage was noticed.
    """

    def __init__(self, after: tuple[int, int], file: str, at: int, what: str) -> None:
        super().__init__(f"{file}: offset {at}: {what}")
        self.after, self.file, self.at, self.what = after, file, at, what


class WriteFailed(StorageError):
    """A write or fdatasync failed; the node must stop. Rule: K5."""


class LinkRefused(ChatError):
    """An end of a link has not proven that it belongs to the same cluster. Rule: M3."""


class FrameError(ChatError):
    """Bytes from a peer or client are malformed, so the rest of the stream can't be used either. Rule: S7."""


class Unreachable(ChatError):
    """No node answered a client in time. The text names the addresses and the last error."""


def did_you_mean(found: str, allowed: Iterable[str]) -> str:
    """Return ` (did you mean X?)` with the allowed word that is most similar to the one found, or ""."""
    by_small = {each.lower(): each for each in allowed}
    near = get_close_matches(found.lower()[:200], by_small, 1)
    return f" (did you mean {by_small[near[0]]}?)" if near else ""


def brief(reason: object) -> str:
    """Return the text of a reason, cut to REASON_MAX characters."""
    text = str(reason)
    return text if len(text) <= REASON_MAX else f"{text[:REASON_MAX]} …"
