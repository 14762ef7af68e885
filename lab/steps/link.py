"""`link`: a rule for the frames on some links."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Self

import msgspec
from msgspec import Struct, structs

from lab.steps.entry import Entry
from lab.steps.link_fault import DRAWN_FRAMES, LinkFault
from lab.steps.lot import Lot
from lab.steps.machine import Machine, Run
from lab.steps.reducing import shorter
from lab.steps.rules import Pair, Rule
from lab.steps.step import Effect, Needs
from lab.words import Count, CountOrNone, Duration, Period, Share

RULES = ("reorder", "delay", "jitter", "loss", "duplicate", "corrupt", "bandwidth", "chunk", "refuse")
"""The fields that affect frames; at least one is needed."""
FRAME_RULES = ("reorder", "loss", "duplicate", "corrupt")
"""Those that TCP rules out on an open connection."""


class Reorder(Struct, frozen=True, forbid_unknown_fields=True):
    """Hold back every `every`-th matching frame until `behind` later matching frames have overtaken it.

    at_most: the frame is released after this time at the latest.
    """

    every: Count = 2
    behind: Count = 1
    at_most: Period = Duration(0.1)


class Link(LinkFault, frozen=True):
    """Apply a rule to frames on these directed links from now on; it replaces an earlier rule of the link.

    frames: the frame types ("APPEND") that the rule holds for; empty: all.
    delay: each such frame is delayed by this, in order, and more as `distribution` says: by up to `jitter` (uniform),
        by `jitter` on average (exponential), or normally distributed around `delay` with deviation `jitter` (normal).
    loss, duplicate, corrupt: shares, 0..1, of such frames that are lost, arrive twice or with one byte changed.
    bandwidth: bytes of such frames a second; 0: no limit.
    chunk: such frames arrive in pieces of this many bytes, a millisecond apart; 0: in one piece.
    refuse: reset the connection and every new one; no other field may stand beside it.
    Links of clients carry TCP bytes, not frames: they can be delayed, slowed, cut in pieces and refused only.
    """

    word = "link"
    drawn_from = 2
    effect = Effect.LINKS
    frames: tuple[str, ...] = ()
    reorder: Reorder | None = None
    delay: Duration = Duration(0)
    jitter: Duration = Duration(0)
    distribution: Literal["uniform", "exponential", "normal"] = "uniform"
    loss: Share = 0.0
    duplicate: Share = 0.0
    corrupt: Share = 0.0
    bandwidth: CountOrNone = 0
    chunk: CountOrNone = 0
    refuse: bool = False

    def check(self, entry: Entry) -> None:
        super().check(entry)
        self.check_frames(entry, self.frames)
        if not self._rules():
            entry.fail(f"does nothing; give {', '.join(RULES[:-1])} or {RULES[-1]} (heal undoes a rule)")
        if self.refuse and (self._rules() != ["refuse"] or self.frames):
            entry.at("refuse").fail("lets nothing through; no other field may stand beside it")
        if self.distribution != "uniform" and not self.jitter:
            entry.at("distribution").fail("needs jitter: it says how jitter is drawn")
        for name in FRAME_RULES if self.about_clients or entry.setting.foreign else ():
            if name == "loss" and entry.setting.network == "kernel":
                continue  # Of packets.
            if getattr(self, name):
                allowed = ", ".join(each for each in RULES if each not in FRAME_RULES)
                whose = "clients" if self.about_clients else "nodes that cluster.command starts"
                entry.at(name).fail(f"is for links that carry frames; allowed for those of {whose}: {allowed}")

    def _rules(self) -> list[str]:
        """The fields of RULES that are given."""
        return [name for name in RULES if getattr(self, name)]

    @property
    def needs(self) -> Needs:
        others = ("frames",) if self.frames else ()
        needs = super().needs._replace(proxy_fields=(*others, *(name for name in self._rules() if name != "loss")))
        if self.about_clients and self.loss:
            return needs._replace(real_time="the simulator's clients lose no bytes", real_time_field="loss")
        if not self.chunk or self.about_clients:
            return needs
        why = "simulated frames are not made of bytes"
        return needs._replace(real_time=why, real_time_field="chunk")

    def reduce(self) -> Iterator[Self]:
        yield from super().reduce()
        if self.delay:
            if self._rules() != ["delay"]:
                yield structs.replace(self, delay=Duration(0))
            yield from shorter(self, "delay")
        if self.jitter:
            if self._rules() != ["jitter"]:
                yield structs.replace(self, jitter=Duration(0), distribution="uniform")
            yield from shorter(self, "jitter")
        for name in ("loss", "duplicate"):
            if getattr(self, name):
                yield structs.replace(self, **{name: 1.0})
        if len(self.frames) > 1:
            yield from (structs.replace(self, frames=(each,)) for each in self.frames)

    @classmethod
    def draw(cls, lot: Lot) -> Self:
        rng = lot.rng
        frames = tuple(sorted(rng.sample(DRAWN_FRAMES, rng.randint(1, 2)))) if lot.chance(0.5) else ()
        source, to = lot.ends()
        share = rng.choice((0.05, 0.3, 0.8))
        kind = rng.choice(("loss", "duplicate", "corrupt", "delay", "delay", "slow", "refuse"))
        rule: dict[str, Any] = {kind: share}
        match kind:
            case "corrupt":
                rule = {"corrupt": share / 4}
            case "delay":
                delay = lot.time(0.005, 0.1, 0.5, 1.5)
                rule = {"delay": delay, "jitter": delay, "distribution": rng.choice(("uniform", "exponential"))}
            case "slow":
                rule = {"bandwidth": rng.choice((2_000, 20_000, 200_000))}
            case "refuse":
                return cls(source=source, to=to, refuse=True)
        return cls(source=source, to=to, frames=frames, **rule)

    @classmethod
    def draw_reorder(cls, lot: Lot) -> Self:
        """Draw a reordering, mostly of records, so that holes appear and are filled."""
        frames = ("APPEND",) if lot.chance(0.6) else ()
        source, to = lot.ends()
        at_most = lot.time(0.02, 0.1, 1.0)
        order = Reorder(every=lot.rng.randint(1, 4), behind=lot.rng.randint(1, 5), at_most=at_most)
        return cls(source=source, to=to, frames=frames, reorder=order)

    @property
    def rule(self) -> Rule:
        """The rule for each of the links."""
        values = msgspec.to_builtins(self, enc_hook=float)  # A rule has the same fields, and those of a Reorder.
        values |= values["reorder"] or {}
        return msgspec.convert({name: values[name] for name in Rule.__struct_fields__ if name in values}, Rule)

    async def do(self, run: Run, index: int) -> None:
        await treat(run, run.pairs(self.source, self.to), self.rule, index)


async def treat(run: Run, pairs: Sequence[Pair], rule: Rule, index: int) -> None:
    """Put a rule on these links. Its row is complete when the rule ends."""
    row = run.book.begin(Link.word, index, receiver(run, pairs))
    before = await run.world.set_rule(pairs, rule)
    run.book.links_over(pairs, before)
    row.rules(rule, pairs, before)


def receiver(run: Run, pairs: Sequence[Pair]) -> Machine | None:
    """Return the one node that these links lead to; None if they lead to several, or to clients."""
    targets = {to for _, to in pairs}
    return run.world.machines.get(targets.pop()) if len(targets) == 1 else None
