"""A process that runs and judges the scenarios of a soak: orders on standard input, a row each on standard output."""

from __future__ import annotations

import os
import signal

import msgspec

from lab.campaign.soak import Order, play
from lab.live.children import orders_until, say


def main() -> None:
    try:
        for line in orders_until(lambda: os.kill(os.getpid(), signal.SIGTERM)):
            say(msgspec.json.encode(play(msgspec.json.decode(line, type=Order))))
    except KeyboardInterrupt:  # SIGTERM during a run, which has ended its nodes.
        os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
