"""`run_lab.py watch`: show a run in the terminal, as it happens or afterwards."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from lab.places import RESULTS

PASS, USAGE, HARNESS = 0, 64, 70


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run_lab.py watch`."""
    what = "the directory of a run (by default the newest run, and each that begins later)"
    parser.add_argument("run", metavar="RUN", nargs="?", type=Path, help=what)
    parser.add_argument("--out", metavar="DIR", type=Path, default=RESULTS, help=f"results directory ({RESULTS})")
    parser.add_argument("--speed", metavar="X", type=_speed, default=0.0, help="replay the run at X times its own pace")


def main(options: argparse.Namespace) -> int:
    """Show the run until the user leaves; return 0, 64 if there is no such run, or 70 without the extra."""
    if importlib.util.find_spec("textual") is None:
        print("watch needs textual: pip install 'chatlab[ui]', or pip install textual", file=sys.stderr)
        return HARNESS
    run: Path | None = options.run
    if run is not None and not (run / "live.jsonl").is_file():
        print(f"{run}: found no live.jsonl, allowed: the directory of a run", file=sys.stderr)
        return USAGE
    from lab.watch.terminal import Terminal

    results: Path = options.out
    Terminal((lambda: newest(results)) if run is None else (lambda: run), options.speed).run()
    return PASS


def newest(results: Path) -> Path | None:
    """Return the directory of the run that began last; None if there is none."""
    path = (results / "latest").resolve()
    return path if (path / "live.jsonl").is_file() else None


def _speed(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed 0..100")
    return value
