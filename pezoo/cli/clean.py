"""`pezoo clean`."""

import shlex

from pezoo.cli.shared import add_plugin, escape, make_console, make_parser, say, shown


def clean(argv: list[str]) -> int:
    """List what a study's recipe does not use any more, and remove it on request."""
    parser = make_parser(
        "clean",
        clean,
        "pezoo clean runs/quickstart",
        "pezoo clean runs/quickstart --remove",
        note="Cells stay when a recipe changes, so that nothing is trained twice if it changes back. Used is what\n"
        "the recipe of the last run needs, pezoo's and the plug-ins' code being as it is now, and what its\n"
        "results stand on.\n\n",
    )
    parser.add_argument("folder", metavar="DIR", help="folder of a study")
    parser.add_argument("--remove", action="store_true", help="remove what is listed")
    add_plugin(parser)
    args = parser.parse_args(argv)

    from rich.table import Table

    from pezoo.study.unused import find_unused, remove_unused

    found = find_unused(args.folder, args.plugin, lambda line: say(escape(shown(line))))
    if not found:
        say(escape(shown(f"{args.folder}: there is nothing to remove")))
        return 0
    table = Table("not used", "", "of", "MiB", title=escape(shown(args.folder)), title_justify="left")
    for one in found:
        table.add_row(one.path.name, escape(shown(one.title)), one.date, f"{one.size / 2**20:.1f}")
    make_console().print(table)
    whole = f"{len(found)} not used, {sum(one.size for one in found) / 2**20:.1f} MiB"
    if args.remove:
        remove_unused(args.folder, found)
        say(escape(shown(f"removed: {whole}")))
    else:
        say(escape(shown(f"{whole}; to remove them: pezoo clean {shlex.quote(args.folder)} --remove")))
    return 0
