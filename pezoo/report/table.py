"""Tables: a row per scheme, a column per test length; schemes beside a baseline, by tasks, by cost; grids."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas
from rich.console import Console
from rich.table import Table as RichTable

from pezoo.errors import UserError
from pezoo.escape import in_markdown, in_terminal
from pezoo.report.comparisons import Comparison, best_in_range, compare_all
from pezoo.report.costs import COST_BASELINE, cost_baseline, costs
from pezoo.report.groups import WINDOWED, chance, groups, headline, matrices, metrics, select, window_overlap, words
from pezoo.report.statistics import (
    ACCURACIES,
    PERPLEXITIES,
    TOLERANCE,
    Curve,
    against_window,
    best_value,
    curves,
    effective_length,
    grids,
    length_name,
    mean_over_tasks,
    scale_of,
    score_frame,
    tuning_name,
)
from pezoo.report.terminal import blocks, make_rich
from pezoo.results import BITS_PER_BYTE, LANGUAGE_MODELLING, Result

BITS = "bits/byte at L"
COMPARED = (*PERPLEXITIES, "loss", BITS_PER_BYTE, *ACCURACIES)
"""Metrics of which it is known whether more or less is better."""
BESIDE = "against baseline"
"""The column that compares each scheme with the baseline."""
ONE_SEED = (
    "one seed: there is no interval and no verdict, since nobody knows how far another seed would move these numbers; "
    "two seeds would say it"
)
MAKERS = ("pezoo", "torch", "python")
MANY = 6
"""So many tasks of one part have tables and figures of their own; more are only shown together."""


@dataclass(frozen=True)
class Table:
    """A table, with what it shows above it and reasons below it."""

    heading: str
    caption: str
    frame: pandas.DataFrame
    """Texts; the index has a name."""
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Return the table without its heading; the text ends in a newline."""
        frame = self.frame
        rows = [[frame.index.name, *frame.columns]]
        rows += [[label, *cells] for label, cells in zip(frame.index, frame.to_numpy(), strict=True)]
        lines = ["| " + " | ".join(map(in_markdown, row)) + " |" for row in rows]
        lines.insert(1, "| " + " | ".join(["---", *["---:"] * len(frame.columns)]) + " |")
        below = [f"- {in_markdown(note)}" for note in self.notes]
        return "\n".join([f"{in_markdown(self.caption)}.", "", *lines, *([""] if below else []), *below]) + "\n"

    def show(self, console: Console | None = None) -> None:
        """Print the table to the terminal; if it is too wide, turned, with taller rows, or a few columns at a time.

        Args:
            console: where to print; standard output by default, never folded where that is no terminal.
        """
        console = console or Console(highlight=False)

        def safe(text: str) -> str:
            return in_terminal(text, console.encoding)

        frame = self.frame.rename(index=safe, columns=safe).map(safe)

        def width(table: RichTable) -> int:
            return console.measure(table, options=console.options.update(width=1000)).maximum

        forms = [make_rich(frame)]
        if len(frame.columns) > len(frame) > 1:
            forms.append(make_rich(frame.T.rename_axis("")))
        if console.is_terminal:
            forms.append(make_rich(frame, tall=True))
            fitting = [[form] for form in forms if width(form) <= console.width]
            shown = fitting[0] if fitting else blocks(frame, lambda table: width(table) <= console.width)
        else:
            shown = [min(forms, key=width)] if width(forms[0]) > console.width else forms[:1]
            console = Console(file=console.file, width=max(console.width, width(shown[0])), highlight=False)
        console.print(safe(self.caption), markup=False, soft_wrap=True)
        console.print(*shown, sep="")
        for note in self.notes:
            console.print(safe(note), markup=False, soft_wrap=True)


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
        columns=[_length(length, kept) for length in lengths],
        dtype=object,
    )


def by_length(
    results: Iterable[Result],
    metric: str = "perplexity",
    protocol: str = "prefix",
    name: str = "",
    baseline: str = "",
    losses: str | Path | None = None,
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
    frame = pivot(kept, metric, protocol).map(lambda summary: _shown(summary, "" if several else "–"))
    notes = [*_reasons(kept), *_rates(kept), *_overlap(kept)]
    if metric in (*PERPLEXITIES, *ACCURACIES):
        notes += _add_effective_lengths(frame, kept)
    if metric in PERPLEXITIES:
        notes += _add_verdicts(frame, kept)
    notes += _add_comparison(frame, kept, baseline, losses)
    if metric == "loss":
        notes += _add_bits(frame, [r for r in results if (r.metric, r.protocol) == (BITS_PER_BYTE, protocol)])
    return Table(_heading(name, metric, f"{protocol} protocol"), _caption(kept), frame, tuple(notes))


def against(
    results: Iterable[Result],
    metric: str,
    protocol: str,
    name: str = "",
    baseline: str = "",
    losses: str | Path | None = None,
) -> Table | None:
    """Return a table that compares each scheme with the baseline at every length from L on.

    Its last columns are the interval at the longest length, and the p-value corrected for all comparisons of the table.

    Args:
        results: results of one group.
        metric: what to compare.
        protocol: how it was tested.
        name: of the group, for the heading.
        baseline: as in `by_length`.
        losses: as in `by_length`.

    Returns:
        The table; None where there are no two schemes to compare.
    """
    kept = select(results, metric, protocol)
    beside, why = _baseline(kept, baseline)
    found = [] if beside is None else compare_all(kept, beside, losses)
    if not found:
        return None
    lengths = sorted({one.test_length for one in found})
    last, tests = _length(lengths[-1], kept), sum(one.p is not None for one in found)
    rows: dict[str, dict[str, str]] = {}
    for one in found:
        row = rows.setdefault(one.label, {_length(length, kept): "–" for length in lengths})
        row[_length(one.test_length, kept)] = _effect(one)
        if tests and one.test_length == lengths[-1]:
            row |= {f"interval at {last}": _interval(one), "p": "–" if one.p_corrected is None else _p(one.p_corrected)}
    frame = pandas.DataFrame.from_dict(rows, orient="index").fillna("–").rename_axis("scheme")
    notes = _meaning(found)
    if tests:
        notes.append(f"p: of no difference at {last}, corrected by Holm's method for {tests} comparisons")
    of = "ratio to" if scale_of(metric) == "log" else "difference from"
    caption = f"{_metric(kept[0])}, {of} {beside}, {why}; {kept[0].corpus}; {protocol} protocol"
    return Table(_heading(name, metric, f"against {beside}", f"{protocol} protocol"), caption, frame, tuple(notes))


def cost(results: Iterable[Result], name: str = "") -> Table | None:
    """Return a table of what each scheme costs, beside the scheme without positions.

    Args:
        results: of one part of a study.
        name: of the part, for the heading.

    Returns:
        The table; None where no training was timed.
    """
    results = list(results)
    beside, found = cost_baseline(results), costs(results)
    if beside is None:
        return None
    own = found.loc[beside]
    frame = pandas.DataFrame(
        {
            "parameters": ["–" if pandas.isna(more) else f"{more:+,.0f}" for more in found["params"] - own["params"]],
            **{
                name: [_times(value, own[column], unit) for value in found[column]]
                for name, column, unit in (
                    ("training seconds", "train_seconds", 1),
                    ("tokens per second", "tokens_per_second", 1),
                    ("peak memory in MiB", "peak_memory_bytes", 2**20),
                )
            },
        },
        index=found.index,
    )
    frame = frame.loc[:, (frame != "–").any()]
    first = next(r for r in results if r.label == beside)
    why = "" if first.scheme == COST_BASELINE else f", the one that trained fastest: there is no {COST_BASELINE}"
    notes = [] if pandas.isna(own["params"]) else [f"parameters: those added to the {own['params']:,.0f} of {beside}"]
    devices = {f"{r.train_device or r.device}, {r.threads} threads" for r in results}
    if len(devices) > 1:
        notes.append(f"trained on several devices, whose times do not compare: {'; '.join(sorted(devices))}")
    caption = f"Cost of a training, mean over seeds; × is beside {beside} in the same runs{why}"
    return Table(_heading(name, "cost"), caption, frame, tuple(notes))


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
    frame = score_frame(tasks).map(_shown)
    every = [r for kept in tasks.values() for r in kept]
    notes = _add_comparison(frame, mean_over_tasks(tasks), baseline, None, "in the mean")
    caption = f"{_metric(one)} in percent, mean over the tested lengths beyond L; {_over(every)}"
    heading = _heading(one.part, f"{one.metric} by task", "beyond the training length")
    return Table(heading, caption, frame, tuple(notes))


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
    for (length, steps), frame in grids(kept).items():
        if length > max(r.train_length for r in kept):
            at = f"at {_length(length, kept)}, {tuning_name(steps)}"
            heading = _heading(name, f"{metric} {at}", f"{protocol} protocol")
            there = [r for r in kept if (r.test_length, r.finetune_steps) == (length, steps)]
            tables.append(Table(heading, f"{_caption(kept)}; {at}", frame.map(_shown), tuple(_reasons(there))))
    return tables


def overview(results: Iterable[Result], baseline: str = "", losses: str | Path | None = None) -> list[Table]:
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
    whole = {(group[0].task, group[0].corpus) for group in lengths.values()}
    found = {name: group for name, group in found.items() if (group[0].task, group[0].corpus) not in whole}
    for name, group in (found | lengths).items():
        metric, protocol = headline(metrics(group))
        shown += crossed(group, metric, protocol, name) or [by_length(group, metric, protocol, name, baseline, losses)]
    return shown


def every_table(results: Iterable[Result], baseline: str = "", losses: str | Path | None = None) -> list[Table]:
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


def markdown(results: Iterable[Result], baseline: str = "", losses: str | Path | None = None) -> str:
    """Return a Markdown page with all tables of a study.

    Args:
        results: results of one study.
        baseline: as in `by_length`.
        losses: as in `by_length`.

    Raises:
        UserError: if there are no results, or they cannot share tables.
    """
    results = list(results)
    sections = [f"# {in_markdown(', '.join(dict.fromkeys(r.study for r in results)))}\n", f"{_made_with(results)}.\n"]
    for table in every_table(results, baseline, losses):
        sections += [f"## {in_markdown(table.heading)}\n", table.markdown()]
    return "\n".join(sections)


def _metric(result: Result) -> str:
    """Return the metric at the beginning of a caption, after the part."""
    name = words(result.metric)
    return f"{result.part}: {name}" if result.part else name.capitalize()


def _heading(name: str, what: str, *facts: str) -> str:
    text = ", ".join([words(what), *facts])
    return f"{name}: {text}" if name else text[0].upper() + text[1:]


def _length(length: int, kept: list[Result]) -> str:
    trained = {r.train_length for r in kept}
    return str(length) if len(trained) > 1 else length_name(length, trained.pop())


def _over(kept: list[Result]) -> str:
    seeds = len({r.seed for r in kept})
    if seeds == 1:
        return "one seed"
    if scale_of(kept[0].metric) == "log":
        return f"geometric mean ± sample standard deviation of the loss over {seeds} seeds (1% is 0.01 nats)"
    return f"mean ± sample standard deviation over {seeds} seeds"


def _made_with(results: list[Result]) -> str:
    """Return in one line which versions of what counts most made results."""
    found = {name: sorted({r.versions[name] for r in results if name in r.versions}) for name in MAKERS}
    return "Made with " + ", ".join(f"{name} {' and '.join(versions)}" for name, versions in found.items() if versions)


def _caption(kept: list[Result]) -> str:
    """Return in one line what a table of one metric shows, and under which conditions."""
    one, trained = kept[0], {r.train_length for r in kept}
    unit = " tokens" if one.task == LANGUAGE_MODELLING else ""
    percent = " in percent" if one.metric in ACCURACIES else ""
    columns = (
        f"columns: tested length{' in tokens' if unit else ''}" if len(trained) > 1 else f"L = {trained.pop()}{unit}"
    )
    facts = [f"{_metric(one)}{percent} on {one.corpus}", f"{one.protocol} protocol", columns]
    facts += [] if one.test_precision == "float32" else [f"tested in {one.test_precision}"]
    guessed = chance(one)
    facts += [] if guessed is None else [f"guessing gets {100 * guessed:.1f}"]
    return "; ".join([*facts, _over(kept)])


def _reasons(kept: list[Result]) -> list[str]:
    """Return a line for each reason why a scheme has no value, naming the lengths.

    Reasons that differ in numbers alone are one, told with those of the shortest length.
    """
    found: dict[tuple[str, str, str], tuple[str, dict[str, None]]] = {}
    for r in sorted(kept, key=lambda r: r.test_length):
        if r.status != "ok":
            alike = re.sub(r"\d+(\.\d+)?", "#", r.reason)
            _, lengths = found.setdefault((r.label, r.status.replace("_", " "), alike), (r.reason, {}))
            lengths[length_name(r.test_length, r.train_length)] = None
    return [
        f"{label}: {status} at {', '.join(lengths)}: {reason}"
        for (label, status, _), (reason, lengths) in found.items()
    ]


def _rates(kept: list[Result]) -> list[str]:
    """Return a line for each learning rate, if they differ."""
    found: dict[float, dict[str, None]] = {}
    for r in kept:
        found.setdefault(r.learning_rate, {})[r.label.removesuffix(WINDOWED)] = None
    return [f"learning rate {rate:g}: {'; '.join(found[rate])}" for rate in sorted(found)] if len(found) > 1 else []


def _overlap(kept: list[Result]) -> list[str]:
    """Return a line on test windows that overlap, if they do so much that a reader should know."""
    overlap = window_overlap(kept)
    if overlap is None:
        return []
    return [
        f"test windows overlap: a token is in {overlap:.2g} of them on average, since the test text is too short for "
        "so many; fewer test.windows would say as much, more text would say more"
    ]


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
    best = {n: best_value({label: found[label] for label in found if trained[label] == n}, n) for n in trained.values()}
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


def _add_comparison(
    frame: pandas.DataFrame, kept: list[Result], baseline: str, losses: str | Path | None, what: str = ""
) -> list[str]:
    """Add the column that compares each row with the baseline at the longest length, and return what it means."""
    beside, why = _baseline(kept, baseline)
    if beside is None:
        return []
    last = max(r.test_length for r in kept)
    found = {one.label: one for one in compare_all(kept, beside, losses, lengths=[last])}
    if all(one.effect is None for one in found.values()):
        return []
    frame[BESIDE] = [
        "baseline" if label == beside else _effect(found[label]) if label in found else "" for label in frame.index
    ]
    of = "ratio to" if scale_of(kept[0].metric) == "log" else "difference from"
    at = what or f"at {_length(last, kept)}"
    return [f"{BESIDE}: {at}, {of} {beside}, {why}", *_meaning(list(found.values()))]


def _baseline(kept: list[Result], baseline: str) -> tuple[str | None, str]:
    """Return what to compare with, and why; None where there is nothing to compare, or nothing to compare with."""
    labels = {r.label for r in kept if not r.label.endswith(WINDOWED)}
    if len(labels) < 2 or kept[0].metric not in COMPARED:
        return None, ""
    if baseline in labels:
        return baseline, "the study's baseline"
    try:
        at_l = any(r.test_length <= r.train_length for r in kept)
        return best_in_range(kept), "the best at L" if at_l else "the best"
    except UserError:  # no scheme has all its values
        return None, ""


def _meaning(found: list[Comparison]) -> list[str]:
    """Return what marks and intervals of comparisons mean."""
    known = [one for one in found if one.p is not None]
    if not known:
        return [ONE_SEED] if max(one.seeds for one in found) == 1 else []
    seeds = sorted({one.seeds for one in known})
    pairs = f"{seeds[0]} seeds" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    documents = {one.documents for one in known}
    if None in documents:
        over = f"pairs of {pairs}: they tell of other seeds, not of other texts"
        if scale_of(known[0].metric) == "share":
            over = f"pairs of {pairs} and the number of questions: they tell of other seeds and other questions"
    else:
        over = f"pairs of {pairs} and {max(documents)} documents: they tell of other seeds and other texts"
    return [f"= is a tie: the 95% interval holds no difference; intervals come from {over}"]


def _effect(one: Comparison) -> str:
    """Return an effect with its verdict, such as "×1.12 worse" or "×1.01 ="."""
    if one.effect is None:
        return "–"
    mark = {"tie": " =", "unknown": ""}.get(one.verdict, f" {one.verdict}")
    return f"{_size(one, one.effect)}{mark}"


def _interval(one: Comparison) -> str:
    return "–" if one.low is None else f"[{_size(one, one.low)}, {_size(one, one.high)}]".replace("×", "")


def _size(one: Comparison, effect: float) -> str:
    scale = scale_of(one.metric)
    if scale == "log":
        return f"×{effect:.2f}" if effect < 100 else f"×{effect:.3g}"
    return f"{100 * effect:+.1f}" if scale == "share" else f"{effect:+.3f}"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _times(value: float, own: float, unit: float) -> str:
    """Return a cost, and how many times that of the baseline it is."""
    if pandas.isna(value):
        return "–"
    beside = "" if pandas.isna(own) or own == 0 else f" (×{value / own:.2f})"
    return f"{value / unit:,.{0 if value / unit >= 100 else 1}f}{beside}"


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
