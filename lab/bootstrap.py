"""The first start on a new machine: create .venv, install the pinned requirements, restart inside it.

This module uses the standard library only and can be imported by Python 3.7 and newer, so that an old interpreter ends
with a clear message instead of a SyntaxError. If the packages can be imported already, nothing is created or restarted.

    python3 run_lab.py ...          calls ensure_packages()
    python3 -m lab.bootstrap --dev  creates .venv with the packages for tests and checks, prints its interpreter

`.venv` is complete if it contains the packages and a copy of the current requirements file; the copy is written last.
Anything else (an interrupted install, a missing interpreter, changed requirements) is repaired. The lock against
concurrent starts is held on requirements.txt itself, because that file always exists; the kernel releases the lock when
its holder dies.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 11)
EXIT_HARNESS = 70
EXIT_INTERRUPTED = 130
RESTARTED = "CHATLAB_RESTARTED"
"""Environment variable that marks the restarted process, which must not restart again."""


class Wanted(NamedTuple):
    """A requirements file, and modules whose presence shows that its packages are installed."""

    file: str
    modules: tuple[str, ...]


# uvloop is not among them: nodes run on plain asyncio if it is missing.
RUN = Wanted("requirements.txt", ("jinja2", "msgspec", "prompt_toolkit", "psutil", "yaml", "tabulate"))
# hatchling is not among them: without it only the tests of the built package are skipped.
DEV = Wanted(
    "requirements-dev.txt",
    (*RUN.modules, "fastjsonschema", "hypothesis", "mypy", "pytest", "pytest_benchmark", "xdist", "ruff", "trustme"),
)


class BootstrapError(Exception):
    """The packages cannot be installed; the text says what to do."""


def ensure_packages(root: Path = ROOT) -> None:
    """Return if the packages of a run can be imported; else restart this process in .venv with the same arguments.

    If the packages cannot be installed, the process ends with exit code 70 and one message.
    """
    try:
        if sys.version_info < OLDEST_PYTHON:
            oldest = ".".join(map(str, OLDEST_PYTHON))
            raise BootstrapError(f"{sys.executable} is Python {sys.version.split()[0]}; allowed: {oldest} or newer")
        restarted = os.environ.pop(RESTARTED, None) is not None
        if importable(RUN):
            _refuse_foreign(RUN)
            return
        if restarted:
            names = ", ".join(missing(RUN))
            raise BootstrapError(f"{names} still missing in {sys.prefix}; remove {root / '.venv'} and start again")
        python = prepare(root, RUN)
    except BootstrapError as error:
        _say(str(error))
        raise SystemExit(EXIT_HARNESS) from None
    except KeyboardInterrupt:
        _say("interrupted; the next start goes on with .venv")
        raise SystemExit(EXIT_INTERRUPTED) from None
    os.environ[RESTARTED] = "1"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(python, [str(python), *sys.orig_argv[1:]])


def missing(wanted: Wanted, path: Sequence[str] | None = None) -> list[str]:
    """Return the modules not found on `path` (site-packages directories), or by this process if `path` is None."""
    if path is None:
        return [name for name in wanted.modules if importlib.util.find_spec(name) is None]
    importlib.invalidate_caches()
    return [name for name in wanted.modules if importlib.machinery.PathFinder.find_spec(name, list(path)) is None]


def _refuse_foreign(wanted: Wanted) -> None:
    """Refuse modules that hide a package of the same name, such as a yaml.py on PYTHONPATH.

    Raises:
        BootstrapError: names the file that hides a package.
    """
    for name in wanted.modules:
        spec = importlib.util.find_spec(name)
        assert spec is not None, name
        file = Path(spec.origin or name)
        folder = file.parents[1] if spec.submodule_search_locations else file.parent
        if not any(folder.glob("*.dist-info")) and not any(folder.glob("*.egg-info")):
            raise BootstrapError(f"{file} hides the package that `import {name}` means; rename it, or fix PYTHONPATH")


def importable(wanted: Wanted) -> bool:
    return not missing(wanted)


def prepare(root: Path, wanted: Wanted) -> Path:
    """Create or repair .venv and return its interpreter. Several processes may call this at the same time.

    Raises:
        BootstrapError: pip or venv failed, or the project directory is not writable.
    """
    venv = root / ".venv"
    if is_whole(venv, root, wanted):
        return _python(venv)
    with _locked(root / RUN.file):
        if not is_whole(venv, root, wanted):  # Another process may have created it meanwhile.
            _build(venv, root, wanted)
    return _python(venv)


def is_whole(venv: Path, root: Path, wanted: Wanted) -> bool:
    """Return whether .venv contains the packages of the current requirements file."""
    try:
        installed = (venv / wanted.file).read_bytes()
        required = (root / wanted.file).read_bytes()
    except OSError:
        return False
    site = [str(path) for path in venv.glob("lib/python*/site-packages")]
    return installed == required and os.access(_python(venv), os.X_OK) and not missing(wanted, site)


def _python(venv: Path) -> Path:
    return venv / "bin" / "python"


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold an exclusive lock on `file`; print a line on stderr if this has to wait."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError as error:
        raise BootstrapError(f"{file}: {error.strerror}; it names the packages to install") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another process prepares .venv; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _build(venv: Path, root: Path, wanted: Wanted) -> None:
    """Repair .venv in place, or create it again if that fails; write the copy of the requirements last."""
    if not os.access(venv if venv.exists() else root, os.W_OK):
        install = f"pip install -r {root / wanted.file}"
        raise BootstrapError(
            f"{root} can't be written, so there is no place for .venv; make it writable, or: {install}"
        )
    _say(f"installing the packages of {wanted.file} into {venv} (once)")
    repaired = venv.exists() and _runs(venv) and _install(venv, root, wanted) is None and _complete(venv, wanted)
    if not repaired:
        _make_empty(venv)
        problem = _install(venv, root, wanted)
        if problem is not None:
            raise BootstrapError(f"pip could not install {wanted.file}:\n{problem}")
        if not _complete(venv, wanted):
            raise BootstrapError(f"{wanted.file} was installed into {venv}, but its packages can't be imported")
    for each in {RUN, wanted}:  # the development requirements hold those of a run
        try:
            (venv / each.file).write_bytes((root / each.file).read_bytes())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise BootstrapError(f"{error.filename}: {error.strerror}") from None


def _runs(venv: Path) -> bool:
    """Return whether the interpreter starts, is new enough and has pip."""
    code = f"import sys, pip; sys.exit(sys.version_info < {OLDEST_PYTHON})"
    return _run([str(_python(venv)), "-c", code]) is None


def _make_empty(venv: Path) -> None:
    # Use the base interpreter: one inside the virtual environment cannot clear it.
    base = getattr(sys, "_base_executable", sys.executable)
    problem = _run([base, "-m", "venv", "--clear", str(venv)])
    if problem is not None:
        hint = "the package python3-venv may be missing (Debian, Ubuntu: apt install python3-venv)"
        raise BootstrapError(f"{venv} could not be made; {hint}:\n{problem}")


def _install(venv: Path, root: Path, wanted: Wanted) -> str | None:
    """Run pip; return its error output, or None if it succeeded."""
    pip = [str(_python(venv)), "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    return _run([*pip, "-r", str(root / wanted.file)])


def _complete(venv: Path, wanted: Wanted) -> bool:
    """Return whether the packages can be imported, which incomplete files of an interrupted install cannot."""
    return _run([str(_python(venv)), "-c", f"import {', '.join(wanted.modules)}"]) is None


def _run(command: Sequence[str]) -> str | None:
    """Run a command; return its error output, or None if it succeeded."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    if done.returncode == 0:
        return None
    return (done.stderr or done.stdout).strip() or f"{command[0]} ended with {done.returncode}"


def _say(text: str) -> None:
    print(f"run_lab: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python3 -m lab.bootstrap [--dev]`: print an interpreter with the packages; create .venv if necessary."""
    parser = argparse.ArgumentParser(
        prog="python3 -m lab.bootstrap", description="create .venv and print its interpreter"
    )
    parser.add_argument("--dev", action="store_true", help="also install the packages for tests and checks")
    wanted = DEV if parser.parse_args(arguments).dev else RUN
    try:
        print(sys.executable if importable(wanted) else prepare(ROOT, wanted))
    except BootstrapError as error:
        _say(str(error))
        return EXIT_HARNESS
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
