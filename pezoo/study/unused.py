"""What is in the folder of a study and its recipe does not use: cells, saved states, and curves of training.

Cells are named by all that determines their numbers, the device too: on another machine, or with other code, the same
recipe asks for other ones. So what the results stand on counts as used as well.
"""

import contextlib
import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pezoo.errors import UserError
from pezoo.files import Damaged, remove, unseal
from pezoo.results import read
from pezoo.study.folder import folder_of
from pezoo.study.plan import Cell
from pezoo.study.store import STATE, Store
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


def find_unused(
    folder: str | Path, plugins: Iterable[str | Path] = (), note: Callable[[str], object] = print
) -> list[Unused]:
    """What neither the recipe of the last run nor its results use, cells first; nothing is changed.

    Args:
        folder: of the study.
        plugins: Python files that register members; a study that was run with some needs them again.
        note: is told, in one line, if the recipe asks for other cells here than where it was run.

    Raises:
        UserError: if no study was run there, it cannot be planned, or its results cannot be read.
    """
    if not Path(folder).is_dir() or folder_of(folder) is None:
        raise UserError(f"{folder} is no folder of a study")
    study = Study.prepare(folder, ["ray.address=null"], plugins=plugins)
    named = {result.cell for result in read(study.results_path)} if study.results_path.exists() else set()
    there = [path.name for path in study.store.folder.glob("[!.]*") if not path.name.endswith(STATE)]
    if there and not named and not any(key in study.plan.cells for key in there):
        note(f"{study.out}: its recipe uses none of its cells here, and no results say which it used; all are left")
        return []
    if strange := named - study.plan.cells.keys():
        why = "here the recipe asks for other ones, as on another device or with other code"
        note(f"{len(strange)} cells of the results in {study.out} are kept: {why}; so are saved states and curves")
        return list(_cells(study, {*study.plan.cells, *_built_on(study.store, named)}, states=False))
    return [*_cells(study, study.plan.cells, states=True), *_curves(study)]


def _built_on(store: Store, keys: Iterable[str]) -> set[str]:
    """These cells and all that they are built on, as the cells themselves say."""
    found, waiting = set[str](), list(keys)
    while waiting:
        if (key := waiting.pop()) not in found:
            found.add(key)
            with contextlib.suppress(Damaged):
                waiting += Cell("", store.facts(key)["inputs"]).parents
    return found


def _cells(study: Study, used: Collection[str], states: bool) -> Iterable[Unused]:
    for path in sorted(study.store.folder.glob("[!.]*")):
        if path.name.removesuffix(STATE) in used or (path.name.endswith(STATE) and not states):
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
