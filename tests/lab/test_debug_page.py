"""The debugger's page: it shows what a straight replay shows, changes a run on request, and lets the user predict."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import cli
from lab.debug.branch import Branch, begin
from lab.debug.command import failing
from lab.debug.questions import Question, questions, rule_text
from lab.debug.recorder import Flight, Row
from lab.debug.texts import failure_of
from lab.mutants.catalogue import MUTANTS
from lab.places import DOCS
from lab.plan import scenario as plan
from lab.steps import Kill
from tests.lab.test_debug import SCENARIO, SEED, straight

pytest.importorskip("aiohttp", reason="aiohttp is not installed")
from aiohttp.test_utils import TestClient, TestServer

from lab.debug.page import MOST_BRANCHES, Page, diagram

Client = TestClient[Any, Any]


@pytest.fixture(scope="module")
def run() -> Iterator[Branch]:
    branch = begin(SCENARIO, SEED)
    yield branch
    branch.close()


def served(branch: Branch, story: Callable[[Client, Page], Awaitable[None]], mutant: str = "") -> None:
    """Serve the page of a run, and tell a story with a client that has its token."""

    async def tell() -> None:
        page = Page(SCENARIO, SEED, mutant, branch)
        async with TestClient(TestServer(page.application())) as client:
            page.hosts.add(f"{client.host}:{client.port}")
            assert (await client.get(f"/?token={page.token}")).status == 200
            await story(client, page)
        for each in page.branches[1:]:
            each.close()

    asyncio.run(tell())


async def forked(client: Client, branch: int, **change: Any) -> Any:
    """Ask for a branch as the page does; return the answer."""
    body = {"branch": branch, "change": change}
    return await client.post("/api/fork", json=body, headers={"Sec-Fetch-Site": "same-origin"})


def test_the_page_shows_at_any_event_what_a_straight_replay_shows(run: Branch) -> None:
    events = random.Random(6).sample(range(1, run.recorded.events + 1), 20)
    wanted, _ = straight(set(events))

    async def story(client: Client, page: Page) -> None:
        for event in events:
            shown = await (await client.get(f"/api/at?branch=0&event={event}")).json()
            nodes, due = wanted[event]
            assert {int(node): view for node, view in shown["nodes"].items()} == nodes
            assert {each["number"] for each in shown["frames"] + shown["timers"]} <= set(due)
            assert sum(shown["waiting"]) == len(due)

    served(run, story)


def test_rows_are_reached_one_by_one_and_by_their_text(run: Branch) -> None:
    async def story(client: Client, page: Page) -> None:
        last = run.recorded.rows - 1
        found = await (await client.get("/api/find?branch=0&row=0&text=became+leader+for+term+2")).json()
        at = await (await client.get(f"/api/at?branch=0&row={found['row']}")).json()
        assert found["found"] and at["row"] == found["row"] and 'says "Became LEADER for term 2"' in at["news"][-1]
        assert any(change["role"][1] == "leader" for change in at["changes"].values())
        back = await (await client.get(f"/api/find?branch=0&row={last + 1}&text=LEADER+for+term+2&back")).json()
        assert back["row"] == found["row"]
        none = await (await client.get("/api/find?branch=0&row=0&text=no+such+text")).json()
        assert none == {"row": last, "found": False}

    served(run, story)


def test_a_fork_differs_only_behind_its_event_and_is_saved_as_a_scenario(run: Branch) -> None:
    event = run.recorded.events // 3

    async def story(client: Client, page: Page) -> None:
        answer = await (await forked(client, branch=0, event=event, step="kill: 1")).json()
        assert [each["parent"] for each in answer["branches"]] == [None, 0]
        before = run.row_at(event)
        assert page.branches[1].rows(0, before) == run.rows(0, before)
        assert page.branches[1].rows(before + 1, before + 9) != run.rows(before + 1, before + 9)
        both = [await (await client.get(f"/api/at?branch={each}&event={event}")).json() for each in (0, 1)]
        assert both[0]["nodes"] == both[1]["nodes"]
        assert both[0]["frames"] == both[1]["frames"]
        text = await (await client.get("/api/scenario?branch=1")).text()
        assert Kill(target=1) in plan.load("saved.yml", text=text).steps
        frame = both[0]["frames"][0]["number"] if both[0]["frames"] else None
        if frame is not None:
            assert (await forked(client, branch=1, event=event, frame=frame, drop=True)).status == 200
            assert (await client.get("/api/scenario?branch=2")).status == 422

    served(run, story)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"step": "kill: n9"}, "allowed leader"),
        ({"frame": 1}, "nothing that is due has this number"),
        ({"branch": 7, "step": "kill: 1"}, "branch: found 7, allowed 0..0"),
        ({"step": "kill: 1", "sudo": True}, "unknown field"),
        ({"step": "kill: 1", "event": -1}, "`int` >= 0"),
        ({"frame": 1, "late_s": -1}, "`float` >= 0"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused_with_its_reason(run: Branch, body: dict[str, Any], said: str) -> None:
    async def story(client: Client, page: Page) -> None:
        answer = await forked(client, **{"branch": 0, "event": 900, **body})
        assert answer.status == 422 and said in await answer.text()
        assert len(page.branches) == 1

    served(run, story)


def test_the_number_of_branches_is_limited(run: Branch) -> None:
    async def story(client: Client, page: Page) -> None:
        page.branches += [run] * (MOST_BRANCHES - 1)
        answer = await forked(client, branch=0, event=1, step="kill: 1")
        assert answer.status == 422 and "no more are allowed" in await answer.text()
        del page.branches[1:]

    served(run, story)


NO_STEP = '{"branch": 0, "change": {"event": 900, "step": "no: step"}}'


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"X-Lab": "1"}, 422),
        ({"X-Lab": "1", "Origin": "http://evil.test"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "X-Lab": "1"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Content-Type": "text/plain"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Host": "evil.test"}, 421),
        ({"Sec-Fetch-Site": "same-origin", "Cookie": "chatlab-1=wrong"}, 401),
    ],
)
def test_only_the_page_itself_and_programs_of_the_user_change_a_run(
    run: Branch, headers: dict[str, str], status: int
) -> None:
    async def story(client: Client, page: Page) -> None:
        if "Cookie" in headers:
            client.session.cookie_jar.clear()
        sent = {"Content-Type": "application/json", **headers}
        answer = await client.post("/api/fork", data=NO_STEP, headers=sent)
        assert answer.status == status
        assert len(page.branches) == 1

    served(run, story)


@pytest.mark.parametrize(
    "path", ["/api/at?branch=3", "/api/at?event=99999999", "/api/at?row=-1", "/api/at?event=x", "/api/find?row=1e9"]
)
def test_a_wrong_number_in_an_address_is_named(run: Branch, path: str) -> None:
    async def story(client: Client, page: Page) -> None:
        answer = await client.get(path)
        assert answer.status == 400 and ", allowed 0.." in await answer.text()

    served(run, story)


@pytest.mark.parametrize("name", ["debug.js", "parts.js", "debug.css", "app.css", "preact.mjs", "htm.mjs"])
def test_the_files_of_the_page_are_served(run: Branch, name: str) -> None:
    async def story(client: Client, page: Page) -> None:
        assert (await client.get(f"/static/{name}")).status == 200
        assert (await client.get("/static/debug.html")).status == 404

    served(run, story)


# ---- the diagram -----------------------------------------------------------------------------------------


def test_the_diagram_is_cut_around_the_present_event() -> None:
    rows = [Row(number, number / 10, "a timer", {}, (f"node 1: event {number}",)) for number in range(1, 60)]
    flights = [
        Flight(2.91, (2.95,), 1, 2, "VOTE", "term 2"),
        Flight(2.92, (3.05,), 2, 1, "VOTE", "term 2"),
        Flight(2.93, (), 1, 3, "VOTE", "term 2"),
    ]
    lines = diagram(rows, flights, 30, 3.0)
    past = [line for line in lines if not line.later]
    assert [line.text for line in past[-4:]] == ["event 29", "term 2", "term 2", "event 30"]
    assert [(line.source, line.to, line.lost) for line in past if line.kind] == [(1, 3, True), (1, 2, False)]
    assert next(line for line in lines if line.later).source == 2, "it was sent before and arrives after"
    assert lines == sorted(lines, key=lambda line: line.t_s) and len(past) < 30 < 40 > len(lines)
    assert diagram([], [], 0, 0.0) == []


# ---- predict, then reveal --------------------------------------------------------------------------------


def row(number: int, changes: dict[int, dict[str, Any]]) -> Row:
    return Row(number, number / 1000, "takes its inputs", changes)


def test_questions_are_asked_before_their_answer_can_be_seen() -> None:
    rows = [
        row(
            1, {1: {"role": ("down", "follower")}, 2: {"role": ("down", "follower")}, 3: {"role": ("down", "follower")}}
        ),
        row(2, {2: {"role": ("follower", "candidate"), "voted_for": (0, 2)}}),
        row(3, {1: {"voted_for": (0, 2)}}),
        row(4, {2: {"role": ("candidate", "leader")}}),
        row(5, {1: {"delivered": (0, 1)}}),
    ]
    found = questions(
        rows, 0, (1, 2, 3), "A4: message 1 is lost", {"A4": "Every acknowledged message is in the log, always. More."}
    )
    assert found[:2] == [
        Question(1, 2, "Node 1 is about to vote. For which node?", ("node 2", "node 3"), 0),
        Question(0, 3, "Which node becomes leader next?", ("node 1", "node 2", "node 3"), 1),
    ]
    assert (found[2].asked, found[2].answered) == (3, 4)
    assert found[2].choices[found[2].right] == "A4: Every acknowledged message is in the log, always."
    assert questions(rows, 0, (1, 2, 3), "", {})[-1].text.startswith("Which node"), (
        "nothing broke, so nothing is asked about it"
    )
    later = questions(rows[2:], 2, (1, 2, 3), "", {})
    assert [each.answered for each in later] == [2, 3], "rows keep their numbers"
    assert questions([], 0, (), "", {}) == []


def test_every_mutant_has_the_text_of_its_rule() -> None:
    missing = {each.rule for each in MUTANTS.values() if not rule_text(DOCS / "protocol.md", each.rule)}
    assert missing == set()


@pytest.mark.parametrize(
    "mutant", ["two_votes_in_one_term", "heartbeats_not_answered", "term_not_durable", "gap_in_the_log_accepted"]
)
def test_a_mutant_opens_at_its_violation(mutant: str) -> None:
    asked = failing(mutant)
    branch = begin(*asked)
    broken = failure_of(branch.recorded)
    last = branch.rows(branch.recorded.rows - 1, branch.recorded.rows - 1)[0]

    async def story(client: Client, page: Page) -> None:
        about = await (await client.get("/api/run")).json()
        assert about["branches"][0]["failure"] == broken != ""
        assert about["mutant"]["says"] == MUTANTS[mutant].says
        assert all(each["asked"] < each["answered"] <= branch.recorded.rows for each in about["questions"])
        assert about["questions"][-1]["text"].endswith("What breaks?")
        at = await (await client.get(f"/api/at?branch=0&row={branch.recorded.rows - 1}")).json()
        assert at["event"] == last.event

    served(branch, story, mutant)
    branch.close()


def test_a_mutant_that_no_seed_shows_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["debug", "--mutant", "vote_not_durable", "--seed", "1"]) == 64
    assert "none of 1 seeds fails" in capsys.readouterr().err
    assert cli.main(["debug"]) == 64
    assert "found neither RUN nor --mutant" in capsys.readouterr().err


def test_the_command_serves_the_page_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    file = tmp_path / "stepped.yml"
    file.write_text(plan.encode(SCENARIO), "utf-8")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["debug", str(file), "--seed", "3", "--web", "--port", str(port)]) == 64
    assert f"--port {port}: " in capsys.readouterr().err
