"""A table as a terminal shows it: as wide as the window, and on its side or in blocks where that is not enough."""

import re
from collections.abc import Callable

import pandas
import rich.box
from rich.markup import escape
from rich.table import Table as RichTable


def blocks(frame: pandas.DataFrame, fits: Callable[[RichTable], bool]) -> list[RichTable]:
    """Split a table into as many columns at a time as fit, but at least one."""
    blocks, first = [], 0
    while first < len(frame.columns):
        last = first + 1
        while last < len(frame.columns) and fits(make_rich(frame.iloc[:, first : last + 1])):
            last += 1
        blocks.append(make_rich(frame.iloc[:, first:last]))
        first = last
    return blocks


def make_rich(frame: pandas.DataFrame, tall: bool = False) -> RichTable:
    """A table as it is; `tall`: with what is in a cell on several lines."""
    table = RichTable(box=rich.box.SIMPLE_HEAD)
    table.add_column(frame.index.name, overflow="fold")
    for name in frame.columns:
        table.add_column(escape(name), justify="right", overflow="fold")
    for label, cells in zip(frame.index, frame.to_numpy(), strict=True):
        cells = [re.sub(r" (±|\+-) ", r"\n\1 ", cell).replace(", ", ",\n") if tall else cell for cell in cells]
        table.add_row(escape(label), *map(escape, cells))
    return table
