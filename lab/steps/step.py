"""What every step of a scenario has: its words in YAML, and what a run must offer so that the step can be done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, NamedTuple

from msgspec import Struct

from lab.words import Title


class Needs(NamedTuple):
    """What a run must offer so that a step can be done.

    proxy: frames between nodes pass the lab's proxy.
    client_proxy: so does what clients and nodes send to each other.
    layer: what real nodes write, and the clocks that they read, pass the lab's layer: lab.live.inside.faulty_node.
    own_node: the nodes are the lab's own, not a program that `cluster.command` starts.
    load: the scenario has a load. load_end: that load has a count or a duration.
    real_time: why the step can't be simulated; "": it can.
    real_time_field: the field that can't be; "": the whole step.
    """

    proxy: bool = False
    client_proxy: bool = False
    layer: bool = False
    own_node: bool = False
    load: bool = False
    load_end: bool = False
    real_time: str = ""
    real_time_field: str = ""


class Step(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all steps; lab.steps.STEPS lists the subclasses."""

    word: ClassVar[str]
    """The key that it has in YAML."""
    short: ClassVar[str] = ""
    """The field that a plain value stands for; "": none."""
    in_when: ClassVar[bool] = False
    """A `when` may do it."""
    in_nemesis: ClassVar[bool] = False
    """A `nemesis` may do it."""
    inner_key: ClassVar[str] = ""
    """The key in YAML of the steps inside; "": none can be."""
    name: Title = ""
    """For progress lines and results; "": the step itself is shown."""

    @property
    def needs(self) -> Needs:
        """What the run must offer; the steps inside have needs of their own."""
        return Needs()

    # ---- steps inside ----------------------------------------------------------------------------

    @property
    def inner(self) -> tuple[Step, ...]:
        """The steps inside, as the file has them."""
        return ()

    @property
    def unrolled_count(self) -> int:
        """How many steps unrolled() yields."""
        return 1

    def unrolled(self) -> Iterator[Step]:
        """The steps that are done one after the other in place of this one."""
        yield self

    # ---- messages --------------------------------------------------------------------------------

    @property
    def starts_load(self) -> bool:
        """The scenario's load runs from here on."""
        return False

    def sends(self, planned: int) -> int:
        """How many messages the step sends.

        Args:
            planned: messages of the scenario's load from a start on; 0 where only a stop ends it.
        """
        return 0


class Fault(Step, frozen=True):
    """A step that does something to nodes, links or the host; it leaves rows in faults.jsonl."""

    in_when = True
    in_nemesis = True

    @property
    def unhealable(self) -> str:
        """Why no heal undoes it, so that a nemesis can't do it; "": one does."""
        return ""
