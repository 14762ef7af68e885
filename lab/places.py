"""Where the lab finds its files and puts its results, and what its command is called.

                    in a checkout                    installed
    command         python3 run_lab.py               chatlab
    packaged files  the checkout's own directories   lab/share, filled by the build (pyproject.toml)
    scenarios       scenarios/ of the checkout       ./scenarios, then the packaged ones
    results         results/ of the checkout         ./results
    children        find `lab` by PYTHONPATH         find `lab` as every installed package

CHATLAB_RESULTS names another directory for results, CHATLAB_ENGINES one for engines. An editable install is a checkout
with the command chatlab. This module uses the standard library only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The directory that contains the packages lab and nodeproc: the checkout, or site-packages."""
CHECKOUT = (ROOT / "run_lab.py").is_file()
"""True in an unpacked source distribution and for an editable install, too."""
INSTALLED = not CHECKOUT or Path(sys.argv[0] if sys.argv else "").name == "chatlab"
"""True if the lab is used as the right column says."""

PROGRAM = "chatlab" if INSTALLED else "run_lab.py"
"""The name of the program in usage lines and in prose."""
COMMAND = "chatlab" if INSTALLED else "python3 run_lab.py"
"""The words that start the program, for commands that a user can copy."""

SHARE = ROOT if CHECKOUT else ROOT / "lab" / "share"
CONFIGS = SHARE / "configs"
DOCS = SHARE / "docs"
PACKAGED = SHARE / "scenarios"
SCENARIOS = (Path("scenarios"), PACKAGED) if INSTALLED else (PACKAGED,)
"""The directories in which scenarios are found by name, the user's own first. The first one may not exist."""
GIVEN_RESULTS = os.environ.get("CHATLAB_RESULTS", "")
ENGINES = Path(os.environ.get("CHATLAB_ENGINES") or Path.home() / ".cache" / "chatlab" / "engines").absolute()
"""The directory of the installed versions of other engines (lab.engines.install)."""
RESULTS = Path(GIVEN_RESULTS or ("results" if INSTALLED else ROOT / "results")).absolute()


def installing(extra: str) -> str:
    """Return the command that installs an extra beside this lab, which is on no package index."""
    return f"{sys.executable} -m pip install '{ROOT if CHECKOUT else 'chatlab'}[{extra}]'"


def near(path: Path) -> Path:
    """Return the path relative to the working directory if it is inside of it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
