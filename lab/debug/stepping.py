"""The simulation's loop, event by event. An event is one action at its virtual time; the first has the number 1."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, TypeAlias

from lab.sim.loop import VirtualLoop

Action: TypeAlias = Callable[..., object]
OnEvent: TypeAlias = Callable[[Action, tuple[Any, ...]], None]
Waiting: TypeAlias = tuple[float, int, Action, tuple[Any, ...]]
"""(virtual time, number, action, arguments). The number is the same in every replay."""


class SteppingLoop(VirtualLoop):
    """A loop that reports each event.

    Args:
        on_event: called after each event, also after one that has failed.
    """

    def __init__(self, on_event: OnEvent) -> None:
        super().__init__()
        self.count = 0
        self._on_event = on_event

    def post(self, when: float, action: Action, *args: Any) -> None:
        super().post(when, self._act, action, *args)

    def _act(self, action: Action, *args: Any) -> None:
        self.count += 1
        try:
            action(*args)
        finally:
            self._on_event(action, args)

    def waiting(self) -> list[Waiting]:
        """Return the actions that are due, the next first."""
        found = self._due if self._posted is None else [*self._due, self._posted]
        return [(when, number, args[0], args[1:]) for when, number, _, args in sorted(found, key=lambda item: item[:2])]

    def take_out(self, number: int) -> Waiting:
        """Remove an action, so that it never runs.

        Raises:
            LookupError: no action that is due has this number.
        """
        taken = next((each for each in self.waiting() if each[1] == number), None)
        if taken is None:
            raise LookupError(f"{number}: nothing that is due has this number")
        if self._posted is not None and self._posted[1] == number:
            self._posted = None
        else:
            self._due[:] = [each for each in self._due if each[1] != number]
            heapq.heapify(self._due)
        return taken
