"""The page of `explore`: the same moves and states as in the search, chosen one by one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from lab.search.explore import search
from lab.search.explore_cluster import Bounds, Clusters
from lab.search.failure import as_mutant

pytest.importorskip("aiohttp", reason="aiohttp is not installed")
from aiohttp.test_utils import TestClient, TestServer

from lab.debug.explorer import Explorer, Paths

BOUNDS = Bounds(nodes=2, messages=1)


def served(page: Explorer, story: Callable[[TestClient[Any, Any]], Awaitable[None]]) -> None:
    async def tell() -> None:
        async with TestClient(TestServer(page.application())) as client:
            page.hosts.add(f"{client.host}:{client.port}")
            assert (await client.get(f"/?token={page.token}")).status == 200
            await story(client)

    asyncio.run(tell())


def test_a_path_shows_the_moves_and_states_of_the_search() -> None:
    paths, clusters, rng = Paths(BOUNDS), Clusters(BOUNDS), random.Random(4)
    world = clusters.first()
    path: list[int] = []
    for _ in range(12):
        moves = list(clusters.moves(world))
        shown = paths.show(tuple(path))
        assert len(shown.choices) == len(moves) and not shown.problem
        for a in clusters.ids:
            view = clusters.locals.views[world[a - 1]]
            assert (shown.nodes[a]["role"] != "down") == view.up
            assert shown.nodes[a].get("term", view.term) == view.term
        assert {(a, b): len(frames) for a, b, frames in shown.queues} == {
            pair: len(clusters.queue(world, *pair)) for pair in clusters.pairs if clusters.queue(world, *pair)
        }
        if not moves:
            break
        path.append(rng.randrange(len(moves)))
        world = clusters.after(world, moves[path[-1]])
    assert len(path) > 5 and len(paths.show(tuple(path)).done) == len(path)


def test_the_fields_that_a_move_changes_are_marked() -> None:
    paths = Paths(BOUNDS)
    sends = next(at for at, each in enumerate(paths.show(()).choices) if "the client sends message 1" in each.text)
    shown = paths.show((sends,))
    assert shown.changes[2]["log"] == ("1:0", "1:1") and shown.done[0].text.startswith("the client sends")
    assert any("APPEND" in line for line in shown.done[0].lines)
    assert paths.show(()).changes == {1: {}, 2: {}}


def test_a_mutants_violation_is_at_the_end_of_its_path() -> None:
    mutant = "acknowledge_before_durable"
    with as_mutant(mutant) as found:
        page = Explorer(BOUNDS, found)
        finding = search(page.paths.clusters, None, lambda line: None)
        page.start = page.paths.indices(finding.trace)
        assert finding.problem

        async def story(client: TestClient[Any, Any]) -> None:
            about = await (await client.get("/api/start")).json()
            assert about["mutant"]["name"] == mutant and len(about["path"]) == len(finding.trace)
            path = ".".join(map(str, about["path"]))
            shown = await (await client.get(f"/api/state?path={path}")).json()
            assert (shown["problem"], shown["choices"]) == (finding.problem, [])
            before = await (await client.get(f"/api/state?path={path.rpartition('.')[0]}")).json()
            assert not before["problem"] and before["choices"]
            assert (await client.get(f"/api/state?path={path}.0")).status == 400

        served(page, story)


@pytest.mark.parametrize("path", ["999", "0.x", "0.-1", "0.99999", ".".join(["0"] * 501)])
def test_a_wrong_path_is_refused(path: str) -> None:
    async def story(client: TestClient[Any, Any]) -> None:
        answer = await client.get(f"/api/state?path={path}")
        assert answer.status == 400 and "allowed" in await answer.text()
        assert (await client.post("/api/state", json={})).status == 405

    served(Explorer(BOUNDS, None), story)
