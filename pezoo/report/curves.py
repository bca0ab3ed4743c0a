"""Curves over the test length and over the position in the context."""

import math
from collections.abc import Container, Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pezoo.report.axes import bare, length_axis, value_axis
from pezoo.report.figure import Style, folded, heading, styles
from pezoo.report.groups import WINDOWED, select, window_overlap, words
from pezoo.report.intervals import Bars, bars_of, ends_by_position, losses_by_label, mean_by_position
from pezoo.report.statistics import Curve, Summary, curves, length_name, scale_of
from pezoo.results import Result
from pezoo.results.losses import Sources

Shown = dict[str, tuple[Line2D, float]]
"""Text of the legend -> line, and where it ends on the right."""


def draw_curves(
    results: Iterable[Result],
    metric: str = "perplexity",
    protocol: str = "prefix",
    bars: Bars | None = None,
) -> Figure:
    """Draw a metric over the test length.

    Points and bars of perplexities are geometric: exponentials of the mean loss and of its interval. Accuracies have an
    axis from 0 to 100 % and a dotted line at what guessing scores. A scheme's companion with a
    window is a thin line without a place in the legend. Where training lengths differ, a ring marks each curve's own.

    Args:
        results: results of one group.
        metric: what to show.
        protocol: how it was tested.
        bars: error bars: "spread" (± sample standard deviation over seeds, of perplexities that of the loss) or
            "interval" (95 % confidence interval of the mean, Student's t); by default "interval" from three seeds
            on. With one seed there are none. The figure says which it shows.

    Returns:
        The figure, whose legend lists the schemes in the order of their curves' right ends.

    Raises:
        UserError: if there is nothing to show, or the results cannot share a figure.
    """
    kept = select(results, metric, protocol)
    bars = bars or bars_of(kept)
    looks = styles(kept)
    figure, axes = _axes(looks)
    shown = _plot(axes, kept, looks, bars)
    length_axis(axes, {r.test_length for r in kept}, kept, "test length")
    value_axis(axes, kept[0], [end for _, end in shown.values()])
    _legend(figure, shown)
    heading(figure, f"{words(metric).capitalize()} by test length", kept, *_facts(kept, bars))
    return figure


def draw_tasks(tasks: Mapping[str, list[Result]]) -> Figure:
    """Draw one metric of many tasks over the test length, a panel for each.

    Args:
        tasks: name -> what `select` returned.

    Returns:
        The figure, whose legend lists the schemes as the results do.
    """
    every = [r for kept in tasks.values() for r in kept]
    looks, bars = styles(every), bars_of(every)
    n_columns = 3 if len(tasks) < 10 else 4
    n_rows = math.ceil(len(tasks) / n_columns)
    figure = Figure(figsize=(3 * n_columns + 3.2, max(2.1 * n_rows, 0.23 * len(looks))), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False).flat
    lines: dict[str, Line2D] = {}
    for axes, (name, kept) in zip(panels, tasks.items(), strict=False):
        bare(axes)
        shown = _plot(axes, kept, looks, bars, plain=True)
        lines |= {label: line for label, (line, _) in shown.items()}
        length_axis(axes, {r.test_length for r in kept}, kept, "", small=True)
        value_axis(axes, kept[0], [end for _, end in shown.values()], small=True)
        axes.set_title(folded(name, 40), fontsize=9)
    for axes in panels[len(tasks) :]:
        axes.set_axis_off()
    _legend(figure, {label: (lines[label], 0.0) for label in looks if label in lines})
    facts = ["dashed: training length", "dotted: guessing", *_facts(every, bars)]
    heading(figure, f"{words(every[0].metric).capitalize()} by test length", every, *facts)
    return figure


def draw_by_position(results: Iterable[Result], source: Sources, protocol: str = "prefix") -> Figure:
    """Draw the loss by position in the context, at the longest test length of each scheme.

    Args:
        results: results of one group.
        source: where the losses are, as in `pezoo.results.losses.losses_of`.
        protocol: how it was tested.

    Returns:
        The figure.

    Raises:
        UserError: if there is nothing to show, or the results cannot share a figure.
    """
    kept = select(results, "loss", protocol)
    looks, shown = styles(kept), {}
    figure, axes = _axes(looks)
    found = losses_by_label(kept, source, protocol)
    for label, seeds in found.items():
        means, ends = mean_by_position(seeds), ends_by_position(seeds, bars_of(kept))
        if _is_companion(label, found):
            _thin(axes, list(means), list(means.values()), looks[label.removesuffix(WINDOWED)])
            continue
        line = _line(axes, list(means), list(means.values()), looks[label])
        line.set_markevery(4)
        if len(seeds) > 1:
            low, high = zip(*(ends[position] for position in means), strict=True)
            axes.fill_between(list(means), low, high, color=line.get_color(), alpha=0.13, lw=0)
        shown[label] = line, list(means.values())[-1] if means else -math.inf
    longest = max(r.test_length for r in kept)
    positions = {r.test_length for r in kept} | {4**k for k in range(12) if 4**k < longest}
    length_axis(axes, positions, kept, "position in the context")
    axes.set_ylabel("loss (nats per token)")
    _legend(figure, shown)
    heading(figure, "Loss by position", kept, *said_of_ends(kept, "bands"), *_facts(kept))
    return figure


def _plot(axes: Axes, kept: list[Result], looks: Mapping[str, Style], bars: Bars, plain: bool = False) -> Shown:
    """Draw the curves of results over the test length; `plain`: the legend says nothing of what has no value."""
    found, shown = curves(kept), {}
    trained = {r.label: r.train_length for r in kept}
    for label, curve in found.items():
        points = {length: s for length, s in curve.items() if s.mean is not None}
        means = [s.mean for s in points.values()]
        if _is_companion(label, found):
            _thin(axes, list(points), means, looks[label.removesuffix(WINDOWED)])
            continue
        line = _line(axes, list(points), means, looks[label])
        if any(s.spread is not None for s in points.values()):
            ends = [_bar(s, bars) for s in points.values()]
            axes.vlines(list(points), *zip(*ends, strict=True), color=line.get_color(), lw=1)
        if len(set(trained.values())) > 1 and trained[label] in points:
            own = trained[label], points[trained[label]].mean
            axes.plot(*own, "o", ms=12, mfc="none", mec=line.get_color(), mew=1, alpha=0.6)
        text = label if plain else label + _ending(curve, trained[label])
        shown[text] = line, means[-1] if means else -math.inf
    return shown


def said_of_ends(kept: Sequence[Result], what: str, shown: Bars | None = None) -> list[str]:
    """Return what bars or bands are, if there are any: "bars: 95 % confidence interval"."""
    of_loss = " of the loss" if scale_of(kept[0].metric) == "log" else ""
    said = {"spread": f"± sample standard deviation{of_loss}", "interval": "95 % confidence interval"}
    return [f"{what}: {said[shown or bars_of(kept)]}"] if len({r.seed for r in kept}) > 1 else []


def _facts(kept: list[Result], bars: Bars | None = None) -> list[str]:
    """Return what a reader has to know about error bars, rings and thin lines, where there are any."""
    labels, facts = {r.label for r in kept}, []
    facts += said_of_ends(kept, "bars", bars) if bars else []
    if len({r.task for r in kept}) == 1 < len({r.train_length for r in kept}):
        facts.append("markers and rings: training length")
    if any(_is_companion(label, labels) for label in labels):
        facts.append("thin dots: the same with a window of L")
    if (overlap := window_overlap(kept)) is not None:
        facts.append(f"test windows overlap: each token is in {overlap:.2g}")
    return facts


def _axes(labels: Iterable[str]) -> tuple[Figure, Axes]:
    lines = [folded(label) for label in labels]
    height = 0.23 * sum(1 + text.count("\n") for text in lines)
    width = max(len(line) for text in lines for line in text.split("\n"))
    figure = Figure(figsize=(9.5 + 0.06 * max(0, width - 24), max(4.2, height)), layout="constrained")
    axes = figure.add_subplot()
    bare(axes)
    return figure, axes


def _is_companion(label: str, labels: Container[str]) -> bool:
    return label.endswith(WINDOWED) and label.removesuffix(WINDOWED) in labels


def _thin(axes: Axes, x: list[float], y: list[float], look: Style) -> None:
    axes.plot(x, y, color=look.colour, linestyle=(0, (1, 1.5)), lw=0.9, zorder=1.95)


def _line(axes: Axes, x: list[float], y: list[float], look: Style) -> Line2D:
    (line,) = axes.plot(
        x,
        y,
        color=look.colour,
        linestyle=look.dashes,
        marker=look.marker,
        markersize=5.5,
        markerfacecolor=look.colour if look.filled else "white",
        lw=1.5,
    )
    return line


def _bar(summary: Summary, bars: Bars) -> tuple[float, float]:
    """Return the ends of an error bar; both are the mean where there is no spread."""
    ends = summary.interval() if bars == "interval" else summary.spread_ends
    low, high = ends or (summary.mean, summary.mean)
    return (max(0.0, low), min(1.0, high)) if summary.scale == "share" else (low, high)


def _ending(curve: Curve, train_length: int) -> str:
    """Return what the legend adds where seeds have no value: " (undefined from 2L)"."""
    parts = {}
    for length, summary in curve.items():
        for trouble in dict.fromkeys(summary.troubles):
            n = summary.troubles.count(trouble)
            some = "" if n == summary.seeds else f" {n}/{summary.seeds}"
            text = trouble.replace("_", " ") + some
            parts.setdefault(text, length_name(length, train_length))
    return "".join(f" ({text} from {length})" for text, length in parts.items())


def _legend(figure: Figure, shown: dict[str, tuple[Line2D, float]]) -> None:
    ordered = sorted(shown, key=lambda text: -shown[text][1])
    figure.legend(
        [shown[text][0] for text in ordered],
        [folded(text) for text in ordered],
        loc="outside right center",
        frameon=False,
        fontsize=9,
        handlelength=4,
    )
