"""Runs of `pezoo run` that are forked from a process that has imported everything, which makes them much faster.

They are processes like others, with workers of their own in sessions of their own. What they do not have is the seconds
of importing.
"""

import multiprocessing
import os
import subprocess
from pathlib import Path
from typing import IO

FOLDER = Path(__file__).parent
os.environ["PYTHONPATH"] = os.pathsep.join([str(FOLDER), str(FOLDER.parents[1])])  # all that the server knows of paths
os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"  # of what killed processes leave, which it removes
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["forked", "imported"])


class ForkedRun:
    """What `studies.Running` needs of `subprocess.Popen`, for a forked `pezoo ARGUMENTS`."""

    def __init__(self, arguments: list[str], environment: dict[str, str], output: IO[bytes], errors: IO[bytes]) -> None:
        streams = [f"/proc/{os.getpid()}/fd/{file.fileno()}" for file in (output, errors)]
        self._process = _context.Process(target=_run, args=(arguments, environment, streams))
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("pezoo", timeout)
        return self._process.exitcode


def _run(arguments: list[str], environment: dict[str, str], streams: list[str]) -> None:
    import imported  # by the process that this one is forked from

    imported.run(arguments, environment, streams)


def workers(folder: Path) -> list[int]:
    """Ids of the forked workers of a study that are still there."""
    try:
        numbers = Path(f"{folder}.workers").read_text().split()
    except OSError:
        return []
    return [int(number) for number in numbers if _runs(number)]


def _runs(number: str) -> bool:
    try:
        status = Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"  # not one that has ended and nobody has asked after
