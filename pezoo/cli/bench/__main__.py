"""`python -m pezoo.cli.bench`: how `pezoo bench` measures something in a fresh process."""

import sys

from pezoo.cli.bench.command import bench

if __name__ == "__main__":
    sys.exit(bench())
