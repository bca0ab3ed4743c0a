"""Runs a command, and writes into a file the CPU seconds that it took with all that it started.

    python -I child.py FILE VARIABLES COMMAND ...       VARIABLES is JSON: what is set in its environment

It needs nothing but Python, so that it costs little. Where the system allows it, processes whose parent has ended are
taken over and waited for: the system adds up the CPU time of processes that somebody waited for, and no others.
"""

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

TAKE_OVER_ORPHANS = 36
"""Linux's PR_SET_CHILD_SUBREAPER."""


def main() -> int:
    """Run the command; returns its exit code."""
    file, variables, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(TAKE_OVER_ORPHANS, 1, 0, 0, 0)
    code = subprocess.call(command, stdin=subprocess.DEVNULL, env=os.environ | json.loads(variables))
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    spent = os.times()
    Path(file).write_text(str(spent.children_user + spent.children_system))
    return code


if __name__ == "__main__":
    sys.exit(main())
