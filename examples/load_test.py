"""Send 100 messages at 100 per second, then read them back from every node: python -m examples.load_test

Run it in the project's directory with a Python that has the packages of requirements.txt, while the nodes run. The
messages go to the first port; then every port is asked which messages it delivered. If the nodes require a client
token, set the environment variable CHAT_CLIENT_TOKEN.

Exit codes: 0 every message was acknowledged, and every node delivered all of them once and in order; 1 otherwise.
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from dataclasses import dataclass

import msgspec

from nodeproc.client import Address, ChatClient
from nodeproc.core.messages import Line
from nodeproc.errors import Unreachable
from nodeproc.outcome import Outcome
from nodeproc.session import SessionSettings

SETTINGS = SessionSettings(client_token=os.environ.get("CHAT_CLIENT_TOKEN", ""))
PATIENCE_S = 30.0
"""Time for a node to deliver all messages that another one has acknowledged."""


@dataclass(frozen=True)
class Sent:
    """What the sending client knows in the end.

    session: public id, with which the msg_id of each of its messages begins.
    first_seq, last_seq: its messages are among these.
    latencies_s: of each message, from sending to its outcome.
    """

    session: str
    first_seq: int
    last_seq: int
    outcomes: list[Outcome]
    latencies_s: list[float]


async def send(address: Address, texts: list[str], per_second: float) -> Sent:
    """Send the texts at this rate, and wait for all outcomes."""
    latencies_s: list[float] = []
    async with ChatClient([address], client_id=9999, settings=SETTINGS) as client:

        async def timed(text: str) -> Outcome:
            since = time.perf_counter()
            outcome = await client.send(text)
            latencies_s.append(time.perf_counter() - since)
            return outcome

        first_seq, sending = client.session.last_seq + 1, []
        for text in texts:
            sending.append(asyncio.create_task(timed(text)))
            await asyncio.sleep(1 / per_second)
        outcomes = await asyncio.gather(*sending)
        last_seq = max(outcome.seq_no for outcome in outcomes)
        return Sent(client.session.id, first_seq, last_seq, outcomes, latencies_s)


async def delivered(address: Address, first_seq: int, last_seq: int) -> list[Line]:
    """Return the messages first_seq..last_seq as this node has delivered them, other clients' among them."""
    lines, decode = list[Line](), msgspec.json.Decoder(Line).decode
    async with asyncio.timeout(PATIENCE_S), ChatClient([address], client_id=9999, settings=SETTINGS) as client:
        async for shown in client.subscribe(first_seq):
            lines += map(decode, shown.lines.splitlines())
            if lines[-1].seq_no >= last_seq:
                break
    return lines


async def run(addresses: list[Address], messages: int, per_second: float) -> int:
    """Send, read back, compare. Returns the exit code."""
    texts = [f"Load test message {i}" for i in range(messages)]
    sent = await send(addresses[0], texts, per_second)
    failed = [outcome for outcome in sent.outcomes if outcome.kind != "ok"]
    if failed:
        print(f"{len(failed)} of {messages} messages not acknowledged: {failed[0].kind}: {failed[0].reason}")
        return 1
    median_ms = statistics.median(sent.latencies_s) * 1000
    print(
        f"{messages} messages acknowledged, the last one as seq_no {sent.last_seq}; median latency {median_ms:.1f} ms"
    )
    wrong = 0
    for host, port in addresses:
        lines = await delivered((host, port), sent.first_seq, sent.last_seq)
        right = texts == [line.payload for line in lines if line.msg_id.startswith(f"{sent.session}-")]
        print(f"{host}:{port} delivered " + ("all of them, once and in order" if right else "SOMETHING ELSE"))
        wrong += not right
    return 1 if wrong else 0


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns the exit code."""
    parser = argparse.ArgumentParser("python -m examples.load_test", description="Load test of the chat.")
    parser.add_argument("--host", default="127.0.0.1", help="host of the nodes (default %(default)s)")
    parser.add_argument("--port", type=int, action="append", help="port of a node (default 5001, 5002 and 5003)")
    parser.add_argument("--messages", type=int, default=100, help="default %(default)s")
    parser.add_argument("--rate", type=float, default=100.0, help="messages a second (default %(default)s)")
    options = parser.parse_args(arguments)
    addresses = [(options.host, port) for port in options.port or (5001, 5002, 5003)]
    try:
        return asyncio.run(run(addresses, options.messages, options.rate))
    except Unreachable as error:
        print(error, file=sys.stderr)
    except TimeoutError:
        print(f"a node did not deliver all messages within {PATIENCE_S:g} s", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
