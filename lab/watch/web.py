"""The base of the lab's web servers: who may ask, the headers of every answer, static files, and start and end.

A server answers only requests with the token of the address that it prints. Every request is checked, also one for a
static file:

- The Host header must name this server, so that a foreign page whose name was made to point here is refused (DNS
  rebinding).
- A request that another site caused is refused, also one from another port of this machine.
- The token, in the address or in the cookie that replaces it, must be right. A second token only shows.
- A request that changes anything is a POST of JSON, and names this server as its origin; a program without an origin
  sends the header X-Lab instead, which no page of another site can send.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

HOST: Final = "127.0.0.1"
STATIC: Final = Path(__file__).parent / "static"
SHARED_FILES: Final = {
    "app.css": "text/css",
    "preact.mjs": "text/javascript",
    "htm.mjs": "text/javascript",
}
MOST_BYTES: Final = 64 << 10
"""Of the body of a request."""
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


class Site:
    """A web server of the lab.

    Args:
        hosts: host:port under which the server is reached.
        token: for the address; "" draws one.
        look_token: for an address that only shows; "" draws one.
        acts: a request with the token may also change something, by POST.
        static: directory of the site's own files, beside those that all sites share.
        files: name of each of them -> its type.
    """

    def __init__(
        self,
        hosts: Collection[str],
        token: str,
        static: Path,
        files: dict[str, str],
        *,
        acts: bool = False,
        look_token: str = "",
    ) -> None:
        self.hosts = set(hosts)
        self.token, self.look_token = (given or secrets.token_urlsafe(32) for given in (token, look_token))
        self.acts = acts
        self._static, self._files = static, files

    def application(self) -> web.Application:
        application = web.Application(middlewares=[self._guard], client_max_size=MOST_BYTES)
        application.on_response_prepare.append(_add_headers)
        application.router.add_get("/static/{name}", self._file)
        return application

    def address(self, host: str, port: int, page: str = "", *, looks: bool = False) -> str:
        """Return the address to open in a browser. looks: it only shows."""
        return f"http://{host}:{port}/{page}?token={self.look_token if looks else self.token}"

    def may_act(self, request: web.Request) -> bool:
        """Return whether the asker, who has a token, may change something."""
        return self.acts and _same(_cookie(request), self.token)

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get("Host", "")
        if host not in self.hosts:
            return refusal(421, f"found Host {host!r}, allowed {', '.join(sorted(self.hosts))}")
        looks = request.method in ("GET", "HEAD")
        if not looks and not (self.acts and request.method == "POST"):
            return refusal(405, "this server only shows runs")
        site, mode, destination = (request.headers.get(f"Sec-Fetch-{name}", "") for name in ("Site", "Mode", "Dest"))
        opens = looks and (mode, destination) == ("navigate", "document")
        if site not in ("", "none", "same-origin") and not opens:
            return refusal(403, "another site asked for this")
        given = request.query.get("token", "") if looks else ""
        if not any(_same(given or _cookie(request), token) for token in (self.token, self.look_token)):
            return refusal(401, "open the address that the lab has printed")
        if given:
            answer = web.Response(status=303, headers={"Location": str(request.rel_url.without_query_params("token"))})
            answer.set_cookie(_cookie_name(request), given, httponly=True, samesite="Strict", path="/")
            return answer
        if not looks and not self.may_act(request):
            return refusal(403, "this address only shows runs")
        if not looks and (why := _why_not(request, site, host)):
            return refusal(403, why)
        return await handler(request)

    async def _file(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name in self._files:
            return file_answer(self._static / name, self._files[name])
        if name not in SHARED_FILES:
            raise web.HTTPNotFound
        path = STATIC / name
        return file_answer(path if path.is_file() else STATIC / "vendor" / name, SHARED_FILES[name])


def _cookie_name(request: web.Request) -> str:
    """Cookies do not depend on the port, so it is part of their name."""
    return f"chatlab-{request.headers['Host'].rpartition(':')[2]}"


def _cookie(request: web.Request) -> str:
    return request.cookies.get(_cookie_name(request), "")


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


def _why_not(request: web.Request, site: str, host: str) -> str:
    """Return why a request may change nothing; "" if it may."""
    origin, own = request.headers.get("Origin", ""), f"http://{host}"
    is_own_page = site == "same-origin" or (not site and origin == own)
    is_program = not site and not origin and "X-Lab" in request.headers
    if origin not in ("", own) or not (is_own_page or is_program):
        return "a request that changes something comes from this server's own page, or has the header X-Lab"
    if request.content_type != "application/json":
        return f"found Content-Type {request.content_type!r}, allowed application/json"
    return ""


def file_answer(path: Path, kind: str) -> web.Response:
    return web.Response(body=path.read_bytes(), content_type=kind, charset="utf-8")


def json_answer(content: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(content), content_type="application/json", status=status)


def refusal(status: int, why: str) -> web.Response:
    return web.Response(status=status, text=f"{why}\n")


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


async def serve(
    site: Site, port: int, page: str, note: str, *, open_page: bool, attached: bool = False, audience: bool = False
) -> None:
    """Serve until the user interrupts.

    Args:
        page: that the printed address opens.
        note: printed after the address.
        attached: end when standard input is closed.
        audience: print the address that only shows, too.

    Raises:
        OSError: the port cannot be had.
    """
    runner = web.AppRunner(site.application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, stop.set)
    if attached:
        loop.add_reader(sys.stdin.fileno(), stop.set)
    try:
        await web.TCPSite(runner, HOST, port).start()
        bound = int(runner.addresses[0][1])
        site.hosts |= {f"{name}:{bound}" for name in (HOST, "localhost", "[::1]")}
        address = site.address(HOST, bound, page)
        looks = f"for an audience, without buttons: {site.address(HOST, bound, page, looks=True)}" if audience else ""
        print("\n".join(filter(None, [address, looks, note])), flush=True)
        if open_page:
            import webbrowser

            webbrowser.open(address)
        await stop.wait()
    finally:
        await runner.cleanup()
