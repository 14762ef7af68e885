"""A session by hand over HTTP: who may order steps, and what becomes of a session of ten clicks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="the extra `ui` is not installed")

from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from lab.plan.sense import load_checked
from lab.rundir import RunDir
from lab.runs import How, run_once
from lab.steps import Send
from lab.watch.server import Server
from tests import TOO_LONG_S
from tests.lab.harness import PATIENT

MOST_TRIES = 20
Client = TestClient[Any, Any]


class Site:
    """A server, and a browser that has opened its address."""

    def __init__(self, server: Server, client: Client) -> None:
        self.server, self.client = server, client

    @property
    def own(self) -> str:
        return f"http://127.0.0.1:{self.client.port}"

    def cookie(self, token: str = "the-token") -> dict[str, str]:
        return {"Cookie": f"chatlab-{self.client.port}={token}"}

    async def post(self, path: str, body: object, **headers: str) -> tuple[int, Any]:
        given = {"Sec-Fetch-Site": "same-origin", "Origin": self.own, "Content-Type": "application/json"}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = await self.client.post(path, data=data, headers=self.cookie() | given | headers)
        text = await answer.text()
        return answer.status, json.loads(text) if answer.content_type == "application/json" else text

    async def get(self, path: str, token: str = "the-token") -> Any:
        return await self.client.get(URL(path, encoded=True), headers=self.cookie(token))


class Page:
    """What a page of a run has been sent so far."""

    def __init__(self, site: Site, place: str) -> None:
        self._site, self._place = site, place
        self.picture: dict[str, Any] = {}
        self.is_over = False
        self._changed = asyncio.Condition()

    async def read(self) -> None:
        answer = await self._site.get(self._place.replace("/run/", "/events/"))
        while block := await answer.content.readuntil(b"\n\n"):
            fields = dict(
                line.split(": ", 1) for line in block.decode().strip().splitlines() if not line.startswith(":")
            )
            async with self._changed:
                if fields.get("event") == "picture":
                    self.picture = json.loads(fields["data"])
                self.is_over = fields.get("event") == "over"
                self._changed.notify_all()
            if self.is_over:
                return
        raise AssertionError("the stream has ended before the run")

    async def until(self, condition: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(condition)

    async def change(self) -> None:
        before = self.picture
        await self.until(lambda: self.picture != before)

    def state(self, node: int) -> str:
        return str(self.picture["nodes"][node - 1]["state"])

    @property
    def leader(self) -> int:
        return next((node["id"] for node in self.picture["nodes"] if node["role"] == "leader"), 0)

    async def more(self, messages: int) -> None:
        """Wait until so many more messages are acknowledged."""
        wanted = self.picture["figures"]["acked"] + messages
        await self.until(lambda: self.picture["figures"]["acked"] >= wanted)


def served(tmp_path: Path, story: Callable[[Site], Awaitable[None]], *, beginning: str | None = None) -> None:
    (tmp_path / "patient.yml").write_text(PATIENT)
    begins = str(tmp_path / "patient.yml") if beginning is None else beginning

    async def timed() -> None:
        server = Server(tmp_path / "results", token="the-token", look_token="looks", beginning=begins)
        async with asyncio.timeout(TOO_LONG_S), TestClient(TestServer(server.application())) as client:
            server.hosts.add(f"127.0.0.1:{client.port}")
            await story(Site(server, client))

    asyncio.run(timed())


# ---- ten clicks -------------------------------------------------------------------------------------


async def ten_clicks(site: Site, page: Page) -> list[str]:
    """Do what a person does with the buttons; return the orders."""
    ordered = []

    async def click(step: Callable[[], str], until: Callable[[], bool] = lambda: True, messages: int = 30) -> None:
        for _ in range(MOST_TRIES):
            words = step()
            status, answer = await site.post("/api/step", {"step": words})
            if status == 200:
                break
            await page.change()  # On a busy machine nobody may lead just now.
        assert (status, answer.get("warning", "")) == (200, ""), answer
        ordered.append(words)
        await page.until(until)
        await page.more(messages)

    await click(lambda: "kill: 3", lambda: page.state(3) == "down" and page.leader != 3)
    status, answer = await site.post("/api/step", {"say": 'Hello, "all" <b>'})
    assert status == 200, answer
    ordered.append(answer["step"])
    await click(lambda: "start: 3", lambda: page.state(3) == "up")
    await click(lambda: "pause: 1", lambda: page.state(1) == "paused")
    await click(lambda: "resume: 1", lambda: page.state(1) == "up")
    await click(lambda: "partition: {kind: isolate, node: 1}", lambda: len(page.picture["rules"]) == 4)
    await click(lambda: "heal: links", lambda: page.picture["rules"] == [])
    await click(lambda: "link: {from: leader, to: 1, delay: 20ms}", lambda: len(page.picture["rules"]) == 1)
    await click(lambda: "cut: {from: leader, to: 1, both: true}", lambda: len(page.picture["rules"]) == 2)
    await click(lambda: "heal: all", lambda: page.picture["rules"] == [])
    await click(lambda: "power_loss: {target: 1, mid_write: true}", lambda: page.state(1) == "down")
    await click(lambda: "heal: all", lambda: page.state(1) == "up")
    return ordered


def test_a_session_of_ten_clicks_passes_and_its_scenario_passes_with_twenty_seeds(tmp_path: Path) -> None:
    ordered: list[str] = []

    async def story(site: Site) -> None:
        status, begun = await site.post("/api/session", {"nodes": 3, "rate": 100})
        assert status == 200, begun
        page = Page(site, begun["run"])
        async with asyncio.TaskGroup() as group:
            group.create_task(page.read())
            await clicked(site, page, begun["run"])
        assert (page.picture["outcome"], page.picture["ended"]) == ("pass", True)
        payloads = [{line["payload"] for line in node["lines"]} for node in page.picture["nodes"]]
        assert payloads[0] == payloads[1] == payloads[2] != set()
        kept = await site.get(begun["run"].replace("/run/", "/by_hand/"))
        assert kept.headers["Content-Disposition"] == 'attachment; filename="by_hand.yml"'
        (tmp_path / "kept.yml").write_text(await kept.text())

    async def clicked(site: Site, page: Page, place: str) -> None:
        await page.until(lambda: bool(page.picture.get("figures", {}).get("acked")) and page.leader != 0)
        who = await (await site.get("/api/who")).json()
        assert (who["acts"], who["session"]) == (True, place)
        assert {act["word"] for act in who["orders"]["acts"]} >= {"Kill", "Power loss"}
        looks = await (await site.get("/api/who", "looks")).json()
        assert looks == {"acts": False, "session": place, "orders": None}
        assert (await site.post("/api/session", {}))[0] == 409, "one session at a time"
        ordered.extend(await ten_clicks(site, page))
        status, refused = await site.post("/api/step", {"step": "kill: n9"})
        assert status == 422 and 'step:1:7: kill: found "n9", allowed leader' in refused["problem"]
        assert await site.post("/api/end", {}) == (200, {})

    served(tmp_path, story)
    run = RunDir.open(tmp_path / "results" / "latest")
    assert json.loads(run.verdict.read_bytes())["outcome"] == "pass"
    again = load_checked(tmp_path / "kept.yml")
    words = [step.words for step in again.steps if step.word not in ("sleep", "send")]
    assert words[2:] == [each for each in ordered if not each.startswith("send")]
    (sent,) = (step for step in again.steps if isinstance(step, Send))
    assert sent.clients[0].messages == ('Hello, "all" <b>',)
    for seed in range(20):
        result = run_once(again, seed, tmp_path / "again", How(sim=True))
        assert result.exit_code == 0, result.text()


# ---- who may order ----------------------------------------------------------------------------------


JSON = {"Content-Type": "application/json"}
ATTACKS: dict[str, tuple[dict[str, str], int]] = {
    "no token": ({"Cookie": ""}, 401),
    "a wrong token": ({"Cookie": "chatlab-{port}=wrong"}, 401),
    "the token of another port": ({"Cookie": "chatlab-1=the-token"}, 401),
    "the token that only shows": ({"Cookie": "chatlab-{port}=looks"}, 403),
    "DNS rebinding": ({"Host": "evil.test:{port}", "Origin": "http://evil.test:{port}"}, 421),
    "DNS rebinding, other port": ({"Host": "127.0.0.1:1"}, 421),
    "another site": ({"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.test"}, 403),
    "another port of this machine": ({"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:1"}, 403),
    "a link on another site": (
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
        403,
    ),
    "an old browser on another site": ({"Sec-Fetch-Site": "", "Origin": "http://evil.test"}, 403),
    "a sandboxed frame": ({"Sec-Fetch-Site": "", "Origin": "null"}, 403),
    "an origin that contradicts the site": ({"Origin": "http://evil.test"}, 403),
    "a form: plain text": ({"Content-Type": "text/plain"}, 403),
    "a form: fields": ({"Content-Type": "application/x-www-form-urlencoded"}, 403),
    "a form: parts": ({"Content-Type": "multipart/form-data; boundary=x"}, 403),
    "a program without X-Lab": ({"Sec-Fetch-Site": "", "Origin": ""}, 403),
}
"""What somebody else may try -> the headers that differ from those of the page itself, and the answer."""
ACTIONS = ("/api/step", "/api/session", "/api/end")


@pytest.mark.parametrize("path", ACTIONS)
def test_nobody_else_can_order_anything(tmp_path: Path, path: str) -> None:
    async def story(site: Site) -> None:
        for name, (headers, wanted) in ATTACKS.items():
            given = {key: value.format(port=site.client.port) for key, value in headers.items()}
            status, said = await site.post(path, {"step": "kill: leader"}, **given)
            assert status == wanted, (name, status, said)
        for method in ("PUT", "DELETE", "OPTIONS", "PATCH"):
            answer = await site.client.request(method, path, headers=site.cookie() | JSON)
            assert answer.status == 405 and "Access-Control-Allow-Origin" not in answer.headers
        assert (await site.get(path)).status == 405
        assert site.server.session is None, "nothing was started"

    served(tmp_path, story)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/session", b"", 422),
        ("/api/session", b"[]", 422),
        ("/api/session", b'{"nodes": 0}', 422),
        ("/api/session", b'{"nodes": 10}', 422),
        ("/api/session", b'{"rate": 1e9}', 422),
        ("/api/session", b'{"command": "sh"}', 422),
        ("/api/step", b'{"step": 1}', 422),
        ("/api/step", b'{"step": "kill: 1", "more": 1}', 422),
        ("/api/step", b'{"step": "\xff"}', 422),
        ("/api/step", b'{"step": "kill: 1"}', 409),
        ("/api/step", b'{"step": "' + b"x" * (70 << 10) + b'"}', 413),
        ("/api/end", b'{"now": true}', 422),
        ("/api/end", b"{}", 409),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(tmp_path: Path, path: str, body: bytes, status: int) -> None:
    async def story(site: Site) -> None:
        found, said = await site.post(path, body)
        assert found == status, said
        assert site.server.session is None

    served(tmp_path, story)


def test_a_program_without_an_origin_may_order_with_a_header_of_its_own(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        headers = {"Sec-Fetch-Site": "", "Origin": "", "X-Lab": "1"}
        assert (await site.post("/api/end", {}, **headers))[0] == 409

    served(tmp_path, story)


def test_a_server_beside_a_run_takes_no_orders(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        for path in ACTIONS:
            assert (await site.post(path, {}))[0] == 405
        assert await (await site.get("/api/who")).json() == {"acts": False, "session": "", "orders": None}

    served(tmp_path, story, beginning="")


def test_the_scenario_of_a_run_without_hands_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "results" / "a" / "b").mkdir(parents=True)
    (tmp_path / "results" / "a" / "b" / "live.jsonl").touch()

    async def story(site: Site) -> None:
        for place in ("a/b", "a/c", "%2e%2e/%2e%2e"):
            assert (await site.get(f"/by_hand/{place}")).status == 404

    served(tmp_path, story)


# ---- how a session begins and ends --------------------------------------------------------------------


def test_a_session_that_cannot_begin_says_so(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        status, said = await site.post("/api/session", {})
        assert status == 500 and "exit code 64" in said["problem"]
        assert (await (await site.get("/api/who")).json())["session"] == ""

    served(tmp_path, story, beginning="no_such_scenario")


def test_the_server_ends_its_session_in_order(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        _, begun = await site.post("/api/session", {"rate": 50})
        page = Page(site, begun["run"])
        reading = asyncio.create_task(page.read())
        await page.until(lambda: bool(page.picture.get("figures", {}).get("acked")))
        assert (await site.post("/api/step", {"step": "kill: 1"}))[0] == 200
        await page.more(20)
        reading.cancel()

    served(tmp_path, story)
    run = RunDir.open(tmp_path / "results" / "latest")
    assert json.loads(run.verdict.read_bytes())["outcome"] == "pass"


def test_orders_of_several_pages_are_done_one_after_the_other(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        assert (await site.post("/api/session", {}))[0] == 200
        steps = ["pause: 1", "resume: 1", "pause: 2", "kill: n9", "resume: 2"]
        answers = await asyncio.gather(*(site.post("/api/step", {"step": step}) for step in steps))
        assert [status for status, _ in answers] == [200, 200, 200, 422, 200]
        assert [answer["step"] for status, answer in answers if status == 200] == [steps[0], *steps[1:3], steps[4]]
        assert (await site.post("/api/end", {}))[0] == 200
        assert (await site.post("/api/step", {"step": "kill: 1"}))[0] == 409

    served(tmp_path, story)
