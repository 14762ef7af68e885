"""One worker of the load as a process, `python -m lab.live.load_worker`. See lab.course.load and lab.live.children."""

from __future__ import annotations

import msgspec

from nodeproc import native


async def main() -> None:
    """Obey standard input until it ends."""
    from lab.course.load import Worker
    from lab.course.worker_orders import Order
    from lab.live.children import orders, say

    worker = Worker(lambda answer: say(msgspec.json.encode(answer)))
    decode = msgspec.json.Decoder(Order).decode
    async for line in orders():
        await worker.obey(decode(line))


if __name__ == "__main__":
    native.activate()  # Before the other imports.
    from lab.live.children import run_child

    run_child(main())
