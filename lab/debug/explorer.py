"""`run_lab.py explore --web`: the states of an exploration as a page, on which the user chooses each move.

A *path* is the sequence of choices from the first state, each as the index of the move among those that are possible;
the address of the page contains it. The server keeps nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

from aiohttp import web
from msgspec import Struct

from lab.debug.page import FILES, STATIC
from lab.debug.questions import rule_text
from lab.debug.views import Value, View, differences, view_of_core
from lab.mutants.catalogue import Mutant
from lab.places import DOCS
from lab.search import explore
from lab.search.explore_cluster import BUDGETS, Bounds, Clusters, Move, World
from lab.search.explore_node import Outcome, Violation
from lab.search.failure import as_mutant
from lab.watch.web import Site, file_answer, json_answer, serve
from nodeproc.core.messages import NodeId

MOST_MOVES: Final = 500
Path: TypeAlias = tuple[int, ...]
PASS, USAGE = 0, 64


class Choice(Struct, frozen=True):
    """A possible move. idle: it leads to a state that is on the path already."""

    text: str
    node: NodeId
    idle: bool


class Done(Struct, frozen=True):
    """A move of the path, and what the nodes did."""

    text: str
    lines: list[str]


class Shown(Struct, frozen=True):
    """A state, and the path to it.

    left: how often each bounded kind of event may still happen. problem: the violation at the end; "" if there is none.
    """

    path: Path
    done: list[Done]
    nodes: dict[NodeId, View]
    changes: dict[NodeId, dict[str, tuple[Value, Value]]]
    queues: list[tuple[NodeId, NodeId, list[str]]]
    left: dict[str, int]
    choices: list[Choice]
    problem: str


class Paths:
    """The paths within the bounds."""

    def __init__(self, bounds: Bounds) -> None:
        self.clusters = Clusters(bounds)
        self._worlds: dict[Path, World] = {(): self.clusters.first()}

    def show(self, path: Path) -> Shown:
        """Return the state at the end of a path.

        Raises:
            ValueError: there is no such path; names what was found and what is allowed.
        """
        done: list[Done] = []
        seen = [self._worlds[()]]
        problem = ""
        for at, choice in enumerate(path):
            moves = [] if problem else list(self.clusters.moves(seen[-1]))
            if choice >= len(moves):
                raise ValueError(f"path, move {at + 1}: found {choice}, allowed 0..{len(moves) - 1}")
            text = explore.move_line(self.clusters, seen[-1], moves[choice])
            try:
                world, outcomes = self.clusters.follow(seen[-1], moves[choice])
            except Violation as violation:
                problem = str(violation)
                done.append(Done(text, []))
                continue
            done.append(Done(text, list(_lines(self.clusters, outcomes))))
            seen.append(world)
        views = [self._views(world) for world in seen[-2:]]
        return Shown(
            path,
            done,
            views[-1],
            {node: differences(views[0][node], views[-1][node]) for node in views[-1]},
            list(self._queues(seen[-1])),
            self._left(seen[-1]),
            [] if problem else [self._choice(move, seen) for move in self.clusters.moves(seen[-1])],
            problem,
        )

    def indices(self, moves: tuple[Move, ...]) -> Path:
        """Return the path of these moves from the first state."""
        world, path = self._worlds[()], []
        for move in moves:
            path.append(list(self.clusters.moves(world)).index(move))
            if len(path) < len(moves):
                world = self.clusters.after(world, move)
        return tuple(path)

    def _views(self, world: World) -> dict[NodeId, View]:
        locals_ = self.clusters.locals
        nodes = [locals_.nodes.things[world[a - 1]].node for a in self.clusters.ids]
        return {
            a: {"role": "down"} if node is None else view_of_core(node)
            for a, node in zip(self.clusters.ids, nodes, strict=True)
        }

    def _queues(self, world: World) -> Iterator[tuple[NodeId, NodeId, list[str]]]:
        things = self.clusters.locals.messages.things
        for a, b in self.clusters.pairs:
            if frames := [explore.message_line(things[each]) for each in self.clusters.queue(world, a, b)]:
                yield a, b, frames

    def _left(self, world: World) -> dict[str, int]:
        account = self.clusters.account(world)
        return {name: getattr(account, name) for name in BUDGETS}

    def _choice(self, move: Move, seen: list[World]) -> Choice:
        text = explore.move_line(self.clusters, seen[-1], move)
        try:
            idle = self.clusters.after(seen[-1], move) in seen
        except Violation:
            idle = False
        return Choice(text, move.node, idle)


def _lines(clusters: Clusters, outcomes: list[tuple[NodeId, Outcome]]) -> Iterator[str]:
    for a, outcome in outcomes:
        yield from explore.outcome_lines(clusters, a, outcome)


class Explorer(Site):
    """The page. start: the path that it opens."""

    def __init__(self, bounds: Bounds, mutant: Mutant | None, start: Path = (), token: str = "") -> None:
        super().__init__((), token, STATIC, FILES)
        self.paths = Paths(bounds)
        self.start = start
        self._mutant, self._bounds = mutant, bounds

    def application(self) -> web.Application:
        application = super().application()
        application.router.add_get("/", self._page)
        application.router.add_get("/api/start", self._start)
        application.router.add_get("/api/state", self._state)
        return application

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return file_answer(STATIC / "explore.html", "text/html")

    async def _start(self, request: web.Request) -> web.StreamResponse:
        about: dict[str, Any] = {"path": self.start, "bounds": explore.bounds_line(self._bounds, None), "mutant": None}
        if (mutant := self._mutant) is not None:
            text = rule_text(DOCS / "protocol.md", mutant.rule)
            about["mutant"] = {"name": mutant.name, "rule": mutant.rule, "says": mutant.says, "text": text}
        return json_answer(about)

    async def _state(self, request: web.Request) -> web.StreamResponse:
        words = [each for each in request.query.get("path", "").split(".") if each]
        if len(words) > MOST_MOVES or not all(each.isdecimal() and len(each) < 4 for each in words):
            raise web.HTTPBadRequest(text=f"path: allowed up to {MOST_MOVES} numbers of moves, as in 0.2.1\n")
        try:
            return json_answer(self.paths.show(tuple(map(int, words))))
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from None


def main(options: argparse.Namespace) -> int:
    """Serve until the user interrupts; return 0, or 64 if the port is taken.

    With a mutant, the page opens at the violation that a search within the bounds finds first.
    """
    bounds = Bounds(**{name: getattr(options, name) for name in Bounds._fields})
    with as_mutant(options.mutant) as mutant:
        page = Explorer(bounds, mutant)
        if mutant is not None:
            print(f"mutant {mutant.name} ({mutant.rule}): {mutant.says}", file=sys.stderr)
            finding = explore.search(page.paths.clusters, options.depth, lambda line: print(line, file=sys.stderr))
            page.start = page.paths.indices(finding.trace)
            print(finding.problem or "no invariant broke", file=sys.stderr)
        try:
            asyncio.run(serve(page, options.port, "", "choose each event; Ctrl+C ends", open_page=options.open))
        except OSError as error:
            print(f"--port {options.port}: {error.strerror or error}; allowed: a free port, or 0", file=sys.stderr)
            return USAGE
    return PASS
