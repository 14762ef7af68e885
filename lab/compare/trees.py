"""Versions of the project as directories, and runs of a scenario with the code of one of them.

    with checked_out("main") as base, Lifeline() as lifeline:
        ran = Runner(scenario_file, lifeline).run(base, seed=1, out=Path("results/ab/1"))

A run is a process of its own, which imports the lab and the nodes from its version alone. It does not outlive this
process, and neither does the copy of a commit, however this process ends.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from lab.check.verdict import Verdict
from lab.compare import figures
from lab.live import launch
from lab.places import ROOT, near
from lab.runs import BROKEN, HARNESS, INTERRUPTED, PASS, USAGE
from lab.show.table import closing
from nodeproc import native
from nodeproc.errors import ConfigError

ENTRY: Final = "run_lab.py"
PATIENCE_S: Final = 15.0
"""Maximum time from SIGTERM to the end of a run: it stops its nodes first."""
_SWEEP: Final = """
import os, shutil, sys, time
sys.stdin.read()
for _ in range(100):
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    if not os.path.exists(sys.argv[1]):
        break
    time.sleep(0.1)  # a run that is about to end still writes into it
"""


@dataclass(frozen=True, slots=True)
class Tree:
    """One version of the project. label: for people."""

    path: Path
    label: str


def this_tree() -> Tree:
    """Return the version that runs this code.

    Raises:
        ConfigError: it is an installed package.
    """
    if not (ROOT / ENTRY).is_file():
        raise ConfigError("this lab is installed as a package; only checkouts can be compared, so run it from one")
    version = _git(ROOT, "describe", "--always", "--dirty")
    return Tree(ROOT, f"this directory{f', {version}' if version else ''}")


@contextlib.contextmanager
def checked_out(word: str) -> Iterator[Tree]:
    """Yield the version in a directory, or a temporary copy of a commit, which is removed at the end.

    The copy is no git worktree: it leaves nothing in the repository if this process is killed.

    Raises:
        ConfigError: the word names neither.
    """
    directory = Path(word)
    if directory.is_dir() and (directory / ENTRY).is_file():
        yield Tree(directory.resolve(), str(directory))
        return
    commit = _git(ROOT, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{word}^{{commit}}")
    archive = _git_bytes(ROOT, "archive", "--format=zip", commit) if commit else None
    if archive is None:
        raise ConfigError(f"--base: found {word}; allowed: a directory with {ENTRY} in it, or a commit, branch or tag")
    with _swept_folder() as folder:
        zipfile.ZipFile(io.BytesIO(archive)).extractall(folder)
        if not (folder / ENTRY).is_file():
            raise ConfigError(f"--base: found {word}, a commit without {ENTRY}")
        yield Tree(folder, word if commit.startswith(word) else f"{word}, {commit[:10]}")


def _git_bytes(directory: Path, *arguments: str) -> bytes | None:
    """Return the output of a git command; None if it fails, or if git is not installed."""
    try:
        ended = subprocess.run(["git", "-C", str(directory), *arguments], capture_output=True)
    except FileNotFoundError:
        return None
    return None if ended.returncode else ended.stdout


def _git(directory: Path, *arguments: str) -> str:
    return (_git_bytes(directory, *arguments) or b"").decode().strip()


@contextlib.contextmanager
def _swept_folder() -> Iterator[Path]:
    """Yield a new directory. Another process removes it as soon as this block, or this process, has ended."""
    folder = Path(tempfile.mkdtemp(prefix="chatlab-base-"))
    sweeper = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _SWEEP, str(folder)], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield folder
    finally:
        sweeper.communicate()


# ---- one run ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ran:
    """The result of a run.

    problem: why it did not pass, and where it is; "" if it passed.
    values: name -> value of the figures that it has (lab.compare.figures).
    """

    code: int
    problem: str = ""
    values: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.code == PASS


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs one scenario with the code of several versions.

    lifeline: readable until this process has ended; see lab.live.processes.Lifeline.
    seeds: number of seeds to simulate in each run; 0: real processes.
    """

    scenario: Path
    lifeline: int
    seeds: int = 0

    def run(self, tree: Tree, seed: int, out: Path) -> Ran:
        """Run the scenario. Its directory stays only if it did not pass.

        Args:
            out: a directory that does not exist yet.
        """
        before = _children_cpu_s()
        try:
            code, output, errors = self._carry_out(tree, seed, out)
        except BaseException:
            shutil.rmtree(out, ignore_errors=True)
            raise
        cpu_s = _children_cpu_s() - before
        try:
            runs = json.loads(output)["runs"]
            code = code if runs else HARNESS
        except (ValueError, LookupError, TypeError):
            runs, code = [], code if code in (USAGE, INTERRUPTED) else HARNESS
        if code != PASS:
            return Ran(code, f"{_cause(runs, errors)} ({near(out)})")
        shutil.rmtree(out)
        measured = [each["metrics"] for each in runs]
        if self.seeds:
            measured.append({"seeds_per_s": self.seeds / cpu_s})
        return Ran(code, values=figures.values(measured))

    def _carry_out(self, tree: Tree, seed: int, out: Path) -> tuple[int, bytes, bytes]:
        """Return exit code, standard output and standard error."""
        run = [sys.executable, str(tree.path / ENTRY), "run", str(self.scenario.absolute()), "--json"]
        run += ["--seed", str(seed), "--out", str(out)]
        run += ["--sim", "--repeat", str(self.seeds)] if self.seeds else []
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", launch.__file__, str(self.lifeline), str(Path.cwd()), *run],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(tree),
            pass_fds=(self.lifeline,),
            process_group=0,  # Ctrl+C is handled by this process.
        )
        try:
            output, errors = process.communicate()
        except BaseException:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=PATIENCE_S)
            process.kill()
            process.communicate()
            raise
        return process.returncode, output, errors


def _environment(tree: Tree) -> dict[str, str]:
    """Return this process's environment, in which only that version's packages are found.

    Both versions run in plain Python, because at most one of them has a native build. The run adds nothing to the
    summary page of a build server.
    """
    left_out = ("PYTHONSAFEPATH", "GITHUB_STEP_SUMMARY")
    path = [str(tree.path), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**kept, "PYTHONPATH": os.pathsep.join(path), native.SWITCH: "0"}


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _cause(runs: list[dict[str, Any]], errors: bytes) -> str:
    """Return why a run did not pass, on one line."""
    for run in runs:
        if run["exit_code"] != PASS:
            if run["problem"]:
                return f"the lab failed: {run['problem']}"
            try:
                return closing(msgspec.convert(run["verdict"], Verdict))
            except msgspec.ValidationError:  # The other version writes verdicts of another form.
                return "FAIL: an invariant is broken" if run["exit_code"] == BROKEN else "the run did not pass"
    return (errors.decode("utf-8", "replace").strip() or "the run ended without output").splitlines()[-1]
