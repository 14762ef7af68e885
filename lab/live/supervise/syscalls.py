"""The numbers of the system calls that the supervisor sees, per machine architecture, and their file arguments."""

from __future__ import annotations

import platform
from functools import cache
from typing import NamedTuple


class Architecture(NamedTuple):
    """One architecture. audit: AUDIT_ARCH_* of linux/audit.h. numbers: name of a system call -> its number."""

    audit: int
    numbers: dict[str, int]


# linux/arch/x86/entry/syscalls/syscall_64.tbl
_X86_64 = Architecture(
    0xC000003E,
    {
        "write": 1,
        "open": 2,
        "close": 3,
        "mmap": 9,
        "pwrite64": 18,
        "writev": 20,
        "msync": 26,
        "dup": 32,
        "sendfile": 40,
        "connect": 42,
        "fcntl": 72,
        "fsync": 74,
        "fdatasync": 75,
        "truncate": 76,
        "ftruncate": 77,
        "rename": 82,
        "mkdir": 83,
        "rmdir": 84,
        "creat": 85,
        "link": 86,
        "unlink": 87,
        "symlink": 88,
        "sync": 162,
        "io_setup": 206,
        "openat": 257,
        "mkdirat": 258,
        "unlinkat": 263,
        "renameat": 264,
        "linkat": 265,
        "symlinkat": 266,
        "splice": 275,
        "fallocate": 285,
        "pwritev": 296,
        "process_vm_readv": 310,
        "syncfs": 306,
        "renameat2": 316,
        "seccomp": 317,
        "copy_file_range": 326,
        "pwritev2": 328,
        "pidfd_getfd": 438,
        "io_uring_setup": 425,
        "openat2": 437,
    },
)

# linux/include/uapi/asm-generic/unistd.h
_AARCH64 = Architecture(
    0xC00000B7,
    {
        "io_setup": 0,
        "dup": 23,
        "fcntl": 25,
        "mkdirat": 34,
        "unlinkat": 35,
        "symlinkat": 36,
        "linkat": 37,
        "renameat": 38,
        "truncate": 45,
        "ftruncate": 46,
        "fallocate": 47,
        "openat": 56,
        "close": 57,
        "write": 64,
        "writev": 66,
        "pwrite64": 68,
        "pwritev": 70,
        "sendfile": 71,
        "splice": 76,
        "sync": 81,
        "fsync": 82,
        "fdatasync": 83,
        "connect": 203,
        "mmap": 222,
        "msync": 227,
        "syncfs": 267,
        "process_vm_readv": 270,
        "renameat2": 276,
        "seccomp": 277,
        "copy_file_range": 285,
        "pwritev2": 287,
        "io_uring_setup": 425,
        "openat2": 437,
        "pidfd_getfd": 438,
    },
)

ARCHITECTURES = {"x86_64": _X86_64, "aarch64": _AARCH64}
HERE = ARCHITECTURES.get(platform.machine())
"""The architecture of this machine; None if the supervisor does not know it."""


@cache
def names() -> dict[int, str]:
    """Return number -> name on this machine."""
    return {} if HERE is None else {number: name for name, number in HERE.numbers.items()}
