"""What is in the folder of a study and its recipe does not use: cells, saved states, and curves of training."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pezoo.errors import UserError
from pezoo.files import Damaged, remove, unseal
from pezoo.study.folder import folder_of
from pezoo.study.store import STATE
from pezoo.study.study import Study, holding

CURVES = Path("tensorboard", "train")


@dataclass(frozen=True)
class Unused:
    """A folder or file that nothing in the recipe uses."""

    path: Path
    title: str
    """What it is, for people."""
    date: str
    """Day it was made; empty if unknown."""
    size: int
    """Bytes."""


def find_unused(folder: str | Path, plugins: Iterable[str | Path] = ()) -> list[Unused]:
    """What the recipe of the last run does not use, cells first; nothing is changed.

    Args:
        folder: of the study.
        plugins: Python files that register members; a study that was run with some needs them again.

    Raises:
        UserError: if no study was run there, or it cannot be planned.
    """
    if not Path(folder).is_dir() or folder_of(folder) is None:
        raise UserError(f"{folder} is no folder of a study")
    study = Study.prepare(folder, plugins=plugins)
    return list(_cells(study)) + list(_curves(study))


def _cells(study: Study) -> Iterable[Unused]:
    for path in sorted(study.store.folder.glob("[!.]*")):
        if path.name.removesuffix(STATE) in study.plan.cells:
            continue
        facts: dict[str, Any] = {}
        if path.name.endswith(STATE):
            facts = {"title": "state of a training that was stopped"}
        else:
            try:
                facts = unseal(path / "done.json", digests=False)
            except Damaged as error:
                facts = {"title": f"damaged: {error}"}
        yield Unused(path, facts["title"], facts.get("date", "")[:10], _size(path))


def _curves(study: Study) -> Iterable[Unused]:
    used = {study.out / cell.log for cell in study.plan.cells.values() if cell.log}
    for path in sorted((study.out / CURVES).rglob("*")):
        if path.is_dir() and path not in used and any(child.is_file() for child in path.iterdir()):
            yield Unused(path, f"curves of {path.relative_to(study.out / CURVES)}", "", _size(path))


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [Path(top, name) for top, _, names in os.walk(path) for name in names]
    return sum(file.lstat().st_size for file in files)


def remove_unused(folder: str | Path, found: Iterable[Unused]) -> None:
    """Remove what `find_unused` found, unless a run is at work in the folder.

    Raises:
        UserError: if one is.
    """
    with holding(Path(folder)):
        for one in found:
            remove(one.path)
