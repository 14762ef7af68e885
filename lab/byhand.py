"""The commands `node` and `chat`: the programs of nodeproc, under the name of the lab's command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lab.places import CONFIGS, PROGRAM

USAGE = 64
NODE_COMMANDS = ("members", "join", "verify", "recover")
"""Commands of `python -m nodeproc`."""


def run_node(given: Sequence[str]) -> int:
    """Run one node until it is stopped; return its exit code.

    Args:
        given: the number of a configuration in configs/ or the path of a configuration file, then options of
            `python -m nodeproc`; or one of its commands, such as `verify`, and the command's arguments.
    """
    flags = list(given)
    if not flags:
        allowed = f"{', '.join(numbers())}, or a configuration file"
        print(f"{PROGRAM.removesuffix('.py')}: no node given, allowed: {allowed}", file=sys.stderr)
        return USAGE
    if not flags[0].startswith("-") and flags[0] not in NODE_COMMANDS:
        flags[:1] = ["--config", str(CONFIGS / f"node{flags[0]}.yml") if flags[0] in numbers() else flags[0]]
    from nodeproc.__main__ import main

    return main(flags)


def members(given: Sequence[str]) -> int:
    """Show or change the members of a running cluster; return the exit code. given: see nodeproc.members."""
    return run_node(["members", *given])


def numbers() -> list[str]:
    """Return the numbers of the nodes with a configuration in configs/."""
    return sorted(path.stem.removeprefix("node") for path in CONFIGS.glob("node*.yml"))


def chat(given: Sequence[str]) -> int:
    """Chat until the user leaves or standard input ends; return the client's exit code.

    Args:
        given: options of `python -m nodeproc.client_tui`.
    """
    from nodeproc.client_tui import start

    return start(given)
