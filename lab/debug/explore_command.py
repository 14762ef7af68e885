"""`run_lab.py explore`: the search of lab.search.explore, or, with --web, its states as a page."""

from __future__ import annotations

import argparse
import sys

from lab import values
from lab.search import explore

HARNESS = 70


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the search, and those of the page."""
    explore.add_arguments(parser)
    parser.add_argument("--web", action="store_true", help="choose each event on a page in the browser")
    parser.add_argument(
        "--port", metavar="P", type=values.between(0, 65535), default=0, help="its port (0: a free one)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def main(options: argparse.Namespace) -> int:
    """Search, or serve the page; return the exit code."""
    if not options.web:
        return explore.main(options)
    from lab.watch.serve import missing

    if why := missing("explore --web"):
        print(why, file=sys.stderr)
        return HARNESS
    from lab.debug import explorer

    return explorer.main(options)
