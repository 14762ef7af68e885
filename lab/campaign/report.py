"""The report of a campaign: text for the terminal, report.html and junit.xml."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple
from xml.etree import ElementTree

from markupsafe import Markup

from lab import runs
from lab.campaign.store import Finding, Settings, Store, Sums
from lab.places import ROOT, near
from lab.search import coverage
from lab.show import page
from lab.show.junit import clean
from lab.words import counted

RAREST = 10
SHOWN_SEEDS = 5
PRODUCT = "the product"
BADGES: Final = {
    runs.PASS: ("pass", "✓ no finding"),
    runs.BROKEN: ("broken", "✗ a finding"),
    runs.HARNESS: ("undecided", "? the lab failed"),
    runs.UNDECIDED: ("undecided", "? not finished"),
}
"""Exit code -> class and text of the badge in report.html."""
_TEMPLATE: Final = Path(__file__).parent / "templates" / "report.html"


def is_finished(store: Store) -> bool:
    """Return whether no seed is left to play."""
    settings = store.settings
    if settings.time_limit_s is not None and store.spent_s >= settings.time_limit_s:
        return True
    return bool(settings.planned) and store.count() >= settings.planned


def exit_code(store: Store) -> int:
    """Return the exit code for the seeds so far: of a failing seed, else of an error of the lab, else of open seeds."""
    sums = [store.sums(mutant) for mutant in store.settings.mutants]
    if any(each.failed for each in sums):
        return runs.BROKEN
    if any(each.troubled for each in sums):
        return runs.HARNESS
    return runs.PASS if is_finished(store) else runs.UNDECIDED


def progress_line(settings: Settings, done: int, speed: float, findings: int) -> str:
    """Return the progress line. speed: seeds a second."""
    planned = f" of {settings.planned}" if settings.planned else ""
    return f"{settings.name}: {done}{planned} seeds, {speed:.1f}/s, findings {findings}"


def line(store: Store) -> str:
    """Return the state of a campaign on one line."""
    settings, sums = store.settings, [store.sums(mutant) for mutant in store.settings.mutants]
    planned = f" of {settings.planned}" if settings.planned else ""
    state = "finished" if is_finished(store) else "not finished"
    failed, troubled = sum(each.failed for each in sums), sum(each.troubled for each in sums)
    return (
        f"{settings.name}: {sum(each.done for each in sums)}{planned} seeds, {failed} failed, "
        f"{counted(len(store.findings()), 'finding')}, {troubled} errors of the lab, {state}"
    )


# ---- text ------------------------------------------------------------------------------------------------


def text(store: Store) -> str:
    """Return the report for a terminal."""
    return "\n".join(_lines(store)) + "\n"


def _lines(store: Store) -> Iterator[str]:
    yield line(store)
    yield from (f"{name}: {value}" for name, value in _facts(store))
    yield from _mark_lines(store)
    for finding in store.findings():
        yield ""
        yield from _finding_lines(store, finding)
    if others := list(_other_lines(store)):
        yield from ("", *others)


def _other_lines(store: Store) -> Iterator[str]:
    for mutant, seeds, first in unexplained(store):
        more = counted(seeds, "more failing seed")
        yield f"{_who(mutant)}: {more}, not shrunk, the first: {store.replay(first, mutant)}"
    for seed, mutant, trouble in store.troubles():
        yield f"{_who(mutant)}, seed {seed}: the lab failed: {trouble.rstrip().splitlines()[-1]}"
    if unnoticed := [mutant for mutant in store.settings.mutants if mutant and not store.sums(mutant).failed]:
        yield f"mutants without a failing seed: {', '.join(unnoticed)}"


def _facts(store: Store) -> Iterator[tuple[str, str]]:
    settings, sums = store.settings, [store.sums(mutant) for mutant in store.settings.mutants]
    last = str(settings.first + settings.count - 1) if settings.count else "…"
    shares = f"{settings.changing:g} of them change the members"
    yield "seeds", f"{settings.first}..{last}, nodes {','.join(map(str, settings.sizes))}, {shares}"
    commit = [f"commit {settings.commit}"] if settings.commit else []
    yield "code", ", ".join([settings.code, *commit, *store.modes()])
    virtual_h, worked_s = sum(each.virtual_s for each in sums) / 3600, sum(each.seconds for each in sums)
    yield (
        "simulated",
        f"{virtual_h:.1f} virtual hours in {worked_s:.0f} s of work, {store.spent_s:.0f} s of running time",
    )
    yield "faults", ", ".join(f"{kind} {number}" for kind, number in store.faults().items()) or "none"


def _mark_lines(store: Store) -> Iterator[str]:
    marks, known = store.marks(), _known_marks(store)
    yield f"marks: {sum(mark in marks for mark in known)} of {len(known)} hit"
    rarest = sorted(marks.items(), key=lambda each: (each[1], each[0]))[:RAREST]
    yield from coverage.section("rarest marks", [f"{mark} ({number})" for mark, number in rarest])
    yield from coverage.section("marks never hit", coverage.unhit_marks(marks, known))


def _known_marks(store: Store) -> list[str]:
    """Return all marks of the code that plays the campaign."""
    return list(coverage.marks(store.code_directory or ROOT))


def _who(mutant: str) -> str:
    return mutant or PRODUCT


def unexplained(store: Store) -> Iterator[tuple[str, int, int]]:
    """Yield mutant, number and the first one of the failing seeds that belong to no finding."""
    for (mutant, _), failing in store.unexplained().items():
        yield mutant, len(failing), failing[0].seed


def _finding_lines(store: Store, finding: Finding) -> Iterator[str]:
    seeds = store.failing(finding.mutant, finding.id, SHOWN_SEEDS)
    more = ", …" if finding.seeds > len(seeds) else ""
    yield f"finding {finding.id}, {_who(finding.mutant)}: {finding.kind}: {finding.text}"
    yield f"  {counted(finding.seeds, 'seed')}: {', '.join(map(str, seeds))}{more}"
    yield f"  again: {store.replay(finding.seed, finding.mutant)}"
    if finding.scenario:
        yield f"  small: {near(store.scenario_file(finding))}, {finding.steps} steps"
        yield f"         {store.small_replay(finding)}"


# ---- report.html -----------------------------------------------------------------------------------------


class _Finding(NamedTuple):
    """A finding as the page shows it. lines: as in the report for a terminal."""

    id: int
    who: str
    kind: str
    lines: str
    scenario: str


def html(store: Store) -> str:
    """Return report.html: one file without scripts or references to other files."""
    style, marks, settings = page.static("report.css"), store.marks(), store.settings
    outcome, badge = BADGES[exit_code(store)]
    return page.template(_TEMPLATE).render(
        policy=page.policy(style),
        style=Markup(style),
        name=settings.name,
        line=line(store).partition(": ")[2],
        outcome=outcome,
        badge=badge,
        facts=list(_facts(store)),
        findings=[
            _Finding(each.id, _who(each.mutant), each.kind, "\n".join(_finding_lines(store, each)), each.scenario)
            for each in store.findings()
        ],
        sums=[_row(_who(mutant), store.sums(mutant)) for mutant in settings.mutants],
        marks=sorted(((mark, marks[mark]) for mark in _known_marks(store)), key=lambda each: each[1]),
    )


def _row(who: str, sums: Sums) -> tuple[object, ...]:
    return who, sums.done, sums.failed, sums.troubled, sums.messages, sums.elections


# ---- junit.xml -------------------------------------------------------------------------------------------


def junit(store: Store) -> str:
    """Return junit.xml: a test case for the product, or for each mutant; its findings are its failure.

    A case without findings is an error if the lab failed in a seed or the campaign is not finished.
    """
    suite = ElementTree.Element("testsuite", name=f"campaign {store.settings.name}")
    for mutant in store.settings.mutants:
        _add_case(suite, store, mutant)
    for name in ("failure", "error"):
        suite.set(f"{name}s", str(len(suite.findall(f"testcase/{name}"))))
    suite.set("tests", str(len(suite)))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _add_case(suite: ElementTree.Element, store: Store, mutant: str) -> None:
    sums = store.sums(mutant)
    case = ElementTree.SubElement(
        suite, "testcase", classname=store.settings.name, name=_who(mutant), time=f"{sums.seconds:.3f}"
    )
    findings = [each for each in store.findings() if each.mutant == mutant]
    if sums.failed:
        lines = [each for finding in findings for each in _finding_lines(store, finding)]
        message = f"{sums.failed} of {sums.done} seeds failed, {counted(len(findings), 'finding')}"
        ElementTree.SubElement(case, "failure", message=message).text = clean("\n".join(lines))
    elif sums.troubled or not is_finished(store):
        why = f"the lab failed in {sums.troubled} seeds" if sums.troubled else f"not finished, {sums.done} seeds played"
        ElementTree.SubElement(case, "error", message=why)
