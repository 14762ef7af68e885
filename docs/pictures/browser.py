"""A headless Chromium that opens pages and takes pictures of them, over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)
PATIENCE_S = 60.0


class Browser:
    """One page of a browser. Use open()."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0

    async def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the protocol; return its result.

        Raises:
            RuntimeError: the browser refuses it.
        """
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            answer = await self._socket.receive_json(timeout=PATIENCE_S)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    async def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression on the page."""
        answer = await self.do("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait until an expression on the page is true.

        Raises:
            TimeoutError: it never is.
        """
        async with asyncio.timeout(PATIENCE_S):
            while not await self.run(f"Boolean({script})"):
                await asyncio.sleep(0.05)

    async def go(self, address: str, ready: str = "document.body?.dataset?.ready") -> None:
        """Open a page and wait until it is ready."""
        await self.do("Page.navigate", url="about:blank")
        await self.until("location.href === 'about:blank'")
        await self.do("Page.navigate", url=address)
        await self.until(f"location.href !== 'about:blank' && document.readyState === 'complete' && ({ready})")

    async def show(self, width: int, height: int, *, dark: bool = False) -> None:
        """Set the size of the window and the colours that the user prefers."""
        await self.do(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.do("Emulation.setEmulatedMedia", features=[scheme])

    async def take(self, path: Path) -> None:
        """Write a picture of the window; the suffix of the file says its format, png or webp."""
        kind = path.suffix[1:]
        quality = {} if kind == "png" else {"quality": 76}
        answer = await self.do("Page.captureScreenshot", format=kind, **quality)
        path.write_bytes(base64.b64decode(answer["data"]))


def found() -> str | None:
    """Return the path of Chromium; None if there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


@contextlib.asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    """Start Chromium with an empty profile; it ends with the block."""
    program = found()
    assert program is not None, "no chromium"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        quiet = asyncio.subprocess.DEVNULL
        flags = (*FLAGS, f"--user-data-dir={profile}", "about:blank")
        process = await asyncio.create_subprocess_exec(program, *flags, stdout=quiet, stderr=quiet)
        try:
            port = await _port(Path(profile) / "DevToolsActivePort")
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                    pages = await answer.json()
                page = next(each for each in pages if each["type"] == "page")
                async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    browser = Browser(socket)
                    await browser.do("Page.enable")
                    yield browser
        finally:
            process.terminate()
            await process.wait()


async def _port(file: Path) -> int:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
                return int(file.read_text("utf-8").splitlines()[0])
            await asyncio.sleep(0.05)
