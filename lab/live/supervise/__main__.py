"""Try a supervisor: `python -m lab.live.supervise`. Print why there can be none, and exit with code 1 then."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from lab.live.supervise import Supervisor
from lab.steps.machine import RunFailed


def main() -> int:
    """Try it in a temporary directory; return the exit code."""
    with tempfile.TemporaryDirectory() as directory:
        data_dir = Path(directory, "data")
        data_dir.mkdir()
        try:
            Supervisor.open(data_dir, Path(directory, "log")).close()
        except RunFailed as error:
            print(error)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
