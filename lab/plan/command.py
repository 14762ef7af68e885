"""`cluster.command`: the program that stands in for the lab's own node, and what is filled in for it.

A word in braces stands for what only a run knows: `{config}`, `{port}`. docs/bring_your_own_node.md is for those who
write such a program.
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
"""Word -> what it stands for."""
NEEDED = ("config", "port")
"""Without one of them a program can't know where to listen."""

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


def split_command(command: str | tuple[str, ...]) -> tuple[str, ...]:
    """A command as its arguments.

    Raises:
        ValueError: nothing can be made of it; says why.
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
    """The command of one node, its placeholders filled in.

    Args:
        values: one for every placeholder.
    """
    return tuple(_PLACEHOLDER.sub(lambda match: values[match[1]], argument) for argument in command)
