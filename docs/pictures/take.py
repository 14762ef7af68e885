"""`make pictures`: take the pictures in the docs anew, from real runs. Needs Chromium and the extra `ui`; two minutes.

The runs of the pictures are live ones of shown.yml and simulated ones; the pages are those that a user sees.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

from browser import PATIENCE_S, Browser, found, open_browser  # noqa: E402
from textual.app import App  # noqa: E402

LAB = [sys.executable, str(ROOT / "run_lab.py")]
MUTANT = "two_votes_in_one_term"
STORY = ROOT / "lab" / "selftest" / "stories" / f"{MUTANT}.yml"
SIMULATED = (
    ("leader_failure", "7"),
    ("rolling_restart", "3"),
    ("isolated_leader_acknowledges_nothing", "5"),
    ("nemesis_mixed", "11"),
    ("leader_failure", "8"),
)
WIDE, HIGH = 1440, 1000
SETTLE_S = 0.6
"""After a page is ready, the browser draws it within this time."""
LOAD_S = 3.0
"""Of a session by hand, between two of its orders."""


def main() -> int:
    """Take all pictures; return 0, or 70 if something is missing."""
    if found() is None:
        print("make pictures needs chromium, which is not in PATH", file=sys.stderr)
        return 70
    with tempfile.TemporaryDirectory() as directory:
        results = Path(directory)
        live = run(results, str(HERE / "shown.yml"), "--seed", "1")
        for scenario, seed in SIMULATED:
            run(results, scenario, "--sim", "--seed", seed)
        failed = run(results, str(STORY), "--sim", "--frames", "--seed", "1", "--mutant", MUTANT)
        asyncio.run(take_all(results, live, failed))
    for path in sorted(HERE.glob("*.webp")):
        print(f"{path.stat().st_size:8,} {path.name}")
    return 0


def run(results: Path, *arguments: str) -> Path:
    """Run a scenario; return its run directory."""
    command = [*LAB, *arguments, "--out", str(results)]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return (results / "latest").resolve()


@contextlib.contextmanager
def served(*arguments: str) -> Iterator[str]:
    """Start a command that serves pages; yield its address. It ends with the block."""
    with subprocess.Popen([*LAB, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


async def take_all(results: Path, live: Path, failed: Path) -> None:
    async with open_browser() as browser:
        await browser.do("Runtime.enable")
        with served("serve", "--out", str(results)) as address:
            await browser.go(address)
            await picture(browser, "index", wide=1440, high=460)
            await of_a_run(browser, f"{address.partition('?')[0]}run/{live.parent.name}/{live.name}")
        await compare(browser, results)
        await report(browser, "report-pass", live)
        await report(browser, "report-fail", failed)
        with served("debug", "--mutant", MUTANT, "--web") as address:
            await debugger(browser, address)
        with served("explore", "--mutant", "acknowledge_before_durable", "--web") as address:
            await browser.go(address)
            await browser.run("document.querySelectorAll('nav button')[1].click()")
            await picture(browser, "explorer", high=640)
        await by_hand(browser, results)
        await terminal(browser, results)


async def picture(browser: Browser, name: str, *, wide: int = WIDE, high: int = HIGH, dark: bool = False) -> None:
    """Take a picture of the page that is open."""
    await browser.show(wide, high, dark=dark)
    await asyncio.sleep(SETTLE_S)
    await browser.take(HERE / f"{name}.webp")


async def of_a_run(browser: Browser, address: str) -> None:
    """Take pictures of a live run, which is replayed at its own pace, at the moments that its captions name."""
    await browser.show(WIDE, HIGH)
    await browser.go(f"{address}?speed=1")
    for name, caption, dark in (
        ("live", "Five nodes", False),
        ("live-killed", "was killed", False),
        ("live-dark", "is back", True),
        ("live-cut", "cut off", False),
    ):
        await browser.until(f"document.querySelector('.say')?.textContent.includes({caption!r})")
        await asyncio.sleep(1.0)
        await picture(browser, name, dark=dark)
    await browser.show(WIDE, HIGH)
    await browser.go(f"{address}?stage&speed=1")
    await browser.until("document.querySelector('.say')?.textContent.includes('was killed')")
    await asyncio.sleep(1.0)
    await picture(browser, "stage", high=780)


async def compare(browser: Browser, results: Path) -> None:
    runs = [max((results / name).glob("2*")) for name in ("leader_failure", "rolling_restart")]
    command = [*LAB, "compare", *(str(run.relative_to(results)) for run in runs), "--html", "compare.html"]
    subprocess.run(command, cwd=results, stdout=subprocess.DEVNULL, check=True)
    await browser.go((results / "compare.html").as_uri(), ready="true")
    await picture(browser, "compare", wide=1000, high=720)


async def report(browser: Browser, name: str, run: Path) -> None:
    await browser.show(1200, 1000)
    await browser.go((run / "report.html").as_uri(), ready="true")
    await picture(browser, name, wide=1200, high=1000)


async def debugger(browser: Browser, address: str) -> None:
    await browser.show(WIDE, HIGH)
    await browser.go(address)
    await picture(browser, "debugger", high=760)
    await browser.run("document.querySelector('.predict').click()")
    await browser.until("document.querySelector('.quiz')")
    await asyncio.sleep(SETTLE_S)
    await browser.run("document.querySelectorAll('.quiz button')[1].click()")
    await browser.until("document.querySelector('.quiz .right')")
    await picture(browser, "predict", high=760, dark=True)


async def by_hand(browser: Browser, results: Path) -> None:
    """Take a picture of a session by hand: node 2 is cut off, and a link of the leader is chosen."""
    with served("serve", "--out", str(results)) as address:
        await browser.show(WIDE, HIGH)
        await browser.go(address)
        await browser.run("document.querySelector('form button').click()")
        await browser.until("document.querySelector('[role=toolbar]') && document.querySelector('.node.leader')")
        await asyncio.sleep(LOAD_S)
        await press(browser, "2c")
        await browser.until("document.querySelector('.link.ruled')")
        await asyncio.sleep(LOAD_S)
        await press(browser, "l")
        await browser.until("document.querySelector('.link-menu')")
        await picture(browser, "hands")
        await browser.run(
            "fetch('/api/end', { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: '{}' })"
        )


async def press(browser: Browser, keys: str) -> None:
    for key in keys:
        await browser.run(f"dispatchEvent(new KeyboardEvent('keydown', {{ key: {key!r} }}))")


async def terminal(browser: Browser, results: Path) -> None:
    """Take a picture of the terminal with a session by hand: node 2 is cut off, and a link of the leader is chosen."""
    from lab.watch.session import Session
    from lab.watch.terminal import Terminal

    with tempfile.TemporaryFile() as errors:
        app = Terminal(lambda: None, begin=lambda: Session.begin(results, "by_hand", errors=errors))
        async with app.run_test(size=(132, 42)) as pilot:
            await shows(app, "leader")
            await asyncio.sleep(LOAD_S)
            await pilot.press("2", "c")
            await shows(app, "✂")
            await asyncio.sleep(LOAD_S)
            await pilot.press("l")
            await pilot.pause(SETTLE_S)
            drawing = app.export_screenshot(title="run_lab.py watch --hands")
            assert app.session is not None
            await app.session.close()
    drawing = re.sub(r"@font-face\s*{[^}]*}", "", drawing)  # Fonts of another host.
    with tempfile.NamedTemporaryFile("w", suffix=".svg", encoding="utf-8") as file:
        file.write(drawing)
        file.flush()
        await browser.show(1500, 1010)
        await browser.go(Path(file.name).as_uri(), ready="true")
        await picture(browser, "terminal", wide=1500, high=1010)


async def shows(app: App[None], text: str) -> None:
    """Wait until the terminal shows a text."""
    async with asyncio.timeout(PATIENCE_S):
        while text not in app.export_screenshot():
            await asyncio.sleep(SETTLE_S)


if __name__ == "__main__":
    sys.exit(main())
