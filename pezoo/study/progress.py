"""What is shown of a running study on standard error: bars, or lines if that is no terminal."""

import time
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from pezoo.escape import in_terminal
from pezoo.study.collect import Failure
from pezoo.study.estimate import Estimate, duration
from pezoo.study.plan import Cell

SAY_SECONDS = 1.0
"""Between two estimates of the time that is left."""


class Progress(Protocol):
    """Told by the launcher what happens to cells."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End showing."""

    def start(self, cell: Cell) -> None:
        """A cell begins."""

    def update(self, cell: Cell, done: int, total: int, loss: float | None) -> None:
        """A cell has got to step (or token) `done` of `total`."""

    def note(self, line: str) -> None:
        """There is something to say, such as that a training goes on from a saved state."""

    def finish(self, cell: Cell, seconds: float, failure: Failure | None, fit: dict[str, Any] | None) -> None:
        """A cell has ended; `fit` is what a training or tuning measured."""


def make_progress(done: int, total: int, console: Console | None = None, estimate: Estimate | None = None) -> Progress:
    """Progress fit for where standard error goes.

    Args:
        done: cells that are finished already.
        total: cells of the plan.
        console: default: standard error.
        estimate: is told the same, and says how long the rest takes.
    """
    console = console or Console(stderr=True)
    return (Live if console.is_terminal else Lines)(done, total, console, estimate)


class Lines:
    """A plain line for each finished cell, and for those that begin before any is finished."""

    def __init__(self, done: int, total: int, console: Console, estimate: Estimate | None = None) -> None:
        self.done, self.total, self.console = done, total, console
        self.estimate, self.quiet = estimate, True
        """Whether no line of a cell has been written."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, cell: Cell) -> None:
        """Say what begins, until there is more to say."""
        if self.estimate is not None:
            self.estimate.start(cell.key)
        if self.quiet:
            self.note(f"begins: {cell.title}")

    def update(self, cell: Cell, done: int, total: int, loss: float | None) -> None:
        """Say nothing yet."""
        if self.estimate is not None:
            self.estimate.update(cell.key, done / total)

    def note(self, line: str) -> None:
        """Write it."""
        self.console.print(in_terminal(line, self.console.encoding), markup=False, highlight=False, soft_wrap=True)

    def finish(self, cell: Cell, seconds: float, failure: Failure | None, fit: dict[str, Any] | None) -> None:
        """Write the line."""
        self.done, self.quiet = self.done + 1, False
        if self.estimate is not None:
            self.estimate.finish(cell.key, seconds, failure is not None)
        line = f"[{self.done}/{self.total}] {cell.title}: {_outcome(failure, fit)}{seconds:.0f} s{self._rest()}"
        self._line(line, failure is None and (fit is None or fit["status"] == "ok"))

    def _line(self, line: str, good: bool) -> None:
        """Show that a cell has ended, well or not."""
        self.note(line)

    def _rest(self) -> str:
        """How long it takes to the end, where that is known."""
        left = self.estimate.left() if self.estimate is not None and self.estimate.todo else None
        return "" if left is None else f"; {duration(left)} left"


class Live(Lines):
    """A bar for the study and one for each running cell; failures are written above them."""

    def __init__(self, done: int, total: int, console: Console, estimate: Estimate | None = None) -> None:
        super().__init__(done, total, console, estimate)
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[more]}"),
        )
        self.bars = Bars(TextColumn("{task.description}"), *columns, console=console, transient=True)
        self.study = self.bars.add_task("study", total=total, completed=done, more="")
        self.tasks: dict[str, Any] = {}
        self.quiet, self.said = False, 0.0

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def start(self, cell: Cell) -> None:
        """Add its bar."""
        super().start(cell)
        self.tasks[cell.key] = self.bars.add_task(
            escape(in_terminal(cell.title, self.console.encoding)), total=None, more=""
        )

    def update(self, cell: Cell, done: int, total: int, loss: float | None) -> None:
        """Move its bar, and now and then the time that is left."""
        super().update(cell, done, total, loss)
        more = "" if loss is None else f"loss {loss:.3f}"
        self.bars.update(self.tasks[cell.key], completed=done, total=total, more=more)
        if time.monotonic() - self.said >= SAY_SECONDS:
            self._say()

    def finish(self, cell: Cell, seconds: float, failure: Failure | None, fit: dict[str, Any] | None) -> None:
        """Remove its bar."""
        self.bars.remove_task(self.tasks.pop(cell.key))
        self.bars.advance(self.study)
        super().finish(cell, seconds, failure, fit)
        self._say()

    def _line(self, line: str, good: bool) -> None:
        if not good:
            self.note(line)

    def _say(self) -> None:
        self.said = time.monotonic()
        self.bars.update(self.study, more=self._rest().removeprefix("; "))


def _outcome(failure: Failure | None, fit: dict[str, Any] | None) -> str:
    if failure is not None:
        return f"{failure.status}: {failure.reason}, after "
    if fit is None:
        return ""
    return f"loss {fit['final_loss']:.3f}, " if fit["status"] == "ok" else f"{fit['status']}: {fit['reason']}, "
