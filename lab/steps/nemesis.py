"""`nemesis`: one fault after the other, in a drawn order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from msgspec import Struct, structs

from lab.steps.entry import Entry
from lab.steps.outlook import Outlook
from lab.steps.reducing import shorter
from lab.steps.step import Fault, Step
from lab.words import Duration, Period
from nodeproc.core.messages import NodeId
from nodeproc.yamlfile import Place

EVERY = Duration(2)


class Nemesis(Step, frozen=True, rename={"time": "for"}):
    """For a time one fault after the other, each healed before the next.

    every: from one fault to the next; longer where a heal takes longer. A fault holds for a drawn quarter to three
        quarters of it.
    faults: come in a drawn order, all of them before one comes again. One whose target means nobody is left out.
    """

    word = "nemesis"
    inner_key = "faults"
    in_rounds = True
    time: Period
    faults: tuple[Step, ...]
    every: Period = EVERY

    @classmethod
    def read(cls, entry: Entry) -> Self:
        value = entry.mapping(("for", "faults"), ("for", "faults", "every"))
        times = {key: entry.at(key).period() for key in ("for", "every") if key in value}
        allowed = [each for each in entry.setting.steps.values() if each.in_nemesis]
        faults = entry.at("faults").inner_steps(allowed)
        for index, fault in enumerate(faults):
            if isinstance(fault, Fault) and fault.unhealable:
                entry.at("faults", index, fault.word).fail(fault.unhealable)
        return cls(time=times["for"], faults=faults, every=times.get("every", EVERY))

    def in_full(self) -> Any:
        return {**self._times(), "faults": [fault.as_yaml(in_brief=False) for fault in self.faults]}

    def in_brief(self) -> Any:
        return {**self._times(), "faults": [fault.as_yaml(in_brief=True) for fault in self.faults]}

    def shown(self) -> Any:
        return {**self._times(), "faults": f"{len(self.faults)} kinds"}

    def _times(self) -> dict[str, str]:
        return {"for": str(self.time), "every": str(self.every)}

    @property
    def inner(self) -> tuple[Step, ...]:
        return self.faults

    def foresee(self, outlook: Outlook, place: Place) -> None:
        outlook.anything = True

    def aims(self) -> tuple[Struct, ...]:
        return ()  # Nobody knows who runs when it acts.

    def reduce(self) -> Iterator[Self]:
        yield from super().reduce()
        yield from shorter(self, "time")

    def without(self, gone: NodeId) -> Self | None:
        inside = tuple(less for each in self.faults if (less := each.without(gone)) is not None)
        return structs.replace(self, faults=inside) if inside else None

    def findings(self) -> Iterator[str]:
        yield self.show()

    @property
    def faults_done(self) -> tuple[Fault, ...]:
        return tuple(fault for fault in self.faults if isinstance(fault, Fault))
