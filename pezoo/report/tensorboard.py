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
from pezoo.files import replacing
from pezoo.report.curves import draw_by_position, draw_curves
from pezoo.report.figure import readable
from pezoo.report.groups import HEADLINES, WINDOWED, groups, headline, matrices, metrics, select, words
from pezoo.report.intervals import losses_by_label, mean_by_position
from pezoo.report.lines import MOST, families
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
    counted: str
    """What steps are."""
    trained: Mapping[str, int]
    """Label -> L."""
    curves: Mapping[str, Mapping[int, Point]]
    """Label -> place -> value."""
    foremost: bool = False
    picture: Figure | None = None
    text: str = ""


def write(results: Iterable[Result], logdir: str | Path, source: Sources | None = None) -> Path:
    """Write the view, replacing the one that is there.

    Sections are numbered, the headlines first: "1 perplexity", "2 loss", "3 loss by position"; tasks, parts and
    protocols have sections of their own. A section has two cards for at most seven schemes, since TensorBoard has seven
    colours: "by length", with step = test length, and "by doublings", with step = 100 log2(T / L), so that short
    lengths are not squeezed and the training length is at 0. Values are means over seeds, of perplexities geometric
    ones. Schemes are put together by family.

    The run "all schemes" holds figures and tables. Custom scalars show the headlines with the 95 % interval of the
    mean over seeds, if there are several. HParams have a row for each scheme and seed, of each group.

    Args:
        results: results of one study.
        logdir: the study's TensorBoard folder.
        source: where losses by position are; without it they are left out.

    Returns:
        The folder of the curves.

    Raises:
        UserError: if there are no results, or they cannot share a figure.
        OSError: if the folder cannot be written.
    """
    results = list(results)
    sections = sorted(_sections(results, source), key=lambda section: not section.foremost)
    runs, rows = _curve_runs(sections, results), _rows(results)
    runs.setdefault(OVERVIEW, []).append((0, _experiment(rows)))
    folder = Path(logdir) / "test"
    _replace(folder, runs)
    _replace(Path(logdir) / "hparams", _row_runs(rows))
    return folder


def _replace(folder: Path, runs: Runs) -> None:
    """Write one event file per run, and remove those that were in the folder."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    for old in folder.rglob("*tfevents*"):
        old.unlink()
    for run, name in safe_names(runs).items():
        # TensorBoard gives colours in the order in which runs begin, and reads a file again if its name is later.
        now = time.time()
        with replacing(folder / name / f"events.out.tfevents.{now:.6f}") as file:
            writer = RecordWriter(file)
            writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
            for step, summary in runs[run]:
                writer.write(Event(wall_time=now, step=step, summary=summary).SerializeToString())
    for gone in [path for path in folder.iterdir() if path.is_dir() and not any(path.iterdir())]:
        gone.rmdir()


# Curves


def _sections(results: list[Result], source: Sources | None) -> Iterator[Section]:
    found = groups(results) | matrices(results)
    for name, group in found.items():
        trained = {r.label: r.train_length for r in group}
        for protocol, names in metrics(group).items():
            first, _ = headline({protocol: names})
            for metric in names:
                kept = select(group, metric, protocol)
                shown = metric == first and len(found) <= MANY and readable(kept)
                yield Section(
                    title=_title(name, metric, protocol, group),
                    about=_about(kept),
                    counted=f"the test length{_unit(kept[0])}",
                    trained=trained,
                    curves={
                        label: {n: Point(s.mean, s.interval()) for n, s in curve.items() if s.mean is not None}
                        for label, curve in curves(kept).items()
                    },
                    foremost=metric == first,
                    picture=draw_curves(kept, metric, protocol) if shown else None,
                    text=by_length(kept, metric, protocol).markdown(),
                )
            losses = {} if source is None or "loss" not in names else losses_by_label(group, source, protocol)
            if losses:
                yield Section(
                    title=_title(name, "loss by position", protocol, group),
                    about=_about(select(group, "loss", protocol), " by position"),
                    counted="the position of the token in its window, from 1",
                    trained=trained,
                    curves={
                        label: {round(at): Point(mean) for at, mean in mean_by_position(seeds).items()}
                        for label, seeds in losses.items()
                    },
                    picture=draw_by_position(group, source, protocol) if readable(group) else None,
                )


def _title(name: str, metric: str, protocol: str, group: list[Result]) -> str:
    """Return the heading of a section; TensorBoard ends a heading at the first slash of a tag."""
    several = len(metrics(group)) > 1
    text = ", ".join(filter(None, (name, words(metric), protocol if several else "")))
    return in_terminal(text).replace("/", "|")


def _about(kept: list[Result], more: str = "") -> str:
    one, seeds = kept[0], len({r.seed for r in kept})
    mean = "geometric mean" if scale_of(one.metric) == "log" else "mean"
    over = f"{mean} of {seeds} seeds" if seeds > 1 else "one seed"
    return in_terminal(f"{words(one.metric).capitalize()}{more} on {one.corpus}, {one.protocol} protocol, {over}.")


def _unit(result: Result) -> str:
    return " in tokens" if result.task == LANGUAGE_MODELLING else ""


def _curve_runs(sections: list[Section], results: list[Result]) -> Runs:
    """Return the runs of curves, those that share cards after each other."""
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb
    from torch.utils.tensorboard.summary import custom_scalars, image, text

    every = [r for group in (groups(results) | matrices(results)).values() for r in group]
    cards = _cards(every)
    runs: Runs = {label: [] for labels in cards.values() for label in labels}
    runs[OVERVIEW] = []
    layout: dict[str, dict[str, list]] = {}
    ends = f"{len(sections) + 1} ends of intervals"
    for number, section in enumerate(sections, 1):
        heading = f"{number} {section.title}"
        for card, labels in cards.items():
            there = {label: section.curves[label] for label in labels if section.curves.get(label)}
            banded = section.foremost and any(p.ends for curve in there.values() for p in curve.values())
            if banded:
                low, high = (f"{ends}/{heading}, {card}, {end}" for end in ("low", "high"))
                bands = layout.setdefault(heading, {})
                tags = [f"{heading}/{card}, by doublings", low, high]
                bands[f"{card}, by doublings, with 95 % intervals"] = ["Margin", tags]
            for label, curve in there.items():
                length = section.trained[label]
                for at, (mean, interval) in curve.items():
                    doublings = round(100 * math.log2(at / length))
                    runs[label] += [
                        (doublings, scalar_pb(f"{heading}/{card}, by doublings", mean, _by_doublings(section))),
                        (at, scalar_pb(f"{heading}/{card}, by length", mean, _by_length(section))),
                    ]
                    if banded:
                        for tag, value in zip((low, high), interval or (mean, mean), strict=True):
                            runs[label].append((doublings, scalar_pb(tag, value, ENDS)))
        if section.picture is not None:
            pixels = _pixels(section.picture)
            runs[OVERVIEW].append((0, image(f"{heading}/{OVERVIEW}", pixels, dataformats="HWC")))
        if section.text:
            runs[OVERVIEW].append((0, text(f"{heading}/{OVERVIEW}", section.text)))
    if layout:
        # TensorBoard shows the charts of a heading from the last to the first.
        shown = {heading: dict(reversed(bands.items())) for heading, bands in layout.items()}
        runs[OVERVIEW].append((0, custom_scalars(shown)))
    return {run: summaries for run, summaries in runs.items() if summaries}


def _cards(results: Iterable[Result]) -> dict[str, list[str]]:
    """Return the labels of each card: families, the small ones together while a card has room."""
    found: dict[str, list[str]] = {}
    for family, labels in families(results).items():
        last = next(reversed(found), "")
        if last and len(found[last]) + len(labels) <= MOST:
            found[f"{last}, {family}"] = found.pop(last) + labels
        else:
            found[family] = list(labels)
    return dict(zip([OVERVIEW], found.values(), strict=True)) if len(found) == 1 else found


def _by_length(section: Section) -> str:
    lengths = sorted({section.trained[label] for label in section.curves})
    return f"{section.about} Step: {section.counted}. Trained at L = {', '.join(map(str, lengths))}. {CLIPPED}"


def _by_doublings(section: Section) -> str:
    step = "Step: 100 × log2(T / L), rounded: 0 is the training length L, 100 is 2L, 200 is 4L, 400 is 16L."
    return f"{_by_length(section).replace('Step: ', 'T: ').removesuffix(CLIPPED)}{step} {CLIPPED}"


def _pixels(picture: Figure) -> np.ndarray:
    """Render a figure to (height, width, 3) uint8."""
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


COLUMNS = {
    "stable to": f"how far the value stays within {TOLERANCE:.0%} of the model's own at L",
    "good to": f"how far the value stays within {TOLERANCE:.0%} of the best scheme's at L",
}
"""The two effective lengths, and what they say."""


def _rows(results: list[Result]) -> list[Row]:
    """Return a row for each model of each group, with the headlines of all protocols."""
    found, rows = groups(results), {}
    for name, group in found.items():
        protocols = metrics(group)
        for protocol, names in protocols.items():
            metric, _ = headline({protocol: names})
            if metric not in HEADLINES:
                continue
            kept = [r for r in select(group, metric, protocol) if not r.label.endswith(WINDOWED)]
            what = f"{words(metric)}, {protocol}" if len(protocols) > 1 else words(metric)
            for (label, seed), own in _by_model(kept).items():
                title = ": ".join(filter(None, (name, f"{label}, seed {seed}")))
                facts = _facts(own[0], name if len(found) > 1 else "")
                row = rows.setdefault((name, label, seed), Row(in_terminal(title), facts))
                row.values |= {f"{what} {column}": value for column, value in _values(own, kept).items()}
    return list(rows.values())


def _by_model(results: Iterable[Result]) -> dict[tuple[str, int], list[Result]]:
    found: dict[tuple[str, int], list[Result]] = {}
    for r in results:
        found.setdefault((r.label, r.seed), []).append(r)
    return found


def _values(own: list[Result], kept: list[Result]) -> dict[str, float]:
    """Return what columns say of one model, the results of which are among those of all."""
    one, curve = own[0], curves(own)[own[0].label]
    length, longest = one.train_length, max(r.test_length for r in kept)
    shown = {n: s for n, s in curve.items() if n / length in RATIOS or n == longest}
    values = {f"at {length_name(n, length)}": s.mean for n, s in shown.items() if s.mean is not None}
    best = best_value(curves(r for r in kept if r.train_length == length), length)
    for column, reference in zip(COLUMNS, (None, best), strict=True):
        reached = effective_length(curve, length, reference=reference)
        values[f"{column}, in L"] = reached[0] / length if reached else 0.0
    return values


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
    }
    return {name: value for name, value in facts.items() if value not in ("", None)}


def _row_runs(rows: list[Row]) -> Runs:
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb

    return {
        row.name: [
            (0, hparams_pb(row.facts, trial_id=row.name)),
            *((0, scalar_pb(f"hparams/{column}", value)) for column, value in row.values.items()),
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
    for column in dict.fromkeys(column for row in rows for column in row.values):
        about = next((said for name, said in COLUMNS.items() if f" {name}, " in column), "")
        name = api_pb2.MetricName(tag=f"hparams/{column}")
        experiment.metric_infos.add(name=name, display_name=column, description=about)
    data = metadata.create_summary_metadata(HParamsPluginData(experiment=experiment))
    return Summary(value=[Summary.Value(tag=metadata.EXPERIMENT_TAG, metadata=data, tensor=metadata.NULL_TENSOR)])
