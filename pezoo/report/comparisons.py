"""Which of two schemes is better, and how surely: comparisons in pairs, seed by seed and document by document."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Literal

import numpy as np

from pezoo.errors import UserError, cut, suggest
from pezoo.report.groups import NOTHING, WINDOWED
from pezoo.report.intervals import exp
from pezoo.report.paired import Part, Prior, documents_part, fit_prior, half_width, p_value, seeds_part
from pezoo.report.shares import variance_of_share
from pezoo.report.statistics import PERPLEXITIES, scale_of, summarise, whole
from pezoo.results import Result
from pezoo.results.losses import Marginals, Sources, losses_of

Verdict = Literal["better", "worse", "tie", "unknown"]
BY_DOCUMENT = ("perplexity", "loss")
"""Metrics that losses by document give."""


@dataclass(frozen=True)
class Comparison:
    """A scheme beside a baseline at one test length.

    The interval is for another draw of seeds and of test documents; see `pezoo.report.paired`.
    """

    label: str
    baseline: str
    metric: str
    protocol: str
    test_length: int
    effect: float | None
    """For perplexities the ratio, label / baseline, else the difference, label - baseline; a mean over the seeds that
    both have. None without such a seed."""
    low: float | None
    """Where the interval of the effect begins; None where that cannot be said: with one seed, or where one is lost."""
    high: float | None
    """Where it ends."""
    p: float | None
    """Two-sided p-value of no difference; None likewise. Below 0.05 just where the 95 % interval leaves that out."""
    p_corrected: float | None
    """The same, corrected by Holm for all comparisons that were made together."""
    seeds: int
    """Seeds that both have."""
    documents: int | None
    """Test documents; None where losses by document were not kept. The interval is then for other seeds alone."""
    lower_is_better: bool
    lost: int = 0
    """Seeds in which one of the two was run and has no value, since it diverged, say."""
    parts: tuple[Part, Part] | None = None
    """What seeds and what documents add to the variance that the interval is made of; None without an interval."""

    @property
    def no_effect(self) -> float:
        """The effect of no difference: a ratio of 1, a difference of 0."""
        return 1.0 if self.metric in PERPLEXITIES else 0.0

    @property
    def verdict(self) -> Verdict:
        """What the interval says of the label: "tie" where it holds no difference, "unknown" without an interval."""
        if self.low is None or self.high is None:
            return "unknown"
        if self.low <= self.no_effect <= self.high:
            return "tie"
        return "better" if (self.high < self.no_effect) == self.lower_is_better else "worse"


def compare(
    results: Iterable[Result],
    label: str,
    baseline: str,
    test_length: int,
    losses: Sources | None = None,
    level: float = 0.95,
    baseline_length: int | None = None,
) -> Comparison:
    """Compare two schemes at one test length, or a scheme with itself at another.

    Args:
        results: what `select` returned. Those of other schemes say how much seeds differ in this study.
        label: one scheme.
        baseline: the other.
        test_length: where to compare.
        losses: where losses by document are, as in `pezoo.results.losses.losses_of`; None: there are none.
        level: probability that the interval is made to hold.
        baseline_length: where to take the baseline, if not at the same length.

    Raises:
        UserError: if there are no results of one of the two, or a losses file is not whole.
    """
    study = _Study(list(results), losses, level)
    for one in (label, baseline):
        study.check(one)
    return study.compare(label, baseline, test_length, baseline_length or test_length)


def ties(
    results: Iterable[Result],
    ranked: Sequence[str],
    test_length: int,
    losses: Sources | None = None,
    level: float = 0.95,
) -> list[str]:
    """Return which of several schemes cannot be told apart from the best of them.

    The best is known only once all were looked at, so the comparisons with it are corrected for their number (Holm
    1979). Where there is no interval, as with one seed, nothing can be told apart.

    Args:
        results: what `select` returned.
        ranked: labels, the best first.
        test_length: where to compare.
        losses: as in `compare`.
        level: as in `compare`.
    """
    found = compare_all(results, ranked[0], losses, level, [test_length], ranked)
    p = {one.label: one.p_corrected for one in found}
    return [label for label in ranked[1:] if p.get(label) is None or p[label] > 1 - level]


def compare_all(
    results: Iterable[Result],
    baseline: str | None = None,
    losses: Sources | None = None,
    level: float = 0.95,
    lengths: Sequence[int] | None = None,
    labels: Sequence[str] | None = None,
) -> list[Comparison]:
    """Compare every scheme with a baseline, at every test length from L on.

    Companions with a window are left out: they are models that stand in the table already.

    Args:
        results: what `select` returned.
        baseline: a label; None: the best scheme in range.
        losses: as in `compare`.
        level: as in `compare`.
        lengths: test lengths, if not all.
        labels: schemes, if not all; the others still say how much seeds differ in this study.

    Returns:
        By label in order of first appearance, then length. p-values are corrected for all of these together.

    Raises:
        UserError: if there are no results, none of the baseline, or a losses file is not whole.
    """
    study = _Study(list(results), losses, level)
    baseline = best_in_range(study.results) if baseline is None else baseline
    study.check(baseline)
    trained, found = study.trained, []
    for label in labels or ():
        study.check(label)
    for label in labels or study.labels:
        if label != baseline and not label.endswith(WINDOWED):
            least = max(trained[label], trained[baseline])
            at = [n for n in sorted(study.at) if n >= least and label in study.at[n] and (not lengths or n in lengths)]
            found += [study.compare(label, baseline, length) for length in at]
    return _corrected(found)


def best_in_range(results: Iterable[Result]) -> str:
    """Return the label of the best mean at the length that `in_range` gives.

    A scheme that lost a seed there, or was run with fewer than others, is not the best, nor is a companion with a
    window.

    Args:
        results: what `select` returned.

    Raises:
        UserError: if no scheme has all its values there.
    """
    results = [r for r in results if not r.label.endswith(WINDOWED)]
    if not results:
        raise UserError(NOTHING)
    length = in_range(results)
    found: dict[str, list[Result]] = {}
    for r in results:
        if r.test_length == length:
            found.setdefault(r.label, []).append(r)
    means = {label: one.mean for label, one in whole({n: summarise(each) for n, each in found.items()}).items()}
    if not means:
        raise UserError(f"no scheme has a value of {results[0].metric} with every seed at test length {length}.")
    return (min if lower_is_better(results[0].metric) else max)(means, key=lambda label: means[label])


def in_range(results: Iterable[Result]) -> int:
    """Return the longest tested length up to L, or the shortest tested if all are longer.

    Where training lengths differ, L is the longest of them.
    """
    results = list(results)
    longest = max(r.train_length for r in results)
    tested = {r.test_length for r in results}
    return max((n for n in tested if n <= longest), default=min(tested))


def lower_is_better(metric: str) -> bool:
    """Say whether less of a metric is better: of losses and perplexities, not of accuracies."""
    return scale_of(metric) != "share"


def _corrected(found: list[Comparison]) -> list[Comparison]:
    """Correct p-values by Holm's method (1979): the smallest times their number, the next times one less, and so on."""
    order = sorted((i for i, one in enumerate(found) if one.p is not None), key=lambda i: found[i].p)
    made, most = list(found), 0.0
    for place, i in enumerate(order):
        most = max(most, min(1.0, found[i].p * (len(order) - place)))
        made[i] = replace(found[i], p_corrected=most)
    return made


class _Study:
    """The results of one metric, by test length, label and seed, and what comparisons need of them."""

    def __init__(self, results: list[Result], losses: Sources | None, level: float):
        if not results:
            raise UserError(NOTHING)
        self.results, self.source, self.level = results, losses, level
        self.metric, self.protocol = results[0].metric, results[0].protocol
        if len(mixed := sorted({f"{r.metric} ({r.protocol})" for r in results})) > 1:
            raise UserError(
                f"one comparison cannot mix {cut(', '.join(mixed))}; select() of pezoo.report.groups takes one"
            )
        self.trained = {r.label: r.train_length for r in results}
        self.labels = list(self.trained)
        self.at: dict[int, dict[str, dict[int, Result]]] = {}
        for r in results:
            self.at.setdefault(r.test_length, {}).setdefault(r.label, {})[r.seed] = r
        self.prior = cache(self._prior)

    def check(self, label: str) -> None:
        if label not in self.trained:
            hint = suggest(label, self.labels) or f" There are {cut(', '.join(map(repr, self.labels)))}."
            raise UserError(f"there are no results of {label!r} to compare.{hint}")

    def compare(self, label: str, baseline: str, length: int, baseline_length: int | None = None) -> Comparison:
        one, other = self._seeds(label, length), self._seeds(baseline, baseline_length or length)
        both = one.keys() & other.keys()
        seeds = tuple(sorted(s for s in both if one[s].value is not None and other[s].value is not None))
        lost = len({s for side in (one, other) for s, r in side.items() if r.value is None})
        made = Comparison(
            *(label, baseline, self.metric, self.protocol, length),
            *(None, None, None, None, None),
            seeds=len(seeds),
            documents=None,
            lower_is_better=lower_is_better(self.metric),
            lost=lost,
        )
        if not seeds:
            return made
        values = np.array([self._value(one[s]) - self._value(other[s]) for s in seeds])
        effect = float(values.mean())
        made = replace(made, effect=self._shown(effect))
        if len(seeds) == 1 or lost:
            return made
        by_document = self._by_document([one[s] for s in seeds], [other[s] for s in seeds])
        rest, documents = Part(0.0, 1.0), None
        if by_document is not None:
            rest, documents = documents_part(*by_document), by_document[0].shape[1]
        elif self.scale == "share":
            rest = _questions([one[s] for s in seeds], [other[s] for s in seeds])
        pool = self._pool(label, baseline, length, baseline_length or length)
        from_seeds = seeds_part(values, self.prior(length, seeds, pool))
        half = half_width(from_seeds, rest, self.level)
        p = p_value(effect, from_seeds, rest)
        low, high = (self._shown(self._possible(end)) for end in (effect - half, effect + half))
        return replace(made, low=low, high=high, p=p, p_corrected=p, documents=documents, parts=(from_seeds, rest))

    def _seeds(self, label: str, length: int) -> dict[int, Result]:
        return self.at.get(length, {}).get(label, {})

    @cached_property
    def scale(self) -> str:
        return scale_of(self.metric)

    def _value(self, result: Result) -> float:
        return math.log(result.value) if self.scale == "log" else result.value

    def _shown(self, effect: float) -> float:
        return exp(effect) if self.scale == "log" else effect

    def _possible(self, effect: float) -> float:
        """Return the end of an interval, no further than a difference can be: two shares differ by no more than one."""
        return max(-1.0, min(1.0, effect)) if self.scale == "share" else effect

    def _pool(self, label: str, baseline: str, length: int, baseline_length: int) -> frozenset[str]:
        """Return the labels that say how much seeds differ in such a comparison.

        One model beside itself, at another length or under another extension, differs less from seed to seed than two
        models do. So there only labels of the same model count, and at two lengths none but itself. Between two models
        each training counts once: under several labels it would say the same again.
        """
        own = self.trainings[label]
        if label != baseline and (own is None or own != self.trainings[baseline]):
            each: dict[object, str] = {}
            for one in (label, baseline, *(one for one in self.at[length] if not one.endswith(WINDOWED))):
                each.setdefault(self.trainings[one] or one, one)
            return frozenset(each.values())
        if length != baseline_length:
            return frozenset((label, baseline))
        return frozenset(one for one in self.at[length] if self.trainings[one] == own)

    @cached_property
    def trainings(self) -> dict[str, frozenset | None]:
        """By label what tells its trainings from others: seeds, the time they took, steps; None if it is not known."""
        found: dict[str, set[tuple[int, float | None, int]]] = {}
        for r in self.results:
            found.setdefault(r.label, set()).add((r.seed, r.train_seconds, r.finetune_steps))
        return {label: None if any(t is None for _, t, _ in each) else frozenset(each) for label, each in found.items()}

    def _prior(self, length: int, seeds: tuple[int, ...], pool: frozenset[str]) -> Prior | None:
        """What the schemes of the pool that have these seeds say of the variance between seeds."""
        rows = [[found.get(seed) for seed in seeds] for label, found in self.at[length].items() if label in pool]
        whole = [row for row in rows if all(r is not None and r.value is not None for r in row)]
        values = [[self._value(r) for r in row] for row in whole]
        return fit_prior(np.unique(values, axis=0) if values else np.empty((0, len(seeds))))

    @cached_property
    def losses(self) -> dict[str, list[Marginals]]:
        if self.source is None or self.metric not in BY_DOCUMENT:
            return {}
        return losses_of(self.source, dict.fromkeys(r.cell for r in self.results))

    def _by_document(self, one: list[Result], other: list[Result]) -> tuple[np.ndarray, np.ndarray] | None:
        """Return differences of the loss (seeds, documents) and tokens (documents,), if all are known and agree."""
        found = [[self._losses(r) for r in each] for each in (one, other)]
        every = [losses for each in found for losses in each]
        if any(losses is None for losses in every):
            return None
        tokens = every[0].document_tokens
        alike = all(
            losses.documents == every[0].documents and np.array_equal(losses.document_tokens, tokens)
            for losses in every
        )
        kept = tokens > 0
        if not alike or kept.sum() < 2:
            return None
        tokens = tokens[kept]
        sums = [np.array([losses.document_loss[kept] for losses in each], dtype=np.float64) for each in found]
        return (sums[0] - sums[1]) / tokens, tokens

    def _losses(self, result: Result) -> Marginals | None:
        """Return the losses that the value of a result was made of."""
        for losses in self.losses.get(result.cell, ()):
            if (losses.test_length, losses.protocol) == (result.test_length, result.protocol):
                mean = losses.document_loss.sum() / max(losses.document_tokens.sum(), 1)
                return losses if math.isclose(mean, self._value(result), rel_tol=1e-4, abs_tol=1e-4) else None
        return None


def _questions(one: list[Result], other: list[Result]) -> Part:
    """Return the variance of a difference of accuracies that comes from the questions.

    Answers by question are not kept. But a share p of n questions has a variance of p (1 - p) / n, and two shares of
    the same questions differ by no more than both together, unless one is right where the other is wrong.
    """
    n = min(r.n_documents for r in (*one, *other))
    if n < 2:
        return Part(0.0, 1.0)
    means = (float(np.mean([r.value for r in each])) for each in (one, other))
    return Part(sum(variance_of_share(share, n) for share in means), n - 1.0)
