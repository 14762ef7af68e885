"""The pages on which a user steps through a run, changes it, and predicts; and the page that chooses each event."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab.debug.branch import Branch, begin
from lab.debug.command import failing
from lab.mutants.catalogue import MUTANTS
from lab.plan import scenario as plan
from lab.search.explore import search
from lab.search.explore_cluster import Bounds
from lab.search.failure import as_mutant
from lab.steps import Kill
from tests.browser.conftest import Loop, Page, opened
from tests.lab.test_debug import SCENARIO, SEED, straight

MUTANT = "two_votes_in_one_term"
NODES = """return Object.fromEntries([...document.querySelectorAll(".card")].map((card) => [
    card.getAttribute("aria-label"),
    Object.fromEntries([...card.querySelectorAll("dl > div")].map((field) => [
        field.querySelector("dt").textContent, field.querySelector("dd").firstChild.textContent]))]))"""
"""The cards of the nodes: label -> field -> value."""
MOVE_SLIDER = """const slider = document.querySelector('[aria-label="event"]');
    slider.value = arguments[0];
    slider.dispatchEvent(new Event("change", { bubbles: true }));"""
HOME, RIGHT, LEFT, ENTER = "\ue011", "\ue014", "\ue012", "\ue007"


@pytest.fixture(scope="module")
def run(_browser: Any) -> Iterator[Branch]:
    """The same run as that of the page; only one thread may ask a branch."""
    branch = begin(SCENARIO, SEED)
    yield branch
    branch.close()


@pytest.fixture
def debugger(page: Page, loop: Loop) -> Iterator[Page]:
    """The page of a run in which nothing breaks."""
    from lab.debug.page import Page as Site

    site = Site(SCENARIO, SEED, "", begin(SCENARIO, SEED))
    with opened(page, loop, site):
        yield page
    for branch in site.branches:
        branch.close()


@pytest.fixture
def broken(page: Page, loop: Loop) -> Iterator[Page]:
    """The page of a run that a mutant breaks."""
    from lab.debug.page import Page as Site

    asked = failing(MUTANT)
    branch = begin(*asked)
    with opened(page, loop, Site(*asked, branch)):
        yield page
    branch.close()


def nodes(page: Page) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = page.browser.execute_script(NODES)
    return found


def shown(views: dict[int, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Return the states of nodes as the page shows them."""
    return {
        f"node {node}: {view['role']}": {
            name.replace("_", " "): str(value) for name, value in view.items() if name != "role"
        }
        for node, view in views.items()
    }


def at(page: Page, event: int) -> None:
    """Wait until the page shows this event."""
    page.until(lambda _: re.match(rf"event {event}\b", page.text("output")), f"event {event}")


def event_of(page: Page) -> int:
    return int(page.text("output").split()[1].rstrip(","))


def address(page: Page) -> str:
    return str(page.browser.execute_script("return location.hash"))


# ---- stepping --------------------------------------------------------------------------------------


def test_the_slider_shows_at_any_event_what_a_straight_replay_shows(debugger: Page, run: Branch) -> None:
    events = random.Random(8).sample(range(1, run.recorded.events + 1), 20)
    wanted, _ = straight(set(events))
    for event in events:
        debugger.browser.execute_script(MOVE_SLIDER, event)
        at(debugger, event)
        assert nodes(debugger) == shown(wanted[event][0])
    assert address(debugger) == f"#{events[-1]}"
    debugger.browser.refresh()
    at(debugger, events[-1])
    assert nodes(debugger) == shown(wanted[events[-1]][0])
    assert debugger.errors() == []


def test_keys_and_buttons_go_from_row_to_row(debugger: Page, run: Branch) -> None:
    rows = run.rows(0, 3)
    at(debugger, 0)
    doings: tuple[tuple[Callable[[str], None], str, int], ...] = (
        (debugger.press, "n", 0),
        (debugger.press, RIGHT, 1),
        (debugger.click, "next", 2),
        (debugger.press, "p", 1),
        (debugger.press, LEFT, 0),
        (debugger.press, "n", 1),
        (debugger.click, "◀ back", 0),
    )
    for do, what, row in doings:
        do(what)
        at(debugger, rows[row].event)
        assert debugger.text(".what").startswith(rows[row].what)
        marked = {element.text for element in debugger.all(".card .new dt")}
        changed = {name.replace("_", " ") for each in rows[row].changes.values() for name in each} - {"role"}
        assert marked == changed
    debugger.press("v")
    at(debugger, run.rows(run.recorded.rows - 1, run.recorded.rows - 1)[0].event)
    debugger.press(f"{HOME}nnnp")
    at(debugger, rows[1].event)


def test_a_text_stops_the_run_in_both_directions(debugger: Page, run: Branch) -> None:
    debugger.press("/")
    debugger.press(f"became leader for term 2{ENTER}")
    debugger.says('says "Became LEADER for term 2"', ".what")
    assert debugger.all(".steps .note"), "the diagram shows what the nodes logged"
    event = event_of(debugger)
    assert run.go(event - 1).nodes != run.go(event).nodes
    debugger.click("last")
    at(debugger, run.rows(run.recorded.rows - 1, run.recorded.rows - 1)[0].event)
    debugger.click("◀ back to it")
    at(debugger, event)
    debugger.browser.execute_script("document.activeElement.blur()")
    debugger.press("b")
    debugger.says("no earlier row contains", '[role="alert"]')


# ---- changing the run ------------------------------------------------------------------------------


def test_a_step_makes_a_branch_that_can_be_saved(debugger: Page, run: Branch) -> None:
    event = run.recorded.events // 3
    debugger.browser.execute_script(MOVE_SLIDER, event)
    at(debugger, event)
    before = nodes(debugger)
    field = debugger.has(".branches + form input")
    field.clear()
    field.send_keys(f"kill: n9{ENTER}")
    debugger.says("allowed leader, follower", '[role="alert"]')
    field.clear()
    field.send_keys(f"kill: 1{ENTER}")
    debugger.says("branch 1: missed: wait: new_leader", '[role="alert"]')
    assert address(debugger) == f"#1:{event}" and nodes(debugger) == before
    debugger.click("next")
    debugger.has('[aria-label="node 1: down"]')
    saved = plan.load("saved.yml", text=debugger.file_behind("save as a scenario"))
    assert Kill(target=1) in saved.steps
    debugger.click("0: the run")
    debugger.says(f"of {run.recorded.events}", "output")
    debugger.lacks('[aria-label="node 1: down"]')


def test_a_frame_on_its_way_can_be_lost(debugger: Page, run: Branch) -> None:
    row = next(each for each in run.rows(run.recorded.rows // 2, run.recorded.rows) if frames_at(run, each.event))
    debugger.browser.execute_script(MOVE_SLIDER, row.event)
    at(debugger, row.event)
    frame = frames_at(run, row.event)[0]
    assert frame in debugger.text(".due")
    debugger.has(f'[aria-label="drop: {frame}"]').click()
    debugger.says("branch 1: ", '[role="alert"]')
    assert f'drop: {frame}"' not in debugger.has("aside").get_attribute("innerHTML")
    assert not debugger.all("a[download]"), "a scenario has no step for one frame"


def frames_at(run: Branch, event: int) -> list[str]:
    return [each.what for each in run.go(event).due if each.frame]


# ---- predict, then reveal --------------------------------------------------------------------------


def test_the_future_is_hidden_until_everything_was_predicted(broken: Page) -> None:
    broken.says("✗ A7: ", '[role="status"]')
    broken.says(MUTANT, "h1")
    broken.click("predict, then reveal")
    broken.has(".quiz button")
    last = int(re.findall(r"1 of (\d+):", broken.text(".quiz"))[0])
    for number in range(1, last):
        broken.says(f"{number} of {last}:", ".quiz")
        assert MUTANT not in broken.text("body") + broken.browser.title and "A7" not in broken.text("header")
        assert not broken.all(".steps .later, .branches") and not broken.has('[aria-label="event"]').is_enabled()
        answer(broken, "")
        broken.click("go on")
    broken.says(f"{last} of {last}: The next row is the last one. What breaks?", ".quiz")
    seen = event_of(broken)
    broken.press("nv")
    broken.says(f"event {seen},", "output")
    answer(broken, "A7")
    broken.says("Right.", ".quiz")
    broken.click("go on")
    broken.says(f"of {last} predicted.", ".quiz")
    broken.says(MUTANTS[MUTANT].says, ".quiz")
    broken.says(f"rule {MUTANTS[MUTANT].rule}", ".quiz")
    broken.click("leave")
    broken.lacks(".quiz")
    broken.says("✗ A7: ", '[role="status"]')
    assert broken.errors() == []


def answer(page: Page, text: str) -> None:
    """Choose the first answer that begins with this text, and wait until the page shows which one is right."""
    choices = page.until(lambda _: page.all(".quiz p:nth-child(2) button:not(:disabled)"), "a question")
    next(button for button in choices if button.text.startswith(text)).click()
    page.has(".quiz button.right")


# ---- the page of `explore` ---------------------------------------------------------------------------


@pytest.fixture
def explored(page: Page, loop: Loop) -> Iterator[list[str]]:
    """The page of a mutant's exploration, which opens at the violation; the texts of the moves to it."""
    from lab.debug.explorer import Explorer

    with as_mutant("acknowledge_before_durable") as mutant:
        site = Explorer(Bounds(nodes=2, messages=1), mutant)
        finding = search(site.paths.clusters, None, lambda line: None)
        site.start = site.paths.indices(finding.trace)
        texts = [each.text for each in site.paths.show(site.start).done]
        with opened(page, loop, site):
            yield texts


@pytest.fixture
def explorer(page: Page, explored: list[str]) -> Page:
    return page


def moves(page: Page, count: int) -> None:
    """Wait until the page shows so many moves."""
    page.until(lambda _: page.text("header p") == f"{count} moves", f"{count} moves")


def test_the_user_chooses_each_event_up_to_the_violation(explorer: Page, explored: list[str]) -> None:
    explorer.says("✗ ", "header .broken")
    end = address(explorer)
    path = end.lstrip("#").split(".")
    assert len(path) == len(explored) > 2
    explorer.click("⇤ first state")
    moves(explorer, 0)
    assert explorer.has(".bar button").is_enabled() is False
    for done, text in enumerate(explored, 1):
        next(button for button in explorer.all(".choices button") if button.text == text).click()
        moves(explorer, done)
    explorer.has("header .broken")
    assert address(explorer) == end
    explorer.browser.back()
    explorer.has("header .pass")
    assert address(explorer) == "#" + ".".join(path[:-1])
    explorer.press("p")
    moves(explorer, len(path) - 2)
    explorer.press("v")
    explorer.has("header .broken")
    assert explorer.errors() == []


def test_an_address_with_a_wrong_path_is_told_what_is_allowed(explorer: Page) -> None:
    explorer.browser.execute_script("location.hash = '#999'")
    explorer.says("allowed 0..")
    explorer.press(HOME)
    moves(explorer, 0)


# ---- for everybody -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_debugger_has_no_fault_that_axe_finds(broken: Page, scheme: str) -> None:
    found = {"violation": broken.violations(scheme)}
    broken.press(f"{HOME}nnn")
    broken.has(".card .new")
    found["event"] = broken.violations(scheme)
    broken.click("predict, then reveal")
    answer(broken, "")
    found["answered"] = broken.violations(scheme)
    assert {name: faults for name, faults in found.items() if faults} == {}, json.dumps(found, indent=1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_explorer_has_no_fault_that_axe_finds(explorer: Page, scheme: str) -> None:
    found = {"violation": explorer.violations(scheme)}
    explorer.press("p")
    explorer.has(".choices button")
    found["choices"] = explorer.violations(scheme)
    assert {name: faults for name, faults in found.items() if faults} == {}, json.dumps(found, indent=1)
