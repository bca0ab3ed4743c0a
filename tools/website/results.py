"""What the published studies say of each member: its rows, with intervals, and what became of claims about it."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pezoo.errors import UserError
from pezoo.registry import list_schedules
from pezoo.report.beside import effect_words, interval_words
from pezoo.report.captions import length_words
from pezoo.report.comparisons import best_in_range, compare_all, in_range
from pezoo.report.finished import Finished
from pezoo.report.groups import WINDOWED, groups, headline, left_over, matrices, metrics, select, words
from pezoo.report.shares import ACCURACIES
from pezoo.report.statistics import Curve, curves, mean_over_tasks
from pezoo.report.table import by_task, score_groups
from pezoo.report.verdicts import Judgement
from pezoo.results import Result
from pezoo.results.losses import Sources
from pezoo.scheme import parse
from tools import published


@dataclass(frozen=True)
class Row:
    """A scheme in one table of a study."""

    label: str
    names: frozenset[str]
    """Its members."""
    alone: bool
    """Whether it is an encoding without extensions."""
    near: str
    """Its value at the training length; empty where the number is a mean over longer ones."""
    far: str
    """Its value at the longest length."""
    effect: str
    """How it stands beside the baseline there; empty where nothing is compared."""
    interval: str


@dataclass(frozen=True)
class Ranking:
    """The rows of one part and task of a study."""

    folder: Path
    caption: str
    at: tuple[str, str]
    """The two lengths, in words; the first is empty where there is one number."""
    rows: tuple[Row, ...]


@cache
def rankings() -> tuple[Ranking, ...]:
    """What all published studies say, by their foremost metrics, study by study."""
    return tuple(one for folder, study in published.finished().items() for one in _of_study(folder, study))


def _of_study(folder: Path, study: Finished) -> Iterator[Ranking]:
    found, done = groups(study.results), set()
    for metric in ACCURACIES:
        for tasks in score_groups(found, metric):
            if not done & set(tasks):
                done |= set(tasks)
                kept = mean_over_tasks(by_task(tasks))
                part = kept[0].part
                name = f"{f'{part}, ' * bool(part)}{words(metric)}, mean of {len(tasks)} tasks beyond L"
                yield _ranking(folder, study, kept, name, None, mean=True)
    together = matrices(study.results)
    for name, group in (left_over(found, together) | together).items():
        if name not in done:
            metric, protocol = headline(metrics(group))
            kept = select(group, metric, protocol)
            caption = f"{f'{name}, ' * bool(name)}{words(metric)}, protocol {protocol}"
            yield _ranking(folder, study, kept, caption, study.losses)


def _ranking(
    folder: Path, study: Finished, kept: list[Result], caption: str, losses: Sources | None, mean: bool = False
) -> Ranking:
    kept = [r for r in kept if not r.label.endswith(WINDOWED)]
    near, far = in_range(kept), max(r.test_length for r in kept)
    baseline = _baseline(study, kept)
    found = {} if baseline is None else {one.label: one for one in compare_all(kept, baseline, losses, lengths=[far])}
    schemes = {r.label: parse(r.scheme) for r in kept}
    schedules, rows = set(list_schedules()), []
    for label, curve in curves(kept).items():
        spec, one = schemes[label], found.get(label)
        rows.append(
            Row(
                label,
                frozenset((*spec.encodings, *spec.extensions, *schedules & set(re.findall(r"\w+", label)))),
                len(spec.encodings) == 1 and not spec.extensions,
                "" if mean else _value(curve, near),
                _value(curve, far),
                "baseline" if label == baseline else "" if one is None else effect_words(one),
                "" if one is None else interval_words(one),
            )
        )
    if baseline is not None:
        caption += f"; baseline {baseline}"
    at = ("", "mean") if mean else (length_words(near, kept), length_words(far, kept))
    return Ranking(folder, caption, at, tuple(rows))


def _value(curve: Curve, length: int) -> str:
    """What the seeds say there; accuracies in percent."""
    if length not in curve:
        return "–"
    one = curve[length]
    return f"{one} %" if one.scale == "share" and one.mean is not None else str(one)


def _baseline(study: Finished, kept: Iterable[Result]) -> str | None:
    labels = {r.label for r in kept}
    try:
        return study.baseline if study.baseline in labels else best_in_range(kept)
    except UserError:  # no scheme has all its values
        return None


@cache
def claims() -> tuple[tuple[Judgement, frozenset[str]], ...]:
    """What became of all claims, each with the members that it speaks of."""
    return tuple((one, frozenset(_members(one))) for one in published.judged())


def _members(judged: Judgement) -> Iterator[str]:
    """Yield names of the members in the schemes that a claim compares."""
    schemes = {r.label: r.scheme for r in judged.results}
    test = judged.claim.test
    for label in (*test.label, test.baseline):
        try:
            spec = parse(schemes.get(label, label.removesuffix(WINDOWED)))
        except UserError:  # a label in words, of a study that has not run
            continue
        yield from (*spec.encodings, *spec.extensions)
