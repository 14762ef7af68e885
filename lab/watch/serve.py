"""`run_lab.py serve`: show runs in the browser, as they happen or afterwards."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from lab.live.children import child_environment
from lab.places import RESULTS, SCENARIOS, installing
from lab.plan.choosing import find
from lab.plan.sense import load_checked
from lab.values import between
from nodeproc.errors import ConfigError

PASS, USAGE, HARNESS = 0, 64, 70


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run_lab.py serve`."""
    beginning = "sessions by hand begin with the steps of this scenario (%(default)s)"
    parser.add_argument("scenario", metavar="SCENARIO", nargs="?", default="by_hand", help=beginning)
    parser.add_argument("--port", metavar="P", type=between(0, 65535), default=0, help="port (0: a free one)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=RESULTS, help=f"results directory ({RESULTS})")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--attached", action="store_true", help=argparse.SUPPRESS)  # End when stdin is closed.


def main(options: argparse.Namespace) -> int:
    """Serve until the user interrupts; return 0, 64 if the port is taken or there is no such scenario, or 70 without
    the extra.
    """
    if why := missing("serve"):
        print(why, file=sys.stderr)
        return HARNESS
    try:
        load_checked(find(options.scenario, SCENARIOS))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return USAGE
    try:
        asyncio.run(_serve(options))
    except OSError as error:
        print(f"--port {options.port}: {error.strerror or error}; allowed: a free port, or 0", file=sys.stderr)
        return USAGE
    return PASS


@contextlib.contextmanager
def beside(results: Path) -> Iterator[None]:
    """Serve in a process of its own, which prints its address to stderr and ends with this one."""
    command = [sys.executable, "-m", "lab", "serve", "--attached", "--out", str(results)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=sys.stderr, env=child_environment())
    try:
        yield
    finally:
        assert server.stdin is not None
        server.stdin.close()
        server.wait()


def missing(command: str) -> str:
    """Return what is missing for a command that serves pages, and how to install it; "" if nothing is."""
    if importlib.util.find_spec("aiohttp") is None:
        return f"{command} needs aiohttp: {installing('ui')}"
    return ""


async def _serve(options: argparse.Namespace) -> None:
    from lab.watch.server import Server
    from lab.watch.web import serve

    attached: bool = options.attached
    page, note = ("latest", "") if attached else ("", f"the runs below {options.out}; Ctrl+C ends")
    server = Server(options.out, beginning="" if attached else options.scenario)
    await serve(server, options.port, page, note, open_page=options.open, attached=attached, audience=not attached)
