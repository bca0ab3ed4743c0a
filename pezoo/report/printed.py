"""A table as it is printed: in a terminal, in Markdown, in LaTeX."""

from dataclasses import dataclass

import pandas
from rich.console import Console
from rich.table import Table as RichTable

from pezoo.escape import in_markdown, in_terminal
from pezoo.report.terminal import blocks, make_rich

BESIDE = "against baseline"
"""The column that compares each scheme with the baseline."""
GUESSING = "(guessing)"
"""The row of what guessing scores."""


@dataclass(frozen=True)
class Table:
    """A table, with what it shows above it and reasons below it."""

    heading: str
    caption: str
    frame: pandas.DataFrame
    """Texts; the index has a name."""
    notes: tuple[str, ...] = ()
    means: pandas.DataFrame | None = None
    """The numbers behind the columns that are compared: the rows of `frame`, NaN where a seed is lost."""
    best: str = ""
    """Whether the "least" or the "most" of these is best; empty: nothing is."""

    def markdown(self) -> str:
        """Return the table without its heading; the text ends in a newline."""
        frame = self.frame
        rows = [[frame.index.name, *frame.columns]]
        rows += [[label, *cells] for label, cells in zip(frame.index, frame.to_numpy(), strict=True)]
        lines = ["| " + " | ".join(map(in_markdown, row)) + " |" for row in rows]
        lines.insert(1, "| " + " | ".join(["---", *["---:"] * len(frame.columns)]) + " |")
        below = [f"- {in_markdown(note)}" for note in self.notes]
        return "\n".join([f"{in_markdown(self.caption)}.", "", *lines, *([""] if below else []), *below]) + "\n"

    def latex(self) -> str:
        """Return the table for LaTeX with the package booktabs; the best of each length is bold."""
        best = best_cells(self)
        frame = self.frame.map(str)
        for row, column in best:
            frame.loc[row, column] = f"\0{frame.loc[row, column]}\1"
        text = frame.style.format(_in_latex).format_index(_in_latex).format_index(_in_latex, axis=1)
        plain = f"{self.caption}."
        made = text.to_latex(hrules=True, caption=_in_latex(plain), column_format="l" + "r" * len(frame.columns))
        return f"% {' '.join(self.heading.split())}\n{made}"

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


def best_cells(table: Table) -> set[tuple[str, str]]:
    """Return the best cells of a table, as (row, column)."""
    if table.means is None or not table.best:
        return set()
    means = table.means.drop(index=GUESSING, errors="ignore")
    first = means.min() if table.best == "least" else means.max()
    return {(row, column) for column in means for row in means.index[means[column] == first[column]]}


_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"~": r"\textasciitilde{}", "^": r"\^{}", "\\": r"\textbackslash{}", "<": "$<$", ">": "$>$", "–": "--"},
    **{"±": r"$\pm$", "≥": r"$\geq$", "×": r"$\times$", "\0": r"\textbf{", "\1": "}"},
}
"""Signs as LaTeX wants them; what stands between 0 and 1, as characters, is bold."""


def _in_latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in str(text))
