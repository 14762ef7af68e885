"""The web server: an index of all runs, a page for each, and a stream of what happens in it.

It shows the files of the results directory to requests with the token of a printed address. Those with the token of the
first address may also start a session by hand and order its steps; see lab.watch.web for the checks of every request.
An order is the words of one step, which the session checks like a step of a scenario file.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import quote

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from lab.plan.scenario import MAX_NODES
from lab.rundir import RunDir
from lab.show.index import index
from lab.watch.feed import Feed
from lab.watch.orders import ORDERS, chat
from lab.watch.session import Session, SessionOver
from lab.watch.web import STATIC, Site, file_answer, json_answer

T = TypeVar("T")
FILES: Final = {"app.js": "text/javascript", "hands.js": "text/javascript", "index.js": "text/javascript"}
MOST_STREAMS: Final = 32
MOST_RUNS: Final = 1000
"""The index shows the newest ones."""


class Wanted(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a request to start a session."""

    nodes: Annotated[int, Meta(ge=1, le=MAX_NODES)] = 3
    rate: Annotated[int, Meta(ge=1, le=100_000)] = 100


class Ordered(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a request to do a step. say: a message to send instead."""

    step: str = ""
    say: str = ""


class Nothing(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a request without content: {}."""


class Server(Site):
    """The application.

    Args:
        results: the results directory.
        hosts: host:port under which the server is reached.
        token: for the address; "" draws one.
        look_token: as `token`, for an address that only shows runs.
        beginning: file or name of the scenario with which sessions by hand begin, started with `token`; "": there are
            no sessions.
    """

    def __init__(
        self,
        results: Path,
        hosts: Collection[str] = (),
        token: str = "",
        look_token: str = "",
        *,
        beginning: str = "",
    ) -> None:
        super().__init__(hosts, token, STATIC, FILES, acts=bool(beginning), look_token=look_token)
        self.results, self._beginning = results, beginning
        self.session: Session | None = None
        """The latest one."""
        self._starting = asyncio.Lock()
        self._streams: set[asyncio.Task[Any]] = set()
        self._feeds: dict[Path, Feed] = {}

    def application(self) -> web.Application:
        application = super().application()
        application.on_shutdown.append(self._end_streams)
        application.on_cleanup.append(self._end_session)
        application.router.add_get("/", self._index)
        application.router.add_get("/api/runs", self._runs)
        application.router.add_get("/latest", self._latest)
        application.router.add_get("/run/{scenario}/{stamp}", self._page)
        application.router.add_get("/events/{scenario}/{stamp}", self._events)
        application.router.add_get("/by_hand/{scenario}/{stamp}", self._kept)
        application.router.add_get("/api/who", self._who)
        application.router.add_post("/api/session", self._begin)
        application.router.add_post("/api/step", self._order)
        application.router.add_post("/api/end", self._end)
        return application

    # ---- pages -----------------------------------------------------------------------------------------

    async def _index(self, request: web.Request) -> web.StreamResponse:
        return file_answer(STATIC / "index.html", "text/html")

    async def _latest(self, request: web.Request) -> web.StreamResponse:
        """Go to the page of the run that began last."""
        run = (self.results / "latest").resolve()
        known = (run / "live.jsonl").is_file() and run.parent.parent == self.results.resolve()
        where = self._place(run) if known else "/"
        query = f"?{request.query_string}" if request.query_string else ""
        return web.Response(status=303, headers={"Location": where + query})

    async def _page(self, request: web.Request) -> web.StreamResponse:
        self._directory(request)
        return file_answer(STATIC / "run.html", "text/html")

    async def _runs(self, request: web.Request) -> web.StreamResponse:
        found = await asyncio.get_running_loop().run_in_executor(None, index, self.results)
        return json_answer(found[:MOST_RUNS])

    async def _kept(self, request: web.Request) -> web.StreamResponse:
        """Send the scenario that a session by hand has left, as a file to keep."""
        kept = RunDir(self._directory(request)).by_hand
        if not kept.is_file():
            raise web.HTTPNotFound(text="nothing was done by hand in this run\n")
        answer = file_answer(kept, "text/plain")
        answer.headers["Content-Disposition"] = f'attachment; filename="{kept.name}"'
        return answer

    # ---- a session by hand -------------------------------------------------------------------------------

    def _place(self, run: Path) -> str:
        return f"/run/{quote(run.parent.name)}/{quote(run.name)}"

    async def _who(self, request: web.Request) -> web.StreamResponse:
        """Say whether the asker may order steps, those with buttons, and the page of the session under way, or ""."""
        under_way = self.session is not None and not self.session.is_over
        place = self._place(self.session.directory) if under_way and self.session is not None else ""
        acts = self.may_act(request)
        return json_answer({"acts": acts, "session": place, "orders": ORDERS if acts else None})

    async def _begin(self, request: web.Request) -> web.StreamResponse:
        wanted = await _body(request, Wanted)
        async with self._starting:
            if self.session is not None and not self.session.is_over:
                problem = "a session is under way; allowed: one at a time"
                return web.json_response({"problem": problem, "run": self._place(self.session.directory)}, status=409)
            try:
                options = ("--nodes", str(wanted.nodes), "--rate", str(wanted.rate))
                self.session = await Session.begin(self.results, self._beginning, *options)
            except SessionOver as over:
                return web.json_response({"problem": str(over)}, status=500)
        return web.json_response({"run": self._place(self.session.directory)})

    async def _order(self, request: web.Request) -> web.StreamResponse:
        ordered = await _body(request, Ordered)
        session = self._session()
        try:
            answer = await session.order(chat(ordered.say) if ordered.say else ordered.step)
        except SessionOver as over:
            return web.json_response({"problem": str(over)}, status=409)
        if feed := self._feeds.get(session.directory):
            feed.hurry()
        return json_answer(answer, 422 if answer.problem else 200)

    async def _end(self, request: web.Request) -> web.StreamResponse:
        await _body(request, Nothing)
        await self._session().end()
        return web.json_response({})

    def _session(self) -> Session:
        """Return the session under way. Raises: HTTPConflict."""
        if self.session is None or self.session.is_over:
            problem = msgspec.json.encode({"problem": "no session is under way"}).decode()
            raise web.HTTPConflict(text=problem, content_type="application/json")
        return self.session

    async def _end_session(self, application: web.Application) -> None:
        if self.session is not None and not self.session.is_over:
            await self.session.close()

    def _directory(self, request: web.Request) -> Path:
        """Return the run directory that a request is about.

        Raises:
            HTTPNotFound: there is none below the results directory.
        """
        scenario, stamp = request.match_info["scenario"], request.match_info["stamp"]
        path = self.results / scenario / stamp
        if {scenario, stamp} & {".", ".."} or "/" in scenario + stamp or not (path / "live.jsonl").is_file():
            raise web.HTTPNotFound(text=f"{scenario}/{stamp}: no such run, or one without live.jsonl\n")
        return path

    # ---- the stream ------------------------------------------------------------------------------------

    async def _events(self, request: web.Request) -> web.StreamResponse:
        path = self._directory(request)
        if len(self._streams) >= MOST_STREAMS:
            raise web.HTTPServiceUnavailable(text=f"{MOST_STREAMS} pages are open already\n")
        try:
            speed = min(100.0, max(0.0, float(request.query.get("speed", "0"))))
        except ValueError:
            raise web.HTTPBadRequest(text="speed: found no number, allowed 0..100\n") from None
        sent = request.headers.get("Last-Event-ID", "")
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            async with self._feed(path, speed) as feed:
                with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                    async for event in feed.events(int(sent) if sent.isdecimal() else 0):
                        await answer.write(event)
        finally:
            self._streams.discard(task)
        return answer

    @contextlib.asynccontextmanager
    async def _feed(self, path: Path, speed: float) -> AsyncIterator[Feed]:
        """Yield the feed that all viewers of a run share; each replay has one of its own."""
        feed = Feed(path, speed) if speed or path not in self._feeds else self._feeds[path]
        if not speed:
            self._feeds[path] = feed
        feed.viewers += 1
        try:
            yield feed
        finally:
            feed.viewers -= 1
            if not feed.viewers:
                if not speed:
                    del self._feeds[path]
                await feed.close()

    async def _end_streams(self, application: web.Application) -> None:
        for task in self._streams:
            task.cancel()


async def _body(request: web.Request, kind: type[T]) -> T:
    """Return the body of a request. Raises: HTTPUnprocessableEntity."""
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        problem = msgspec.json.encode({"problem": str(error)}).decode()
        raise web.HTTPUnprocessableEntity(text=problem, content_type="application/json") from None
