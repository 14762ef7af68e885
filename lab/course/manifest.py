"""The content of meta.json, and the configuration of the nodes."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import psutil

from lab.plan.scenario import Cluster as ClusterPlan
from nodeproc.client import Address
from nodeproc.core.messages import NodeId

HOST = "127.0.0.1"
JOIN_TIMEOUT_MS = 10_000.0
"""For this long, nodes that are started together wait for each other before the first election. A busy machine, which
starts one of them late, thus elects the same first leader as an idle machine."""


def surroundings(plan: ClusterPlan, *, is_native: bool) -> dict[str, Any]:
    """Return the fields of Meta that say with what and where a run was carried out.

    is_native: the nodes' code was compiled (nodeproc.native).
    """
    return {
        "versions": versions(),
        "interpreter": interpreter(is_native=is_native),
        "host": host(),
        "cluster": _resolved(plan),
    }


def node_settings(
    plan: ClusterPlan,
    node: NodeId,
    address: Address,
    peers: Mapping[NodeId, Address],
    data_dir: str,
    cluster_id: str,
    secret: str,
) -> dict[str, Any]:
    """Return the content of one node's configuration file.

    Args:
        address: where the node listens.
        peers: id of each other founder -> address at which this node reaches it.
    """
    settings: dict[str, Any] = {
        "node_id": node,
        "host": address[0],
        "port": address[1],
        "peers": [{"id": peer, "host": host, "port": port} for peer, (host, port) in sorted(peers.items())],
        "data_dir": data_dir,
        "cluster_id": cluster_id,
        "secret": secret,
        "durability": plan.durability,
        "log_level": plan.log_level,
    }
    if plan.founders is not None and node > plan.founders:
        settings["founders"] = list(plan.founder_ids)
    if node in plan.priorities:
        settings["priority"] = plan.priorities[node]
    times = ("heartbeat_interval", "election_timeout", "answer_timeout", "coordinator_timeout", "join_timeout")
    for name in times:
        seconds = getattr(plan, name)
        if seconds is not None:
            settings[f"{name}_ms"] = round(seconds * 1000, 6)
    if plan.join_timeout is None and plan.started_ids == plan.founder_ids:
        settings["join_timeout_ms"] = JOIN_TIMEOUT_MS
    if plan.client_token:
        settings["client_token"] = plan.client_token
    # The judges read one file of events, so that it must not be rotated during a run.
    limits = ({"events_max_bytes": 1 << 50} if not plan.is_foreign else {}) | dict(plan.limits)
    if limits:
        settings["limits"] = limits
    return settings


def _resolved(plan: ClusterPlan) -> dict[str, Any]:
    """Return the settings of the cluster for meta.json."""
    settings = node_settings(plan, 0, (HOST, 0), {}, "", "", "")
    settings |= {"command": plan.command, "engine": plan.engine or None, "engine_options": plan.engine_options or None}
    settings["network"] = None if plan.network == "proxy" else plan.network
    shown = (
        "command",
        "engine",
        "engine_options",
        "network",
        "durability",
        "log_level",
        "limits",
        "join_timeout_ms",
        "heartbeat_interval_ms",
        "election_timeout_ms",
    )
    return {"nodes": plan.nodes} | {name: settings[name] for name in shown if settings.get(name) is not None}


def interpreter(*, is_native: bool) -> str:
    """Return what ran the nodes' code, such as `CPython 3.11.7` or, compiled for it, `CPython 3.11.7, native`."""
    name = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{name}, native" if is_native else name


def versions() -> dict[str, str]:
    """Return the versions of the installed libraries that affect measurements."""
    found = {}
    for name in ("msgspec", "uvloop", "psutil", "PyYAML"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def host() -> dict[str, Any]:
    """Return facts about this machine."""
    return {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "cpus": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "byteorder": sys.byteorder,
    }
