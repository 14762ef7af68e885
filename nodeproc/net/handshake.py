"""Both ends of a link prove that they belong to the same cluster before any other frame is taken. Pure. Rule: M3.

    dialler  --- PEER_HELLO(who, nonce) ------------------>  acceptor
             <-- PEER_CHALLENGE(who, nonce, proof) --------
             --- PEER_PROOF(proof, promised) ------------->
             <-- PEER_WELCOME(promised), or PEER_REFUSAL(reason) at any point

A proof is HMAC-SHA256, keyed with the shared secret, over the role, the channel and everything that both have said; the
two nonces make it worthless on any other link, the role makes one end's proof worthless as the other's, and the channel
(the certificates of a TLS link, nothing without TLS) makes it worthless where somebody stands between with certificates
of his own. Without a secret the key is empty: then a link only keeps apart clusters that are not meant to meet.

What follows the handshake is not under the secret: whoever can change bytes on the way can speak for a node, unless the
link is TLS.

Versions: a node takes a link to one of the version before its own, so that a cluster is renewed one node at a time. A
new version may add fields with defaults to a frame, for unknown fields are passed over; it sends a new kind of frame
only to those whose version knows it, and counts what it has added to PEER_HELLO and PEER_CHALLENGE into a proof only
where both versions have it.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from nodeproc.core.messages import NOTHING, NodeId, Promised
from nodeproc.errors import LinkRefused
from nodeproc.frames import PeerChallenge, PeerHello, PeerProof, PeerWelcome

VERSION: Final = 3
"""Of the frames between nodes."""
OLDEST: Final = 3
"""Read as well. VERSION - 1 from version 4 on; version 2 knew nothing of the other end's versions."""

NONCE_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Credentials:
    """What this node can say of itself."""

    node: NodeId
    members: tuple[NodeId, ...]
    cluster: str
    secret: str
    identity: str
    rebuilding: bool
    promised: Mapping[NodeId, Promised] = field(default_factory=dict)
    """What each member is known to have promised (M6)."""


@dataclass(frozen=True, slots=True)
class Proven:
    """Who the other end is.

    promised: what it knows this node to have promised.
    """

    peer: NodeId
    identity: str
    rebuilding: bool
    promised: Promised = NOTHING


class Dialling:
    """The dialler's half.

    Args:
        nonce: fresh random, 32 hex digits.
    """

    def __init__(self, own: Credentials, peer: NodeId, nonce: str) -> None:
        self._own, self._peer = own, peer
        self.hello = PeerHello(VERSION, own.cluster, own.node, own.identity, own.rebuilding, nonce, own.members, OLDEST)

    def on_challenge(self, challenge: PeerChallenge, channel: str = "") -> tuple[PeerProof, Proven]:
        """The proof to be sent, and who is at the other end.

        Args:
            channel: what both ends know this connection by; "": nothing.

        Raises:
            LinkRefused: it is another node, or it does not know the secret.
        """
        if challenge.node != self._peer:
            raise LinkRefused(f"node_{challenge.node} answers there, not node_{self._peer}")
        if len(challenge.nonce) != 2 * NONCE_BYTES:
            raise LinkRefused(f"a nonce of {len(challenge.nonce)} digits, allowed {2 * NONCE_BYTES}")
        wanted = _proof("accept", self._own.secret, channel, self.hello, challenge)
        if not hmac.compare_digest(wanted, challenge.proof.encode()):
            raise LinkRefused("it does not know this cluster's secret")
        known = self._own.promised.get(self._peer, NOTHING)
        proof = PeerProof(_proof("dial", self._own.secret, channel, self.hello, challenge).decode(), known)
        return proof, Proven(challenge.node, challenge.identity, challenge.rebuilding)


class Accepting:
    """The acceptor's half.

    Args:
        nonce: fresh random, 32 hex digits.
        channel: what both ends know this connection by; "": nothing.
    """

    def __init__(self, own: Credentials, nonce: str, channel: str = "") -> None:
        self._own, self._nonce, self._channel = own, nonce, channel
        self._hello: PeerHello | None = None
        self._challenge: PeerChallenge | None = None

    def on_hello(self, hello: PeerHello) -> PeerChallenge:
        """The challenge to be sent.

        Raises:
            LinkRefused: another version or cluster, no member, other members, or this node itself.
        """
        own = self._own
        if self._hello is not None:
            raise LinkRefused("PEER_HELLO came twice")
        if hello.version < OLDEST or (hello.least or hello.version) > VERSION:
            raise LinkRefused(f"version {hello.version}, allowed {OLDEST}..{VERSION}")
        if hello.cluster != own.cluster:
            raise LinkRefused(f"cluster {hello.cluster[:64]!r}, allowed {own.cluster!r}")
        if hello.node == own.node or hello.node not in own.members:
            allowed = ", ".join(str(member) for member in own.members if member != own.node)
            raise LinkRefused(f"node id {hello.node}, allowed {allowed or 'none'}")
        if hello.members != own.members:
            # Two majorities without a common member could both acknowledge. Rule: M5.
            raise LinkRefused(
                f"{_shown(hello.members[:10])} in node_{hello.node}'s configuration, "
                f"allowed {_shown(own.members)}, as in node_{own.node}'s"
            )
        if len(hello.nonce) != 2 * NONCE_BYTES:
            raise LinkRefused(f"a nonce of {len(hello.nonce)} digits, allowed {2 * NONCE_BYTES}")
        unproven = PeerChallenge(own.node, own.identity, own.rebuilding, self._nonce, "", VERSION)
        proof = _proof("accept", own.secret, self._channel, hello, unproven).decode()
        self._hello = hello
        self._challenge = msgspec.structs.replace(unproven, proof=proof)
        return self._challenge

    def on_proof(self, proof: PeerProof) -> Proven:
        """Who is at the other end.

        Raises:
            LinkRefused: the proof is wrong or nothing was asked yet.
        """
        hello = self._hello
        if hello is None or self._challenge is None:
            raise LinkRefused("PEER_PROOF came before PEER_HELLO")
        wanted = _proof("dial", self._own.secret, self._channel, hello, self._challenge)
        if not hmac.compare_digest(wanted, proof.proof.encode()):
            raise LinkRefused("it does not know this cluster's secret")
        return Proven(hello.node, hello.identity, hello.rebuilding, proof.promised)

    def welcome(self, who: Proven) -> PeerWelcome:
        """What is sent to a peer that is taken."""
        return PeerWelcome(self._own.promised.get(who.peer, NOTHING))


def _shown(members: Sequence[NodeId]) -> str:
    return f"members {', '.join(map(str, members)) or 'none'}"


def _proof(
    role: Literal["dial", "accept"], secret: str, channel: str, hello: PeerHello, challenge: PeerChallenge
) -> bytes:
    """64 hex digits. Everything said but the proof itself is in it, as JSON, which nothing can be mistaken in."""
    said = (role, channel, hello, msgspec.structs.replace(challenge, proof=""))
    return hmac.digest(secret.encode(), msgspec.json.encode(said), "sha256").hex().encode()
