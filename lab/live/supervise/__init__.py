"""A supervisor for any program: power loss, disk faults and redirected connections, without root and without its help.

    supervisor = Supervisor.open(data_dir, log)             # one process a node, for the whole run
    pid = supervisor.start(["etcd", "--data-dir", str(data_dir)], directory=run_dir, output=log, environment=None)
    supervisor.redirect({("127.1.2.3", 2380): ("127.0.0.1", 40001)})        # connect() goes to the proxy instead
    supervisor.order(Orders(fail_sync=True))                # every fsync fails with EIO; Orders() ends that
    lost = supervisor.cut_power("pages", seed=7)            # kill all that runs, take what was not durable
    pid = supervisor.start(...)                             # the state of the disk outlives the program
    ended = supervisor.wait(pid)                            # exit code and CPU time
    supervisor.figures().stops                              # the cost
    supervisor.close()                                      # kills what still runs

A supervisor starts programs under a seccomp filter (filter.py). The system calls by which a program changes files below
its data directory, syncs them, or dials a connection stop until the supervisor has answered. The program may be static,
threaded, and may fork. It needs no configuration, and the supervisor needs no privileges: Linux 5.19 or newer.

Each node has its own supervisor, outside the node's process group: signals to the group do not reach it. When the lab
ends in whatever way, the supervisor's standard input ends, and it kills all descendants and exits.

What is modelled: contents.py, names.py and docs/supervisor.md.
"""

from __future__ import annotations

from lab.live.supervise.client import Refused, Supervisor, missing
from lab.live.supervise.orders import Ended

__all__ = ["Ended", "Refused", "Supervisor", "missing"]
