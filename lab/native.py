"""`run_lab.py native`: compile the hot modules with mypyc, so that nodes, simulations and load workers use the result.

The modules of MODULES are compiled as one group, from copies in which coverage marks are statements. The build gets its
final name when it is complete; nodeproc.native says when it is used.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from lab.places import CHECKOUT, near
from lab.runs import HARNESS, PASS
from lab.search import coverage
from nodeproc.native import BUILDS, GROUP, INTERPRETER, MANIFEST, ROOT, UNFINISHED, choose, digest, library, read

MODULES: Final = tuple(
    f"{package}.{name}"
    for package, names in {
        "nodeproc": "client eventlog records runtime session turn upkeep",
        "nodeproc.core": "catchup election failure log membership node ordering recovered repair sessions state",
        "nodeproc.disk": "archive files reading recovery scrub segments storage syncing wal",
        "nodeproc.net": "clients complaints entrance handshake nodestream silence subscription transport",
        "lab": "payloads",
        "lab.check": "agreement elections health judge numbering online recovery replay sessions subscribers",
        "lab.course": "client_links environment links load machine recording runner simfiles",
        "lab.sim": "cluster hardware loop machine network node promises",
    }.items()
    for name in names.split()
)
"""The compiled modules. tests/native/test_modules.py says what must not be in them."""

FIRST: Final = "from __future__ import annotations\n"
COUNTED: Final = (
    f"; from typing import Final as F_; from nodeproc import native as n_; {coverage.NOTES}: F_ = n_.hits\n"
)
"""Put behind FIRST, so that lines keep their numbers."""
HARMLESS: Final = ": warning: Treating generator comprehension as list"
"""mypyc's remark on code that it evaluates at once. Of all its other remarks, none is accepted."""
SETUP: Final = """
import contextlib, io, sys
from mypyc.build import mypycify
from setuptools import setup
group, harmless, *files = sys.argv[1:]
said = io.StringIO()
try:
    with contextlib.redirect_stdout(said):
        extensions = mypycify(files, opt_level="1", debug_level="0", group_name=group)
finally:
    print(said.getvalue())
if any(": warning: " in line and harmless not in line for line in said.getvalue().splitlines()):
    sys.exit(1)
sys.argv[1:] = ["--quiet", "build_ext", "--inplace"]
setup(name=group, packages=[], ext_modules=extensions)
"""


class NativeError(Exception):
    """There can be no build; the text says why."""


# ---- what is compiled -----------------------------------------------------------------------------


def file_of(module: str) -> str:
    """Return a module's file, relative to ROOT."""
    return f"{module.replace('.', '/')}.py"


def sources(modules: Sequence[str] = MODULES) -> dict[str, bytes]:
    """Return the files on which the compiled code depends: file, relative to ROOT -> its bytes.

    These are the modules and all that they import from this project: mypyc takes types and constants from there.
    """
    found: dict[str, bytes] = {}
    waiting = [*modules, "nodeproc.native"]
    while waiting:
        name = waiting.pop().replace(".", "/")
        file = f"{name}/__init__.py" if (ROOT / name).is_dir() else f"{name}.py"
        if file not in found and (ROOT / file).is_file():
            found[file] = (ROOT / file).read_bytes()
            waiting += [*_imports(found[file]), name.rpartition("/")[0].replace("/", ".")]
    return dict(sorted(found.items()))


def _imports(source: bytes) -> Iterator[str]:
    """Yield the names of the project's modules that a source text imports, and of names in them."""
    for node in ast.walk(ast.parse(source)):
        names = [each.name for each in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}", *(f"{node.module}.{name}" for name in names)]
        yield from (name for name in names if name.partition(".")[0] in ("nodeproc", "lab"))


def unavailable() -> str:
    """Return why this machine cannot compile, or ""."""
    for package in ("mypyc", "setuptools"):
        if find_spec(package) is None:
            return f"the package {package} is missing in {sys.prefix}; pip install 'mypy[mypyc]'"
    compiler = os.environ.get("CC") or str(sysconfig.get_config_var("CC"))
    if shutil.which(compiler.split()[0]) is None:
        return f"found no C compiler {compiler.split()[0]!r} (Debian, Ubuntu: apt install gcc)"
    header = Path(sysconfig.get_path("include"), "Python.h")
    return "" if header.is_file() else f"{header} is missing (Debian, Ubuntu: apt install python3-dev)"


# ---- building ------------------------------------------------------------------------------------


def build(modules: Sequence[str] = MODULES) -> tuple[Path, bool]:
    """Return the directory of the build of the present sources, and whether this call has made it.

    Other builds for this interpreter are removed. Concurrent calls wait for each other.

    Raises:
        NativeError: this machine cannot compile, or mypyc or the compiler refused the sources.
    """
    if why := unavailable():
        raise NativeError(why)
    with _locked():
        for each in BUILDS.glob(f"{UNFINISHED}*"):
            shutil.rmtree(each)
        contents, mypy = sources(modules), metadata.version("mypy")
        key = digest(modules, contents, mypy)
        directory = BUILDS / f"{INTERPRETER}-{key}"
        if _is_whole(directory, modules):
            return directory, False
        work = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=BUILDS))
        try:
            _write_copies(work, contents, modules)
            _compile(work, modules)
            made = work / "made"
            made.mkdir()
            for name in (*modules, GROUP):
                library(work, name.replace(".", "/")).rename(library(made, name))
            manifest = {"modules": modules, "sources": [*contents], "mypy": mypy, "digest": key}
            (made / MANIFEST).write_text(json.dumps(manifest, indent=1))
            for each in BUILDS.glob(f"{INTERPRETER}-*"):
                shutil.rmtree(each)
            made.rename(directory)
        finally:
            shutil.rmtree(work)
        return directory, True


def _write_copies(work: Path, contents: dict[str, bytes], modules: Sequence[str]) -> None:
    """Write copies of the sources; in those of the modules, coverage marks are statements."""
    for file, content in contents.items():
        path = work / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for module in modules:
        path = work / file_of(module)
        source = path.read_text("utf-8")
        assert source.count(FIRST) == 1, path
        path.write_text(coverage.countable(source, path.name).replace(FIRST, FIRST[:-1] + COUNTED), "utf-8")


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    try:
        BUILDS.mkdir(exist_ok=True)
        with (BUILDS / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise NativeError(f"{error.filename}: {error.strerror}") from None


def _is_whole(directory: Path, modules: Sequence[str]) -> bool:
    try:
        read(directory)
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return all(library(directory, name).is_file() for name in (*modules, GROUP))


def _compile(work: Path, modules: Sequence[str]) -> None:
    """Compile the copies in a directory, into extension modules beside them."""
    group = GROUP.removesuffix("__mypyc")
    command = [sys.executable, "-c", SETUP, group, HARMLESS, *map(file_of, modules)]
    flags = f"{os.environ.get('CFLAGS', '')} -Wno-error".strip()  # A warning of another compiler's is no reason.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command,
        cwd=work,
        env=environment | {"CFLAGS": flags, "PYTHONSAFEPATH": "1", "MYPYPATH": str(work)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if HARMLESS not in line]
        raise NativeError("the compilation failed:\n" + "\n".join(lines[-20:]))


# ---- the command ---------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run_lab.py native`."""
    parser.epilog = "Exit codes: 0 there is a build, 70 there is none. CHATLAB_NATIVE=0 turns native mode off."
    parser.add_argument("--show", action="store_true", help="only print whether runs are native, and why not")


def main(options: argparse.Namespace) -> int:
    """Build, and print where; return the exit code."""
    if options.show:
        found = choose()
        print(f"native: {near(found.directory)}" if found.directory else f"plain: {found.reason or 'nothing is built'}")
        return PASS if found.directory else HARNESS
    began = time.monotonic()
    try:
        if not CHECKOUT:
            raise NativeError("an installed chatlab becomes native by the wheel chatlab-native (docs/native.md)")
        directory, new = build()
    except NativeError as error:
        print(f"native: {error}; without a build, everything runs in plain Python", file=sys.stderr)
        return HARNESS
    took = f"{len(MODULES)} modules, {time.monotonic() - began:.0f} s" if new else "it is up to date"
    print(f"native: {near(directory)}: {took}")
    return PASS
