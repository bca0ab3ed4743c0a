"""Writes the report of a study: a page, tables, figures and TensorBoard's view."""

from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from pezoo.escape import in_markdown, safe_names
from pezoo.files import replacing
from pezoo.report import heatmap, scorecard, table, tensorboard
from pezoo.report.captions import made_with
from pezoo.report.curves import draw_tasks
from pezoo.report.figure import save
from pezoo.report.findings import findings
from pezoo.report.grids import grids
from pezoo.report.groups import HEADLINES, groups, headline, matrices, metrics, select, words
from pezoo.report.lines import draw_beside_best, draw_lengths, draw_positions
from pezoo.report.page import About, Section, render
from pezoo.report.printed import Table
from pezoo.report.ranks import draw_ranks
from pezoo.report.shares import ACCURACIES
from pezoo.report.statistics import length_name
from pezoo.report.tradeoff import draw_cost
from pezoo.results import Result, to_csv
from pezoo.results.losses import Sources


class Picture(NamedTuple):
    """A figure, and the name of its file without the suffix."""

    group: str
    stem: str
    figure: Figure
    shows: tuple[str, str, str] | None = None
    """Group, metric (or "position") and protocol, of a figure that TensorBoard shows as well."""


def write_report(
    results: Iterable[Result],
    folder: str | Path,
    source: Sources,
    logdir: str | Path | None = None,
    about: About = About(),  # noqa: B008 (it is immutable)
) -> None:
    """Write everything that people look at, from results alone.

    `folder` then holds `report.html`, one page with all of it; `report.md`, `results.csv`, `table.tex`; `claims.md`, if
    the study tests published findings; and figures, each as SVG, PNG and PDF. The name of a figure says group, what it
    shows, and the protocol unless that is the group's first: `curves` and `loss_by_position` of language modelling,
    `passkey_exact_match`, `passkey_exact_match_by_depth`, `grid_4L`. Several tasks share `exact_match_by_task`; many
    share `exact_match_by_length` as well, and have no curves of their own.

    Args:
        results: results of one study.
        folder: where tables and figures go.
        source: where losses by position are, as in `pezoo.results.losses.losses_of`.
        logdir: the study's TensorBoard folder; without it nothing is written for TensorBoard.
        about: what else is known of the study.

    Raises:
        UserError: if there are no results, or they cannot share tables.
        OSError: if something cannot be written.
    """
    results, folder = list(results), Path(folder)
    answer = findings(results, source)
    ranking, *tables = _tables(results, source, about)
    sections: dict[str, Section] = {}
    drawn: dict[tuple[str, str, str], Figure] = {}
    for picture in _pictures(results, source):
        svg = save(picture.figure, folder / picture.stem)[0]
        section = sections.setdefault(picture.group, Section(picture.group or "Figures"))
        section.pictures[words(picture.stem)] = svg.read_text(encoding="utf-8")
        if picture.shows is not None and logdir is not None:
            drawn[picture.shows] = picture.figure
    judged = scorecard.of_study(results, source)
    scorecard.write(judged, folder)
    findings_of_others = [Section("Published findings", tables=[scorecard.table(judged)])] if judged else []
    every = [*sections.values(), *findings_of_others, Section("All tables", tables=tables)]
    texts = {
        "report.html": render(results, answer, ranking, every, about),
        "report.md": _markdown(results, answer, [ranking, *tables], about),
        "table.tex": "\n".join(one.latex() for one in [ranking, *tables]),
        "results.csv": to_csv(results),
    }
    for name, text in texts.items():
        with replacing(folder / name) as file:
            file.write(text.encode())
    if logdir is not None:
        tensorboard.write(results, logdir, source, drawn, about.baseline)


def markdown(results: Iterable[Result], source: Sources | None = None, about: About = About()) -> str:  # noqa: B008
    """Return the report in Markdown: what it says, and all tables.

    Args:
        results: results of one study.
        source: where losses are, as in `pezoo.results.losses.losses_of`; None: there are none.
        about: what else is known of the study.

    Raises:
        UserError: if there are no results, or they cannot share tables.
    """
    results = list(results)
    return _markdown(results, findings(results, source), _tables(results, source, about), about)


def _tables(results: list[Result], source: Sources | None, about: About) -> list[Table]:
    return [table.ranking(results, about.baseline, source), *table.every_table(results, about.baseline, source)]


def _markdown(results: list[Result], answer: list[str], tables: list[Table], about: About) -> str:
    lines = [f"# {in_markdown(', '.join(dict.fromkeys(r.study for r in results)))}", ""]
    lines += [in_markdown(about.question), ""] if about.question else []
    lines += [*(f"- {in_markdown(sentence)}" for sentence in answer), "", f"{made_with(results)}.", ""]
    sections = [f"## {in_markdown(one.heading)}\n\n{one.markdown()}" for one in tables]
    return "\n".join([*lines, *sections])


def _pictures(results: list[Result], source: Sources) -> Iterator[Picture]:
    """Yield all figures of a study: those over tasks, then those of each group."""
    found = groups(results)
    every = found | matrices(results)
    parts = dict.fromkeys(group[0].part for group in found.values())
    stems = {name: f"{stem}_" if name else "" for name, stem in safe_names(every | parts, space="_").items()}
    done: dict[str, set[str]] = {name: set() for name in every}
    for metric in ACCURACIES:
        for names in table.score_groups(found, metric):
            tasks = table.by_task(names)
            part = found[next(iter(names))][0].part
            yield Picture(part, f"{stems[part]}{metric}_by_task", heatmap.draw_scores(tasks))
            if (ranks := draw_ranks(tasks)) is not None:
                yield Picture(part, f"{stems[part]}{metric}_ranks", ranks)
            if len(tasks) > table.MANY:
                yield Picture(part, f"{stems[part]}{metric}_by_length", draw_tasks(tasks))
                for name in names:
                    done[name].add(metric)
    for name, group in every.items():
        for stem, figure, *shows in _of_group(group, source, done[name]):
            yield Picture(name, f"{stems[name]}{stem}", figure, (name, *shows) if shows else None)


def _of_group(group: list[Result], source: Sources, done: Container[str]) -> Iterator[tuple[Any, ...]]:
    """Yield the figures of one group, but for the curves of metrics that are done.

    With each comes its name, and where TensorBoard shows it too, its metric (or "position") and protocol.
    """
    found = metrics(group)
    metric, protocol = headline(found)
    kept = select(group, metric, protocol)
    for length in sorted({length for length, _ in grids(kept) if length > kept[0].train_length}, reverse=True):
        at = length_name(length, kept[0].train_length).replace(" = ", "")
        yield f"grid_{at}", heatmap.draw_grid(kept, metric, protocol, length)
    for protocol, names in found.items():
        end = "" if protocol == next(iter(found)) else "_" + safe_names([protocol], space="_")[protocol]
        drawn = [m for m in HEADLINES if m in names] or [m for m in names if "_at_" not in m]
        for metric in [m for m in drawn if m not in done]:
            figure = draw_lengths(select(group, metric, protocol))
            yield f"{'curves' if metric == 'perplexity' else metric}{end}", figure, metric, protocol
        if any(r.depth is not None and (r.metric, r.protocol) == ("exact_match", protocol) for r in group):
            yield f"exact_match_by_depth{end}", heatmap.draw_depth(group, protocol=protocol)
        if "loss" in names and (figure := draw_positions(select(group, "loss", protocol), source)) is not None:
            yield f"loss_by_position{end}", figure, "position", protocol
    if (ratios := draw_beside_best(kept)) is not None:
        yield "beside_the_best", ratios
    if kept[0].metric not in done and (cost := draw_cost(kept)) is not None:
        yield "cost", cost
