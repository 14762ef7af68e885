"""The filter of a supervisor: which system calls stop, as its BPF program decides on each architecture."""

from __future__ import annotations

import errno
import os
import struct

import pytest

from lab.live.supervise import filter as bpf
from lab.live.supervise.syscalls import ARCHITECTURES

FIRST, END = 1000, 2000
STOP, ALLOW, KILL, NO_SUCH_CALL = 0x7FC00000, 0x7FFF0000, 0x80000000, 0x00050000 | errno.ENOSYS


def decide(architecture: str, number: int, *arguments: int, audit: int | None = None) -> int:
    """Interpret the filter for a call; return the action that it chooses."""
    code = bpf.program(ARCHITECTURES[architecture], FIRST, END)
    where = ARCHITECTURES[architecture].audit if audit is None else audit
    data = struct.pack("<iIQ6Q", number, where, 0, *(*arguments, *[0] * (6 - len(arguments))))
    at = loaded = 0
    while True:
        kind, true, false, operand = struct.unpack_from("<HBBI", code, at * 8)
        at += 1
        match kind:
            case 0x20:
                (loaded,) = struct.unpack_from("<I", data, operand)
            case 0x15:
                at += true if loaded == operand else false
            case 0x35:
                at += true if loaded >= operand else false
            case 0x45:
                at += true if loaded & operand else false
            case 0x06:
                return int(operand)


@pytest.fixture(params=sorted(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    ("name", "arguments", "action"),
    [
        ("write", (FIRST,), STOP),
        ("write", (END - 1,), STOP),
        ("write", (FIRST - 1,), ALLOW),
        ("write", (END,), ALLOW),
        ("write", (0xFFFFFFFF,), ALLOW),
        ("close", (3,), ALLOW),
        ("splice", (3, 0, FIRST), STOP),
        ("splice", (FIRST, 0, 3), ALLOW),
        ("openat", (0, 0, os.O_RDONLY), ALLOW),
        ("openat", (0, 0, os.O_WRONLY), STOP),
        ("openat", (0, 0, os.O_CREAT), STOP),
        ("mmap", (0, 0, 3, 1, FIRST), STOP),
        ("mmap", (0, 0, 1, 1, FIRST), ALLOW),
        ("mmap", (0, 0, 3, 2, FIRST), ALLOW),
        ("mmap", (0, 0, 3, 1, 3), ALLOW),
        ("fcntl", (FIRST, 0), STOP),
        ("fcntl", (FIRST, 1030), STOP),
        ("fcntl", (FIRST, 3), ALLOW),
        ("fcntl", (3, 0), ALLOW),
        ("fsync", (3,), STOP),
        ("connect", (3,), STOP),
        ("renameat2", (), STOP),
        ("io_uring_setup", (), NO_SUCH_CALL),
        ("openat2", (), NO_SUCH_CALL),
    ],
)
def test_calls_that_stop(architecture: str, name: str, arguments: tuple[int, ...], action: int) -> None:
    assert decide(architecture, ARCHITECTURES[architecture].numbers[name], *arguments) == action


def test_unknown_calls_pass_and_calls_of_other_architectures_end_the_program(architecture: str) -> None:
    assert decide(architecture, 500) == ALLOW
    assert decide(architecture, 1, audit=0x40000003) == KILL
    assert decide(architecture, 1 << 30) == KILL


def test_both_architectures_know_what_a_program_can_do_there() -> None:
    x86, arm = (set(ARCHITECTURES[name].numbers) for name in ("x86_64", "aarch64"))
    # The generic table has only the calls that take a folder.
    assert x86 - arm == {"open", "creat", "rename", "mkdir", "rmdir", "link", "unlink", "symlink"}
    assert arm - x86 == set()
