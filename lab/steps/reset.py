"""`reset`: connections are broken, once."""

from __future__ import annotations

from lab.steps.link_fault import LinkFault


class Reset(LinkFault, frozen=True):
    """The connections between these nodes are reset, in both directions; the nodes open them again."""

    word = "reset"
