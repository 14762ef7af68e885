"""How node and chat begin where their packages are missing, or where Ctrl+C comes while they are imported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import TOO_LONG_S

ROOT = Path(__file__).resolve().parents[2]
NODE, CHAT = ("-m", "nodeproc", "--help"), ("-m", "nodeproc.client_tui", "--help")


def begin(*arguments: str, path: Path = ROOT) -> tuple[int, list[str]]:
    """(exit code, lines of stderr) of a Python without site-packages."""
    done = subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=path,
        env={"PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=TOO_LONG_S,
        check=False,
    )
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize(
    ("arguments", "start"),
    [(NODE, "nodeproc: the package msgspec is missing in "), (CHAT, "chat: the package prompt_toolkit is missing in ")],
)
def test_without_packages_one_line_says_what_brings_them_along(arguments: tuple[str, ...], start: str) -> None:
    code, (line,) = begin(*arguments)
    assert code == 2
    assert line.startswith(start) and "`python3 run_lab.py " in line and "requirements.txt" in line


def test_an_installed_package_names_no_file_of_a_checkout(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "nodeproc", tmp_path / "nodeproc")
    code, (line,) = begin(*NODE, path=tmp_path)
    assert code == 2
    assert line.startswith("nodeproc: the package msgspec is missing in ")
    assert line.endswith("; install chatlab again, with its requirements")


@pytest.mark.parametrize(("arguments", "code"), [(NODE, 0), (CHAT, 130)])
def test_ctrl_c_during_the_imports_is_no_traceback(arguments: tuple[str, ...], code: int, tmp_path: Path) -> None:
    for first in ("msgspec.py", "prompt_toolkit.py"):
        (tmp_path / first).write_text("raise KeyboardInterrupt")
    assert begin(*arguments, path=tmp_path) == (code, [])


def test_a_missing_module_of_our_own_is_our_error(tmp_path: Path) -> None:
    (tmp_path / "msgspec.py").write_text("import nodeproc.no_such_module")
    code, lines = begin(*NODE, path=tmp_path)
    assert code == 1 and lines[-1] == "ModuleNotFoundError: No module named 'nodeproc.no_such_module'"
