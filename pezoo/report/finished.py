"""A finished study, run here or published: its results, and what people look at, made anew."""

import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from pezoo.errors import UserError
from pezoo.report.write import write_report
from pezoo.results import Result, find_results, read, to_frame

if TYPE_CHECKING:
    import pandas

RECIPE = "recipe.yaml"
LOSSES = "losses.npz"
"""File of a published study that holds the losses of all cells."""


@dataclass(frozen=True)
class Finished:
    """A finished study."""

    folder: Path
    results: list[Result]
    """In the recipe's order."""
    baseline: str = ""
    """The label that tables compare with, as the recipe has it; empty: the best scheme at L."""

    @cached_property
    def frame(self) -> "pandas.DataFrame":
        """The results as a table, with a row per number and a column per field of the schema."""
        return to_frame(self.results)

    @property
    def losses(self) -> Path:
        """Where the losses by position are, as in `pezoo.results.losses.losses_of`; a study need not have kept any."""
        cells = self.folder / "cells"
        return cells if cells.is_dir() else self.folder / LOSSES

    def write(self, folder: str | Path) -> None:
        """Write tables and figures into a folder, as in `pezoo.report.write.write_report`."""
        write_report(self.results, folder, self.losses, baseline=self.baseline)


def load(folder: str | Path) -> Finished:
    """Read the folder of a study that `pezoo run` made, or of a published one.

    Args:
        folder: holds `results.jsonl`, or `results.jsonl.gz` where it is published.

    Raises:
        UserError: if there are no results in it.
    """
    path = find_results(folder)
    if path is None:
        raise UserError(f"{folder} is no folder of a study: it has no results.jsonl; name one that `pezoo run` made")
    results = read(path)
    if not results:
        raise UserError(f"the study in {folder} has no results yet; type: pezoo run {shlex.quote(str(folder))}")
    return Finished(Path(folder), results, _baseline(Path(folder)))


def _baseline(folder: Path) -> str:
    """Read the baseline from the study's recipe; a folder need not have one."""
    path = folder / RECIPE
    try:
        recipe = yaml.safe_load(path.read_bytes()) if path.is_file() else {}
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path}: {error}. Move it away to do without a baseline of its own.") from error
    found = recipe.get("baseline", "") if isinstance(recipe, dict) else ""
    return found if isinstance(found, str) else ""
