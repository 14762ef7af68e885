"""`cluster.command`: another program as the node, and the placeholders in its command.

A word in braces, such as `{config}` or `{port}`, is replaced by a value that only a run knows.
docs/bring_your_own_node.md explains how to write such a program.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

PLACEHOLDERS: dict[str, str] = {
    "config": "path of a JSON file with everything below, and the cluster's timings",
    "id": "the node's number: 1, 2, 3, …",
    "host": "the address to listen at",
    "port": "the port to listen at, for clients and for the other nodes",
    "peers": "the other nodes as this one reaches them: 2=127.0.0.1:5002,3=127.0.0.1:5003",
    "data_dir": "the node's own directory; it survives restarts",
    "message_log": "where the node writes what it has delivered",
    "events": "where it may write events",
    "python": "the interpreter that runs the lab",
}
"""Placeholder -> its meaning."""
NEEDED = ("config", "port")
"""At least one of these is required, because the program must know where to listen."""

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


def split_command(command: str | tuple[str, ...]) -> tuple[str, ...]:
    """Split a command into its arguments.

    Raises:
        ValueError: the command is not valid; the text says why.
    """
    arguments = tuple(shlex.split(command)) if isinstance(command, str) else command
    if not arguments or not arguments[0]:
        raise ValueError("is empty; give a program and its arguments")
    named = [word for argument in arguments for word in _PLACEHOLDER.findall(argument)]
    for word in named:
        if word not in PLACEHOLDERS:
            raise ValueError(f"found {{{word}}}, allowed {', '.join(f'{{{each}}}' for each in PLACEHOLDERS)}")
    if not set(named) & set(NEEDED):
        raise ValueError("names neither {config} nor {port}, so that the program could not know where to listen")
    return arguments


def filled(command: tuple[str, ...], values: Mapping[str, str]) -> tuple[str, ...]:
    """Return the command of one node, with its placeholders replaced.

    Args:
        values: a value for every placeholder.
    """
    return tuple(_PLACEHOLDER.sub(lambda match: values[match[1]], argument) for argument in command)
