"""The version of the code that plays the seeds, and the code of another commit.

Seeds are comparable only if the same code played them. A commit does not identify the code, because files may have been
edited and an installed package has no commit. So the version is a hash of the sources.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from lab.places import CHECKOUT, ROOT

PACKAGES = ("lab", "nodeproc")
NOT_INSTALLED = "lab/bootstrap.py"
"""The wheel leaves this file out, and it affects no seed."""
ONLY_INSTALLED = "lab/share/"
"""Where the wheel has the examples and docs of a checkout (lab.places)."""


class CodeError(Exception):
    """The code of a commit is not available; the text says why."""


def code_version(root: Path = ROOT) -> str:
    """Return the hash of all sources below `root`: 12 hexadecimal digits, equal for a checkout and a wheel of it."""
    digest = hashlib.sha256()
    files = {path.relative_to(root).as_posix(): path for package in PACKAGES for path in (root / package).rglob("*.py")}
    for name in sorted(files.keys() - {NOT_INSTALLED}):
        if name.startswith(ONLY_INSTALLED):
            continue
        content = files[name].read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def commit_of(ref: str) -> str:
    """Return the full hash of the commit that a name stands for in this checkout's repository.

    Raises:
        CodeError: this is no checkout of a repository, or there is no such commit.
    """
    if not CHECKOUT:
        raise CodeError(
            f"--commit: found {ref!r}, allowed only in a checkout with git: this lab is an installed package"
        )
    return _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}", ref=ref).decode().strip()


def export(commit: str, target: Path) -> None:
    """Write all files of a commit into a directory.

    Raises:
        CodeError: the commit has no campaigns, or git failed.
    """
    archive = _git("archive", "--format=tar", commit, ref=commit)
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        # Python 3.11.3 and older know no filters; this archive is the project's own.
        filters: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        files.extractall(target, **filters)
    if not (target / "lab" / "campaign" / "child.py").is_file():
        raise CodeError(f"--commit: found {commit!r}, allowed a commit that can play campaigns: it has no lab/campaign")


def _git(*arguments: str, ref: str) -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], check=False, capture_output=True)
    except OSError as error:
        raise CodeError(f"--commit: git could not be started: {error.strerror}") from None
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip() or "no such commit"
        raise CodeError(f"--commit: found {ref!r}, allowed a commit of the repository of {ROOT}: {reason}")
    return done.stdout
