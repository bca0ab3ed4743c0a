"""What claims came to, from the results of the studies that test them.

A claim names one comparison, and with it a region of effects in which it holds: `lower` by 0.02 is a ratio of
perplexities of at most 1 / 1.02. The verdict rests on the 95 % interval of the effect and on that region alone:

- **reproduced**: the whole interval lies in the region;
- **contradicted**: the whole interval lies outside it, so an effect of the claimed size can be ruled out;
- **undecided**: the interval crosses an edge of the region, or there is none, as with one seed;
- **not run**: the study has no results, or does not test what the claim compares.

A chain of labels holds if each of its pairs does, and falls if one of them does; with k pairs each interval has a level
of 1 - 0.05 / k. A correlation is Spearman's, over schemes, with the interval of Bonett and Wright (2000, doi
10.1007/BF02294183), where the same order counts as half a swap less than 1. More schemes narrow it, not more seeds.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Literal, get_args

import pandas

from pezoo.errors import UserError
from pezoo.report.claims import BEYOND, EVERY, Claim, Other
from pezoo.report.comparisons import Comparison, compare
from pezoo.report.findings import unlearned
from pezoo.report.groups import TOGETHER, WINDOWED, matrices, select
from pezoo.report.paired import Part, half_width
from pezoo.report.shares import ACCURACIES, questions_of
from pezoo.report.statistics import PERPLEXITIES, scale_of, summarise
from pezoo.results import LANGUAGE_MODELLING, Result
from pezoo.results.losses import Sources

Verdict = Literal["reproduced", "contradicted", "undecided", "not run"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
LEVEL = 0.95
AT_L = {"prefix", "non_overlapping"}
"""Protocols that read the same at the training length: windows of L tokens, of which each is scored."""
MOST_SEEDS = 100
"""A claim that needs more is not called decidable by seeds."""


@dataclass(frozen=True)
class Judgement:
    """What became of a claim in one study."""

    claim: Claim
    verdict: Verdict
    note: str = ""
    """What is missing, or what would decide."""
    pair: tuple[str, str] = ("", "")
    """The labels compared; of a chain the pair that decides."""
    effect: float | None = None
    """A ratio for perplexities, a correlation, else a difference."""
    low: float | None = None
    """Where its interval begins; None where there is none."""
    high: float | None = None
    documents: int | None = None
    """Test documents that the interval is for; None where it is for other seeds alone."""
    results: Sequence[Result] = field(default=(), repr=False)
    """Those of the pair."""
    link: str = ""
    """Where the study is published, for a page that says so."""


class NotTested(Exception):
    """What the claim compares is not among the results."""


def judge(claim: Claim, results: Iterable[Result], losses: Sources | None = None) -> Judgement:
    """Say what became of a claim.

    Args:
        claim: what is claimed.
        results: of one study, or of none.
        losses: where losses by document are, as in `pezoo.results.losses.losses_of`.

    Raises:
        UserError: if a losses file is not whole.
    """
    mine = [r for r in results if r.study == claim.recipe]
    if not mine:
        return Judgement(claim, "not run", f"no results of `pezoo run {claim.recipe}`")
    try:
        for one in filter(None, (claim.test, claim.test.other)):
            if missed := _nothing_learned(mine, one):
                return Judgement(claim, "undecided", f"no scheme learned the task even at L: {missed}", results=mine)
        if claim.test.other is not None:
            return _ranks(claim, mine)
        judged = [_compared(claim, pair, mine, losses) for pair in claim.test.pairs]
    except NotTested as error:
        return Judgement(claim, "not run", str(error))
    worst = ("contradicted", "undecided", "reproduced")
    return min(judged, key=lambda j: (worst.index(j.verdict), _room(j)))


def judge_all(claims: Iterable[Claim], results: Iterable[Result], losses: Sources | None = None) -> list[Judgement]:
    """Say what became of the claims that a study tests, in the order of the claims.

    Args:
        claims: all there are.
        results: as in `judge`.
        losses: as in `judge`.
    """
    results = list(results)
    studies = {r.study for r in results}
    return [judge(claim, results, losses) for claim in claims if claim.recipe in studies]


def judge_elsewhere(claim: Claim, results: Iterable[Result], losses: Sources | None = None) -> list[Judgement]:
    """Say what a claim comes to in the parts of a study that hold its comparison, though it is not theirs.

    Args:
        claim: of perplexities of a text; others are of the tasks and sizes that their own study has.
        results: of one study.
        losses: as in `judge`.

    Returns:
        The judgements that decide, each with the study and the part that it comes from.
    """
    test = claim.test
    if test.other is not None or test.task != LANGUAGE_MODELLING or test.metric not in PERPLEXITIES:
        return []
    at_l = {test.at, test.baseline_at or test.at} == {"1x"}
    protocols = AT_L if at_l and test.protocol in AT_L else {test.protocol}
    parts: dict[tuple[str, str, str], list[Result]] = {}
    for r in results:
        if (r.task, r.metric) == (test.task, test.metric) and r.protocol in protocols:
            parts.setdefault((r.study, r.part, r.protocol), []).append(r)
    needed = {label for pair in test.pairs for label in pair}
    found = []
    for (study, part, protocol), mine in parts.items():
        if (study, part) != (claim.recipe, test.part) and needed <= {r.label for r in mine}:
            here = replace(claim, recipe=study, test=replace(test, part=part, protocol=protocol))
            found.append(judge(here, mine, losses))
    return [one for one in found if one.verdict in VERDICTS[:2]]


def _compared(claim: Claim, pair: tuple[str, str], mine: list[Result], losses: Sources | None) -> Judgement:
    """Judge a claim by one pair of labels."""
    test, found = claim.test, numbers_of(mine, claim.test)
    ends = zip(pair, (test.at, test.baseline_at or test.at), strict=True)
    sides = [side_of(found, label, at) for label, at in ends]
    lengths = [side[0].test_length for side in sides]
    level = 1 - (1 - LEVEL) / len(test.pairs)
    came = compare(found, *pair, lengths[0], losses, level, baseline_length=lengths[1])
    verdict = _verdict(test.region, came.low, came.high)
    note = _advice(came, test.region, level) if verdict == "undecided" else ""
    if verdict == "contradicted" and _smaller(came, test.region):
        note = "in that direction, but smaller"
    shown = came.effect, came.low, came.high, came.documents
    return Judgement(claim, verdict, note, pair, *shown, [*sides[0], *sides[1]])


def _ranks(claim: Claim, mine: list[Result]) -> Judgement:
    """Judge a claim of correlation: the order of the schemes, from best to worst, by two metrics."""
    means, used = [], []
    for test in (claim.test, claim.test.other):
        found = numbers_of(mine, test)
        labels = dict.fromkeys(r.label for r in found if not r.label.endswith(WINDOWED))
        sides = {label: side_of(found, label, test.at) for label in labels}
        sign = 1 if scale_of(test.metric) == "share" else -1
        each = {label: summarise(side) for label, side in sides.items()}
        means.append({label: sign * one.whole_mean for label, one in each.items() if one.whole_mean is not None})
        used += [r for side in sides.values() for r in side]
    both = [label for label in means[0] if label in means[1]]
    if len(both) < 4:
        return Judgement(
            claim, "undecided", f"{len(both)} schemes have both numbers; 4 or more are needed", results=used
        )
    rho, low, high = rank_correlation(*([each[label] for label in both] for each in means))
    if math.isnan(rho):
        return Judgement(claim, "undecided", "all schemes have the same number", results=used)
    verdict = _verdict(claim.test.region, low, high)
    note = f"the interval is over {len(both)} schemes; more schemes would narrow it, more seeds would not"
    return Judgement(claim, verdict, note if verdict == "undecided" else "", ("", ""), rho, low, high, None, used)


def rank_correlation(one: list[float], other: list[float]) -> tuple[float, float, float]:
    """Return Spearman's correlation of two lists of four or more numbers, and the ends of its 95 % interval."""
    n, rho = len(one), float(pandas.DataFrame([one, other]).T.corr("spearman").iloc[0, 1])
    most = 1 - 6 / (n * (n**2 - 1))  # between the same order and one that differs by one swap
    z = math.atanh(max(-most, min(most, rho)))
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return rho, math.tanh(z - half), max(rho, math.tanh(z + half))


def numbers_of(mine: list[Result], test: Other) -> list[Result]:
    """Return the results that a test is about, or means of them where it asks for means, one a seed and length.

    A mean over all tasks is over those that some scheme learned, if there are any.

    Args:
        mine: of one study.
        test: which numbers.

    Raises:
        NotTested: if there are none.
    """
    pool = _pool(mine, test)
    if test.task == EVERY:
        missed = _missed(pool)
        pool = [r for r in pool if r.task not in missed] or pool
    if test.at == BEYOND:
        pool = [r for r in pool if r.test_length > r.train_length]
    if not pool:
        what = ", ".join(filter(None, (test.part, "" if test.task == EVERY else test.task, test.metric)))
        raise NotTested(f"the study has no results of {what} under {test.protocol}")
    tasks = dict.fromkeys(r.task for r in pool)
    try:
        kept = [r for task in tasks for r in select(_of(pool, task), test.metric, pool[0].protocol)]
    except UserError as error:
        raise NotTested(str(error)) from None
    if test.at != BEYOND and test.task != EVERY:
        return kept
    sets: dict[tuple[str, int, int], list[Result]] = {}
    for r in kept:
        sets.setdefault((r.label, r.seed, 0 if test.at == BEYOND else r.test_length), []).append(r)
    whole = max(map(len, sets.values()))
    return [_mean(each) for each in sets.values() if len(each) == whole]


def _pool(mine: list[Result], test: Other) -> list[Result]:
    """Return the results of the test's part, task, metric and protocol, at all lengths.

    `sliding` is also `sliding:stride=64`, where the study has no other.
    """
    pool = mine if test.part != TOGETHER else [r for group in matrices(mine).values() for r in group]
    pool = [r for r in pool if r.part == test.part and test.task in (EVERY, r.task)]
    pool = [r for r in pool if r.metric == test.metric and r.depth is None]
    named = {r.protocol for r in pool if r.protocol.partition(":")[0] == test.protocol}
    protocol = named.pop() if len(named) == 1 else test.protocol
    return [r for r in pool if r.protocol == protocol]


def _missed(pool: list[Result]) -> dict[str, str]:
    """Return the tasks that no scheme learned even at L, each with how far the best one got; of accuracies alone."""
    tasks = dict.fromkeys(r.task for r in pool if r.metric in ACCURACIES)
    return unlearned({task: _of(pool, task) for task in tasks})


def _nothing_learned(mine: list[Result], test: Other) -> str:
    """Return the tasks of a test if no scheme learned one of them: then nothing is there to be carried further."""
    pool = _pool(mine, test)
    missed = _missed(pool)
    return (
        ", ".join(f"{task} ({best})" for task, best in missed.items())
        if len(missed) == len({r.task for r in pool})
        else ""
    )


def _of(results: list[Result], task: str) -> list[Result]:
    return [r for r in results if r.task == task]


def _mean(results: list[Result]) -> Result:
    """Return one result with the mean and all questions, or the first of those that have no value."""
    lost = [r for r in results if r.value is None]
    longest = max(results, key=lambda r: r.test_length)
    facts = {"test_length": longest.test_length, "length_ratio": longest.length_ratio}
    value = {} if lost else {"value": summarise(results).mean, "n_documents": questions_of(results)}
    return replace((lost or results)[0], **facts, **value)


def side_of(found: list[Result], label: str, at: str) -> list[Result]:
    """Return the results of a label at a multiple of its training length, one for each seed.

    Args:
        found: what `numbers_of` returned.
        label: of the scheme.
        at: such as "8x", or `BEYOND`.

    Raises:
        NotTested: if there are none.
    """
    mine = [r for r in found if r.label == label]
    if not mine:
        raise NotTested(f"the study has no {label!r} in {found[0].metric} under {found[0].protocol}")
    there = mine if at == BEYOND else [r for r in mine if math.isclose(r.length_ratio, float(at[:-1]))]
    if not there:
        raise NotTested(f"{label!r} was not tested at {at}")
    return there


def _verdict(region: tuple[float, float], low: float | None, high: float | None) -> Verdict:
    if low is None or high is None:
        return "undecided"
    if region[0] <= low and high <= region[1]:
        return "reproduced"
    return "contradicted" if high < region[0] or low > region[1] else "undecided"


def _smaller(came: Comparison, region: tuple[float, float]) -> bool:
    """Return whether the effect is surely one that the claim says, but less of it."""
    return came.no_effect < came.low < region[0] or region[1] < came.high < came.no_effect


def _room(judged: Judgement) -> float:
    """How far the effect is inside the region, or outside where that is negative."""
    low, high = judged.claim.test.region
    return math.inf if judged.effect is None else min(judged.effect - low, high - judged.effect)


def _advice(came: Comparison, region: tuple[float, float], level: float) -> str:
    """Say what would decide a claim: how many seeds, if the effect and its spread stay what they are."""
    if came.lost:
        return f"{came.lost} of {came.lost + came.seeds} seeds have no value"
    if came.parts is None:
        return "one seed says nothing of how seeds differ: run three or more"
    scaled = math.log if came.metric in PERPLEXITIES else float
    edges = [scaled(edge) for edge in region if math.isfinite(edge)]
    distance = min(abs(scaled(came.effect) - edge) for edge in edges)
    seeds, documents = came.parts
    for n in range(came.seeds + 1, MOST_SEEDS + 1):
        more = Part(seeds.variance * came.seeds / n, seeds.df + n - came.seeds)
        if half_width(more, documents, level) < distance:
            return f"about {n} seeds would decide"
    if half_width(Part(0.0, 1.0), documents, level) >= distance:
        asked = "questions" if came.metric in ACCURACIES else "test documents"
        return f"more seeds would not decide: it takes more {asked}"
    return "more seeds would hardly decide: the effect is about as large as the smallest one that matters"
