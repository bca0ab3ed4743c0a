"""`pezoo list`."""

from typing import TYPE_CHECKING

from rich.markup import escape

from pezoo.cli.shared import add_json, add_plugin, load_plugins, make_parser, marks_of, print_json, say
from pezoo.errors import UserError, brief, suggest
from pezoo.registry import FAMILIES

if TYPE_CHECKING:
    from pezoo.registry import Entry


def list_members(argv: list[str]) -> int:
    """Every member and where it stands in the taxonomy."""
    parser = make_parser(
        "list",
        list_members,
        "pezoo list",
        "pezoo list 'ro*'",
        "pezoo list --extensions",
        "pezoo list --tasks",
        "pezoo list --json",
    )
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="names, as in a shell: 'ro*'")
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--encodings", action="store_true", help="encodings and literature names only")
    one.add_argument("--extensions", action="store_true", help="extensions only")
    one.add_argument("--tasks", action="store_true", help="tasks only")
    add_json(parser)
    add_plugin(parser)
    args = parser.parse_args(argv)

    from pezoo import registry

    load_plugins(args.plugin)
    every = not (args.encodings or args.extensions or args.tasks)
    names = registry.list_encodings(args.pattern) if args.encodings or every else []
    names += registry.list_extensions(args.pattern) if args.extensions or every else []
    names += registry.list_tasks(args.pattern) if args.tasks or every else []
    if not names:
        known = list(registry.entries())
        raise UserError(f"nothing is called {brief(args.pattern)}.{suggest(args.pattern, known)} All: pezoo list")
    if args.json:
        print_json([registry.describe(name) for name in names])
        return 0
    members, width = [registry.entry(name) for name in names], max(map(len, names))
    sections = {"encodings": ("encoding", "alias"), "extensions": ("extension",), "tasks": ("task",)}
    for title, kinds in sections.items():
        shown = [e for e in members if e.kind in kinds]
        families = {e.family for e in shown}
        if shown:
            say(f"[bold]{title}[/bold]")
        for family in (*(f for f in FAMILIES if f in families), *sorted(families - set(FAMILIES))):
            say(f"  [bold]{escape(family)}[/bold]")
            for entry in (e for e in shown if e.family == family):
                say(f"    {_line(entry, width)}")
    return 0


def _line(entry: "Entry", width: int) -> str:
    title = escape(f"{entry.title}, {entry.year}" if entry.year else entry.title)
    stands = f" = {escape(entry.scheme)}" if entry.scheme else ""
    marks = f"  [dim]({', '.join(marks_of(entry.traits))})[/dim]" if marks_of(entry.traits) else ""
    return f"[cyan]{entry.name:<{width}}[/cyan] {title}{stands}{marks}"
