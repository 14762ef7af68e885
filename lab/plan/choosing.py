"""Which scenarios a command line asks for: files, directories, names of this project's scenarios, and tags."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from lab.plan.scenario import Scenario
from lab.plan.sense import load_checked
from nodeproc.errors import ConfigError

SUFFIXES = (".yml", ".yaml")


class Chosen(NamedTuple):
    """One scenario and its file.

    by_name: the command line names this very scenario; False: it lies in a directory that was named, or has a tag.
    """

    path: Path
    scenario: Scenario
    by_name: bool


def choose(
    words: Sequence[str],
    tags: Collection[str],
    home: Path,
    commands: Sequence[str] = (),
    *,
    simulated: bool = False,
) -> tuple[list[Chosen], list[ConfigError]]:
    """The scenarios that the words name and that have at least one of the tags, in order, and what is wrong.

    Args:
        words: files, directories (the scenario files in them), names of scenarios below `home`; none: all in `home`.
        tags: none: any scenario is chosen.
        home: the directory of this project's scenarios.
        commands: also suggested for a word that names nothing.
        simulated: as in load_checked().

    Returns:
        The scenarios without those that have none of the tags; and the mistakes: of a word that names nothing, and of
        each file that is no scenario.
    """
    chosen: list[Chosen] = []
    mistakes: list[ConfigError] = []
    for word in words or [str(home)]:
        try:
            paths, by_name = _paths(word, home, commands)
        except ConfigError as error:
            mistakes.append(error)
            continue
        for path in paths:
            try:
                scenario = load_checked(path, simulated=simulated)
            except ConfigError as error:
                mistakes.append(error)
                continue
            if not tags or not set(tags).isdisjoint(scenario.tags):
                chosen.append(Chosen(path, scenario, by_name))
    if not chosen and not mistakes:
        mistakes.append(ConfigError(f"no scenario has the tag {' or '.join(sorted(tags))}"))
    return chosen, mistakes


def _paths(word: str, home: Path, commands: Sequence[str]) -> tuple[list[Path], bool]:
    """The files that a word stands for, and whether it names one alone.

    Raises:
        ConfigError: it names nothing, or a directory without scenarios.
    """
    path = Path(word)
    if path.is_dir():
        found = sorted(each for each in path.iterdir() if each.suffix in SUFFIXES)
        if not found:
            raise ConfigError(f"{word}: no scenario files in this directory; they end in .yml or .yaml")
        return found, False
    if path.exists():
        return [path], True
    known = {each.stem: each for each in sorted(home.rglob("*.yml"), reverse=True)}
    if word in known:
        return [known[word]], True
    near = difflib.get_close_matches(path.stem, [*known, *commands], 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"{word}: no such file, directory or scenario{hint}")
