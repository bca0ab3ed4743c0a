"""The cells of a study on disk, each whole or not there at all.

A finished cell's folder holds `done.json` (its inputs, what was measured, date, versions, device), and the
model that it made or the losses that it found. It is made under another name and renamed when
complete.
"""

import datetime
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import pezoo
from pezoo.devices import device_name
from pezoo.study.plan import Cell

UNFINISHED, STATE = ".unfinished-", ".state.pt"


class Store:
    """The cells in the folder of a study."""

    def __init__(self, study: Path) -> None:
        self.study, self.folder = study, study / "cells"
        self._facts: dict[str, dict[str, Any]] = {}

    def path(self, key: str) -> Path:
        """Folder of a finished cell."""
        return self.folder / key

    def state(self, key: str) -> Path:
        """File of the state that a training or tuning goes on from; it is there until the cell is finished."""
        return self.folder / f"{key}{STATE}"

    def done(self, key: str) -> bool:
        """Whether a cell is finished."""
        return (self.path(key) / "done.json").is_file()

    def facts(self, key: str) -> dict[str, Any]:
        """What a finished cell wrote down about itself."""
        if key not in self._facts:
            self._facts[key] = json.loads((self.path(key) / "done.json").read_text())
        return self._facts[key]

    @contextmanager
    def writing(self, cell: Cell) -> Iterator[tuple[Path, dict[str, Any]]]:
        """A folder and facts to fill; they become the cell if the block ends without an error."""
        folder = self.folder / f"{UNFINISHED}{cell.key}-{os.getpid()}"
        folder.mkdir(parents=True)
        facts: dict[str, Any] = {"title": cell.title, "inputs": cell.inputs}
        try:
            yield folder, facts
            facts |= {"date": now(), "versions": versions(), "device": device_name(cell.inputs["device"])}
            (folder / "done.json").write_text(json.dumps(facts, indent=1))
            os.replace(folder, self.path(cell.key))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def clean(self) -> None:
        """Remove what was left unfinished; nobody else may be at work here."""
        for stale in self.folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(stale, ignore_errors=True)
        for state in self.folder.glob(f"*{STATE}"):
            if self.done(state.name.removesuffix(STATE)):
                state.unlink(missing_ok=True)
        for stale in self.folder.glob(f".*{STATE}.*.tmp"):
            stale.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Versions of the programs that determine the numbers."""
    packages = {"torch": torch.__version__, "pytorch-lightning": version("pytorch-lightning")}
    return {"pezoo": pezoo.__version__, "python": platform.python_version()} | packages


def now() -> str:
    """The date and time in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
