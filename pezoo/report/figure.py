"""Curves over the test length and over the position, drawn the same way every time.

A scheme looks the same in every figure: its colour is its encoding's, its line and marker are its
extensions', and its markers are filled once it is tuned.
"""

import math
import textwrap
import zlib
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from matplotlib.transforms import Transform

from pezoo.report.groups import LANGUAGE_MODELLING, WINDOWED, chance, select, title, words
from pezoo.report.statistics import (
    ACCURACIES,
    Curve,
    Summary,
    curves,
    interval,
    length_name,
    losses_by_label,
    mean_by_position,
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
READABLE = 40
"""Most curves that one figure can show."""
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

    Accuracies have an axis from 0 to 100 % and a dotted line at what guessing scores. A scheme's companion with a
    window is a thin line without a place in the legend. Where training lengths differ, a ring marks each curve's own.

    Args:
        results: results of one group.
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
    trained = {r.label: r.train_length for r in kept}
    seeds = len({r.seed for r in kept})
    bars = bars or ("interval" if seeds > 2 else "spread")
    found = curves(kept)
    looks, shown = styles(kept), {}
    figure, axes = _axes(looks)
    for label, curve in found.items():
        points = {length: s for length, s in curve.items() if s.mean is not None}
        means = [s.mean for s in points.values()]
        if _is_companion(label, found):
            _thin(axes, list(points), means, looks[label.removesuffix(WINDOWED)])
            continue
        line = _line(axes, list(points), means, looks[label])
        if any(s.spread is not None for s in points.values()):
            ends = [_bar(s, bars, metric) for s in points.values()]
            axes.vlines(list(points), *zip(*ends, strict=True), color=line.get_color(), lw=1)
        if len(set(trained.values())) > 1 and trained[label] in points:
            own = trained[label], points[trained[label]].mean
            axes.plot(*own, "o", ms=12, mfc="none", mec=line.get_color(), mew=1, alpha=0.6)
        text = label + _ending(curve, trained[label])
        shown[text] = line, means[-1] if means else -math.inf
    _length_axis(axes, sorted({r.test_length for r in kept}), kept, "test length")
    _value_axis(axes, kept[0], [end for _, end in shown.values()])
    said = {"spread": "± sample standard deviation", "interval": "95 % confidence interval"}
    over = mean_of(kept) + (f", bars: {said[bars]}" if seeds > 1 else "")
    _title(axes, f"{words(metric).capitalize()} by test length", kept, over)
    _legend(figure, shown)
    return figure


def draw_by_position(results: Iterable[Result], cells: str | Path, protocol: str = "prefix") -> Figure:
    """Draw the loss by position in the context, at the longest test length of each scheme.

    Args:
        results: results of one group.
        cells: the study's folder of cells, where the losses are.
        protocol: how it was tested.

    Returns:
        The figure.

    Raises:
        UserError: if there is nothing to show, or the results cannot share a figure.
    """
    kept = select(results, "loss", protocol)
    looks, shown = styles(kept), {}
    figure, axes = _axes(looks)
    found = losses_by_label(kept, cells, protocol)
    for label, seeds in found.items():
        means = mean_by_position(seeds)
        if _is_companion(label, found):
            _thin(axes, list(means), list(means.values()), looks[label.removesuffix(WINDOWED)])
            continue
        line = _line(axes, list(means), list(means.values()), looks[label])
        line.set_markevery(4)
        shown[label] = line, list(means.values())[-1] if means else -math.inf
    longest = max(r.test_length for r in kept)
    positions = sorted({r.test_length for r in kept} | {4**k for k in range(12) if 4**k < longest})
    _length_axis(axes, positions, kept, "position in the context")
    axes.set_ylabel("loss (nats per token)")
    _title(axes, "Loss by position", kept, mean_of(kept))
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


def headings(text: str, kept: list[Result], *facts: str) -> tuple[str, str]:
    """Return the title of a figure, and what stands below it: on what, how, and over how many seeds.

    Args:
        text: what the figure shows.
        kept: the results it shows.
        facts: more to say.
    """
    one = kept[0]
    corpus = f"corpus {one.corpus}" if one.task == LANGUAGE_MODELLING else one.corpus
    name = ", ".join(filter(None, (one.study, title(one))))
    return f"{text}: {name}", textwrap.fill("; ".join([corpus, f"{one.protocol} protocol", *facts]), 120)


def mean_of(kept: list[Result]) -> str:
    """Return over what a figure takes means."""
    seeds = len({r.seed for r in kept})
    return f"mean of {seeds} seeds" if seeds > 1 else "one seed"


def folded(label: str, width: int = 44) -> str:
    """Return a label on as many lines as it needs."""
    return textwrap.fill(label, width, subsequent_indent="    ")


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


def _axes(labels: Iterable[str]) -> tuple[Figure, Axes]:
    lines = [folded(label) for label in labels]
    height = 0.23 * sum(1 + text.count("\n") for text in lines) + 1
    width = max(len(line) for text in lines for line in text.split("\n"))
    figure = Figure(figsize=(9.5 + 0.06 * max(0, width - 24), max(4.8, height)), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(color="0.92", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
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


def _bar(summary: Summary, bars: Bars, metric: str) -> tuple[float, float]:
    """Return the ends of an error bar; both are the mean where there is no spread."""
    mean, spread, log = summary.mean, summary.spread or 0.0, metric in LOGARITHMIC
    if bars == "interval":
        low, high = interval(summary.values, log=log) or (mean, mean)
    else:
        # A bar that would leave a logarithmic axis ends at the smallest value.
        low = min(summary.values) if log and spread >= mean else mean - spread
        high = mean + spread
    return (max(0.0, low), min(1.0, high)) if metric in ACCURACIES else (low, high)


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


def _length_axis(axes: Axes, lengths: list[int], kept: list[Result], name: str) -> None:
    trained = {r.train_length for r in kept}
    unit = " (tokens)" if kept[0].task == LANGUAGE_MODELLING else ""
    axes.set_xscale("log", base=2)
    axes.set_xlabel(f"{name}{unit}")
    at = min(trained)
    ticks = _apart(sorted({*lengths, *trained}), trained)
    names = [str(t) for t in ticks]
    if len(trained) == 1:
        if "position" not in name:
            names = [f"{t}\n{length_name(t, at)}" if t >= at and t * 100 % at == 0 else str(t) for t in ticks]
        axes.set_xlabel(f"{name}{unit}, L = {at}")
        axes.axvline(at, color="0.35", lw=1.2, ls="--", zorder=1.9)
        _note(axes, "training length", (at, 1), axes.get_xaxis_transform())
    axes.set_xticks(ticks, names)
    axes.set_xticks([], minor=True)


def _apart(ticks: list[int], wanted: Container[int]) -> list[int]:
    """Return the ticks that leave each other room on a logarithmic axis; the wanted ones stay."""
    room = math.log(ticks[-1] / ticks[0]) / 16
    kept: list[int] = []
    for tick in sorted(ticks, key=lambda t: (t not in wanted, -t)):
        if all(abs(math.log(tick / other)) >= room for other in kept):
            kept.append(tick)
    return sorted(kept)


def _value_axis(axes: Axes, result: Result, ends: list[float]) -> None:
    name = words(result.metric)
    axes.set_ylabel(name)
    if result.metric in LOGARITHMIC:
        axes.set_ylabel(f"{name} (log scale)")
        if any(map(math.isfinite, ends)):
            _log_axis(axes)
    elif result.metric in ACCURACIES:
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        if (guessed := chance(result)) is not None:
            axes.axhline(guessed, color="0.35", lw=1.2, ls=":", zorder=1.9)
            _note(axes, "guessing", (0, guessed), axes.get_yaxis_transform())


def _note(axes: Axes, text: str, at: tuple[float, float], transform: Transform) -> None:
    axes.annotate(
        text, at, xycoords=transform, xytext=(4, -2), textcoords="offset points", va="top", color="0.35", fontsize=9
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


def _title(axes: Axes, text: str, kept: list[Result], more: str) -> None:
    labels = {r.label for r in kept}
    facts = [more]
    if len({r.train_length for r in kept}) > 1:
        facts.append("rings: training length")
    if any(_is_companion(label, labels) for label in labels):
        facts.append("thin dots: the same with a window of L")
    bold, plain = headings(text, kept, *facts)
    axes.set_title(bold, loc="left", pad=10 + 12 * (1 + plain.count("\n")), weight="bold", fontsize=11)
    axes.annotate(
        plain, (0, 1), xycoords="axes fraction", xytext=(0, 8), textcoords="offset points", color="0.35", fontsize=9
    )


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
