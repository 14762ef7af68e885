"""A node's configuration: the keys of its YAML file and their defaults.

Times are milliseconds (`_ms`), sizes bytes (`_bytes`). Errors in the file name line, column and key. Unknown keys are
refused, so that a misspelt key is not ignored.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct
from msgspec.structs import replace

from nodeproc.core.events import Level
from nodeproc.core.messages import NodeId
from nodeproc.core.recovered import MAX_MEMBERS as MAX_MEMBERS
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
"""Maximum number of bytes that a message needs in a batch besides its payload."""
LEAST_SECRET = 16
"""Minimum length in characters. A secret must withstand guessing offline (nodeproc.net.handshake)."""
MAX_TOKEN = 256
"""Characters of a client token or an admin token, which must fit the first line of a connection."""


class PeerAddress(Struct, frozen=True, forbid_unknown_fields=True):
    """The address on which another member listens."""

    id: Id
    port: Port
    host: Text = "127.0.0.1"


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """Limits on what others can make a node store, wait for or write. docs/operations.md says what happens beyond each.

    max_clients: open client connections.
    max_per_address: of these, connections from one address; also the silent ones from one address. Nodes do not count.
    new_sessions: sessions in which one address may send a first message within ten minutes; far below max_sessions, so
        that no address can push the sessions of others out of the table (S3).
    max_silent: connections that have not sent a byte yet.
    max_unproven: connections that began a node's handshake and have not proven anything yet.
    first_line_ms: time for a connection's first byte, and then for a client's first line.
    handshake_ms: time to dial a node, and for its handshake.
    idle_ms: time after which a client is disconnected that sends nothing and waits for nothing (at the latest after
        twice that); 0: never.
    complaints_per_s: average rate of events about bad input, refused nodes and clients that connect and disconnect, for
        one address; ten times as many for all together. The events of 20 s may come at once. Events above the rate are
        counted, not written.
    events_max_bytes: size of events.jsonl; then the next file is begun, and three full ones are kept.
    max_line_bytes: a client's line; more than six times max_payload_bytes, because characters may be escaped.
    max_line_messages: messages of one CHAT.
    max_payload_bytes: a message, UTF-8.
    max_frame_bytes: header, and body, of a frame from a proven node; the same on all nodes.
    unfinished_bytes: incomplete lines, all clients together.
    intake_window_bytes: accepted from clients and not yet delivered on this node (S7).
    subscriber_buffer_bytes: waiting to be sent to one client.
    link_buffer_bytes: waiting to be sent to one peer.
    segment_bytes: a file of the write-ahead log.
    scrub_bytes_per_s: speed at which delivered data is read in the background to find damage (K6); 0: not at all.
    scrub_rest_ms: pause between two such passes.

    CoreConfig describes the others.
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
    """The configuration of one node.

    host, port: the address on which it listens for peers and clients; port 0 chooses a free one (for tests).
    priority: part of the node's rank; the default is its id.
    founders: the ids of the nodes that founded the cluster, where `peers` has other members than those. A node that is
        added to a running cluster needs it; founders may have it to know the addresses of nodes that were added.
    data_dir: relative to the working directory.
    join_timeout_ms: how long the members of a starting cluster wait for each other before they elect (M1).
    durability: fsync waits for the disk. os survives killed processes, but a node whose machine loses power has
        forgotten acknowledgements and its vote, and needs --rebuild.
    secret: the same on all nodes; both ends of a link prove that they know it.
    client_token: required of clients; "": none is required.
    admin_token: required of the requests that change the members or transfer the leadership; "": such requests are
        accepted from this machine only.
    secret_variable, client_token_variable, admin_token_variable: name of the environment variable that holds the secret
        or the token, where the file itself does not. The variable must be set; an empty value means none.
    tls: the port accepts only TLS, from nodes and clients.
    allow_open: listen on addresses other than loopback without a secret and without a client_token.
    allow_any_client: listen on addresses other than loopback without a client_token.
    """

    node_id: Id
    port: OwnPort
    data_dir: Folder
    host: Text = "127.0.0.1"
    peers: tuple[PeerAddress, ...] = ()
    founders: tuple[Id, ...] = ()
    priority: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    heartbeat_interval_ms: Milliseconds = 100
    election_timeout_ms: Milliseconds = 500
    answer_timeout_ms: Milliseconds = 150
    coordinator_timeout_ms: Milliseconds = 500
    join_timeout_ms: Annotated[float, Meta(ge=0, le=3_600_000)] = 500
    durability: Literal["fsync", "os"] = "fsync"
    cluster_id: Text = "chat"
    secret: str = ""
    client_token: Annotated[str, Meta(max_length=MAX_TOKEN)] = ""
    admin_token: Annotated[str, Meta(max_length=MAX_TOKEN)] = ""
    secret_variable: Text | None = None
    client_token_variable: Text | None = None
    admin_token_variable: Text | None = None
    tls: TlsFiles | None = None
    allow_open: bool = False
    allow_any_client: bool = False
    log_level: Level = "INFO"
    limits: Limits = Limits()

    @property
    def members(self) -> tuple[NodeId, ...]:
        """The ids of the founders of the cluster, ascending: all members, until the list is changed. Rule: M5, G1."""
        return tuple(sorted(self.founders or (self.node_id, *(peer.id for peer in self.peers))))

    def core(self) -> CoreConfig:
        """The core's part of the settings, in its units."""
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
    """Read and check the configuration of one node.

    Args:
        text: the file's content, if the caller has read it already.

    Raises:
        ConfigError: with file, line, column and key.
    """
    document = parse(path, text=text)
    config = _with_variables(document, document.convert(NodeConfig))
    _check_members(document, config)
    _check_founders(document, config)
    _check_times(document, config)
    check_limits(document, config.limits)
    if config.tls is not None:
        _check_tls(document, config.tls)
    if not config.allow_open and not is_loopback(config.host):
        _check_open(document, config)
    return config


def _with_variables(document: Document, config: NodeConfig) -> NodeConfig:
    """Replace the secret and the tokens by the values of the environment variables that the file names."""
    found: dict[str, str] = {}
    names = (config.secret_variable, config.client_token_variable, config.admin_token_variable)
    for key, name in zip(("secret", "client_token", "admin_token"), names, strict=True):
        if name is None:
            continue
        place = (f"{key}_variable",)
        if getattr(config, key):
            raise document.error(place, f"found beside {key}, allowed one of the two")
        if name not in os.environ:
            raise document.error(place, f"found {name}, which is not set in the environment")
        found[key] = os.environ[name]
        if key != "secret" and len(found[key]) > MAX_TOKEN:
            raise document.error(place, f"found {len(found[key])} characters in {name}, allowed 0..{MAX_TOKEN}")
    return replace(config, **found)


def _check_tls(document: Document, files: TlsFiles) -> None:
    """Check that the TLS files exist and match, so that a mistake shows at the start."""
    try:
        node_tls(files)
    except TlsProblem as problem:
        raise document.error(("tls", problem.key), str(problem)) from None


def _check_open(document: Document, config: NodeConfig) -> None:
    """Require a secret and a client token if the port can be reached from other machines."""
    here = f"found {config.host!r}, allowed 127.0.0.1, ::1 or localhost without"
    if not config.secret:
        raise document.error(("host",), f"{here} a secret (set secret, or allow_open: true)")
    certified = config.tls is not None and config.tls.clients == "certificate"
    if not config.client_token and not config.allow_any_client and not certified:
        raise document.error(("host",), f"{here} a client_token (set client_token, or allow_any_client: true)")
    words = {"secret": config.secret, "client_token": config.client_token, "admin_token": config.admin_token}
    for key, word in words.items():
        if word and len(word) < LEAST_SECRET:
            raise document.error(
                (key,), f"found {len(word)} characters, allowed {LEAST_SECRET} or more on a port that others can reach"
            )


def _check_members(document: Document, config: NodeConfig) -> None:
    """Check that each member is listed once, with an address of its own."""
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


def _check_founders(document: Document, config: NodeConfig) -> None:
    """Check the founders where the configuration names them. Rule: G1."""
    founders = config.founders
    if len(set(founders)) < len(founders) or len(founders) > MAX_MEMBERS:
        raise document.error(("founders",), f"found {list(founders)}, allowed up to {MAX_MEMBERS} ids, each once")
    if founders and config.node_id not in founders and not config.peers:
        raise document.error(("peers",), "found none beside founders, allowed 1 or more: the present members")


def _check_times(document: Document, config: NodeConfig) -> None:
    """Check that a leader sends at least two heartbeats within the time after which it is suspected."""
    least = 2 * config.heartbeat_interval_ms
    if config.election_timeout_ms < least:
        key = "election_timeout_ms" if "election_timeout_ms" in document.data else "heartbeat_interval_ms"
        raise document.error(
            (key,),
            f"found an election_timeout_ms of {config.election_timeout_ms:g}, "
            f"allowed {least:g} or more: twice heartbeat_interval_ms",
        )


def check_limits(document: Document, limits: Limits, place: Place = ("limits",)) -> None:
    """Check that the largest message fits a line, even fully escaped (six bytes a byte), and the largest batch a frame.

    Args:
        place: the place of the limits in the document, if it has any.
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


def is_loopback(host: str) -> bool:
    """Return whether this host is the machine itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
