"""A port mapper for one Erlang node (epmd): it says at which port that node listens. It needs nothing of the lab.

python rabbitmq_epmd.py HOST OWN_PORT PORT...

Erlang's own epmd answers for a whole machine, at all its addresses. Here each node has one, as if it had a machine of
its own: the node registers at loopback, port OWN_PORT. It and its peers ask at HOST, each at a port of its own.
"""

from __future__ import annotations

import asyncio
import struct
import sys

REGISTER, ASK, NAMES = 120, 122, 110
REGISTERED, FOUND = 118, 119


class Nodes:
    """The registered nodes: name -> (port, the rest of what it said about itself).

    RabbitMQ starts a node with a name of its own every minute, for a moment, to see that the port mapper is there.
    """

    def __init__(self) -> None:
        self.said: dict[bytes, tuple[int, bytes]] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request. A node is registered for as long as its connection is open."""
        try:
            (size,) = struct.unpack(">H", await reader.readexactly(2))
            request = await reader.readexactly(size)
            if request[0] == REGISTER:
                (port,) = struct.unpack_from(">H", request, 1)
                (length,) = struct.unpack_from(">H", request, 9)
                name = request[11 : 11 + length]
                self.said[name] = said = port, request[3:]
                writer.write(struct.pack(">BBI", REGISTERED, 0, 1))
                await reader.read()
                if self.said.get(name) is said:  # It has not registered again meanwhile.
                    del self.said[name]
            elif request[0] == ASK:
                if (known := self.said.get(request[1:])) is not None:
                    writer.write(struct.pack(">BBH", FOUND, 0, known[0]) + known[1])
                else:
                    writer.write(struct.pack(">BB", FOUND, 1))
            elif request[0] == NAMES:
                writer.write(struct.pack(">I", writer.get_extra_info("sockname")[1]))
                writer.writelines(b"name %s at port %d\n" % (name, said[0]) for name, said in self.said.items())
            await writer.drain()
        except (OSError, EOFError):
            pass
        finally:
            writer.close()


async def main() -> None:
    """Serve until the end of the process."""
    host, own, *ports = sys.argv[1:]
    nodes = Nodes()
    servers = [await asyncio.start_server(nodes.serve, "127.0.0.1", int(own), reuse_address=True)]
    servers += [await asyncio.start_server(nodes.serve, host, int(port), reuse_address=True) for port in ports]
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(main())
