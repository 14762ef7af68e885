"""`python -m lab`: the command `chatlab`, where the directory of installed scripts is not in PATH."""

import sys

from lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
