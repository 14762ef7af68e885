"""Parsers of option values that several commands share. Each raises an argparse error that names the allowed values.

Modules that only one parser needs are imported by it, so that `--help` starts fast.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from lab.engines.catalogue import Spec

SEED_MAX: Final = 2**31 - 1


def between(least: int, most: int, allowed: str = "") -> Callable[[str], int]:
    """Return a parser of whole numbers within bounds; `allowed` replaces the bounds in the error message."""

    def number(text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"found {text!r}, allowed {allowed or f'{least}..{most}'}")
        return int(text)

    return number


positive: Final = between(1, SEED_MAX)
count: Final = between(0, SEED_MAX)
seed: Final = between(0, SEED_MAX)
jobs: Final = between(1, 64)


def beyond_the_last(first: int, seeds: int) -> str:
    """Return why there are not so many seeds from the first one on; "" if there are."""
    allowed = SEED_MAX - first + 1
    return f"--seeds: found {seeds}, allowed up to {allowed} from seed {first}" if seeds > allowed else ""


def sizes(text: str) -> tuple[int, ...]:
    """Parse cluster sizes such as 3,5; return them ascending."""
    from lab.plan.scenario import MAX_NODES

    size = between(1, MAX_NODES, f"1..{MAX_NODES}, joined by commas")
    return tuple(sorted({size(each) for each in text.split(",")}))


def share(text: str) -> float:
    """Parse a share such as 0.5."""
    if not re.fullmatch(r"0(\.[0-9]+)?|1(\.0+)?", text):
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed a number from 0 to 1 such as 0.5")
    return float(text)


def duration(text: str) -> float:
    """Parse a duration such as 90s; return seconds."""
    from lab.words import Duration

    try:
        return float(Duration.parse(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def running_time(text: str) -> float:
    """Parse the running time of something long, such as 90s, 10m or 4h; return seconds, more than 0."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(s|m|h)", text)
    seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed a time such as 90s, 10m or 4h")
    return seconds


def name(text: str) -> str:
    """Parse the name of a directory of results."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", text):
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed up to 100 letters, digits, '_', '-' and '.'")
    return text


def unwritable(directory: Path) -> str:
    """Return why results cannot be written to a directory, which is made if it is missing; "" if they can."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"--out: found {directory}, allowed a directory that can be written: {error.strerror}"
    return "" if os.access(directory, os.W_OK | os.X_OK) else f"--out: found {directory}, which is not writable"


def mutant(text: str) -> str:
    """Parse the name of a mutant; "" for none."""
    if not text:
        return ""  # Without the import: modules that are loaded already can't become native ones.
    from lab.mutants import catalogue

    try:
        return catalogue.mutant(text).name
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def engine(text: str) -> Spec:
    """Parse NAME@VERSION."""
    from lab.engines import catalogue

    try:
        return catalogue.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def option(text: str) -> tuple[str, str]:
    """Parse NAME=VALUE."""
    name, found, value = text.partition("=")
    if not name or not found:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed NAME=VALUE")
    return name, value


def add_mutant(parser: argparse.ArgumentParser) -> None:
    """Add the option --mutant."""
    what = "break one rule of the protocol (docs/teaching.md)"
    parser.add_argument("--mutant", metavar="NAME", type=mutant, default="", help=what)


def processors() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
