"""Tables: a row per scheme, a column per test length; schemes by tasks; encodings by extensions."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas
from rich.console import Console
from rich.table import Table as RichTable

from pezoo.escape import in_markdown, in_terminal
from pezoo.report.groups import WINDOWED, chance, groups, headline, matrices, metrics, select, window_overlap, words
from pezoo.report.statistics import (
    ACCURACIES,
    PERPLEXITIES,
    TOLERANCE,
    Curve,
    against_window,
    curves,
    effective_length,
    grids,
    length_name,
    scale_of,
    score_frame,
    tuning_name,
)
from pezoo.report.terminal import blocks, make_rich
from pezoo.results import BITS_PER_BYTE, LANGUAGE_MODELLING, Result

BITS = "bits/byte at L"
MAKERS = ("pezoo", "torch", "python")
LENGTHS = r"[\d.]*L|T = \d+|\d+"
"""Columns that are test lengths."""
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
    best: str = ""
    """Whether the "least" or the "most" of each length is best; empty: nothing is."""

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


def by_length(results: Iterable[Result], metric: str = "perplexity", protocol: str = "prefix", name: str = "") -> Table:
    """Return a table with a row per label and a column per test length.

    Perplexities have two more: how far the scheme works, and how it stands beside its windowed companion if it has one.
    Losses have the bits per byte at L, where the bytes are known.

    Args:
        results: results of one group.
        metric: what to show.
        protocol: how it was tested.
        name: of the group, for the heading.

    Raises:
        UserError: if there is nothing to show, or the results cannot share a table.
    """
    results = list(results)
    kept = select(results, metric, protocol)
    several = len({r.train_length for r in kept}) > 1
    frame = pivot(kept, metric, protocol).map(lambda summary: _shown(summary, "" if several else "–"))
    notes = [*_reasons(kept), *_rates(kept), *_overlap(kept)]
    if metric in PERPLEXITIES:
        notes += _add_verdicts(frame, kept)
    if metric == "loss":
        notes += _add_bits(frame, [r for r in results if (r.metric, r.protocol) == (BITS_PER_BYTE, protocol)])
    best = "most" if metric in ACCURACIES else "least" if metric in (*PERPLEXITIES, "loss", BITS_PER_BYTE) else ""
    return Table(_heading(name, metric, f"{protocol} protocol"), _caption(kept), frame, tuple(notes), best)


def scores(tasks: Mapping[str, list[Result]]) -> Table:
    """Return a table of schemes by tasks: the mean of an accuracy over the test lengths beyond L.

    Args:
        tasks: name -> what `select` returned; all of one metric and part.

    Returns:
        The table, whose last row is what guessing scores.
    """
    one = next(iter(tasks.values()))[0]
    frame = score_frame(tasks).map(_shown)
    every = [r for kept in tasks.values() for r in kept]
    caption = f"{_metric(one)} in percent, mean over the tested lengths beyond L; {_over(every)}"
    return Table(_heading(one.part, f"{one.metric} by task", "beyond the training length"), caption, frame)


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


def overview(results: Iterable[Result]) -> list[Table]:
    """Return what the terminal shows: scores over tasks, then for each group one table of its foremost metric.

    Many tasks have the scores alone. Parts that differ in training length have one table together, and a group that
    crosses encodings with extensions has its grids.

    Raises:
        UserError: if there are no results, or they cannot share tables.
    """
    results = list(results)
    found = groups(results)
    together = [tasks for metric in ACCURACIES for tasks in score_groups(found, metric)]
    shown = [scores(by_task(tasks)) for tasks in together]
    many = {name for tasks in together if len(tasks) > MANY for name in tasks}
    found = {name: group for name, group in found.items() if name not in many}
    lengths = matrices(results)
    whole = {(group[0].task, group[0].corpus) for group in lengths.values()}
    found = {name: group for name, group in found.items() if (group[0].task, group[0].corpus) not in whole}
    for name, group in (found | lengths).items():
        metric, protocol = headline(metrics(group))
        shown += crossed(group, metric, protocol, name) or [by_length(group, metric, protocol, name)]
    return shown


def every_table(results: Iterable[Result]) -> list[Table]:
    """Return the tables of a study: those over tasks, then for each group its grids, and each protocol and metric.

    Bits per byte have tables only where a tokenizer makes more than bytes: else perplexity says the same.

    Raises:
        UserError: if there are no results, or they cannot share tables.
    """
    results = list(results)
    found, subwords = groups(results), any(r.tokenizer not in ("", "bytes") for r in results)
    tables = [scores(by_task(tasks)) for metric in ACCURACIES for tasks in score_groups(found, metric)]
    for name, group in (found | matrices(results)).items():
        every = metrics(group)
        tables += crossed(group, *headline(every), name)
        shown = [(metric, protocol) for protocol in every for metric in every[protocol]]
        tables += [by_length(group, *both, name) for both in shown if subwords or both[0] != BITS_PER_BYTE]
    return tables


def markdown(results: Iterable[Result]) -> str:
    """Return a Markdown page with all tables of a study.

    Raises:
        UserError: if there are no results, or they cannot share tables.
    """
    results = list(results)
    sections = [f"# {in_markdown(', '.join(dict.fromkeys(r.study for r in results)))}\n", f"{made_with(results)}.\n"]
    for table in every_table(results):
        sections += [f"## {in_markdown(table.heading)}\n", table.markdown()]
    return "\n".join(sections)


def best_cells(table: Table) -> set[tuple[str, str]]:
    """Return the best cells of a table by length, as (row, column): those with the best mean that the text shows."""
    best: set[tuple[str, str]] = set()
    for column in table.frame.columns if table.best else ():
        means = {row: _mean_of(text) for row, text in table.frame[column].items()}
        known = [mean for row, mean in means.items() if mean is not None and row != "(guessing)"]
        if known and re.fullmatch(LENGTHS, column):
            first = min(known) if table.best == "least" else max(known)
            best |= {(row, column) for row, mean in means.items() if mean == first}
    return best


def _mean_of(text: str) -> float | None:
    found = re.match(r"[-+]?[\d.]+(e[-+]?\d+)?", str(text))
    return float(found[0]) if found else None


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


def made_with(results: list[Result]) -> str:
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


def _add_verdicts(frame: pandas.DataFrame, kept: list[Result]) -> list[str]:
    """Add the columns that judge each row, and return what they mean."""
    found, trained = curves(kept), {r.label: r.train_length for r in kept}
    near = f"at most {100 * TOLERANCE:g} % above that at L"
    frame["effective"] = [_effective(found[label], trained[label]) for label in frame.index]
    notes = [f"effective: the longest length up to which the mean is {near}"]
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


def _effective(curve: Curve, train_length: int) -> str:
    found = effective_length(curve, train_length)
    if found is None:
        return "–"
    length, exceeded = found
    return f"{'' if exceeded else '≥ '}{length_name(length, train_length)}"


def _shown(cell: object, missing: str = "–") -> str:
    return missing if cell is None else str(cell)
