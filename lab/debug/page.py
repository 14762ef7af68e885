"""The debugger as a page: the same branches as in the terminal, over HTTP.

    GET  /api/run          the run, its branches, and questions for predicting
    GET  /api/at           the state at an event or row of a branch, and what happens around it
    GET  /api/find         the next row, or the one before, that contains a text
    GET  /api/scenario     a branch as a scenario file
    POST /api/fork         a new branch: a change at an event

lab.watch.web says who may ask. Everything is sent as text, never as markup.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web
from msgspec import Struct

from lab.debug.branch import Branch, as_scenario
from lab.debug.questions import Question, questions, rule_text
from lab.debug.recorder import Change, Flight, Row
from lab.debug.texts import change_text, details_of, failure_of, find, line_of
from lab.debug.views import Value, View
from lab.mutants.catalogue import MUTANTS
from lab.places import DOCS
from lab.plan import scenario as plan
from lab.plan.scenario import Scenario
from lab.show.sentences import rules
from lab.watch.web import Site, file_answer, json_answer
from nodeproc.core.messages import NodeId
from nodeproc.errors import ConfigError

STATIC: Final = Path(__file__).parent / "static"
FILES: Final = {
    "debug.js": "text/javascript",
    "explore.js": "text/javascript",
    "parts.js": "text/javascript",
    "debug.css": "text/css",
}
MOST_BRANCHES: Final = 40
BEFORE, AFTER = 22, 9
"""Lines of the diagram above and below the present event."""
ROWS_BEFORE, ROWS_AFTER = 40, 25
"""Rows that are read for the diagram."""
ROWS_ASKED: Final = 4000
"""Questions are about the last ones."""
FLIGHT_S: Final = 10.0
"""A frame that is sent this long before the diagram begins may arrive in it."""
MOST_FRAMES, MOST_TIMERS = 40, 12
"""Frames on their way and timers that are shown."""
NS_S: Final = 1e-9
"""The precision of the times of frames."""
T = TypeVar("T")


class Fork(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /api/fork: a change of this branch."""

    branch: int
    change: Change


class Line(Struct, frozen=True):
    """One line of the diagram: a frame that arrived or was lost, or something that a node logged.

    sent_s: when the frame was sent. event: of a row. node: that logged. later: it comes after the present event.
    """

    t_s: float
    text: str
    later: bool
    event: int = 0
    node: NodeId = 0
    source: NodeId = 0
    to: NodeId = 0
    kind: str = ""
    sent_s: float = 0.0
    lost: bool = False


class At(Struct, frozen=True):
    """What the page shows at an event.

    row: number of the last row at this event or before it; -1: there is none. news: that row's lines; () between rows.
    changes: of that row; {} between rows. waiting: number of frames and timers, also of those that are not listed.
    """

    branch: int
    event: int
    t_s: float
    row: int
    what: str
    news: tuple[str, ...]
    changes: dict[NodeId, dict[str, tuple[Value, Value]]]
    nodes: dict[NodeId, View]
    frames: list[Any]
    timers: list[Any]
    waiting: tuple[int, int]
    lines: list[Line]


class Page(Site):
    """The page of one run and its branches."""

    def __init__(self, scenario: Scenario, seed: int, mutant: str, branch: Branch, token: str = "") -> None:
        super().__init__((), token, STATIC, FILES, acts=True)
        self._scenario, self._seed, self._mutant = scenario, seed, mutant
        self.branches = [branch]
        self._turn = asyncio.Lock()
        """Held while a branch is asked: its line carries one order at a time."""
        self._questions: list[Question] | None = None

    def application(self) -> web.Application:
        application = super().application()
        application.router.add_get("/", self._page)
        application.router.add_get("/api/run", self._run)
        application.router.add_get("/api/at", self._at)
        application.router.add_get("/api/find", self._find)
        application.router.add_get("/api/scenario", self._save)
        application.router.add_post("/api/fork", self._fork)
        return application

    def close(self) -> None:
        """End the processes of all branches."""
        for branch in self.branches:
            branch.close()

    async def _ask(self, question: Callable[[], T]) -> T:
        async with self._turn:
            return await asyncio.get_running_loop().run_in_executor(None, question)

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return file_answer(STATIC / "debug.html", "text/html")

    # ---- the run ---------------------------------------------------------------------------------------

    async def _run(self, request: web.Request) -> web.StreamResponse:
        if self._questions is None:
            self._questions = await self._ask(self._all_questions)
        mutant = MUTANTS.get(self._mutant)
        about = None
        if mutant is not None:
            text = rule_text(DOCS / "protocol.md", mutant.rule)
            about = {"name": mutant.name, "rule": mutant.rule, "says": mutant.says, "text": text}
        return json_answer(
            {
                "name": self._scenario.name,
                "description": self._scenario.description,
                "seed": self._seed,
                "mutant": about,
                "scenario": plan.encode_brief(self._scenario),
                "branches": self._tree(),
                "questions": self._questions,
            }
        )

    def _all_questions(self) -> list[Question]:
        branch = self.branches[0]
        first = max(0, branch.recorded.rows - ROWS_ASKED)
        nodes = range(1, self._scenario.cluster.nodes + 1)
        sentences = rules(DOCS / "protocol.md")
        return questions(branch.rows_from(first), first, nodes, failure_of(branch.recorded), sentences)

    def _tree(self) -> list[dict[str, Any]]:
        found = []
        for number, branch in enumerate(self.branches):
            entry: dict[str, Any] = {"number": number, "events": branch.recorded.events, "rows": branch.recorded.rows}
            entry |= {"failure": failure_of(branch.recorded), "parent": None}
            if branch.parent is not None and branch.change is not None:
                entry |= {"parent": self.branches.index(branch.parent), "event": branch.change.event}
                entry |= {"did": change_text(branch.change), "is_step": bool(branch.change.step)}
            found.append(entry)
        return found

    # ---- one event -------------------------------------------------------------------------------------

    async def _at(self, request: web.Request) -> web.StreamResponse:
        branch = self._branch(request)
        last = branch.recorded
        if "row" in request.query:
            row = number_of(request, "row", last.rows - 1)
            event = (await self._ask(lambda: branch.rows(row, row)))[0].event
        else:
            event = number_of(request, "event", last.events)
        return json_answer(await self._ask(lambda: look(self.branches.index(branch), branch, event)))

    def _branch(self, request: web.Request) -> Branch:
        return self.branches[number_of(request, "branch", len(self.branches) - 1)]

    async def _find(self, request: web.Request) -> web.StreamResponse:
        """Return {"row": number}; the end or the beginning if no row contains the text."""
        branch, text = self._branch(request), request.query.get("text", "")
        row, rows = number_of(request, "row", branch.recorded.rows) - 1, branch.recorded.rows
        numbers = range(row - 1, -1, -1) if "back" in request.query else range(row + 1, rows)
        found = await self._ask(lambda: find(branch, numbers, [text]))
        return json_answer({"row": min(max(found, 0), rows - 1), "found": found in numbers})

    # ---- branches --------------------------------------------------------------------------------------

    async def _fork(self, request: web.Request) -> web.StreamResponse:
        try:
            fork = msgspec.json.decode(await request.read(), type=Fork)
            if not 0 <= fork.branch < len(self.branches):
                raise ValueError(f"branch: found {fork.branch}, allowed 0..{len(self.branches) - 1}")
            if len(self.branches) >= MOST_BRANCHES:
                raise ValueError(f"there are {MOST_BRANCHES} branches already, and no more are allowed")
            branch = await self._ask(lambda: self.branches[fork.branch].branch(fork.change))
        except (ValueError, msgspec.MsgspecError) as error:
            raise web.HTTPUnprocessableEntity(text=f"{error}\n") from None
        self.branches.append(branch)
        return json_answer({"branch": len(self.branches) - 1, "branches": self._tree()})

    async def _save(self, request: web.Request) -> web.StreamResponse:
        branch = self._branch(request)
        name = f"{self._scenario.name}_{self.branches.index(branch)}"
        try:
            saved = await self._ask(lambda: as_scenario(self._scenario, branch.changes(), name))
        except (ValueError, ConfigError) as error:
            raise web.HTTPUnprocessableEntity(text=f"{error}\n") from None
        where = {"Content-Disposition": f'attachment; filename="{name}.yml"'}
        return web.Response(text=plan.encode_brief(saved), headers=where)


def number_of(request: web.Request, name: str, most: int) -> int:
    """Return the number in a parameter of the address.

    Raises:
        HTTPBadRequest: it is none from 0 to `most`.
    """
    given = request.query.get(name, "0")
    if not given.isdecimal() or int(given) > max(most, 0):
        raise web.HTTPBadRequest(text=f"{name}: found {given[:40]!r}, allowed 0..{most}\n")
    return int(given)


# ---- what is shown at an event ----------------------------------------------------------------------------


def look(number: int, branch: Branch, event: int) -> At:
    """Return what the page shows after an event of a branch; `number`: of the branch."""
    state, at = branch.go(event), branch.row_at(event)
    first = max(0, at - ROWS_BEFORE)
    around = branch.rows(first, at + ROWS_AFTER)
    row = around[at - first] if at >= 0 else None
    here = row if row is not None and row.event == event else None
    frames, timers = ([each for each in state.due if each.frame is wanted] for wanted in (True, False))
    flights = branch.sent(around[0].t_s - FLIGHT_S, around[-1].t_s) if around else []
    on_their_way = {each.what for each in frames}
    flights = [each for each in flights if each.arrived_s or frame_line(each) not in on_their_way]
    return At(
        branch=number,
        event=event,
        t_s=state.t_s,
        row=at,
        what=line_of(here).split("s  ", 1)[1] if here is not None else "between two rows" if event else "the beginning",
        news=tuple(details_of(here)) if here is not None else (),
        changes=here.changes if here is not None else {},
        nodes=state.nodes,
        frames=frames[:MOST_FRAMES],
        timers=timers[:MOST_TIMERS],
        waiting=(len(frames), len(timers)),
        lines=diagram(around, flights, event, state.t_s),
    )


def frame_line(flight: Flight) -> str:
    """Return a frame as lab.debug.views.what() describes its arrival."""
    return f"{flight.source} -> {flight.to}: {flight.kind} {flight.text}".rstrip()


def diagram(rows: list[Row], flights: list[Flight], event: int, now_s: float) -> list[Line]:
    """Return the lines around an event, the earliest first, one for each thing that happened.

    Args:
        rows: consecutive rows. flights: the frames sent between them, and some that were sent before.
    """
    if not rows:
        return []
    since, until = rows[0].t_s, rows[-1].t_s
    found = [
        Line(row.t_s, said.partition(": ")[2], row.event > event, row.event, int(said.partition(":")[0].split()[1]))
        for row in rows
        for said in row.said
    ]
    for each in flights:
        for t_s in each.arrived_s or (each.sent_s,):
            if since <= t_s <= until:
                lost = not each.arrived_s
                frame = (each.source, each.to, each.kind, each.sent_s, lost)
                found.append(Line(t_s, each.text, t_s > now_s + NS_S, 0, 0, *frame))
    found.sort(key=lambda line: (line.later, line.t_s))
    now = bisect_right(found, False, key=lambda line: line.later)
    return found[max(0, now - BEFORE) : now + AFTER]
