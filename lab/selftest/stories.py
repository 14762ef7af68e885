"""Stories: for a mutant that drawn seeds seldom catch, a scenario that heads for what it does wrong.

The product itself passes each of them. What happens in one is in its description; the times in it are such that the one
moment comes in which the broken rule counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lab.plan import scenario as plan
from lab.plan.scenario import Scenario

STORIES: Final = Path(__file__).parent / "stories"
SEEDS: Final = range(1, 21)
"""With these a story is played until it catches its mutant; most do with the first."""


def story_path(mutant: str) -> Path:
    return STORIES / f"{mutant}.yml"


def story(mutant: str) -> Scenario | None:
    """The mutant's story; None: it has none, drawn seeds catch it."""
    path = story_path(mutant)
    return plan.load(path) if path.is_file() else None


def told() -> list[str]:
    """Mutants that have a story, in order of the alphabet."""
    return sorted(path.stem for path in STORIES.glob("*.yml"))
