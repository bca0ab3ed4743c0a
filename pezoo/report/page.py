"""The report as one HTML page: it holds all that it shows, and works offline, on a phone, in light and dark."""

import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from pezoo.escape import in_figure
from pezoo.report.captions import made_with
from pezoo.report.figure import SAVING, settle, styles
from pezoo.report.findings import headline_results, highlights
from pezoo.report.groups import groups, words
from pezoo.report.lines import draw_named, lines_by_length
from pezoo.report.printed import Table, best_cells
from pezoo.report.statistics import curves, length_name
from pezoo.results import Result

MOST_BYTES = 2_000_000
"""So much of pictures is in the page; the others lie beside it."""
TEMPLATE = Path(__file__).with_name("page.html.j2")


class About(NamedTuple):
    """What a report says of its study beside the results."""

    question: str = ""
    recipe: str = ""
    """YAML."""
    baseline: str = ""
    """Label that others are compared with; empty: the best in range."""
    command: str = "pezoo report DIR"
    """What writes the report again."""


@dataclass
class Section:
    """What the page shows folded, under one name."""

    name: str
    pictures: dict[str, str] = field(default_factory=dict)
    """What each shows -> SVG."""
    tables: Sequence[Table] = ()


def render(
    results: Iterable[Result], answer: Iterable[str], first: Table, sections: Iterable[Section], about: About
) -> str:
    """Return the page.

    Args:
        results: results of one study.
        answer: what it says, in sentences.
        first: the table of the first screen.
        sections: what is folded.
        about: what else is known of the study.
    """
    results, shown, room = list(results), [], MOST_BYTES
    for i, section in enumerate(sections):
        pictures, left_out = [], []
        for k, (name, svg) in enumerate(section.pictures.items()):
            inside = within(svg, f"s{i}p{k}-")
            room -= len(inside)
            pictures += [{"name": name, "svg": inside}] * (room > 0)
            left_out += [name] * (room <= 0)
        tables = [_rows(table) for table in section.tables]
        shown.append({"name": section.name, "pictures": pictures, "left_out": left_out, "tables": tables})
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    chart = _chart(next(iter(groups(results).values())), about.baseline)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=", ".join(dict.fromkeys(r.study for r in results)),
        about=about,
        answer=list(answer),
        first=_rows(first),
        chart=chart,
        sections=shown,
        made_with=made_with(results),
        values=_script(chart["lines"]),
    )


def drawn(figure: Figure) -> str:
    """Return a figure as SVG."""
    file = io.StringIO()
    with matplotlib.rc_context(SAVING):
        settle(figure)
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def within(svg: str, prefix: str) -> Markup:
    """Return an SVG that can stand in a page beside others: as wide as there is room, on the page's own ground.

    Args:
        svg: as matplotlib writes it.
        prefix: goes before all ids, which must differ in a page.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata.*?</metadata>", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    svg = re.sub(r' (width|height)="[^"]*"', "", head) + ">" + rest
    return Markup(re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", svg))


def _chart(group: list[Result], baseline: str) -> dict[str, Any]:
    """Return the chart of the first screen: its two forms, and what can be said of each line."""
    kept = headline_results(group)
    found, looks, named = curves(kept), styles(kept), highlights(kept, baseline)
    metric, protocol = kept[0].metric, kept[0].protocol
    forms, lines_of = {}, lines_by_length(kept)
    for form, wide in (("wide", True), ("narrow", False)):
        svg = str(within(drawn(draw_named(kept, lines_of, list(found), wide, apart=named)), f"{form[0]}-"))
        for i in (i for i, label in enumerate(found) if label not in named):
            for kind, state in (("line", "off"), ("band", "gone"), ("name", "gone")):
                own = f'id="{form[0]}-{kind}-{i}"'
                svg = svg.replace(own, f'{own} class="{state}"')
        forms[form] = Markup(svg)
    lines = []
    for label, curve in found.items():
        points = []
        for length, summary in curve.items():
            if summary.mean is not None:
                ends = summary.interval() if summary.seeds > 2 else None  # of two it is too wide to tell anything
                between = "" if ends is None else f", 95 % {ends[0]:.4g} to {ends[1]:.4g}"
                points.append(f"{length_name(length, kept[0].train_length)} = {length}: {summary}{between}")
        shown = label in named
        lines.append({"label": in_figure(label), "colour": looks[label].colour, "shown": shown, "points": points})
    seeds = len({r.seed for r in kept})
    caption = f"{words(metric).capitalize()} by test length, protocol {protocol}, {seeds} seed{'s' * (seeds > 1)}"
    return {"caption": caption, "lines": lines, **forms}


def _rows(table: Table) -> dict[str, Any]:
    """Return a table as the page wants it, with the best of each column marked."""
    best = best_cells(table)
    rows = [
        {
            "name": name,
            "cells": [
                {"text": str(text), "best": (name, column) in best}
                for column, text in zip(table.frame.columns, cells, strict=True)
            ],
        }
        for name, cells in zip(table.frame.index, table.frame.to_numpy(), strict=True)
    ]
    return {
        "heading": table.heading,
        "caption": table.caption,
        "frame": table.frame,
        "rows": rows,
        "notes": table.notes,
    }


def _script(lines: Iterable[dict[str, Any]]) -> Markup:
    """Return what the page's script reads, so that no text in it can end the element that holds it."""
    data = json.dumps([{"label": one["label"], "points": one["points"]} for one in lines], ensure_ascii=True)
    return Markup(data.replace("<", "\\u003c").replace("&", "\\u0026").replace(">", "\\u003e"))
