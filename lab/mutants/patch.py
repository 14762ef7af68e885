"""Mutant, the description of one broken rule, and Patch, which replaces parts of the product and restores them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["safety", "liveness"]


class Patch:
    """Replaces attributes of modules and classes, as pytest's monkeypatch does."""

    def __init__(self) -> None:
        self.changes: list[tuple[object, str, object]] = []
        """(owner, name, previous value), in the order of the changes."""

    def set(self, owner: object, name: str, value: object) -> None:
        """Replace an attribute of the owner itself, not one that it inherits."""
        assert name in vars(owner), f"{owner!r} has no {name!r}"
        before = vars(owner)[name]
        assert before is not value, f"{owner!r}: {name!r} is that already"
        self.changes.append((owner, name, before))
        setattr(owner, name, value)

    def everywhere(self, function: Callable[..., object], value: object) -> None:
        """Replace a function of the product in its own module and in all modules that have imported it by name."""
        places = [
            (module, name)
            for at, module in sorted(sys.modules.items())
            if at.partition(".")[0] == "nodeproc"
            for name, found in vars(module).items()
            if found is function
        ]
        assert places, f"no module of the product has {function!r}"
        for module, name in places:
            self.set(module, name, value)

    def undo(self) -> None:
        """Restore all previous values, the latest change first."""
        while self.changes:
            owner, name, before = self.changes.pop()
            setattr(owner, name, before)


@dataclass(frozen=True, slots=True)
class Mutant:
    """The product with one rule of docs/protocol.md broken.

    says: a description of the wrong behaviour.
    kind: whether the broken rule is one of safety or of liveness.
    """

    name: str
    rule: str
    says: str
    apply: Callable[[Patch], None]
    kind: Kind = "safety"


class Collection(dict[str, Mutant]):
    """Mutants by name, each made from a function that breaks a rule."""

    def add(
        self, rule: str, says: str, kind: Kind = "safety"
    ) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
        """Return a decorator that adds a mutant with the name of the decorated function."""

        def take(function: Callable[[Patch], None]) -> Callable[[Patch], None]:
            name = function.__name__
            assert name not in self, f"two mutants are called {name}"
            self[name] = Mutant(name, rule, says, function, kind)
            return function

        return take
