"""Average ranks over many tasks, and which of them differ: a critical-difference diagram."""

from collections.abc import Mapping

import numpy as np
import pandas
from matplotlib.figure import Figure
from scipy import stats

from pezoo.report.figure import folded, heading
from pezoo.report.groups import WINDOWED, words
from pezoo.report.shares import ACCURACIES
from pezoo.report.statistics import score_frame
from pezoo.results import Result

FEWEST = 8
"""So many tasks at least: with fewer, hardly any difference between ranks is critical."""


def average_ranks(tasks: Mapping[str, list[Result]]) -> pandas.DataFrame:
    """Return the rank of each scheme on each task, 1 being the best; equal means share a rank.

    Args:
        tasks: name -> what `select` returned; all of one metric.

    Returns:
        Rows: the schemes that have a mean on every task. Columns: the tasks.
    """
    frame = score_frame(tasks).drop(index="(guessing)", errors="ignore").drop(columns="mean")
    frame = frame[[not label.endswith(WINDOWED) for label in frame.index]]  # these are models that stand there already
    means = frame.map(lambda cell: np.nan if cell is None or cell.whole_mean is None else cell.whole_mean)
    means = means.astype(float).dropna()
    metric = next(iter(tasks.values()))[0].metric
    return means.rank(ascending=metric not in ACCURACIES)


def critical_difference(n_schemes: int, n_tasks: int, level: float = 0.95) -> float:
    """Return how far two average ranks must lie apart to differ, by Nemenyi's test.

    Source: Demšar (2006), Statistical comparisons of classifiers over multiple data sets, JMLR 7.

    >>> round(critical_difference(5, 30), 2)
    1.11

    Args:
        n_schemes: how many are ranked.
        n_tasks: on how many tasks.
        level: one less the chance that any two equal ones are told apart.
    """
    quantile = stats.studentized_range.ppf(level, n_schemes, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(n_schemes * (n_schemes + 1) / (6 * n_tasks)))


def draw_ranks(tasks: Mapping[str, list[Result]]) -> Figure | None:
    """Draw average ranks over tasks; a bar joins schemes that cannot be told apart.

    Args:
        tasks: name -> what `select` returned; all of one metric.

    Returns:
        The figure; None with fewer than `FEWEST` tasks or three schemes.
    """
    ranks = average_ranks(tasks)
    if len(tasks) < FEWEST or len(ranks) < 3:
        return None
    means = ranks.mean(axis=1).sort_values()
    apart = critical_difference(len(ranks), len(tasks))
    _, p = stats.friedmanchisquare(*ranks.to_numpy())
    figure = Figure(figsize=(8, 0.8 + 0.24 * len(means)), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(means))
    axes.plot(means, places, "o", color="0.2", ms=5)
    for place, (label, mean) in enumerate(means.items()):
        axes.annotate(
            f"{folded(label, 40)}  {mean:.2f}", (mean, place), (7, 0), textcoords="offset points", va="center"
        )
    last = -1
    for first, mean in enumerate(means):
        end = int(np.searchsorted(means.to_numpy(), mean + apart, side="right")) - 1
        if end > max(first, last):
            axes.plot([mean, means.iloc[end]], [first - 0.35] * 2, color="0.55", lw=3, solid_capstyle="butt", zorder=1)
            last = end
    axes.set_xlim(1 - 0.2, len(means) + 0.2 * len(means))
    axes.set_ylim(len(means) - 0.5, -0.8)
    axes.set_yticks([])
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.set_xlabel("average rank, 1 is best")
    every = [r for kept in tasks.values() for r in kept]
    facts = [f"critical difference {apart:.2f} (Nemenyi, 95 %)", f"Friedman p = {p:.2g}", "a bar: cannot be told apart"]
    heading(figure, f"Ranks by {words(every[0].metric)} over {len(tasks)} tasks", every, *facts)
    return figure
