"""`reset`: connections are broken, once."""

from __future__ import annotations

from lab.steps.step import Step
from lab.words import LinkEnd


class Reset(Step, frozen=True, rename={"source": "from"}):
    """The connections between these nodes are reset, in both directions; the nodes open them again."""

    word = "reset"
    source: LinkEnd = "all"
    to: LinkEnd = "all"
