"""Nodes and clients over TLS, with real certificates and real sockets in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from nodeproc.client import ChatClient, status
from nodeproc.config import Limits, load
from nodeproc.core.events import BadInput, PeerRefused
from nodeproc.core.messages import START, Join
from nodeproc.errors import ConfigError, Unreachable
from nodeproc.frames import PREAMBLE, FrameDecoder, PeerHello, PeerRefusal, encode_frame
from nodeproc.net.entrance import Entrance, listen
from nodeproc.net.handshake import VERSION
from nodeproc.tls import TlsProblem, client_tls, node_tls
from tests import TOO_LONG_S
from tests.nodeproc.certificates import Authority, Papers, encrypt
from tests.nodeproc.nodes import PROJECT, Cluster, connected, free_ports
from tests.nodeproc.test_runtime import Chatter, cluster, running, single
from tests.nodeproc.test_transport import HELLO, IN_1, UP_1, UP_2, End


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def papers(authority: Authority) -> Papers:
    return authority.papers("node", "127.0.0.1", "localhost")


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Runs a coroutine on both kinds of loop."""

    def run_it(work: Coroutine[Any, Any, None]) -> None:
        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(work)

    return run_it


Run = Callable[[Coroutine[Any, Any, None]], None]


# ---- the files ----------------------------------------------------------------------------------

CONFIG = "node_id: 1\nport: 5001\ndata_dir: d\ntls: {{cert: {cert}, key: {key}, ca: {ca}}}\n"


def complaint(files: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        load("n.yml", text=CONFIG.format(**files))
    return str(caught.value).splitlines()[0]


def test_files_that_fit_are_taken(papers: Papers) -> None:
    assert load("n.yml", text=CONFIG.format(**papers.files)).tls == papers.of_node


@pytest.mark.parametrize("key", ["cert", "key", "ca"])
def test_a_missing_file_is_named_with_its_key(papers: Papers, key: str) -> None:
    text = complaint(papers.files | {key: "no/such.pem"})
    assert f"tls.{key}: no/such.pem: No such file or directory" in text and text.startswith("n.yml:4:")


@pytest.mark.parametrize(
    ("key", "words"),
    [("cert", "no certificate in it"), ("key", "no private key for"), ("ca", "no certificate in it")],
)
def test_a_file_that_is_no_pem_is_named_with_its_key(papers: Papers, tmp_path: Path, key: str, words: str) -> None:
    (tmp_path / "odd").write_text("something else")
    text = complaint(papers.files | {key: str(tmp_path / "odd")})
    assert f"tls.{key}: {tmp_path / 'odd'}: {words}" in text


def test_files_that_do_not_fit_are_named(papers: Papers, authority: Authority, tmp_path: Path) -> None:
    other = authority.papers("other")
    assert f"tls.key: {other.key}: it is not the key of {papers.cert}" in complaint(
        papers.files | {"key": str(other.key)}
    )
    encrypt(other.key)
    assert f"tls.key: {other.key}: it has a passphrase" in complaint(other.files)
    damaged = tmp_path / "damaged.pem"
    damaged.write_text("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n")
    assert "tls.cert: " in complaint(papers.files | {"cert": str(damaged)})


def test_a_client_needs_both_of_certificate_and_key(papers: Papers) -> None:
    with pytest.raises(TlsProblem, match="the certificate needs one"):
        client_tls(str(papers.ca), cert=str(papers.cert))
    with pytest.raises(TlsProblem, match="the key needs one"):
        client_tls(str(papers.ca), key=str(papers.key))


def test_a_port_that_asks_clients_for_certificates_may_be_reached_by_others(papers: Papers) -> None:
    text = CONFIG.format(**papers.files).replace("ca:", "clients: certificate, ca:")
    assert load("n.yml", text=f"{text}host: 0.0.0.0\nsecret: 0123456789abcdef\n").tls is not None


# ---- a whole cluster ----------------------------------------------------------------------------


def test_three_nodes_and_their_clients_speak_tls(run: Run, authority: Authority, tmp_path: Path) -> None:
    async def story() -> None:
        tls = client_tls(str(authority.ca))
        async with cluster(tmp_path, tls=authority.papers("any").of_node, secret="s") as members:
            addresses = [("127.0.0.1", member.port) for member in members]
            async with connected(ChatClient(addresses, 5, tls=tls)) as client:
                outcomes = await client.send_many([f"message {n}" for n in range(100)])
                large = await client.send("x" * 60_000)
            assert {outcome.kind for outcome in (*outcomes, large)} == {"ok"}
            while {member.runtime.turn.status().delivered_seq for member in members} != {101}:
                await asyncio.sleep(0.01)
            assert (await status("127.0.0.1", members[0].port, TOO_LONG_S, tls=tls)).delivered_seq == 101

    run(story())


def test_processes_over_tls_survive_their_leader(papers: Papers, tmp_path: Path) -> None:
    async def story(nodes: Cluster) -> None:
        addresses = [("127.0.0.1", nodes.port(node)) for node in (1, 2, 3)]
        client = ChatClient(addresses, 5, tls=client_tls(str(papers.ca)))
        async with asyncio.timeout(2 * TOO_LONG_S), connected(client):
            assert (await client.send("before")).kind == "ok"
            nodes.kill(client.session.leader)
            after = await client.send("after")
            assert (after.kind, after.seq_no) == ("ok", 2)

    with Cluster(tmp_path, tls=papers.files, secret="s") as nodes:
        nodes.start()
        asyncio.run(story(nodes))


def test_clients_with_and_without_tls_do_not_meet(run: Run, papers: Papers, tmp_path: Path) -> None:
    async def story() -> None:
        (tmp_path / "ca").mkdir()
        stranger = Authority(tmp_path / "ca")
        async with running(tmp_path, single(tls=papers.of_node)) as member:
            port = member.port
            with pytest.raises(Unreachable):
                await status("127.0.0.1", port, TOO_LONG_S)
            with pytest.raises(Unreachable, match="its certificate is not accepted"):
                await status("127.0.0.1", port, TOO_LONG_S, tls=client_tls(str(stranger.ca)))
            assert member.events().count("bad_input") >= 1
        async with running(tmp_path) as member:
            with pytest.raises(Unreachable):
                await status("127.0.0.1", member.port, TOO_LONG_S, tls=client_tls(str(papers.ca)))

    run(story())


def test_a_node_may_ask_clients_for_certificates(
    run: Run, authority: Authority, papers: Papers, tmp_path: Path
) -> None:
    async def story() -> None:
        files = msgspec.structs.replace(papers.of_node, clients="certificate")
        async with running(tmp_path, single(tls=files)) as member:
            with pytest.raises(Unreachable):
                await status("127.0.0.1", member.port, TOO_LONG_S, tls=client_tls(str(papers.ca)))
            own = authority.papers("client", "somebody.example")
            shown = client_tls(str(papers.ca), str(own.cert), str(own.key))
            assert (await status("127.0.0.1", member.port, TOO_LONG_S, tls=shown)).node == 1

    run(story())


def test_the_chat_at_a_pipe_speaks_tls(run: Run, authority: Authority, papers: Papers, tmp_path: Path) -> None:
    async def story() -> None:
        files = msgspec.structs.replace(papers.of_node, clients="certificate")
        own = authority.papers("chatter", "somebody.example")
        async with running(tmp_path, single(tls=files)) as member:
            flags = ["--port", str(member.port), "--tls-ca", str(own.ca)]
            flags += ["--tls-cert", str(own.cert), "--tls-key", str(own.key)]
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "nodeproc.client_tui", *flags),
                cwd=PROJECT,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            told, _ = await process.communicate(b"hello over TLS\n")
            assert (process.returncode, told) == (0, b"[seq=1] node_9999: hello over TLS\n")

    run(story())


# ---- the first byte -----------------------------------------------------------------------------


class Teller(asyncio.Protocol):
    """Says what it was made for."""

    def __init__(self, name: bytes) -> None:
        self._name = name
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._name + data)


@contextlib.asynccontextmanager
async def door(papers: Papers, limits: Limits | None = None) -> AsyncIterator[tuple[int, Entrance, list[str]]]:
    """The port of an entrance with TLS, the entrance, and what it complained about."""
    complaints: list[str] = []
    sock = listen("127.0.0.1", 0)
    tls = node_tls(papers.of_node).accepting
    entrance = Entrance(
        lambda: Teller(b"node "), lambda: Teller(b"client "), limits, tls, lambda reason, _: complaints.append(reason)
    )
    entrance.open(sock)
    try:
        async with asyncio.timeout(TOO_LONG_S):
            yield sock.getsockname()[1], entrance, complaints
    finally:
        entrance.close()


async def dial(port: int, tls: ssl.SSLContext | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port, ssl=tls)


def test_the_first_byte_inside_tls_tells_a_node_from_a_client(run: Run, papers: Papers) -> None:
    async def story() -> None:
        tls = client_tls(str(papers.ca))
        async with door(papers) as (port, entrance, complaints):
            for said, heard in ((PREAMBLE, b"node " + PREAMBLE), (b"{}", b"client {}")):
                reader, writer = await dial(port, tls)
                assert entrance.silent == 1
                writer.write(said)
                assert await reader.readexactly(len(heard)) == heard
                assert entrance.silent == 0
                writer.close()
            assert complaints == []

    run(story())


def test_what_is_no_tls_is_closed_and_complained_about(run: Run, papers: Papers) -> None:
    async def story() -> None:
        async with door(papers) as (port, entrance, complaints):
            for said in (b'{"type":"STATUS"}\n', PREAMBLE + HELLO, b"\x16\x03\x01" + b"x" * 500):
                reader, writer = await dial(port, None)
                writer.write(said)
                with contextlib.suppress(ConnectionResetError):
                    assert b"type" not in await reader.read()
                writer.close()
            while len(complaints) < 3 or entrance.silent:
                await asyncio.sleep(0.001)
            assert all(text.startswith("no TLS: ") for text in complaints)

    run(story())


def test_connections_that_never_agree_on_tls_are_bounded_and_dropped(run: Run, papers: Papers) -> None:
    async def story() -> None:
        async with door(papers, Limits(max_silent=3)) as (port, entrance, _):
            silent = [await dial(port, None) for _ in range(5)]
            while entrance.silent < 3:
                await asyncio.sleep(0.001)
            reader, writer = await dial(port, client_tls(str(papers.ca)))
            writer.write(b"x")
            assert await reader.readexactly(8) == b"client x"
            assert entrance.silent <= 3
            for _, each in (*silent, (reader, writer)):
                each.close()
        async with door(papers, Limits(first_line_ms=20)) as (port, entrance, _):
            reader, writer = await dial(port, None)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            while entrance.silent:
                await asyncio.sleep(0.001)

    run(story())


# ---- links --------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def linked(one: Papers | None, two: Papers | None, **said: Any) -> AsyncIterator[tuple[End, End]]:
    """Ends 1 and 2; None: without TLS. said: of end 2."""
    ports = free_ports(2)
    first = End(1, ports[0], tls=node_tls(one.of_node) if one else None)
    second = End(2, ports[1], tls=node_tls(two.of_node) if two else None, **said)
    try:
        await second.open(ports[0])
        await first.open(ports[1])
        yield first, second
    finally:
        await first.close()
        await second.close()


def test_links_come_up_over_tls_and_frames_arrive(run: Run, authority: Authority) -> None:
    async def story() -> None:
        async with linked(authority.papers("one"), authority.papers("two")) as (one, two):
            await one.told(UP_2)
            await two.told(UP_1)
            await two.told(IN_1)
            frames = [Join(START._replace(seq_no=n)) for n in range(100)]
            one.links.send(2, [b"".join(b"".join(encode_frame(frame)) for frame in frames)])
            await two.told(frames[-1])
            assert [message for _, message in two.inputs if isinstance(message, Join)] == frames

    run(story())


def test_over_tls_the_secret_is_still_asked_for(run: Run, papers: Papers) -> None:
    async def story() -> None:
        async with linked(papers, papers, secret="other") as (one, _):
            await one.reported(PeerRefused(2, "it does not know this cluster's secret"))
            assert not one.inputs

    run(story())


def test_a_node_of_another_authority_or_without_tls_stays_outside(run: Run, papers: Papers, tmp_path: Path) -> None:
    async def story() -> None:
        for other in (Authority(tmp_path).papers("other"), None):
            async with linked(papers, other) as (one, two):
                while not (one.events and two.events):
                    await asyncio.sleep(0.001)
                assert not one.inputs and not two.inputs

    run(story())


def test_who_shows_no_certificate_is_no_node(run: Run, papers: Papers) -> None:
    async def story() -> None:
        one = End(1, free_ports(1)[0], tls=node_tls(papers.of_node))
        await one.open(free_ports(1)[0])
        reader, writer = await dial(one.port, client_tls(str(papers.ca)))
        writer.write(PREAMBLE + HELLO)
        [refusal] = FrameDecoder().feed(await reader.read())
        assert isinstance(refusal, PeerRefusal) and refusal.reason.startswith("it shows no certificate")
        assert not one.inputs
        writer.close()
        await one.close()

    run(story())


class Between:
    """A man in the middle: takes what one end dials, dials the other, passes every byte on in both directions."""

    def __init__(self, target: int, own: Papers | None) -> None:
        self._target = target
        self._tls = node_tls(own.of_node) if own is not None else None
        self.passed = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, port: int) -> None:
        accepting = self._tls.accepting if self._tls is not None else None
        self._server = await asyncio.start_server(self._take, "127.0.0.1", port, ssl=accepting)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far = await dial(self._target, self._tls.dialling if self._tls is not None else None)
        for source, to in ((reader, far[1]), (far[0], writer)):
            self._tasks.add(asyncio.ensure_future(self._pass_on(source, to)))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                self.passed += len(data)
                writer.write(data)
        writer.close()

    async def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.mark.parametrize("with_tls", [True, False])
def test_nobody_stands_between_two_nodes_where_there_is_tls(run: Run, authority: Authority, with_tls: bool) -> None:
    """He has a certificate that counts, and passes on every byte. Without TLS there is nothing to know him by."""

    async def story() -> None:
        of_one, of_two, of_him = (authority.papers(name) if with_tls else None for name in ("one", "two", "him"))
        ports = free_ports(3)
        one = End(1, ports[0], tls=node_tls(of_one.of_node) if of_one else None)
        two = End(2, ports[1], tls=node_tls(of_two.of_node) if of_two else None)
        man = Between(ports[1], of_him)
        await man.open(ports[2])
        await two.open(free_ports(1)[0])
        await one.open(ports[2])
        if with_tls:
            await one.reported(PeerRefused(2, "it does not know this cluster's secret"))
            assert not one.inputs and not two.inputs
        else:
            await one.told(UP_2)
        assert man.passed > 100
        await one.close()
        await two.close()
        await man.close()

    run(story())


def test_a_recorded_link_is_worthless_when_it_is_played_again(run: Run) -> None:
    async def story() -> None:
        ports = free_ports(3)
        one, two = End(1, ports[0]), End(2, ports[1])
        heard: list[bytes] = []

        async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far = await dial(ports[1], None)
            while (data := await reader.read(1 << 16)) and len(b"".join(heard)) < 1000:
                heard.append(data)
                far.write(data)
                if len(heard) <= 2:  # PEER_HELLO and PEER_PROOF: each gets an answer.
                    writer.write(await far_reader.read(1 << 16))
            far.close()
            writer.close()

        server = await asyncio.start_server(record, "127.0.0.1", ports[2])
        await two.open(free_ports(1)[0])
        await one.open(ports[2])
        await one.told(UP_2)
        await two.told(IN_1)
        one.links.send(2, encode_frame(Join(START)))
        await two.told(Join(START))
        await one.close()
        server.close()
        two.inputs.clear()
        reader, writer = await dial(ports[1], None)
        writer.write(b"".join(heard))
        answers = list(FrameDecoder().feed(await reader.read()))
        assert isinstance(answers[-1], PeerRefusal) and "secret" in answers[-1].reason
        assert not [message for _, message in two.inputs if isinstance(message, Join)]
        assert any(isinstance(event, BadInput) for event in two.events)
        writer.close()
        await two.close()

    run(story())


def test_a_greeting_of_the_node_itself_is_not_taken_back(run: Run) -> None:
    async def story() -> None:
        one = End(1, free_ports(1)[0])
        await one.open(free_ports(1)[0])
        own = encode_frame(PeerHello(VERSION, "chat", 1, "identity-1", False, "0" * 32, (1, 2)))[0]
        reader, writer = await dial(one.port, None)
        writer.write(PREAMBLE + own)
        [refusal] = FrameDecoder().feed(await reader.read())
        assert refusal == PeerRefusal("node id 1, allowed 1 or above, not that of this node")
        writer.close()
        await one.close()

    run(story())


def test_a_client_of_lines_speaks_through_tls(run: Run, papers: Papers, tmp_path: Path) -> None:
    async def story() -> None:
        async with running(tmp_path, single(tls=papers.of_node)) as member:
            chatter = Chatter(*await dial(member.port, client_tls(str(papers.ca))))
            chatter.say({"type": "STATUS"})
            assert (await chatter.hear())["type"] == "STATUS_IS"
            chatter.close()

    run(story())
