"""From single results to curves over the test length, with their mean and spread over seeds."""

import math
import statistics
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import pandas

from pezoo.report.groups import WINDOWED, chance
from pezoo.report.intervals import exp, interval
from pezoo.report.shares import ACCURACIES, questions_of
from pezoo.results import Result

PERPLEXITIES = ("perplexity", "last_perplexity")
"""Metrics on a logarithmic axis, of which less is better: exponentials of a loss, averaged as the loss is."""
TOLERANCE = 0.1
"""How far above its value at L a perplexity may rise, as a share, and the model still counts as working."""
MARGIN = 0.01
"""How far below its windowed companion a perplexity must be for the model to count as using what lies beyond L."""


Scale = Literal["linear", "share", "log"]
"""Of a metric: `share`, from 0 to 1 and shown in percent; `log`, compared by ratios, so that means are geometric."""


def scale_of(metric: str) -> Scale:
    """Return the scale on which a metric is averaged and shown."""
    return "share" if metric in ACCURACIES else "log" if metric in PERPLEXITIES else "linear"


@dataclass(frozen=True)
class Summary:
    """What the seeds of one scheme say at one test length. `str` gives it as tables show it.

    Mean, spread and interval are on one scale. On a logarithmic one the mean is geometric: that of perplexities is the
    exponential of the mean loss, their spread is that of the loss in nats, shown in percent (1 % is 0.01 nats).
    """

    values: tuple[float, ...]
    """The values there are."""
    troubles: tuple[str, ...] = ()
    """For each seed without a value its status, such as "diverged"."""
    scale: Scale = "linear"

    @property
    def seeds(self) -> int:
        """Number of seeds, those without a value included."""
        return len(self.values) + len(self.troubles)

    @cached_property
    def mean(self) -> float | None:
        """Mean of the values there are, geometric on a logarithmic scale; None without any."""
        if len(set(self.values)) < 2:
            return self.values[0] if self.values else None
        return statistics.geometric_mean(self.values) if self.scale == "log" else statistics.fmean(self.values)

    @property
    def whole_mean(self) -> float | None:
        """The mean, if every seed has a value."""
        return None if self.troubles else self.mean

    @cached_property
    def spread(self) -> float | None:
        """Sample standard deviation, on a logarithmic scale that of the logarithms; None with fewer than two values."""
        if len(self.values) < 2:
            return None
        return float(np.std(np.log(self.values) if self.scale == "log" else self.values, ddof=1))

    @property
    def spread_ends(self) -> tuple[float, float] | None:
        """The mean less and plus the spread; None without a spread."""
        if self.spread is None:
            return None
        if self.scale == "log":
            middle = math.log(self.mean)
            return exp(middle - self.spread), exp(middle + self.spread)
        return self.mean - self.spread, self.mean + self.spread

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """The confidence interval of the mean, on the same scale; see `interval`."""
        return interval(self.values, level, log=self.scale == "log")

    def __str__(self) -> str:
        counts = Counter(trouble.replace("_", " ") for trouble in self.troubles)
        every = len(counts) == 1 and not self.values
        parts = [name if every else f"{name} {n}/{self.seeds}" for name, n in counts.items()]
        if self.mean is not None:
            form, unit = (".1f", 100) if self.scale == "share" else (_format(self.mean), 1)
            spread = ""
            if self.spread is not None:
                shown = _percent(self.spread) if self.scale == "log" else f"{unit * self.spread:{form}}"
                spread = f" ± {shown}"
            parts.insert(0, f"{unit * self.mean:{form}}{spread}")
        return ", ".join(parts)


Curve = dict[int, Summary]
"""Test length in tokens -> what the seeds say there."""


def summarise(results: Iterable[Result]) -> Summary:
    """Return what results, one for each seed, say together."""
    results = list(results)
    return Summary(
        tuple(r.value for r in results if r.value is not None),
        tuple(r.status for r in results if r.value is None),
        scale_of(results[0].metric) if results else "linear",
    )


def whole(summaries: Mapping[str, Summary]) -> dict[str, Summary]:
    """Return the summaries that lost no seed, and have as many as any of these: only they are compared unpaired."""
    kept = {label: one for label, one in summaries.items() if one.whole_mean is not None}
    most = max((one.seeds for one in kept.values()), default=0)
    return {label: one for label, one in kept.items() if one.seeds == most}


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
    return {label: {length: summarise(found[length]) for length in sorted(found)} for label, found in grouped.items()}


def by_depth(results: Iterable[Result]) -> dict[str, pandas.DataFrame]:
    """Return for each label how a metric depends on depth and test length.

    Args:
        results: what `select` returned with `depths=True`.

    Returns:
        Label, in order of first appearance -> means over seeds, NaN where one is lost. Rows: depths, from 0;
        columns: test lengths; both ascending, and the same for all labels.
    """
    found: dict[str, dict[int, dict[float, list[Result]]]] = {}
    results = list(results)
    for r in results:
        found.setdefault(r.label, {}).setdefault(r.test_length, {}).setdefault(r.depth, []).append(r)
    depths, lengths = (sorted({getattr(r, name) for r in results}) for name in ("depth", "test_length"))
    frames = {}
    for label, at in found.items():
        seeds = max(len(rs) for each in at.values() for rs in each.values())  # of a lost one there is no line
        means = {
            length: {depth: summarise(rs).whole_mean if len(rs) == seeds else None for depth, rs in each.items()}
            for length, each in at.items()
        }
        frames[label] = pandas.DataFrame(means, dtype=float).reindex(index=depths, columns=lengths)
    return frames


def effective_length(
    curve: Curve, train_length: int, tolerance: float = TOLERANCE, reference: float | None = None
) -> tuple[int, bool] | None:
    """Return how far a model works: up to which length its value stays near the one in range, or near a better one.

    Beside its own value it says how stable a model is, beside that of the best scheme in range how good: one that has
    learned nothing is as stable as can be.

    Args:
        curve: perplexities or accuracies; the mean over seeds counts, and where a seed has no value the model does not
            work.
        train_length: L. The value in range is that at L, or at the longest tested length below.
        tolerance: how much worse a value may be, as a share of the reference.
        reference: the value to stay near to, such as `best_value`; None: the one in range.

    Returns:
        The longest length such that it and all tested ones between L and it are near; and whether a longer one was
        tested. None without a value in range, if that is not near the reference, or if the reference is an accuracy of
        0.
    """
    at = _in_range(curve, train_length)
    own = None if at is None else curve[at].whole_mean
    if own is None:
        return None
    reference = own if reference is None else reference
    more = curve[at].scale == "share"
    limit = reference * (1 - tolerance if more else 1 + tolerance)
    if more and limit == 0:
        return None
    reached = None
    for length in sorted(n for n in curve if n >= at):
        if not _within(curve[length], limit):
            return None if reached is None else (reached, True)
        reached = length
    return reached, False


def best_value(found: Mapping[str, Curve], train_length: int) -> float | None:
    """Return the best mean in range, over the schemes that have every seed there, without companions with a window.

    Args:
        found: label -> curve; all trained at one length.
        train_length: L.
    """
    ends = {label: _in_range(curve, train_length) for label, curve in found.items() if not label.endswith(WINDOWED)}
    summaries = whole({label: found[label][at] for label, at in ends.items() if at is not None}).values()
    means = [summary.mean for summary in summaries]
    best = max if any(summary.scale == "share" for summary in summaries) else min
    return best(means, default=None)


def against_window(
    curve: Curve, windowed: Curve, train_length: int, tolerance: float = TOLERANCE, margin: float = MARGIN
) -> str | None:
    """Judge a model at the longest length beside itself with a window of L, which cannot see beyond.

    Args:
        curve: perplexities of the model.
        windowed: those of the same model, tested with the window.
        train_length: L.
        tolerance: as of `effective_length`.
        margin: how much better than windowed it must be, as a share, to count as using its context.

    Returns:
        "breaks" where the perplexity is not near the one in range, else "uses context" where it is below the windowed
        one, else "stable"; None if the two share no length beyond L or one of them has no value to compare with.
    """
    at = _in_range(curve, train_length)
    longest = max((length for length in curve.keys() & windowed.keys() if length > train_length), default=None)
    own = None if at is None else curve[at].whole_mean
    if own is None or longest is None:
        return None
    if not _within(curve[longest], own * (1 + tolerance)):
        return "breaks"
    beside = windowed[longest].whole_mean
    if beside is None:
        return None
    return "uses context" if curve[longest].mean < beside * (1 - margin) else "stable"


def mean_beyond(results: Iterable[Result]) -> dict[str, dict[int, Result]]:
    """Average a metric over the test lengths beyond the training length.

    The score of Ruoss et al. (2023, arXiv 2305.16843), there of the accuracy by token.

    Args:
        results: what `select` returned.

    Returns:
        Label -> seed -> a result with the mean, or the first of those that have no value.
    """
    found: dict[tuple[str, int], list[Result]] = {}
    for r in results:
        if r.test_length > r.train_length:
            found.setdefault((r.label, r.seed), []).append(r)
    scores: dict[str, dict[int, Result]] = {}
    for (label, seed), each in found.items():
        scores.setdefault(label, {})[seed] = _mean(each)
    return scores


def score_frame(tasks: Mapping[str, Iterable[Result]]) -> pandas.DataFrame:
    """Compare schemes over many tasks, by the mean over the test lengths beyond the training length.

    Args:
        tasks: name -> what `select` returned.

    Returns:
        Rows: labels, in order of first appearance. Columns: the tasks, and "mean" over them, of the seeds that have
        them all. Cells: a `Summary`, or None. A last row, "(guessing)", has what guessing scores, where that is known.
    """
    tasks = {name: list(results) for name, results in tasks.items()}
    scores = {name: mean_beyond(results) for name, results in tasks.items()}
    overall = _mean_over(scores.values())
    rows: dict[str, list[Summary | None]] = {}
    for label in overall:
        every = [*(each.get(label, {}) for each in scores.values()), overall[label]]
        rows[label] = [summarise(found.values()) if found else None for found in every]
    guessed = [chance(results[0]) for results in tasks.values()]
    if any(share is not None for share in guessed):
        rows["(guessing)"] = [None if share is None else Summary((share,), scale="share") for share in (*guessed, None)]
    return frame_of(rows, "scheme", [*scores, "mean"])


def mean_over_tasks(tasks: Mapping[str, Iterable[Result]]) -> list[Result]:
    """Return the last column of `score_frame` as results, one for each label and seed, all at one test length.

    Args:
        tasks: name -> what `select` returned.
    """
    found = _mean_over([mean_beyond(results) for results in tasks.values()])
    means = [r for each in found.values() for r in each.values()]
    length = max((r.test_length for r in means), default=1)
    return [replace(r, test_length=length, length_ratio=length / r.train_length) for r in means]


def length_name(test_length: int, train_length: int) -> str:
    """Return the test length as a multiple of the training length.

    >>> length_name(64, 64), length_name(96, 64), length_name(1024, 64), length_name(100, 64)
    ('L', '1.5L', '16L', 'T = 100')
    """
    ratio = test_length / train_length
    if not math.isclose(ratio, round(ratio, 2)):
        return f"T = {test_length}"
    return "L" if ratio == 1 else f"{ratio:g}L"


def _in_range(curve: Curve, train_length: int) -> int | None:
    """Return the longest tested length up to L."""
    return max((length for length in curve if length <= train_length), default=None)


def _within(summary: Summary, limit: float) -> bool:
    if summary.whole_mean is None:
        return False
    return summary.whole_mean >= limit if summary.scale == "share" else summary.whole_mean <= limit


def _mean_over(scores: Iterable[dict[str, dict[int, Result]]]) -> dict[str, dict[int, Result]]:
    """Average what `mean_beyond` returned for several tasks, of the seeds that have them all."""
    scores, means = list(scores), {}
    for label in dict.fromkeys(label for each in scores for label in each):
        every = [each.get(label, {}) for each in scores]
        seeds = sorted(set.intersection(*(set(found) for found in every)))
        means[label] = {seed: _mean([found[seed] for found in every]) for seed in seeds}
    return means


def _mean(results: Sequence[Result]) -> Result:
    """Return the first result that has no value, or else one with the mean, of the questions of all."""
    lost = [r for r in results if r.value is None]
    if lost:
        return lost[0]
    return replace(results[0], value=summarise(results).mean, n_documents=questions_of(results))


def frame_of(rows: Mapping[str, Sequence[Hashable]], name: str, columns: Sequence[str]) -> pandas.DataFrame:
    """Return rows of summaries as a frame, its index named."""
    index = pandas.Index(list(rows), name=name)
    return pandas.DataFrame(list(rows.values()), index=index, columns=columns, dtype=object)


def _percent(share: float) -> str:
    """Return a share in percent with two significant digits, or all that are before the point."""
    digits = 2 if share == 0 else min(2, max(0, -1 - math.floor(math.log10(share))))
    return f"{100 * share:.{digits}f}%"


def _format(value: float) -> str:
    """Return the format that shows three significant digits, or all that are before the point."""
    if abs(value) >= 1e6:
        return ".2e"
    return f".{2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))}f"
