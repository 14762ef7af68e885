#!/usr/bin/env python3
"""The entry point: `python3 run_lab.py scenarios/leader_failure.yml`; see `--help`.

This file can be read by any Python, so that an old one ends with a sentence.
"""

import sys

if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.stderr.write("run_lab: this is Python " + sys.version.split()[0] + "; allowed: 3.11 or newer\n")
        sys.exit(70)
    from lab import bootstrap

    try:
        bootstrap.ensure_packages()
        from lab.cli import main

        sys.exit(main())
    except KeyboardInterrupt:
        sys.stderr.write("run_lab: interrupted\n")
        sys.exit(130)
