"""Questions about a recorded run, for predicting before the answer is shown: who leads next, who gets a vote?

Each question is asked at a row, before which its answer cannot be seen, and answered at a later one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from lab.debug.recorder import Row
from nodeproc.core.messages import NodeId

MOST_LEADERS, MOST_VOTES = 4, 2
"""The last ones of each kind are asked for."""
CHOICES: Final = ("A1", "A4", "A7", "A9", "A3", "A10")
"""Invariants that are offered beside the right one."""
OFFERED: Final = 4


class Question(Struct, frozen=True):
    """A question.

    asked, answered: numbers of rows. right: the index of the right choice.
    """

    asked: int
    answered: int
    text: str
    choices: tuple[str, ...]
    right: int


def questions(
    rows: Iterable[Row], first: int, nodes: Sequence[NodeId], broken: str, sentences: Mapping[str, str]
) -> list[Question]:
    """Return the questions about a run, in the order of its rows.

    Args:
        rows: the rows from number `first` to the last one.
        nodes: all nodes, ascending.
        broken: the violation at the last row, as `A7: …`; "" if nothing broke.
        sentences: A1 … A10 -> what the protocol promises.
    """
    leaders: list[tuple[int, int, NodeId]] = []
    votes: list[tuple[int, NodeId, NodeId]] = []
    contest, last = -1, first - 1
    for last, row in enumerate(rows, first):
        for node, changes in row.changes.items():
            role = str(changes.get("role", ("", ""))[1])
            vote = changes.get("voted_for", (0, 0))[1]
            if role.startswith("candidate") and contest < 0:
                contest = last
            elif role.startswith("leader"):
                leaders.append(((contest if contest >= 0 else last) - 1, last, node))
                contest = -1
            if isinstance(vote, int) and vote not in (0, node):
                votes.append((last, node, vote))
    found = [_leader(*each, nodes) for each in leaders[-MOST_LEADERS:]]
    found += [_vote(*each, [node for node in nodes if node != each[1]]) for each in votes[-MOST_VOTES:]]
    if broken and last > 0:
        found.append(_violation(last, broken.partition(":")[0], sentences))
    return sorted(found, key=lambda each: (each.answered, each.asked))


def _leader(asked: int, answered: int, leader: NodeId, nodes: Sequence[NodeId]) -> Question:
    choices = tuple(f"node {node}" for node in nodes)
    return Question(asked, answered, "Which node becomes leader next?", choices, nodes.index(leader))


def _vote(answered: int, node: NodeId, candidate: NodeId, nodes: Sequence[NodeId]) -> Question:
    choices = tuple(f"node {each}" for each in nodes)
    text = f"Node {node} is about to vote. For which node?"
    return Question(answered - 1, answered, text, choices, nodes.index(candidate))


def _violation(last: int, invariant: str, sentences: Mapping[str, str]) -> Question:
    offered = [invariant, *(each for each in CHOICES if each != invariant)][:OFFERED]
    offered.sort(key=lambda name: (name[:1], len(name), name))
    choices = tuple(f"{name}: {_first_sentence(sentences[name])}" if name in sentences else name for name in offered)
    return Question(last - 1, last, "The next row is the last one. What breaks?", choices, offered.index(invariant))


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].rstrip(".") + "."


def rule_text(protocol: Path, rule: str) -> str:
    """Return the paragraph of docs/protocol.md about a rule such as E4; "" if there is none."""
    try:
        text = protocol.read_text("utf-8")
    except OSError:
        return ""
    found = re.search(rf"^\*\*({re.escape(rule)}\b.+?)(?=^\s*$)", text, re.MULTILINE | re.DOTALL)
    return re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(found[1].split())) if found else ""
