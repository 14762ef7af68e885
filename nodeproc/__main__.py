"""Run one node: python3 run_lab.py node 1, or with the packages: python -m nodeproc --config configs/node1.yml

Or look for damage in the data of a node that is down: python -m nodeproc verify DATA_DIR. Its exit codes are 0 for
none, 3 for damage, 2 where that is no data directory or is in use.
Or make a new cluster of what is left of one that has lost its majority: python -m nodeproc recover --help

Exit codes of a node:
    0   stopped by SIGTERM or SIGINT
    2   configuration: the file, a flag, the port or the data directory can't be used
    3   corruption: durable data is not what was written; nothing was changed
    4   a write or fdatasync failed, or a read at the start; a restart goes on once the disk works again
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
from pathlib import Path
from typing import Any, Final

from nodeproc.importing import importing

with importing("nodeproc", "python3 run_lab.py node 1", interrupted=0):
    import msgspec

    from nodeproc import recover
    from nodeproc.config import NodeConfig, load
    from nodeproc.core.events import NothingSynced
    from nodeproc.core.node import Node
    from nodeproc.disk.files import RealFiles
    from nodeproc.disk.storage import Storage
    from nodeproc.disk.verify import verify
    from nodeproc.errors import (
        EXIT_CONFIG,
        EXIT_CORRUPTION,
        EXIT_INTERNAL,
        EXIT_WRITE_FAILED,
        ChatError,
        ConfigError,
        CorruptionError,
        WriteFailed,
    )
    from nodeproc.eventlog import RANK, Console, EventLog
    from nodeproc.net.entrance import RESERVED_DESCRIPTORS, listen
    from nodeproc.net.sockets import raise_descriptor_limit
    from nodeproc.records import Sealer
    from nodeproc.runtime import Runtime

PR_SET_PDEATHSIG: Final = 1
SWITCH_INTERVAL_S: Final = 0.0005
"""How long the loop may keep the interpreter from the fdatasync thread; the default of 5 ms would be its latency."""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nodeproc", description="Run one node of the chat.")
    parser.add_argument("--config", required=True, metavar="FILE", help="the node's YAML file")
    parser.add_argument("--data-dir", metavar="DIR", help="instead of the file's data_dir")
    parser.add_argument("--rebuild", action="store_true", help="the disk was lost: take everything from the others")
    parser.add_argument("--quiet", action="store_true", help="don't print delivered messages")
    parser.add_argument("--log-level", choices=list(RANK), help="instead of the file's log_level")
    parser.add_argument("--events", metavar="FILE", help="instead of events.jsonl in the data directory")
    parser.add_argument(
        "--die-with-parent", action="store_true", help="end when the process that started this one ends"
    )
    parser.add_argument("--lifeline", type=int, metavar="FD", help="end when this inherited pipe is closed")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["verify"]:
        return verify_directory(arguments[1:])
    parent = os.getppid()
    recovering = arguments[:1] == ["recover"]
    options = argparse.Namespace() if recovering else parse_arguments(arguments)
    if not recovering and options.die_with_parent:
        die_with_parent(parent)
    try:
        if recovering:
            return recover.main(arguments[1:])
        config = configured(options)
        take_descriptors(config)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        return run_in_loop(serve(config, options))
    except ConfigError as error:
        return complain(error, EXIT_CONFIG)
    except CorruptionError as error:
        return complain(error, EXIT_CORRUPTION)
    except WriteFailed as error:
        return complain(error, EXIT_WRITE_FAILED)
    except KeyboardInterrupt:
        return 0  # Between the start and the signal handlers.
    except Exception:
        traceback.print_exc()
        return EXIT_INTERNAL


def verify_directory(arguments: Sequence[str]) -> int:
    """Print each damage of a data directory on a line of its own. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m nodeproc verify",
        description="Read everything in a node's data directory and say what is damaged.",
    )
    parser.add_argument("data_dir", metavar="DATA_DIR", type=Path, help="of a node that is down; nothing is changed")
    root = parser.parse_args(arguments).data_dir
    found = 0
    try:
        for damage in verify(root):
            found += 1
            print(damage, flush=True)
    except (ConfigError, OSError) as error:
        print(f"nodeproc: {error}", file=sys.stderr)
        return EXIT_CONFIG
    print(f"{root}: {found} damaged places" if found else f"{root}: no damage")
    return EXIT_CORRUPTION if found else 0


def configured(options: argparse.Namespace) -> NodeConfig:
    """The file's settings, changed by the flags."""
    config = load(options.config)
    if options.data_dir:
        config = msgspec.structs.replace(config, data_dir=options.data_dir)
    if options.log_level:
        config = msgspec.structs.replace(config, log_level=options.log_level)
    return config


def take_descriptors(config: NodeConfig) -> None:
    """Raise the limit of open files.

    Raises:
        ConfigError: the connections that the configuration allows don't fit under the hard limit.
    """
    limits = config.limits
    connections = limits.max_clients + limits.max_silent + limits.max_unproven
    needed = connections + RESERVED_DESCRIPTORS
    allowed = raise_descriptor_limit(needed)
    if allowed < needed:
        raise ConfigError(
            f"max_clients {limits.max_clients} + max_silent {limits.max_silent} + max_unproven {limits.max_unproven} "
            f"+ {RESERVED_DESCRIPTORS} for the node itself need {needed} open files, allowed {allowed} (ulimit -Hn): "
            f"raise that limit, or lower these under limits"
        )


def complain(error: ChatError, code: int) -> int:
    print(f"nodeproc: {error}", file=sys.stderr)
    return code


async def serve(config: NodeConfig, options: argparse.Namespace) -> int:
    """Take port and data directory, recover, run."""
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
        gc.freeze()  # What is here now stays: a full collection need not look at it, which would take milliseconds.
        return await runtime.run()
    finally:
        sock.close()
        if log is not None:
            log.close()


def open_storage(config: NodeConfig, rebuild: bool) -> tuple[Storage, Any, list[Any]]:
    """Recover the data directory.

    Raises:
        ConfigError: the directory can't be made or written.
    """
    try:
        Path(config.data_dir).mkdir(parents=True, exist_ok=True)
        files = RealFiles(Path(config.data_dir))
    except OSError as error:
        raise ConfigError(f"data_dir {config.data_dir}: {error.strerror}") from None
    return Storage.open(
        files,
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
    """SIGTERM and SIGINT stop the node cleanly, and so does the end of the pipe that the harness holds."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, runtime.stop, number.name)
    if lifeline is not None:

        def at_lifeline() -> None:
            with contextlib.suppress(BlockingIOError):
                if not os.read(lifeline, 1024):
                    loop.remove_reader(lifeline)
                    runtime.stop("the process at the other end of the lifeline is gone")

        os.set_blocking(lifeline, False)
        loop.add_reader(lifeline, at_lifeline)


def die_with_parent(parent: int) -> None:
    """SIGKILL from the kernel when the thread that started us ends (Linux); elsewhere the lifeline has to do."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # It ended before we could ask.
        os._exit(EXIT_INTERNAL)


def run_in_loop(work: Coroutine[Any, Any, int]) -> int:
    """On uvloop where it is there, else on asyncio's loop."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with contextlib.suppress(ImportError):
        factory = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


if __name__ == "__main__":
    sys.exit(main())
