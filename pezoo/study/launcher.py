"""Hands out the cells of a plan, each when all that it needs is done, and hears how they end. Engines run them."""

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from pezoo.study.collect import Failure
from pezoo.study.plan import Cell, Plan
from pezoo.study.progress import Progress
from pezoo.study.resolve import texts_of
from pezoo.study.store import Store

Message = dict[str, Any]
HEAR_SECONDS = 0.2
"""An engine waits at most so long for news."""
SAVE_SECONDS = 60
"""That trainings get to save their state when a study is stopped."""
ORDER = {"evaluate": 0, "choose": 0, "tune": 1, "train": 2}
"""So results come early."""


class Engine(Protocol):
    """Where cells run. However the block ends, no process of it goes on."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End whatever still runs."""

    def take(self, ready: Sequence[Cell]) -> Iterable[Cell]:
        """Begin with some of the cells that are ready, the first ones first; return those."""

    def hear(self, seconds: float) -> Iterable[tuple[Cell | None, Message]]:
        """What has happened to which cell, as in `pezoo.study.process`; waits for so long at most."""

    def cancel(self, cell: Cell) -> None:
        """End a cell, within seconds."""

    def stop(self) -> None:
        """Let trainings save their state, all at the same time, and end all cells."""


def setup_of(plan: Plan, plugins: list[str]) -> dict[str, Any]:
    """What a process must be told before it can run cells of a study, as plain data; an engine may name its device."""
    facts = {name: getattr(plan.recipe, name) for name in ("threads", "device", "save_minutes")}
    texts = [dataclasses.asdict(text) for text in texts_of(plan.recipe)]
    return facts | {"texts": texts, "plugins": plugins}


def told_of(cell: Cell) -> dict[str, Any]:
    """What it must be told of a cell."""
    return {"title": cell.title, "inputs": cell.inputs, "log": cell.log}


def environment_of(plan: Plan) -> dict[str, str]:
    """Its variables beside the usual: libraries read them when they are imported, too early for it to set them."""
    threads = str(plan.recipe.threads)
    return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


class Launcher:
    """Runs every cell of a plan that is not done.

    Ready evaluations go before tunings, and these before trainings, so that results come early.

    Args:
        plan: the cells.
        store: where they are kept.
        engine: where they run.
        progress: is told what happens.
        finished: called after each cell that ends, done or failed.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        engine: Engine,
        progress: Progress,
        finished: Callable[[Cell], None],
    ) -> None:
        self.plan, self.store, self.engine = plan, store, engine
        self.progress, self.finished = progress, finished
        self.done = {key for key in plan.cells if store.done(key)}
        self.todo = {key: cell for key, cell in plan.cells.items() if key not in self.done}
        self.taken: dict[str, Cell] = {}
        """Cells that the engine has."""
        self.since: dict[str, float] = {}
        """When those of them began that a process has; inf: the process is not ready yet."""
        self.failures: dict[str, Failure] = {}
        """By key, the cells that failed; what builds on them is not run, and not among them."""

    def run(self) -> None:
        """Run until nothing is left that can be run.

        Raises:
            ChildProcessError: if a worker process cannot start.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, with the signal's number, when trainings have saved their state.
            UserError: if the engine is not there, or cannot be reached.
        """
        if not self.todo:
            return
        with _asked_to_stop() as asked, self.engine:
            while self._hand_out():
                for cell, message in self.engine.hear(HEAR_SECONDS):
                    self._handle(cell, message)
                if asked:
                    if any(cell.kind in ("train", "tune") for cell in self.taken.values()):
                        self.progress.note("stopping; trainings save their state first (Ctrl-C again: at once)")
                    self.engine.stop()
                    raise KeyboardInterrupt(*asked)
                self._end_late()

    def _hand_out(self) -> bool:
        """Offer what is ready to the engine; return whether anything is still to come."""
        ready = [cell for cell in self.todo.values() if self.done.issuperset(cell.parents)]
        ready.sort(key=lambda cell: ORDER[cell.kind])
        for cell in self.engine.take(ready) if ready else ():
            self.taken[cell.key] = self.todo.pop(cell.key)
        return bool(ready or self.taken)

    def _handle(self, cell: Cell | None, message: Message) -> None:
        event = message["event"]
        if event == "note":
            self.progress.note(message["line"])
        if cell is None or cell.key not in self.taken:  # what is said of a cell that has ended comes too late
            return
        if event != "note" and cell.key not in self.since:
            self.progress.start(cell)
            self.since[cell.key] = time.monotonic()
        match event:
            case "taken":
                self.since[cell.key] = math.inf
            case "begun":
                self.since[cell.key] = time.monotonic()
            case "progress":
                self.progress.update(cell, message["done"], message["total"], message["loss"])
            case "done":
                self._end(cell, None, message["fit"])
            case "failed":
                self._end(cell, Failure(message["status"], message["reason"], by=message.get("by")), None)

    def _end_late(self) -> None:
        """End the cells that take longer than a cell may."""
        limit = self.plan.recipe.cell_minutes
        if limit is None:
            return
        for key in [key for key, since in self.since.items() if time.monotonic() - since > 60 * limit]:
            cell = self.taken[key]
            self.engine.cancel(cell)
            self._end(cell, Failure("failed", f"it took longer than cell_minutes={limit:g}"), None)

    def _end(self, cell: Cell, failure: Failure | None, fit: dict[str, Any] | None) -> None:
        del self.taken[cell.key]
        if failure is None:
            self.done.add(cell.key)
        else:
            self.failures[cell.key] = failure
        self.store.forget(cell.key)
        seconds = max(0.0, time.monotonic() - self.since.pop(cell.key))
        self.progress.finish(cell, seconds, failure, fit)
        self.finished(cell)


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
