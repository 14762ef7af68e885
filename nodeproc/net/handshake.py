"""The handshake: both ends of a link prove that they belong to the same cluster before any other frame. Pure. Rule: M3.

    dialler  --- PEER_HELLO(who, nonce) ------------------>  acceptor
             <-- PEER_CHALLENGE(who, nonce, proof) --------
             --- PEER_PROOF(proof, promised) ------------->
             <-- PEER_WELCOME(promised), or PEER_REFUSAL(reason) at any point

A proof is HMAC-SHA256, keyed with the shared secret, of the role, the channel and everything that both ends have sent.
The nonces prevent its use on another link, and the role its use by the other end. The channel prevents a man in the
middle with his own certificates: it is the hash of the certificates of a TLS link, and empty without TLS. Without a
secret the key is empty, so the handshake only keeps clusters apart that share a network by mistake.

The frames after the handshake are not authenticated by the secret: without TLS, an attacker who can change packets can
impersonate a node.

Versions: a node accepts a link to a node of the previous version, so that a cluster can be upgraded node by node. A new
version may add fields with defaults to a frame, because unknown fields are ignored. It sends a new kind of frame only
to nodes whose version knows it. New fields of PEER_HELLO and PEER_CHALLENGE are part of a proof only if both versions
have them.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from nodeproc.core.messages import NOTHING, Known, NodeId, Promised
from nodeproc.errors import LinkRefused
from nodeproc.frames import PeerChallenge, PeerHello, PeerProof, PeerWelcome

VERSION: Final = 5
"""Version of the frames between nodes. Version 5 added REMOVED, marks with a list of members, and `address` to
PEER_HELLO."""
OLDEST: Final = VERSION - 1
"""The oldest accepted version."""

NONCE_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Credentials:
    """This node's own data for the handshake."""

    node: NodeId
    members: tuple[NodeId, ...]
    cluster: str
    secret: str
    shown: Known
    rebuilding: bool
    promised: Mapping[NodeId, Promised] = field(default_factory=dict)
    """The known promises of each member (M6)."""
    address: tuple[str, int] = ("", 0)
    """Host and port on which this node listens."""


@dataclass(frozen=True, slots=True)
class Proven:
    """The proven node at the other end.

    version: the newest version that the other end speaks.
    promised: the promises of this node that the other end knows.
    address: where the other end listens, as it says itself; ("", 0): not known.
    """

    peer: NodeId
    shown: Known
    rebuilding: bool
    version: int = VERSION
    promised: Promised = NOTHING
    address: tuple[str, int] = ("", 0)

    @property
    def knows_lists(self) -> bool:
        """False for an older version, which does not know lists of members. Rule: G2."""
        return self.version >= 5


class Dialling:
    """The dialler's half of a handshake.

    Args:
        nonce: fresh random, 32 hex digits.
    """

    def __init__(self, own: Credentials, peer: NodeId, nonce: str) -> None:
        self._own, self._peer = own, peer
        shown = own.shown
        self.hello = PeerHello(
            version=VERSION,
            cluster=own.cluster,
            node=own.node,
            identity=shown.identity,
            rebuilding=own.rebuilding,
            nonce=nonce,
            members=own.members,
            least=OLDEST,
            change=shown.version,
            address=own.address,
        )

    def on_challenge(self, challenge: PeerChallenge, channel: str = "") -> tuple[PeerProof, Proven]:
        """Return the proof to be sent, and the proven node at the other end.

        Args:
            channel: the hash of both certificates; "" without TLS.

        Raises:
            LinkRefused: the other end is another node, or does not know the secret.
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
        shown = Known(challenge.identity, *challenge.change)
        return proof, Proven(challenge.node, shown, challenge.rebuilding, challenge.version)


class Accepting:
    """The acceptor's half of a handshake.

    Args:
        nonce: fresh random, 32 hex digits.
        channel: the hash of both certificates; "" without TLS.
    """

    def __init__(self, own: Credentials, nonce: str, channel: str = "") -> None:
        self._own, self._nonce, self._channel = own, nonce, channel
        self._hello: PeerHello | None = None
        self._challenge: PeerChallenge | None = None

    def on_hello(self, hello: PeerHello) -> PeerChallenge:
        """Return the challenge to be sent.

        Raises:
            LinkRefused: another version or cluster, other founders, or this node's own id. A newcomer is no founder.
        """
        own = self._own
        if self._hello is not None:
            raise LinkRefused("PEER_HELLO came twice")
        if hello.version < OLDEST or (hello.least or hello.version) > VERSION:
            raise LinkRefused(f"version {hello.version}, allowed {OLDEST}..{VERSION}")
        if hello.cluster != own.cluster:
            raise LinkRefused(f"cluster {hello.cluster[:64]!r}, allowed {own.cluster!r}")
        if hello.node == own.node or hello.node < 1:
            raise LinkRefused(f"node id {hello.node}, allowed 1 or above, not that of this node")
        if hello.members != own.members:
            # Two majorities without a common member could both acknowledge. Rule: M5.
            raise LinkRefused(
                f"{_shown(hello.members[:10])} in node_{hello.node}'s configuration, "
                f"allowed {_shown(own.members)}, as in node_{own.node}'s"
            )
        if len(hello.nonce) != 2 * NONCE_BYTES:
            raise LinkRefused(f"a nonce of {len(hello.nonce)} digits, allowed {2 * NONCE_BYTES}")
        shown = own.shown
        unproven = PeerChallenge(own.node, shown.identity, own.rebuilding, self._nonce, "", VERSION, shown.version)
        proof = _proof("accept", own.secret, self._channel, hello, unproven).decode()
        self._hello = hello
        self._challenge = msgspec.structs.replace(unproven, proof=proof)
        return self._challenge

    def on_proof(self, proof: PeerProof) -> Proven:
        """Return the proven node at the other end.

        Raises:
            LinkRefused: the proof is wrong, or there was no challenge.
        """
        hello = self._hello
        if hello is None or self._challenge is None:
            raise LinkRefused("PEER_PROOF came before PEER_HELLO")
        wanted = _proof("dial", self._own.secret, self._channel, hello, self._challenge)
        if not hmac.compare_digest(wanted, proof.proof.encode()):
            raise LinkRefused("it does not know this cluster's secret")
        shown = Known(hello.identity, *hello.change)
        return Proven(hello.node, shown, hello.rebuilding, hello.version, proof.promised, hello.address)

    def welcome(self, who: Proven) -> PeerWelcome:
        """Return the answer to a peer that is accepted."""
        return PeerWelcome(self._own.promised.get(who.peer, NOTHING))


def _shown(members: Sequence[NodeId]) -> str:
    return f"members {', '.join(map(str, members)) or 'none'}"


def _proof(
    role: Literal["dial", "accept"], secret: str, channel: str, hello: PeerHello, challenge: PeerChallenge
) -> bytes:
    """Return the proof, 64 hex digits. It covers everything that was sent except the proof itself, as JSON."""
    said = [msgspec.to_builtins(frame) for frame in (hello, msgspec.structs.replace(challenge, proof=""))]
    if min(hello.version, challenge.version) < 5:
        del said[0]["address"]
    return hmac.digest(secret.encode(), msgspec.json.encode((role, channel, *said)), "sha256").hex().encode()
