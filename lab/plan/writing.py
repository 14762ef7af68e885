"""Steps and expectations in one line each, for the runner."""

from __future__ import annotations

from lab.steps import Step
from lab.steps.expect import Expectation


def show_step(step: Step) -> str:
    """One line for people: the step's name, or the step as it could stand in a scenario, defaults left out."""
    return step.show()


def show_expectation(expectation: Expectation) -> str:
    """One line for people: the expectation as it could stand in a scenario, defaults left out."""
    return expectation.show()
