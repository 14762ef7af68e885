"""All mutants by name, and functions that apply one, temporarily or for the rest of the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from lab.mutants.clients import CLIENTS
from lab.mutants.disk import DISK
from lab.mutants.elections import ELECTIONS
from lab.mutants.logs import LOGS
from lab.mutants.members import MEMBERS
from lab.mutants.patch import Mutant, Patch
from lab.mutants.sessions import SESSIONS

__all__ = ["MUTANTS", "UNSEEN", "Mutant", "Patch", "apply_for_good", "mutant", "mutated"]

PARTS: Final = (ELECTIONS, MEMBERS, LOGS, SESSIONS, DISK, CLIENTS)
MUTANTS: Final[dict[str, Mutant]] = {name: each for part in PARTS for name, each in part.items()}


def mutant(name: str) -> Mutant:
    """Return the mutant with this name.

    Raises:
        ValueError: there is none; the text lists the names.
    """
    if name not in MUTANTS:
        raise ValueError(f"mutant {name!r}, allowed: {', '.join(MUTANTS)}")
    return MUTANTS[name]


UNSEEN: Final[dict[str, str]] = {
    "M3": "simulated links open authenticated; tests of the handshake send wrong proofs",
    "M5": "no fault changes a node's configured members; tests of recovery and of the handshake do",
}
"""Rule of docs/protocol.md without a mutant -> why a simulation could not notice one, and which tests would.

The same holds for a sentence of M4: a simulated member has one process, so no rebuild happens beside a living member.
"""


@contextmanager
def mutated(name: str) -> Iterator[Mutant]:
    """Apply a mutant to the product inside the with block.

    Raises:
        ValueError: no mutant has this name.
    """
    found, patch = mutant(name), Patch()
    try:
        found.apply(patch)
        yield found
    finally:
        patch.undo()


def apply_for_good(name: str) -> None:
    """Apply a mutant to the product for the rest of this process.

    Raises:
        ValueError: no mutant has this name.
    """
    mutant(name).apply(Patch())
