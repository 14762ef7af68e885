"""A run's verdict as junit.xml, with one test case for each check and each expectation."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from lab.check.metrics import Metrics
from lab.check.verdict import Check, ExpectationResult, Verdict
from lab.show.table import expectation_word

# Characters that XML 1.0 cannot contain, not even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(scenario: str, verdict: Verdict, metrics: Metrics | None) -> str:
    """Return the document.

    A failed check or missed expectation is a failure. An undecided one is an error, so that it is not taken for a pass.
    A check whose UNKNOWN does not count and a missed soft expectation are skipped.
    """
    suite = ElementTree.Element("testsuite", name=scenario)
    for check in verdict.checks:
        _add_check(suite, scenario, check)
    for expectation in verdict.expectations:
        _add_expectation(suite, scenario, expectation)
    for name in ("failure", "error", "skipped"):
        total = "skipped" if name == "skipped" else f"{name}s"
        suite.set(total, str(len(suite.findall(f"testcase/{name}"))))
    suite.set("tests", str(len(suite)))
    if metrics is not None:
        suite.set("time", f"{metrics.duration_s:.3f}")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    document = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{document}\n'


def _case(suite: ElementTree.Element, scenario: str, name: str, kind: str, message: str, text: str) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=scenario, name=clean(name), time="0")
    if kind:
        ElementTree.SubElement(case, kind, message=clean(message)).text = clean(text)


def _add_check(suite: ElementTree.Element, scenario: str, check: Check) -> None:
    kind = {"PASS": "", "FAIL": "failure", "UNKNOWN": "error" if check.decisive else "skipped"}[check.result]
    text = str(check.first) if check.first is not None else check.detail
    _case(suite, scenario, f"{check.name} {check.title}", kind, check.detail, text)


def _add_expectation(suite: ElementTree.Element, scenario: str, expected: ExpectationResult) -> None:
    if expected.met:
        kind = ""
    elif expected.soft:
        kind = "skipped"
    else:
        kind = "error" if expected.met is None else "failure"
    _case(suite, scenario, expected.text, kind, f"{expectation_word(expected)}: {expected.found}", expected.found)


def clean(text: str) -> str:
    """Replace the characters that XML cannot contain."""
    return _FORBIDDEN.sub("\ufffd", text)
