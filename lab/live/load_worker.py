"""One worker of the load as a process, `python -m lab.live.load_worker`. See lab.course.load and lab.live.children."""

from __future__ import annotations

import msgspec

from lab.course.load import Order, Worker
from lab.live.children import orders, run_child, say


async def main() -> None:
    """Obey standard input until it ends."""
    worker = Worker(lambda answer: say(msgspec.json.encode(answer)))
    decode = msgspec.json.Decoder(Order).decode
    async for line in orders():
        await worker.obey(decode(line))


if __name__ == "__main__":
    run_child(main())
