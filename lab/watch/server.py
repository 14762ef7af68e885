"""The web server: an index of all runs, a page for each, and a stream of what happens in it.

It shows the files of the results directory to whoever has the token of the printed address, and changes nothing. Every
request is checked, those for static files included:

- The Host header must name this server, so that a foreign page whose name was made to point here is refused (DNS
  rebinding).
- A request that another site caused is refused, also one from another port of this machine.
- The token, in the address or in the cookie that replaces it, must be right.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec
from aiohttp import web

from lab.show.index import index
from lab.watch.watcher import Watcher

STATIC: Final = Path(__file__).parent / "static"
FILES: Final = {
    "app.js": "text/javascript",
    "index.js": "text/javascript",
    "app.css": "text/css",
    "preact.mjs": "text/javascript",
    "htm.mjs": "text/javascript",
}
LOOK_EVERY_S: Final = 0.1
PING_EVERY_S: Final = 15.0
MOST_STREAMS: Final = 32
MOST_RUNS: Final = 1000
"""The index shows the newest ones."""
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """The application.

    Args:
        results: the results directory.
        hosts: host:port under which the server is reached.
        token: for the address; "" draws one.
    """

    def __init__(self, results: Path, hosts: Collection[str] = (), token: str = "") -> None:
        self.results = results
        self.hosts = set(hosts)
        self.token = token or secrets.token_urlsafe(32)
        self._streams: set[asyncio.Task[Any]] = set()

    def application(self) -> web.Application:
        application = web.Application(middlewares=[self._guard], client_max_size=64 << 10)
        application.on_response_prepare.append(_add_headers)
        application.on_shutdown.append(self._end_streams)
        application.router.add_get("/", self._index)
        application.router.add_get("/api/runs", self._runs)
        application.router.add_get("/latest", self._latest)
        application.router.add_get("/run/{scenario}/{stamp}", self._page)
        application.router.add_get("/events/{scenario}/{stamp}", self._events)
        application.router.add_get("/static/{name}", self._static)
        return application

    def address(self, host: str, port: int, page: str = "") -> str:
        """Return the address to open in a browser."""
        return f"http://{host}:{port}/{page}?token={self.token}"

    # ---- who may ask -----------------------------------------------------------------------------------

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get("Host", "")
        if host not in self.hosts:
            return _refusal(421, f"found Host {host!r}, allowed {', '.join(sorted(self.hosts))}")
        if request.method not in ("GET", "HEAD"):
            return _refusal(405, "this server only shows runs")
        asked = [request.headers.get(f"Sec-Fetch-{name}", "") for name in ("Site", "Mode", "Dest")]
        if asked[0] not in ("", "none", "same-origin") and asked[1:] != ["navigate", "document"]:
            return _refusal(403, "another site asked for this")
        cookie = f"chatlab-{host.rpartition(':')[2]}"
        given = request.query.get("token", "")
        if not hmac.compare_digest((given or request.cookies.get(cookie, "")).encode(), self.token.encode()):
            return _refusal(401, "open the address that the lab has printed")
        if given:
            answer = web.Response(status=303, headers={"Location": str(request.rel_url.without_query_params("token"))})
            answer.set_cookie(cookie, given, httponly=True, samesite="Strict", path="/")
            return answer
        return await handler(request)

    # ---- pages -----------------------------------------------------------------------------------------

    async def _index(self, request: web.Request) -> web.StreamResponse:
        return _file(STATIC / "index.html", "text/html")

    async def _latest(self, request: web.Request) -> web.StreamResponse:
        """Go to the page of the run that began last."""
        run = (self.results / "latest").resolve()
        known = (run / "live.jsonl").is_file() and run.parent.parent == self.results.resolve()
        where = f"/run/{quote(run.parent.name)}/{quote(run.name)}" if known else "/"
        query = f"?{request.query_string}" if request.query_string else ""
        return web.Response(status=303, headers={"Location": where + query})

    async def _page(self, request: web.Request) -> web.StreamResponse:
        self._directory(request)
        return _file(STATIC / "run.html", "text/html")

    async def _static(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in FILES:
            raise web.HTTPNotFound
        path = STATIC / name
        return _file(path if path.is_file() else STATIC / "vendor" / name, FILES[name])

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


def _file(path: Path, kind: str) -> web.Response:
    return web.Response(body=path.read_bytes(), content_type=kind, charset="utf-8")


def _refusal(status: int, why: str) -> web.Response:
    return web.Response(status=status, text=f"{why}\n")


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
