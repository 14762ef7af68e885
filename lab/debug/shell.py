"""`run_lab.py debug`: step through a simulated run in the terminal, forwards and backwards, and change it.

With a terminal the line editor is prompt_toolkit's; otherwise commands are read from standard input, one a line.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lab import values
from lab.debug.branch import Branch, as_scenario, begin
from lab.debug.recorder import Change, Row, State
from lab.debug.views import Value
from lab.plan import scenario as plan
from lab.plan.scenario import Scenario
from lab.words import Duration, counted
from nodeproc.errors import ConfigError

PASS, USAGE, HARNESS = 0, 64, 70
SHOWN: Final = 10
"""Rows, or things that are due, that a command shows unless it is told another number."""


class Wrong(Exception):
    """A command cannot be carried out; the text names what was found and what is allowed."""


@dataclass(eq=False, slots=True)
class Shell:
    """The debugger at one event of one branch.

    at: number of the present row; -1: before the first one.
    """

    scenario: Scenario
    branches: list[Branch]
    write: Callable[[str], None]
    branch: Branch = field(init=False)
    at: int = -1
    stops: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.branch = self.branches[0]

    # ---- commands --------------------------------------------------------------------------------------

    def next(self, count: str = "1") -> None:
        """next [N]: go N rows forwards. A row is an event that changed a node, or that a node logged."""
        self._go_row(self.at + _number(count))

    def prev(self, count: str = "1") -> None:
        """prev [N]: go N rows backwards."""
        self._go_row(self.at - _number(count))

    def go(self, to: str) -> None:
        """go EVENT | TIME | end: go to the last row at that event, such as 1200, or at that time, such as 1.5s."""
        if to == "end":
            row = self.branch.recorded.rows - 1
        elif to.isdecimal():
            row = self.branch.row_at(int(to))
        else:
            try:
                seconds = Duration.parse(to)
            except ValueError:
                raise Wrong(f"found {to!r}, allowed: an event, a time such as 1.5s, or end") from None
            row = self.branch.last_row(lambda each: each.t_s <= seconds)
        self._go_row(row)

    def rows(self, count: str = str(SHOWN)) -> None:
        """rows [N]: show N rows before this one and N after it."""
        around = _number(count)
        for number, row in enumerate(self.branch.rows(self.at - around, self.at + around), max(0, self.at - around)):
            self.write(_line(row, ">" if number == self.at else " "))

    def where(self) -> None:
        """where: show the state of all nodes after this event."""
        state = self._state()
        row = self._row()
        changed = row.changes if row is not None else {}
        fields = list(dict.fromkeys(name for view in state.nodes.values() for name in view))
        table = [
            [f"node {node}", *(_cell(view.get(name, ""), changed.get(node, {}).get(name)) for name in fields)]
            for node, view in state.nodes.items()
        ]
        from tabulate import tabulate

        self.write(tabulate(table, ["", *(name.replace("_", " ") for name in fields)], disable_numparse=True))

    def due(self, count: str = str(SHOWN)) -> None:
        """due [N]: show the next N things that will happen, with their numbers; * marks a frame."""
        for each in self._state().due[: _number(count)]:
            mark = "*" if each.frame else " "
            self.write(f"{each.number:>9} {mark} in {each.wait_s * 1000:.3f} ms  {each.what}")

    def stop(self, *text: str) -> None:
        """stop TEXT: let `continue` stop at rows that contain this text. `stop` alone shows the texts; `stop -` removes
        them."""
        if text == ("-",):
            self.stops.clear()
        elif text:
            self.stops.append(" ".join(text))
        self.write("stops: " + (", ".join(map(repr, self.stops)) or "none"))

    def cont(self) -> None:
        """continue: go forwards to the next row that contains a text of `stop`; without one, to the end."""
        self._go_row(self._find(range(self.at + 1, self.branch.recorded.rows)))

    def back(self) -> None:
        """back: go backwards to the row before that contains a text of `stop`; without one, to the beginning."""
        self._go_row(self._find(range(self.at - 1, -1, -1)))

    def do(self, *words: str) -> None:
        """do STEP: make a branch that does this step of scenarios here, such as `do kill: leader`."""
        self._branch(Change(self._event(), step=" ".join(words)))

    def drop(self, number: str) -> None:
        """drop NUMBER: make a branch in which this frame is lost."""
        self._branch(Change(self._event(), frame=_number(number), drop=True))

    def now(self, number: str) -> None:
        """now NUMBER: make a branch in which this frame arrives now."""
        self._branch(Change(self._event(), frame=_number(number), now=True))

    def delay(self, number: str, by: str) -> None:
        """delay NUMBER TIME: make a branch in which this frame arrives so much later."""
        try:
            late = Duration.parse(by)
        except ValueError as error:
            raise Wrong(str(error)) from None
        self._branch(Change(self._event(), frame=_number(number), late_s=late))

    def tree(self) -> None:
        """tree: show all branches and how they ended."""
        for number, branch in enumerate(self.branches):
            mark = ">" if branch is self.branch else " "
            origin = "the run" if branch.parent is None else self._origin(branch)
            self.write(f"{mark} {number}: {origin}: {_ending(branch)}")

    def use(self, number: str) -> None:
        """use NUMBER: go to another branch, to the same event."""
        place = _number(number)
        if place >= len(self.branches):
            raise Wrong(f"found {place}, allowed 0..{len(self.branches) - 1}")
        event, self.branch = self._event(), self.branches[place]
        self._go_row(self.branch.row_at(event))

    def save(self, file: str) -> None:
        """save FILE: write this branch as a scenario, which does the same steps at the same times."""
        path = Path(file)
        if path.suffix != ".yml":
            raise Wrong(f"found {file!r}, allowed: a name that ends in .yml")
        changes: list[tuple[State, Change]] = []
        branch = self.branch
        while branch.parent is not None and branch.change is not None:
            changes.insert(0, (branch.parent.go(branch.change.event), branch.change))
            branch = branch.parent
        try:
            saved = as_scenario(self.scenario, changes, path.stem)
            path.write_text(plan.encode_brief(saved), "utf-8")
        except (ValueError, ConfigError, OSError) as error:
            raise Wrong(str(error)) from None
        self.write(f"saved as {path}")

    def help(self) -> None:
        """help: show the commands. One letter is enough where no other command begins with it."""
        for command in COMMANDS.values():
            self.write("  " + inspect.getdoc(command).replace("\n", " "))  # type: ignore[union-attr]
        self.write("  quit: leave the debugger.")

    # ---- where ---------------------------------------------------------------------------------------

    def _row(self) -> Row | None:
        return self.branch.rows(self.at, self.at)[0] if self.at >= 0 else None

    def _event(self) -> int:
        row = self._row()
        return 0 if row is None else row.event

    def _state(self) -> State:
        return self.branch.go(self._event())

    def _go_row(self, row: int) -> None:
        self.at = min(max(row, -1), self.branch.recorded.rows - 1)
        at = self._row()
        self.write("before the first event" if at is None else _line(at))
        if at is not None:
            for line in _details(at):
                self.write(f"    {line}")
        if self.at == self.branch.recorded.rows - 1:
            self.write(f"    the run ends here: {_ending(self.branch)}")

    def _find(self, numbers: range) -> int:
        """Return the first of these rows that contains a text of `stop`; the row after the last one if none does."""
        for first in numbers[::BLOCK]:
            block = range(first, first + numbers.step * BLOCK, numbers.step)
            low, high = min(block[0], block[-1]), max(block[0], block[-1])
            found = list(enumerate(self.branch.rows(low, high), max(0, low)))
            for number, row in found if numbers.step > 0 else reversed(found):
                text = "\n".join([_line(row), *_details(row)]).lower()
                if any(each.lower() in text for each in self.stops):
                    return number
        return numbers.stop

    # ---- branches ------------------------------------------------------------------------------------

    def _branch(self, change: Change) -> None:
        try:
            branch = self.branch.branch(change)
        except ValueError as error:
            raise Wrong(str(error)) from None
        self.branches.append(branch)
        self.branch = branch
        self.at = branch.row_at(change.event)
        self.write(f"branch {len(self.branches) - 1}: {self._origin(branch)}: {_ending(branch)}")

    def _origin(self, branch: Branch) -> str:
        change = branch.change
        assert change is not None and branch.parent is not None
        if change.step:
            done = change.step
        else:
            how = "lost" if change.drop else "now" if change.now else f"{Duration(change.late_s)} later"
            done = f"frame {change.frame} {how}"
        return f"from {self.branches.index(branch.parent)} at event {change.event}, {done}"


BLOCK: Final = 256
"""Rows that are looked through at once."""
COMMANDS: Final[dict[str, Callable[..., None]]] = {
    "next": Shell.next,
    "prev": Shell.prev,
    "go": Shell.go,
    "rows": Shell.rows,
    "where": Shell.where,
    "due": Shell.due,
    "stop": Shell.stop,
    "continue": Shell.cont,
    "back": Shell.back,
    "do": Shell.do,
    "drop": Shell.drop,
    "now": Shell.now,
    "delay": Shell.delay,
    "tree": Shell.tree,
    "use": Shell.use,
    "save": Shell.save,
    "help": Shell.help,
}


def obey(shell: Shell, line: str) -> bool:
    """Carry out one command line; return False if it was `quit`."""
    try:
        word, *rest = shlex.split(line) if not line.lstrip().startswith("do ") else line.split()
    except ValueError as error:
        shell.write(f"{line}: {error}")
        return True
    matching = [name for name in (*COMMANDS, "quit") if name == word] or [
        name for name in (*COMMANDS, "quit") if name.startswith(word)
    ]
    if len(matching) != 1 and word not in SHORT:
        shell.write(f"found {word!r}, allowed {', '.join(matching or (*COMMANDS, 'quit'))}")
        return True
    name = SHORT.get(word) or matching[0]
    if name == "quit":
        return False
    try:
        inspect.signature(COMMANDS[name]).bind(shell, *rest)
    except TypeError:
        shell.write(f"usage: {inspect.getdoc(COMMANDS[name])}")
        return True
    try:
        COMMANDS[name](shell, *rest)
    except Wrong as wrong:
        shell.write(str(wrong))
    return True


SHORT: Final = {"n": "next", "d": "due", "s": "stop"}
"""The commands used most, where one letter begins several."""


def _number(text: str) -> int:
    if not text.isdecimal():
        raise Wrong(f"found {text!r}, allowed: a whole number")
    return int(text)


def _line(row: Row, mark: str = "") -> str:
    news = [f"node {node} {', '.join(_told(changes)).replace('_', ' ')}" for node, changes in row.changes.items()]
    return f"{mark}{row.event:>8} {row.t_s:9.4f} s  {row.what}" + (f"  [{'; '.join(news)}]" if news else "")


def _told(changes: dict[str, tuple[Value, Value]]) -> dict[str, tuple[Value, Value]]:
    """Return the changes that are news: where a process has started or ended, its role alone."""
    role = changes.get("role", ("", ""))
    return {"role": role} if "down" in role else changes


def _details(row: Row) -> Iterator[str]:
    for node, changes in row.changes.items():
        for name, (before, after) in _told(changes).items():
            yield f"node {node} {name.replace('_', ' ')}: {before} -> {after}"
    for said in row.said:
        yield f'{said.partition(":")[0]} says "{said.partition(": ")[2]}"'


def _cell(value: object, changed: tuple[Any, Any] | None) -> str:
    return str(value) if changed is None else f"{value} (was {changed[0]})"


def _ending(branch: Branch) -> str:
    recorded = branch.recorded
    ending = recorded.broken or "nothing broke"
    missed = f"; missed: {'; '.join(recorded.missed)}" if recorded.missed else ""
    return f"{counted(recorded.events, 'event')}, {ending}{missed}"


# ---- the command ----------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run_lab.py debug`."""
    parser.add_argument("run", metavar="RUN", help="a scenario (file or name), or the directory of a simulated run")
    parser.add_argument("--seed", metavar="N", type=values.seed, help="seed of the simulation (that of the run)")
    values.add_mutant(parser)


def main(options: argparse.Namespace) -> int:
    """Debug until the user leaves; return 0, or 64 if there is no such run."""
    try:
        scenario, seed, mutant = _asked(options)
    except (ConfigError, Wrong) as error:
        print(error, file=sys.stderr)
        return USAGE
    try:
        branch = begin(scenario, seed, mutant)
    except (EOFError, ConnectionError):
        return HARNESS
    shell = Shell(scenario, [branch], print)
    print(f"{scenario.name}, seed {seed}{f', mutant {mutant}' if mutant else ''}: {_ending(branch)}")
    shell._go_row(branch.recorded.rows - 1 if branch.recorded.broken else -1)
    try:
        for line in _lines():
            if line.strip() and not obey(shell, line):
                break
    finally:
        for each in shell.branches:
            each.close()
    return PASS


def _asked(options: argparse.Namespace) -> tuple[Scenario, int, str]:
    """Return scenario, seed and mutant."""
    from lab.places import SCENARIOS
    from lab.plan.choosing import find
    from lab.plan.sense import load_checked
    from lab.rundir import RunDir, RunDirError
    from lab.runs import seed_of

    path = Path(options.run)
    if path.is_dir():
        from lab.check.history import RunFileError, read_meta

        try:
            run = RunDir.open(path)
            meta = read_meta(run.meta)
        except (RunDirError, RunFileError) as error:
            raise Wrong(str(error)) from None
        if meta.kind != "sim":
            raise Wrong(f"{path}: found a live run, allowed: a simulated one (--sim)")
        scenario = plan.load(run.scenario)
        return scenario, meta.seed if options.seed is None else options.seed, options.mutant or meta.mutant
    scenario = load_checked(find(options.run, SCENARIOS), simulated=True)
    return scenario, seed_of(scenario, options.seed, 0), options.mutant


def _lines() -> Iterable[str]:
    """Yield the user's lines, until the end of input."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter

    session: PromptSession[str] = PromptSession(completer=WordCompleter([*COMMANDS, "quit"]))
    with contextlib.suppress(EOFError):
        while True:
            try:
                yield session.prompt("debug> ")
            except KeyboardInterrupt:
                continue
