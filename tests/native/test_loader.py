"""Which build a process uses, and what it says when it uses none. No compiler is needed."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab import native as building
from lab.places import ROOT
from nodeproc import native
from nodeproc.native import BUILDS, INTERPRETER, MANIFEST, SWITCH
from tests import TOO_LONG_S

MODULE = "nodeproc.core.log"


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory for builds that is used instead of the checkout's."""
    monkeypatch.setattr(native, "BUILDS", tmp_path)
    monkeypatch.setattr(building, "BUILDS", tmp_path)
    monkeypatch.delenv(SWITCH)
    return tmp_path


def made(builds: Path, **changes: object) -> Path:
    """Write the manifest of a build of the present sources."""
    contents = building.sources([MODULE])
    key = native.digest([MODULE], contents, "1.0")
    directory = builds / f"{INTERPRETER}-{key}"
    directory.mkdir()
    values = {"modules": [MODULE], "sources": [*contents], "mypy": "1.0", "digest": key} | changes
    (directory / MANIFEST).write_text(json.dumps(values))
    return directory


def test_a_build_of_the_present_sources_is_chosen(builds: Path) -> None:
    directory = made(builds)
    assert native.choose()[:2] == (directory, "")


def test_without_a_build_there_is_nothing_to_say(builds: Path) -> None:
    assert native.choose()[:2] == (None, "")


def test_the_switch_turns_a_build_off(builds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(builds)
    monkeypatch.setenv(SWITCH, "0")
    assert native.choose()[:2] == (None, "CHATLAB_NATIVE=0")


def test_a_build_of_other_sources_is_stale(builds: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    for name, content in building.sources([MODULE]).items():
        (changed / name).parent.mkdir(parents=True, exist_ok=True)
        (changed / name).write_bytes(content)
    monkeypatch.setattr(native, "ROOT", changed)
    directory = made(builds)
    assert native.choose().directory == directory
    messages = changed / "nodeproc/core/messages.py"  # The module imports it: its types are part of the compiled code.
    messages.write_bytes(messages.read_bytes() + b"\n")
    assert native.choose()[:2] == (None, "the sources have changed since the build")
    messages.unlink()
    assert native.choose().reason.startswith("a source of the build is gone: ")


@pytest.mark.parametrize("change", [{"mypy": "2.0"}, {"modules": []}, {"digest": "0"}])
def test_a_build_of_another_list_or_mypy_is_stale(builds: Path, change: dict[str, object]) -> None:
    made(builds, **change)
    assert native.choose()[:2] == (None, "the sources have changed since the build")


def test_an_unfinished_build_is_named(builds: Path) -> None:
    (builds / f"{native.UNFINISHED}1").mkdir()
    assert native.choose()[:2] == (None, "the build is not finished")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"modules": 1}'])
def test_a_manifest_that_cannot_be_read_is_named(builds: Path, content: str) -> None:
    directory = made(builds)
    (directory / MANIFEST).write_text(content)
    assert native.choose().reason.startswith(f"{directory / MANIFEST}: ")


def test_builds_of_other_interpreters_are_ignored(builds: Path) -> None:
    made(builds).rename(builds / "cpython-310-x86_64-linux-gnu-0")
    assert native.choose()[:2] == (None, "")


def test_a_process_says_once_why_it_is_plain(builds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (builds / f"{native.UNFINISHED}1").mkdir()
    native.activate()
    assert capsys.readouterr().err == (
        "native: the build is not finished; continuing in plain Python (`make native` builds it)\n"
    )
    assert native.mode() == "plain"


def test_a_build_that_cannot_be_loaded_is_named(builds: Path) -> None:
    script = (
        f"import nodeproc.native as n, pathlib; n.BUILDS = pathlib.Path({str(builds)!r}); n.activate(); print(n.mode())"
    )
    made(builds)
    environment = {name: value for name, value in os.environ.items() if name != SWITCH}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TOO_LONG_S
    )
    assert done.stdout == "plain\n"
    assert "native: " in done.stderr and "continuing in plain Python" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_process_that_has_imported_a_module_stays_plain(builds: Path) -> None:
    """Mutants and faulty nodes replace parts of the modules."""
    importlib.import_module(MODULE)
    made(builds)
    native.activate()
    assert native.mode() == "plain"


# ---- without what a build needs -------------------------------------------------------------------


def build(show: bool = False) -> int:
    return building.main(argparse.Namespace(show=show))


def test_without_a_compiler_there_is_one_line(
    builds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    assert build() == 70
    error = capsys.readouterr().err
    assert "found no C compiler 'no-such-compiler'" in error and error.count("\n") == 1
    assert list(builds.iterdir()) == []


def test_without_mypyc_there_is_one_line(
    builds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(building, "find_spec", lambda name: None)
    assert build() == 70
    assert capsys.readouterr().err.startswith("native: the package mypyc is missing in ")


def test_an_installed_chatlab_is_not_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(building, "CHECKOUT", False)
    assert build() == 70
    assert "the wheel chatlab-native" in capsys.readouterr().err


def test_the_command_shows_why_a_run_is_plain(builds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(show=True) == 70
    assert capsys.readouterr().out == "plain: nothing is built\n"
    directory = made(builds)
    assert build(show=True) == 0
    assert capsys.readouterr().out == f"native: {directory}\n"


def test_the_sources_of_a_build_are_all_that_its_modules_import() -> None:
    found = building.sources([MODULE])
    assert {"nodeproc/core/log.py", "nodeproc/core/messages.py", "nodeproc/__init__.py", "nodeproc/native.py"} == {
        *found
    } - {"nodeproc/core/__init__.py"}
    assert BUILDS == ROOT / ".native"


def test_a_simulation_from_the_command_line_loads_no_module_before_its_native_one() -> None:
    program = """
import sys
from lab import cli, native
import nodeproc.native
def told():
    print(sorted(sys.modules.keys() & {*native.MODULES}))
    sys.exit()
nodeproc.native.activate = told
cli.main(["leader_failure", "--sim"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=TOO_LONG_S, check=False
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
