"""`run_lab.py watch`: show a run in the terminal, as it happens or afterwards."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path

from lab.places import RESULTS, SCENARIOS, installing, near
from lab.plan.choosing import find
from lab.plan.sense import load_checked
from lab.rundir import RunDir
from nodeproc.errors import ConfigError

PASS, USAGE, HARNESS = 0, 64, 70


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run_lab.py watch`."""
    what = "the directory of a run (by default the newest run, and each that begins later)"
    parser.add_argument("run", metavar="RUN", nargs="?", type=Path, help=what)
    parser.add_argument("--out", metavar="DIR", type=Path, default=RESULTS, help=f"results directory ({RESULTS})")
    parser.add_argument("--speed", metavar="X", type=_speed, default=0.0, help="replay the run at X times its own pace")
    by_hand = (
        "start a session by hand, which begins with the steps of this scenario (%(const)s), and inject faults by keys"
    )
    parser.add_argument("--hands", metavar="SCENARIO", nargs="?", const="by_hand", help=by_hand)


def main(options: argparse.Namespace) -> int:
    """Show the run until the user leaves; return 0, 64 if there is no such run, or 70 without the extra.

    With --hands return the exit code of the session's run.
    """
    if importlib.util.find_spec("textual") is None:
        print(f"watch needs textual: {installing('ui')}", file=sys.stderr)
        return HARNESS
    run: Path | None = options.run
    if options.hands is not None:
        return _by_hand(options)
    if run is not None and not (run / "live.jsonl").is_file():
        print(f"{run}: found no live.jsonl, allowed: the directory of a run", file=sys.stderr)
        return USAGE
    from lab.watch.terminal import Terminal

    results: Path = options.out
    Terminal((lambda: newest(results)) if run is None else (lambda: run), options.speed).run()
    return PASS


def _by_hand(options: argparse.Namespace) -> int:
    """Start a session by hand, and show it."""
    from lab.watch.session import Session
    from lab.watch.terminal import Terminal

    if options.run is not None or options.speed:
        print("--hands: found with RUN or --speed, allowed without, because it starts a run", file=sys.stderr)
        return USAGE
    try:
        load_checked(find(options.hands, SCENARIOS))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return USAGE
    with tempfile.TemporaryFile() as errors:
        app = Terminal(lambda: None, begin=lambda: Session.begin(options.out, options.hands, errors=errors))
        app.run()
        if app.session is None or app.session.exit_code is None:
            errors.seek(0)
            print(f"{errors.read().decode(errors='replace')}{app.problem}", file=sys.stderr)
            return HARNESS
    run = RunDir(app.session.directory)
    print(run.summary.read_text("utf-8") if run.summary.is_file() else "", end="")
    print(f"kept as a scenario: {near(run.by_hand)}")
    return app.session.exit_code


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
