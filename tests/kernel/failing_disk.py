"""A real disk that fails an fdatasync and then works again, and a power loss behind that, on this machine's own kernel.

    python -m tests.kernel.failing_disk

Needs root, mkfs.ext4 and a loop device; nothing outside of a temporary directory is touched. Everything is mounted in a
mount namespace of its own: a namespace that another process makes meanwhile copies all mounts that it can see, and each
copy would keep a file system, and its cache, alive after an unmount here. The device is a sparse file on a small tmpfs:
once that is full, the kernel can't write the device's new blocks (it says ENOSPC where a broken disk says EIO). With
space there again the device works. Unmounting then takes away what the kernel has only in its cache, as a power loss
does: pages that it failed to write are clean.

Two JSON lines. `plain`: what the kernel does with a file. `node`: what a node's storage makes of that.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nodeproc.disk.files import RealFiles
from nodeproc.disk.storage import Storage
from nodeproc.errors import WriteFailed
from tests.nodeproc.disks import IDENTITY, Scribe

PROJECT = Path(__file__).resolve().parents[2]
INSIDE = "CHAT_FAILING_DISK_INSIDE"
LARGE = 1 << 20
"""Bytes of what can't be written: more than the file system may have allocated ahead."""
FS = ("mkfs.ext4", "-q", "-b", "4096", "-O", "^has_journal", "-E", "lazy_itable_init=0", "-N", "64")
"""Without a journal: a journal that can't be written ends all writing, and the file's own error would not be seen."""


def missing() -> str:
    """What this machine lacks, "" if nothing."""
    if os.geteuid() != 0:
        return "needs root"
    lacking = [tool for tool in ("unshare", "mkfs.ext4", "losetup", "mount") if shutil.which(tool) is None]
    if lacking:
        return f"needs {', '.join(lacking)}"
    free = subprocess.run(["losetup", "-f"], capture_output=True, text=True, check=False)
    if free.returncode:
        return f"needs a loop device: {free.stderr.strip()}"
    tried = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/tmp"]
    mount = subprocess.run(tried, capture_output=True, text=True, check=False)
    return f"needs a mount namespace: {mount.stderr.strip()}" if mount.returncode else ""


class Device:
    """A file system on a device that can be made to fail."""

    def __init__(self, root: Path) -> None:
        self.root, self._back, self.mounted = root, root / "back", root / "disk"
        self._ballast = self._back / "ballast"
        self._loop = ""

    @contextlib.contextmanager
    def made(self) -> Iterator[None]:
        self._back.mkdir()
        self.mounted.mkdir()
        image = self._back / "image"
        with contextlib.ExitStack() as undo:
            run("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(self._back))
            undo.callback(run, "umount", str(self._back))
            with image.open("wb") as file:
                file.truncate(64 << 20)
            run(*FS, str(image))
            self._loop = run("losetup", "-f", "--show", str(image))
            undo.callback(run, "losetup", "-d", self._loop)
            run("mount", self._loop, str(self.mounted))
            undo.callback(run, "umount", str(self.mounted))
            yield

    def fail(self) -> None:
        """From now on no new block can be written."""
        with self._ballast.open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    assert error.errno == errno.ENOSPC, error

    def work_again(self) -> None:
        self._ballast.unlink()

    def lose_power(self) -> None:
        """What only the cache has is gone."""
        run("umount", str(self.mounted))
        run("mount", self._loop, str(self.mounted))


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def synced(file: int) -> str:
    try:
        os.fdatasync(file)
    except OSError as error:
        return f"failed: {error.strerror}"
    return "returned"


def plain(device: Device) -> dict[str, Any]:
    """A file that nobody protects."""
    path = device.mounted / "plain"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    device.fail()
    os.write(file, b"x" * LARGE)
    first = synced(file)
    device.work_again()
    second = synced(file)
    os.close(file)
    before = path.read_bytes().count(b"x")
    device.lose_power()
    after = path.read_bytes().count(b"x")
    return {"case": "plain", "sync": first, "sync_again": second, "written": LARGE, "read": before, "left": after}


def node(device: Device) -> dict[str, Any]:
    """A node's storage: each life is a process that ends without closing anything."""
    first = life(device, "fail")
    device.work_again()
    second = life(device, "start")
    device.lose_power()
    third = life(device, "start")
    return {"case": "node", "sync": first["sync"], "restart": second, "after_power_loss": third}


def life(device: Device, what: str) -> dict[str, Any]:
    """What a process of its own says."""
    said = run(sys.executable, "-m", "tests.kernel.failing_disk", what, str(device.root))
    found: dict[str, Any] = json.loads(said)
    return found


def live(what: str, root: Path) -> dict[str, Any]:
    """In the process of a life."""
    device, scribe = Device(root), Scribe()
    storage, recovered, events = Storage.open(RealFiles(device.mounted / "node"), 1, new_identity=lambda: IDENTITY)
    if what == "fail":
        storage.write([scribe.mark(1)])
        storage.sync()
        device.fail()
        storage.write([scribe.batch("x" * LARGE)])
        try:
            storage.sync()
        except WriteFailed as error:
            return {"sync": str(error)}
        return {"sync": "returned"}
    return {"seq_no": recovered.position.seq_no, "events": [event.__struct_config__.tag for event in events]}


def measure() -> list[dict[str, Any]]:
    """Run this file in a mount namespace of its own. Returns the rows of both cases."""
    command = ["unshare", "-m", "--kill-child", sys.executable, "-m", "tests.kernel.failing_disk"]
    done = subprocess.run(
        command, cwd=PROJECT, env={**os.environ, INSIDE: "1"}, stdout=subprocess.PIPE, timeout=600, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
    """Both cases on devices of their own."""
    for case in (plain, node):
        with tempfile.TemporaryDirectory() as folder:
            device = Device(Path(folder))
            with device.made():
                row = case(device)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(live(sys.argv[1], Path(sys.argv[2]))), flush=True)
        os._exit(0)
    elif INSIDE in os.environ:
        main()
    elif problem := missing():
        sys.exit(f"failing_disk: {problem}")
    else:
        for row in measure():
            print(json.dumps(row))
