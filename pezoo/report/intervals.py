"""Intervals over seeds and documents, and losses by position."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from pezoo.errors import UserError
from pezoo.results import Result
from pezoo.results.losses import Losses, losses_of


def interval(
    values: Sequence[float],
    level: float = 0.95,
    method: Literal["t", "bootstrap"] = "t",
    log: bool = False,
) -> tuple[float, float] | None:
    """Return a confidence interval of the mean.

    Args:
        values: one per seed.
        level: probability that the interval is made to hold.
        method: Student's t, or the percentiles of a bootstrap (which needs many seeds).
        log: whether to take it of the logarithms, as fits perplexities; it then stays positive.

    Returns:
        Its ends, or None with fewer than two values.
    """
    if len(values) < 2:
        return None
    x = np.log(values) if log else np.asarray(values, dtype=np.float64)
    mean, error = float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x)))
    if error == 0:
        low = high = mean
    elif method == "t":
        half = _quantile((1 + level) / 2, len(x) - 1) * error
        low, high = mean - half, mean + half
    else:
        from scipy import stats

        found = stats.bootstrap(
            (x,), np.mean, confidence_level=level, method="percentile", rng=np.random.default_rng(0)
        )
        low, high = found.confidence_interval
    return (exp(low), exp(high)) if log else (float(low), float(high))


def paired_ratio(
    results: Iterable[Result], label: str, baseline: str, test_length: int, level: float = 0.95
) -> tuple[float, tuple[float, float] | None]:
    """Compare two schemes seed by seed, which cancels what a seed does to both.

    Args:
        results: what `select` returned.
        label: one scheme.
        baseline: the other.
        test_length: where to compare, in tokens.
        level: of the interval.

    Returns:
        The geometric mean over common seeds of value / baseline value, and its confidence interval
        (None with one common seed).

    Raises:
        UserError: if the two have no seed with a value in common there.
    """
    found: dict[str, dict[int, float]] = {label: {}, baseline: {}}
    for r in results:
        if r.label in found and r.test_length == test_length and r.value is not None:
            found[r.label][r.seed] = r.value
    common = sorted(found[label].keys() & found[baseline].keys())
    if not common:
        raise UserError(f"{label!r} and {baseline!r} have no seed with a value in common at {test_length}.")
    ratios = [found[label][seed] / found[baseline][seed] for seed in common]
    return statistics.geometric_mean(ratios), interval(ratios, level, log=True)


def document_interval(
    losses: Losses, baseline: Losses | None = None, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """Return an interval of the mean loss over draws of the test documents, by bootstrap.

    It says how far the number hangs on the texts it was tested on; `interval` says how far it hangs
    on the seed.

    Args:
        losses: one evaluation, of two documents or more.
        baseline: an evaluation on the same documents whose loss is taken off first; documents are
            then drawn in pairs.
        level: probability that the interval is made to hold.
        resamples: number of draws.

    Returns:
        Its ends, in nats per token.

    Raises:
        ValueError: if there are fewer than two documents, or the two do not share theirs.
    """
    from scipy import stats

    if len(losses.documents) < 2:
        raise ValueError("an interval over documents needs two documents or more")
    if baseline is not None and baseline.documents != losses.documents:
        raise ValueError("both evaluations must have the same documents in the same order")
    parts = [losses] if baseline is None else [losses, baseline]
    data = [array.sum(axis=1) for part in parts for array in (part.loss_sum, part.tokens)]

    def mean_loss(*sums: np.ndarray, axis: int = -1) -> np.ndarray:
        totals = [s.sum(axis=axis) for s in sums]
        loss = totals[0] / totals[1]
        return loss if baseline is None else loss - totals[2] / totals[3]

    found = stats.bootstrap(
        data,
        mean_loss,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = found.confidence_interval
    return float(low), float(high)


def losses_by_label(results: Iterable[Result], source: str | Path, protocol: str) -> dict[str, list[Losses]]:
    """Read the losses that belong to results, at the longest test length of each label.

    Args:
        results: results of one study.
        source: where its losses are, as in `pezoo.results.losses.losses_of`.
        protocol: such as "prefix".

    Returns:
        Label, in order of first appearance -> one evaluation per seed, all of one test length.

    Raises:
        UserError: if a losses file is not whole.
    """
    names = dict.fromkeys((r.label, r.cell) for r in results if r.protocol == protocol)
    losses = losses_of(source, (cell for _, cell in names))
    found: dict[str, list[Losses]] = {}
    for label, cell in names:
        for one in losses.get(cell, []):
            if one.protocol == protocol:
                found.setdefault(label, []).append(one)
    longest = {label: max(one.test_length for one in each) for label, each in found.items()}
    return {label: [one for one in each if one.test_length == longest[label]] for label, each in found.items()}


def mean_by_position(seeds: Sequence[Losses]) -> Mapping[float, float]:
    """Return the loss by position, averaged over seeds.

    Args:
        seeds: one evaluation per seed, all of one test length.

    Returns:
        Position counted from 1, ascending -> mean loss in nats, where that is finite.
    """
    found: dict[float, list[float]] = {}
    for losses in seeds:
        for position, loss in zip(*losses.by_position(), strict=True):
            found.setdefault(float(position), []).append(float(loss))
    means = {position: statistics.fmean(found[position]) for position in sorted(found)}
    return {position: mean for position, mean in means.items() if math.isfinite(mean)}


@cache
def _quantile(level: float, df: int) -> float:
    """Return a quantile of Student's t; it takes milliseconds, and a figure asks for hundreds."""
    from scipy import stats

    return float(stats.t.ppf(level, df))


def exp(x: float) -> float:
    """Return e^x, also where that is more than a float can hold."""
    return math.exp(min(x, 700.0))  # more is no number
