"""One browser for all tests of a process, and servers that they can end and start again."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import shutil
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.lab.harness import PATIENT

T = TypeVar("T")
AXE = Path(__file__).parent / "vendor" / "axe.min.js"
PATIENCE_S = 60.0
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1000",
    "--host-resolver-rules=MAP evil.test 127.0.0.1",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("browser")


def _programs() -> tuple[str, str]:
    """Return the paths of Chromium and its driver; skip the test if one of them, or a package, is missing."""
    for package in ("aiohttp", "selenium"):
        pytest.importorskip(package, reason=f"{package} is not installed (requirements-dev.txt)")
    found = []
    for name, package in (("chromium", "chromium"), ("chromedriver", "chromium-driver")):
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"{name} is not installed: apt-get install {package}")
        found.append(path)
    return found[0], found[1]


@pytest.fixture(scope="session")
def _browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium, driver = _programs()
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options=options, service=Service(driver))
    yield browser
    browser.quit()


@pytest.fixture
def browser(_browser: Any) -> Iterator[Any]:
    """A browser with one empty tab, no cookies and an empty console."""
    yield _browser
    first, *others = _browser.window_handles
    for other in others:
        _browser.switch_to.window(other)
        _browser.close()
    _browser.switch_to.window(first)
    _browser.get("about:blank")
    _browser.execute_cdp_cmd("Network.clearBrowserCookies", {})
    _browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    _browser.get_log("browser")


class Page:
    """The page in the browser, found by what a user perceives. Nothing sleeps: each question waits for its answer."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def until(self, condition: Callable[[Any], T], what: str = "") -> T:
        """Return the first true value of the condition."""
        from selenium.common.exceptions import WebDriverException
        from selenium.webdriver.support.wait import WebDriverWait

        waits = WebDriverWait(self.browser, PATIENCE_S, poll_frequency=0.02, ignored_exceptions=[WebDriverException])
        result: T = waits.until(condition, f"{what}: {self.browser.current_url}: {self.text('body')[:300]}")
        return result

    def open(self, address: str) -> Page:
        """Open an address; return when the page has drawn itself."""
        self.browser.get(address)
        self.until(lambda browser: browser.execute_script("return document.body.dataset.ready"), "ready")
        return self

    def text(self, selector: str) -> str:
        return str(
            self.browser.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)
        )

    def all(self, selector: str) -> list[Any]:
        found: list[Any] = self.browser.find_elements("css selector", selector)
        return found

    def has(self, selector: str) -> Any:
        """Wait for an element."""
        return self.until(lambda browser: browser.find_element("css selector", selector), selector)

    def lacks(self, selector: str) -> None:
        """Wait until there is no such element."""
        self.until(lambda browser: not browser.find_elements("css selector", selector), f"no {selector}")

    def node(self, node: int, state: str) -> Any:
        """Wait until a node is shown in this state."""
        return self.has(f'[aria-label^="node {node}: {state}"]')

    def says(self, text: str, selector: str = "body") -> None:
        """Wait until this text is shown."""
        self.until(lambda _: text in self.text(selector), text)

    def press(self, keys: str) -> None:
        """Press keys on the page itself."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.browser).send_keys(keys).perform()

    def click(self, name: str) -> None:
        """Click a button by its first words."""
        buttons = f'//button[starts-with(normalize-space(.), "{name}") and not(@disabled)]'
        self.until(lambda browser: browser.find_element("xpath", buttons), name).click()

    def type(self, selector: str, text: str) -> None:
        self.has(selector).send_keys(text)

    def errors(self) -> list[str]:
        """Return what the console has shown since the last call."""
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def violations(self, scheme: str) -> list[str]:
        """Return what axe-core finds wrong in a colour scheme, light or dark."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        self.browser.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE.read_text("utf-8")})
        script = """axe.run({runOnly: ["wcag2a", "wcag2aa"]}).then((found) => arguments[0](found.violations.map(
            (each) => `${each.id}: ${each.nodes.map((node) => node.html).join(" ")}`)))"""
        found: list[str] = self.browser.execute_async_script(script)
        return [each[:400] for each in found]

    def file_behind(self, link: str) -> str:
        """Return the text of the file behind a link with these words."""
        href = self.until(lambda browser: browser.find_element("link text", link)).get_attribute("href")
        fetched = "fetch(arguments[0]).then((answer) => answer.text()).then(arguments[1])"
        return str(self.browser.execute_async_script(fetched, href))


@pytest.fixture
def page(browser: Any) -> Page:
    return Page(browser)


class Loop:
    """An event loop in a thread, for servers."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def start(site: Any, port: int = 0) -> tuple[Any, int]:
    """Serve a site of the lab; return what ends it, and its port. port: 0 for a free one."""
    from aiohttp import web

    runner: Any = web.AppRunner(site.application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
    port = int(runner.addresses[0][1])
    site.hosts |= {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
    return runner, port


@contextlib.contextmanager
def opened(page: Page, loop: Loop, site: Any) -> Iterator[None]:
    """Serve a site of the lab, and open its page."""
    runner, port = loop.run(start(site))
    try:
        page.open(f"http://127.0.0.1:{port}/?token={site.token}")
        yield
    finally:
        loop.run(runner.cleanup())


class Served:
    """The lab's web server on a port of its own, with the tokens `control` and `looks`."""

    def __init__(self, loop: Loop, results: Path, beginning: str) -> None:
        self._loop, self._results, self._beginning = loop, results, beginning
        self.port = 0
        self._runner: Any = None
        self.start()

    def start(self) -> None:
        """Start again on the same port, or for the first time on a free one."""
        self._loop.run(self._start())

    async def _start(self) -> None:
        from lab.watch.server import Server

        server = Server(self._results, token="control", look_token="looks", beginning=self._beginning)
        self._runner, self.port = await start(server, self.port)

    def stop(self) -> None:
        """End the server and its session."""
        if self._runner is not None:
            self._loop.run(self._runner.cleanup())
            self._runner = None

    def address(self, page: str = "", token: str = "control") -> str:
        mark = "&" if "?" in page else "?"
        return f"http://127.0.0.1:{self.port}/{page}{mark}token={token}"


@pytest.fixture
def loop(browser: Any) -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def served(loop: Loop, finished: Path, tmp_path: Path) -> Iterator[Served]:
    """A server of a results directory with one finished run."""
    (tmp_path / "patient.yml").write_text(PATIENT)
    shutil.copytree(finished, tmp_path / "results", symlinks=True)
    server = Served(loop, tmp_path / "results", str(tmp_path / "patient.yml"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, _browser: Any) -> Path:
    """A results directory with a simulated failover, whose report was written."""
    from lab import cli

    out = tmp_path_factory.mktemp("results")
    assert cli.main(["leader_failure", "--sim", "--seed", "7", "--out", str(out)]) == 0
    return out


class Foreign:
    """A web site that somebody else has on this machine; it answers every request with one page."""

    def __init__(self) -> None:
        foreign = self
        self.content = b""

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(foreign.content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def foreign() -> Iterator[Foreign]:
    site = Foreign()
    yield site
    site.close()
