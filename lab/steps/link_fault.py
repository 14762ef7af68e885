"""The common part of link faults: the two ends, and the types of frames."""

from __future__ import annotations

from typing import Final

from lab.steps.entry import Entry
from lab.steps.step import Fault, Needs
from lab.words import FRAME_TYPES, LinkEnd

DRAWN_FRAMES: Final = (
    *("APPEND", "APPENDED", "HEARTBEAT", "HEARTBEAT_ACK", "VOTE_REQUEST", "VOTE", "COORDINATOR", "CATCH_UP"),
    *("SUBMIT", "MEMBERS", "PROMISES"),
)
"""The types of frames that a search chooses to lose or delay."""


class LinkFault(Fault, frozen=True, rename={"source": "from"}):
    """A fault of the directed links from `source` to `to`; one end may be all clients."""

    source: LinkEnd = "all"
    to: LinkEnd = "all"

    @property
    def about_clients(self) -> bool:
        """True if the links are those between clients and nodes."""
        return "clients" in (self.source, self.to)

    @property
    def needs(self) -> Needs:
        return Needs(proxy=True, client_proxy=self.about_clients)

    def check(self, entry: Entry) -> None:
        if self.source == self.to == "clients":
            entry.at("to").fail("clients have no links with each other; one end must be nodes")

    def check_frames(self, entry: Entry, frames: tuple[str, ...]) -> None:
        """Refuse frame types that don't exist, or that these links don't carry."""
        for index, frame in enumerate(frames):
            if frame not in FRAME_TYPES:
                entry.at("frames", index).wrong(", ".join(FRAME_TYPES), FRAME_TYPES)
            entry.at("frames", index).check_once(frame, frames[:index])
        if frames and self.about_clients:
            entry.at("frames").fail("only links between nodes carry frames, those of clients carry lines")
        if frames and entry.setting.foreign:
            entry.at("frames").fail("the frames of nodes that cluster.command starts are not known")
