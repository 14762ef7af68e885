"""Clear errors if a program's imports fail. Uses the standard library only and runs on Python 3.7 or newer."""

from __future__ import annotations

import contextlib
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


@contextlib.contextmanager
def importing(program: str, command: str, interrupted: int) -> Iterator[None]:
    """End the process with one line if an import in the with block fails.

    Args:
        program: the line begins with this name.
        command: a command that installs the packages first.
        interrupted: exit code after Ctrl+C.
    """
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
