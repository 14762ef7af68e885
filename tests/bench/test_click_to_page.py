"""From a click to what the page is sent: a pause, and a resume, of a node in a session by hand. No test asserts a time.

CLICKS=40 for the median and the 90th percentile of docs/watching.md; `pytest -s` shows them.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from pathlib import Path

from tests.lab.test_watch_hands import Page, Site, served

CLICKS = int(os.environ.get("CLICKS", "2"))


def test_a_click_reaches_the_page(tmp_path: Path) -> None:
    took_ms: list[float] = []

    async def click(site: Site, page: Page, step: str, state: str) -> None:
        await page.more(5)
        began = time.perf_counter()
        ordered = asyncio.create_task(site.post("/api/step", {"step": step}))
        await page.until(lambda: page.state(1) == state)
        took_ms.append(1000 * (time.perf_counter() - began))
        assert (await ordered)[0] == 200

    async def clicks(site: Site, page: Page) -> None:
        await page.until(lambda: bool(page.picture.get("figures", {}).get("acked")) and page.leader != 0)
        for _ in range(CLICKS):
            await click(site, page, "pause: 1", "paused")
            await click(site, page, "resume: 1", "up")
        assert await site.post("/api/end", {}) == (200, {})

    async def story(site: Site) -> None:
        status, begun = await site.post("/api/session", {})
        assert status == 200, begun
        page = Page(site, begun["run"])
        async with asyncio.TaskGroup() as group:
            group.create_task(page.read())
            await clicks(site, page)

    served(tmp_path, story)
    quantiles = statistics.quantiles(took_ms, n=10)
    print(
        f"\n{len(took_ms)} clicks: median {statistics.median(took_ms):.1f} ms, 90th percentile {quantiles[-1]:.1f} ms"
    )
    assert len(took_ms) == 2 * CLICKS
