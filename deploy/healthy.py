"""Ask a node of this container for its STATUS and print the answer: python deploy/healthy.py PORT

Exit codes: 0 the node knows a leader, so it can serve clients; 1 it knows none, refuses, or does not answer.

The health check of the containers. It needs the standard library only, because it runs every few seconds: importing
the client library takes several times the CPU time.
"""

import json
import os
import socket
import sys

PATIENCE_S = 2.0


def main(port: int) -> int:
    """Return the exit code."""
    request = {"type": "STATUS"}
    if token := os.environ.get("CHAT_CLIENT_TOKEN"):
        request["client_token"] = token
    try:
        with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as node:
            node.sendall(json.dumps(request).encode() + b"\n")
            line = node.makefile(encoding="utf-8").readline()
        print(line, end="")
        return 0 if json.loads(line).get("leader") else 1
    except (OSError, ValueError) as error:
        print(f"127.0.0.1:{port}: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
