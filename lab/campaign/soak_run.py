"""A process that runs and judges the scenarios of a soak: orders on standard input, a row each on standard output."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading

import msgspec

from lab.campaign.soak import Order, play
from lab.live.children import say


def _read(orders: queue.SimpleQueue[bytes]) -> None:
    """Put the orders into a queue; interrupt the run when standard input ends, since the soak has ended."""
    for line in sys.stdin.buffer:
        orders.put(line)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    orders: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(orders,), daemon=True).start()
    try:
        while True:
            say(msgspec.json.encode(play(msgspec.json.decode(orders.get(), type=Order))))
    except KeyboardInterrupt:  # SIGTERM during a run, which has ended its nodes.
        os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
