"""What the faults of links have in common: two ends."""

from __future__ import annotations

from lab.steps.step import Fault, Needs
from lab.words import LinkEnd


class LinkFault(Fault, frozen=True, rename={"source": "from"}):
    """A fault of the directed links from `source` to `to`; one end may be all clients."""

    source: LinkEnd = "all"
    to: LinkEnd = "all"

    @property
    def about_clients(self) -> bool:
        """The links are those between clients and nodes."""
        return "clients" in (self.source, self.to)

    @property
    def needs(self) -> Needs:
        return Needs(proxy=True, client_proxy=self.about_clients)
