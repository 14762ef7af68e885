"""Changes of the list of members, the leader's side: it stands for the next term and gives its mark the new list.

A change needs no entry of its own: the term mark carries the list, and the list in force is that of the last mark in
the log as written. One voter at a time is added or removed. A newcomer is a learner first; the leader makes it a voter
once it keeps up. Rules: G1 to G5.
"""

from __future__ import annotations

from typing import Final

from msgspec import structs

from nodeproc.core import transfer
from nodeproc.core.effects import Effects
from nodeproc.core.election import become_candidate
from nodeproc.core.events import ChangeRefused, ChangeStarted, MembersCommitted, NodeRemoved
from nodeproc.core.messages import (
    NOBODY,
    START,
    AddNode,
    Change,
    MemberAddress,
    MemberList,
    MembersMark,
    NodeId,
    Removed,
)
from nodeproc.core.ordering import majority_position, report_members
from nodeproc.core.recovered import MAX_MEMBERS
from nodeproc.core.state import Leader, NodeState

OLDER: Final = "runs an older version, which does not know lists of members"

# ---- an operator asks -----------------------------------------------------------------------------


def refusal(state: NodeState, change: Change) -> str:
    """Return why this change can't begin now; "" if it can. Rule: G2."""
    if not isinstance(state.role, Leader):
        return transfer.refusal(state, NOBODY)
    members = state.members
    reason = _not_to_add(members, change) if isinstance(change, AddNode) else _not_to_remove(members, change.node)
    if reason or change.node == state.node_id:
        return reason or transfer.refusal(state, NOBODY)
    return not_now(state, state.role, changed(members, change))


def changed(members: MemberList, change: Change) -> MemberList:
    """Return the list after a change. A node is added as a learner. Rule: G2, G3."""
    node, version = change.node, members.version + 1
    addresses = tuple(each for each in members.addresses if each.node != node)
    if isinstance(change, AddNode):
        addresses = tuple(sorted((*addresses, MemberAddress(node, change.host, change.port))))
        return structs.replace(members, version=version, learners=(*members.learners, node), addresses=addresses)
    return MemberList(
        version,
        tuple(each for each in members.voters if each != node),
        tuple(each for each in members.learners if each != node),
        tuple(sorted((*members.removed, node))),
        addresses,
    )


def with_vote(members: MemberList, newcomer: NodeId) -> MemberList:
    """Return the list in which a learner has become a voter. Rule: G3."""
    return structs.replace(
        members,
        version=members.version + 1,
        voters=tuple(sorted((*members.voters, newcomer))),
        learners=tuple(each for each in members.learners if each != newcomer),
    )


def _not_to_add(members: MemberList, change: AddNode) -> str:
    node, present = change.node, members.present
    if node in present:
        return f"node_{node} is a member already"
    if node in members.removed:
        return f"node_{node} was removed, and no id is used again; give the new node another id"
    if members.learners:
        return f"node_{members.learners[0]} is being added; one node at a time"
    return f"found {len(present)} members, allowed up to {MAX_MEMBERS}" if len(present) >= MAX_MEMBERS else ""


def _not_to_remove(members: MemberList, node: NodeId) -> str:
    if node not in members.present:
        allowed = ", ".join(map(str, members.present))
        return f"found node {node}, allowed {allowed}"
    return "it is the only voter" if members.voters == (node,) else ""


def not_now(state: NodeState, leader: Leader, new: MemberList) -> str:
    """Return why this leader can't begin a change to the new list at the moment; "" if it can. Rule: G2."""
    if state.pledge is not None or majority_position(state, leader) is None:
        # hit: G2 no change before the leader's own mark is committed
        return f"the mark of term {state.term} is not committed yet; ask again"
    if leader.successor is not None:
        return f"the leadership is being transferred to node_{leader.successor.node}"
    if state.stalled:
        return "the disk of this node does not answer"
    old = [each for each in new.voters + new.learners if each in state.unaware]
    if old:
        return f"node_{old[0]} {OLDER}"
    rebuilt = [each for each in new.voters if each in state.learners]
    if rebuilt:
        return f"node_{rebuilt[0]} is being rebuilt"
    absent = [each for each in new.voters if not _is_live(state, leader, each)]
    if 2 * len(absent) >= len(new.voters):
        # hit: G2 no change without a live majority of the new list
        return f"no majority of the new list is live: {', '.join(f'node_{each}' for each in absent)} can't be counted"
    return ""


def _is_live(state: NodeState, leader: Leader, voter: NodeId) -> bool:
    """Return whether this voter holds the mark of the term and answers; at the last heartbeat, if it is a peer."""
    if voter == state.node_id:
        return True
    progress = leader.progress[voter]
    silence = leader.heartbeat_at - progress.answered_at
    return progress.matched.term == state.term and silence <= state.config.election_timeout


def on_change(state: NodeState, change: Change, now: float, fx: Effects) -> None:
    """Begin a change, or transfer the leadership if the leader itself is to be removed. Rule: G2, G5."""
    reason = refusal(state, change)
    if reason:
        # hit: G2 a change is refused
        fx.emit.append(ChangeRefused(state.term, _show(change), reason))
    elif change.node == state.node_id:
        transfer.on_transfer(state, NOBODY, now, fx)  # hit: G5 a leader that is to be removed hands over first
    else:
        begin(state, changed(state.members, change), _show(change), now, fx)


def _show(change: Change) -> str:
    if isinstance(change, AddNode):
        return f"add node_{change.node} at {change.host}:{change.port}"
    return f"remove node_{change.node}"


def begin(state: NodeState, new: MemberList, what: str, now: float, fx: Effects) -> None:
    """Stand for the next term under the list in force; if this node wins, its mark has the new list. Rule: G2."""
    fx.emit.append(ChangeStarted(state.term, what))
    become_candidate(state, now, fx, members=new)  # hit: G2 a leader stands for a change


# ---- with every heartbeat ---------------------------------------------------------------------------


def tick_members(state: NodeState, leader: Leader, now: float, fx: Effects) -> None:
    """Notify the removed nodes once the list is committed, and make a newcomer a voter that keeps up. Rule: G3, G5."""
    members = state.log.members
    if members is None or majority_position(state, leader) is None:
        return
    if not leader.settled:
        leader.settled = True
        report_members(state, fx, MembersCommitted)
    _notify(state, members.removed, fx)
    for newcomer in members.learners:
        if newcomer != state.node_id and _keeps_up(state, leader, newcomer, now):
            new = with_vote(members, newcomer)
            if not not_now(state, leader, new):
                # hit: G3 a newcomer that keeps up becomes a voter
                begin(state, new, f"give node_{newcomer} a vote", now, fx)
                return


def notify_removed(state: NodeState, settled: bool, fx: Effects) -> None:
    """Notify removed nodes as the leader does, since it may have no link to them. Called with its heartbeat. Rule: G5.

    The list in force at the last delivered message is committed.

    Args:
        settled: the leader's mark is committed too.
    """
    members, marks = state.log.members, state.log.marks
    if members is None or not members.removed:
        return
    has_it = settled and marks[-1].term == state.term
    mark = marks[-1] if has_it else next((each for each in reversed(marks) if each.term <= state.log.base.term), None)
    if isinstance(mark, MembersMark):
        _notify(state, mark.members.removed, fx)  # hit: G5 a follower notifies a removed node


def _notify(state: NodeState, removed: tuple[NodeId, ...], fx: Effects) -> None:
    for node in removed:
        if node in state.links and node not in state.unaware:  # An older version would take the frame for a broken one.
            state.send(fx, node, Removed(state.term))  # hit: G5 a removed node is notified


def _keeps_up(state: NodeState, leader: Leader, newcomer: NodeId, now: float) -> bool:
    """Return whether the newcomer's latest round took no longer than election_timeout; begin the next round.

    A round ends when the newcomer has acknowledged the end that the log had when the round began.
    """
    progress = leader.progress[newcomer]
    if progress.matched.term != state.term or progress.matched < progress.round_end:
        return False
    is_fast = progress.round_end != START and now - progress.round_at <= state.config.election_timeout
    progress.round_end, progress.round_at = state.log.position, now  # hit: G3 a newcomer begins a round
    return is_fast


# ---- a removed node ---------------------------------------------------------------------------------


def on_removed(state: NodeState, by: NodeId, fx: Effects) -> None:
    """Stop, because a committed list names this node as removed. Rule: G5."""
    fx.emit.append(NodeRemoved(state.term, by))  # hit: G5 a removed node stops
    fx.leave = f"node_{by} says in term {state.term} that this node is a member no more"
