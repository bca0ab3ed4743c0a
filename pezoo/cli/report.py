"""`pezoo report`."""

from pathlib import Path

from pezoo.cli.shared import make_parser, say, shown


def report(argv: list[str]) -> int:
    """Draw the tables and figures of a finished study anew, run here or published."""
    parser = make_parser(
        "report",
        report,
        "pezoo report runs/quickstart",
        "pezoo report experiments/results/survey --out runs/figures",
        note="`pezoo run` does this at its end. A published study keeps one picture; this draws the others.\n\n",
    )
    parser.add_argument("folder", metavar="DIR", help="folder of a study, with its results")
    parser.add_argument("--out", metavar="FOLDER", help="where tables and figures go (default: DIR/report)")
    args = parser.parse_args(argv)

    from rich.markup import escape

    from pezoo.report import table
    from pezoo.report.finished import load

    study = load(args.folder)
    out = Path(args.folder, "report") if args.out is None else Path(args.out)
    study.write(out)
    for one in table.overview(study.results, study.baseline, study.losses):
        one.show()
    say(escape(shown(f"report: {out}")))
    return 0
