"""The cells of a study on disk, each whole or not there at all.

A finished cell's folder holds `done.json` (its inputs, what was measured, date, versions, device and machine), and the
model that it made or the losses that it found. It is made under another name and renamed when
complete. `done.json` lists the other files with their digests: a cell that is not as it was written is made anew.
"""

import datetime
import os
import platform
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import pezoo
from pezoo.files import Damaged, move, remove, replacing, seal, sync, unseal
from pezoo.model.devices import device_name
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

    def weights(self, key: str | None) -> Path | None:
        """File of the model that a finished training, choice or tuning made; None for no cell."""
        return None if key is None else self.path(key) / "model.pt"

    def state(self, key: str) -> Path:
        """File of the state that a training or tuning goes on from; it is there until the cell is finished."""
        return self.folder / f"{key}{STATE}"

    def done(self, key: str) -> bool:
        """Whether a cell is finished: it is whole, and nothing in it should be tried again."""
        return self.kept(key) and not tried_again(self.facts(key))

    def kept(self, key: str) -> bool:
        """Whether a cell is whole; perhaps there was not enough memory for all of it."""
        return os.path.lexists(self.path(key)) and self.damage(key) is None

    def damage(self, key: str) -> str | None:
        """Why a cell that is there cannot be used, or None. Its files are read once for each time that it changes."""
        if key not in self._facts:
            try:
                self._facts[key] = unseal(self.path(key) / "done.json")
            except Damaged as error:
                return str(error)
        return None

    def facts(self, key: str) -> dict[str, Any]:
        """What a cell wrote down about itself.

        Raises:
            Damaged: if it is not whole.
        """
        if key not in self._facts:
            return unseal(self.path(key) / "done.json", digests=False)
        return self._facts[key]

    def forget(self, key: str) -> None:
        """Read a cell anew when it is asked for: another process may have made it."""
        self._facts.pop(key, None)

    def heal(self, keys: Iterable[str]) -> dict[str, str]:
        """Remove cells that are not whole; nobody else may be at work here.

        Returns:
            What was wrong with each, by key.
        """
        self._facts.clear()
        damaged = {key: self.damage(key) for key in keys if os.path.lexists(self.path(key))}
        damaged = {key: why for key, why in damaged.items() if why is not None}
        for key in damaged:
            remove(self.path(key))
        return damaged

    @contextmanager
    def writing(self, cell: Cell) -> Iterator[tuple[Path, dict[str, Any]]]:
        """A folder and facts to fill; they become the cell if the block ends without an error."""
        facts: dict[str, Any] = {"title": cell.title, "inputs": cell.inputs}
        with self._unfinished(cell.key) as folder:
            yield folder, facts
            seal(folder / "done.json", {"date": now()} | provenance(cell.inputs["device"]) | facts)
            move(folder, self.path(cell.key))
            self.forget(cell.key)

    @contextmanager
    def _unfinished(self, key: str) -> Iterator[Path]:
        """A folder to make a cell in, which no other process anywhere has."""
        folder = self.folder / f"{UNFINISHED}{key}-{socket.gethostname()}-{os.getpid()}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def pack(self, keys: Iterable[str], *folders: str) -> dict[str, bytes]:
        """Files of cells with their saved states, and of other folders of the study, for a machine without it.

        Returns:
            Contents, by path below the study.
        """
        tops = [self.study / folder for folder in folders] + [self.path(key) for key in keys]
        paths = [path for top in tops for path in sorted(top.glob("*"))] + [self.state(key) for key in keys]
        return {path.relative_to(self.study).as_posix(): path.read_bytes() for path in paths if path.is_file()}

    def unpack(self, files: Mapping[str, bytes]) -> None:
        """Write files that `pack` read; a cell is there once it is whole.

        Raises:
            Damaged: if a cell is not as it was written.
        """
        cells: dict[str, dict[str, bytes]] = {}
        for name, content in files.items():
            path = self.study / name
            if path.parent.parent == self.folder:
                cells.setdefault(path.parent.name, {})[path.name] = content
                continue
            with replacing(path) as file:
                file.write(content)
        for key, parts in cells.items():
            with self._unfinished(key) as folder:
                for name, content in parts.items():
                    (folder / name).write_bytes(content)
                unseal(folder / "done.json")
                sync(folder)
                move(folder, self.path(key))
            self.forget(key)

    def clean(self) -> None:
        """Remove what was left unfinished; nobody else may be at work here."""
        for stale in self.folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(stale, ignore_errors=True)
        for state in self.folder.glob(f"*{STATE}"):
            if self.done(state.name.removesuffix(STATE)):
                state.unlink(missing_ok=True)
        for stale in self.folder.glob(f".*{STATE}.*.tmp"):
            stale.unlink(missing_ok=True)


def tried_again(facts: dict[str, Any]) -> str | None:
    """What of a cell should be tried again, in words; None if nothing."""
    for at in facts.get("lengths", []):
        if at["status"] == "out_of_memory":
            return f"at test length {at['test_length']}: {at['reason']}"
    return None


def wait_for(path: Path, seconds: float) -> bool:
    """Whether a path is there; on a disk that machines share, they may see it seconds later than who wrote it."""
    until = time.monotonic() + seconds
    while not os.path.lexists(path):
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
        with suppress(OSError):
            os.listdir(path.parent)  # which makes the system look
    return True


def provenance(device: str) -> dict[str, Any]:
    """What computes on a device here: the device's name, the machine, and versions of programs."""
    return {"device": device_name(device), "machine": platform.platform(), "versions": versions()}


def versions() -> dict[str, str]:
    """Versions of the programs that determine the numbers."""
    packages = {"torch": torch.__version__, "pytorch-lightning": version("pytorch-lightning")}
    return {"pezoo": pezoo.__version__, "python": platform.python_version()} | packages


def now() -> str:
    """The date and time in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
