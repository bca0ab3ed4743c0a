"""What is shown of a running study on standard error: bars, or lines if that is no terminal."""

from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from pezoo.escape import in_terminal
from pezoo.study.collect import Failure
from pezoo.study.plan import Cell


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


def make_progress(done: int, total: int, console: Console | None = None) -> Progress:
    """Progress fit for where standard error goes.

    Args:
        done: cells that are finished already.
        total: cells of the plan.
        console: default: standard error.
    """
    console = console or Console(stderr=True)
    return (Live if console.is_terminal else Lines)(done, total, console)


class Lines:
    """A plain line for each finished cell."""

    def __init__(self, done: int, total: int, console: Console) -> None:
        self.done, self.total, self.console = done, total, console

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, cell: Cell) -> None:
        """Say nothing yet."""

    def update(self, cell: Cell, done: int, total: int, loss: float | None) -> None:
        """Say nothing yet."""

    def note(self, line: str) -> None:
        """Write it."""
        self.console.print(in_terminal(line, self.console.encoding), markup=False, highlight=False, soft_wrap=True)

    def finish(self, cell: Cell, seconds: float, failure: Failure | None, fit: dict[str, Any] | None) -> None:
        """Write the line."""
        self.done += 1
        self.note(f"[{self.done}/{self.total}] {cell.title}: {_outcome(failure, fit)}{seconds:.0f} s")


class Live(Lines):
    """A bar for the study and one for each running cell; failures are written above them."""

    def __init__(self, done: int, total: int, console: Console) -> None:
        super().__init__(done, total, console)
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[loss]}"),
        )
        self.bars = Bars(TextColumn("{task.description}"), *columns, console=console, transient=True)
        self.study = self.bars.add_task("study", total=total, completed=done, loss="")
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def start(self, cell: Cell) -> None:
        """Add its bar."""
        self.tasks[cell.key] = self.bars.add_task(
            escape(in_terminal(cell.title, self.console.encoding)), total=None, loss=""
        )

    def update(self, cell: Cell, done: int, total: int, loss: float | None) -> None:
        """Move its bar."""
        shown = "" if loss is None else f"loss {loss:.3f}"
        self.bars.update(self.tasks[cell.key], completed=done, total=total, loss=shown)

    def finish(self, cell: Cell, seconds: float, failure: Failure | None, fit: dict[str, Any] | None) -> None:
        """Remove its bar."""
        self.bars.remove_task(self.tasks.pop(cell.key))
        self.bars.advance(self.study)
        if failure or (fit and fit["status"] != "ok"):
            super().finish(cell, seconds, failure, fit)
        else:
            self.done += 1


def _outcome(failure: Failure | None, fit: dict[str, Any] | None) -> str:
    if failure is not None:
        return f"{failure.status}: {failure.reason}, after "
    if fit is None:
        return ""
    return f"loss {fit['final_loss']:.3f}, " if fit["status"] == "ok" else f"{fit['status']}: {fit['reason']}, "
