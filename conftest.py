"""For pytest, wherever in the project it is started: scenarios are tests when asked for, and plugins can be tested."""

pytest_plugins = ["lab.pytest_plugin", "pytester"]
