"""The web server: an index of all runs, a page for each, and a stream of what happens in it.

It shows the files of the results directory to whoever has the token of the printed address, and changes nothing; see
lab.watch.web for who may ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec
from aiohttp import web

from lab.show.index import index
from lab.watch.watcher import Watcher
from lab.watch.web import STATIC, Site, file_answer

FILES: Final = {"app.js": "text/javascript", "index.js": "text/javascript"}
LOOK_EVERY_S: Final = 0.1
PING_EVERY_S: Final = 15.0
MOST_STREAMS: Final = 32
MOST_RUNS: Final = 1000
"""The index shows the newest ones."""


class Server(Site):
    """The application.

    Args:
        results: the results directory.
        hosts: host:port under which the server is reached.
        token: for the address; "" draws one.
    """

    def __init__(self, results: Path, hosts: Collection[str] = (), token: str = "") -> None:
        super().__init__(hosts, token, STATIC, FILES)
        self.results = results
        self._streams: set[asyncio.Task[Any]] = set()

    def application(self) -> web.Application:
        application = super().application()
        application.on_shutdown.append(self._end_streams)
        application.router.add_get("/", self._index)
        application.router.add_get("/api/runs", self._runs)
        application.router.add_get("/latest", self._latest)
        application.router.add_get("/run/{scenario}/{stamp}", self._page)
        application.router.add_get("/events/{scenario}/{stamp}", self._events)
        return application

    # ---- pages -----------------------------------------------------------------------------------------

    async def _index(self, request: web.Request) -> web.StreamResponse:
        return file_answer(STATIC / "index.html", "text/html")

    async def _latest(self, request: web.Request) -> web.StreamResponse:
        """Go to the page of the run that began last."""
        run = (self.results / "latest").resolve()
        known = (run / "live.jsonl").is_file() and run.parent.parent == self.results.resolve()
        where = f"/run/{quote(run.parent.name)}/{quote(run.name)}" if known else "/"
        query = f"?{request.query_string}" if request.query_string else ""
        return web.Response(status=303, headers={"Location": where + query})

    async def _page(self, request: web.Request) -> web.StreamResponse:
        self._directory(request)
        return file_answer(STATIC / "run.html", "text/html")

    async def _runs(self, request: web.Request) -> web.StreamResponse:
        found = await asyncio.get_running_loop().run_in_executor(None, index, self.results)
        return web.Response(body=msgspec.json.encode(found[:MOST_RUNS]), content_type="application/json")

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
        watcher = Watcher(path, speed)
        try:
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                async for event in _stream(watcher, int(sent) if sent.isdecimal() else 0):
                    await answer.write(event)
        finally:
            watcher.close()
            self._streams.discard(task)
        return answer

    async def _end_streams(self, application: web.Application) -> None:
        for task in self._streams:
            task.cancel()


async def _stream(watcher: Watcher, sent: int) -> AsyncIterator[bytes]:
    """Yield server-sent events: `picture` when it has changed, `news` since the last ones, `over` at the end."""
    before, quiet, loop = "", 0.0, asyncio.get_running_loop()
    while True:
        await loop.run_in_executor(None, watcher.look)
        news = watcher.news_after(sent)
        if news:
            sent = max(each["id"] for each in news)
            yield f"id: {sent}\nevent: news\ndata: {json.dumps(news)}\n\n".encode()
        picture = json.dumps(await loop.run_in_executor(None, watcher.plain))
        if picture != before:
            before, quiet = picture, 0.0
            yield f"event: picture\ndata: {picture}\n\n".encode()
        if watcher.picture.ended and watcher.picture.outcome:
            yield b"event: over\ndata: {}\n\n"
            return
        await asyncio.sleep(LOOK_EVERY_S)
        quiet += LOOK_EVERY_S
        if quiet >= PING_EVERY_S:
            quiet = 0.0
            yield b": still here\n\n"
