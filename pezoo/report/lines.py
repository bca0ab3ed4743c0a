"""Figures for many schemes: some lines in colour with their names at the ends, the others in grey behind them."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pezoo.report.axes import bare, length_axis, value_axis
from pezoo.report.curves import draw_by_position, draw_curves, said_of_ends
from pezoo.report.figure import Style, folded, heading, styles
from pezoo.report.groups import WINDOWED, words
from pezoo.report.intervals import bars_of, ends_by_position, losses_by_label, mean_by_position
from pezoo.report.shares import ACCURACIES
from pezoo.report.statistics import PERPLEXITIES, curves, scale_of
from pezoo.results import Result
from pezoo.results.losses import Sources

Points = dict[float, tuple[float, float, float]]
"""Test length or position -> mean, and the ends of its band (the mean itself where there is none)."""
MOST = 7
"""Lines that one panel shows in colour."""
CONTEXT = {"color": "0.5", "alpha": 0.35, "lw": 0.8, "zorder": 1.5}
"""Lines that are there for comparison."""
NAME = 7.5
"""Size of the names at the ends of lines."""


def lines_by_length(kept: Sequence[Result]) -> dict[str, Points]:
    """Return the points of each label's curve over the test length, without companions with a window.

    Args:
        kept: what `select` returned.
    """
    found: dict[str, Points] = {}
    interval = bars_of(kept) == "interval"
    for label, curve in curves(r for r in kept if not r.label.endswith(WINDOWED)).items():
        there = {length: s for length, s in curve.items() if s.mean is not None}
        ends = {length: s.interval() if interval else s.spread_ends for length, s in there.items()}
        found[label] = {length: (s.mean, *(ends[length] or (s.mean, s.mean))) for length, s in there.items()}
    return found


def lines_by_position(kept: Sequence[Result], source: Sources) -> dict[str, Points]:
    """Return the loss by position of each label at its longest test length, with what is shown around it.

    Args:
        kept: what `select` returned, of the loss.
        source: where the losses are, as in `pezoo.results.losses.losses_of`.
    """
    found: dict[str, Points] = {}
    for label, seeds in losses_by_label(kept, source, kept[0].protocol).items():
        if label.endswith(WINDOWED):
            continue
        means, ends = mean_by_position(seeds), ends_by_position(seeds, bars_of(kept))
        found[label] = {position: (mean, *ends[position]) for position, mean in means.items()}
    return found


def beside_best(kept: Sequence[Result], lines: Mapping[str, Points]) -> dict[str, Points]:
    """Return lines as ratios to the best mean at each length, for accuracies as differences from it.

    Args:
        kept: results of one metric and protocol.
        lines: label -> points.
    """
    share = kept[0].metric in ACCURACIES
    best: dict[float, float] = {}
    for points in lines.values():
        for x, (mean, _, _) in points.items():
            best[x] = mean if x not in best else (max if share else min)(best[x], mean)
    return {
        label: {x: tuple(v - best[x] if share else v / best[x] for v in values) for x, values in points.items()}
        for label, points in lines.items()
    }


def draw_named(
    kept: Sequence[Result],
    lines: Mapping[str, Points],
    named: Collection[str],
    wide: bool = True,
    apart: Collection[str] | None = None,
) -> Figure:
    """Draw lines into one panel, each with its name at its end.

    Elements have ids by which a page finds them: `line-3`, `band-3` and `name-3` are those of the fourth label.

    Args:
        kept: results of one metric and protocol.
        lines: label -> points.
        named: labels to show in colour and with their names; the others are grey.
        wide: for a screen; else for a phone.
        apart: labels whose names are moved apart; default: all that are named.
    """
    figure = Figure(figsize=(8.6, 4.6) if wide else (4.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    _panel(axes, lines, styles(kept), named, apart)
    _axes(axes, kept, lines, "test length")
    return figure


def draw_families(
    kept: Sequence[Result], lines: Mapping[str, Points], name: str = "test length", what: str = ""
) -> Figure:
    """Draw lines into a panel per family, with all other schemes in grey.

    A family with more schemes than `MOST` has a panel per encoding, or several.

    Args:
        kept: results of one metric and protocol.
        lines: label -> points.
        name: of the x axis: "test length" or "position".
        what: the lines show, if it is not the metric.
    """
    looks = styles(kept)
    panels = families(r for r in kept if r.label in lines)
    n_columns = min(3, len(panels))
    n_rows = math.ceil(len(panels) / n_columns)
    figure = Figure(figsize=(4.1 * n_columns, 2.9 * n_rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1)  # in inches: names at the ends of lines keep off the next panel
    grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True)
    for k, (axes, (title, labels)) in enumerate(zip(grid.flat, panels.items(), strict=False)):
        _panel(axes, lines, looks, labels, panel=f"-{k}th")
        axes.set_title(folded(title), fontsize=9, loc="left")
        _axes(axes, kept, lines, name, small=True)
        axes.tick_params(labelbottom=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    bands = [f"{said}{' of the value' * bool(what)}" for said in said_of_ends(kept, "bands")]
    grey = ["grey: all others"] if len(panels) > 1 else []
    heading(figure, f"{what or words(kept[0].metric).capitalize()} by {name}", kept, *bands, *grey)
    return figure


def draw_lengths(kept: Sequence[Result]) -> Figure:
    """Draw a metric over the test length: in one panel, or of more schemes than `MOST` in one per family.

    Args:
        kept: what `select` returned.
    """
    return (
        draw_families(kept, lines_by_length(kept))
        if _many(kept)
        else draw_curves(kept, kept[0].metric, kept[0].protocol)
    )


def draw_positions(kept: Sequence[Result], source: Sources) -> Figure | None:
    """Draw the loss by position likewise.

    Args:
        kept: what `select` returned, of the loss.
        source: where the losses are, as in `pezoo.results.losses.losses_of`.

    Returns:
        The figure; None where losses by position were not kept.
    """
    lines = lines_by_position(kept, source)
    if not lines:
        return None
    return draw_families(kept, lines, "position") if _many(kept) else draw_by_position(kept, source, kept[0].protocol)


def draw_beside_best(kept: Sequence[Result]) -> Figure | None:
    """Draw perplexities as ratios to the best at each length, of more schemes than `MOST`; else None."""
    if not _many(kept) or scale_of(kept[0].metric) != "log":
        return None
    what = f"{words(kept[0].metric).capitalize()} / the best"
    return draw_families(kept, beside_best(kept, lines_by_length(kept)), what=what)


def _many(kept: Sequence[Result]) -> bool:
    return len({r.label.removesuffix(WINDOWED) for r in kept}) > MOST


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


def _panel(
    axes: Axes,
    lines: Mapping[str, Points],
    looks: Mapping[str, Style],
    named: Collection[str],
    apart: Collection[str] | None = None,
    panel: str = "",
) -> None:
    bare(axes)
    ends = {}
    for i, (label, points) in enumerate(lines.items()):
        x, y = list(points), [mean for mean, _, _ in points.values()]
        if label not in named:
            axes.plot(x, y, **CONTEXT, gid=f"line-{i}{panel}")
            continue
        look = looks[label]
        (line,) = axes.plot(x, y, color=look.colour, ls=look.dashes, lw=1.4, gid=f"line-{i}{panel}")
        line.set(marker=look.marker, markersize=4, markerfacecolor=look.colour if look.filled else "white")
        line.set_markevery(max(1, len(x) // 8))
        if any(low < high for _, low, high in points.values()):
            _, low, high = zip(*points.values(), strict=True)
            axes.fill_between(x, low, high, color=look.colour, alpha=0.13, lw=0, gid=f"band-{i}{panel}")
        if x:
            ends[i, label] = x[-1], y[-1]
    for (i, label), end in ends.items():
        text = axes.annotate(folded(label, 24), end, (6, 0), textcoords="offset points", va="center", fontsize=NAME)
        text.set(color=looks[label].colour, gid=f"name-{i}{panel}", annotation_clip=False)
        text.set_in_layout(apart is None or label in apart)


def _axes(axes: Axes, kept: Sequence[Result], lines: Mapping[str, Points], name: str, small: bool = False) -> None:
    ticks = {r.test_length for r in kept}
    if name == "position":
        ticks |= {4**k for k in range(12) if 4**k < max(ticks)}
    length_axis(axes, ticks, list(kept), "" if small else name, small=small)
    value_axis(axes, kept[0], [list(points.values())[-1][0] for points in lines.values() if points], small=small)
    if kept[0].metric in PERPLEXITIES:  # a wide interval must not squeeze the lines
        values = [mean for points in lines.values() for mean, _, _ in points.values()]
        if values:
            axes.set_ylim(min(values) / 1.06, max(values) * 1.06)
