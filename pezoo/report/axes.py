"""The axes of curves: lengths, and values on the scale that their metric wants."""

import math
from collections.abc import Container, Iterable

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pezoo.report.figure import GREY
from pezoo.report.groups import chance, words
from pezoo.report.shares import ACCURACIES
from pezoo.report.statistics import PERPLEXITIES, length_name
from pezoo.results import LANGUAGE_MODELLING, Result

NOTE = {"color": GREY, "fontsize": 9}


def bare(axes: Axes) -> None:
    """Draw a light grid and no frame."""
    axes.grid(color="0.5", alpha=0.18, lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def length_axis(axes: Axes, lengths: set[int], kept: list[Result], name: str, small: bool = False) -> None:
    """Make the x axis logarithmic, with a mark at the training length; `small`: for one panel of several."""
    trained = {r.train_length for r in kept}
    unit = " (tokens)" if kept[0].task == LANGUAGE_MODELLING else ""
    at = min(trained)
    ticks = _apart(lengths | trained, trained, 6 if small else 16)
    names = [str(t) for t in ticks]
    axes.set_xscale("log", base=2)
    if len(trained) > 1:
        axes.set_xlabel(name + unit)
    else:
        axes.axvline(at, color=GREY, lw=1.2, ls="--", zorder=1.9)
    if len(trained) == 1 and not small:
        axes.set_xlabel(f"{name}{unit}, L = {at}")
        axes.annotate(
            "training length", (at, 1), (0, 3), axes.get_xaxis_transform(), "offset points", **NOTE, ha="center"
        )
        if name == "test length":
            names = [f"{t}\n{length_name(t, at)}" if t >= at and 100 * t % at == 0 else str(t) for t in ticks]
    axes.set_xticks(ticks, names)
    axes.set_xticks([], minor=True)


def _apart(ticks: Iterable[int], wanted: Container[int], most: int) -> list[int]:
    """Return the ticks that leave each other room on a logarithmic axis; the wanted ones stay."""
    ticks = sorted(ticks)
    room = math.log(ticks[-1] / ticks[0]) / most
    kept: list[int] = []
    for tick in sorted(ticks, key=lambda t: (t not in wanted, -t)):
        if all(abs(math.log(tick / other)) >= room for other in kept):
            kept.append(tick)
    return sorted(kept)


def value_axis(axes: Axes, result: Result, ends: Iterable[float], small: bool = False) -> None:
    """Scale and name the y axis as a metric wants it; `ends` are the values at the ends of the lines."""
    name = words(result.metric)
    axes.set_ylabel("" if small else f"{name} (log scale)" if result.metric in PERPLEXITIES else name)
    if result.metric in PERPLEXITIES and any(map(math.isfinite, ends)):
        _log_axis(axes)
    elif result.metric in ACCURACIES:
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        if (guessed := chance(result)) is not None:
            axes.axhline(guessed, color=GREY, lw=1.2, ls=":", zorder=1.9)
            if not small:
                axes.annotate("guessing", (1, guessed), (3, 0), axes.get_yaxis_transform(), "offset points", **NOTE)


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
