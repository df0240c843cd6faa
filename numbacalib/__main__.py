"""``python -m numbacalib``: the command line."""

import sys

from numbacalib.cli import main

if __name__ == "__main__":
    sys.exit(main())
