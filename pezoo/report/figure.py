"""Figures: curves over the test length and over the position, drawn the same way every time.

A scheme looks the same in every figure: its colour is its encoding's, its line and marker are its
extensions', and its markers are filled once it is tuned.
"""

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pezoo.report.statistics import (
    Curve,
    Summary,
    curves,
    interval,
    length_name,
    losses_by_label,
    mean_by_position,
    select,
)
from pezoo.results import Result, replacing

Bars = Literal["spread", "interval"]

# Okabe and Ito's and Paul Tol's colours, which people with colour vision deficiencies can tell
# apart; neighbours in the list differ most.
PALETTE = (
    "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00",
    "#56B4E9", "#882255", "#999933", "#332288", "#888888",
)  # fmt: skip
# Seven line styles and eleven markers have no common factor: 77 pairs before one comes again.
DASHES = (
    (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (8, 2.5)),
    (0, (4, 1.2, 1, 1.2, 1, 1.2)), (0, (2, 2)), (0, (1, 3)),
)  # fmt: skip
SOLID = (0, ())
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
# Names with a look of their own; any other name's look is drawn from its letters.
ENCODINGS = (
    "nope", "rope", "alibi", "sinusoidal", "t5", "kerple", "learned", "fire", "shaw", "xpos",
    "dynamic_sinusoidal", "transformer_xl", "deberta", "cope", "sandwich", "tisa", "floater",
    "complex_order", "tupe", "hierarchical",
)  # fmt: skip
EXTENSIONS = (
    "pi", "ntk", "yarn", "random", "shift", "window", "dynamic_ntk", "rerope", "ntk_by_parts",
    "self_extend", "longrope", "abf", "llama3", "giraffe", "logn", "sinks", "lm_infinite", "cape",
    "pose", "dape", "memory", "blockwise", "clex", "dynamic_yarn", "leaky_rerope", "resonance",
)  # fmt: skip
LOGARITHMIC = ("perplexity", "last_perplexity")
SAVING = {"svg.fonttype": "none", "svg.hashsalt": "pezoo"}


@dataclass(frozen=True)
class Style:
    """How the curve of one scheme looks."""

    colour: str
    dashes: tuple
    marker: str
    filled: bool


def style(result: Result) -> Style:
    """Return the look of the scheme that a result belongs to, whatever else is in the figure."""
    encoding = _place(result.encoding, ENCODINGS)
    extended = _place("+".join(result.extensions), EXTENSIONS) if result.extensions else -1
    # Markers also tell apart encodings of one colour, step counts, and settings.
    marker = extended + 1 + 3 * (encoding // len(PALETTE)) + result.finetune_steps.bit_length()
    if ":" in result.scheme:
        marker += zlib.crc32(result.scheme.encode())
    return Style(
        colour=PALETTE[encoding % len(PALETTE)],
        dashes=DASHES[extended % len(DASHES)] if result.extensions else SOLID,
        marker=MARKERS[marker % len(MARKERS)],
        filled=result.finetune_steps > 0,
    )


def styles(results: Iterable[Result]) -> dict[str, Style]:
    """Return a look for each label, in order of first appearance.

    Labels that would look the same, such as one extension with two settings, get other markers.
    """
    found: dict[str, Style] = {}
    for result in results:
        if result.label not in found:
            found[result.label] = next(look for look in _alternatives(style(result)) if look not in found.values())
    return found


def draw_curves(
    results: Iterable[Result],
    metric: str = "perplexity",
    protocol: str = "prefix",
    bars: Bars | None = None,
) -> Figure:
    """Draw a metric over the test length.

    Args:
        results: results of one study.
        metric: what to show.
        protocol: how it was tested.
        bars: error bars: "spread" (± sample standard deviation over seeds) or "interval" (95 %
            confidence interval of the mean, Student's t); by default "interval" from three seeds
            on. With one seed there are none. The figure says which it shows.

    Returns:
        The figure, whose legend lists the schemes in the order of their curves' right ends.

    Raises:
        UserError: if there is nothing to show, or the results cannot share a figure.
    """
    kept = select(results, metric, protocol)
    train_length = kept[0].train_length
    seeds = len({r.seed for r in kept})
    bars = bars or ("interval" if seeds > 2 else "spread")
    log = metric in LOGARITHMIC
    looks, shown = styles(kept), {}
    figure, axes = _axes(len(looks))
    for label, curve in curves(kept).items():
        points = {length: s for length, s in curve.items() if s.mean is not None}
        line = _line(axes, list(points), [s.mean for s in points.values()], looks[label])
        if any(s.spread is not None for s in points.values()):
            ends = [_bar(s, bars, log) for s in points.values()]
            axes.vlines(list(points), *zip(*ends, strict=True), color=line.get_color(), lw=1)
        text = label + _ending(curve, train_length)
        shown[text] = line, list(points.values())[-1].mean if points else -math.inf
    _length_axis(axes, sorted({r.test_length for r in kept}), train_length, "test length (tokens)")
    name = metric.replace("_", " ")
    axes.set_ylabel(f"{name} (log scale)" if log else name)
    if log and any(math.isfinite(end) for _, end in shown.values()):
        _log_axis(axes)
    said = {"spread": "± sample standard deviation", "interval": "95 % confidence interval"}
    over = f"mean of {seeds} seeds, bars: {said[bars]}" if seeds > 1 else "one seed"
    _title(axes, f"{name.capitalize()} by test length: {kept[0].study}", kept[0], over)
    _legend(figure, shown)
    return figure


def draw_by_position(results: Iterable[Result], cells: str | Path, protocol: str = "prefix") -> Figure:
    """Draw the loss by position in the context, at the longest test length of each scheme.

    Args:
        results: results of one study.
        cells: the study's folder of cells, where the losses are.
        protocol: how it was tested.

    Returns:
        The figure.

    Raises:
        UserError: if there is nothing to show, or the results cannot share a figure.
    """
    kept = select(results, "loss", protocol)
    looks, shown = styles(kept), {}
    figure, axes = _axes(len(looks))
    found = losses_by_label(kept, cells, protocol)
    for label, seeds in found.items():
        means = mean_by_position(seeds)
        line = _line(axes, list(means), list(means.values()), looks[label])
        line.set_markevery(4)
        shown[label] = line, list(means.values())[-1] if means else -math.inf
    longest = max(r.test_length for r in kept)
    positions = sorted({r.test_length for r in kept} | {4**k for k in range(12) if 4**k < longest})
    _length_axis(axes, positions, kept[0].train_length, "position in the context (tokens)")
    axes.set_ylabel("loss (nats per token)")
    seeds = len({r.seed for r in kept})
    over = f"mean of {seeds} seeds" if seeds > 1 else "one seed"
    _title(axes, f"Loss by position: {kept[0].study}", kept[0], over)
    _legend(figure, shown)
    return figure


def save(figure: Figure, path: str | Path) -> tuple[Path, Path]:
    """Save a figure as SVG and as PNG; the same figure always gives the same bytes.

    Args:
        figure: what to save.
        path: either file, or their common name without a suffix.

    Returns:
        Paths of the SVG and of the PNG file.

    Raises:
        OSError: if they cannot be written.
    """
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".svg", ".png") else path
    svg, png = stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")
    with matplotlib.rc_context(SAVING):
        with replacing(svg) as file:
            figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
        with replacing(png) as file:
            figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
    return svg, png


def _place(name: str, known: Sequence[str]) -> int:
    return known.index(name) if name in known else zlib.crc32(name.encode())


def _alternatives(look: Style) -> Iterator[Style]:
    """Yield the look itself, then others: markers change first, then lines, then colours."""
    for colour in _from(look.colour, PALETTE):
        for dashes in _from(look.dashes, (SOLID, *DASHES)):
            for marker in _from(look.marker, MARKERS):
                yield replace(look, colour=colour, dashes=dashes, marker=marker)


def _from(first: Any, items: tuple) -> tuple:
    start = items.index(first)
    return items[start:] + items[:start]


def _axes(n_labels: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9.5, max(4.8, 0.23 * n_labels + 1)), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(color="0.92", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


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


def _bar(summary: Summary, bars: Bars, log: bool) -> tuple[float, float]:
    """Return the ends of an error bar; both are the mean where there is no spread."""
    mean, spread = summary.mean, summary.spread or 0.0
    if bars == "interval":
        return interval(summary.values, log=log) or (mean, mean)
    # A bar that would leave a logarithmic axis ends at the smallest value.
    low = min(summary.values) if log and spread >= mean else mean - spread
    return low, mean + spread


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


def _length_axis(axes: Axes, lengths: list[int], train_length: int, name: str) -> None:
    axes.set_xscale("log", base=2)
    ticks = sorted({*lengths, train_length})
    names = [f"{t}\n{length_name(t, train_length)}" if t >= train_length else str(t) for t in ticks]
    axes.set_xticks(ticks, [name.split("\n")[0] if "tokens" in name else name for name in names])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(f"{name}, L = {train_length}")
    axes.axvline(train_length, color="0.35", lw=1.2, ls="--", zorder=1.9)
    axes.annotate(
        "training length",
        (train_length, 1),
        xycoords=axes.get_xaxis_transform(),
        xytext=(4, -2),
        textcoords="offset points",
        va="top",
        color="0.35",
        fontsize=9,
    )


def _log_axis(axes: Axes) -> None:
    """Make the y axis logarithmic, with ticks that read as plain numbers, not powers."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [step * 10.0**k for k in decades for step in steps if low <= step * 10.0**k <= high]
        if len(ticks) > 4:
            break
    if len(ticks) < 3:
        ticks = [t for t in MaxNLocator(5).tick_values(low, high) if low <= t <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)


def _title(axes: Axes, title: str, result: Result, over: str) -> None:
    facts = [f"corpus {result.corpus}", f"{result.protocol} protocol", over]
    axes.set_title(title, loc="left", pad=22, weight="bold", fontsize=11)
    axes.annotate(
        "; ".join(facts),
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 8),
        textcoords="offset points",
        color="0.35",
        fontsize=9,
    )


def _legend(figure: Figure, shown: dict[str, tuple[Line2D, float]]) -> None:
    ordered = sorted(shown, key=lambda text: -shown[text][1])
    figure.legend(
        [shown[text][0] for text in ordered],
        ordered,
        loc="outside right center",
        frameon=False,
        fontsize=9,
        handlelength=4,
    )
