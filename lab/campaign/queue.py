"""What is left to do in a campaign, and the sorting of its failures into findings. Knows nothing of Dask.

A failing seed belongs to a finding if it breaks the same invariant and hits all marks that the finding's shrunk
scenario hits: the shrunk scenario contains what this failure needs, so the seed went the same way. Any other failing
seed is shrunk. Two seeds that shrink to the same invariant and marks are one finding.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from lab import values
from lab.campaign.orders import Answer, Lost, Order, Play, Reduced, Result, Shrink
from lab.campaign.store import ENDLESS, Failing, Finding, Store, kind_of
from lab.search.shrink import SIMULATIONS
from lab.search.worker import Played

FINDINGS_MAX: Final = 5
"""Findings of one kind that are shrunk; further failing seeds that none of them explains are only counted."""
Kind = tuple[str, str]
"""Mutant ("" for the product), and kind of failure."""


class Queue:
    """The orders of a campaign, in the order of the seeds; findings are shrunk as soon as they appear.

    Args:
        tell: called with a text about each new finding and each seed in which the lab failed.
        clock: returns seconds.
    """

    def __init__(self, store: Store, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.store, self._tell, self._clock = store, tell, clock
        self._began = clock() - store.spent_s
        self._again: deque[Order] = deque()
        self._alone: deque[Order] = deque()
        self._fresh = self._not_done()
        self._findings = store.findings()
        self._unexplained = store.unexplained()
        self._shrinking: set[Kind] = set()
        self.recorded = 0
        """Number of seeds that were recorded in this process."""
        for kind in list(self._unexplained):
            self._sort(kind)

    @property
    def findings(self) -> int:
        """Number of findings, of all starts together."""
        return len(self._findings)

    @property
    def spent_s(self) -> float:
        """The running time of the campaign, of all starts together."""
        return self._clock() - self._began

    def _not_done(self) -> Iterator[Play]:
        settings, done = self.store.settings, self.store.done()
        last = settings.first + settings.count - 1 if settings.count else values.SEED_MAX
        for seed in range(settings.first, last + 1):
            for mutant in settings.mutants:
                if (seed, mutant) not in done:
                    yield Play(seed, settings.sizes, settings.changing, mutant)

    # ---- orders --------------------------------------------------------------------------------------

    def next(self, size: int) -> list[Order]:
        """Return up to `size` orders for one worker; [] if nothing is left now, or the time is up.

        A shrinking comes alone, because it takes as long as hundreds of seeds.
        """
        if (shrink := self._next_shrinking()) is not None:
            return [shrink]
        if self._alone:
            return [self._alone.popleft()]
        found: list[Order] = []
        while len(found) < size and (order := self._next_seed()) is not None:
            found.append(order)
        return found

    def _next_seed(self) -> Order | None:
        if self._again:
            return self._again.popleft()
        limit = self.store.settings.time_limit_s
        if limit is not None and self.spent_s >= limit:
            return None
        return next(self._fresh, None)

    def _next_shrinking(self) -> Shrink | None:
        for kind, failing in self._unexplained.items():
            if failing and kind not in self._shrinking and self._of(kind) < FINDINGS_MAX:
                self._shrinking.add(kind)
                settings = self.store.settings
                return Shrink(failing[0].seed, settings.sizes, settings.changing, kind[0], SIMULATIONS)
        return None

    def put_back(self, orders: Iterable[Order], *, alone: bool = False) -> None:
        """Take orders back that no worker has carried out. alone: give out each of them alone."""
        for order in orders:
            if isinstance(order, Play):
                (self._alone if alone else self._again).append(order)
            else:
                self._shrinking -= {kind for kind in self._shrinking if self._is_shrunk_by(kind, order)}

    def _is_shrunk_by(self, kind: Kind, order: Shrink) -> bool:
        return kind[0] == order.mutant and self._unexplained[kind][0].seed == order.seed

    # ---- answers -------------------------------------------------------------------------------------

    def take(self, order: Order, answer: Answer, worker: str) -> None:
        """Record the answer to an order."""
        if isinstance(order, Shrink):
            self._take_shrunk(order, answer if isinstance(answer, Reduced) else Reduced())
            return
        if isinstance(answer, Lost):
            answer = Result(Played(order.seed, trouble=answer.reason), 0.0)
        assert isinstance(answer, Result) and answer.played.seed == order.seed, (order, answer)
        failing = self.store.add(order.mutant, answer, worker)
        self.recorded += 1
        if answer.played.trouble:
            self._tell(
                f"seed {order.seed}: the lab failed: {failing.text}\n  {self.store.replay(order.seed, order.mutant)}"
            )
        elif answer.played.invariant:
            kind = (order.mutant, kind_of(answer.played))
            self._unexplained.setdefault(kind, []).append(failing)
            self._sort(kind)

    def _take_shrunk(self, order: Shrink, reduced: Reduced) -> None:
        kind = next(each for each in self._shrinking if self._is_shrunk_by(each, order))
        self._shrinking.discard(kind)
        self._add_finding(kind, self._unexplained[kind].pop(0), reduced)
        self._sort(kind)

    def _add_finding(self, kind: Kind, failing: Failing, reduced: Reduced) -> None:
        finding = self.store.add_finding(*kind, failing, reduced)
        if all(finding.id != each.id for each in self._findings):
            self._findings.append(finding)
            self._tell(self.describe(finding))

    def _sort(self, kind: Kind) -> None:
        """Assign the failing seeds of a kind to the findings that explain them.

        The first one stays while it is being shrunk, so that an answer finds its seed.
        """
        if kind[1] == ENDLESS and self._unexplained[kind] and not self._of(kind):
            self._add_finding(kind, self._unexplained[kind].pop(0), Reduced())
        kept = self._unexplained[kind][: kind in self._shrinking]
        explained: dict[int, list[int]] = {}
        for failing in self._unexplained[kind][len(kept) :]:
            finding = self._explaining(kind, failing)
            if finding is None:
                kept.append(failing)
            else:
                explained.setdefault(finding.id, []).append(failing.seed)
        self._unexplained[kind] = kept
        for number, seeds in explained.items():
            self.store.explain(kind[0], seeds, number)

    def _explaining(self, kind: Kind, failing: Failing) -> Finding | None:
        return next(
            (each for each in self._findings if (each.mutant, each.kind) == kind and each.marks <= failing.marks), None
        )

    def _of(self, kind: Kind) -> int:
        return sum((each.mutant, each.kind) == kind for each in self._findings)

    def describe(self, finding: Finding) -> str:
        """Return a new finding as text, with the commands that repeat it."""
        who = f"{finding.mutant}, " if finding.mutant else ""
        lines = [f"{who}seed {finding.seed}: {finding.kind}: {finding.text}"]
        lines.append(f"  again: {self.store.replay(finding.seed, finding.mutant)}")
        if finding.scenario:
            self.store.export()
            lines.append(f"  small: {self.store.small_replay(finding)}")
        return "\n".join(lines)
