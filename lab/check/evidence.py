"""The evidence of a fault in words, as people read it in verdicts, reports and diagrams."""

from __future__ import annotations

from typing import Any

from lab.rows import FaultRow


def evidence_text(row: FaultRow) -> str:
    """Return the evidence of a fault: its links, the effective settings of a rule, and counts above 0."""
    evidence = dict(row.evidence)
    pairs, rule = evidence.pop("pairs", ()), evidence.pop("rule", {})
    links = " ".join(f"{source}→{to}" for source, to in pairs)
    counts = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in evidence.items() if value not in (0, "", None)
    )
    return "; ".join(part for part in (links, rule_text(rule), counts) if part)


def rule_text(rule: dict[str, Any]) -> str:
    """Return the effective settings of a link rule."""
    given = {key: value for key, value in rule.items() if value}
    idle = {"distribution"} | (set() if given.get("every") else {"behind", "at_most"})
    return ", ".join(f"{key.replace('_', ' ')} {_value(value)}" for key, value in given.items() if key not in idle)


def _value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else f"{value:g}"
