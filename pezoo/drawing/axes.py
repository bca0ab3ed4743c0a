"""Axes of panels: colours, bars, legends, ticks and the mark at the training length."""

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import Colormap

GREY = "0.35"


def colours(name: str) -> Colormap:
    """A map of few colours: easier to read off the bar, and smaller to store."""
    return matplotlib.colormaps[name].resampled(16)


def bar(axes: Axes, image: object, unit: str) -> None:
    """A bar of colours beside the panel, with its unit."""
    made = axes.figure.colorbar(image, ax=axes, shrink=0.9)
    made.solids.set_rasterized(True)
    made.set_label(unit, fontsize=8)
    made.ax.tick_params(labelsize=8)


def legend(axes: Axes, inside: str = "") -> None:
    """A legend to the right of the panel, where it covers no line, or inside in a corner that is empty."""
    n_columns = 1 + (len(axes.get_legend_handles_labels()[0]) - 1) // 16
    where = {"loc": inside} if inside else {"loc": "upper left", "bbox_to_anchor": (1, 1), "borderaxespad": 0}
    axes.legend(fontsize=8, ncols=n_columns, framealpha=0.8, edgecolor="none", handlelength=1.5, **where)


def tokens(axes: Axes, train_length: int, length: int) -> None:
    """Ticks at multiples of the training length."""
    parts = {1: 4, 2: 2}.get(length // train_length, 1)
    axes.set_xticks(range(0, length + 1, max(1, train_length // parts)))


def mark(axes: Axes, train_length: int, vertical: bool = True, text: str = "L") -> None:
    """A dashed line at the training length, with its label outside of the panel."""
    line = axes.axvline if vertical else axes.axhline
    line(train_length, color=GREY, lw=1, ls="--")
    if text:
        transform = axes.get_xaxis_transform() if vertical else axes.get_yaxis_transform()
        place, offset = ((train_length, 1), (0, 2)) if vertical else ((1, train_length), (3, 0))
        axes.annotate(
            text, place, xycoords=transform, xytext=offset, textcoords="offset points",
            va="bottom" if vertical else "center", ha="center" if vertical else "left", color=GREY, fontsize=9,
        )  # fmt: skip
