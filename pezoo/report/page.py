"""The report as one HTML page: it holds all that it shows, and works offline, on a phone, in light and dark."""

import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from pezoo.escape import in_figure
from pezoo.report.figure import SAVING, settle, styles
from pezoo.report.findings import headline_results, highlights
from pezoo.report.groups import groups, words
from pezoo.report.lines import draw_named
from pezoo.report.statistics import curves, length_name
from pezoo.report.table import Table, best_cells, made_with
from pezoo.results import Result

TEMPLATE = Path(__file__).with_name("page.html.j2")


def render(
    results: Iterable[Result],
    answer: Iterable[str],
    first: Table,
    sections: Iterable[dict[str, Any]],
    question: str = "",
    baseline: str | None = None,
    recipe: str = "",
    command: str = "",
) -> str:
    """Return the page.

    Args:
        results: results of one study.
        answer: what it says, in sentences.
        first: the table of the first screen.
        sections: what is folded: `name`, `text`, `pictures` (name -> figure) and `tables`.
        question: what the study asks.
        baseline: label that others are compared with.
        recipe: the recipe as YAML.
        command: what makes the page again.
    """
    results = list(results)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    chart = _chart(next(iter(groups(results).values())), baseline)
    studies = ", ".join(dict.fromkeys(r.study for r in results))
    shown = [
        {
            "name": section["name"],
            "text": section.get("text", ""),
            "pictures": [
                {"name": name, "svg": inline(figure, f"s{i}p{k}-")}
                for k, (name, figure) in enumerate(section.get("pictures", {}).items())
            ],
            "tables": [_rows(table) for table in section.get("tables", ())],
        }
        for i, section in enumerate(sections)
    ]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=studies,
        question=question,
        answer=list(answer),
        first=_rows(first),
        chart=chart,
        sections=shown,
        made_with=made_with(results),
        recipe=recipe,
        command=command,
        values=_script(chart["lines"]),
    )


def inline(figure: Figure, prefix: str) -> Markup:
    """Return a figure as SVG that can stand in a page beside others.

    Args:
        figure: what to show.
        prefix: goes before all ids, which must differ in a page.
    """
    file = io.StringIO()
    with matplotlib.rc_context(SAVING):
        settle(figure)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}", svg)
    return Markup(re.sub(r'href="#', f'href="#{prefix}', svg))


def _chart(group: list[Result], baseline: str | None) -> dict[str, Any]:
    """Return the chart of the first screen: its two forms, and what can be said of each line."""
    kept = headline_results(group)
    found, looks, named = curves(kept), styles(kept), highlights(kept, baseline)
    metric, protocol = kept[0].metric, kept[0].protocol
    forms = {}
    for form, wide in (("wide", True), ("narrow", False)):
        svg = str(inline(draw_named(kept, metric, protocol, list(found), wide, apart=named), f"{form[0]}-"))
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
                ends = summary.interval()
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
