"""A process that runs cells, wherever it stands: it is made ready for a study once, and says how each cell ends.

What is said are messages: plain data with an `event`. `taken`: a process has the cell, and is made ready. `begun` has
the machine and the process, `progress` how far it is (done, total, loss), `note` a line for people. The last one is
`done`, with what a training measured (fit), or `failed`, with a status and a reason, and perhaps what
has computed (by).
"""

import contextlib
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from pezoo.data import DataConfig
from pezoo.errors import UserError
from pezoo.outcome import outcome
from pezoo.registry import entry, load_plugin
from pezoo.study.cells import run_cell
from pezoo.study.launcher import Message
from pezoo.study.plan import Cell
from pezoo.study.resolve import load_corpora
from pezoo.study.store import Store, provenance, tried_again


class Process:
    """This process, made ready for the cells of a study.

    Args:
        study: as `pezoo.study.launcher.setup_of` gives it.

    Raises:
        UserError: if it cannot be made ready: a plug-in or the text is not here, say.
    """

    def __init__(self, study: Mapping[str, Any]) -> None:
        for plugin in study["plugins"]:
            load_plugin(plugin)
        torch.set_num_threads(study["threads"])
        if study["device"].startswith("cuda:"):
            torch.cuda.set_device(study["device"])  # what cells call cuda
        self.corpora = load_corpora(DataConfig(**text) for text in study["texts"])
        self.save_minutes = study["save_minutes"]

    def run(
        self,
        cell: Cell,
        store: Store,
        tell: Callable[[Message], None],
        log: Callable[[str], None],
        seconds: float,
        kept: bool = True,
    ) -> Message:
        """Run a cell; it is in the store if it is done.

        Args:
            cell: what to run.
            store: where it goes, and where what it builds on is.
            tell: gets all messages but the last.
            log: gets what is for those who look for a reason, such as a traceback.
            seconds: between two messages of progress.
            kept: whether this process keeps the cell, as in `run_cell`.

        Returns:
            The last message.
        """
        told = 0.0

        def report(done: int, total: int, loss: float | None) -> None:
            nonlocal told
            if time.monotonic() - told >= seconds:
                told = time.monotonic()
                tell({"event": "progress", "done": done, "total": total, "loss": loss})

        def note(line: str) -> None:
            log(line)
            tell({"event": "note", "line": line})

        try:
            _check_code(cell)
            facts = run_cell(cell, store, self.corpora, report, note, self.save_minutes, kept)
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # a plug-in may raise these too
            log(f"{cell.title} ({cell.key}) failed:\n{traceback.format_exc()}")
            status, reason = outcome(error)
            return self._failed(cell, status if status == "out_of_memory" else "failed", reason)
        if (short := tried_again(facts)) is not None:
            log(f"{cell.title} ({cell.key}) ran out of memory {short}")
            return self._failed(cell, "out_of_memory", short)
        return {"event": "done", "fit": facts.get("fit")}

    @staticmethod
    def _failed(cell: Cell, status: str, reason: str) -> Message:
        """A last message, with what has computed here."""
        return {"event": "failed", "status": status, "reason": reason, "by": provenance(cell.inputs["device"])}


def begun() -> Message:
    """A cell begins, in this process."""
    return {"event": "begun", "host": socket.gethostname(), "process": os.getpid()}


def _check_code(cell: Cell) -> None:
    """Refuse to run a cell with other code than its name says."""
    sources = dict(cell.inputs["sources"])
    for facts in (cell.inputs[name] for name in ("data", "tested") if name in cell.inputs):
        if "source" in facts:
            sources[facts["task"].partition(":")[0]] = facts["source"]
    for name, known in sources.items():
        if entry(name).source_hash != known:
            raise UserError(
                f"the code of {name} is not what the study was planned with: it has changed since, or "
                f"{socket.gethostname()} has another pezoo; run the study again with the same code everywhere"
            )


class Stopped(BaseException):
    """The process is to leave its cell; a training has saved its state."""


@contextlib.contextmanager
def stopped_by(*numbers: int) -> Iterator[None]:
    """Raise `Stopped` at these signals, at any line but those of a training, which saves its state first."""

    def stop(number: int, _: Any) -> None:
        raise Stopped(number)

    usual = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
