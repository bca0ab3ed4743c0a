"""`pezoo run`, and `pezoo.run`, which does the same from Python."""

import dataclasses
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pezoo.cli.report import show_answer
from pezoo.cli.shared import add_plugin, escape, make_console, make_parser, say, shown, uncollected
from pezoo.errors import UserError
from pezoo.escape import in_terminal

if TYPE_CHECKING:
    from pezoo.results import Result
    from pezoo.study import Plan, Study

LISTED = 100
"""Cells that a dry run lists at most; in a larger study those come first that are left to do."""


def run(
    recipe: str | Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    out: str | Path | None = None,
    plugins: Iterable[str | Path] = (),
    replace: bool = False,
) -> "list[Result]":
    """Run a recipe, or go on with it: train what is not trained, test it, write tables and figures.

    Args:
        recipe: path of a YAML file, bare name of one that comes with pezoo, folder of a study to go on with, or keys.
        overrides: `key=value` texts, such as "train.steps=100".
        out: folder of the study; default: that of the study to go on with, else runs/<study>, or runs/<study>-<size>
            for another size than cpu.
        plugins: Python files that register encodings, extensions or tasks.
        replace: whether another study in that folder may be replaced; its trained models stay.

    Returns:
        What `results.jsonl` holds.

    Raises:
        UserError: if the recipe, the data or the folder is wrong; nothing is then written.
    """
    refuse_windows()
    from pezoo.study import Study

    return Study.prepare(recipe, overrides, out, plugins, replace).run(report=write_report)


def refuse_windows() -> None:
    """Say where studies run; their processes need pipes and signals that Windows does not have."""
    if sys.platform == "win32":
        raise UserError("studies run on Linux and macOS; on Windows, run pezoo in WSL, the Windows Subsystem for Linux")


def write_report(study: "Study", results: "list[Result]") -> None:
    """Write the page, tables, figures and TensorBoard's extrapolation view of a study."""
    from pezoo.report.finished import about
    from pezoo.report.write import write_report as write

    told = about(study.recipe.to_dict(), f"pezoo run {shlex.quote(str(study.out))}")
    write(results, study.out / "report", study.store.folder, study.out / "tensorboard", told)


def run_study(argv: list[str]) -> int:
    """Train short, test long; safe to stop and to run again."""
    parser = make_parser(
        "run",
        run_study,
        "pezoo run quickstart",
        "pezoo run quickstart --dry-run",
        "pezoo run quickstart 'schemes=[rope, alibi]' 'seeds=[0]' train.steps=200 --out runs/mine",
        "pezoo run runs/mine train.steps=400",
        "pezoo run my_recipe.yaml data.corpus=text data.path=~/books --plugin my_encoding.py",
        note="Any key of the recipe can be set: dotted, list items by number (schemes.0=alibi).\n"
        "What is finished is not done again: a scheme that is added is done alone.\n"
        "Where the code of a plug-in changes, its schemes are trained anew.\n\n",
    )
    parser.add_argument(
        "recipe",
        metavar="RECIPE|DIR",
        help="a YAML file, the name of a recipe that comes with pezoo, or the folder of a study to go on with",
    )
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="sets a key of the recipe")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder of the study (default: runs/<study>, with -<size> for a size other than cpu)",
    )
    parser.add_argument(
        "--launcher",
        choices=("local", "ray", "slurm"),
        help="where cells run: here, on Ray, or as jobs of Slurm (the key launcher; see docs/cluster.md)",
    )
    parser.add_argument("--replace", action="store_true", help="if the folder holds another study, replace it")
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be done and how long it takes, and do nothing"
    )
    add_plugin(parser)
    try:
        args = parser.parse_intermixed_args(argv)
    except UserError:
        refuse_dashes(argv)
        raise

    refuse_windows()
    with uncollected():
        from pezoo.study import Study

        overrides = args.overrides + ([f"launcher={args.launcher}"] if args.launcher else [])
        study = Study.prepare(args.recipe, overrides, args.out, args.plugin, args.replace)
    return carry_out(study, args.dry_run)


def carry_out(study: "Study", dry_run: bool) -> int:
    """Run a study, or only show what it would do; returns the exit code."""
    if dry_run:
        _show_plan(study)
        return 0
    results = study.run(report=write_report, try_first=True)
    _show_results(study, results)
    return 1 if study.failures else 0


def refuse_dashes(argv: list[str], dotted: bool = False) -> None:
    """Say how a key of the recipe is set, where it was typed like an option; `dotted`: a key with a dot alone."""
    from pezoo.study.recipe import Recipe

    keys = {field.name for field in dataclasses.fields(Recipe)} - {"launcher"}
    for word, after in pairwise([*argv, ""]):
        key, _, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and key.partition(".")[0] in keys and ("." in key or not dotted):
            typed = shlex.quote(f"{key}={value or after or '...'}")
            raise UserError(f"{word} is no option: keys of the recipe have no dashes; type {typed}")


def _show_plan(study: "Study") -> None:
    from rich.table import Table

    plan, console = study.plan, make_console()
    if line := study.changes():
        print(in_terminal(line), file=sys.stderr)
    table = Table(
        "cell",
        "",
        "state",
        title=escape(shown(f"{plan.recipe.study} in {study.out}")),
        title_justify="left",
    )
    estimate = study.estimate()
    done = [key for key in plan.cells if key not in estimate.todo]
    for key in plan.cells if len(plan.cells) <= LISTED else [*estimate.todo, *done][:LISTED]:
        cell = plan.cells[key]
        table.add_row(key, escape(shown(cell.title)), f"to {cell.kind}" if key in estimate.todo else "done")
    console.print(table)
    if len(plan.cells) > LISTED:
        console.print(f"... and {len(plan.cells) - LISTED:,} more")
    said = [f"{len(plan.cells):,} cells; left to do: {plan.summary(estimate.todo)}"]
    if estimate.todo:
        if seats := study.seats(estimate.todo):
            console.print(seats)
        study.try_some(estimate)
        said += [estimate.say(), estimate.basis()]
        if plan.recipe.workers > 1 and (estimate.hours() or 0) >= 1:
            said.append(_scheduled(plan, estimate.rests() or {}))
    for line in filter(None, said):
        console.print(line, soft_wrap=True)


def _scheduled(plan: "Plan", seconds: Mapping[str, float]) -> str:
    """What a simulated schedule says of the time to the end, without and with workers that fail."""
    from pezoo.study.estimate import duration
    from pezoo.study.schedule import expected, simulate

    workers, runs = plan.recipe.workers, 20 if len(seconds) < 1000 else 3  # the failures of many cells even out
    save = 60 * min(plan.recipe.save_minutes, 1e9)  # .inf: only when it is stopped
    smooth = simulate(plan.cells, seconds, workers)
    rough = expected(plan.cells, seconds, workers, 24 * 3600, runs, save_seconds=save)
    return f"schedule of {workers} workers: {duration(smooth)}; {duration(rough)} if each of them fails once a day"


def _show_results(study: "Study", results: "list[Result]") -> None:
    from pezoo.report import table
    from pezoo.report.findings import findings
    from pezoo.report.tensorboard import ADDRESS

    for one in table.overview(results, study.recipe.baseline, study.store.folder):
        one.show()
    show_answer(findings(results, study.store.folder))
    lines = [f"results:     {study.results_path}", f"report:      {study.out / 'report' / 'report.html'}"]
    for key, failure in study.failures.items():
        title = study.plan.cells[key].title
        lines.append(f"failed:      {title}: {failure.reason}; see {study.out / 'logs'}")
    lines.append(f"TensorBoard: {_tensorboard()} --logdir {shlex.quote(str(study.out / 'tensorboard'))}")
    lines.append(f"             then open {ADDRESS}")
    for line in lines:
        say(escape(shown(line)))


def _tensorboard() -> str:
    """The command as it can be typed here, with its folder if that is not on the path."""
    if shutil.which("tensorboard"):
        return "tensorboard"
    beside = Path(sys.executable).with_name("tensorboard")
    with_folder = os.path.relpath(beside) if Path.cwd() in beside.parents else str(beside)
    return with_folder if beside.exists() else f"{sys.executable} -m tensorboard.main"
