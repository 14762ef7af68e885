#!/usr/bin/env python3
"""The front door: `python3 run_lab.py scenarios/leader_failure.yml`; see `--help`."""

from __future__ import annotations

from lab import bootstrap

if __name__ == "__main__":
    bootstrap.ensure_packages()
    from lab.cli import main

    raise SystemExit(main())
