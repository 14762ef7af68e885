"""`run_lab.py campaign`: searches of any length, spread over workers and resumable at any time.

campaign new NAME --seeds N | --time T   begin a campaign and play it
campaign resume NAME                     go on with it, after any interruption
campaign status [NAME]                   show its state, also while it is being played
campaign report NAME                     write report.html and junit.xml
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import re
import shlex
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lab import runs, values
from lab.campaign import report
from lab.campaign.code import CodeError, code_version, commit_of, export
from lab.campaign.queue import Queue
from lab.campaign.spread import Cluster, NoWorkers, play_all
from lab.campaign.store import CAMPAIGNS, FILE, Settings, Store, StoreError, locked, names
from lab.live.children import end_on_sigterm
from lab.places import COMMAND, RESULTS, installing, near
from lab.search.draw import SIZES
from lab.search.shrink import add_changing

TELL_TERMINAL_S: Final = 0.5
TELL_PLAIN_S: Final = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run_lab.py campaign`."""
    parser.epilog = (
        "Exit codes: 0 no finding, 1 a finding, 2 not finished (status, report), 64 wrong usage, 70 the lab itself "
        "failed, 130 interrupted. docs/campaigns.md describes the files."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    new = commands.add_parser("new", help="begin a campaign and play it")
    new.add_argument("name", metavar="NAME", type=values.name)
    new.add_argument("--seeds", metavar="N", type=values.positive, help="number of seeds")
    new.add_argument("--time", metavar="T", type=values.running_time, help="start no seed after this running time (4h)")
    new.add_argument("--seed", metavar="S", type=values.seed, default=1, help="the first seed (%(default)s)")
    new.add_argument("--nodes", metavar="N,N", type=values.sizes, default=SIZES, help="cluster sizes (3,5)")
    new.add_argument(
        "--mutants",
        metavar="M,M",
        nargs="?",
        type=_mutants,
        default=("",),
        const=_mutants("all"),
        help="play each seed as these mutants instead of the product; without names: as all mutants",
    )
    add_changing(new)
    new.add_argument("--commit", metavar="REF", default="", help="play the code of this commit (the present code)")
    _add_cluster(new)
    new.set_defaults(carry_out=_new)
    resume = commands.add_parser("resume", help="go on with a campaign, after any interruption")
    resume.add_argument("name", metavar="NAME", type=values.name)
    _add_cluster(resume)
    resume.set_defaults(carry_out=_resume)
    status = commands.add_parser("status", help="show the state of a campaign, or of all")
    status.add_argument("name", metavar="NAME", type=values.name, nargs="?")
    status.set_defaults(carry_out=_status)
    reporting = commands.add_parser("report", help="write report.html and junit.xml")
    reporting.add_argument("name", metavar="NAME", type=values.name)
    reporting.set_defaults(carry_out=_report)
    for each in (new, resume, status, reporting):
        each.add_argument(
            "--out", metavar="DIR", type=Path, default=RESULTS, help="directory for campaigns/ (%(default)s)"
        )


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        type=_address,
        help="a Dask scheduler, such as tcp://host:8786 (none: own workers)",
    )
    parser.add_argument(
        "--jobs", metavar="J", type=values.jobs, default=values.processors(), help="number of own workers (%(default)s)"
    )
    parser.add_argument(
        "--patience",
        metavar="T",
        type=values.running_time,
        default=120.0,
        help="stop if no worker was there for this time (2m)",
    )


def _mutants(text: str) -> tuple[str, ...]:
    from lab.mutants.catalogue import MUTANTS

    names = text.split(",")
    if "" in names:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed names of mutants, joined by commas")
    return tuple(MUTANTS) if text == "all" else tuple(dict.fromkeys(map(values.mutant, names)))


def _address(text: str) -> str:
    found = re.fullmatch(r"(?:(?:tcp|tls|ws|wss)://)?(?:[^\s/:\[\]]+|\[[0-9a-fA-F:]+\]):([0-9]{1,5})", text)
    if found is None or not 0 < int(found[1]) < 65536:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed an address such as tcp://host:8786")
    return text


def main(options: argparse.Namespace) -> int:
    """Carry out one of the commands; return the exit code."""
    try:
        code: int = options.carry_out(options)
    except (StoreError, CodeError) as error:
        print(error, file=sys.stderr)
        return runs.USAGE
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return runs.HARNESS
    except sqlite3.Error as error:
        print(f"{near(_directory(options) / FILE)}: {error}", file=sys.stderr)
        return runs.HARNESS
    return code


def _directory(options: argparse.Namespace) -> Path:
    out: Path = options.out
    return out.absolute() / CAMPAIGNS / str(options.name)


# ---- new, resume -----------------------------------------------------------------------------------------


def _new(options: argparse.Namespace) -> int:
    if options.seeds is None and options.time is None:
        raise StoreError("campaign new: --seeds N or --time T is required, or both")
    if refusal := values.beyond_the_last(options.seed, options.seeds or 0):
        raise StoreError(refusal)
    _require_dask()
    directory = _directory(options)
    commit = commit_of(options.commit) if options.commit else ""
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory, f"campaign {options.name!r}"):
        if (directory / FILE).exists():
            raise StoreError(f"campaign {options.name!r} exists; to go on: {_resuming(options)}")
        code = directory / "code"
        if commit:
            shutil.rmtree(code, ignore_errors=True)
            export(commit, code)
        version = code_version(code) if commit else code_version()
        counts = (options.seed, options.seeds or 0, options.time)
        settings = Settings(options.name, *counts, options.nodes, options.mutants, version, commit, options.changing)
        with Store.create(directory, settings) as store:
            return _play(store, options)


def _resume(options: argparse.Namespace) -> int:
    _require_dask()
    with Store.open(_directory(options)) as store:
        settings, found = store.settings, code_version(*filter(None, [store.code_directory]))
        if found != settings.code:
            raise StoreError(
                f"campaign {settings.name!r}: found code {found}, allowed {settings.code}, which began it; "
                "go on with that code, or begin another campaign (with --commit it keeps its code)"
            )
        with locked(store.directory, f"campaign {settings.name!r}"):
            return _play(store, options)


def _resuming(options: argparse.Namespace) -> str:
    """Return the command that goes on with a campaign."""
    out = "" if options.out == RESULTS else f" --out {shlex.quote(str(options.out))}"
    scheduler = f" --scheduler {shlex.quote(options.scheduler)}" if options.scheduler else ""
    return f"{COMMAND} campaign resume {options.name}{scheduler}{out}"


def _require_dask() -> None:
    if importlib.util.find_spec("distributed") is None:
        raise StoreError(f"campaigns need Dask: {installing('campaign')}")


def _play(store: Store, options: argparse.Namespace) -> int:
    progress = runs.Progress("campaign")

    def tell(text: str) -> None:
        progress.close()
        print(f"campaign: {text}", file=sys.stderr, flush=True)

    queue = Queue(store, tell)
    cluster = Cluster(options.scheduler or "", options.jobs, options.patience)
    code, interrupted, problem = runs.PASS, False, ""
    try:
        asyncio.run(_play_and_show(queue, cluster, progress, tell))
    except (KeyboardInterrupt, asyncio.CancelledError):
        interrupted = True
    except (NoWorkers, OSError, sqlite3.Error) as error:
        problem = str(error)
    finally:
        progress.close()
    if problem:
        print(f"the campaign stopped: {problem}", file=sys.stderr)
    if problem or interrupted:
        print(f"to go on: {_resuming(options)}", file=sys.stderr)
    print(report.text(store), end="")
    _write_report(store)
    code = report.exit_code(store)
    if interrupted:
        return runs.INTERRUPTED
    return runs.HARNESS if problem and code != runs.BROKEN else code


async def _play_and_show(queue: Queue, cluster: Cluster, progress: runs.Progress, tell: Callable[[str], None]) -> None:
    end_on_sigterm()
    showing = asyncio.create_task(_show(queue, progress))
    try:
        await play_all(queue, cluster, tell)
    finally:
        showing.cancel()


async def _show(queue: Queue, progress: runs.Progress) -> None:
    """Show a line of progress at regular times."""
    before = queue.store.count()
    began = time.monotonic()
    while True:
        await asyncio.sleep(TELL_TERMINAL_S if sys.stderr.isatty() else TELL_PLAIN_S)
        speed = queue.recorded / (time.monotonic() - began)
        progress(report.progress_line(queue.store.settings, before + queue.recorded, speed, queue.findings))


# ---- status, report --------------------------------------------------------------------------------------


def _status(options: argparse.Namespace) -> int:
    if options.name is None:
        home = options.out / CAMPAIGNS
        code = runs.PASS
        for name in names(home):
            try:
                with Store.open(home / name) as store:
                    print(report.line(store))
            except StoreError as error:
                print(error, file=sys.stderr)
                code = runs.USAGE
        return code
    with Store.open(_directory(options)) as store:
        print(report.text(store), end="")
        return report.exit_code(store)


def _report(options: argparse.Namespace) -> int:
    with Store.open(_directory(options)) as store:
        for path in _write_report(store):
            print(near(path))
        return report.exit_code(store)


def _write_report(store: Store) -> list[Path]:
    """Write the scenarios of the findings, report.html and junit.xml; return the files."""
    written = store.export()
    for name, content in (("report.html", report.html(store)), ("junit.xml", report.junit(store))):
        path = store.directory / name
        path.write_text(content, "utf-8")
        written.append(path)
    return written
