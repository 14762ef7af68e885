"""Stories: scenarios for mutants that random seeds seldom catch, each leading to the situation of the broken rule.

The unchanged product passes every story. The description in the file explains the story; its times are chosen so that
the situation arises.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lab.plan import scenario as plan
from lab.plan.scenario import Scenario

STORIES: Final = Path(__file__).parent / "stories"
SEEDS: Final = range(1, 21)
"""Seeds with which a story is simulated until it catches its mutant; most stories need only the first."""


def story_path(mutant: str) -> Path:
    return STORIES / f"{mutant}.yml"


def story(mutant: str) -> Scenario | None:
    """Return the mutant's story; None if it has none, because random seeds catch it."""
    path = story_path(mutant)
    return plan.load(path) if path.is_file() else None


def mutants_with_story() -> list[str]:
    """Return the names of the mutants with a story, sorted."""
    return sorted(path.stem for path in STORIES.glob("*.yml"))
