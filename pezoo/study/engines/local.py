"""Cells in worker processes of this machine."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pezoo.study.launcher import SAVE_SECONDS, Message
from pezoo.study.plan import Cell, Plan

GRACE_SECONDS = 5
"""For a process to end by itself."""
START = "import sys; sys.path[:] = {path!r}; from pezoo.study.worker import main; main()"


class Worker:
    """One worker process and the cell it is at."""

    def __init__(self, plan: Plan, study: Path, plugins: list[str], number: int) -> None:
        self.number = number
        self.log = study / "logs" / f"worker{number}.log"
        self.log.parent.mkdir(exist_ok=True)
        self.cell: Cell | None = None
        self.ready = self.ended = False
        threads = str(plan.recipe.threads)
        # Libraries read these when they are imported, too early for the worker to set them. The new
        # session keeps Ctrl-C away from the worker, which its parent ends.
        environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", START.format(path=sys.path), str(study)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self.unread = b""
        self._send({"recipe": plan.recipe.to_dict(), "plugins": plugins})

    def start(self, cell: Cell) -> None:
        """Give it a cell."""
        self.cell = cell
        self._send({"title": cell.title, "inputs": cell.inputs, "log": cell.log})

    def receive(self) -> list[Message]:
        """Messages that have come; sets `ended` if no more will."""
        chunk = os.read(self.process.stdout.fileno(), 1 << 16)
        self.ended = not chunk
        *lines, self.unread = (self.unread + chunk).split(b"\n")
        return [json.loads(line) for line in lines]

    def wait(self) -> None:
        """Give it a few seconds to end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_SECONDS)

    def stop(self) -> int | None:
        """End the process at once; return its exit code if it had ended by itself."""
        code = self.process.poll()
        self.process.kill()
        self.process.wait()
        if not self.log.stat().st_size:
            self.log.unlink()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        return code

    def _send(self, message: Message) -> None:
        # A broken pipe means that it has ended, which is noticed when its output is read.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()


class Pool:
    """At most `recipe.workers` worker processes.

    Args:
        plan: the study's.
        study: its folder.
        plugins: files that register members.
    """

    def __init__(self, plan: Plan, study: Path, plugins: list[str]) -> None:
        self.plan, self.study, self.plugins = plan, study, plugins
        self.workers: list[Worker] = []
        self.news: list[tuple[Cell | None, Message]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all workers."""
        for worker in self.workers:
            worker.stop()

    def take(self, ready: Sequence[Cell]) -> list[Cell]:
        """Give a cell to each worker that has none, starting workers as needed."""
        taken = []
        for cell in ready:
            worker = next((worker for worker in self.workers if worker.cell is None), None)
            if worker is None:
                if len(self.workers) == self.plan.recipe.workers:
                    break
                worker = self._start()
            worker.start(cell)
            self.news.append((cell, {"event": "begun" if worker.ready else "taken"}))
            taken.append(cell)
        return taken

    def hear(self, seconds: float) -> Iterator[tuple[Cell | None, Message]]:
        """What the workers have said.

        Raises:
            ChildProcessError: if a worker cannot start.
        """
        while self.news:
            yield self.news.pop(0)
        with selectors.DefaultSelector() as selector:
            for worker in self.workers:
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            heard = [key.data for key, _ in selector.select(timeout=seconds)]
        for worker in heard:
            for message in worker.receive():
                cell = worker.cell
                if message["event"] == "ready":
                    worker.ready, message = True, {"event": "begun"}
                if message["event"] in ("done", "failed"):
                    worker.cell = None
                yield cell, message
            if worker.ended:
                self.workers.remove(worker)
                yield from self._bury(worker)

    def cancel(self, cell: Cell) -> None:
        """End the worker of a cell; a training saves its state."""
        (worker,) = [worker for worker in self.workers if worker.cell is cell]
        self.workers.remove(worker)
        worker.process.terminate()  # first, so that it can save what it has
        worker.wait()
        worker.stop()

    def stop(self) -> None:
        """Let trainings save their state before their processes end."""
        for worker in self.workers:
            worker.process.terminate()
        deadline = time.monotonic() + SAVE_SECONDS
        for worker in self.workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, deadline - time.monotonic()))

    def _start(self) -> Worker:
        """Start one more worker."""
        number = min(set(range(len(self.workers) + 1)) - {worker.number for worker in self.workers})
        self.workers.append(Worker(self.plan, self.study, self.plugins, number))
        return self.workers[-1]

    def _bury(self, worker: Worker) -> Iterable[tuple[Cell, Message]]:
        """A worker has ended by itself, which none should."""
        worker.wait()  # its output ends a little earlier than it does
        how = describe_end(worker.stop())
        if not worker.ready:
            raise ChildProcessError(f"a worker process could not start: it {how}; see {worker.log}")
        if worker.cell is not None:
            yield worker.cell, {"event": "failed", "status": "failed", "reason": f"its process {how}"}


def describe_end(code: int | None) -> str:
    """How a process with an exit code ended, in words; None: it had not."""
    if code is None:
        return "closed its output"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = f" ({signal.Signals(-code).name})"
    except ValueError:
        name = ""
    why = {
        signal.SIGKILL: ", as happens when memory runs out",
        signal.SIGSEGV: ": a crash in compiled code",
        signal.SIGABRT: ": compiled code gave up",
    }
    return f"was killed by signal {-code}{name}{why.get(-code, '')}"
