"""STORY 3: what a node's own disk can't give any more, it gets from a peer.

Delivered records are the same bytes on every node and carry a CRC. So where old ones can't be read, one of the peers
after the other is asked for a copy, whoever leads: what it has delivered is what was delivered here. One stretch at a
time; whoever waits for another one reads, and tells, again. Rule: K6.
"""

from __future__ import annotations

from nodeproc.core.effects import Copied, Effects, Fetch
from nodeproc.core.messages import Copy, CopyRequest, NodeId, Position, Record
from nodeproc.core.state import FOREVER, Copying, NodeState

UNCOPIED_MAX = 64
"""Stretches that are remembered as being had nowhere; of more the oldest are asked for again sooner."""


def on_damaged(state: NodeState, after: Position, now: float, fx: Effects) -> None:
    """The delivered records behind `after` can't be read here: ask for a copy, unless nobody had one a moment ago."""
    if state.copying is not None:
        return  # Whoever waits is woken when that one is here, and tells again.
    if now < state.uncopied.get(after, 0.0):
        fx.copied.append(Copied(after, ()))  # hit: K6 no copy is asked for again at once
        return
    untried = [peer for peer in state.peers if peer in state.links and peer not in state.strangers]
    state.copying = Copying(after, state.fresh_number(), untried)
    _ask_next(state, state.copying, now, fx)


def _ask_next(state: NodeState, copying: Copying, now: float, fx: Effects) -> None:
    """The next peer, or the end of it: nobody within reach has a copy."""
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
    """Take what a peer has delivered behind that position, however late it comes; else ask the next one."""
    copying = state.copying
    if copying is None or msg.number != copying.number:
        return
    if msg.records:
        state.copying = None
        fx.copied.append(Copied(copying.after, msg.records))  # hit: K6 a copy is here
    elif sender == copying.asked:
        _ask_next(state, copying, now, fx)


def tick_copying(state: NodeState, now: float, fx: Effects) -> None:
    """An answer stayed away: ask the next one."""
    if state.copying is not None and now >= state.copying.until:
        _ask_next(state, state.copying, now, fx)  # hit: K6 another peer is asked


def copying_deadline(state: NodeState) -> float:
    """When tick_copying is due."""
    return state.copying.until if state.copying is not None else FOREVER


# ---- the peer answers -----------------------------------------------------------------------------


def on_copy_request(state: NodeState, sender: NodeId, msg: CopyRequest, fx: Effects) -> None:
    """Read what is delivered here behind that position, or say that there is nothing."""
    if msg.after >= state.log.base:
        state.send(fx, sender, Copy(msg.number, ()))  # hit: K6 a peer has delivered less
        return
    token = state.fresh_number()
    state.copy_requests[sender] = (token, msg.number)
    fx.fetch.append(Fetch(sender, msg.after, state.config.fetch_max_bytes, token))


def is_copy_wanted(state: NodeState, peer: NodeId, token: int) -> bool:
    """Whether that read was for a copy."""
    return state.copy_requests.get(peer, (0, 0))[0] == token


def send_copy(state: NodeState, peer: NodeId, records: list[Record], fx: Effects) -> None:
    """Hand over what the disk had; only what is delivered here is certain to be the same there."""
    _, number = state.copy_requests.pop(peer)
    delivered = tuple(record for record in records if record.position <= state.log.base)
    state.send(fx, peer, Copy(number, delivered))  # hit: K6 a peer hands over a copy
