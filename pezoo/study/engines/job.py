"""What a job of Slurm does, which submitit starts: a cell.

On several machines all processes of the job train; the first one keeps the cell, and speaks.
"""

import contextlib
import json
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from submitit import JobEnvironment
from submitit.core.utils import DelayedSubmission, UncompletedJobError

from pezoo.errors import UserError
from pezoo.study.launcher import Message
from pezoo.study.plan import Cell
from pezoo.study.process import Process, Stopped, begun, stopped_by
from pezoo.study.store import Store

PROGRESS_SECONDS = 5.0
"""Between two messages of progress."""
GO_SECONDS = 60
"""That a job which was told to go waits for Slurm to end it, before it asks to be queued again."""


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Work:
    """What a job does: a cell.

    Args:
        study: recipe, plug-ins and folder.
        told: the cell.
        files: where its files are, without their suffix.
    """

    def __init__(self, study: dict[str, Any], told: dict[str, Any], files: str) -> None:
        self.study, self.told, self.files = study, told, files

    @property
    def first(self) -> bool:
        """Whether this is the first process of its job."""
        return JobEnvironment().global_rank == 0

    def __call__(self) -> None:
        """Run the cell; told to go, save the state of a training, and have the job queued again."""
        queue_again = signal.getsignal(signal.SIGUSR2)  # submitit's
        try:
            with stopped_by(signal.SIGTERM, signal.SIGUSR2):
                self._tell(begun())
                self._tell(self._run())
                return
        except Stopped as stopped:
            (number,) = stopped.args
        if number == signal.SIGTERM and not self._unwanted():
            with contextlib.suppress(Stopped), stopped_by(signal.SIGUSR2):
                time.sleep(GO_SECONDS)
        if self._unwanted():
            sys.exit(0)
        try:
            queue_again(signal.SIGUSR2, None)
        except UncompletedJobError as error:
            self._tell({"event": "failed", "status": "failed", "reason": str(error)})

    def checkpoint(self) -> DelayedSubmission:
        """What is queued again."""
        return DelayedSubmission(self)

    def _run(self) -> Message:
        if self._unwanted():
            raise Stopped(signal.SIGTERM)
        try:
            process = Process(self.study)
        except UserError as error:
            reason = f"{socket.gethostname()} is not ready for the study: {error}"
            return {"event": "failed", "status": "failed", "reason": reason}
        store = Store(Path(self.study["folder"]))
        return process.run(
            Cell(**self.told),
            store,
            self._tell,
            lambda line: print(line, file=sys.stderr),
            PROGRESS_SECONDS,
            self.first,
        )

    def _unwanted(self) -> bool:
        """Whether the study does not wait for it any more."""
        return Path(f"{self.files}.stop").exists()

    def _tell(self, message: Message) -> None:
        if self.first:
            with Path(f"{self.files}.messages").open("a") as file:
                file.write(json.dumps(message) + "\n")
