"""Native mode: imports of the hot modules use a build that mypyc made of the same sources, if there is one.

`make native` compiles the modules listed in lab.native, of this package and of the lab, into one directory. A build is
used only if it was made of exactly the present sources; in all other cases Python runs them, with the same results.

    builds        .native/<interpreter>-<digest>/ in a checkout, or the installed package chatlab_native
    CHATLAB_NATIVE=0   never use a build

A program calls activate() before it imports any of these modules. Programs that replace parts of them (mutants, faulty
nodes) import them first, and so stay plain. This module uses the standard library only.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parents[1]
BUILDS: Final = ROOT / ".native"
PACKAGE: Final = "chatlab_native"
"""The package of a wheel with a build."""
SWITCH: Final = "CHATLAB_NATIVE"
"""Environment variable; "0" turns native mode off."""
INTERPRETER: Final = EXTENSION_SUFFIXES[0].split(".")[1]
"""The interpreter and platform for which extension modules are built, such as cpython-311-x86_64-linux-gnu."""
GROUP: Final = "chatlab__mypyc"
"""The extension module that contains the code of all compiled modules."""
MANIFEST: Final = "build.json"
UNFINISHED: Final = "unfinished-"
"""The start of the name of a directory in which a build is under way, or was interrupted."""

hits: dict[str, bool] = {}
"""The coverage marks that compiled modules have hit (lab.search.coverage)."""


class Build(NamedTuple):
    """The manifest of a build.

    modules: the names of the compiled modules. sources: the files, relative to ROOT, on which their code depends.
    digest: of all this and of the sources' contents.
    """

    modules: tuple[str, ...]
    sources: tuple[str, ...]
    mypy: str
    digest: str


class Choice(NamedTuple):
    """The build that imports can use; None, and the reason why there is none, or "" if nothing was built."""

    directory: Path | None
    reason: str = ""
    build: Build = Build((), (), "", "")


def digest(modules: Sequence[str], contents: Mapping[str, bytes], mypy: str) -> str:
    """Return the digest of a build. contents: source file, relative to ROOT -> its bytes."""
    found = hashlib.sha256(json.dumps([mypy, INTERPRETER, list(modules), list(contents)]).encode())
    for content in contents.values():
        found.update(hashlib.sha256(content).digest())
    return found.hexdigest()[:16]


def choose() -> Choice:
    """Return the build that was made of the present sources. Nothing is imported."""
    if os.environ.get(SWITCH) == "0":
        return Choice(None, f"{SWITCH}=0")
    reason = ""
    for directory in _directories():
        try:
            build = read(directory)
            fits = digest(build.modules, {name: (ROOT / name).read_bytes() for name in build.sources}, build.mypy)
        except FileNotFoundError as error:
            reason = f"a source of the build is gone: {error.filename}"
        except (OSError, ValueError, LookupError, TypeError) as error:
            reason = f"{directory / MANIFEST}: {error}"
        else:
            if fits == build.digest:
                return Choice(directory, "", build)
            reason = "the sources have changed since the build"
    if not reason and any(BUILDS.glob(f"{UNFINISHED}*")):
        reason = "the build is not finished"
    return Choice(None, reason)


def _directories() -> Iterator[Path]:
    yield from sorted(BUILDS.glob(f"{INTERPRETER}-*"))
    spec = importlib.util.find_spec(PACKAGE)
    if spec is not None and spec.submodule_search_locations:
        yield from map(Path, spec.submodule_search_locations)


def read(directory: Path) -> Build:
    """Return the manifest of a build.

    Raises:
        OSError, ValueError, LookupError, TypeError: it cannot be read.
    """
    values = json.loads((directory / MANIFEST).read_bytes())
    return Build(tuple(values["modules"]), tuple(values["sources"]), str(values["mypy"]), str(values["digest"]))


def library(directory: Path, module: str) -> Path:
    """Return the file of a compiled module."""
    return directory / f"{module}{EXTENSION_SUFFIXES[0]}"


# ---- in a process that uses it --------------------------------------------------------------------


class _Finder(MetaPathFinder):
    def __init__(self, directory: Path, modules: Sequence[str]) -> None:
        self._directory, self.modules = directory, frozenset((*modules, GROUP))

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.modules:
            return None
        file = str(library(self._directory, fullname))
        return importlib.util.spec_from_file_location(fullname, file, loader=ExtensionFileLoader(fullname, file))


def compiled() -> frozenset[str]:
    """Return the names of the modules that are native in this process; none if it is plain."""
    return next((each.modules for each in sys.meta_path if isinstance(each, _Finder)), frozenset())


def mode() -> str:
    """Return "native" or "plain": what this process runs."""
    return "native" if compiled() else "plain"


def activate() -> None:
    """Let the imports of this process use a build, if there is one that fits and none of its modules is imported yet.

    A build that does not fit is reported on stderr. Without any build, nothing is.
    """
    directory, reason, build = choose()
    if directory is None or compiled() or not sys.modules.keys().isdisjoint(build.modules):
        if reason and reason != f"{SWITCH}=0":
            print(f"native: {reason}; continuing in plain Python (`make native` builds it)", file=sys.stderr)
        return
    finder = _Finder(directory, build.modules)
    sys.meta_path.insert(0, finder)
    try:
        importlib.import_module(GROUP)
    except ImportError as error:
        sys.meta_path.remove(finder)
        print(f"native: {error}; continuing in plain Python", file=sys.stderr)
