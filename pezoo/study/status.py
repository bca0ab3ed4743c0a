"""Where a study stands, for whoever asks from elsewhere: the run at work in a folder keeps `status.json` up to date.

Readers need neither the recipe nor its plug-ins, take no lock, and disturb nobody. The file is a view: no number comes
from it, and a run writes it anew.
"""

import contextlib
import json
import os
import shlex
import socket
import time
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pezoo.errors import UserError
from pezoo.files import replacing, runs, started
from pezoo.results import find_results
from pezoo.study.collect import Failure
from pezoo.study.estimate import Estimate
from pezoo.study.plan import Cell, Plan
from pezoo.study.progress import Progress
from pezoo.study.store import now

STATUS = "status.json"
WRITE_SECONDS = 1.0
"""Between two writings, at least; so that they take a hundredth of the time at most, also a hundred of their own."""
SILENT_SECONDS = 600
"""A run on another machine that has written nothing for so long may have ended."""


class Status:
    """Passes on what a launcher tells, and writes it down.

    Args:
        folder: of the study.
        plan: the study's.
        done: keys of the cells that are finished already.
        shown: is told the same.
        estimate: says how long the rest takes.
    """

    def __init__(self, folder: Path, plan: Plan, done: Iterable[str], shown: Progress, estimate: Estimate) -> None:
        self.path, self.shown, self.estimate = folder / STATUS, shown, estimate
        cells, recipe = plan.cells, plan.recipe
        self.facts: dict[str, Any] = {
            "study": recipe.study,
            "size": recipe.size,
            "workers": recipe.workers,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "process_began": started(os.getpid()),
            "began": now(),
            "state": "running",
            "cells": dict(Counter(cell.kind for cell in cells.values())),
            "done": dict(Counter(cells[key].kind for key in done)),
            "running": {},
            "failed": {},
        }
        self.write_again = 0.0

    def __enter__(self) -> Self:
        self.shown.__enter__()
        self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.facts |= {"state": "ended" if kind is None else "stopped", "running": {}}
        self._write()
        self.shown.__exit__(kind, error, trace)

    def start(self, cell: Cell) -> None:
        """A cell begins."""
        self.shown.start(cell)
        self.facts["running"][cell.key] = {"title": cell.title, "began": now()}
        self._write_now_and_then()

    def update(self, cell: Cell, done: int, total: int, loss: float | None) -> None:
        """A cell has got to step (or token) `done` of `total`."""
        self.shown.update(cell, done, total, loss)
        self.facts["running"][cell.key] |= {"done": done, "total": total, "loss": loss}
        self._write_now_and_then()

    def note(self, line: str) -> None:
        """There is something to say."""
        self.shown.note(line)

    def finish(self, cell: Cell, seconds: float, failure: Failure | None, fit: dict[str, Any] | None) -> None:
        """A cell has ended."""
        self.shown.finish(cell, seconds, failure, fit)
        self.facts["running"].pop(cell.key, None)
        if failure is None:
            self.facts["done"][cell.kind] = self.facts["done"].get(cell.kind, 0) + 1
        else:
            self.facts["failed"][cell.key] = {"title": cell.title, "status": failure.status, "reason": failure.reason}
        self._write_now_and_then()

    def _write_now_and_then(self) -> None:
        began = time.monotonic()
        if began >= self.write_again:
            self._write()
            ended = time.monotonic()
            self.write_again = ended + max(WRITE_SECONDS, 100 * (ended - began))

    def _write(self) -> None:
        facts = self.facts | {"written": now(), "seconds_left": self.estimate.left() if self.estimate.todo else 0.0}
        # A full disk stops the study where it matters.
        with contextlib.suppress(OSError), replacing(self.path) as file:
            file.write(json.dumps(facts, indent=1).encode())


def read_status(folder: str | Path) -> dict[str, Any]:
    """Where the study in a folder stands, as plain data.

    Args:
        folder: of the study.

    Returns:
        What the last run wrote, with `state`: "running", "ended", "stopped" (Ctrl-C and its like), "killed" (its
        process is gone), or "silent" (on another machine, nothing heard for ten minutes); and `queued`, the cells that
        are not begun (after a failure, also those that need what failed).

    Raises:
        UserError: if no run was at work there, or the file is damaged.
    """
    path = Path(folder, STATUS)
    try:
        facts = json.loads(path.read_bytes())
        total, done = sum(facts["cells"].values()), sum(facts["done"].values())
        if facts["state"] == "running":
            facts["state"] = _alive(facts)
        if facts["state"] == "killed":
            facts["running"] = {}
        facts["queued"] = total - done - len(facts["running"]) - len(facts["failed"])
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except OSError:
        if not path.parent.is_dir():
            raise UserError(
                f"there is no folder {folder}; name one that `pezoo run` made, such as runs/quickstart"
            ) from None
        if find_results(folder) and not Path(folder, "cells").is_dir():
            seen = f"to see them: pezoo report {shlex.quote(str(folder))} --out FOLDER"
            raise UserError(f"{folder} holds published results, and no run; {seen}") from None
        raise UserError(
            f"{folder} has no {STATUS}: no study was run there, or an earlier pezoo ran it; "
            f"to see what is left of a study: pezoo run {shlex.quote(str(folder))} --dry-run"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is damaged; the next run writes it anew") from None
    return dict(facts)


def _alive(facts: dict[str, Any]) -> str:
    """The state of a run that wrote that it is running."""
    if facts["host"] == socket.gethostname():
        began = {facts.get("process_began"), started(facts["process"])} - {None}  # two: the number is another's now
        return "running" if runs(facts["process"]) and len(began) < 2 else "killed"
    silent = datetime.now().astimezone() - datetime.fromisoformat(facts["written"])
    return "silent" if silent.total_seconds() > SILENT_SECONDS else "running"
