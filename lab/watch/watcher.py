"""One run being watched: reads what is new and keeps the picture. A finished run can be replayed at its own pace."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from lab.watch.picture import NS_PER_S, Figures, Picture
from lab.watch.sources import FOREVER, Run

LINES: Final = 8
"""Messages of each log that a page shows."""


class Watcher:
    """The state of one page.

    Args:
        speed: seconds of the run in one second of the page, from the run's beginning; 0: all that is there is shown.
        clock: monotonic seconds.
    """

    def __init__(self, path: Path, speed: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self.picture, self.figures = Picture(), Figures()
        self._run, self._speed, self._clock = Run(path), speed, clock
        self._began = clock()
        self._start = 0

    def look(self) -> None:
        """Read what is new."""
        picture = self.picture
        self._start = self._start or self._run.start()
        until = self._until()
        for t, row in self._run.live(until):
            picture.take(t, row)
        for event in self._run.events(iter(picture.nodes), until):
            picture.take_event(event)
        for each in self._run.history(until):
            self.figures.take(each)

    def _until(self) -> int:
        if not self._speed:
            return FOREVER
        return self._start + int((self._clock() - self._began) * self._speed * NS_PER_S)

    def plain(self) -> dict[str, Any]:
        """Return what the page shows, as a JSON object, without the news."""
        offset = self.picture.seconds(self.figures.start) if self.figures.start else 0.0
        shown = self.picture.plain() | {"figures": self.figures.plain(offset)}
        for node in shown["nodes"]:
            if self._speed:
                node["lines"] = self._run.lines_up_to(node["id"], node["delivered"], LINES)
            else:
                node["lines"] = self._run.last_lines(node["id"], LINES)
        return shown

    def news_after(self, number: int) -> list[dict[str, Any]]:
        """Return the news with a higher number, the earliest first."""
        return sorted((each for each in self.picture.news if each["id"] > number), key=lambda each: each["s"])

    def close(self) -> None:
        self._run.close()
