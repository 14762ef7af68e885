"""Group commit: who syncs, in which order, and what is told when."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from nodeproc.disk.syncing import LATELY, QUICK_S, Syncing
from tests import TOO_LONG_S


class Disk:
    """Takes as long as it is told to, on a clock of its own."""

    def __init__(self) -> None:
        self.takes = QUICK_S / 10
        self.now = 0.0
        self.by: list[threading.Thread] = []
        self.told: list[int] = []
        self.failures: list[BaseException] = []
        self.held_up: list[float] = []
        self.stalled: list[float] = []
        self.during: Callable[[], None] = lambda: None
        self.fails: OSError | None = None
        self.syncing = Syncing(
            self.sync,
            self.durable,
            self.failures.append,
            self.held_up.append,
            self.stalled.append,
            TOO_LONG_S,
            lambda: self.now,
        )

    def sync(self) -> None:
        self.by.append(threading.current_thread())
        if self.fails is not None:
            raise self.fails
        self.now += self.takes
        self.during()

    def durable(self, ticket: int) -> None:
        self.told.append(ticket)
        self.syncing.end_turn()

    async def write(self, ticket: int) -> None:
        """One turn that writes, and all that follows from it."""
        self.syncing.wrote(ticket)
        self.syncing.end_turn()
        async with asyncio.timeout(TOO_LONG_S):
            while not self.failures and (not self.told or self.told[-1] < ticket):
                await asyncio.sleep(0)

    async def write_quickly(self, count: int) -> int:
        """So many turns; returns the last ticket."""
        first = self.syncing.count
        for ticket in range(first + 1, first + count + 1):
            await self.write(ticket)
        return first + count

    @property
    def in_loop(self) -> list[bool]:
        return [thread is threading.main_thread() for thread in self.by]


def on_a_disk(story: Callable[[Disk], Awaitable[None]]) -> Disk:
    async def run() -> Disk:
        disk = Disk()
        await story(disk)
        disk.syncing.close()
        return disk

    return asyncio.run(run())


def test_the_thread_syncs_until_the_disk_has_been_quick_for_a_while() -> None:
    async def story(disk: Disk) -> None:
        await disk.write_quickly(LATELY + 3)

    disk = on_a_disk(story)
    by_thread = disk.in_loop.index(True)
    assert LATELY / 2 < by_thread < LATELY
    assert disk.in_loop == [False] * by_thread + [True] * (LATELY + 3 - by_thread)
    assert disk.told == list(range(1, LATELY + 4))
    assert (disk.syncing.count, disk.syncing.in_loop) == (LATELY + 3, LATELY + 3 - by_thread)


@pytest.mark.parametrize(("takes", "in_loop"), [(4 * QUICK_S, True), (100 * QUICK_S, False)])
def test_a_sync_that_is_a_little_late_changes_nothing_and_a_stall_gives_the_disk_back_to_the_thread(
    takes: float, in_loop: bool
) -> None:
    async def story(disk: Disk) -> None:
        last = await disk.write_quickly(4 * LATELY)
        disk.takes = takes
        await disk.write(last + 1)
        disk.takes = QUICK_S / 10
        await disk.write(last + 2)

    disk = on_a_disk(story)
    assert disk.in_loop[-2:] == [True, in_loop]
    # Only the loop's own syncs: those in the thread let the loop report by itself.
    assert len(disk.held_up) == sum(disk.in_loop) and max(disk.held_up) == pytest.approx(takes)


def test_a_disk_that_turns_slow_is_soon_the_thread_s() -> None:
    async def story(disk: Disk) -> None:
        await disk.write_quickly(4 * LATELY)
        disk.takes = 2 * QUICK_S
        await disk.write_quickly(LATELY)

    in_loop = on_a_disk(story).in_loop
    assert in_loop[4 * LATELY] and not in_loop[-1]


def test_a_slow_disk_is_never_the_loop_s() -> None:
    async def story(disk: Disk) -> None:
        disk.takes = 2 * QUICK_S
        await disk.write_quickly(3 * LATELY)

    assert not any(on_a_disk(story).in_loop)


def test_the_loop_syncs_at_the_end_of_the_turn_and_tells_of_it_after_that() -> None:
    async def story(disk: Disk) -> None:
        last = await disk.write_quickly(LATELY)
        disk.syncing.wrote(last + 1)
        assert len(disk.by) == last, "what has to be sent is sent first"
        disk.syncing.end_turn()
        assert len(disk.by) == last + 1
        assert disk.told[-1] == last, "never from inside a call"
        disk.syncing.wrote(last + 2)
        disk.syncing.end_turn()
        assert len(disk.by) == last + 1, "one at a time"
        await disk.write(last + 3)

    on_a_disk(story)


def test_a_turn_that_wrote_nothing_syncs_nothing() -> None:
    async def story(disk: Disk) -> None:
        last = await disk.write_quickly(LATELY + 1)
        disk.syncing.end_turn()
        await asyncio.sleep(0)
        assert len(disk.by) == last

    on_a_disk(story)


def test_what_is_written_during_a_sync_shares_the_next_one() -> None:
    async def story(disk: Disk) -> None:
        for ticket in (1, 2, 3):
            disk.syncing.wrote(ticket)
        await disk.write(4)

    disk = on_a_disk(story)
    assert disk.told == [1, 4]
    assert len(disk.by) == 2


def test_a_sync_that_hangs_in_the_loop_is_reported_while_it_hangs_and_once() -> None:
    async def story(disk: Disk) -> None:
        last = await disk.write_quickly(LATELY + 3)
        disk.syncing.look()

        def hang() -> None:
            disk.syncing.look()
            assert disk.stalled == []  # A process that was stopped meanwhile has looked once as well.
            disk.now += 7.0
            for _ in range(3):
                disk.syncing.look()
            assert disk.stalled == [pytest.approx(7.0, abs=0.01)]

        disk.during = hang
        await disk.write(last + 1)
        disk.during = lambda: None
        await disk.write(last + 2)
        disk.syncing.look()
        disk.syncing.look()
        assert len(disk.stalled) == 1

    assert on_a_disk(story).in_loop[-2]


def test_a_failure_in_the_thread_is_told_in_the_loop_and_kept() -> None:
    async def story(disk: Disk) -> None:
        disk.fails = OSError("gone")
        await disk.write(1)
        assert disk.failures == [disk.fails]

    disk = on_a_disk(story)
    assert disk.syncing.close() is disk.fails
    assert disk.told == []


def test_a_failure_in_the_loop_is_raised_where_the_turn_ends() -> None:
    async def story(disk: Disk) -> None:
        last = await disk.write_quickly(LATELY)
        disk.fails = OSError("gone")
        disk.syncing.wrote(last + 1)
        with pytest.raises(OSError, match="gone"):
            disk.syncing.end_turn()
        await asyncio.sleep(0)
        assert disk.told[-1] == last

    on_a_disk(story)


def test_the_end_waits_for_the_thread() -> None:
    async def story(disk: Disk) -> None:
        disk.syncing.wrote(1)
        disk.syncing.close()
        assert len(disk.by) == 1

    on_a_disk(story)
