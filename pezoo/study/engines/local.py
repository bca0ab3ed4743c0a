"""Cells in worker processes of this machine."""

import contextlib
import itertools
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pezoo.outcome import describe_end
from pezoo.study.estimate import Estimate, to_try
from pezoo.study.forks import CAN_FORK, Forked, Server
from pezoo.study.launcher import SAVE_SECONDS, Message, environment_of, setup_of, told_of
from pezoo.study.places import Place, places
from pezoo.study.plan import Cell, Plan
from pezoo.study.store import Store

GRACE_SECONDS = 5
"""For a process to end by itself."""
MOST_TRIED = 200
"""Cells of which a little can be tried."""
START = "import sys; sys.path[:] = {path!r}; from pezoo.study.worker import main; main()"


class Worker:
    """One worker process and the cell it is at."""

    def __init__(
        self, plan: Plan, study: Path, plugins: list[str], number: int, place: Place, server: Server | None = None
    ) -> None:
        self.number = number
        self.log = study / "logs" / f"worker{number}.log"
        self.log.parent.mkdir(exist_ok=True)
        self.cell: Cell | None = None
        self.ready = self.ended = self.trying = False
        with self.log.open("a") as log:
            forked = server and server.fork(log)
            # The new session keeps Ctrl-C away from the worker, which its parent ends.
            self.process = forked or subprocess.Popen(
                [sys.executable, "-P", "-c", START.format(path=sys.path), str(study)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | environment_of(plan),
                start_new_session=True,
            )
        self.unread = b""
        self._send(setup_of(plan, plugins) | {"device": place[0]})

    def start(self, cell: Cell) -> None:
        """Give it a cell."""
        self.cell = cell
        self._send(told_of(cell))

    def try_some(self, cells: Iterable[Cell]) -> None:
        """Let it try a little of these; `trying` until it has."""
        self._send({"try": [told_of(cell) for cell in cells]})

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
        store: where cells are kept.
        plugins: files that register members.
        estimate: learns from a little of the work, which is tried before the cells begin; None: nothing is.
    """

    def __init__(self, plan: Plan, store: Store, plugins: list[str], estimate: Estimate | None = None) -> None:
        self.plan, self.study, self.plugins, self.estimate = plan, store.study, plugins, estimate
        self.workers: list[Worker] = []
        self.places = places(plan.recipe)
        self.server: Server | None = None
        self.news: list[tuple[Cell | None, Message]] = []

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            if self.plan.recipe.workers > 1 and can_fork(self.plan):
                self.server = Server(self.study, os.environ | environment_of(self.plan))
                stack.callback(self.server.stop)
            if self.estimate is not None:
                self._start().trying = True
            self.stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all workers."""
        with self.stack:
            for worker in self.workers:
                worker.stop()

    def take(self, ready: Sequence[Cell]) -> list[Cell]:
        """Give a cell to each worker that has none, starting workers as needed."""
        taken: list[Cell] = []
        for cell in () if any(worker.trying for worker in self.workers) else ready:
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
                yield from self._handle(worker, message)
            if worker.ended:
                self.workers.remove(worker)
                yield from self._bury(worker)

    def _handle(self, worker: Worker, message: Message) -> Iterator[tuple[Cell | None, Message]]:
        """What a message of a worker means to the launcher."""
        cell = worker.cell
        match message["event"]:
            case "ready":
                worker.ready = True
                if worker.trying:
                    worker.try_some(itertools.islice(to_try(self.estimate), MOST_TRIED))
                else:
                    yield cell, {"event": "begun"}
            case "tried":
                self.estimate.expect(message["key"], message["seconds"], message["memory"])
            case "all_tried":
                yield self._begin(worker)
            case "done" | "failed":
                worker.cell = None
                yield cell, message
            case _:
                yield cell, message

    def _begin(self, worker: Worker) -> tuple[None, Message]:
        """Let cells begin, and say how long it takes, as far as the worker could find that out."""
        worker.trying = False
        return None, {"event": "note", "line": self.estimate.say()}

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
        """Start one more worker, in the first place that nobody has."""
        number = min(set(range(len(self.workers) + 1)) - {worker.number for worker in self.workers})
        self.workers.append(Worker(self.plan, self.study, self.plugins, number, self.places[number], self.server))
        return self.workers[-1]

    def _bury(self, worker: Worker) -> Iterator[tuple[Cell | None, Message]]:
        """A worker has ended by itself, which none should."""
        worker.wait()  # its output ends a little earlier than it does
        how = describe_end(worker.stop())
        if not worker.ready and isinstance(worker.process, Forked) and worker.process.pid is None:
            self.server = None  # it has ended before it could fork: a new process says what is wrong, if it is
            again = self._start()
            again.trying = worker.trying
            if worker.cell is not None:
                again.start(worker.cell)
            return
        if not worker.ready:
            why = f"; see {worker.log}" if worker.log.exists() else ", and said nothing"
            raise ChildProcessError(f"a worker process could not start: it {how}{why}")
        if worker.trying:
            yield self._begin(worker)
        if worker.cell is not None:
            yield worker.cell, {"event": "failed", "status": "failed", "reason": f"its process {how}"}


def can_fork(plan: Plan) -> bool:
    """Whether workers may be forked: not where a GPU's driver could be at work in what is forked."""
    return CAN_FORK and all(cell.inputs["device"] == "cpu" for cell in plan.cells.values())
