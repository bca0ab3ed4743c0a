"""`python -m pezoo`."""

import sys

from pezoo.cli import main

if __name__ == "__main__":
    sys.exit(main())
