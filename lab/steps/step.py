"""What every step of a scenario has."""

from __future__ import annotations

from typing import ClassVar

from msgspec import Struct

from lab.words import Title


class Step(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all; the subclasses are listed below and nowhere else."""

    word: ClassVar[str]
    """The key that it has in YAML."""
    short: ClassVar[str] = ""
    """The field that a plain value stands for; "": none."""
    name: Title = ""
    """For progress lines and results; "": the step itself is shown."""
