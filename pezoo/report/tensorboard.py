"""TensorBoard's view of a study: curves over the test length, their intervals, and a row per model for HParams.

The runs `<logdir>/test/<label>` hold the curves, the runs `<logdir>/hparams/<label>, seed <seed>` the rows. What
training logs stands beside them in `<logdir>/train` and is left alone.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pezoo.escape import in_terminal, safe_names
from pezoo.files import curves_into
from pezoo.report.figure import settle
from pezoo.report.groups import HEADLINES, WINDOWED, groups, headline, matrices, metrics, select, words
from pezoo.report.intervals import losses_by_label, mean_by_position
from pezoo.report.lines import MOST, draw_lengths, draw_positions, families
from pezoo.report.statistics import TOLERANCE, best_value, curves, effective_length, length_name, scale_of
from pezoo.report.table import MANY, by_length
from pezoo.results import LANGUAGE_MODELLING, Result
from pezoo.results.losses import Sources

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

ADDRESS = "http://localhost:6006/?runFilter=%5Etest%2F&smoothing=0#timeseries&regexInput=%5Etest%2F&_smoothingWeight=0"
"""Where to look: at the runs of curves alone, without TensorBoard's smoothing, which would bend curves of a few points.
What stands before the hash is for the tab TIME SERIES, what stands behind it for all others."""
RATIOS = (1, 4, 16)
"""Multiples of L at which the rows of HParams show a metric, where they were tested; the longest is there as well."""
STABLE, GOOD = "stable to, in L", "good to, in L"
"""How the names of columns end that hold the effective lengths."""
ROWS = 1000
"""Most rows of HParams; TensorBoard opens a folder for each."""
OVERVIEW = "all schemes"
"""The run of figures, tables, and what TensorBoard has to know of all runs."""
CLIPPED = (
    "The ends of steep curves may lie outside: TensorBoard fits a card to all but the highest and lowest twentieth of "
    "its points. Switch off *Ignore outliers in chart scaling* to see them."
)
ENDS = "An end of the 95 % interval of the mean over seeds, which *Custom scalars* shows as a band."

Runs = dict[str, list[tuple[int, "Summary"]]]
"""Run -> steps, and what is said there."""


class Point(NamedTuple):
    """A value over seeds, and the ends of its interval where there is one."""

    mean: float
    ends: tuple[float, float] | None = None


@dataclass
class Section:
    """What TensorBoard shows under one heading: one metric of one group, under one protocol."""

    title: str
    about: str
    """What is shown, in Markdown."""
    along: str
    """What the curves run along, in a word."""
    steps: str
    """The same in words, with its unit."""
    trained: Mapping[str, int]
    """Label -> L."""
    curves: Mapping[str, Mapping[int, Point]]
    """Label -> place -> value."""
    foremost: bool = False
    picture: Figure | None = None
    text: str = ""


def write(
    results: Iterable[Result],
    logdir: str | Path,
    source: Sources | None = None,
    drawn: Mapping[tuple[str, str, str], Figure] | None = None,
    baseline: str = "",
) -> Path:
    """Write the view, replacing the one that is there.

    Sections are numbered, the headlines first: "1 perplexity", "2 loss", "3 loss by position"; tasks, parts and
    protocols have sections of their own. A section has two cards for at most seven schemes, since TensorBoard has seven
    colours: "by length", with step = test length, and "by doublings", with step = 100 log2(T / L), so that short
    lengths are not squeezed and the training length is at 0. Values are means over seeds, of perplexities geometric
    ones. Schemes are put together by family.

    The run "all schemes" holds figures and tables. Custom scalars show the headlines with the 95 % interval of the
    mean over seeds, if there are several; the band has no width where one seed alone has a value. HParams have a row
    for each scheme and seed of each group, unless there are more than `ROWS`.

    Args:
        results: results of one study.
        logdir: the study's TensorBoard folder.
        source: where losses by position are; without it they are left out.
        drawn: figures that the report has drawn, by group, what they show, and protocol; others are drawn here.
        baseline: the label that tables compare with, as in `by_length`.

    Returns:
        The folder of the curves.

    Raises:
        UserError: if there are no results, or they cannot share a figure.
        OSError: if the folder cannot be written.
    """
    results = list(results)
    sections = sorted(_sections(results, source, drawn or {}, baseline), key=lambda section: not section.foremost)
    runs, rows = _curve_runs(sections, results), _rows(results)
    if rows:
        runs.setdefault(OVERVIEW, []).append((0, _experiment(rows)))
    folder = Path(logdir) / "test"
    _replace(folder, runs)
    _replace(Path(logdir) / "hparams", _row_runs(rows))
    return folder


def _replace(folder: Path, runs: Runs) -> None:
    """Write one event file per run, and remove those that were in the folder."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.rglob("*tfevents*"):
        old.unlink()
    for run, name in safe_names(runs).items():
        # TensorBoard gives colours in the order in which runs begin, and reads a file again if its name is later.
        now, place = time.time(), folder / name
        place.mkdir(exist_ok=True)
        with curves_into(place), (place / f"events.out.tfevents.{now:.6f}").open("wb") as file:
            writer = RecordWriter(file)
            writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
            for step, summary in runs[run]:
                writer.write(Event(wall_time=now, step=step, summary=summary).SerializeToString())
    for gone in [path for path in folder.iterdir() if path.is_dir() and not any(path.iterdir())]:
        gone.rmdir()


# Curves


def _sections(
    results: list[Result], source: Sources | None, drawn: Mapping[tuple[str, str, str], Figure], baseline: str
) -> Iterator[Section]:
    found = groups(results) | matrices(results)
    for name, group in found.items():
        trained = {r.label: r.train_length for r in group}
        for protocol, names in metrics(group).items():
            first, _ = headline({protocol: names})
            for metric in names:
                kept = select(group, metric, protocol)
                shown = metric == first and len(found) <= MANY
                yield Section(
                    title=_title(name, metric, protocol, group),
                    about=_about(kept),
                    along="length",
                    steps="the test length" + (" in tokens" if kept[0].task == LANGUAGE_MODELLING else ""),
                    trained=trained,
                    curves={
                        label: {n: Point(s.mean, s.interval()) for n, s in curve.items() if s.mean is not None}
                        for label, curve in curves(kept).items()
                    },
                    foremost=metric == first and metric in HEADLINES,
                    picture=(drawn.get((name, metric, protocol)) or draw_lengths(kept)) if shown else None,
                    text=by_length(group, metric, protocol, "", baseline, source).markdown(),
                )
            losses = {} if source is None or "loss" not in names else losses_by_label(group, source, protocol)
            if losses:
                yield Section(
                    title=_title(name, "loss by position", protocol, group),
                    about=_about(select(group, "loss", protocol), " by position"),
                    along="position",
                    steps="the position of the token in its window, from 1",
                    trained=trained,
                    curves={
                        label: {round(at): Point(mean) for at, mean in mean_by_position(seeds).items()}
                        for label, seeds in losses.items()
                    },
                    picture=drawn.get((name, "position", protocol))
                    or draw_positions(select(group, "loss", protocol), source),
                )


def _title(name: str, metric: str, protocol: str, group: list[Result]) -> str:
    """Return the heading of a section."""
    several = len(metrics(group)) > 1
    text = ", ".join(filter(None, (name, words(metric), protocol if several else "")))
    return _in_tag(text)


def _in_tag(text: str) -> str:
    """Return text for a tag: TensorBoard ends a heading at the first slash, and takes a bracket for that of a run."""
    return in_terminal(text).translate(str.maketrans("/()", "|[]"))


def _about(kept: list[Result], more: str = "") -> str:
    one, seeds = kept[0], len({r.seed for r in kept})
    mean = "geometric mean" if scale_of(one.metric) == "log" else "mean"
    over = f"{mean} of {seeds} seeds" if seeds > 1 else "one seed"
    return in_terminal(f"{words(one.metric).capitalize()}{more} on {one.corpus}, {one.protocol} protocol, {over}.")


def _curve_runs(sections: list[Section], results: list[Result]) -> Runs:
    """Return the runs of curves, those that share cards after each other."""
    from torch.utils.tensorboard.summary import custom_scalars, image, text

    cards = _cards(r for group in (groups(results) | matrices(results)).values() for r in group)
    runs: Runs = {label: [] for labels in cards.values() for label in labels}
    runs[OVERVIEW] = []
    layout: dict[str, dict[str, list]] = {}
    for number, section in enumerate(sections, 1):
        heading = f"{number} {section.title}"
        doublings, plain = _descriptions(section)
        for card, labels in cards.items():
            there = {label: section.curves[label] for label in labels if section.curves.get(label)}
            tag = f"{heading}/{card}, by doublings"
            ends = [f"{len(sections) + 1} ends of intervals/{heading}, {card}, {end}" for end in ("low", "high")]
            banded = section.foremost and any(point.ends for curve in there.values() for point in curve.values())
            if banded:
                layout.setdefault(heading, {})[f"{card}, by doublings, with 95 % intervals"] = ["Margin", [tag, *ends]]
            for label, curve in there.items():
                for at, (mean, interval) in curve.items():
                    step = round(100 * math.log2(at / section.trained[label]))
                    runs[label].append((step, _scalar(tag, mean, doublings)))
                    runs[label].append((at, _scalar(f"{heading}/{card}, by {section.along}", mean, plain)))
                    for end, value in zip(ends, interval or (mean, mean), strict=True) if banded else ():
                        runs[label].append((step, _scalar(end, value, ENDS)))
        if section.picture is not None:
            pixels = _pixels(section.picture)
            runs[OVERVIEW].append((0, image(f"{heading}/{OVERVIEW}", pixels, dataformats="HWC")))
        if section.text:
            runs[OVERVIEW].append((0, text(f"{heading}/{OVERVIEW}", section.text)))
    if layout:
        # TensorBoard shows the charts of a heading from the last to the first.
        shown = {heading: dict(reversed(bands.items())) for heading, bands in layout.items()}
        runs[OVERVIEW].append((0, custom_scalars(shown)))
    return {run: said for run, said in runs.items() if said}


def _cards(results: Iterable[Result]) -> dict[str, list[str]]:
    """Return the labels of each card: families, the small ones together while a card has room."""
    found: dict[str, list[str]] = {}
    for name, labels in families(results).items():
        family, last = _in_tag(name), next(reversed(found), "")
        if last and len(found[last]) + len(labels) <= MOST:
            found[f"{last}, {family}"] = found.pop(last) + labels
        else:
            found[family] = list(labels)
    return dict(zip([OVERVIEW], found.values(), strict=True)) if len(found) == 1 else found


def _descriptions(section: Section) -> tuple[str, str]:
    """Return what the cards by doublings, and by length or position, say of themselves, in Markdown."""
    trained = ", ".join(map(str, sorted({section.trained[label] for label in section.curves})))
    doublings = (
        f"Step: 100 × log2(T / L), rounded; T is {section.steps}, L the training length, {trained}. "
        "0 is L, 100 is 2L, 200 is 4L, 400 is 16L."
    )
    plain = f"Step: {section.steps}. Trained at L = {trained}."
    return f"{section.about} {doublings} {CLIPPED}", f"{section.about} {plain} {CLIPPED}"


def _scalar(tag: str, value: float, description: str = "") -> "Summary":
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb

    return scalar_pb(tag, value, description)


def _pixels(picture: Figure) -> np.ndarray:
    """Render a figure to (height, width, 3) uint8."""
    settle(picture)
    canvas = FigureCanvasAgg(picture)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


# HParams


@dataclass
class Row:
    """What HParams show of one model: a scheme with a seed, in one group of results."""

    name: str
    facts: dict[str, str | float]
    values: dict[str, float] = field(default_factory=dict)
    """Column -> value, where there is one."""


def _rows(results: list[Result]) -> list[Row]:
    """Return a row for each model of each group, with the headlines of all protocols; none if they are too many."""
    found = groups(results)
    if len({(name, r.label, r.seed) for name, group in found.items() for r in group}) > ROWS:
        return []
    rows: dict[tuple[str, str, int], Row] = {}
    for name, group in found.items():
        protocols = metrics(group)
        for protocol, names in protocols.items():
            metric, _ = headline({protocol: names})
            if metric not in HEADLINES:
                continue
            kept = [r for r in select(group, metric, protocol) if not r.label.endswith(WINDOWED)]
            what = f"{words(metric)}, {protocol}," if len(protocols) > 1 else words(metric)
            for (label, seed), (one, values) in _values(kept).items():
                title = ": ".join(filter(None, (name, f"{label}, seed {seed}")))
                row = rows.setdefault((name, label, seed), Row(title, _facts(one, name if len(found) > 1 else "")))
                row.values |= {f"{what} {column}": value for column, value in values.items()}
    return list(rows.values())


def _values(kept: list[Result]) -> dict[tuple[str, int], tuple[Result, dict[str, float]]]:
    """Return for each label and seed one of its results, and what the columns say of it."""
    by_length: dict[int, list[Result]] = {}
    by_model: dict[tuple[str, int], list[Result]] = {}
    for r in kept:
        by_length.setdefault(r.train_length, []).append(r)
        by_model.setdefault((r.label, r.seed), []).append(r)
    best = {length: best_value(curves(trained), length) for length, trained in by_length.items()}
    longest = max((r.test_length for r in kept), default=0)
    found = {}
    for (label, seed), own in by_model.items():
        one, curve, length = own[0], curves(own)[label], own[0].train_length
        shown = {n: s.mean for n, s in curve.items() if n / length in RATIOS or n == longest}
        values = {f"at {length_name(n, length)}": mean for n, mean in shown.items() if mean is not None}
        for column, reference in ((STABLE, None), (GOOD, best[length])):
            reached = effective_length(curve, length, reference=reference)
            values[column] = reached[0] / length if reached else 0.0
        found[label, seed] = one, values
    return found


def _facts(result: Result, group: str) -> dict[str, str | float]:
    """Return what is known of a model; HParams shows the first five, by name, that differ between models."""
    facts = {
        "encoding": result.encoding,
        "extension": "+".join(result.extensions) or "none",
        "family": result.family,
        "learning rate": result.learning_rate,
        "part or task": group,
        "scheme": result.scheme,
        "seed": str(result.seed),
        "total parameters": result.params,
        "tuning steps": result.finetune_steps,
        "tuning length": result.finetune_length,
    }
    return {name: value for name, value in facts.items() if value not in ("", None)}


def _row_runs(rows: list[Row]) -> Runs:
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    return {
        row.name: [
            (0, hparams_pb(row.facts, trial_id=in_terminal(row.name))),
            *((0, _scalar(f"hparams/{column}", value)) for column, value in row.values.items()),
        ]
        for row in rows
    }


def _experiment(rows: list[Row]) -> "Summary":
    """Return what HParams should know of all rows: their columns, in order."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    experiment = api_pb2.Experiment()
    for name in dict.fromkeys(name for row in rows for name in row.facts):
        values = sorted({row.facts[name] for row in rows if name in row.facts})
        info = experiment.hparam_infos.add(name=name, differs=len(values) > 1)
        if isinstance(values[0], str):
            info.type = api_pb2.DATA_TYPE_STRING
            info.domain_discrete.extend(values)
        else:
            info.type = api_pb2.DATA_TYPE_FLOAT64
            info.domain_interval.min_value, info.domain_interval.max_value = values[0], values[-1]
    within = f"The longest tested length, over L, up to which all stay within {TOLERANCE:.0%} of"
    said = {STABLE: f"{within} the model's own value at L.", GOOD: f"{within} the best scheme's value at L; 0: none."}
    for column in dict.fromkeys(column for row in rows for column in row.values):
        about = next((said[end] for end in said if column.endswith(end)), "")
        name = api_pb2.MetricName(tag=f"hparams/{column}")
        experiment.metric_infos.add(name=name, display_name=column, description=about)
    data = metadata.create_summary_metadata(HParamsPluginData(experiment=experiment))
    return Summary(value=[Summary.Value(tag=metadata.EXPERIMENT_TAG, metadata=data, tensor=metadata.NULL_TENSOR)])
