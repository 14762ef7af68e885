"""A search worker that the kernel stops in seed 1, as if compiled code hung. A plain one reports that seed as hung."""

import os
import signal
import sys

from lab.live.children import say
from lab.search.worker import Begin, Played, decode_order, encode

plain = False
for line in sys.stdin.buffer:
    order = decode_order(line)
    if isinstance(order, Begin):
        plain = order.plain
    elif order.seed > 1:
        say(encode(Played(order.seed)))
    elif plain:
        say(encode(Played(order.seed, "A9", "no end within 0 s", endless=True)))
    else:
        os.kill(os.getpid(), signal.SIGXCPU)
