"""The debugger in the terminal: its commands.

With a terminal the line editor is prompt_toolkit's; otherwise commands are read from standard input, one a line.
"""

from __future__ import annotations

import contextlib
import inspect
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lab.debug.branch import Branch, as_scenario
from lab.debug.recorder import Change, Row, State
from lab.debug.texts import change_text, details_of, ending_of, find, line_of
from lab.plan import scenario as plan
from lab.plan.scenario import Scenario
from lab.words import Duration
from nodeproc.errors import ConfigError

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
        self.go_row(self.at + _number(count))

    def prev(self, count: str = "1") -> None:
        """prev [N]: go N rows backwards."""
        self.go_row(self.at - _number(count))

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
        self.go_row(row)

    def rows(self, count: str = str(SHOWN)) -> None:
        """rows [N]: show N rows before this one and N after it."""
        around = _number(count)
        for number, row in enumerate(self.branch.rows(self.at - around, self.at + around), max(0, self.at - around)):
            self.write(line_of(row, ">" if number == self.at else " "))

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
        self.go_row(find(self.branch, range(self.at + 1, self.branch.recorded.rows), self.stops))

    def back(self) -> None:
        """back: go backwards to the row before that contains a text of `stop`; without one, to the beginning."""
        self.go_row(find(self.branch, range(self.at - 1, -1, -1), self.stops))

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
        """delay NUMBER TIME: make a branch in which this frame arrives later by TIME."""
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
            self.write(f"{mark} {number}: {origin}: {ending_of(branch.recorded)}")

    def use(self, number: str) -> None:
        """use NUMBER: go to another branch, to the same event."""
        place = _number(number)
        if place >= len(self.branches):
            raise Wrong(f"found {place}, allowed 0..{len(self.branches) - 1}")
        event, self.branch = self._event(), self.branches[place]
        self.go_row(self.branch.row_at(event))

    def save(self, file: str) -> None:
        """save FILE: write this branch as a scenario, which does the same steps at the same times."""
        path = Path(file)
        if path.suffix != ".yml":
            raise Wrong(f"found {file!r}, allowed: a name that ends in .yml")
        try:
            saved = as_scenario(self.scenario, self.branch.changes(), path.stem)
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

    def go_row(self, row: int) -> None:
        """Go to a row, or as near to it as there are rows, and show it."""
        self.at = min(max(row, -1), self.branch.recorded.rows - 1)
        at = self._row()
        self.write("before the first event" if at is None else line_of(at))
        if at is not None:
            for line in details_of(at):
                self.write(f"    {line}")
        if self.at == self.branch.recorded.rows - 1:
            self.write(f"    the run ends here: {ending_of(self.branch.recorded)}")

    # ---- branches ------------------------------------------------------------------------------------

    def _branch(self, change: Change) -> None:
        try:
            branch = self.branch.branch(change)
        except ValueError as error:
            raise Wrong(str(error)) from None
        self.branches.append(branch)
        self.branch = branch
        self.at = branch.row_at(change.event)
        self.write(f"branch {len(self.branches) - 1}: {self._origin(branch)}: {ending_of(branch.recorded)}")

    def _origin(self, branch: Branch) -> str:
        change = branch.change
        assert change is not None and branch.parent is not None
        return f"from {self.branches.index(branch.parent)} at event {change.event}, {change_text(change)}"


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


def _cell(value: object, changed: tuple[Any, Any] | None) -> str:
    return str(value) if changed is None else f"{value} (was {changed[0]})"


def lines() -> Iterator[str]:
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
