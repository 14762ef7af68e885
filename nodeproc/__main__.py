"""Run one node: python -m nodeproc --config configs/node1.yml (or: python3 run_lab.py node 1)

Other commands:
    python -m nodeproc members --help     show and change the members of a running cluster
    python -m nodeproc join --help        write the configuration of a new node of a running cluster, and run the node
    python -m nodeproc verify DATA_DIR    report damage in the data of a node that is down
    python -m nodeproc recover --help     make a new cluster from what is left of one that has lost its majority

Exit codes:
    0   stopped by SIGTERM or SIGINT; verify: no damage
    2   configuration: the file, a flag, the port or the data directory can't be used
    3   corruption: durable data differs from what was written; nothing was changed
    4   a write or fdatasync failed, or a read at the start; a restart continues once the disk works again
    70  internal error, with its traceback on stderr
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import importlib
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from nodeproc.importing import importing, usage_name

with importing("nodeproc", "python3 run_lab.py node 1", interrupted=0):
    import msgspec

    from nodeproc import native

    native.activate()

    from nodeproc import joining, members, recover
    from nodeproc.config import NodeConfig, load
    from nodeproc.core.events import NothingSynced
    from nodeproc.core.node import Node
    from nodeproc.disk.files import RealFiles
    from nodeproc.disk.storage import Storage
    from nodeproc.disk.verify import verify
    from nodeproc.disk.wal import REBUILD_ADVICE
    from nodeproc.errors import (
        EXIT_CLEAN,
        EXIT_CONFIG,
        EXIT_CORRUPTION,
        EXIT_DISK_FAILED,
        EXIT_INTERNAL,
        ConfigError,
        CorruptionError,
        ReadFailed,
        WriteFailed,
    )
    from nodeproc.eventlog import RANK, Console, EventLog
    from nodeproc.net.entrance import RESERVED_DESCRIPTORS, listen
    from nodeproc.net.sockets import raise_descriptor_limit
    from nodeproc.records import Sealer
    from nodeproc.runtime import Runtime

PR_SET_PDEATHSIG: Final = 1
SWITCH_INTERVAL_S: Final = 0.0005
"""The longest time for which the event loop keeps the interpreter's lock from other threads; the default is 5 ms."""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=usage_name("nodeproc", "node"),
        description="Run one node of the chat.",
        epilog="Other commands: members, join, verify, recover; each has --help.",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="the node's YAML file")
    parser.add_argument("--data-dir", metavar="DIR", help="replaces data_dir of the file")
    parser.add_argument(
        "--rebuild", action="store_true", help="the disk was lost: fetch all data from the other members"
    )
    parser.add_argument("--quiet", action="store_true", help="don't print delivered messages")
    parser.add_argument("--log-level", choices=list(RANK), help="replaces log_level of the file")
    parser.add_argument("--events", metavar="FILE", help="default: events.jsonl in the data directory")
    parser.add_argument(
        "--die-with-parent", action="store_true", help="end when the process that started this one ends"
    )
    parser.add_argument("--lifeline", type=int, metavar="FD", help="end when this inherited pipe is closed")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        match arguments:
            case ["verify", *given]:
                return verify_directory(given)
            case ["recover", *given]:
                return recover.main(given)
            case ["members", *given]:
                return members.main(given)
            case ["join", *given]:
                return run_node(joining.prepare(given))
            case _:
                return run_node(arguments)
    except ConfigError as error:
        return complain(str(error), EXIT_CONFIG)
    except CorruptionError as error:
        return complain(str(error), EXIT_CORRUPTION)
    except ReadFailed as error:
        advice = "nothing was changed; start it again once the disk can be read"
        return complain(f"{error}: {advice}; {REBUILD_ADVICE}", EXIT_DISK_FAILED)
    except WriteFailed as error:
        return complain(str(error), EXIT_DISK_FAILED)
    except KeyboardInterrupt:
        return EXIT_CLEAN  # Between the start and the signal handlers.
    except Exception:
        traceback.print_exc()
        return EXIT_INTERNAL


def verify_directory(arguments: Sequence[str]) -> int:
    """Print each damage of a data directory on a line of its own; return the exit code."""
    parser = argparse.ArgumentParser(
        prog=usage_name("nodeproc", "node") + " verify",
        description="Read all of a node's data directory and report all damage.",
    )
    parser.add_argument("data_dir", metavar="DATA_DIR", type=Path, help="of a node that is down; nothing is changed")
    root = parser.parse_args(arguments).data_dir
    found = 0
    for damage in verify(root):
        found += 1
        print(damage, flush=True)
    print(f"{root}: {found} damaged places" if found else f"{root}: no damage")
    return EXIT_CORRUPTION if found else EXIT_CLEAN


def run_node(arguments: Sequence[str]) -> int:
    """Run a node until it ends; return the exit code."""
    parent = os.getppid()
    options = parse_arguments(arguments)
    if options.die_with_parent:
        die_with_parent(parent)
    config = configured(options)
    take_descriptors(config)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return run_in_loop(serve(config, options))


def configured(options: argparse.Namespace) -> NodeConfig:
    """Read the configuration file and apply the flags."""
    config = load(options.config)
    if options.data_dir:
        config = msgspec.structs.replace(config, data_dir=options.data_dir)
    if options.log_level:
        config = msgspec.structs.replace(config, log_level=options.log_level)
    return config


def take_descriptors(config: NodeConfig) -> None:
    """Raise the limit of open files.

    Raises:
        ConfigError: the hard limit is too low for the number of connections that the configuration allows.
    """
    limits = config.limits
    connections = limits.max_clients + limits.max_silent + limits.max_unproven
    needed = connections + RESERVED_DESCRIPTORS
    allowed = raise_descriptor_limit(needed)
    if allowed < needed:
        raise ConfigError(
            f"max_clients {limits.max_clients} + max_silent {limits.max_silent} + max_unproven {limits.max_unproven} "
            f"+ {RESERVED_DESCRIPTORS} for the node itself need {needed} open files, allowed {allowed} (ulimit -Hn): "
            f"raise that limit, or lower these settings of `limits`"
        )


def complain(reason: str, code: int) -> int:
    print(f"nodeproc: {reason}", file=sys.stderr)
    return code


async def serve(config: NodeConfig, options: argparse.Namespace) -> int:
    """Open the port, recover the data directory, run; return the exit code."""
    sock = listen(config.host, config.port)
    log: EventLog | None = None
    try:
        storage, recovered, events = open_storage(config, options.rebuild)
        log = open_log(config, options)
        log.emit(events)
        if config.durability == "os":
            log.emit([NothingSynced()])
        rng = random.Random()
        node = Node.recover(config.core(), recovered, time.monotonic(), rng, Sealer(time.time))
        runtime = Runtime(config, node, storage, log, sock, random.Random(rng.getrandbits(64)))
        watch_for_the_end(runtime, options.lifeline)
        gc.freeze()  # All objects so far stay alive: a full collection would spend milliseconds on them.
        return await runtime.run()
    finally:
        sock.close()
        if log is not None:
            log.close()


def open_storage(config: NodeConfig, rebuild: bool) -> tuple[Storage, Any, list[Any]]:
    """Recover the data directory."""
    return Storage.open(
        RealFiles(Path(config.data_dir)),
        config.node_id,
        durability=config.durability,
        segment_bytes=config.limits.segment_bytes,
        max_sessions=config.limits.max_sessions,
        rebuild=rebuild,
        members=config.members,
    )


def open_log(config: NodeConfig, options: argparse.Namespace) -> EventLog:
    path = Path(options.events) if options.events else Path(config.data_dir) / "events.jsonl"
    try:
        return EventLog(
            config.node_id,
            level=config.log_level,
            events=path,
            console=Console(),
            show_delivered=not options.quiet,
            max_bytes=config.limits.events_max_bytes,
        )
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def watch_for_the_end(runtime: Runtime, lifeline: int | None) -> None:
    """Stop the node cleanly on SIGTERM, on SIGINT, and when the pipe `lifeline` is closed.

    After a signal a leader transfers its leadership first. After a lifeline's end the other nodes are ending too. On
    SIGUSR1 a leader only transfers its leadership.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, partial(runtime.stop, number.name, transfer=True))
    loop.add_signal_handler(signal.SIGUSR1, runtime.transfer)
    if lifeline is not None:

        def at_lifeline() -> None:
            with contextlib.suppress(BlockingIOError):
                if not os.read(lifeline, 1024):
                    loop.remove_reader(lifeline)
                    runtime.stop("the lifeline was closed")

        os.set_blocking(lifeline, False)
        loop.add_reader(lifeline, at_lifeline)


def die_with_parent(parent: int) -> None:
    """Ask the kernel for SIGKILL when the thread that started this process ends (Linux; elsewhere see --lifeline)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # The parent ended before the call.
        os._exit(EXIT_INTERNAL)


def run_in_loop(work: Coroutine[Any, Any, int]) -> int:
    """Run on uvloop if it is installed, otherwise on asyncio's own loop."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with contextlib.suppress(ImportError):
        factory = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


if __name__ == "__main__":
    sys.exit(main())
