"""A table: its texts, its heading and its caption, on a page and in a terminal."""

from dataclasses import dataclass

import pandas
from rich.console import Console
from rich.table import Table as RichTable

from pezoo.escape import in_markdown, in_terminal
from pezoo.report.groups import chance, words
from pezoo.report.statistics import ACCURACIES, length_name, scale_of
from pezoo.report.terminal import blocks, make_rich
from pezoo.results import LANGUAGE_MODELLING, Result


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


def metric_name(result: Result) -> str:
    """Return the metric at the beginning of a caption, after the part."""
    name = words(result.metric)
    return f"{result.part}: {name}" if result.part else name.capitalize()


def make_heading(name: str, what: str, *facts: str) -> str:
    """Return what stands above a table: the group, what it shows, and how that was tested."""
    text = ", ".join([words(what), *facts])
    return f"{name}: {text}" if name else text[0].upper() + text[1:]


def length_among(length: int, kept: list[Result]) -> str:
    """Return what a test length is called in a table: "2L", or in tokens where training lengths differ."""
    trained = {r.train_length for r in kept}
    return str(length) if len(trained) > 1 else length_name(length, trained.pop())


def seeds_in_words(kept: list[Result]) -> str:
    """Return in words what the numbers of a table are made of."""
    seeds = len({r.seed for r in kept})
    if seeds == 1:
        return "one seed"
    if scale_of(kept[0].metric) == "log":
        return f"geometric mean ± sample standard deviation of the loss over {seeds} seeds (1% is 0.01 nats)"
    return f"mean ± sample standard deviation over {seeds} seeds"


def make_caption(kept: list[Result]) -> str:
    """Return in one line what a table of one metric shows, and under which conditions."""
    one, trained = kept[0], {r.train_length for r in kept}
    unit = " tokens" if one.task == LANGUAGE_MODELLING else ""
    percent = " in percent" if one.metric in ACCURACIES else ""
    columns = (
        f"columns: tested length{' in tokens' if unit else ''}" if len(trained) > 1 else f"L = {trained.pop()}{unit}"
    )
    facts = [f"{metric_name(one)}{percent} on {one.corpus}", f"{one.protocol} protocol", columns]
    facts += [] if one.test_precision == "float32" else [f"tested in {one.test_precision}"]
    guessed = chance(one)
    facts += [] if guessed is None else [f"guessing gets {100 * guessed:.1f}"]
    return "; ".join([*facts, seeds_in_words(kept)])


def text_of(cell: object, missing: str = "–") -> str:
    """Return a cell as text."""
    return missing if cell is None else str(cell)
