"""Which scenarios a command line asks for: files, directories, names of scenarios, and tags."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from lab.places import INSTALLED, PACKAGED, SCENARIOS, near
from lab.plan.scenario import Instead, Scenario
from lab.plan.sense import load_checked
from nodeproc.errors import ConfigError

SUFFIXES = (".yml", ".yaml")
ALL = "all"
"""The word for all scenarios in the home directories."""


class Chosen(NamedTuple):
    """One scenario and its file.

    by_name: the command line names this scenario itself; False: it names its directory or a tag.
    """

    path: Path
    scenario: Scenario
    by_name: bool


def choose(
    words: Sequence[str],
    tags: Collection[str],
    homes: Sequence[Path],
    commands: Sequence[str] = (),
    *,
    simulated: bool = False,
    engine: Instead | None = None,
) -> tuple[list[Chosen], list[ConfigError]]:
    """Return the scenarios that the words name and that have at least one of the tags, and the mistakes found.

    Args:
        words: files, directories (the scenario files in them), names of scenarios below `homes`, or ALL; none: ALL.
        tags: none: any scenario is chosen.
        homes: directories of scenarios. If several contain a file of the same name, the first directory counts.
        commands: also suggested for a word that names nothing.
        simulated, engine: as in load_checked().

    Returns:
        The scenarios in order; and an error for each word that names nothing and each file that is not a scenario.
    """
    chosen: list[Chosen] = []
    mistakes: list[ConfigError] = []
    for word in words or [ALL]:
        try:
            paths, by_name = _paths(word, homes, commands)
        except ConfigError as error:
            mistakes.append(error)
            continue
        for path in paths:
            try:
                scenario = load_checked(path, simulated=simulated, engine=engine)
            except ConfigError as error:
                mistakes.append(error)
                continue
            if not tags or not set(tags).isdisjoint(scenario.tags):
                chosen.append(Chosen(path, scenario, by_name))
    if not chosen and not mistakes:
        mistakes.append(ConfigError(f"no scenario has the tag {' or '.join(sorted(tags))}"))
    return chosen, mistakes


def find(word: str, homes: Sequence[Path]) -> Path:
    """Return the one file that a word names, as in choose().

    Raises:
        ConfigError: it names nothing, or a directory, or all.
    """
    paths, single = _paths(word, homes, ())
    if not single:
        raise ConfigError(f"{word}: stands for {len(paths)} scenarios, allowed is one")
    return paths[0]


def _paths(word: str, homes: Sequence[Path], commands: Sequence[str]) -> tuple[list[Path], bool]:
    """Return the files that a word stands for, and whether it names a single one.

    Raises:
        ConfigError: the word names nothing, or a directory without scenarios.
    """
    path = Path(word)
    if path.is_dir():
        found = _files(path)
        if not found:
            raise ConfigError(f"{word}: no scenario files in this directory; they end in .yml or .yaml")
        return found, False
    if path.exists():
        return [path], True
    known = _named(homes)
    if word in known:
        return [known[word]], True
    if word == ALL:
        files = {each.name: each for home in reversed(homes) if home.is_dir() for each in _files(home)}
        return [files[name] for name in sorted(files)], False
    close = difflib.get_close_matches(path.stem, [*known, *commands], 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ConfigError(f"{word}: no such file, directory or scenario{hint}")


def _files(directory: Path) -> list[Path]:
    return sorted(each for each in directory.iterdir() if each.suffix in SUFFIXES)


def _named(homes: Sequence[Path]) -> dict[str, Path]:
    """Name -> file of all scenarios below the directories."""
    return {each.stem: each for home in reversed(homes) for each in sorted(home.rglob("*.yml"), reverse=True)}


def word_for(path: Path) -> str:
    """Return the word that names a scenario's file on a command line: its path, or a packaged scenario's name."""
    named = INSTALLED and path.is_relative_to(PACKAGED)
    if named and _named(SCENARIOS).get(path.stem) == path and not Path(path.stem).exists():
        return path.stem
    return str(near(path))
