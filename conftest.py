"""For pytest, wherever in the project it is started: scenarios are tests when asked for, and plugins can be tested."""

import signal

pytest_plugins = ["lab.pytest_plugin", "pytester"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # A background job of a script; tests interrupt their processes.
    signal.signal(signal.SIGINT, signal.default_int_handler)
