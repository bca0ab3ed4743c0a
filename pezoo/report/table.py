"""Tables: a row per scheme, a column per test length; schemes beside a baseline, by tasks, by cost; grids."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import pandas

from pezoo.report.beside import BESIDE, COMPARED, add_comparison, against, cost
from pezoo.report.captions import (
    caption_of,
    heading_of,
    length_words,
    metric_words,
    over_seeds,
    overlap,
    rates,
    reasons,
)
from pezoo.report.grids import grids
from pezoo.report.groups import (
    WINDOWED,
    groups,
    headline,
    left_over,
    matrices,
    metrics,
    name_of,
    select,
    tuning_of,
    words,
)
from pezoo.report.printed import GUESSING, Table
from pezoo.report.statistics import (
    ACCURACIES,
    PERPLEXITIES,
    TOLERANCE,
    Curve,
    against_window,
    best_value,
    curves,
    effective_length,
    length_name,
    mean_over_tasks,
    score_frame,
)
from pezoo.results import BITS_PER_BYTE, Result
from pezoo.results.losses import Sources

BITS = "bits/byte at L"
MANY = 6
"""So many tasks of one part have tables and figures of their own; more are only shown together."""


def pivot(results: Iterable[Result], metric: str = "perplexity", protocol: str = "prefix") -> pandas.DataFrame:
    """Return one metric as a frame of summaries over seeds.

    Args:
        results: results of one group.
        metric: what to show.
        protocol: how it was tested.

    Returns:
        Rows: labels, in order of first appearance. Columns, ascending: "L", "2L", ..., or the lengths themselves if
        the training lengths differ. Cells: a `Summary`, or None where there is no result; `str(summary)` is
        "5.23 ± 0.04", "undefined", "12.3, diverged 1/2".

    Raises:
        UserError: if there is nothing to show, or the results cannot share a table.
    """
    kept = select(results, metric, protocol)
    lengths = sorted({r.test_length for r in kept})
    rows = curves(kept)
    return pandas.DataFrame(
        [[rows[label].get(length) for length in lengths] for label in rows],
        index=pandas.Index(list(rows), name="scheme"),
        columns=[length_words(length, kept) for length in lengths],
        dtype=object,
    )


def by_length(
    results: Iterable[Result],
    metric: str = "perplexity",
    protocol: str = "prefix",
    name: str = "",
    baseline: str = "",
    losses: Sources | None = None,
) -> Table:
    """Return a table with a row per label and a column per test length.

    Then come how far the scheme works, of perplexities and accuracies; how it stands beside its windowed companion if
    it has one; and how it compares with the baseline at the longest length. Losses have the bits per byte at L, where
    the bytes are known.

    Args:
        results: results of one group.
        metric: what to show.
        protocol: how it was tested.
        name: of the group, for the heading.
        baseline: the label to compare with; empty, or not in this group: the best scheme at L.
        losses: where losses by document are, as in `pezoo.results.losses.losses_of`; None: there are none.

    Raises:
        UserError: if there is nothing to show, or the results cannot share a table.
    """
    results = list(results)
    kept = select(results, metric, protocol)
    several = len({r.train_length for r in kept}) > 1
    summaries = pivot(kept, metric, protocol)
    frame = summaries.map(lambda summary: _shown(summary, "" if several else "–"))
    notes = [*reasons(kept), *rates(kept), *overlap(kept)]
    if metric in (*PERPLEXITIES, *ACCURACIES):
        notes += _add_effective_lengths(frame, kept)
    if metric in PERPLEXITIES:
        notes += _add_verdicts(frame, kept)
    notes += add_comparison(frame, kept, baseline, losses)
    if metric == "loss":
        notes += _add_bits(frame, [r for r in results if (r.metric, r.protocol) == (BITS_PER_BYTE, protocol)])
    best = "most" if metric in ACCURACIES else "least" if metric in (*PERPLEXITIES, "loss", BITS_PER_BYTE) else ""
    heading = heading_of(name, metric, f"{protocol} protocol")
    return Table(heading, caption_of(kept), frame, tuple(notes), _means(summaries), best)


def scores(tasks: Mapping[str, list[Result]], baseline: str = "") -> Table:
    """Return a table of schemes by tasks: the mean of an accuracy over the test lengths beyond L.

    Its last column compares the mean over tasks with that of the baseline.

    Args:
        tasks: name -> what `select` returned; all of one metric and part.
        baseline: as in `by_length`; if empty, the best mean.

    Returns:
        The table, whose last row is what guessing scores.
    """
    one = next(iter(tasks.values()))[0]
    summaries = score_frame(tasks)
    frame = summaries.map(_shown)
    every = [r for kept in tasks.values() for r in kept]
    notes = add_comparison(frame, mean_over_tasks(tasks), baseline, None, "in the mean")
    caption = f"{metric_words(one)} in percent, mean over the tested lengths beyond L; {over_seeds(every)}"
    heading = heading_of(one.part, f"{one.metric} by task", "beyond the training length")
    return Table(heading, caption, frame, tuple(notes), _means(summaries), "most")


def score_groups(found: Mapping[str, list[Result]], metric: str) -> list[dict[str, list[Result]]]:
    """Return what belongs in tables of scores, one for each part in which several groups have the metric.

    Args:
        found: what `groups` returned.
        metric: which accuracy.

    Returns:
        For each table, name of the group -> what `select` returns.
    """
    parts: dict[str, dict[str, list[Result]]] = {}
    for name, group in found.items():
        protocol = next((p for p, names in metrics(group).items() if metric in names), None)
        kept = [] if protocol is None else select(group, metric, protocol)
        if any(r.test_length > r.train_length for r in kept):
            parts.setdefault(group[0].part, {})[name] = kept
    return [tasks for tasks in parts.values() if len(tasks) > 1]


def by_task(tasks: Mapping[str, list[Result]]) -> dict[str, list[Result]]:
    """Return groups of one part under the name of their task, if that tells them apart."""
    names = [kept[0].task for kept in tasks.values()]
    return dict(zip(names if len(set(names)) == len(names) else tasks, tasks.values(), strict=True))


def crossed(results: Iterable[Result], metric: str, protocol: str, name: str = "") -> list[Table]:
    """Return tables of encodings by extensions, one for each length beyond L and step count, if there is such a grid.

    Args:
        results: results of one group.
        metric: what to show.
        protocol: how it was tested.
        name: of the group, for the heading.
    """
    kept = select(results, metric, protocol)
    tables = []
    for (length, tuning), frame in grids(kept).items():
        if length > max(r.train_length for r in kept):
            at = f"at {length_words(length, kept)}, {name_of(tuning)}"
            heading = heading_of(name, f"{metric} {at}", f"{protocol} protocol")
            there = [r for r in kept if (r.test_length, tuning_of(r)) == (length, tuning)]
            tables.append(Table(heading, f"{caption_of(kept)}; {at}", frame.map(_shown), tuple(reasons(there))))
    return tables


def overview(results: Iterable[Result], baseline: str = "", losses: Sources | None = None) -> list[Table]:
    """Return what the terminal shows: scores over tasks, then for each group one table of its foremost metric.

    Many tasks have the scores alone. Parts that differ in training length have one table together, and a group that
    crosses encodings with extensions has its grids.

    Args:
        results: results of one study.
        baseline: as in `by_length`.
        losses: as in `by_length`.

    Raises:
        UserError: if there are no results, or they cannot share tables.
    """
    results = list(results)
    found = groups(results)
    together = [tasks for metric in ACCURACIES for tasks in score_groups(found, metric)]
    shown = [scores(by_task(tasks), baseline) for tasks in together]
    many = {name for tasks in together if len(tasks) > MANY for name in tasks}
    found = {name: group for name, group in found.items() if name not in many}
    lengths = matrices(results)
    for name, group in (left_over(found, lengths) | lengths).items():
        metric, protocol = headline(metrics(group))
        shown += crossed(group, metric, protocol, name) or [by_length(group, metric, protocol, name, baseline, losses)]
    return shown


def every_table(results: Iterable[Result], baseline: str = "", losses: Sources | None = None) -> list[Table]:
    """Return the tables of a study: those over tasks, then for each group its grids, and each protocol and metric.

    The foremost metric of each protocol is compared with the baseline at all lengths. Bits per byte have tables only
    where a tokenizer makes more than bytes: else perplexity says the same. What schemes cost stands at the end.

    Args:
        results: results of one study.
        baseline: as in `by_length`.
        losses: as in `by_length`.

    Raises:
        UserError: if there are no results, or they cannot share tables.
    """
    results = list(results)
    found, subwords = groups(results), any(r.tokenizer not in ("", "bytes") for r in results)
    tables = [scores(by_task(tasks), baseline) for metric in ACCURACIES for tasks in score_groups(found, metric)]
    for name, group in (found | matrices(results)).items():
        every = metrics(group)
        tables += crossed(group, *headline(every), name)
        for protocol in every:
            first, _ = headline({protocol: every[protocol]})
            for metric in every[protocol]:
                if subwords or metric != BITS_PER_BYTE:
                    tables.append(by_length(group, metric, protocol, name, baseline, losses))
                if metric == first in COMPARED:
                    tables.append(against(group, metric, protocol, name, baseline, losses))
    parts: dict[str, list[Result]] = {}
    for r in results:
        parts.setdefault(r.part, []).append(r)
    tables += [cost(each, part) for part, each in parts.items()]
    return [table for table in tables if table is not None]


def ranking(results: Iterable[Result], baseline: str = "", losses: Sources | None = None) -> Table:
    """Return the table of a report's first screen: the schemes of the foremost metric, the best far beyond L first.

    Of several tasks it is the table of scores. The rows are in the order of the mean at the longest length.

    Args:
        results: results of one study.
        baseline: as in `by_length`.
        losses: as in `by_length`.

    Raises:
        UserError: if there are no results, or they cannot share tables.
    """
    found = groups(results)
    for metric in ACCURACIES:
        for tasks in score_groups(found, metric):
            return _sorted(scores(by_task(tasks), baseline), "mean")
    name, group = next(iter(found.items()))
    metric, protocol = headline(metrics(group))
    whole = by_length(group, metric, protocol, name, baseline, losses)
    lengths = list(whole.means.columns)
    columns = [*dict.fromkeys((lengths[0], lengths[-1])), BESIDE, "good to", "stable to"]
    frame = whole.frame[[column for column in columns if column in whole.frame.columns]]
    frame = frame[[not row.endswith(WINDOWED) for row in frame.index]]
    notes = [note for note in whole.notes if note.startswith((BESIDE, "good to", "stable to", "=", "one seed"))]
    means = whole.means.loc[frame.index, [length for length in lengths if length in frame]]
    heading = heading_of(name, f"ranking by {words(metric)}", f"the best at {lengths[-1]} first")
    short = replace(whole, heading=heading, frame=frame, notes=tuple(notes), means=means)
    return _sorted(short, lengths[-1])


def _means(summaries: pandas.DataFrame) -> pandas.DataFrame:
    """Return the means of those summaries that have every seed."""
    return summaries.map(lambda one: None if one is None else one.whole_mean).astype(float)


def _sorted(table: Table, column: str) -> Table:
    """Return the table with the best rows of a column first; then rows without a value, and what guessing scores."""
    means = table.means[column].loc[table.frame.index]
    order = means.sort_values(ascending=table.best != "most", kind="stable").index
    last = [row for row in order if row == GUESSING]
    return replace(table, frame=table.frame.loc[[*(row for row in order if row != GUESSING), *last]])


def _add_bits(frame: pandas.DataFrame, bits: list[Result]) -> list[str]:
    """Add a column with the bits per byte at L, where they are known, and return what it means."""
    found = curves(r for r in bits if r.test_length == r.train_length)
    if not found:
        return []
    frame[BITS] = [_shown(next(iter(found.get(label, {}).values()), None)) for label in frame.index]
    return [f"{BITS}: loss / ln 2 per byte of text; unlike perplexity it compares models with different tokenizers"]


def _add_effective_lengths(frame: pandas.DataFrame, kept: list[Result]) -> list[str]:
    """Add the columns that say how far each row works, and return what they mean."""
    found, trained = curves(kept), {r.label: r.train_length for r in kept}
    best = {
        n: best_value({label: found[label] for label in found if trained[label] == n}, n) for n in {*trained.values()}
    }
    frame["stable to"] = [_effective(found[label], trained[label]) for label in frame.index]
    frame["good to"] = [
        "–" if best[n] is None else _effective(found[label], n, best[n])
        for label, n in ((label, trained[label]) for label in frame.index)
    ]
    near = f"within {100 * TOLERANCE:g} % of"
    return [
        f"stable to: the longest length up to which the mean is {near} its own at L, be that good or bad",
        f"good to: the longest length up to which the mean is {near} the best scheme's at L",
    ]


def _add_verdicts(frame: pandas.DataFrame, kept: list[Result]) -> list[str]:
    """Add the column that stands each row beside its companion with a window, and return what it means."""
    found, trained = curves(kept), {r.label: r.train_length for r in kept}
    near = f"at most {100 * TOLERANCE:g} % above that at L"
    notes = []
    if any(label + WINDOWED in found for label in found):
        frame["against its window"] = [
            against_window(found[label], found[label + WINDOWED], trained[label]) or "–"
            if label + WINDOWED in found
            else ""
            for label in frame.index
        ]
        notes += [
            f"against its window: at the longest length, a scheme breaks unless its perplexity is {near}; it uses its "
            "context if that is below the perplexity of the same model with a window of L, and else is stable"
        ]
    return notes


def _effective(curve: Curve, train_length: int, reference: float | None = None) -> str:
    found = effective_length(curve, train_length, reference=reference)
    if found is None:
        return "–"
    length, exceeded = found
    return f"{'' if exceeded else '≥ '}{length_name(length, train_length)}"


def _shown(cell: object, missing: str = "–") -> str:
    return missing if cell is None else str(cell)
