"""Writes the report of a study: tables, figures and TensorBoard's view."""

from collections.abc import Container, Iterable
from pathlib import Path

from pezoo.escape import safe_names
from pezoo.files import replacing
from pezoo.report import heatmap, table, tensorboard
from pezoo.report.curves import draw_by_position, draw_curves, draw_tasks
from pezoo.report.figure import readable, save
from pezoo.report.groups import HEADLINES, groups, headline, matrices, metrics, select
from pezoo.report.intervals import losses_by_label
from pezoo.report.statistics import ACCURACIES, grids, length_name
from pezoo.results import Result


def write_report(
    results: Iterable[Result],
    folder: str | Path,
    source: str | Path,
    logdir: str | Path | None = None,
    baseline: str = "",
) -> None:
    """Write everything that people look at, from results alone.

    `folder` then holds `table.md` and figures, each as SVG and PNG. The name of a figure says group, what it shows,
    and the protocol unless that is the group's first: `curves` and `loss_by_position` of language modelling,
    `passkey_exact_match`, `passkey_exact_match_by_depth`, `grid_4L`. Several tasks share
    `exact_match_by_task`; many share `exact_match_by_length` as well, and have no curves of their own.

    Args:
        results: results of one study.
        folder: where tables and figures go.
        source: where losses by position are: the study's folder `cells`, or the file of a published study.
        logdir: the study's TensorBoard folder; without it nothing is written for TensorBoard.
        baseline: the label that tables compare with; empty: the best scheme at L.

    Raises:
        UserError: if there are no results, or they cannot share tables.
        OSError: if something cannot be written.
    """
    results, folder = list(results), Path(folder)
    with replacing(folder / "table.md") as file:
        file.write(table.markdown(results, baseline, source).encode())
    found = groups(results)
    every = found | matrices(results)
    parts = dict.fromkeys(group[0].part for group in found.values())
    stems = {name: f"{stem}_" if name else "" for name, stem in safe_names(every | parts, space="_").items()}
    done: dict[str, set[str]] = {name: set() for name in every}
    for metric in ACCURACIES:
        for names in table.score_groups(found, metric):
            tasks = table.by_task(names)
            stem = stems[found[next(iter(names))][0].part]
            save(heatmap.draw_scores(tasks), folder / f"{stem}{metric}_by_task")
            if len(tasks) > table.MANY:
                save(draw_tasks(tasks), folder / f"{stem}{metric}_by_length")
                for name in names:
                    done[name].add(metric)
    for name, group in every.items():
        _draw(group, folder, stems[name], source, done[name])
    if logdir is not None:
        tensorboard.write(results, logdir, source)


def _draw(group: list[Result], folder: Path, stem: str, source: str | Path, done: Container[str]) -> None:
    """Draw the figures of one group, but for the curves of metrics that are done."""
    found = metrics(group)
    for protocol, names in found.items():
        end = "" if protocol == next(iter(found)) else "_" + safe_names([protocol], space="_")[protocol]
        drawn = [m for m in HEADLINES if m in names] or [m for m in names if "_at_" not in m]
        for metric in [m for m in drawn if m not in done]:
            what = "curves" if metric == "perplexity" else metric
            for more, some in _readable(select(group, metric, protocol)):
                save(draw_curves(some, metric, protocol), folder / f"{stem}{what}{end}{more}")
        if any(r.depth is not None and (r.metric, r.protocol) == ("exact_match", protocol) for r in group):
            save(heatmap.draw_depth(group, protocol=protocol), folder / f"{stem}exact_match_by_depth{end}")
        if "loss" in names and losses_by_label(group, source, protocol):
            for more, some in _readable(select(group, "loss", protocol)):
                save(draw_by_position(some, source, protocol), folder / f"{stem}loss_by_position{end}{more}")
    metric, protocol = headline(found)
    kept = select(group, metric, protocol)
    for length in sorted({length for length, _ in grids(kept) if length > kept[0].train_length}):
        at = length_name(length, kept[0].train_length).replace(" = ", "")
        save(heatmap.draw_grid(kept, metric, protocol, length), folder / f"{stem}grid_{at}")


def _readable(kept: list[Result]) -> list[tuple[str, list[Result]]]:
    """Return the results under the end of their file's name, by encoding if they would make too many curves."""
    if readable(kept):
        return [("", kept)]
    ends = safe_names({r.encoding: None for r in kept}, space="_")
    return [(f"_{end}", [r for r in kept if r.encoding == encoding]) for encoding, end in ends.items()]
