"""Heat maps: accuracy by depth and length, schemes by tasks, encodings by extensions."""

import math
from collections.abc import Iterable, Mapping

import matplotlib
import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from pezoo.report.figure import folded, heading
from pezoo.report.grids import PLAIN, grids
from pezoo.report.groups import UNTUNED, Tuning, name_of, select, words
from pezoo.report.statistics import (
    ACCURACIES,
    Summary,
    by_depth,
    length_name,
    score_frame,
)
from pezoo.results import Result

SHARE = Normalize(0, 1)
OCTAVES = 3
"""A ratio of 2 to this power, up or down, has the darkest colour, however far ratios reach."""
MISSING = "0.85"


def draw_depth(results: Iterable[Result], metric: str = "exact_match", protocol: str = "answers") -> Figure:
    """Draw a metric over depth and test length, a panel for each label, as means over seeds.

    Args:
        results: results of one group, with lines at single depths.
        metric: an accuracy.
        protocol: how it was tested.

    Raises:
        UserError: if there is nothing to show, or the results cannot share a figure.
    """
    kept = select(results, metric, protocol, depths=True)
    trained = {r.label: r.train_length for r in kept}
    frames = by_depth(kept)
    n_columns = min(4, len(frames))
    n_rows = math.ceil(len(frames) / n_columns)
    figure = Figure(figsize=(max(6, 2.6 * n_columns + 2), 2.1 * n_rows + 1.6), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True)
    for axes, (label, frame) in zip(panels.flat, frames.items(), strict=False):
        _heat(axes, frame.to_numpy(), matplotlib.colormaps["viridis"], SHARE)
        axes.set_title(folded(label, 28), fontsize=9)
        same = len(set(trained.values())) == 1
        names = [length_name(t, trained[label]).removeprefix("T = ") if same else str(t) for t in frame.columns]
        _ticks(axes, [f"{depth:.0%}" for depth in frame.index], names, every=math.ceil(len(frame.columns) / 6))
        axes.set_yticks(axes.get_yticks()[:: math.ceil(len(frame.index) / 6)])
    for axes in panels.flat[len(frames) :]:
        axes.set_axis_off()
    for axes in panels.flat[max(0, len(frames) - n_columns) : len(frames)]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel("test length", fontsize=10)
    figure.supylabel("depth (0%: at the beginning)", fontsize=10)
    bar = figure.colorbar(ScalarMappable(SHARE, "viridis"), ax=panels, format=PercentFormatter(1), aspect=30)
    bar.set_label(words(metric))
    heading(figure, f"{words(metric).capitalize()} by depth", kept)
    return figure


def draw_scores(tasks: Mapping[str, list[Result]]) -> Figure:
    """Draw schemes by tasks: the mean of an accuracy over the test lengths beyond the training length.

    Args:
        tasks: name -> what `select` returned.
    """
    frame = score_frame(tasks)
    one = next(iter(tasks.values()))[0]
    figure = Figure(figsize=_size(frame.index, frame.columns), layout="constrained")
    axes = figure.add_subplot()
    _heat(axes, _means(frame), matplotlib.colormaps["viridis"], SHARE, frame.map(_brief).to_numpy())
    _ticks(axes, frame.index, frame.columns)
    axes.axvline(len(tasks) - 0.5, color="white", lw=4)
    bar = figure.colorbar(ScalarMappable(SHARE, "viridis"), ax=axes, format=PercentFormatter(1))
    bar.set_label(words(one.metric))
    every = [r for kept in tasks.values() for r in kept]
    heading(figure, f"{words(one.metric).capitalize()} by task", every, "mean over the tested lengths beyond L")
    return figure


def draw_grid(results: Iterable[Result], metric: str, protocol: str, test_length: int) -> Figure:
    """Draw encodings by extensions at one test length, a panel for each tuning.

    Colours compare with the plain encoding at the same length before tuning: by the logarithm of the ratio, or for
    accuracies by the difference; red is worse. Texts are the values.

    Args:
        results: results of one group, in which `grids` finds a grid.
        metric: what to show.
        protocol: how it was tested.
        test_length: in tokens.

    Raises:
        UserError: if there is nothing to show, or the results cannot share a figure.
    """
    kept = select(results, metric, protocol)
    frames = {tuning: frame for (length, tuning), frame in grids(kept).items() if length == test_length}
    compared = _compared(frames, metric)
    norm, colours = _diverging(compared.values(), metric)
    one = next(iter(frames.values()))
    width, height = _size(one.index, one.columns)
    figure = Figure(figsize=(width, height * len(frames)), layout="constrained")
    panels = figure.subplots(len(frames), 1, squeeze=False)[:, 0]
    for axes, (tuning, frame) in zip(panels, frames.items(), strict=True):
        _heat(axes, compared[tuning], colours, norm, frame.map(_brief).to_numpy())
        _ticks(axes, frame.index, frame.columns)
        if PLAIN in frame.columns:
            axes.axvline(list(frame.columns).index(PLAIN) + 0.5, color="white", lw=4)
        axes.set_title(name_of(tuning), fontsize=10, loc="left")
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=panels, aspect=30)
    if metric in ACCURACIES:
        bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    else:
        octaves = range(int(norm.vmin), int(norm.vmax) + 1)
        bar.set_ticks(octaves, labels=[f"× {2.0**n:g}" for n in octaves])
    bar.set_label(f"{words(metric)} beside the plain encoding, zero-shot")
    at = length_name(test_length, kept[0].train_length)
    heading(figure, f"{words(metric).capitalize()} at {at}", kept, "grey: not there, or nothing to compare with")
    return figure


def _compared(frames: Mapping[Tuning, pandas.DataFrame], metric: str) -> dict[Tuning, np.ndarray]:
    """Return for each tuning how values stand beside the plain ones before tuning."""
    there = UNTUNED in frames and PLAIN in frames[UNTUNED].columns
    plain = _means(frames[UNTUNED][[PLAIN]]) if there else math.nan
    values = {tuning: _means(frame) for tuning, frame in frames.items()}
    return {tuning: each - plain if metric in ACCURACIES else np.log2(each / plain) for tuning, each in values.items()}


def _diverging(compared: Iterable[np.ndarray], metric: str) -> tuple[Normalize, Colormap]:
    """Return colours that are white where nothing has changed, and red where it is worse."""
    if metric in ACCURACIES:
        return Normalize(-1, 1), matplotlib.colormaps["RdBu"]
    far = max((abs(x) for each in compared for x in each.flat if math.isfinite(x)), default=0)
    octaves = min(OCTAVES, max(1, math.ceil(far)))
    return Normalize(-octaves, octaves), matplotlib.colormaps["RdBu_r"]


def _heat(axes: Axes, values: np.ndarray, colours: Colormap, norm: Normalize, texts: Iterable | None = None) -> None:
    """Draw values as coloured cells, those that are NaN grey, with texts that stand out from their colour."""
    axes.imshow(np.ma.masked_invalid(values), cmap=colours.with_extremes(bad=MISSING), norm=norm, aspect="auto")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for i, row in enumerate(texts if texts is not None else ()):
        for j, text in enumerate(row):
            shade = 0.85 if math.isnan(values[i, j]) else np.dot(colours(norm(values[i, j]))[:3], (0.3, 0.59, 0.11))
            size, colour = 8 if len(text) < 6 else 6, "white" if shade < 0.45 else "black"
            axes.text(j, i, text, ha="center", va="center", fontsize=size, color=colour)


def _ticks(axes: Axes, rows: Iterable[str], columns: Iterable[str], every: int = 1) -> None:
    rows, columns = list(rows), list(columns)
    axes.set_yticks(range(len(rows)), [folded(name) for name in rows], fontsize=9)
    long = max(map(len, columns)) > 5
    axes.set_xticks(
        range(0, len(columns), every),
        [folded(name, 28) for name in columns[::every]],
        fontsize=9,
        **({"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if long else {}),
    )


def _size(rows: Iterable[str], columns: Iterable[str]) -> tuple[float, float]:
    """Return the inches of a heat map whose cells hold texts and whose sides hold names."""
    rows, columns = list(rows), list(columns)
    beside, below = (min(44, max(map(len, names))) for names in (rows, columns))
    return 0.55 * len(columns) + 0.075 * beside + 2.2, 0.3 * len(rows) + 0.055 * below + 1.4


def _means(frame: pandas.DataFrame) -> np.ndarray:
    return frame.map(lambda s: math.nan if s is None or s.whole_mean is None else s.whole_mean).to_numpy(float)


def _brief(cell: Summary | None) -> str:
    """Return the mean alone, or why a seed has no value."""
    if cell is None:
        return ""
    if cell.troubles:
        some = "" if cell.mean is None else f"\n{len(cell.troubles)}/{cell.seeds}"
        return cell.troubles[0].replace("_", "\n") + some
    return f"{100 * cell.mean:.0f}" if cell.scale == "share" else str(Summary((cell.mean,)))
