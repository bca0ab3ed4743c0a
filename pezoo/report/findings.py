"""What a study says, in a few sentences made from its statistics."""

import math
from collections.abc import Iterable, Mapping, Sequence

from pezoo.report.comparisons import in_range, lower_is_better, ties
from pezoo.report.costs import by_clock, costs, training_seconds
from pezoo.report.groups import WINDOWED, chance, groups, headline, metrics, select, words
from pezoo.report.printed import GUESSING
from pezoo.report.shares import ACCURACIES
from pezoo.report.statistics import PERPLEXITIES, TOLERANCE, Curve, curves, length_name, whole
from pezoo.report.table import by_task, score_groups, scores
from pezoo.results import Result
from pezoo.results.losses import Sources, losses_of

BYTES = 256
"""Perplexity of guessing a byte."""
NAMED = 3
"""Names that a sentence lists; of more it gives the number."""
CORRECTED = "by paired tests that are corrected for their number"


def findings(results: Iterable[Result], losses: Sources | None = None) -> list[str]:
    """Return a few sentences: what is best at L and far beyond, what is cheap, what broke, how sure that is.

    They speak of the foremost metric of the first group. Of several tasks, the first gives the best on average.

    Args:
        results: results of one study.
        losses: where losses by document are, as in `pezoo.results.losses.losses_of`; None: there are none.

    Raises:
        UserError: if there are no results.
    """
    results = list(results)
    found = groups(results)
    if results and all(r.value is None for r in results):
        one = results[0]
        return [
            f"No scheme has a value, so nothing can be compared. {one.label} has none because of this: {one.reason}."
        ]
    name, group = next(iter(found.items()))
    kept = headline_results(group)
    said = [
        *_over_tasks(found),
        hardly_learned(_answered(found)),
        *_untrained(kept),
        *_best(kept, losses),
        *_cheapest(kept),
        *_broken(kept),
        at_an_end(kept),
    ]
    said.append(_sure(kept, losses is not None and bool(losses_of(losses, (r.cell for r in kept)))))
    where = f"Of {len(found)} parts of this study, these sentences speak of {name}." if len(found) > 1 and name else ""
    return [sentence for sentence in [*said, where] if sentence]


def headline_results(group: Iterable[Result]) -> list[Result]:
    """Return the results of a group's foremost metric, without companions with a window.

    Raises:
        UserError: if there are none.
    """
    group = list(group)
    return [r for r in select(group, *headline(metrics(group))) if not r.label.endswith(WINDOWED)]


def highlights(kept: Sequence[Result], baseline: str = "", most: int = 6) -> list[str]:
    """Return the labels that a figure should show first: the best, the baseline, what others build on, the worst.

    Args:
        kept: what `headline_results` returned.
        baseline: to be among them.
        most: so many.
    """
    found = curves(kept)
    longest = max(length for curve in found.values() for length in curve)
    ranked = _ranked(found, longest, kept[0].metric)
    # Members that many schemes of the study are built on are what readers look for.
    hosts: dict[str, int] = {}
    for r in {r.label: r for r in kept}.values():
        hosts[r.encoding] = hosts.get(r.encoding, 0) + 1
    plain = [label for label in sorted(found, key=lambda one: -hosts.get(one, 0)) if hosts.get(label, 0) > 1]
    wanted = [*_first(_best_at(kept, in_range(kept))), *ranked[:2], *([baseline] if baseline in found else [])]
    wanted += [*plain[:2], *ranked[-1:], *ranked]
    return list(dict.fromkeys(wanted))[:most] or list(found)[:most]


def _untrained(kept: list[Result]) -> list[str]:
    """Return a warning where bytes are hardly predicted better than by chance."""
    short = in_range(kept)
    ranked = _best_at(kept, short)
    if kept[0].metric not in PERPLEXITIES or kept[0].tokenizer != "bytes" or not ranked:
        return []
    best = _mean_at(kept, ranked[0], short)
    if best is None or best < BYTES / 2:
        return []
    return [f"No scheme has learned much: guessing a byte has perplexity {BYTES}, and the best here has {best:.0f}."]


def _answered(found: dict[str, list[Result]]) -> dict[str, list[Result]]:
    """Return the foremost results of the groups whose answers are scored."""
    every = {name: headline_results(group) for name, group in found.items()}
    return {name: kept for name, kept in every.items() if kept[0].metric in ACCURACIES}


def unlearned(tasks: Mapping[str, Sequence[Result]]) -> dict[str, str]:
    """Return for each task where, even at L, no scheme gets halfway from guessing to all, how far the best one gets.

    Args:
        tasks: name -> the accuracies that `select` returned.
    """
    found = {}
    for name, kept in tasks.items():
        length, guessed = in_range(kept), chance(kept[0])
        best = next((_mean_at(kept, label, length) for label in _best_at(kept, length)), None)
        if best is not None and best < (1 + (guessed or 0)) / 2:
            found[name] = f"{best:.0%} at best" + (f", guessing {guessed:.0%}" if guessed else "")
    return found


def hardly_learned(tasks: Mapping[str, Sequence[Result]]) -> str:
    """Return a warning that names the tasks of `unlearned`; or nothing."""
    if not (found := unlearned(tasks)):
        return ""
    named = ", ".join(f"{name} ({best})" for name, best in found.items())
    shortest = {_at(in_range(kept), kept) for kept in tasks.values()} - {"L"}
    where = "the shortest length" if shortest else "L"
    return f"Hardly learned, even at {where}: {named}. What schemes do there beyond L says little."


def at_an_end(kept: Iterable[Result]) -> str:
    """Return a warning where schemes trained best at the lowest or highest learning rate that was tried; or nothing."""
    found: dict[tuple[str, float], dict[str, None]] = {}
    labels = {r.label: r for r in kept}
    for label, r in labels.items():
        if r.rate_is:
            found.setdefault((r.rate_is, r.learning_rate), {})[label] = None
    said = []
    for (end, rate), ends in found.items():
        many = f"All {len(ends)} schemes" if len(ends) == len(labels) else f"{len(ends)} of {len(labels)} schemes"
        who = in_a_row(list(ends)) if len(ends) <= NAMED else many
        said.append(f"{who} trained best at the {end} learning rate that was tried, {rate:g}")
    return f"{'; '.join(said)}: one beyond may be better still." if said else ""


def _best(kept: list[Result], losses: Sources | None) -> list[str]:
    """Return a sentence on the best at L, and one on the best at the longest length."""
    said = []
    for length in dict.fromkeys((in_range(kept), max(r.test_length for r in kept))):
        ranked, at = _best_at(kept, length), curves(r for r in kept if r.test_length == length)
        where, metric = f"At {_at(length, kept)}", words(kept[0].metric)
        if len({r.train_length for r in kept}) == 1:
            where = f"At the training length, L = {length}" if where == "At L" else f"{where} = {length}"
        if not ranked:
            said.append(f"{where}, no scheme has a value with every seed.")
            continue
        best, unit = at[ranked[0]][length], " %" if kept[0].metric in ACCURACIES else ""
        if len(ranked) > 1 and len({at[label][length].mean for label in ranked}) == 1:
            said.append(f"{where}, all {len(ranked)} schemes have the same {metric}, {best}{unit}.")
            continue
        twins = _twins(kept, ranked, length)
        others = [label for label in ranked if label not in twins]
        same = (
            [] if twins else [n for n in others if (at[n][length].mean, str(at[n][length])) == (best.mean, str(best))]
        )
        told = f"; {in_a_row(twins)} {'is' if len(twins) == 1 else 'are'} the same model there" if twins else ""
        if len({r.seed for r in kept}) > 1:
            tied = [label for label in ties(kept, others, length, losses) if label not in same]
            lost = bool({r.label for r in kept} - set(ranked))
            told += _told_apart(others[len(same[1:]) :], tied, lost, "them" if len(same) > 1 else "it")
        first = f"{in_a_row(same)} have" if len(same) > 1 else f"{ranked[0]} has"
        said.append(f"{where}, {first} the best {metric}, {best}{unit}{told}.")
    return said


def _twins(kept: Sequence[Result], ranked: Sequence[str], length: int) -> list[str]:
    """Return the labels that have the best one's values to the last digit: their extensions do nothing there."""
    if kept[0].metric not in PERPLEXITIES:  # accuracies are alike by chance, as where all answers are right
        return []
    values: dict[str, dict[int, float | None]] = {label: {} for label in ranked}
    for r in kept:
        if r.test_length == length and r.label in values:
            values[r.label][r.seed] = r.value
    return [label for label in ranked[1:] if values[label] == values[ranked[0]]]


def _told_apart(ranked: Sequence[str], tied: Sequence[str], lost: bool, it: str) -> str:
    """Return the end of a sentence that names the best scheme: which others may be as good."""
    if len(ranked) == 1:
        return ""
    if tied:
        return f"; {in_a_row(tied)} cannot be told apart from {it}, {CORRECTED}"
    return f"; every other scheme{' that has a value with every seed' if lost else ''} is worse, {CORRECTED}"


def _cheapest(kept: list[Result]) -> list[str]:
    """Return a sentence on the scheme that trains fastest, among those near the best at the longest length."""
    long = max(r.test_length for r in kept)
    near = _near_best(kept, long)
    spent = training_seconds(costs(kept)).dropna()
    if by_clock(costs(kept)) and all((r.train_device or r.device) == "cpu" for r in kept):
        return []  # other work on the machine may have stretched some of them
    candidates = [label for label in near if label in spent]
    best = _first(_best_at(kept, long))
    if len(candidates) < 2 or not best or best[0] not in spent or len({_mean_at(kept, one, long) for one in near}) == 1:
        return []
    cheap = min(candidates, key=lambda label: spent[label])
    if cheap == best[0]:
        return [f"Of the {len(candidates)} within 10 % of that, it is also the one that trains fastest."]
    share = spent[cheap] / spent[best[0]]
    return [
        f"Of the {len(candidates)} within 10 % of that, {cheap} trains fastest, in {share:.0%} of {best[0]}'s time."
    ]


def _broken(kept: list[Result]) -> list[str]:
    """Return a sentence on what no longer works beyond L, and where."""
    if kept[0].metric in ACCURACIES or len({r.train_length for r in kept}) > 1:
        return []
    found, short = curves(kept), in_range(kept)
    first: dict[int, list[str]] = {}
    lost: dict[str, list[str]] = {}
    for label, curve in found.items():
        for length in sorted(n for n in curve if n >= short):
            summary = curve[length]
            if summary.troubles:
                some = "" if summary.mean is None else f" in {len(summary.troubles)} of {summary.seeds} seeds"
                what = f"{summary.troubles[0].replace('_', ' ')}{some} from {_at(length, kept)}"
                lost.setdefault(what, []).append(label)
                break
            if short in curve and curve[short].mean and summary.mean > curve[short].mean * (1 + TOLERANCE):
                first.setdefault(length, []).append(label)
                break
    broken, own = sum(map(len, first.values())), f"their own value at {_at(short, kept)}"
    parts = [f"at {_at(length, kept)} {in_a_row(first[length])}" for length in sorted(first)]
    said = []
    if parts:
        said.append(f"{broken} of {len(found)} schemes rise more than 10 % above {own}: {'; '.join(parts)}")
    said += [f"{in_a_row(labels)} {'is' if len(labels) == 1 else 'are'} {what}" for what, labels in lost.items()]
    if not said:
        longest = _at(max(r.test_length for r in kept), kept)
        return [f"Up to {longest}, no scheme rises more than 10 % above its own value at {_at(short, kept)}."]
    return [f"{'; '.join(said)}."]


def _sure(kept: list[Result], losses_known: bool) -> str:
    """Return what the numbers stand on."""
    seeds, one = len({r.seed for r in kept}), kept[0]
    documents = max((r.n_documents for r in kept), default=0)
    what = f"{documents} {'questions' if one.metric in ACCURACIES else 'test document' + 's' * (documents != 1)}"
    if seeds == 1:
        return f"All of this is one seed on {what}: no interval can be given, so nothing is called better or a tie."
    rests = f"All of this rests on {seeds} seeds and {what}, under the protocol {one.protocol}"
    if one.metric in ACCURACIES or (losses_known and documents > 1):
        return f"{rests}."
    if losses_known:
        return f"{rests}. One document says nothing of others, so the intervals speak of other seeds alone."
    return f"{rests}. Losses by document were not kept, so the intervals speak of other seeds, not of other texts."


def _over_tasks(found: dict[str, list[Result]]) -> list[str]:
    """Return a sentence on the best on average, where schemes are compared on several tasks."""
    for metric in ACCURACIES:
        for names in score_groups(found, metric):
            table = scores(by_task(names))
            means = table.means["mean"].drop(index=GUESSING, errors="ignore").dropna()
            means = means[[not row.endswith(WINDOWED) for row in means.index]]
            if best := list(means.index[means == means.max()]):
                where, text = f"Over {len(names)} tasks, beyond L,", f"{table.frame.loc[best[0], 'mean']} %"
                if len(best) > 1:
                    return [f"{where} {in_a_row(best)} have the same {words(metric)} on average, {text}."]
                return [f"{where} {best[0]} is best on average: {words(metric)} {text}."]
    return []


def _ranked(found: dict[str, Curve], length: int, metric: str) -> list[str]:
    """Return the labels that have a value there with every seed that any has, the best first."""
    there = whole({label: curve[length] for label, curve in found.items() if length in curve})
    known = {label: summary.mean for label, summary in there.items() if math.isfinite(summary.mean)}
    return sorted(known, key=lambda label: known[label], reverse=not lower_is_better(metric))


def _best_at(kept: Sequence[Result], length: int) -> list[str]:
    return _ranked(curves(kept), length, kept[0].metric)


def _mean_at(kept: Sequence[Result], label: str, length: int) -> float | None:
    return curves(r for r in kept if r.label == label)[label][length].mean


def _first(labels: Sequence[str]) -> list[str]:
    return list(labels[:1])


def _near_best(kept: Sequence[Result], length: int) -> list[str]:
    ranked, found = _best_at(kept, length), curves(kept)
    if not ranked:
        return []
    best = found[ranked[0]][length].mean
    if lower_is_better(kept[0].metric):
        return [label for label in ranked if found[label][length].mean <= best * (1 + TOLERANCE)]
    return [label for label in ranked if found[label][length].mean >= best * (1 - TOLERANCE)]


def _at(length: int, kept: Sequence[Result]) -> str:
    trained = {r.train_length for r in kept}
    if len(trained) > 1:
        return str(length)
    return length_name(length, trained.pop())


def in_a_row(labels: Sequence[str]) -> str:
    """Return labels as a list in a sentence, of which a long one ends with how many more there are."""
    if len(labels) > NAMED:
        return f"{', '.join(labels[: NAMED - 1])} and {len(labels) - NAMED + 1} more"
    return " and ".join(filter(None, (", ".join(labels[:-1]), labels[-1])))
