"""A finished study, run here or published, or several merged into one: its results, and what people look at."""

import html
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas
import yaml

from pezoo.errors import UserError, cut
from pezoo.report.comparisons import best_in_range, compare_all
from pezoo.report.findings import findings, headline_results
from pezoo.report.groups import groups
from pezoo.report.lines import draw_lengths
from pezoo.report.page import About
from pezoo.report.table import ranking
from pezoo.report.write import write_report
from pezoo.results import Result, find_results, read_study, to_frame
from pezoo.results.losses import Sources
from pezoo.study.folder import changes, flat
from pezoo.study.reading import read_keys
from pezoo.study.recipe import WHERE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSSES = "losses.npz"
"""File of a published study that holds the losses of all cells."""
MAY_DIFFER = (
    *("study", "description", "size", "sizes", "schemes", "grid", "seeds", "baseline", "plugins"),
    *("threads", "device", *WHERE),
)
"""Keys of recipes whose results can still be one: other schemes, seeds and machines."""
MOST = 5
"""Differences that a message names."""


@dataclass(frozen=True)
class Finished:
    """A finished study."""

    folders: tuple[Path, ...]
    results: list[Result]
    """In the recipe's order."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """As plain data; of merged studies the first one's."""

    @cached_property
    def frame(self) -> pandas.DataFrame:
        """The results as a table, with a row per number and a column per field of the schema."""
        return to_frame(self.results)

    @property
    def losses(self) -> Sources:
        """Where the losses by position are, as in `pezoo.results.losses.losses_of`; a study need not have kept any."""
        both = [(folder / "cells", folder / LOSSES) for folder in self.folders]
        return tuple(cells if cells.is_dir() else packed for cells, packed in both)

    @property
    def baseline(self) -> str:
        """The label that others are compared with: the recipe's; empty: the best in range."""
        return str(self.recipe.get("baseline") or "")

    @property
    def answer(self) -> list[str]:
        """What the study says, in a few sentences."""
        return findings(self.results, self.losses)

    def table(self) -> pandas.DataFrame:
        """The schemes by their value at the longest length, the best first, beside the baseline; as texts."""
        return ranking(self.results, self.baseline, self.losses).frame

    def compare(self, label: str | None = None, baseline: str | None = None) -> pandas.DataFrame:
        """Compare schemes in pairs, seed by seed and document by document, by the foremost metric.

        Args:
            label: one scheme; default: all.
            baseline: the other; default: the recipe's, else the best in range.

        Returns:
            A row per scheme and test length, with the fields of `pezoo.report.comparisons.Comparison` and its verdict.

        Raises:
            UserError: if there is no such scheme.
        """
        kept = headline_results(next(iter(groups(self.results).values())))
        beside = baseline or self.baseline or best_in_range(kept)
        found = compare_all(kept, beside, self.losses, labels=None if label is None else [label])
        return pandas.DataFrame([vars(one) | {"verdict": one.verdict} for one in found])

    def plot(self) -> "Figure":
        """The foremost metric over the test length; a figure of matplotlib, which notebooks show."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        figure = draw_lengths(headline_results(next(iter(groups(self.results).values()))))
        FigureCanvasAgg(figure)
        return figure

    def write(self, folder: str | Path) -> None:
        """Write page, tables and figures into a folder, as in `pezoo.report.write.write_report`.

        Raises:
            UserError: if the folder holds other files than a report, or another study's own report.
        """
        _refuse(Path(folder), self.folders)
        command = f"pezoo report {' '.join(shlex.quote(str(folder)) for folder in self.folders)}"
        write_report(self.results, folder, self.losses, about=about(self.recipe, command))

    def _repr_html_(self) -> str:
        """The answer and the ranking, for a notebook."""
        said = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in self.answer)
        return f"<ul>{said}</ul>{self.table().to_html()}"


def _refuse(out: Path, folders: Iterable[str | Path]) -> None:
    """Refuse to write over what is no report, and over the report of a study that shows its results alone."""
    home, studies = out.resolve().parent, [Path(folder).resolve() for folder in folders]
    if out.name == "report" and find_results(home):
        if studies != [home]:
            raise UserError(f"{out} shows the results of {home} alone; choose another folder")
    elif out.is_dir() and any(out.iterdir()) and not any(out.glob("report.*")):
        raise UserError(f"{out} holds files that are no report; choose another folder")


def about(recipe: Mapping[str, Any], command: str) -> About:
    """Return what a recipe adds to a report.

    Args:
        recipe: as plain data.
        command: that writes the report.
    """
    text = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True, width=100) if recipe else ""
    question = " ".join(str(recipe.get("description") or "").split())
    return About(question, text, str(recipe.get("baseline") or ""), command)


def load(*folders: str | Path) -> Finished:
    """Read the folder of a study that `pezoo run` made, or of a published one; several are merged into one.

    Args:
        folders: each holds `results.jsonl`, or `results.jsonl.gz` where it is published.

    Raises:
        UserError: if there are no results in one, or several cannot be one: they differ in text, model, training or
            testing, or hold different results of the same scheme and seed.
    """
    if not folders:
        raise UserError("name the folder of a study, such as runs/quickstart")
    found = [_load(Path(folder)) for folder in folders]
    return found[0] if len(found) == 1 else _merged(found)


def _load(folder: Path) -> Finished:
    results, recipe = read_study(folder), folder / "recipe.yaml"
    return Finished((folder,), results, read_keys(recipe) if recipe.is_file() else {})


def _merged(studies: list[Finished]) -> Finished:
    first, *others = studies
    for other in others:
        differ = differences(first, other)
        if differ:
            one, two = (shlex.quote(str(study.folders[0])) for study in (first, other))
            more = f" and {len(differ) - MOST} more" if len(differ) > MOST else ""
            raise UserError(
                f"{one} and {two} cannot be one study; they differ in {'; '.join(differ[:MOST])}{more}. "
                f"To see them side by side: pezoo compare {one} {two}"
            )
    name = " + ".join(dict.fromkeys(r.study for study in studies for r in study.results))
    kept: dict[tuple[Any, ...], Result] = {}
    for study in studies:
        for r in study.results:
            key = (r.part, r.task, r.protocol, r.metric, r.label, r.seed, r.test_length, r.depth)
            other = kept.setdefault(key, replace(r, study=name))
            if other.value != r.value:
                raise UserError(
                    f"{r.label!r}, seed {r.seed}, has different results in {', '.join(map(str, _folders(studies)))}; "
                    f"give one of them another label, or leave one folder out"
                )
    return Finished(_folders(studies), list(kept.values()), first.recipe)


def _folders(studies: Iterable[Finished]) -> tuple[Path, ...]:
    return tuple(folder for study in studies for folder in study.folders)


def differences(one: Finished, other: Finished) -> list[str]:
    """Return what two studies differ in, so that their numbers do not compare: "model.d_model 64 -> 128".

    Args:
        one: a study.
        other: another.
    """
    found = []
    if one.recipe and other.recipe:
        old, new = (flat(study.recipe) for study in (one, other))
        both = [key for key in old if key in new and _matters(key)]
        found += changes({key: old[key] for key in both}, {key: new[key] for key in both})
    for name in ("corpus", "corpus_digest", "tokenizer", "train_length", "test_precision"):
        texts = [{str(getattr(r, name)) or "unknown" for r in s.results} for s in (one, other)]
        if texts[0] != texts[1] and not texts[0] & texts[1]:
            found.append(f"{name} {cut(', '.join(sorted(texts[0])))} -> {cut(', '.join(sorted(texts[1])))}")
    return found


def _matters(key: str) -> bool:
    """Whether a recipe's key, or a part's, moves numbers."""
    first, *rest = key.split(".")
    return first not in MAY_DIFFER and not (first == "parts" and len(rest) > 1 and rest[1] in MAY_DIFFER)


def side_by_side(studies: list[Finished]) -> tuple[pandas.DataFrame, list[str]]:
    """Return the foremost metric of several studies in one table, and what they differ in.

    Args:
        studies: two or more.

    Returns:
        Rows: labels. Columns: for each multiple of the training length, a column per study. Texts.
    """
    from pezoo.report.statistics import curves, length_name

    names = _names(studies)
    cells: dict[str, dict[tuple[float, str, str], str]] = {}
    for name, study in zip(names, studies, strict=True):
        for group, results in groups(study.results).items():
            kept = headline_results(results)
            for label, curve in curves(kept).items():
                trained = next(r.train_length for r in kept if r.label == label)
                row = f"{group}: {label}" if group else label
                for length, summary in curve.items():
                    at = (length / trained, length_name(length, trained), name)
                    cells.setdefault(row, {})[at] = str(summary)
    columns = sorted({at for row in cells.values() for at in row}, key=lambda at: (at[0], names.index(at[2])))
    frame = pandas.DataFrame(
        [[row.get(at, "") for at in columns] for row in cells.values()],
        index=pandas.Index(list(cells), name="scheme"),
        columns=[f"{length} ({name})" for _, length, name in columns],
    )
    first, *others = studies
    said = [
        f"{names[0]} -> {name}: {one}"
        for name, other in zip(names[1:], others, strict=True)
        for one in differences(first, other)
    ]
    return frame, said


def _names(studies: list[Finished]) -> list[str]:
    """Names for the columns: of the folders if these differ, else their paths."""
    short = [study.folders[0].resolve().name for study in studies]
    return short if len(set(short)) == len(short) else [str(study.folders[0]) for study in studies]
