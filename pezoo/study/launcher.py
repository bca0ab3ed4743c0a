"""Runs the cells of a plan in worker processes."""

import contextlib
import dataclasses
import itertools
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pezoo.study.collect import Failure
from pezoo.study.estimate import Estimate, to_try
from pezoo.study.forks import CAN_FORK, Forked, Server
from pezoo.study.plan import Cell, Plan
from pezoo.study.progress import Progress
from pezoo.study.resolve import texts_of
from pezoo.study.store import Store

GRACE_SECONDS = 5
"""For a process to end by itself."""
MOST_TRIED = 200
"""Cells of which a little can be tried."""
SAVE_SECONDS = 60  # that trainings get to save their state when a study is stopped
START = "import sys; sys.path[:] = {path!r}; from pezoo.study.worker import main; main()"


class Worker:
    """One worker process and the cell it is at."""

    def __init__(self, plan: Plan, study: Path, plugins: list[str], number: int, server: Server | None = None) -> None:
        self.number = number
        self.log = study / "logs" / f"worker{number}.log"
        self.log.parent.mkdir(exist_ok=True)
        self.cell: Cell | None = None
        self.since = 0.0
        self.ready = self.ended = self.trying = False
        with self.log.open("a") as log:
            forked = server and server.fork(log)
            # The new session keeps Ctrl-C away from the worker, which its parent ends.
            self.process = forked or subprocess.Popen(
                [sys.executable, "-P", "-c", START.format(path=sys.path), str(study)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment_of(plan),
                start_new_session=True,
            )
        self.unread = b""
        facts = {name: getattr(plan.recipe, name) for name in ("threads", "device", "save_minutes")}
        texts = [dataclasses.asdict(text) for text in texts_of(plan.recipe)]
        self._send(facts | {"texts": texts, "plugins": plugins})

    def start(self, cell: Cell) -> None:
        """Give it a cell."""
        self.cell, self.since = cell, time.monotonic()
        self._send({"title": cell.title, "inputs": cell.inputs, "log": cell.log})

    def try_some(self, cells: Iterable[Cell]) -> None:
        """Let it try a little of these; `trying` until it has."""
        self._send({"try": [{"title": cell.title, "inputs": cell.inputs, "log": cell.log} for cell in cells]})

    def receive(self) -> list[dict[str, Any]]:
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

    def _send(self, message: dict[str, Any]) -> None:
        # A broken pipe means that it has ended, which is noticed when its output is read.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()


def environment_of(plan: Plan) -> dict[str, str]:
    """Variables of a worker's process: libraries read them when they are imported, too early for it to set them."""
    threads = str(plan.recipe.threads)
    return os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


class Launcher:
    """Runs every cell of a plan that is not done, in at most `recipe.workers` processes.

    Ready evaluations go before tunings, and these before trainings, so that results come early.

    Args:
        plan: the cells.
        store: where they are kept.
        plugins: files that register members.
        progress: is told what happens.
        finished: called after each cell that ends, done or failed.
        estimate: learns from a little of the work, which is tried before the cells begin; None: nothing is.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        plugins: list[str],
        progress: Progress,
        finished: Callable[[Cell], None],
        estimate: Estimate | None = None,
    ) -> None:
        self.plan, self.store, self.plugins = plan, store, plugins
        self.progress, self.finished = progress, finished
        self.done = {key for key in plan.cells if store.done(key)}
        self.todo = {key: cell for key, cell in plan.cells.items() if key not in self.done}
        self.estimate, self.server = estimate, None
        self.failures: dict[str, Failure] = {}
        """By key, the cells that failed; what builds on them is not run, and not among them."""

    def run(self) -> None:
        """Run until nothing is left that can be run; however this ends, no worker stays behind.

        Raises:
            ChildProcessError: if a worker process cannot start.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, with the signal's number, when trainings have saved their state.
        """
        workers: list[Worker] = []
        with contextlib.ExitStack() as stack:
            asked = stack.enter_context(_asked_to_stop())
            if self.plan.recipe.workers > 1 and can_fork(self.plan):
                self.server = Server(self.store.study, environment_of(self.plan))
                stack.callback(self.server.stop)
            stack.callback(lambda: [worker.stop() for worker in workers])
            if self.estimate is not None and self.todo:
                self._start(workers).trying = True
            while self._assign(workers):
                with selectors.DefaultSelector() as selector:
                    for worker in workers:
                        selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
                    heard = [key.data for key, _ in selector.select(timeout=0.2)]
                if asked:
                    self._let_save(workers)
                    raise KeyboardInterrupt(*asked)
                for worker in heard:
                    for message in worker.receive():
                        self._handle(worker, message)
                    if worker.ended:
                        workers.remove(worker)
                        self._bury(worker, workers)
                for worker in [worker for worker in workers if self._late(worker)]:
                    workers.remove(worker)
                    worker.process.terminate()  # first, so that it can save what it has
                    worker.wait()
                    worker.stop()
                    why = f"it took longer than cell_minutes={self.plan.recipe.cell_minutes:g}"
                    self._end(worker, Failure("failed", why), None)

    def _assign(self, workers: list[Worker]) -> bool:
        """Give out ready cells, starting workers as needed; return whether any is at work."""
        if any(worker.trying for worker in workers):
            return True
        order = {"evaluate": 0, "choose": 0, "tune": 1, "train": 2}
        ready = [cell for cell in self.todo.values() if self.done.issuperset(cell.parents)]
        for cell in sorted(ready, key=lambda cell: order[cell.kind]):
            worker = next((w for w in workers if w.cell is None), None)
            if worker is None:
                if len(workers) == self.plan.recipe.workers:
                    break
                worker = self._start(workers)
            del self.todo[cell.key]
            self.progress.start(cell)
            worker.start(cell)
        return any(worker.cell for worker in workers)

    def _start(self, workers: list[Worker]) -> Worker:
        """Start one more worker."""
        number = min(set(range(len(workers) + 1)) - {w.number for w in workers})
        workers.append(Worker(self.plan, self.store.study, self.plugins, number, self.server))
        return workers[-1]

    def _handle(self, worker: Worker, message: dict[str, Any]) -> None:
        match message.pop("event"):
            case "ready":
                worker.ready, worker.since = True, time.monotonic()
                if worker.trying:
                    worker.try_some(itertools.islice(to_try(self.estimate), MOST_TRIED))
            case "tried":
                self.estimate.expect(message["key"], message["seconds"], message["memory"])
            case "all_tried":
                self._begin(worker)
            case "progress":
                self.progress.update(worker.cell, **message)
            case "note":
                self.progress.note(**message)
            case "done":
                self._end(worker, None, message["fit"])
            case "failed":
                self._end(worker, Failure(**message), None)

    def _begin(self, worker: Worker) -> None:
        """Say how long it takes, as far as the worker could find that out, and let cells begin."""
        worker.trying = False
        self.progress.note(self.estimate.say())

    def _late(self, worker: Worker) -> bool:
        """Whether the cell of a worker takes longer than a cell may."""
        limit = self.plan.recipe.cell_minutes
        busy = worker.cell is not None and worker.ready
        return busy and limit is not None and time.monotonic() - worker.since > 60 * limit

    def _let_save(self, workers: list[Worker]) -> None:
        """Let trainings save their state, all at the same time, before their processes end."""
        if any(worker.cell is not None and worker.cell.kind in ("train", "tune") for worker in workers):
            self.progress.note("stopping; trainings save their state first (Ctrl-C again: at once)")
        for worker in workers:
            worker.process.terminate()
        deadline = time.monotonic() + SAVE_SECONDS
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, deadline - time.monotonic()))

    def _bury(self, worker: Worker, workers: list[Worker]) -> None:
        """A worker has ended by itself, which none should."""
        worker.wait()  # its output ends a little earlier than it does
        how = _how(worker.stop())
        if not worker.ready and isinstance(worker.process, Forked) and worker.process.pid is None:
            self.server = None  # it has ended before it could fork: a new process says what is wrong, if it is
            again = self._start(workers)
            again.trying, again.cell = worker.trying, worker.cell
            if again.cell is not None:
                again.start(again.cell)
            return
        if not worker.ready:
            raise ChildProcessError(f"a worker process could not start: it {how}; see {worker.log}")
        if worker.trying:
            self._begin(worker)
        if worker.cell is not None:
            self._end(worker, Failure("failed", f"its process {how}"), None)

    def _end(self, worker: Worker, failure: Failure | None, fit: dict[str, Any] | None) -> None:
        cell, worker.cell = worker.cell, None
        if failure is None:
            self.done.add(cell.key)
        else:
            self.failures[cell.key] = failure
        self.store.forget(cell.key)
        self.progress.finish(cell, time.monotonic() - worker.since, failure, fit)
        self.finished(cell)


def can_fork(plan: Plan) -> bool:
    """Whether workers may be forked: not where a GPU's driver could be at work in what is forked."""
    return CAN_FORK and all(cell.inputs["device"] == "cpu" for cell in plan.cells.values())


def _how(code: int | None) -> str:
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


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """A list that gets the number of the first Ctrl-C or SIGTERM, where an exception could strike at any line.

    The second one is as usual.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread hears of signals
        return
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: Any) -> None:
        asked.append(number)
        give_back()

    def give_back() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    for number in usual:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        give_back()
