"""Figures for many schemes: some lines in colour with their names at the ends, the others in grey behind them."""

import math
from collections.abc import Collection, Iterable, Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pezoo.report.curves import bare, length_axis, value_axis
from pezoo.report.figure import Style, folded, heading, styles
from pezoo.report.groups import WINDOWED, select, words
from pezoo.report.statistics import Curve, curves
from pezoo.results import Result

MOST = 7
"""Lines that one panel shows in colour."""
CONTEXT = {"color": "0.5", "alpha": 0.35, "lw": 0.8, "zorder": 1.5}
"""Lines that are there for comparison."""
NAME = 7.5
"""Size of the names at the ends of lines."""


def draw_named(
    results: Iterable[Result],
    metric: str,
    protocol: str,
    named: Collection[str],
    wide: bool = True,
    apart: Collection[str] | None = None,
) -> Figure:
    """Draw a metric over the test length; each line in its colour, with its name at its end.

    Elements have ids by which a page finds them: `line-3`, `band-3` and `name-3` are those of the fourth label of
    `curves`.

    Args:
        results: results of one group.
        metric: what to show.
        protocol: how it was tested.
        named: labels to show in colour and with their names; the others are grey.
        wide: for a screen; else for a phone.
        apart: labels whose names are moved apart; default: all that are named.
    """
    kept = [r for r in select(results, metric, protocol) if not r.label.endswith(WINDOWED)]
    found = curves(kept)
    figure = Figure(figsize=(8.6, 4.6) if wide else (4.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    _panel(axes, found, styles(kept), named)
    _axes(axes, kept, found)
    if apart is not None:
        for i, label in enumerate(found):
            for text in axes.texts:
                if text.get_gid() == f"name-{i}" and label not in apart:
                    text.set_in_layout(False)
    return figure


def draw_families(results: Iterable[Result], metric: str, protocol: str) -> Figure:
    """Draw a metric over the test length, a panel per family, with all other schemes in grey.

    A family with more schemes than `MOST` has a panel per encoding, or several.

    Args:
        results: results of one group.
        metric: what to show.
        protocol: how it was tested.
    """
    kept = [r for r in select(results, metric, protocol) if not r.label.endswith(WINDOWED)]
    found, looks = curves(kept), styles(kept)
    panels = families(kept)
    n_columns = min(3, len(panels))
    n_rows = math.ceil(len(panels) / n_columns)
    figure = Figure(figsize=(4.1 * n_columns, 2.9 * n_rows), layout="constrained")
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True)
    for axes, (name, labels) in zip(grid.flat, panels.items(), strict=False):
        _panel(axes, found, looks, labels)
        axes.set_title(folded(name), fontsize=9, loc="left")
        _axes(axes, kept, found, small=True)
        axes.tick_params(labelbottom=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    heading(figure, f"{words(metric).capitalize()} by test length, by family", kept, "grey: all others")
    return figure


def families(results: Iterable[Result]) -> dict[str, list[str]]:
    """Return the labels of each panel, at most `MOST` in one: by family, else by encoding too, else in several.

    Args:
        results: results of one group.
    """
    firsts: dict[str, Result] = {}
    for r in results:
        firsts.setdefault(r.label, r)
    by_family: dict[str, list[str]] = {}
    for label, r in firsts.items():
        by_family.setdefault(r.family, []).append(label)
    panels: dict[str, list[str]] = {}
    for family, labels in by_family.items():
        if len(labels) <= MOST:
            panels[family] = labels
            continue
        by_encoding: dict[str, list[str]] = {}
        for label in labels:
            by_encoding.setdefault(firsts[label].encoding, []).append(label)
        single = [label for each in by_encoding.values() if len(each) == 1 for label in each]
        groups = {family: single} | {f"{family}: {name}": each for name, each in by_encoding.items() if len(each) > 1}
        for name, each in groups.items():
            pieces = [each[i : i + MOST] for i in range(0, len(each), MOST)]
            for i, piece in enumerate(pieces):
                panels[name if len(pieces) == 1 else f"{name} ({i + 1} of {len(pieces)})"] = piece
    return panels


def _panel(axes: Axes, found: Mapping[str, Curve], looks: Mapping[str, Style], named: Collection[str]) -> None:
    bare(axes)
    ends = {}
    for i, (label, curve) in enumerate(found.items()):
        points = {length: s for length, s in curve.items() if s.mean is not None}
        x, y = list(points), [s.mean for s in points.values()]
        if label not in named:
            axes.plot(x, y, **CONTEXT, gid=f"line-{i}")
            continue
        look = looks[label]
        filled = look.colour if look.filled else "white"
        axes.plot(
            x, y, color=look.colour, ls=look.dashes, marker=look.marker, ms=4, mfc=filled, lw=1.4, gid=f"line-{i}"
        )
        intervals = [s.interval() or (s.mean, s.mean) for s in points.values()]
        if any(low < high for low, high in intervals):
            low, high = zip(*intervals, strict=True)
            axes.fill_between(x, low, high, color=look.colour, alpha=0.13, lw=0, gid=f"band-{i}")
        if x:
            ends[i, label] = x[-1], y[-1]
    for (i, label), (x, y) in ends.items():
        text = axes.annotate(
            folded(label, 30), (x, y), (6, 0), textcoords="offset points", va="center", fontsize=NAME, gid=f"name-{i}"
        )
        text.set_color(looks[label].colour)
        text.set_annotation_clip(False)


def _axes(axes: Axes, kept: list[Result], found: Mapping[str, Curve], small: bool = False) -> None:
    lengths = {r.test_length for r in kept}
    length_axis(axes, lengths, kept, "" if small else "test length", small=small)
    last = [list(curve.values())[-1].mean for curve in found.values()]
    value_axis(axes, kept[0], [value for value in last if value is not None], small=small)
