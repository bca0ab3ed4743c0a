"""Tables: a row per scheme, a column per test length."""

from collections.abc import Iterable
from pathlib import Path

import pandas
import rich.box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pezoo.report.statistics import Summary, curves, length_name, metrics, select
from pezoo.results import Result, replacing


def pivot(results: Iterable[Result], metric: str = "perplexity", protocol: str = "prefix") -> pandas.DataFrame:
    """Return one metric as a frame of summaries over seeds.

    Args:
        results: results of one study.
        metric: what to show.
        protocol: how it was tested.

    Returns:
        Rows: labels, in order of first appearance. Columns: "L", "2L", ... ascending. Cells: a
        `Summary`, or None where there is no result yet; `str(summary)` is "5.23 ± 0.04",
        "undefined", "12.3, diverged 1/2".

    Raises:
        UserError: if there is nothing to show, or the results cannot share a table.
    """
    kept = select(results, metric, protocol)
    lengths = sorted({r.test_length for r in kept})
    rows = curves(kept)
    return pandas.DataFrame(
        [[rows[label].get(length) for length in lengths] for label in rows],
        index=pandas.Index(list(rows), name="scheme"),
        columns=[length_name(length, kept[0].train_length) for length in lengths],
        dtype=object,
    )


def caption(results: Iterable[Result], metric: str = "perplexity", protocol: str = "prefix") -> str:
    """Return in one line what a table of one metric shows, and under which conditions."""
    kept = select(results, metric, protocol)
    seeds = len({r.seed for r in kept})
    over = f"mean ± sample standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    name = metric.replace("_", " ").capitalize()
    one = kept[0]
    facts = [f"{name} on {one.corpus}", f"{protocol} protocol", f"L = {one.train_length} tokens"]
    return "; ".join([*facts, over])


def notes(results: Iterable[Result], metric: str = "perplexity", protocol: str = "prefix") -> list[str]:
    """Return a line for each reason why a scheme has no value, naming the lengths."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for r in sorted(select(results, metric, protocol), key=lambda r: r.test_length):
        if r.status != "ok":
            lengths = found.setdefault((r.label, r.status.replace("_", " "), r.reason), [])
            if (name := length_name(r.test_length, r.train_length)) not in lengths:
                lengths.append(name)
    return [
        f"{label}: {status} at {', '.join(lengths)}: {reason}" for (label, status, reason), lengths in found.items()
    ]


def show(
    results: Iterable[Result],
    metric: str = "perplexity",
    protocol: str = "prefix",
    console: Console | None = None,
) -> None:
    """Print a table to the terminal.

    Args:
        results: results of one study.
        metric: what to show.
        protocol: how it was tested.
        console: where to print; standard output by default, never folded where that is no terminal.

    Raises:
        UserError: if there is nothing to show, or the results cannot share a table.
    """
    results = list(results)
    frame = pivot(results, metric, protocol)
    console = console or Console(highlight=False)
    table = _rich_table(frame)
    wanted = console.measure(table, options=console.options.update(width=1000)).maximum
    if wanted > console.width:
        if console.is_terminal:
            table = _rich_table(frame, tall=True)
        else:
            console = Console(file=console.file, width=wanted, highlight=False)
    console.print(caption(results, metric, protocol), markup=False, soft_wrap=True)
    console.print(table)
    for note in notes(results, metric, protocol):
        console.print(note, markup=False, soft_wrap=True)


def markdown(results: Iterable[Result], metric: str = "perplexity", protocol: str = "prefix") -> str:
    """Return a table in Markdown, with what it shows above it and reasons below it.

    Args:
        results: results of one study.
        metric: what to show.
        protocol: how it was tested.

    Returns:
        Markdown that ends in a newline.

    Raises:
        UserError: if there is nothing to show, or the results cannot share a table.
    """
    results = list(results)
    frame = pivot(results, metric, protocol)
    rows = [["scheme", *frame.columns], ["---", *["---:"] * len(frame.columns)]]
    rows += [[label, *map(_shown, frame.loc[label])] for label in frame.index]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    below = [f"- {note}" for note in notes(results, metric, protocol)]
    above = [f"{caption(results, metric, protocol)}.", ""]
    return "\n".join([*above, *lines, *([""] if below else []), *below]) + "\n"


def write(results: Iterable[Result], path: str | Path) -> None:
    """Write a Markdown file with a table for each metric and protocol that the results hold.

    Args:
        results: results of one study.
        path: the file to write or replace.

    Raises:
        UserError: if there are no results, or they cannot share tables.
        OSError: if the file cannot be written.
    """
    results = list(results)
    title = ", ".join(dict.fromkeys(r.study for r in results))
    sections = [f"# {title}\n"]
    for protocol, names in metrics(results).items():
        for metric in names:
            heading = f"## {metric.replace('_', ' ').capitalize()}, {protocol} protocol\n"
            sections += [heading, markdown(results, metric, protocol)]
    with replacing(path) as file:
        file.write("\n".join(sections).encode())


def _shown(summary: Summary | None) -> str:
    return "–" if summary is None else str(summary)


def _rich_table(frame: pandas.DataFrame, tall: bool = False) -> Table:
    table = Table(box=rich.box.SIMPLE_HEAD)
    table.add_column("scheme")
    for name in frame.columns:
        table.add_column(name, justify="right")
    for label in frame.index:
        cells = [_shown(summary) for summary in frame.loc[label]]
        cells = [cell.replace(" ± ", "\n± ").replace(", ", ",\n") if tall else cell for cell in cells]
        table.add_row(escape(label), *cells)
    return table
