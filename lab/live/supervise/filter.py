"""The BPF program that chooses which system calls of a program stop for its supervisor.

Files below the data directory get numbers from FIRST_FD on, because the supervisor opens them (see disk.py). So calls
that take a file descriptor stop only for such numbers: reads, sockets, pipes and other files run at full speed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import struct
from collections.abc import Sequence
from typing import TypeAlias

from lab.live.supervise.syscalls import Architecture

MOST_FDS = 65536

Instruction: TypeAlias = tuple[int, int, int, int]
"""(code, instructions to skip if true, instructions to skip if false, operand); see linux/filter.h."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NOTIFY, _ALLOW, _ERRNO, _KILL_PROCESS = 0x7FC00000, 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4
_X32 = 1 << 30
"""From here on are the numbers of x86-64's second, rarely used interface."""
_DUPLICATES = (fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC)
_PROT_WRITE, _MAP_SHARED = 2, 1

FD_FIRST = (
    *("write", "pwrite64", "close", "writev", "pwritev", "pwritev2", "ftruncate", "fallocate", "sendfile", "dup"),
)
"""Calls that stop if their first argument is a data file."""
FD_THIRD = ("splice", "copy_file_range")
"""Calls that stop if their third argument is a data file."""
ALWAYS = (
    *("fsync", "fdatasync", "sync", "syncfs", "msync", "truncate", "connect", "creat"),
    *("rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat"),
    *("link", "linkat", "symlink", "symlinkat"),
)
"""Calls that always stop. A program makes them rarely, or waits for the disk anyway."""
REFUSED = ("io_uring_setup", "io_setup", "openat2")
"""Calls that fail with ENOSYS, because what follows from them could not be seen. Programs fall back to others."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def fd_range() -> tuple[int, int]:
    """Return the first number for data files and the end of these numbers, from the hard limit of RLIMIT_NOFILE."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    end = MOST_FDS if limit == resource.RLIM_INFINITY else min(limit, MOST_FDS)
    return end // 2, end


def program(architecture: Architecture, first_fd: int, end_fd: int) -> bytes:
    """Return the filter, encoded as an array of struct sock_filter."""
    numbers = architecture.numbers
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, architecture.audit),
        # Programs of another architecture, as 32 bit ones, would not be seen.
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL_PROCESS),
    ]

    def case(name: str, body: list[Instruction]) -> None:
        """If the call has this name, run the body, which must end in a return."""
        if name in numbers:
            code.append((_EQUAL, 0, len(body), numbers[name]))
            code.extend(body)

    for name in FD_FIRST:
        case(name, _if_data_file(0, first_fd, end_fd))
    for name in FD_THIRD:
        case(name, _if_data_file(2, first_fd, end_fd))
    case("mmap", [*_unless_bit(2, _PROT_WRITE), *_unless_bit(3, _MAP_SHARED), *_if_data_file(4, first_fd, end_fd)])
    case("fcntl", [_argument(1), *_unless_equal(_DUPLICATES), *_if_data_file(0, first_fd, end_fd)])
    case("openat", [*_unless_bit(2, _WRITES), (_RETURN, 0, 0, _NOTIFY)])
    case("open", [*_unless_bit(1, _WRITES), (_RETURN, 0, 0, _NOTIFY)])
    for name in ALWAYS:
        case(name, [(_RETURN, 0, 0, _NOTIFY)])
    for name in REFUSED:
        case(name, [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)])
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def _argument(index: int) -> Instruction:
    """Load the low half of an argument."""
    return _LOAD, 0, 0, 16 + 8 * index


def _if_data_file(index: int, first_fd: int, end_fd: int) -> list[Instruction]:
    return [
        _argument(index),
        (_AT_LEAST, 0, 2, first_fd),
        (_AT_LEAST, 1, 0, end_fd),
        (_RETURN, 0, 0, _NOTIFY),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _unless_bit(index: int, bits: int) -> list[Instruction]:
    """Allow the call if none of these bits is set in an argument."""
    return [_argument(index), (_ANY_BIT, 1, 0, bits), (_RETURN, 0, 0, _ALLOW)]


def _unless_equal(values: Sequence[int]) -> list[Instruction]:
    """Allow the call if the loaded word is none of these values."""
    tests = [(_EQUAL, len(values) - at, 0, value) for at, value in enumerate(values)]
    return [*tests, (_RETURN, 0, 0, _ALLOW)]
