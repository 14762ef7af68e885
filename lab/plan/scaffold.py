"""The command `new NAME`: a small scenario that runs and passes, to be changed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lab.places import COMMAND, PROGRAM, SCENARIOS, near
from lab.plan.scenario import load
from nodeproc.errors import ConfigError

TEXT = """\
name: {name}
description: >
  Describe the scenario in a sentence or two. Here: the leader is killed under load, another node takes over, and no
  acknowledged message is lost.

cluster: {{nodes: 3}}

# Two clients send 200 messages a second, from `load: start` to `load: stop`.
load: {{clients: 2, rate: 200}}

# Steps run one after the other; docs/scenarios.md lists all. `{program} validate {path}` checks this file.
steps:
  - load: start
  - wait: {{for: acknowledged, count: 100}}
  - kill: leader
    name: the leader is killed
  - wait: new_leader
  - wait: {{for: acknowledged, count: 100}}
  - start: killed
  - wait: {{for: caught_up, on: all}}
  - load: stop

# The invariants A1 to A10 are judged in every run. These are assertions beyond them.
expectations:
  - acknowledged: 200
  - numbering_continues: 2
  - unavailable: 5s
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of a scenario in scenarios/, or the path of a new .yml file")


def main(options: argparse.Namespace) -> int:
    """Write the file and print how to run it; return the exit code."""
    name: str = options.name
    path = Path(name) if name.endswith((".yml", ".yaml")) else SCENARIOS[0] / f"{name}.yml"
    text = TEXT.format(name=path.stem, program=PROGRAM, path=near(path))
    try:
        load(path, text=text)
        if path.parent == SCENARIOS[0]:
            path.parent.mkdir(exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        print(f"{path}: exists already and is not changed", file=sys.stderr)
        return 64
    except (ConfigError, OSError) as error:
        print(error if isinstance(error, ConfigError) else f"{path}: {error.strerror}", file=sys.stderr)
        return 64
    print(f"{near(path)}\n    run it:                  {COMMAND} {near(path)}")
    print(f"    without real processes:  {COMMAND} {near(path)} --sim")
    return 0
