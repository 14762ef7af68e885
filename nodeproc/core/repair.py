"""STORY 4: a node gets copies of delivered records that its own disk cannot read any more.

Delivered records are the same bytes on every node and carry a CRC. So a node that cannot read some of them asks its
peers for a copy, one after the other, independently of leader and term. It asks for one range at a time. A reader
that waits for another range reads again afterwards, and reports the damage again. Rule: K6.
"""

from __future__ import annotations

from typing import Final

from nodeproc.core.effects import Copied, Effects, Fetch
from nodeproc.core.messages import Copy, CopyRequest, NodeId, Position, Record
from nodeproc.core.state import FOREVER, Copying, NodeState

UNCOPIED_MAX: Final = 64
"""Maximum number of ranges that are recorded as unavailable; above it the oldest entry is dropped."""


def on_damaged(state: NodeState, after: Position, now: float, fx: Effects) -> None:
    """Ask for a copy of the delivered records after `after`, unless no peer had one within election_timeout."""
    if state.copying is not None:
        return  # All waiting readers are woken when the copy under way has ended; they report the damage again.
    if now < state.uncopied.get(after, 0.0):
        fx.copied.append(Copied(after, ()))  # hit: K6 no copy is asked for again at once
        return
    untried = [peer for peer in state.peers if peer in state.links and peer not in state.unknown_members]
    state.copying = Copying(after, state.fresh_number(), untried)
    _ask_next(state, state.copying, now, fx)


def _ask_next(state: NodeState, copying: Copying, now: float, fx: Effects) -> None:
    """Ask the next peer; after the last one, report that no reachable peer has a copy."""
    while copying.untried:
        peer = copying.untried.pop(0)
        if peer in state.links:
            copying.asked, copying.until = peer, now + state.config.election_timeout
            state.send(fx, peer, CopyRequest(copying.after, copying.number))  # hit: K6 a copy is asked for
            return
    state.copying = None
    while len(state.uncopied) >= UNCOPIED_MAX:
        del state.uncopied[next(iter(state.uncopied))]
    state.uncopied[copying.after] = now + state.config.election_timeout
    fx.copied.append(Copied(copying.after, ()))  # hit: K6 no peer has a copy


def on_copy(state: NodeState, sender: NodeId, msg: Copy, now: float, fx: Effects) -> None:
    """Accept the records that a peer has sent, even a late answer; if it has none, ask the next peer."""
    copying = state.copying
    if copying is None or msg.number != copying.number:
        return
    if msg.records:
        state.copying = None
        fx.copied.append(Copied(copying.after, msg.records))  # hit: K6 a copy is here
    elif sender == copying.asked:
        _ask_next(state, copying, now, fx)


def tick_copying(state: NodeState, now: float, fx: Effects) -> None:
    """Ask the next peer if the answer of the last one did not come in time."""
    if state.copying is not None and now >= state.copying.until:
        _ask_next(state, state.copying, now, fx)  # hit: K6 another peer is asked


def copying_deadline(state: NodeState) -> float:
    """Return when tick_copying is due."""
    return state.copying.until if state.copying is not None else FOREVER


# ---- the peer answers -----------------------------------------------------------------------------


def on_copy_request(state: NodeState, sender: NodeId, msg: CopyRequest, fx: Effects) -> None:
    """Start to read the delivered records after that position, or answer that there are none."""
    if msg.after >= state.log.base:
        state.send(fx, sender, Copy(msg.number, ()))  # hit: K6 a peer has delivered less
        return
    token = state.fresh_number()
    state.copy_requests[sender] = (token, msg.number)
    fx.fetch.append(Fetch(sender, msg.after, state.config.fetch_max_bytes, token))


def is_copy_wanted(state: NodeState, peer: NodeId, token: int) -> bool:
    """Return whether the disk read with this token is for a copy that the peer still wants."""
    return state.copy_requests.get(peer, (0, 0))[0] == token


def send_copy(state: NodeState, peer: NodeId, records: list[Record], fx: Effects) -> None:
    """Send the peer those of the read records that are delivered here: only these are the same on every node."""
    _, number = state.copy_requests.pop(peer)
    delivered = tuple(record for record in records if record.position <= state.log.base)
    state.send(fx, peer, Copy(number, delivered))  # hit: K6 a peer hands over a copy
