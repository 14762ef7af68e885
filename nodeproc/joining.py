"""Start a new node of a running cluster: python -m nodeproc join HOST:PORT --node-id 4 --port 5004 --data-dir DIR

The command asks a member for the founders and the present members, writes the new node's configuration file, and runs
the node. `members add` makes it a member, before or after this start.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from nodeproc import flags
from nodeproc.client import Address, status
from nodeproc.config import load
from nodeproc.core.changes import OLDER
from nodeproc.core.messages import NodeId
from nodeproc.errors import ConfigError, Unreachable
from nodeproc.importing import usage_name
from nodeproc.lines import Status
from nodeproc.yamlfile import parse

OF_EACH_NODE = ("node_id", "host", "port", "peers", "founders", "data_dir", "priority")
"""Keys that are not taken over from another node's file."""
ASK_S = 5.0


def prepare(arguments: Sequence[str]) -> list[str]:
    """Write the configuration file; return the arguments with which the node is to be run.

    Raises:
        ConfigError: the member does not answer, the id can't be used, or a file can't be used.
    """
    parser = _parser()
    options, others = parser.parse_known_args(arguments)
    path: Path = options.config or Path(f"node{options.node_id}.yml")
    if path.exists():
        raise ConfigError(f"{path} exists already: start the node with --config {path}")
    token, tls = flags.token_of(options, parser), flags.tls_of(options, parser)
    host, port = options.member
    try:
        seen = asyncio.run(status(host, port, ASK_S, token, tls))
    except Unreachable as error:
        raise ConfigError(f"join: {error}") from None
    settings = settings_of(seen, options.member, options.node_id)
    settings |= {"host": options.host, "port": options.port, "data_dir": options.data_dir}
    if options.like is not None:
        load(options.like)
        taken = parse(options.like).data
        settings |= {key: value for key, value in taken.items() if key not in OF_EACH_NODE}
    text = yaml.safe_dump(settings, sort_keys=False)
    load(path, text=text)
    try:
        with path.open("x", encoding="utf-8") as file:
            path.chmod(0o600)  # It may contain secrets.
            file.write(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    return ["--config", str(path), *others]


def settings_of(seen: Status, member: Address, newcomer: NodeId) -> dict[str, Any]:
    """Return the part of the configuration that follows from a member's STATUS. Rule: G1.

    Args:
        member: where that member answers.

    Raises:
        ConfigError: the member runs a version without lists, or the newcomer's id can't be used.
    """
    members = seen.members
    if members is None:
        raise ConfigError(f"join: node_{seen.node} {OLDER}")
    if newcomer in members.removed:
        raise ConfigError(f"--node-id {newcomer}: that node was removed, and no id is used again; give another id")
    if newcomer in members.founders:
        founders = ", ".join(map(str, members.founders))
        raise ConfigError(f"--node-id {newcomer}: allowed any but those of the founders: {founders}")
    addresses = {each.node: (each.host, each.port) for each in members.addresses} | {seen.node: member}
    present = [node for node in sorted(members.voters + members.learners) if node != newcomer]
    peers = [
        {"id": node, "host": addresses[node][0], "port": addresses[node][1]} for node in present if node in addresses
    ]
    return {"node_id": newcomer, "founders": list(members.founders), "peers": peers}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=usage_name("nodeproc", "node") + " join",
        description="Write the configuration of a new node of a running cluster, and run the node.",
        epilog="All other options are those of a node, such as --quiet.",
    )
    parser.add_argument("member", type=flags.address, metavar="HOST:PORT", help="a member of the cluster")
    parser.add_argument(
        "--node-id", type=flags.node_id, required=True, metavar="N", help="an id that this cluster has never used"
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address on which it listens (default %(default)s)")
    parser.add_argument("--port", type=int, required=True, help="the port on which it listens")
    parser.add_argument("--data-dir", required=True, metavar="DIR", help="its data directory, empty or new")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the file to write (default: nodeN.yml)")
    parser.add_argument(
        "--like",
        type=Path,
        metavar="FILE",
        help="a member's configuration, whose secret, times, limits … are taken over",
    )
    flags.add_token_flag(parser)
    flags.add_tls_flags(parser)
    return parser
