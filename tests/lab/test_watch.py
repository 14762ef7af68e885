"""Watching runs: files are read as they grow, the picture follows the rows, and only the user gets an answer."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from lab import cli
from lab.rows import (
    Acked,
    End,
    Failed,
    FaultChange,
    FaultRow,
    Invoke,
    Judged,
    Members,
    NodeStatus,
    Phase,
    ProcessChange,
    StepStart,
    Unknown,
    encode_row,
)
from lab.rundir import RunDir
from lab.watch.picture import Figures, Picture
from lab.watch.sources import FOREVER, NodeEvent, Run, Source
from lab.watch.watcher import Watcher
from tests import TOO_LONG_S

pytest.importorskip("aiohttp", reason="aiohttp is not installed")
from aiohttp.test_utils import TestClient, TestServer

from lab.watch.server import MOST_STREAMS, Server

S = 1_000_000_000
ROOT = Path(__file__).resolve().parents[2]

# ---- files that grow ---------------------------------------------------------------------------------


def test_rows_are_read_as_they_are_written_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    source: Source[int] = Source(path, lambda line: int(line) if line.strip().isdigit() else None, lambda row: row)
    assert list(source.rows()) == []
    path.write_bytes(b"1\nno row\n2\n3")
    assert [row for _, row in source.rows()] == [1, 2]
    with path.open("ab") as file:
        file.write(b"4\n5\n")
    assert [row for _, row in source.rows()] == [34, 5]
    source.close()


def test_the_last_messages_of_a_log_leave_out_what_a_power_loss_has_torn(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.message_log(1).parent.mkdir(parents=True)
    whole = [b'{"seq_no":%d,"sender_id":9,"payload":"a"}\n' % number for number in (1, 2, 3)]
    run.message_log(1).write_bytes(whole[0] + whole[1] + b'\x00\xff{"seq\n' + b"7\n[]\n" + whole[2] + b'{"seq_no":4')
    watched = Run(tmp_path)
    assert [line["seq_no"] for line in watched.last_lines(1, 2)] == [2, 3]
    with run.message_log(1).open("ab") as log:
        log.write(b',"sender_id":9,"payload":"b"}\n')
    assert [line["seq_no"] for line in watched.last_lines(1, 9)] == [1, 2, 3, 4]
    assert watched.last_lines(2, 9) == []
    watched.close()


def test_rows_later_than_the_time_asked_for_wait(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b"10\n20\n30\n")
    source: Source[int] = Source(path, int, lambda row: row)
    assert source.due() == 10
    assert [row for _, row in source.rows(20)] == [10, 20]
    path.unlink()
    assert [row for _, row in source.rows()] == [30], "a file that was removed is read to its end"
    assert source.due() == FOREVER
    source.close()


# ---- the picture -------------------------------------------------------------------------------------


def pictured(*rows: Any) -> Picture:
    picture = Picture()
    picture.take(0, Members(0, "s", "live", 7, {1: "a:1", 2: "a:2", 3: "a:3"}))
    for row in rows:
        picture.take(getattr(row, "t", 0), row)
    return picture


def fault(number: int, kind: str, t: int, *, begins: bool = False, **fields: Any) -> FaultChange:
    row = FaultRow(kind, fields.pop("target", 1), "leader", t, t, fields.pop("evidence", {}), True, 0, **fields)
    return FaultChange(number, begins, row)


def test_a_node_has_the_state_that_it_showed_last() -> None:
    picture = pictured(
        ProcessChange(1, 1, "up", 99),
        NodeStatus(2, 1, "leader", 4, 1, 12, 11, 10),
        ProcessChange(3, 2, "up"),
        ProcessChange(4, 2, "paused"),
    )
    nodes = {node["id"]: node for node in picture.plain()["nodes"]}
    assert (nodes[1]["state"], nodes[1]["role"], nodes[1]["term"], nodes[1]["delivered"]) == ("up", "leader", 4, 10)
    assert [nodes[2]["state"], nodes[3]["state"]] == ["paused", "down"]


def test_a_cut_is_shown_while_it_is_in_force_and_the_newer_rule_counts() -> None:
    pairs = {"pairs": [[1, 2], [2, 1]]}
    cut = fault(0, "link", 1 * S, begins=True, evidence=pairs, asked="cut: {from: 1, to: 2}")
    slow = fault(1, "link", 2 * S, begins=True, evidence=pairs, asked="link: {delay: 1s}")
    assert [rule["text"] for rule in pictured(cut).plain()["rules"]] == ["cut: {from: 1, to: 2}"] * 2
    assert pictured(cut, slow).plain()["rules"][0]["text"] == "link: {delay: 1s}"
    over = fault(0, "link", 1 * S, evidence=pairs, asked="cut: {from: 1, to: 2}", t_healed=3 * S)
    picture = pictured(cut, slow, over)
    assert picture.plain()["rules"][0]["text"] == "link: {delay: 1s}", "the older one's end changes nothing"
    assert [(each["since"], each["until"]) for each in picture.plain()["windows"]] == [(1.0, 3.0), (2.0, None)]
    assert pictured(cut, over).plain()["rules"] == []


def test_the_window_of_a_kill_ends_with_the_nodes_start() -> None:
    picture = pictured(fault(0, "kill", 1 * S, target=2), fault(1, "start", 4 * S, target=3))
    assert picture.plain()["windows"][0]["until"] is None, "another node's start"
    picture.take(0, fault(2, "start", 5 * S, target=2))
    assert picture.plain()["windows"][0]["until"] == 5.0


def test_the_end_of_the_nodes_by_the_lab_leaves_their_last_state() -> None:
    rows = [ProcessChange(1, node, "up") for node in (1, 2)]
    statuses = [NodeStatus(2, 1, "leader", 4, 1, 9, 9, 9), NodeStatus(2, 2, "follower", 4, 1, 7, 7, 7)]
    ends = [ProcessChange(9, 1, "down"), ProcessChange(9, 2, "down", code=3, because="a failed fdatasync"), End(9, "")]
    picture = pictured(*rows, *statuses, Phase(8, "converged"), *ends)
    found = [(node["state"], node["role"], node["delivered"]) for node in picture.plain()["nodes"]]
    assert found == [("up", "leader", 9), ("down", "", 9), ("down", "", 0)]
    assert pictured(*rows, *statuses, *ends).plain()["nodes"][0]["state"] == "down", "an end before it is shown"


def test_news_are_numbered_and_only_what_an_audience_needs() -> None:
    picture = pictured(StepStart(1 * S, 0, 3, "kill: leader", say="Look!"), End(9 * S, ""), Judged("pass"))
    picture.take_event(NodeEvent(2 * S, 2, "became_leader", "Became LEADER for term 2"))
    picture.take_event(NodeEvent(2 * S, 2, "client_connected", "Client 7 connected"))
    assert [(each["id"], each["kind"]) for each in picture.news] == [(1, "step"), (2, "end"), (3, "became_leader")]
    plain = picture.plain()
    assert (plain["step"]["say"], plain["ended"], plain["outcome"], plain["now"]) == ("Look!", True, "pass", 9.0)


def test_figures_count_each_message_once() -> None:
    figures = Figures()
    for row in (
        Invoke(1 * S, 9, "s", 1, 4, 1 * S, payloads=("a",) * 4),
        Acked(1 * S + 20_000_000, "s", 2, 2),
        Acked(1 * S + 30_000_000, "s", 2, 2),
        Acked(1 * S + 150_000_000, "s", 4, 4),
    ):
        figures.take(row)
    plain = figures.plain(3.0)
    assert (plain["acked"], plain["waiting"], plain["rate"]) == (4, 0, [20, 20])
    assert plain["p50"][0] in (20.0, 30.0) and plain["p50"][1] == 150.0 and plain["from_s"] == 3.0


def test_a_message_with_any_outcome_waits_no_more() -> None:
    figures = Figures()
    figures.take(Invoke(1 * S, 9, "s", 1, 6, 1 * S, payloads=("a",) * 6))
    figures.take(Acked(2 * S, "s", 2, 2))
    assert figures.waiting == 4
    figures.take(Failed(2 * S, "s", 3, 1, "expired"))
    figures.take(Unknown(3 * S, "s", 4, 3))
    assert (figures.waiting, figures.acked) == (0, 2)


# ---- a run --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    assert cli.main(["leader_failure", "--sim", "--seed", "7", "--out", str(out)]) == 0
    return out


def run_of(results: Path) -> Path:
    return (results / "latest").resolve()


def test_a_finished_run_is_shown_at_once(results: Path) -> None:
    watcher = Watcher(run_of(results))
    watcher.look()
    plain = watcher.plain()
    watcher.close()
    assert (plain["scenario"], plain["outcome"], plain["kind"]) == ("leader_failure", "pass", "sim")
    assert plain["figures"]["acked"] > 4000 and sum(plain["figures"]["rate"]) > 4000
    assert {line["payload"] for node in plain["nodes"] for line in node["lines"][-1:]}
    kinds = [each["kind"] for each in watcher.news_after(0)]
    assert "kill" in kinds and kinds.count("became_leader") >= 1 and watcher.news_after(len(kinds)) == []


def test_a_replay_shows_the_run_in_its_own_time(results: Path) -> None:
    now = [100.0]
    watcher = Watcher(run_of(results), speed=2.0, clock=lambda: now[0])
    watcher.look()
    assert not watcher.picture.ended and watcher.figures.acked == 0
    now[0] += 0.3
    watcher.look()
    early = watcher.figures.acked
    assert 0 < watcher.picture.now <= 0.6 and 0 < early < 4000
    for node in watcher.plain()["nodes"]:
        delivered = node["delivered"]
        assert [line["seq_no"] for line in node["lines"]] == list(range(max(1, delivered - 7), delivered + 1))
    now[0] += 100.0
    watcher.look()
    watcher.close()
    assert watcher.picture.ended and watcher.figures.acked > early


# ---- the server ---------------------------------------------------------------------------------------


def served(results: Path, story: Callable[[TestClient[Any, Any], Server], Awaitable[None]]) -> None:
    async def timed() -> None:
        server = Server(results, token="the-token")
        async with asyncio.timeout(TOO_LONG_S), TestClient(TestServer(server.application())) as client:
            server.hosts.add(f"127.0.0.1:{client.port}")
            await story(client, server)

    asyncio.run(timed())


def allowed(client: TestClient[Any, Any], **more: str) -> dict[str, str]:
    return {"Cookie": f"chatlab-{client.port}=the-token", **more}


def test_the_printed_address_gives_a_cookie_and_the_pages(results: Path) -> None:
    async def story(client: TestClient[Any, Any], server: Server) -> None:
        first = await client.get("/?token=the-token&stage=1", allow_redirects=False)
        assert (first.status, first.headers["Location"]) == (303, "/?stage=1")
        cookie = first.headers["Set-Cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
        run = run_of(results)
        place = f"{run.parent.name}/{run.name}"
        for path in ("/", f"/run/{place}", "/static/app.js", "/static/preact.mjs", "/static/app.css"):
            page = await client.get(path, headers=allowed(client))
            assert page.status == 200 and "default-src 'none'" in page.headers["Content-Security-Policy"]
        (entry,) = await (await client.get("/api/runs", headers=allowed(client))).json()
        assert (entry["scenario"], entry["outcome"], entry["run"]) == ("leader_failure", "pass", run.name)
        latest = await client.get("/latest", headers=allowed(client), allow_redirects=False)
        assert latest.headers["Location"] == f"/run/{place}"

    served(results, story)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Cookie": "chatlab-{port}=wrong"}, 401),
        ({"Host": "evil.test"}, 421),
        ({"Host": "evil.test:{port}"}, 421),
        ({"Host": "127.0.0.1:1"}, 421),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}, 200),
        ({"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/runs", "/static/app.js"])
def test_only_the_user_who_was_given_the_address_gets_an_answer(
    results: Path, path: str, headers: dict[str, str], status: int
) -> None:
    async def story(client: TestClient[Any, Any], server: Server) -> None:
        given = {name: value.format(port=client.port) for name, value in headers.items()}
        if status != 401:
            given = allowed(client, **given)
        answer = await client.get(path, headers=given)
        assert answer.status == status
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert status == 200 or "scenario" not in await answer.text()

    served(results, story)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_changed(results: Path, method: str) -> None:
    async def story(client: TestClient[Any, Any], server: Server) -> None:
        assert (await client.request(method, "/api/runs", headers=allowed(client))).status == 405

    served(results, story)


@pytest.mark.parametrize(
    "path",
    [
        "/run/leader_failure/no-such-run",
        "/run/%2e%2e/%2e%2e",
        "/events/leader_failure/%2e%2e%2f%2e%2e",
        "/static/%2e%2e%2fserver.py",
        "/static/vendor%2fvendor.toml",
        "/static/index.html",
    ],
)
def test_only_runs_and_the_pages_own_files_are_served(results: Path, path: str) -> None:
    async def story(client: TestClient[Any, Any], server: Server) -> None:
        from yarl import URL

        assert (await client.get(URL(path, encoded=True), headers=allowed(client))).status == 404

    served(results, story)


async def events_of(answer: Any) -> list[tuple[str, Any]]:
    """Read a stream to its end."""
    found = []
    for block in (await answer.text()).split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


def test_the_stream_of_a_finished_run_ends_and_resumes_without_repeating(results: Path) -> None:
    async def story(client: TestClient[Any, Any], server: Server) -> None:
        run = run_of(results)
        path = f"/events/{run.parent.name}/{run.name}"
        events = await events_of(await client.get(path, headers=allowed(client)))
        news = [item for kind, items in events if kind == "news" for item in items]
        assert [kind for kind, _ in events] == ["news", "picture", "over"]
        middle = news[len(news) // 2]["id"]
        again = await events_of(await client.get(path, headers=allowed(client, **{"Last-Event-ID": str(middle)})))
        later = [item["id"] for kind, items in again if kind == "news" for item in items]
        assert sorted(later) == sorted(item["id"] for item in news if item["id"] > middle)
        assert (await client.get(f"{path}?speed=fast", headers=allowed(client))).status == 400

    served(results, story)


def test_a_run_under_way_is_streamed_as_it_is_written(tmp_path: Path) -> None:
    async def story(client: TestClient[Any, Any], server: Server) -> None:
        live = tmp_path / "mine" / "now" / "live.jsonl"
        live.parent.mkdir(parents=True)
        with live.open("ab", buffering=0) as file:
            file.write(encode_row(Members(S, "mine", "live", 1, {1: "a:1"})))
            answer = await client.get("/events/mine/now", headers=allowed(client))
            assert b"picture" in await answer.content.readuntil(b"\n\n")
            file.write(encode_row(ProcessChange(2 * S, 1, "up", 5)))
            assert b'"state": "up"' in await answer.content.readuntil(b"\n\n")
            file.write(encode_row(End(3 * S, "")) + encode_row(Judged("pass")))
            rest = await answer.content.read()
        assert b"the run has ended" in rest and rest.endswith(b"event: over\ndata: {}\n\n")

    served(tmp_path, story)


def test_all_pages_of_a_run_share_one_watcher(tmp_path: Path) -> None:
    async def story(client: TestClient[Any, Any], server: Server) -> None:
        live = tmp_path / "mine" / "now" / "live.jsonl"
        live.parent.mkdir(parents=True)
        live.write_bytes(encode_row(Members(S, "mine", "live", 1, {1: "a:1"})))
        answers = [await client.get("/events/mine/now", headers=allowed(client)) for _ in range(5)]
        for answer in answers:
            assert b"picture" in await answer.content.readuntil(b"\n\n")
        assert [feed.viewers for feed in server._feeds.values()] == [5]
        with live.open("ab") as file:
            file.write(encode_row(End(3 * S, "")) + encode_row(Judged("pass")))
        rests = {await answer.content.read() for answer in answers}
        assert len(rests) == 1 and rests.pop().endswith(b"event: over\ndata: {}\n\n")
        assert server._feeds == {}

    served(tmp_path, story)


def test_a_stream_that_cannot_be_continued_ends_without_saying_that_the_run_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(watcher: Watcher) -> None:
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(Watcher, "look", broken)

    async def story(client: TestClient[Any, Any], server: Server) -> None:
        live = tmp_path / "mine" / "now" / "live.jsonl"
        live.parent.mkdir(parents=True)
        live.write_bytes(encode_row(Members(S, "mine", "live", 1, {1: "a:1"})))
        answer = await client.get("/events/mine/now", headers=allowed(client))
        assert await answer.content.read() == b""

    served(tmp_path, story)
    assert "the disk is gone" in capsys.readouterr().err


def test_the_number_of_streams_is_limited_and_an_end_ends_them(tmp_path: Path) -> None:
    async def story(client: TestClient[Any, Any], server: Server) -> None:
        live = tmp_path / "mine" / "now" / "live.jsonl"
        live.parent.mkdir(parents=True)
        live.write_bytes(encode_row(Members(S, "mine", "live", 1, {1: "a:1"})))
        for _ in range(MOST_STREAMS):
            assert (await client.get("/events/mine/now", headers=allowed(client))).status == 200
        assert (await client.get("/events/mine/now", headers=allowed(client))).status == 503

    served(tmp_path, story)


def test_a_server_beside_a_run_prints_its_address_and_ends_with_the_run(tmp_path: Path) -> None:
    program = (
        f"from pathlib import Path\nfrom lab.watch.serve import beside\nwith beside(Path({str(tmp_path)!r})): input()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdin=pipe, stderr=pipe, text=True) as run:
        assert run.stderr is not None
        assert "http://127.0.0.1:" in run.stderr.readline()
        _, said = run.communicate("\n", timeout=TOO_LONG_S)
    assert (run.returncode, said) == (0, "")


def test_a_run_can_be_watched(tmp_path: Path) -> None:
    assert cli.main(["total_order_from_one_client", "--sim", "--watch", "--out", str(tmp_path)]) == 0


def test_a_port_that_is_taken_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--port", str(port), "--out", str(tmp_path)]) == 64
    assert f"--port {port}: " in capsys.readouterr().err
