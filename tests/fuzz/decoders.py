"""The decoders under bytes that are led by coverage, for as long as you like:

    pip install atheris
    python -m tests.fuzz.decoders -max_total_time=600 [-jobs=2] [a directory for what it found interesting]

tests/nodeproc/test_fuzz.py asks the same with Hypothesis at every run of the tests; this is for an idle night. An input
that breaks something is written to a file, `crash-…`, and belongs into tests/nodeproc/test_fuzz.py.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable
from typing import Any, Final

from nodeproc.core.messages import Known
from nodeproc.errors import FrameError, LinkRefused
from nodeproc.frames import FrameDecoder, PeerHello, PeerProof
from nodeproc.lines import LineDecoder, decode_client_line
from nodeproc.net.handshake import Accepting, Credentials
from nodeproc.net.nodestream import NodeStream
from nodeproc.records import decode_entry, decode_records
from nodeproc.session import Session

CREDENTIALS: Final = Credentials(1, (1, 2), "c", "a secret that nobody says", Known("one"), False)


def frames(data: bytes) -> None:
    accepting = Accepting(CREDENTIALS, "1" * 32)
    for message in FrameDecoder(4096, 0).feed(data):
        if isinstance(message, PeerHello):
            accepting.on_hello(message)
        elif isinstance(message, PeerProof):
            accepting.on_proof(message)
            raise AssertionError("proven without the secret")


def proven_frames(data: bytes) -> None:
    for _ in FrameDecoder().feed(data):
        pass


def entries(data: bytes) -> None:
    decode_entry(data, 0)
    decode_records(data)


def client_lines(data: bytes) -> None:
    for line in LineDecoder(1 << 16).feed(data):
        decode_client_line(line)


def node_lines(data: bytes) -> None:
    session = Session(1, "s")
    session.subscribe(1)
    session.submit(["a"], 0.0)
    session.connected(0.0)
    for line in NodeStream(1 << 16).feed(data):
        session.received(line, 0.1)
        session.tick(0.1)
        while session.next_line(0.1) is not None:
            pass


TARGETS: Final[tuple[Callable[[bytes], None], ...]] = (frames, proven_frames, entries, client_lines, node_lines)


def one_input(data: bytes) -> None:
    """The first byte chooses the decoder. What is wrong with the bytes is told in two ways and no other."""
    if data:
        with contextlib.suppress(FrameError, LinkRefused):
            TARGETS[data[0] % len(TARGETS)](data[1:])


def main() -> None:
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        sys.exit("atheris is not installed; it is no requirement of the project: pip install atheris")
    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
