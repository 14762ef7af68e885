"""What can go wrong with a node through no fault of its code.

    ChatError
    ├── ConfigError         the configuration file or a flag is wrong          exit code 2
    │   └── TlsProblem      a PEM file is missing or does not fit (nodeproc.tls)
    ├── StorageError
    │   ├── CorruptionError durable data is not what was written               exit code 3
    │   └── WriteFailed     a write or fdatasync failed; the file is given up  exit code 4
    ├── Unreachable         no node answered a client at the addresses given
    ├── LinkRefused         a peer is not of this cluster, or says so of us    the link is closed
    └── FrameError          bytes from outside that are not a frame or a line  the connection is closed

A broken invariant of our own is an AssertionError and ends the process with exit code 70.
"""

from __future__ import annotations


class ChatError(Exception):
    """Base of all; its text is one line that names what was found and what is allowed."""


class ConfigError(ChatError):
    """The user's configuration can't be used."""


class StorageError(ChatError):
    """The data directory can't be used."""


class CorruptionError(StorageError):
    """Durable data is damaged: nothing was changed. Names file and offset. Rule: K2, R2."""


class WriteFailed(StorageError):
    """A write or fdatasync failed; the node must stop. Rule: K5."""


class LinkRefused(ChatError):
    """The two ends of a link don't prove to belong to the same cluster. Rule: M3."""


class FrameError(ChatError):
    """Bytes from a peer or client can't be understood: the stream is not to be trusted any more. Rule: S7."""


class Unreachable(ChatError):
    """No node answered a client in time; names the addresses and the last error."""
