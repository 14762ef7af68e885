"""A node's configuration: what the YAML file may say, and what every default is.

Times are milliseconds (`_ms`), sizes bytes (`_bytes`). The file's errors name line, column and key; unknown keys are
refused, so that a misspelt timeout is not silently the default.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from nodeproc.core.events import Level
from nodeproc.core.messages import NodeId
from nodeproc.core.recovered import CoreConfig
from nodeproc.tls import TlsFiles, TlsProblem, node_tls
from nodeproc.yamlfile import Document, Place, parse

Id: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Port: TypeAlias = Annotated[int, Meta(ge=1, le=65535)]
OwnPort: TypeAlias = Annotated[int, Meta(ge=0, le=65535)]
Milliseconds: TypeAlias = Annotated[float, Meta(ge=1, le=3_600_000)]
Text: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256)]
Folder: TypeAlias = Annotated[str, Meta(min_length=1, max_length=4096)]
Count: TypeAlias = Annotated[int, Meta(ge=1, le=10_000_000)]

RECORD_OVERHEAD_BYTES = 256
"""More than a message costs in a batch beside its payload."""
LEAST_SECRET = 16
"""Characters. Whoever can reach a node gets a keyed hash at which it can guess in peace (nodeproc.net.handshake)."""
MAX_MEMBERS = 9
"""Members of a cluster, this node included."""


class PeerAddress(Struct, frozen=True, forbid_unknown_fields=True):
    """Where another member listens."""

    id: Id
    port: Port
    host: Text = "127.0.0.1"


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """Every bound of what others can make a node hold, wait for or write.

    max_clients: open client connections.
    max_per_address: of them, those from one address; and as many silent ones from there. Nodes don't count.
    new_sessions: sessions in which one address may send a first message within ten minutes; a small part of
        max_sessions, so that no single address drops everybody else's sessions from the table (S3).
    max_silent: connections that have not sent a byte yet; for one more the oldest goes.
    max_unproven: connections that opened like a node's and are not proven yet; for one more the oldest goes.
    first_line_ms: for a connection's first byte, and for a client's first line behind it.
    handshake_ms: for a node to prove itself, and to dial one.
    idle_ms: a client that says nothing for so long, and waits for nothing, is left (at the latest after twice that); 0:
        never.
    complaints_per_s: events about bad input, refused nodes and clients that come and go, of one address, and ten times
        as many of all; those of 20 seconds may come at once. Those above it are only counted.
    events_max_bytes: of events.jsonl; past it a new one is begun, and the three before it are kept.
    max_line_bytes: longest line of a client; more than six times max_payload_bytes, for escaped characters.
    max_line_messages: messages of one CHAT.
    max_payload_bytes: longest message, UTF-8.
    max_frame_bytes: longest header, and longest body, of a frame from a proven node; the same on all nodes.
    unfinished_bytes: of lines without their end, all clients together; past it the one with most of them is closed.
    intake_window_bytes: taken from clients and not yet delivered here; past it clients are not read (S7).
    subscriber_buffer_bytes: waiting to be sent to one subscriber; past it that one is served from disk.
    link_buffer_bytes: waiting to be sent to one peer; past it the link is reset.
    segment_bytes: one file of the write-ahead log.
    scrub_bytes_per_s: of what is delivered, read again in the background to find damage (K6); 0: none.
    scrub_rest_ms: from the end of one such pass to the next.
    The rest: see CoreConfig.
    """

    max_clients: Annotated[int, Meta(ge=0, le=100_000)] = 1024
    max_per_address: Annotated[int, Meta(ge=1, le=100_000)] = 512
    max_silent: Annotated[int, Meta(ge=1, le=100_000)] = 1024
    max_unproven: Annotated[int, Meta(ge=1, le=100_000)] = 256
    first_line_ms: Milliseconds = 60_000
    handshake_ms: Milliseconds = 2000
    idle_ms: Annotated[float, Meta(ge=0, le=1e9)] = 3_600_000
    complaints_per_s: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    events_max_bytes: Annotated[int, Meta(ge=4096, le=1 << 50)] = 64 << 20
    max_line_bytes: Annotated[int, Meta(ge=1024, le=4 << 20)] = 1 << 20
    max_line_messages: Annotated[int, Meta(ge=1, le=16_384)] = 4096
    max_payload_bytes: Annotated[int, Meta(ge=1, le=512 << 10)] = 64 << 10
    max_frame_bytes: Annotated[int, Meta(ge=1 << 20, le=32 << 20)] = 32 << 20
    unfinished_bytes: Annotated[int, Meta(ge=1024, le=1 << 32)] = 64 << 20
    intake_window_bytes: Annotated[int, Meta(ge=1024, le=1 << 30)] = 4 << 20
    subscriber_buffer_bytes: Annotated[int, Meta(ge=1024, le=1 << 28)] = 1 << 20
    link_buffer_bytes: Annotated[int, Meta(ge=1 << 20, le=1 << 30)] = 32 << 20
    segment_bytes: Annotated[int, Meta(ge=4096, le=1 << 30)] = 16 << 20
    scrub_bytes_per_s: Annotated[int, Meta(ge=0, le=1 << 30)] = 1 << 20
    scrub_rest_ms: Annotated[float, Meta(ge=100, le=1e9)] = 600_000
    batch_least_messages: Annotated[int, Meta(ge=1, le=65_536)] = 256
    batch_max_messages: Annotated[int, Meta(ge=1, le=65_536)] = 4096
    batch_max_bytes: Annotated[int, Meta(ge=1, le=4 << 20)] = 1 << 20
    inflight_max_bytes: Annotated[int, Meta(ge=1024, le=1 << 28)] = 8 << 20
    fetch_max_bytes: Annotated[int, Meta(ge=1024, le=8 << 20)] = 128 << 10
    buffer_max_bytes: Annotated[int, Meta(ge=1024, le=1 << 28)] = 8 << 20
    max_sessions: Count = 100_000
    new_sessions: Count = 5000


class NodeConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One node, as its YAML file says.

    host, port: where it listens for peers and clients; port 0 takes a free one (for a cluster of one, in tests).
    priority: breaks ties of the election; the id where it is not given.
    data_dir: relative to the working directory.
    join_timeout_ms: how long the members of a cluster that starts wait for all of them before they elect (M1).
    durability: fsync waits for the disk; os survives killed processes, but a node whose machine loses power has
        forgotten acknowledgements and its vote, and needs --rebuild.
    secret: both ends of a link prove that they know it; the same on all nodes.
    client_token: what clients must show; "": nothing.
    tls: the port speaks TLS only, to nodes and clients.
    allow_open: listen beyond this machine without a secret and without a client_token.
    allow_any_client: listen beyond this machine without a client_token.
    """

    node_id: Id
    port: OwnPort
    data_dir: Folder
    host: Text = "127.0.0.1"
    peers: tuple[PeerAddress, ...] = ()
    priority: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    heartbeat_interval_ms: Milliseconds = 100
    election_timeout_ms: Milliseconds = 500
    answer_timeout_ms: Milliseconds = 150
    coordinator_timeout_ms: Milliseconds = 500
    join_timeout_ms: Annotated[float, Meta(ge=0, le=3_600_000)] = 500
    durability: Literal["fsync", "os"] = "fsync"
    cluster_id: Text = "chat"
    secret: str = ""
    client_token: Annotated[str, Meta(max_length=256)] = ""
    tls: TlsFiles | None = None
    allow_open: bool = False
    allow_any_client: bool = False
    log_level: Level = "INFO"
    limits: Limits = Limits()

    @property
    def members(self) -> tuple[NodeId, ...]:
        """All ids, ascending."""
        return tuple(sorted([self.node_id, *(peer.id for peer in self.peers)]))

    def core(self) -> CoreConfig:
        """The part that the core needs, in its units."""
        limits = self.limits
        return CoreConfig(
            node_id=self.node_id,
            priority=self.node_id if self.priority is None else self.priority,
            members=self.members,
            heartbeat_interval=self.heartbeat_interval_ms / 1000,
            election_timeout=self.election_timeout_ms / 1000,
            answer_timeout=self.answer_timeout_ms / 1000,
            coordinator_timeout=self.coordinator_timeout_ms / 1000,
            join_timeout=self.join_timeout_ms / 1000,
            batch_least_messages=limits.batch_least_messages,
            batch_max_messages=limits.batch_max_messages,
            batch_max_bytes=limits.batch_max_bytes,
            inflight_max_bytes=limits.inflight_max_bytes,
            fetch_max_bytes=limits.fetch_max_bytes,
            buffer_max_bytes=limits.buffer_max_bytes,
            max_sessions=limits.max_sessions,
        )


def load(path: Path | str, *, text: str | None = None) -> NodeConfig:
    """Read and check one node's file.

    Args:
        text: the file's content where the caller has it already.

    Raises:
        ConfigError: with file, line, column and key.
    """
    document = parse(path, text=text)
    config = document.convert(NodeConfig)
    _check_members(document, config)
    _check_times(document, config)
    check_limits(document, config.limits)
    if config.tls is not None:
        _check_tls(document, config.tls)
    if not config.allow_open and not _is_loopback(config.host):
        _check_open(document, config)
    return config


def _check_tls(document: Document, files: TlsFiles) -> None:
    """The files are there and fit each other, now and not when the first connection comes."""
    try:
        node_tls(files)
    except TlsProblem as problem:
        raise document.error(("tls", problem.key), str(problem)) from None


def _check_open(document: Document, config: NodeConfig) -> None:
    """What others than this machine's users can reach asks for what they can't guess."""
    here = f"found {config.host!r}, allowed 127.0.0.1, ::1 or localhost without"
    if not config.secret:
        raise document.error(("host",), f"{here} a secret (set secret, or allow_open: true)")
    certified = config.tls is not None and config.tls.clients == "certificate"
    if not config.client_token and not config.allow_any_client and not certified:
        raise document.error(("host",), f"{here} a client_token (set client_token, or allow_any_client: true)")
    for key, word in (("secret", config.secret), ("client_token", config.client_token)):
        if word and len(word) < LEAST_SECRET:
            raise document.error(
                (key,), f"found {len(word)} characters, allowed {LEAST_SECRET} or more on a port that others can reach"
            )


def _check_members(document: Document, config: NodeConfig) -> None:
    """Every member once, each at an address of its own."""
    if len(config.peers) >= MAX_MEMBERS:
        raise document.error(("peers",), f"found {len(config.peers)} peers, allowed 0..{MAX_MEMBERS - 1}")
    ids: dict[Any, str] = {config.node_id: "node_id"}
    addresses: dict[Any, str] = {(config.host, config.port): "host and port"}
    for at, peer in enumerate(config.peers):
        if peer.id in ids:
            raise document.error(("peers", at, "id"), f"found {peer.id}, which is {ids[peer.id]} already")
        address = (peer.host, peer.port)
        if address in addresses:
            raise document.error(
                ("peers", at, "port"), f"found {peer.host}:{peer.port}, which is {addresses[address]} already"
            )
        ids[peer.id] = f"peers[{at}].id"
        addresses[address] = f"that of peers[{at}]"
    if config.peers and config.port == 0:
        raise document.error(("port",), "found 0 (any free port), allowed 1..65535 for a node with peers")


def _check_times(document: Document, config: NodeConfig) -> None:
    """A leader must get at least two heartbeats through before it is suspected."""
    least = 2 * config.heartbeat_interval_ms
    if config.election_timeout_ms < least:
        key = "election_timeout_ms" if "election_timeout_ms" in document.data else "heartbeat_interval_ms"
        raise document.error(
            (key,),
            f"found an election_timeout_ms of {config.election_timeout_ms:g}, "
            f"allowed {least:g} or more: twice heartbeat_interval_ms",
        )


def check_limits(document: Document, limits: Limits, place: Place = ("limits",)) -> None:
    """However it is escaped (six bytes for one), the largest message must fit a line, and the largest batch a frame.

    Args:
        place: where the limits stand in the document, if they do.
    """
    least = 6 * limits.max_payload_bytes + 1024
    if limits.max_line_bytes < least:
        given = document.value(place)
        key = "max_line_bytes" if "max_line_bytes" in given else "max_payload_bytes"
        raise document.error(
            (*place, key),
            f"found a max_line_bytes of {limits.max_line_bytes}, "
            f"allowed {least} or more: six times max_payload_bytes and 1024",
        )
    least = max(
        6 * limits.batch_max_bytes + RECORD_OVERHEAD_BYTES * limits.batch_max_messages,
        limits.fetch_max_bytes,
        limits.max_line_bytes + 1024,
    )
    if limits.max_frame_bytes < least:
        raise document.error(
            (*place, "max_frame_bytes") if "max_frame_bytes" in document.value(place) else place,
            f"found a max_frame_bytes of {limits.max_frame_bytes}, allowed {least} or more: "
            f"six times batch_max_bytes and {RECORD_OVERHEAD_BYTES} for each of batch_max_messages, "
            "fetch_max_bytes, max_line_bytes and 1024",
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
