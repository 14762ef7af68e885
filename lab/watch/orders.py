"""What a person can order in a session by hand without knowing the words of a step: for the page and the terminal."""

from __future__ import annotations

import json
import re
from typing import Final

from msgspec import Struct

CHAT_CLIENT: Final = 9999


class Act(Struct, frozen=True):
    """A fault of the chosen node.

    key: the letter for it. states: of the node, in which the fault has an effect. step: its words, with NODE for the
    node. harmful: just after typing, its key is asked for twice, because it may have been meant for the text.
    """

    word: str
    key: str
    states: tuple[str, ...]
    step: str
    harmful: bool = False

    def why_not(self, node: int, state: str) -> str:
        """Return why this would have no effect on a node in this state; "" if it may have one. node: 0 for none."""
        if not node:
            return "choose a node first"
        return "" if state in self.states else f"node {node} is {state}"


class Order(Struct, frozen=True):
    """Something else that can be ordered. step: with NODE for the other end, in a fault of the leader's links."""

    word: str
    step: str


class Orders(Struct, frozen=True):
    """What has a button: faults of the chosen node, the end of all faults, and faults of one of the leader's links."""

    acts: tuple[Act, ...]
    heal: Order
    links: tuple[Order, ...]


ORDERS: Final = Orders(
    (
        Act("Kill", "k", ("up", "paused"), "kill: NODE", harmful=True),
        Act("Pause", "p", ("up",), "pause: NODE", harmful=True),
        Act("Resume", "r", ("paused",), "resume: NODE"),
        Act("Start", "s", ("down",), "start: NODE"),
        Act("Cut off", "c", ("up", "paused"), "partition: {kind: isolate, node: NODE}", harmful=True),
        Act("Power loss", "w", ("up",), "power_loss: {target: NODE, mid_write: true}", harmful=True),
    ),
    Order("Heal all", "heal: all"),
    (
        Order("Cut both ways", "cut: {from: leader, to: NODE, both: true}"),
        Order("Cut from the leader", "cut: {from: leader, to: NODE}"),
        Order("Cut to the leader", "cut: {from: NODE, to: leader}"),
        Order("Delay 200 ms", "link: {from: leader, to: NODE, delay: 200ms}"),
        Order("Lose 20 %", "link: {from: leader, to: NODE, loss: 0.2}"),
        Order("Heal the links", "heal: links"),
    ),
)


def chat(message: str) -> str:
    """Return the step that sends a message.

    JSON is YAML, but for a few characters that YAML takes for line breaks or refuses.
    """
    quoted = json.dumps(message, ensure_ascii=False)
    quoted = re.sub("[\x7f-\x9f\u2028\u2029\ufeff]", lambda found: f"\\u{ord(found[0]):04x}", quoted)
    return f"send: {{client: {CHAT_CLIENT}, messages: [{quoted}], wait: false}}"
