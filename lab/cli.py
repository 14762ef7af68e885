"""The command line of run_lab.py: run (the default), check, validate, list, clean, and the commands of other modules.

Exit codes:

    0 pass   1 an invariant is broken   2 undecided   3 an expectation was missed
    64 wrong usage or scenario   70 the lab itself failed   130 interrupted

With several runs, the exit code is that of the worst one: interrupted, wrong usage, broken, lab failed, missed,
undecided. With --json standard output contains one JSON document and nothing else, and all other text goes to standard
error. A module that only one command needs is imported by that command, so that `--help`, `list` and `validate` start
fast.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from lab import __version__
from lab.engines.catalogue import refusal
from lab.places import DOCS, PROGRAM, RESULTS, SCENARIOS, near
from lab.runs import (
    HARNESS,
    INTERRUPTED,
    PASS,
    UNDECIDED,
    USAGE,
    How,
    Progress,
    Result,
    add_report,
    judge,
    refusals,
    run_once,
    seed_of,
    summary_row,
    without_passed,
    worst,
)
from lab.show import colour
from lab.values import add_mutant, count, engine, option, positive, seed, unwritable

if TYPE_CHECKING:
    from lab.plan.choosing import Chosen
    from lab.plan.scenario import Scenario
    from nodeproc.errors import ConfigError

ELSEWHERE = {
    "sim": ("lab.search.search", "simulate random scenarios, one for each seed, and report broken invariants"),
    "campaign": ("lab.campaign.command", "play many seeds on many workers; resumable, with findings sorted and shrunk"),
    "soak": ("lab.campaign.soak", "run random scenarios on real processes for hours; resumable"),
    "shrink": ("lab.search.shrink", "reduce the scenario of a failing seed to the steps that the failure needs"),
    "explore": ("lab.debug.explore_command", "try every order of events within small bounds"),
    "bench": ("lab.bench.bench", "measure the performance of the chat and of this machine"),
    "compare": ("lab.compare.compare", "show the differences between two runs, or between two measurements"),
    "ab": ("lab.compare.ab", "run a scenario with two versions in alternation: is this one worse?"),
    "selftest": ("lab.selftest.selftest", "break one protocol rule at a time and show whether the checks notice"),
    "new": ("lab.plan.scaffold", "write a small scenario that passes, as a starting point for your own"),
    "schema": ("lab.plan.schema", "print a JSON Schema of the scenario format, for editors"),
    "native": ("lab.native", "compile the hot modules, so that nodes and simulations are faster"),
    "diagram": ("lab.show.diagram", "draw a run's messages and events"),
    "engines": ("lab.search.published", "install other replicated stores, to run scenarios on them"),
    "serve": ("lab.watch.serve", "show runs in the browser, as they happen or afterwards"),
    "watch": ("lab.watch.command", "show runs in the terminal, as they happen or afterwards"),
    "hands": ("lab.hands", "start a run and inject faults by hand: steps from standard input"),
    "debug": ("lab.debug.command", "step through a simulated run, backwards too, and change it"),
    "report": ("lab.show.report", "make report.html of finished runs again"),
}
"""Command -> (the module with its add_arguments() and main(), its description)."""
PROGRAMS = {
    "node": ("run_node", "run one node: `node 1`, or `node FILE`, with the options of python -m nodeproc"),
    "members": ("members", "show or change the members of a running cluster, or transfer the leadership"),
    "chat": ("chat", "run the chat client, with the options of python -m nodeproc.client_tui"),
}
"""Command -> (its function in lab.byhand, its description). Its exit codes are those of the program."""
COMMANDS = ("run", "check", "validate", "list", "clean", *ELSEWHERE, *PROGRAMS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line; return the exit code.

    Args:
        arguments: without the program's name; None for those of the process.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # The process was started with this stream closed.
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given:
        _parser().print_help(sys.stderr)
        return USAGE
    if given[0] in PROGRAMS:
        byhand = importlib.import_module("lab.byhand")
        ended_with: int = getattr(byhand, PROGRAMS[given[0]][0])(given[1:])
        return ended_with
    options = parse(given)
    try:
        code: int = options.do(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _print_error("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return PASS if options.do is _do_list else HARNESS
    except Exception:  # A fault of the lab. Python would exit with 1, which here means that an invariant is broken.
        traceback.print_exc()
        return HARNESS
    return code


def parse(given: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; the option `do` is the function that carries it out. Exit the process on wrong usage."""
    if given[0] in ELSEWHERE:
        return _parse_elsewhere(given)
    known = given[0] in COMMANDS or given[0] in ("-h", "--help", "--version")
    return _parser().parse_args(given if known else ["run", *given])


# ---- the command line ---------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """A parser that exits with 64 on wrong usage; argparse's own 2 means undecided here."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def _parser() -> _Parser:
    parser = _Parser(
        prog=PROGRAM,
        description="Run a chat cluster through a scenario and judge every node's log.",
        epilog=f"`{PROGRAM} FILE...` is `{PROGRAM} run FILE...`.\n"
        "exit codes: 0 pass, 1 invariant broken, 2 undecided, 3 expectation missed,\n"
        "    64 wrong usage or scenario, 70 the lab itself failed, 130 interrupted\n"
        f"documentation: {DOCS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # It keeps the path on one line.
    )
    parser.add_argument("--version", action="version", version=f"chatlab {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    _add_run_options(command("run", "run scenarios on real processes and judge them (the default)"))
    check = command("check", "judge finished runs again, from their directories alone")
    check.add_argument("runs", metavar="RUN_DIR", nargs="+", type=Path, help="such as results/latest")
    _add_outputs(check)
    check.set_defaults(do=_do_check)
    validate = command("validate", "check scenario files for mistakes without running them")
    _add_scenarios(validate)
    validate.add_argument("--sim", action="store_true", help="also report steps that cannot be simulated")
    _add_json(validate)
    validate.set_defaults(do=_do_validate)
    listing = command("list", "show name and description of scenarios; or, with --runs, their runs")
    _add_scenarios(listing)
    listing.add_argument("--runs", action="store_true", help="show the runs in the results directory, newest first")
    listing.add_argument("--out", metavar="DIR", type=Path, default=RESULTS, help="results directory (%(default)s)")
    _add_json(listing)
    listing.set_defaults(do=_do_list)
    clean = command("clean", "remove old runs from the results directory")
    kept = "number of newest runs to keep of each scenario (%(default)s)"
    clean.add_argument("--keep", metavar="N", type=count, default=3, help=kept)
    clean.add_argument("-n", "--dry-run", action="store_true", help="only show what would be removed")
    clean.add_argument("--out", metavar="DIR", type=Path, default=RESULTS, help="results directory (%(default)s)")
    clean.set_defaults(do=_do_clean)
    for name, (_, description) in (ELSEWHERE | PROGRAMS).items():
        commands.add_parser(name, help=description, add_help=False)
    assert set(commands.choices) == set(COMMANDS)
    return parser


def _add_run_options(run: argparse.ArgumentParser) -> None:
    _add_scenarios(run)
    run.add_argument("--watch", action="store_true", help="show the run in the browser as it happens")
    run.add_argument("--repeat", metavar="N", type=positive, default=1, help="run each scenario N times")
    run.add_argument("-x", "--exitfirst", action="store_true", help="stop at the first run that does not pass")
    run.add_argument("--seed", metavar="S", type=seed, help="seed of the first run; each repetition adds 1")
    run.add_argument("--sim", action="store_true", help="simulate in virtual time; the same seed gives the same files")
    run.add_argument(
        "--network",
        choices=("kernel",),
        default="",
        help="run in network namespaces, where faults of links drop packets",
    )
    run.add_argument(
        "--disks",
        choices=("supervised",),
        default="",
        help="run under supervisors, which inject faults of disks into system calls",
    )
    run.add_argument("--frames", action="store_true", help=f"with --sim: record all frames, for `{PROGRAM} diagram`")
    add_mutant(run)
    run.add_argument(
        "--engine", metavar="NAME@VERSION", type=engine, help="run on this replicated store, such as nats@2.12.1"
    )
    run.add_argument(
        "--engine-option", metavar="NAME=VALUE", type=option, action="append", default=[], help="a setting of --engine"
    )
    run.add_argument("--out", metavar="DIR", type=Path, default=RESULTS, help="directory for the runs (%(default)s)")
    _add_outputs(run)
    run.set_defaults(do=_do_run)


def _parse_elsewhere(given: Sequence[str]) -> argparse.Namespace:
    """Parse the options of a command that has a module of its own."""
    name, description = ELSEWHERE[given[0]]
    module = importlib.import_module(name)
    parser = _Parser(prog=f"{PROGRAM} {given[0]}", description=description)
    module.add_arguments(parser)
    parser.set_defaults(do=module.main)
    return parser.parse_args(given[1:])


def _add_scenarios(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "scenarios",
        metavar="SCENARIO",
        nargs="*",
        help="a file, a directory of files, the name of a scenario, or `all`; without any: all",
    )
    parser.add_argument(
        "--tag", metavar="TAG", action="append", default=[], help="only scenarios with this tag, or any of several"
    )


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-report", action="store_true", help="write no report.html into the run directory")
    _add_json(parser)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")


# ---- list, validate -----------------------------------------------------------------------------


def _do_validate(options: argparse.Namespace) -> int:
    from lab.words import counted
    from nodeproc.errors import ConfigError

    chosen, mistakes = _choice(options)
    refused = [
        ConfigError(f"{path}: {reason}")
        for path, scenario, _ in chosen
        for reason in (scenario.sim_refusals() if options.sim else ())
    ]
    if options.json:
        return _print_scenarios(chosen, [*mistakes, *refused])
    for mistake in mistakes + refused:
        print(mistake, file=sys.stderr)
    for path, scenario, _ in chosen:
        if not (options.sim and scenario.sim_refusals()):
            print(f"{path}: ok, {scenario.name}: {counted(scenario.step_count, 'step')}{_tags(scenario)}")
    return USAGE if mistakes or refused else PASS


def _print_scenarios(chosen: list[Chosen], mistakes: list[ConfigError]) -> int:
    """Print one JSON document: the valid scenarios, and the problems of the others. Return the exit code."""
    code = USAGE if mistakes else PASS
    scenarios = [
        {
            "file": str(path),
            "name": scenario.name,
            "description": " ".join(scenario.description.split()),
            "tags": list(scenario.tags),
            "steps": scenario.step_count,
            "sim_refusals": scenario.sim_refusals(),
        }
        for path, scenario, _ in chosen
    ]
    print(json.dumps({"exit_code": code, "scenarios": scenarios, "problems": list(map(_plain, mistakes))}, indent=1))
    return code


def _plain(mistake: ConfigError) -> dict[str, Any]:
    from nodeproc.errors import FileProblem

    if not isinstance(mistake, FileProblem):
        return {"file": "", "line": 0, "column": 0, "message": str(mistake), "allowed": []}
    return {
        "file": mistake.path,
        "line": mistake.line,
        "column": mistake.column,
        "message": mistake.message,
        "allowed": list(mistake.allowed),
    }


def _do_list(options: argparse.Namespace) -> int:
    import textwrap

    from lab.plan.choosing import word_for

    if options.runs:
        return _list_runs(options)
    chosen, mistakes = _choice(options)
    if options.json:
        return _print_scenarios(chosen, mistakes)
    for mistake in mistakes:
        print(mistake, file=sys.stderr)
    width = min(shutil.get_terminal_size((100, 0)).columns, 100)
    for path, scenario, _ in chosen:
        description = textwrap.fill(" ".join(scenario.description.split()), width - 4)
        print(f"{word_for(path)}{_tags(scenario)}\n{textwrap.indent(description, '    ')}")
    return USAGE if mistakes else PASS


def _list_runs(options: argparse.Namespace) -> int:
    """List the runs in the results directory: of all scenarios, or of those that are named."""
    import msgspec

    from lab.show import index, table

    entries = index.index(options.out)
    names = {entry.scenario for entry in entries}
    wanted = {Path(word).stem for word in options.scenarios} or names
    if options.tag or not wanted <= names:
        unknown = ", ".join(sorted(wanted - names))
        known = ", ".join(sorted(names)) or "none"
        print(
            "--tag: not with --runs"
            if options.tag
            else f"{unknown}: no run in {near(options.out)}; there are: {known}",
            file=sys.stderr,
        )
        return USAGE
    chosen = [entry for entry in entries if entry.scenario in wanted]
    if options.json:
        print(json.dumps({"exit_code": PASS, "runs": msgspec.to_builtins(chosen)}, indent=1))
        return PASS
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else table.WIDTH
    print(index.render(chosen, width) if chosen else f"no runs in {near(options.out)}")
    return PASS


def _tags(scenario: Scenario) -> str:
    return f"  [{', '.join(scenario.tags)}]" if scenario.tags else ""


def _choice(options: argparse.Namespace) -> tuple[list[Chosen], list[ConfigError]]:
    """Return the selected scenarios, and the mistakes in those that are not valid."""
    from lab.plan.choosing import choose
    from lab.plan.scenario import Instead

    engine = getattr(options, "engine", None)
    instead = Instead(str(engine), dict(options.engine_option), options.disks) if engine is not None else None
    simulated = getattr(options, "sim", False)
    return choose(options.scenarios, options.tag, SCENARIOS, COMMANDS, simulated=simulated, engine=instead)


def _chosen(options: argparse.Namespace) -> tuple[list[Chosen], int]:
    """Return the selected scenarios and the exit code: USAGE if there are mistakes, which are printed to stderr."""
    chosen, mistakes = _choice(options)
    for mistake in mistakes:
        print(mistake, file=sys.stderr)
    return chosen, USAGE if mistakes else PASS


# ---- run ----------------------------------------------------------------------------------------


def _do_run(options: argparse.Namespace) -> int:
    if not options.scenarios and not options.tag:
        print(
            f"no scenario given: `{PROGRAM} list` shows all, `{PROGRAM} run all` runs all",
            file=sys.stderr,
        )
        return USAGE
    if options.sim and not options.mutant:
        from nodeproc import native

        native.activate()
    chosen, code = _chosen(options)
    if refusal := _option_refusal(options):
        print(refusal, file=sys.stderr)
        code = USAGE
    words = [] if options.engine is None else ["--engine", str(options.engine)]
    for name, value in options.engine_option:
        words += ["--engine-option", f"{name}={value}"]
    how = How(options.sim, options.mutant, options.frames, tuple(words), options.network, options.disks)
    chosen, refused = _possible(chosen, how)
    code = USAGE if refused else code
    if code != PASS:
        return code
    if not chosen:
        print("nothing was run: every scenario was skipped", file=sys.stderr)
    rounds = [(each, number) for each in chosen for number in range(options.repeat)]
    results: list[Result] = []
    try:
        with _watched(options):
            code = _run_all(rounds, options, how, results)
    except KeyboardInterrupt:
        _print_error("interrupted; no node is left running")
        code = INTERRUPTED
    _finish(results, options.json, code, len(rounds))
    return code


def _watched(options: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """Show the runs in the browser meanwhile, if that was asked for."""
    if not options.watch:
        return contextlib.nullcontext()
    from lab.watch.serve import beside

    return beside(options.out)


def _possible(chosen: list[Chosen], how: How) -> tuple[list[Chosen], bool]:
    """Return the scenarios that can be run in this way here, and whether one of the others was given by name.

    The others are refused, those of a directory are skipped.
    """
    kept, refused = [], False
    for each in chosen:
        reasons = refusals(each.scenario, how)
        for reason in reasons:
            print(f"{each.scenario.name}: {'' if each.by_name else 'skipped: '}{reason}", file=sys.stderr)
        refused = refused or (bool(reasons) and each.by_name)
        if not reasons:
            kept.append(each)
    return kept, refused


def _run_all(rounds: list[tuple[Chosen, int]], options: argparse.Namespace, how: How, results: list[Result]) -> int:
    """Run the scenarios one after the other and show each result; return the exit code of all."""
    began = time.monotonic()
    for done, ((path, scenario, _), number) in enumerate(rounds):
        seed = seed_of(scenario, options.seed, number)
        label = f"{done + 1} of {len(rounds)}{_time_left(done, len(rounds), began)}, " if len(rounds) > 1 else ""
        progress = Progress(label + scenario.name, brief=len(rounds) > 1)
        try:
            result = run_once(scenario, seed, options.out, how, progress=progress)
        finally:
            progress.close()
        if how.sim and number + 1 < options.repeat:
            result = without_passed(result)
        if not options.no_report:
            add_report(result)
        result = replace(result, again=how.command(path, seed))
        results.append(result)
        _show(result, options.json, brief=len(rounds) > 1)
        if options.exitfirst and result.exit_code != PASS:
            break
    return worst(result.exit_code for result in results) if results else UNDECIDED


def _time_left(done: int, planned: int, began: float) -> str:
    """Return the estimated time of the remaining runs, from the average of the finished ones."""
    if not done:
        return ""
    left_s = (time.monotonic() - began) / done * (planned - done)
    return f", about {left_s:.0f} s left" if left_s < 90 else f", about {left_s / 60:.0f} min left"


def _option_refusal(options: argparse.Namespace) -> str:
    """Return why these options cannot be combined, or why no run directory can be created; "" if all is well."""
    if options.network and options.sim:
        return "--network: not with --sim, which has no network of a kernel"
    if options.disks and options.sim:
        return "--disks: not with --sim, which makes no system calls"
    if options.frames and not options.sim:
        return "--frames: only with --sim; of real nodes, only chosen frames are recorded"
    if options.engine is None and options.engine_option:
        return "--engine-option: only with --engine"
    if options.engine is not None and options.mutant:
        return "--mutant: breaks the lab's own nodes, and --engine replaces them"
    if options.engine is not None and (why := refusal(options.engine, dict(options.engine_option))):
        return f"--engine-option: {why}"
    return unwritable(options.out)


# ---- check --------------------------------------------------------------------------------------


def _do_check(options: argparse.Namespace) -> int:
    from lab.rundir import RunDir, RunDirError

    results = []
    for path in options.runs:
        try:
            run = RunDir.open(path)
        except RunDirError as error:
            print(error, file=sys.stderr)
            return USAGE
        result = judge(run, run.path.parent.name, None)
        if not options.no_report:
            add_report(result)
        results.append(result)
        _show(result, options.json, brief=len(options.runs) > 1)
    code = worst(result.exit_code for result in results)
    _finish(results, options.json, code, len(results))
    return code


# ---- clean --------------------------------------------------------------------------------------


def _do_clean(options: argparse.Namespace) -> int:
    from lab.rundir import clean
    from lab.words import size_text

    cleaned = clean(options.out, options.keep, dry_run=options.dry_run)
    would = "would remove" if options.dry_run else "removed"
    print(
        f"{would} {cleaned.removed} runs ({size_text(cleaned.removed_bytes)}), "
        f"{cleaned.kept} runs ({size_text(cleaned.kept_bytes)}) stay in {near(options.out)}"
    )
    return PASS


# ---- output -------------------------------------------------------------------------------------


def _print_error(text: str) -> None:
    print(f"{PROGRAM.removesuffix('.py')}: {text}", file=sys.stderr, flush=True)


def _write(stream: TextIO, text: str) -> None:
    """Write text, with coloured verdicts on a terminal. A closed pipe does not stop further runs."""
    try:
        stream.write(colour.coloured(text) if colour.wanted(stream) else text)
        stream.flush()
    except BrokenPipeError:
        _drop_output()


def _drop_output() -> None:
    """Discard all buffered and later output, because the reader of standard output has closed it (`| head`)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show(result: Result, as_json: bool, brief: bool) -> None:
    """Print the result of one run.

    Args:
        brief: print one line if the run passed, because it is one of several.
    """
    stream = sys.stderr if as_json or result.problem else sys.stdout
    if brief and result.exit_code == PASS:
        text = f"{result.scenario}: {result.closing}  ({result.origin})\n"
    else:
        text = result.text(shutil.get_terminal_size().columns if stream.isatty() else 0) + ("\n" if brief else "")
    _write(stream, text)


def _finish(results: Sequence[Result], as_json: bool, code: int, planned: int) -> None:
    """Print the summary of several runs or the JSON document, and append to the summary page of a build server."""
    from lab.show import stepsummary

    stepsummary.append_where_asked([(summary_row(result), result.text()) for result in results])
    if as_json:
        print(json.dumps({"exit_code": code, "runs": [result.plain() for result in results]}, indent=1))
    elif planned > 1:
        passed = sum(result.exit_code == PASS for result in results)
        left = f", {planned - len(results)} not run" if len(results) < planned else ""
        lines = [f"{passed} of {planned} runs passed{left}"]
        for each in results:
            if each.exit_code != PASS:
                lines += [f"  {each.scenario}: {each.closing}", f"      {each.again or each.origin}"]
        _write(sys.stdout, "\n".join(lines) + "\n")
