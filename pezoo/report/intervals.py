"""Intervals over seeds, and losses by position."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
from scipy import special

from pezoo.results import Result
from pezoo.results.losses import Marginals, Sources, losses_of

Bars = Literal["spread", "interval"]
"""Around a mean: the sample standard deviation over seeds, or the 95 % confidence interval of the mean."""


def bars_of(kept: Iterable[Result]) -> Bars:
    """Return what figures of results show by default: from three seeds on the interval."""
    return "interval" if len({r.seed for r in kept}) > 2 else "spread"


def interval(values: Sequence[float], level: float = 0.95, log: bool = False) -> tuple[float, float] | None:
    """Return a confidence interval of the mean, by Student's t.

    Args:
        values: one per seed.
        level: probability that the interval is made to hold.
        log: whether to take it of the logarithms, as fits perplexities; it then stays positive.

    Returns:
        Its ends, or None with fewer than two values.
    """
    if len(values) < 2:
        return None
    x = np.log(values) if log else np.asarray(values, dtype=np.float64)
    mean, error = float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x)))
    half = float(special.stdtrit(len(x) - 1, (1 + level) / 2)) * error
    low, high = mean - half, mean + half
    return (exp(low), exp(high)) if log else (low, high)


def losses_by_label(results: Iterable[Result], source: Sources, protocol: str) -> dict[str, list[Marginals]]:
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
    found: dict[str, list[Marginals]] = {}
    for label, cell in names:
        for one in losses.get(cell, []):
            if one.protocol == protocol:
                found.setdefault(label, []).append(one)
    longest = {label: max(one.test_length for one in each) for label, each in found.items()}
    return {label: [one for one in each if one.test_length == longest[label]] for label, each in found.items()}


def _by_position(seeds: Sequence[Marginals]) -> dict[float, list[float]]:
    """Position, ascending -> the loss of each seed there."""
    found: dict[float, list[float]] = {}
    for losses in seeds:
        for position, loss in zip(*losses.by_position(), strict=True):
            found.setdefault(float(position), []).append(float(loss))
    return {position: found[position] for position in sorted(found)}


def ends_by_position(seeds: Sequence[Marginals], bars: Bars) -> Mapping[float, tuple[float, float]]:
    """Return what figures show around the loss by position.

    Args:
        seeds: one evaluation per seed, all of one test length.
        bars: what is shown; with one seed it is the loss itself.
    """
    return {at: _ends(each, bars) for at, each in _by_position(seeds).items()}


def _ends(losses: list[float], bars: Bars) -> tuple[float, float]:
    mean, spread = statistics.fmean(losses), statistics.stdev(losses) if len(losses) > 1 else 0.0
    ends = interval(losses) if bars == "interval" else (mean - spread, mean + spread)
    return ends or (mean, mean)


def mean_by_position(seeds: Sequence[Marginals]) -> Mapping[float, float]:
    """Return the loss by position, averaged over seeds.

    Args:
        seeds: one evaluation per seed, all of one test length.

    Returns:
        Position counted from 1, ascending -> mean loss in nats, where that is finite.
    """
    found = _by_position(seeds)
    means = {position: statistics.fmean(found[position]) for position in found}
    return {position: mean for position, mean in means.items() if math.isfinite(mean)}


def exp(x: float) -> float:
    """Return e^x, also where that is more than a float can hold."""
    return math.exp(min(x, 700.0))  # more is no number
