"""Bytes that change on a disk by themselves: in what was synced, where a node has to notice it."""

from __future__ import annotations

import random

from nodeproc import recovery, wal
from nodeproc.core.messages import NodeId
from nodeproc.simfiles import SimFiles


def rot(files: SimFiles, what: str, node: NodeId, rng: random.Random) -> str | None:
    """Change one byte of a node's synced data.

    Of the log a byte in front of its last entries: damage at its very end can't be told from a torn tail (K2).

    Args:
        what: wal or messages.

    Returns:
        `file:offset`; None where there is too little to damage.
    """
    contents = files.contents()
    if what == "messages":
        name = recovery.lines_name(node)
        size = len(contents.get(name, b""))
    else:
        names = [wal.segment_name(number) for number in _numbers(contents)]
        name = rng.choice(names) if names else ""
        data = contents.get(name, b"")
        entries = wal.scan(int(name[-16:-4]), name, data).entries if names else []
        size = entries[-2].start if len(entries) > 3 else 0
    if size <= 0:
        return None
    at = rng.randrange(size)
    damaged = bytearray(contents[name])
    damaged[at] ^= 1 << rng.randrange(8)
    files.put(name, bytes(damaged))
    return f"{name}:{at}"


def _numbers(contents: dict[str, bytes]) -> list[int]:
    folder = wal.FOLDER + "/"
    return wal.segment_numbers([name.removeprefix(folder) for name in contents if name.startswith(folder)])
