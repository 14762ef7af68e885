"""Run one node as a mutant: python -m lab.mutants.broken_node --mutant NAME --config FILE …

All other arguments and the exit codes are those of `python -m nodeproc`. The exit code for an unknown mutant is 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lab.mutants.catalogue import apply_for_good
from nodeproc import __main__ as product


def main(arguments: Sequence[str] | None = None) -> int:
    """Apply the mutant and run the node; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lab.mutants.broken_node", add_help=False, allow_abbrev=False)
    parser.add_argument("--mutant", required=True, metavar="NAME")
    options, others = parser.parse_known_args(arguments)
    try:
        apply_for_good(options.mutant)
    except ValueError as error:
        parser.error(str(error))
    return product.main(others)


if __name__ == "__main__":
    sys.exit(main())
