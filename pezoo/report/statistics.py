"""From single results to curves over the test length, with their mean and spread over seeds."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pezoo.errors import UserError
from pezoo.results import Losses, Result, read_losses


@dataclass(frozen=True)
class Summary:
    """What the seeds of one scheme say at one test length. `str` gives it as tables show it."""

    values: tuple[float, ...]
    """The values there are."""
    troubles: tuple[str, ...] = ()
    """For each seed without a value its status, such as "diverged"."""

    @property
    def seeds(self) -> int:
        """Number of seeds, those without a value included."""
        return len(self.values) + len(self.troubles)

    @property
    def mean(self) -> float | None:
        """Mean of the values there are; None without any."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation; None with fewer than two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        counts = Counter(trouble.replace("_", " ") for trouble in self.troubles)
        every = len(counts) == 1 and not self.values
        parts = [name if every else f"{name} {n}/{self.seeds}" for name, n in counts.items()]
        if self.mean is not None:
            form = _format(self.mean)
            spread = "" if self.spread is None else f" ± {self.spread:{form}}"
            parts.insert(0, f"{self.mean:{form}}{spread}")
        return ", ".join(parts)


Curve = dict[int, Summary]
"""Test length in tokens -> what the seeds say there."""


def select(results: Iterable[Result], metric: str, protocol: str) -> list[Result]:
    """Return the results of one metric under one protocol that can share a table or a figure.

    Args:
        results: results of one or more studies.
        metric: such as "perplexity".
        protocol: such as "prefix".

    Returns:
        Those results, in their order.

    Raises:
        UserError: if there are none, or if they would mix training lengths, corpora or anything
            else that makes two results of one scheme, seed and test length.
    """
    results = list(results)
    kept = [r for r in results if r.metric == metric and r.protocol == protocol]
    if not kept:
        there = [f"{m} ({p})" for p, found in metrics(results).items() for m in found]
        raise UserError(f"there are no results of {metric} ({protocol}), but of {', '.join(there)}.")
    for name in ("study", "task", "corpus", "train_length"):
        if len(found := {str(getattr(r, name)) for r in kept}) > 1:
            raise UserError(f"one table or figure cannot mix results of several {name}: {', '.join(sorted(found))}.")
    seen: dict[tuple[str, int, int], Result] = {}
    for r in kept:
        other = seen.setdefault((r.label, r.seed, r.test_length), r)
        if other is not r:
            names = ("scheme", "stride", "bos", "depth", "finetune_steps", "cell")
            differ = [name for name in names if getattr(r, name) != getattr(other, name)]
            raise UserError(
                f"{r.label!r} with seed {r.seed} has several results at test length "
                f"{r.test_length}, which differ in {', '.join(differ) or 'nothing'}. "
                "Give the schemes of the recipe different labels."
            )
    return kept


def metrics(results: Iterable[Result]) -> dict[str, list[str]]:
    """Return the metrics under each protocol, in order of first appearance.

    Raises:
        UserError: if there are no results.
    """
    found: dict[str, list[str]] = {}
    for protocol, metric in dict.fromkeys((r.protocol, r.metric) for r in results):
        found.setdefault(protocol, []).append(metric)
    if not found:
        raise UserError("there are no results yet. Run the study to its end with `pezoo run`.")
    return found


def curves(results: Iterable[Result]) -> dict[str, Curve]:
    """Return the curve of each label, in order of first appearance.

    Args:
        results: what `select` returned.

    Returns:
        Label -> test length, ascending -> summary over seeds.
    """
    grouped: dict[str, dict[int, list[Result]]] = {}
    for result in results:
        grouped.setdefault(result.label, {}).setdefault(result.test_length, []).append(result)
    return {
        label: {
            length: Summary(
                tuple(r.value for r in grouped[label][length] if r.value is not None),
                tuple(r.status for r in grouped[label][length] if r.value is None),
            )
            for length in sorted(grouped[label])
        }
        for label in grouped
    }


def length_name(test_length: int, train_length: int) -> str:
    """Return the test length as a multiple of the training length.

    >>> length_name(64, 64), length_name(96, 64), length_name(1024, 64), length_name(100, 64)
    ('L', '1.5L', '16L', '100 tokens')
    """
    ratio = test_length / train_length
    if not math.isclose(ratio, round(ratio, 2)):
        return f"{test_length} tokens"
    return "L" if ratio == 1 else f"{ratio:g}L"


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
    from scipy import stats

    if len(values) < 2:
        return None
    x = np.log(values) if log else np.asarray(values, dtype=np.float64)
    mean, error = float(x.mean()), float(stats.sem(x))
    if error == 0:
        low = high = mean
    elif method == "t":
        low, high = stats.t.interval(level, df=len(x) - 1, loc=mean, scale=error)
    else:
        found = stats.bootstrap(
            (x,), np.mean, confidence_level=level, method="percentile", rng=np.random.default_rng(0)
        )
        low, high = found.confidence_interval
    return (math.exp(low), math.exp(high)) if log else (float(low), float(high))


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


def losses_by_label(results: Iterable[Result], cells: str | Path, protocol: str) -> dict[str, list[Losses]]:
    """Read the losses that belong to results, at the longest test length of each label.

    Args:
        results: results of one study.
        cells: its folder of cells, which holds a folder with `losses_*.npz` per cell.
        protocol: such as "prefix".

    Returns:
        Label, in order of first appearance -> one evaluation per seed, all of one test length.

    Raises:
        UserError: if a losses file is not whole.
    """
    names = dict.fromkeys((r.label, r.cell) for r in results if r.protocol == protocol)
    found: dict[str, list[Losses]] = {}
    for label, cell in names:
        for path in sorted(Path(cells, cell).glob("losses_*.npz")):
            losses = read_losses(path)
            if losses.protocol == protocol:
                found.setdefault(label, []).append(losses)
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


def _format(value: float) -> str:
    """Return the format that shows three significant digits, or all that are before the point."""
    if abs(value) >= 1e6:
        return ".2e"
    return f".{2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))}f"
