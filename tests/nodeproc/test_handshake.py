"""Both ends of a link prove themselves, and nobody else gets in. Rule: M3."""

from __future__ import annotations

import hmac
from dataclasses import replace
from typing import Any
from zlib import crc32

import msgspec
import pytest

from nodeproc.core.messages import JoinAck, Known, Position, Promised
from nodeproc.errors import LinkRefused
from nodeproc.frames import FrameDecoder, PeerChallenge, PeerProof
from nodeproc.net.handshake import OLDEST, VERSION, Accepting, Credentials, Dialling, Proven
from nodeproc.records import PREFIX

ONE = Credentials(1, (1, 2, 3), "chat", "secret", Known("id-one"), False)
TWO = Credentials(2, (1, 2, 3), "chat", "secret", Known("id-two"), True)
NONCE_1, NONCE_2, NONCE_3 = "1" * 32, "2" * 32, "3" * 32


def shake(dialler: Credentials, acceptor: Credentials, wanted: int = 2) -> tuple[Proven, Proven]:
    """Whom the dialler and whom the acceptor met."""
    dialling, accepting = Dialling(dialler, wanted, NONCE_1), Accepting(acceptor, NONCE_2)
    proof, met = dialling.on_challenge(accepting.on_hello(dialling.hello))
    return met, accepting.on_proof(proof)


def test_both_ends_learn_who_the_other_is() -> None:
    assert shake(ONE, TWO) == (Proven(2, Known("id-two"), True), Proven(1, Known("id-one"), False))


def test_without_a_secret_the_handshake_works_too() -> None:
    shake(replace(ONE, secret=""), replace(TWO, secret=""))


@pytest.mark.parametrize(
    ("dialler", "complaint"),
    [
        (replace(ONE, cluster="other"), "cluster 'other', allowed 'chat'"),
        (replace(ONE, node=0), "node id 0, allowed 1 or above, not that of this node"),
        (replace(ONE, node=2), "node id 2, allowed 1 or above, not that of this node"),
        (
            replace(ONE, members=(1, 2, 4)),
            "members 1, 2, 4 in node_1's configuration, allowed members 1, 2, 3, as in node_2's",
        ),
        (replace(ONE, secret="wrong"), "does not know this cluster's secret"),
    ],
)
def test_a_dialler_of_another_cluster_is_refused(dialler: Credentials, complaint: str) -> None:
    with pytest.raises(LinkRefused, match=complaint):
        shake(dialler, TWO)


@pytest.mark.parametrize(
    ("version", "least"), [(OLDEST - 1, 0), (OLDEST - 1, 1), (VERSION + 1, 0), (VERSION + 2, VERSION + 1)]
)
def test_a_version_that_neither_end_can_bring_itself_to_is_refused(version: int, least: int) -> None:
    hello = msgspec.structs.replace(Dialling(ONE, 2, NONCE_1).hello, version=version, least=least)
    with pytest.raises(LinkRefused, match=f"version {version}, allowed {OLDEST}..{VERSION}"):
        Accepting(TWO, NONCE_2).on_hello(hello)


def test_a_node_of_the_next_version_is_taken_and_told_of_ours() -> None:
    hello = msgspec.structs.replace(Dialling(ONE, 2, NONCE_1).hello, version=VERSION + 1, least=VERSION)
    assert Accepting(TWO, NONCE_2).on_hello(hello).version == VERSION


def test_the_version_of_a_readmitted_identity_is_shown_by_both_ends() -> None:
    one, two = replace(ONE, shown=Known("id-one", 7, 2)), replace(TWO, shown=Known("id-two", 3, 1))
    assert shake(one, two) == (Proven(2, two.shown, True), Proven(1, one.shown, False))


def test_the_proofs_of_a_link_to_a_node_of_the_previous_version_do_not_cover_what_it_does_not_know() -> None:
    """The proofs of version 4, as that version computes them, of frames without the later fields."""
    one = replace(ONE, shown=Known("id-one", 7, 2), address=("127.0.0.1", 5001))
    here = {"type": "PEER_HELLO", "version": 4, "cluster": "chat", "node": 1, "identity": "id-one", "rebuilding": False}
    here |= {"nonce": NONCE_1, "members": [1, 2, 3], "least": 4, "change": [7, 2]}
    there = {"type": "PEER_CHALLENGE", "node": 2, "identity": "id-two", "rebuilding": True, "nonce": NONCE_2}
    there |= {"proof": "", "version": 4, "change": [0, 0]}

    def proof(role: str, hello: object, challenge: object) -> str:
        return hmac.digest(b"secret", msgspec.json.encode([role, "", hello, challenge]), "sha256").hex()

    dialling = Dialling(one, 2, NONCE_1)
    assert dialling.hello.least == 4, "version 4 accepts a node that still speaks it"
    answer = PeerChallenge(2, "id-two", True, NONCE_2, proof("accept", here | {"version": VERSION}, there), 4)
    given, who = dialling.on_challenge(answer)
    assert who == Proven(2, Known("id-two"), True, 4) and not who.knows_lists
    assert given.proof == proof("dial", here | {"version": VERSION}, there)

    accepting = Accepting(TWO, NONCE_2)
    challenge = accepting.on_hello(msgspec.structs.replace(dialling.hello, version=4, address=("", 0)))
    there |= {"version": VERSION}
    assert challenge.proof == proof("accept", here, there)
    assert accepting.on_proof(PeerProof(proof("dial", here, there))) == Proven(1, Known("id-one", 7, 2), False, 4)


def test_a_newcomer_is_no_founder_and_says_where_it_listens() -> None:
    """Rule: G1, M5."""
    newcomer = replace(ONE, node=4, address=("127.0.0.1", 5004))
    who = shake(newcomer, TWO)[1]
    assert who == Proven(4, Known("id-one"), False, VERSION, address=("127.0.0.1", 5004)) and who.knows_lists


def test_what_the_next_version_adds_to_a_frame_is_passed_over() -> None:
    head = b'{"type":"JOIN_ACK","term":3,"leader":1,"news":[1]}'
    (message,) = FrameDecoder().feed(PREFIX.pack(len(head), 0, crc32(head)) + head)
    assert message == JoinAck(3, 1)


def test_a_node_that_answers_at_anothers_address_is_refused() -> None:
    with pytest.raises(LinkRefused, match="node_2 answers there, not node_3"):
        shake(ONE, TWO, wanted=3)


def test_an_acceptor_without_the_secret_is_refused_before_anything_is_proven_to_it() -> None:
    dialling, accepting = Dialling(ONE, 2, NONCE_1), Accepting(replace(TWO, secret="guess"), NONCE_2)
    with pytest.raises(LinkRefused, match="secret"):
        dialling.on_challenge(accepting.on_hello(dialling.hello))


def test_a_proof_is_worthless_on_another_link() -> None:
    dialling, accepting = Dialling(ONE, 2, NONCE_1), Accepting(TWO, NONCE_2)
    proof, _ = dialling.on_challenge(accepting.on_hello(dialling.hello))
    again = Accepting(TWO, NONCE_3)
    again.on_hello(dialling.hello)
    with pytest.raises(LinkRefused, match="secret"):
        again.on_proof(proof)


def test_an_acceptors_proof_is_worthless_as_a_diallers() -> None:
    accepting = Accepting(TWO, NONCE_2)
    challenge = accepting.on_hello(Dialling(ONE, 2, NONCE_1).hello)
    with pytest.raises(LinkRefused, match="secret"):
        accepting.on_proof(PeerProof(challenge.proof))


@pytest.mark.parametrize("field", ["cluster", "node", "identity", "rebuilding", "nonce", "address"])
def test_everything_the_dialler_said_is_under_its_proof(field: str) -> None:
    said: dict[str, Any] = {"cluster": "c", "node": 3, "identity": "x", "rebuilding": True, "nonce": NONCE_3}
    said["address"] = ("127.0.0.1", 1)
    dialling = Dialling(ONE, 2, NONCE_1)
    other = msgspec.structs.replace(dialling.hello, **{field: said[field]})
    accepting = Accepting(replace(TWO, cluster=other.cluster), NONCE_2)
    with pytest.raises(LinkRefused, match="secret"):
        dialling.on_challenge(accepting.on_hello(other))


@pytest.mark.parametrize("field", ["identity", "rebuilding", "nonce", "proof"])
def test_everything_the_acceptor_said_is_under_its_proof(field: str) -> None:
    said: dict[str, Any] = {"identity": "x", "rebuilding": False, "nonce": NONCE_3, "proof": "0" * 64}
    dialling = Dialling(ONE, 2, NONCE_1)
    challenge = Accepting(TWO, NONCE_2).on_hello(dialling.hello)
    with pytest.raises(LinkRefused, match="secret"):
        dialling.on_challenge(msgspec.structs.replace(challenge, **{field: said[field]}))


def test_steps_out_of_turn_are_refused() -> None:
    with pytest.raises(LinkRefused, match="before PEER_HELLO"):
        Accepting(TWO, NONCE_2).on_proof(PeerProof(""))
    accepting = Accepting(TWO, NONCE_2)
    accepting.on_hello(Dialling(ONE, 2, NONCE_1).hello)
    with pytest.raises(LinkRefused, match="twice"):
        accepting.on_hello(Dialling(ONE, 2, NONCE_3).hello)


def test_an_empty_nonce_is_refused() -> None:
    with pytest.raises(LinkRefused, match="a nonce of 0 digits"):
        Accepting(TWO, NONCE_2).on_hello(Dialling(ONE, 2, "").hello)


def test_a_proof_made_over_one_channel_is_worthless_over_another() -> None:
    dialling, accepting = Dialling(ONE, 2, NONCE_1), Accepting(TWO, NONCE_2, "his certificates")
    with pytest.raises(LinkRefused, match="secret"):
        dialling.on_challenge(accepting.on_hello(dialling.hello), "our certificates")
    accepting = Accepting(TWO, NONCE_2, "our certificates")
    proof, met = dialling.on_challenge(accepting.on_hello(dialling.hello), "our certificates")
    assert (met.peer, accepting.on_proof(proof).peer) == (2, 1)


def test_a_link_over_tls_is_not_talked_down_to_one_without() -> None:
    dialling, accepting = Dialling(ONE, 2, NONCE_1), Accepting(TWO, NONCE_2)
    with pytest.raises(LinkRefused, match="secret"):
        dialling.on_challenge(accepting.on_hello(dialling.hello), "our certificates")


def test_a_challenge_sent_back_to_its_maker_proves_nothing() -> None:
    """A stranger opens a link to a node that is dialling him, and hands each one's words to the other."""
    dialling, accepting = Dialling(ONE, 2, NONCE_1), Accepting(ONE, NONCE_2)
    with pytest.raises(LinkRefused, match="node id 1, allowed 1 or above"):
        accepting.on_hello(dialling.hello)
    posing = msgspec.structs.replace(dialling.hello, node=2)
    challenge = msgspec.structs.replace(accepting.on_hello(posing), node=2)
    with pytest.raises(LinkRefused, match="secret"):
        dialling.on_challenge(challenge)


def test_proofs_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(wanted: bytes, found: bytes) -> bool:
        compared.append((wanted, found))
        return wanted == found

    monkeypatch.setattr("nodeproc.net.handshake.hmac.compare_digest", compare)
    shake(ONE, TWO)
    assert len(compared) == 2 and all(len(wanted) == 64 for wanted, _ in compared)


def test_a_proof_that_is_no_text_of_digits_is_refused_and_no_error() -> None:
    accepting = Accepting(TWO, NONCE_2)
    accepting.on_hello(Dialling(ONE, 2, NONCE_1).hello)
    for proof in ("", "ä" * 64, "\x00" * 64, "0" * 63):
        with pytest.raises(LinkRefused, match="secret"):
            accepting.on_proof(PeerProof(proof))


def test_each_end_learns_what_the_other_knows_it_to_have_promised_once_both_are_proven() -> None:
    """Rule: M6."""
    of_one, of_two = Promised("id-one", 3, Position(3, 7)), Promised("id-two", 4, Position(2, 9))
    dialling = Dialling(replace(ONE, promised={2: of_two, 3: of_one}), 2, NONCE_1)
    accepting = Accepting(replace(TWO, promised={1: of_one}), NONCE_2)
    proof, _ = dialling.on_challenge(accepting.on_hello(dialling.hello))
    who = accepting.on_proof(proof)
    assert who.promised == of_two
    assert accepting.welcome(who).promised == of_one
