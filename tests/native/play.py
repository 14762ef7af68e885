"""Play seeds and scenarios into a directory, to compare both modes: python -m tests.native.play DIRECTORY

It writes the run directories, and marks.json: run -> the coverage marks that it hit, in the order of their first hit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lab.places import PACKAGED
from lab.search import coverage
from nodeproc import native

SEEDS = (*range(1, 13), 24, 29, 30)
SCENARIOS = (
    "client_moves_to_another_node",
    "clients_cut_off_from_their_node_send_once",
    "corrupted_frames_are_not_taken",
    "drifting_clocks_depose_nobody",
    "leader_paused_and_resumed",
    "lost_disk_is_rebuilt_under_load",
    "out_of_order_frames_are_buffered",
    "rot_in_old_lines_of_the_leader_is_repaired",
)


def main(out: Path) -> None:
    """Play all into `out`, and print the mode of this process."""
    native.activate()
    coverage.install()
    from lab.plan import scenario as plan
    from lab.rundir import RunDir
    from lab.search.draw import draw
    from lab.sim import simulator

    chosen = [(draw(seed, (3, 5)), seed) for seed in SEEDS]
    chosen += [(plan.load(PACKAGED / f"{name}.yml"), 7) for name in SCENARIOS]
    marks = {}
    for scenario, seed in chosen:
        coverage.reset()
        run = RunDir.create(out, scenario.name, f"seed_{seed}")
        simulator.run(scenario, run, seed=seed, frames=seed % 2 == 1)
        marks[f"{scenario.name} {seed}"] = coverage.hits()
    (out / "marks.json").write_text(json.dumps(marks, indent=1))
    print(native.mode())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
