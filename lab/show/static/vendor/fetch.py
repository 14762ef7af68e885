"""`make vendor`: fetch the files of vendor.toml from the npm registry, and check them. Needs npm.

A new version: change the version in vendor.toml and run this; it names each checksum that differs.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path
from typing import Any

LAB = Path(__file__).parents[3]
DIRECTORIES = [LAB / "show/static/vendor", LAB / "watch/static/vendor", LAB.parent / "tests/browser/vendor"]


def main() -> int:
    """Write all files whose tarball and content have the expected checksums; return 1 if any differs."""
    wrong = []
    for here in DIRECTORIES:
        for package in tomllib.loads((here / "vendor.toml").read_text("utf-8"))["package"]:
            with tempfile.TemporaryDirectory() as directory:
                wrong += _fetch(here, package, Path(directory))
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def _fetch(here: Path, package: dict[str, Any], directory: Path) -> list[str]:
    """Write the files of one package; return what differs."""
    name = f"{package['name']}@{package['version']}"
    subprocess.run(["npm", "pack", "--silent", "--pack-destination", str(directory), name], check=True)
    (tarball,) = directory.iterdir()
    found = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if found != package["sha512"]:
        return [f"{name}: sha512 is {found}, expected {package['sha512']}"]
    wrong = []
    with tarfile.open(tarball) as archive:
        for file, (path, expected) in package["files"].items():
            content = archive.extractfile(f"package/{path}")
            assert content is not None, path
            data = content.read()
            found = hashlib.sha256(data).hexdigest()
            if found == expected:
                (here / file).write_bytes(data)
            else:
                wrong.append(f"{name}: {path}: SHA-256 is {found}, expected {expected}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
