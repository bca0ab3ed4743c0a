"""`pezoo report`, and `pezoo compare`, which shows what cannot be one report."""

from pathlib import Path

from pezoo.cli.shared import escape, make_parser, say, shown
from pezoo.errors import UserError


def report(argv: list[str]) -> int:
    """Write the report of a finished study anew, or one report of several studies."""
    parser = make_parser(
        "report",
        report,
        "pezoo report runs/quickstart",
        "pezoo report runs/seeds_0_to_2 runs/seeds_3_to_5 --out runs/together",
        "pezoo report experiments/results/survey --out runs/survey_report",
        note="`pezoo run` does this at its end. Several studies must share text, model, training and testing.\n\n",
    )
    parser.add_argument("folders", metavar="DIR", nargs="+", help="folder of a study, with its results")
    parser.add_argument("--out", metavar="FOLDER", help="where the report goes (default: DIR/report; several need one)")
    args = parser.parse_args(argv)

    from pezoo.report import scorecard, table
    from pezoo.report.finished import load

    if len(args.folders) > 1 and args.out is None:
        raise UserError(f"one report of {len(args.folders)} studies needs a folder of its own; add --out FOLDER")
    study = load(*args.folders)
    out = Path(args.folders[0], "report") if args.out is None else Path(args.out)
    study.write(out)
    for one in table.overview(study.results, study.baseline, study.losses):
        one.show()
    if judged := scorecard.of_study(study.results, study.losses):
        scorecard.table(judged).show()
    show_answer(study.answer)
    say(escape(shown(f"report: {out / 'report.html'}")))
    return 0


def show_answer(sentences: list[str]) -> None:
    """Print what a study says."""
    say("")
    for sentence in sentences:
        say(escape(shown(sentence)))
    say("")


def compare(argv: list[str]) -> int:
    """Show two or more studies side by side, whatever they differ in."""
    parser = make_parser(
        "compare",
        compare,
        "pezoo compare runs/quickstart runs/mine",
        "pezoo compare experiments/results/quickstart runs/quickstart",
        note="Where they differ in nothing but schemes, seeds and machines, `pezoo report A B` makes one report.\n\n",
    )
    parser.add_argument("folders", metavar="DIR", nargs="+", help="folders of studies, with their results")
    args = parser.parse_args(argv)

    from pezoo.report.finished import load, side_by_side
    from pezoo.report.printed import Table

    if len(args.folders) < 2:
        raise UserError(f"compare needs two folders or more, got {args.folders[0]}; for one: pezoo report DIR")
    frame, differ = side_by_side([load(folder) for folder in args.folders])
    notes = differ or ["they differ in nothing that moves numbers but schemes, seeds and machines"]
    Table("Side by side", "Mean ± spread over seeds, of each study's foremost metric", frame, tuple(notes)).show()
    return 0
