"""The start of a program: standard streams and imports. Runs on Python 3.7 or newer, with the standard library only."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

OLDEST_PYTHON = (3, 11)
EXIT_UNUSABLE = 2
REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"


def usage_name(module: str, command: str) -> str:
    """Return how a usage line names a program: by the installed script that runs it, or as `python -m module`.

    Args:
        command: the word for the program in `chatlab WORD`.
    """
    script = Path(sys.argv[0]).name
    return {"chatlab": f"chatlab {command}", f"chatlab-{command}": script}.get(script, f"python -m {module}")


def open_standard_streams() -> None:
    """Open /dev/null for each closed standard stream; no other file may get its number, and so the program's output."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w" if number else "r"))  # noqa: SIM115


@contextlib.contextmanager
def importing(program: str, command: str, interrupted: int) -> Iterator[None]:
    """Begin a program: open its standard streams, and end it with one line if an import in the with block fails.

    Args:
        program: the line begins with this name.
        command: a command that installs the packages first.
        interrupted: exit code after Ctrl+C.
    """
    open_standard_streams()
    try:
        if sys.version_info < OLDEST_PYTHON:
            raise ImportError(f"Python {sys.version.split()[0]}, allowed 3.11 or newer")
        yield
    except KeyboardInterrupt:
        raise SystemExit(interrupted) from None
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError):
            if str(error.name).startswith("nodeproc"):
                raise
            found = f"the package {error.name} is missing in {sys.prefix}"
        else:
            found = str(error)
        install = f"`{command}` brings it along, or pip install -r {REQUIREMENTS}"
        if not REQUIREMENTS.is_file():  # This is an installed package and no checkout.
            install = "install chatlab again, with its requirements"
        print(f"{program}: {found}; {install}", file=sys.stderr)
        raise SystemExit(EXIT_UNUSABLE) from None
