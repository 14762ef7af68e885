"""Native mode changes nothing but the speed: the same files and coverage marks, and the tests of the modules pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.places import ROOT
from nodeproc.native import SWITCH
from tests import TOO_LONG_S


def python(mode: str, *arguments: str) -> str:
    """Run Python in native (mode "1") or plain mode ("0"); return its standard output."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=os.environ | {SWITCH: mode},
        capture_output=True,
        text=True,
        timeout=10 * TOO_LONG_S,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def contents(out: Path) -> dict[str, object]:
    """Return every file of the runs; of a manifest all but the mode."""
    found: dict[str, object] = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and "latest" not in path.parts:
            found[str(path.relative_to(out))] = path.read_bytes()
            if path.name == "meta.json":
                meta = json.loads(path.read_bytes())
                found[str(path.relative_to(out))] = meta | {"interpreter": meta["interpreter"].removesuffix(", native")}
    return found


def test_seeds_and_scenarios_leave_the_same_files_and_marks(build: Path, tmp_path: Path) -> None:
    for mode, name in (("0", "plain"), ("1", "native")):
        assert python(mode, "tests.native.play", str(tmp_path / name)).strip() == name
    plain, native = contents(tmp_path / "plain"), contents(tmp_path / "native")
    assert plain.keys() == native.keys()
    assert [name for name in plain if plain[name] != native[name]] == []
    manifest = json.loads(next((tmp_path / "native").rglob("meta.json")).read_bytes())
    assert manifest["interpreter"].endswith(", native")
    marks = json.loads((tmp_path / "plain" / "marks.json").read_bytes())
    assert len(set().union(*marks.values())) > 80


@pytest.mark.parametrize("module", ["lab.live.inside.faulty_node", "lab.mutants.broken_node"])
def test_a_program_that_replaces_parts_of_modules_is_plain(build: Path, module: str) -> None:
    shown = "from nodeproc import native; print(native.choose().directory is None, native.mode())"
    script = f"import sys; sys.argv[0] = 'python -m nodeproc'; import {module}; {shown}"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=os.environ | {SWITCH: "1"}, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("False plain\n", "")


def test_a_search_is_native_and_a_mutants_is_not(build: Path, tmp_path: Path) -> None:
    def search(*more: str) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "run_lab.py", "sim", "--seeds", "2", "--jobs", "1", "--out", str(tmp_path), *more],
            cwd=ROOT,
            env=os.environ | {SWITCH: "1"},
            capture_output=True,
            text=True,
            timeout=TOO_LONG_S,
        )
        return done.stdout, done.stderr

    report, progress = search()
    assert "/s a core, native, findings 0" in progress
    assert "/s a core, plain, findings" in search("--mutant", "acknowledge_before_durable", "--no-shrink")[1]
    assert report == python("0", "lab", "sim", "--seeds", "2", "--jobs", "1")


def test_runs_of_real_native_nodes_pass(build: Path, tmp_path: Path) -> None:
    names = ("leader_failure", "full_restart_continues_numbering")
    python("1", "lab", "run", *(f"scenarios/{name}.yml" for name in names), "--out", str(tmp_path))
    for name in names:
        meta = json.loads((tmp_path / name / "latest" / "meta.json").read_bytes())
        assert meta["interpreter"].endswith(", native")
    imported = "import nodeproc.__main__; from nodeproc import native; print(native.mode())"
    done = subprocess.run(
        [sys.executable, "-c", imported], cwd=ROOT, env=os.environ | {SWITCH: "1"}, capture_output=True
    )
    assert done.stdout == b"native\n"


def test_the_tests_of_core_session_and_clients_pass(build: Path) -> None:
    options = ["-p", "tests.native.activated", "-p", "no:cacheprovider", "--benchmark-disable", "-m", "not patches"]
    suites = ("tests/core", *(f"tests/nodeproc/test_{name}.py" for name in ("clients", "client", "session", "turn")))
    assert " passed" in python("1", "pytest", *options, *suites)
