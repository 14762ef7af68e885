"""Leadership transfer, the leader's side: it brings one follower up to date and asks it to stand. Rule: E7.

Accepted messages wait unordered meanwhile (ordering.is_order_due), so the end of the log stays where it is. If the
follower wins, they are dropped as at any end of a leadership, and their clients send them again (S5).
"""

from __future__ import annotations

from nodeproc.core.effects import Effects
from nodeproc.core.events import TransferFailed, TransferStarted
from nodeproc.core.messages import NOBODY, Coordinator, NodeId, Position
from nodeproc.core.state import Leader, NodeState, Successor


def refusal(state: NodeState, to: NodeId) -> str:
    """Return why a transfer to this follower can't begin now, or to any follower if NOBODY; "" if it can."""
    if not isinstance(state.role, Leader):
        return f"node_{state.leader_id} leads" if state.leader_id != NOBODY else "this node knows no leader"
    if state.pledge is not None:
        return "a new term begins"
    if state.role.successor is not None:
        return f"the leadership is being transferred to node_{state.role.successor.node}"
    if state.stalled:
        return "the disk of this node does not answer"
    allowed = _candidates(state)
    if not allowed:
        return "no follower is connected that has a vote"
    if to not in (NOBODY, *allowed):
        return f"found node {to}, allowed {', '.join(map(str, allowed))}"
    return ""


def on_transfer(state: NodeState, to: NodeId, now: float, fx: Effects) -> None:
    """Begin to transfer the leadership to this follower, or to the best one if NOBODY."""
    leader, reason = state.role, refusal(state, to)
    if reason or not isinstance(leader, Leader):
        # hit: E7 a transfer is refused
        fx.emit.append(TransferFailed(state.term, to, reason))
        return
    if to == NOBODY:
        to = _best(state, leader, now)
    leader.successor = Successor(to, now + state.config.election_timeout)
    fx.emit.append(TransferStarted(state.term, to))
    ask_when_ready(state, leader, leader.successor, fx)


def ask_when_ready(state: NodeState, leader: Leader, successor: Successor, fx: Effects) -> None:
    """Ask the follower to stand, once, when it has acknowledged the end of the log."""
    if not successor.asked and leader.progress[successor.node].matched == state.log.position:
        successor.asked = True
        state.send(fx, successor.node, Coordinator(state.term, stand=True))  # hit: E7 a follower is asked to stand


def give_up(state: NodeState, leader: Leader, successor: Successor, reason: str, fx: Effects) -> None:
    """End a transfer that has failed; the messages that waited are ordered at the end of the turn."""
    leader.successor = None  # hit: E7 a transfer fails and the leader goes on
    fx.emit.append(TransferFailed(state.term, successor.node, f"node_{successor.node}: {reason}"))


def _candidates(state: NodeState) -> tuple[NodeId, ...]:
    """Return the followers that can be asked to stand, ascending."""
    return tuple(peer for peer in state.electors if peer in state.links and peer not in state.learners)


def _best(state: NodeState, leader: Leader, now: float) -> NodeId:
    """Return the follower that answers, has acknowledged most and has the highest id, in this order."""
    silence = now - 2 * state.config.heartbeat_interval

    def merit(peer: NodeId) -> tuple[bool, Position, NodeId]:
        progress = leader.progress[peer]
        return progress.answered_at >= silence, progress.matched, peer

    return max(_candidates(state), key=merit)
