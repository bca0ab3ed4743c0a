"""Which results belong together: by part, task and corpus, then by metric and protocol."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache

from pezoo.errors import UserError
from pezoo.results import LANGUAGE_MODELLING, Result, tuning_name

HEADLINES = ("perplexity", "exact_match", "token_accuracy")
"""Metrics worth a figure, the foremost first."""
WINDOWED = " | windowed"
"""How the label of a scheme's companion ends: the same model, tested with a window of L."""
NOTHING = "there are no results yet. Run the study to its end with `pezoo run`."
OVERLAP = 1.5
"""In so many test windows may a token be, on average, before a report says so."""
Tuning = tuple[int, float]
"""Steps of a tuning, and its length over L."""
UNTUNED: Tuning = (0, 0.0)
TOGETHER = "train lengths"
"""Stands for the part where several parts, trained at different lengths, are shown together."""


def groups(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Split results into those that can share tables and figures, but for metric and protocol.

    Args:
        results: results of one study.

    Returns:
        Name -> results, in their order. The name says part, task and, if a task has several, corpus, with the
        beginning of its digest if that is what differs; it is "" for language modelling of one text in a study without
        parts. Where a group holds several training lengths, each label ends with its own, "rope, L = 64", and those of
        one scheme stand together.

    Raises:
        UserError: if there are no results.
    """
    results = list(results)
    if not results:
        raise UserError(NOTHING)
    by_text: dict[tuple[str, str, str, str], list[Result]] = {}
    for r in results:
        by_text.setdefault((r.part, r.task, r.corpus, _digest(r)), []).append(r)
    corpora = Counter((part, task) for part, task, _ in {text[:3] for text in by_text})
    digests = Counter(text[:3] for text in by_text)
    found: dict[str, list[Result]] = {}
    for (part, task, corpus, digest), group in by_text.items():
        other_texts = digests[part, task, corpus] > 1
        corpus = f"{corpus} {digest}" if other_texts else corpus
        name = [title(group[0])] + [corpus] * (other_texts or corpora[part, task] > 1)
        found.setdefault(", ".join(filter(None, name)), []).extend(group)
    return {name: _with_lengths(group) for name, group in found.items()}


def matrices(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Bring together what parts say of the same schemes, on the same task, trained at different lengths.

    Args:
        results: results of one study.

    Returns:
        As `groups`, with the headline metrics of the labels that several parts train, each at a length of its own;
        nothing of a task of which two parts train one label at one length.
    """
    by_task: dict[tuple[str, str, str], list[Result]] = {}
    for r in results:
        if r.metric in HEADLINES and r.depth is None:
            by_task.setdefault((r.task, r.corpus, _digest(r)), []).append(r)
    together = [replace(r, part=TOGETHER) for every in by_task.values() for r in _of_several_parts(every)]
    return groups(together) if together else {}


def left_over(found: Mapping[str, list[Result]], shown: Mapping[str, list[Result]]) -> dict[str, list[Result]]:
    """Return the groups in which there are cells that the groups that are shown do not have.

    Args:
        found: what `groups` returned.
        shown: what `matrices` returned.
    """
    there = {r.cell for group in shown.values() for r in group}
    return {name: group for name, group in found.items() if any(r.cell not in there for r in group)}


def title(result: Result) -> str:
    """Return part and task in words, without what goes without saying."""
    task = "" if result.task == LANGUAGE_MODELLING else result.task
    return ", ".join(filter(None, (result.part, task)))


def words(metric: str) -> str:
    """Return a metric's name as text.

    >>> words("exact_match")
    'exact match'
    """
    return metric.replace("_", " ")


def tuning_of(result: Result) -> Tuning:
    """Return how a model was tuned."""
    return result.finetune_steps, (result.finetune_length or 0) / result.train_length


def name_of(tuning: Tuning) -> str:
    """Return what a tuning is called: "zero-shot" or "200 steps @ 8x"."""
    return "zero-shot" if tuning == UNTUNED else tuning_name(*tuning)


def select(results: Iterable[Result], metric: str, protocol: str, depths: bool = False) -> list[Result]:
    """Return the results of one metric under one protocol that can share a table or a figure.

    Args:
        results: results of one or more studies.
        metric: such as "perplexity".
        protocol: such as "prefix".
        depths: whether to return the results at each depth, instead of those over all.

    Returns:
        Those results, in their order.

    Raises:
        UserError: if there are none, or if they would mix studies, parts, tasks, corpora, texts or anything
            else that makes two results of one scheme, seed and test length.
    """
    results = list(results)
    kept = [r for r in results if r.metric == metric and r.protocol == protocol and (r.depth is not None) == depths]
    if not kept:
        there = [f"{m} ({p})" for p, found in metrics(results).items() for m in found]
        raise UserError(f"there are no results of {metric} ({protocol}), but of {', '.join(there)}.")
    for name in ("study", "part", "task", "corpus"):
        if len(found := {str(getattr(r, name)) for r in kept}) > 1:
            raise UserError(f"one table or figure cannot mix results of several {name}: {', '.join(sorted(found))}.")
    if len(texts := sorted({_digest(r) for r in kept})) > 1:
        raise UserError(
            f"one table or figure cannot mix results on different texts, though all are called {kept[0].corpus}: "
            f"their digests are {', '.join(texts)}. Run all on the same text."
        )
    seen: dict[tuple[str, int, int, float | None], Result] = {}
    for r in kept:
        other = seen.setdefault((r.label, r.seed, r.test_length, r.depth), r)
        if other is not r:
            names = ("scheme", "train_length", "stride", "bos", "finetune_steps", "finetune_length", "cell")
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
    for protocol, metric in dict.fromkeys((r.protocol, r.metric) for r in results if r.depth is None):
        found.setdefault(protocol, []).append(metric)
    if not found:
        raise UserError(NOTHING)
    return found


def headline(found: Mapping[str, list[str]]) -> tuple[str, str]:
    """Return the foremost metric, and the first protocol that gives it.

    Args:
        found: what `metrics` returned.
    """
    there = {m: protocol for protocol in reversed(found) for m in found[protocol]}
    first = next((m for m in HEADLINES if m in there), next(iter(found.values()))[0])
    return first, there[first]


def window_overlap(results: Iterable[Result]) -> float | None:
    """Return in how many test windows a token is, on average, if that is so many that a reader should know."""
    most = max((r.window_overlap or 1.0 for r in results), default=1.0)
    return most if most > OVERLAP else None


def chance(result: Result) -> float | None:
    """Return what guessing scores at the result's length, where that is known and not next to nothing.

    Args:
        result: any; the metric must be an accuracy for there to be a chance.
    """
    from pezoo.task import make_task

    if result.metric not in ("exact_match", "token_accuracy") or result.task == LANGUAGE_MODELLING:
        return None
    if result.tokenizer not in ("", "bytes"):  # a token is then no symbol of the task
        return None
    try:
        task = make_task(result.task)
        # Several tokens are guessed right together too seldom to be shown.
        shown = result.metric == "token_accuracy" or task.output_length(result.test_length) == 1
    except UserError:  # such as a task of a plug-in that is not loaded
        return None
    return task.chance if shown else None


def _digest(result: Result) -> str:
    """What tells texts apart as models read them: the beginning of the digest, and a tokenizer that is not bytes."""
    return _text(result.corpus_digest, result.tokenizer)


@cache
def _text(digest: str, tokenizer: str) -> str:
    return " ".join(filter(None, (digest[:8] or "unknown", "" if tokenizer == "bytes" else tokenizer)))


def _of_several_parts(results: list[Result]) -> list[Result]:
    """Return the results of labels that parts train at different lengths; none if two do at the same."""
    rows = {(r.label, r.train_length, r.part) for r in results}
    lengths = {(label, n) for label, n, _ in rows}
    parts = Counter(label for label, _ in {(label, part) for label, _, part in rows})
    trained = Counter(label for label, _ in lengths)
    if len(lengths) < len(rows):
        return []
    return [r for r in results if parts[r.label] > 1 < trained[r.label]]


def _with_lengths(group: list[Result]) -> list[Result]:
    if len({r.train_length for r in group}) == 1:
        return group
    place = {label: i for i, label in enumerate(dict.fromkeys(r.label for r in group))}
    ordered = sorted(group, key=lambda r: (place[r.label], r.train_length))
    return [replace(r, label=_with_length(r.label, r.train_length)) for r in ordered]


def _with_length(label: str, train_length: int) -> str:
    plain = label.removesuffix(WINDOWED)
    return f"{plain}, L = {train_length}{label[len(plain) :]}"
