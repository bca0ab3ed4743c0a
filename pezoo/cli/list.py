"""`pezoo list`."""

import fnmatch
import shlex
from typing import TYPE_CHECKING

from pezoo.cli.shared import (
    add_json,
    add_plugin,
    as_named,
    escape,
    learns,
    load_plugins,
    make_parser,
    marks_of,
    needs_of,
    print_json,
    say,
    uncollected,
)
from pezoo.errors import UserError, brief, suggest

if TYPE_CHECKING:
    from argparse import Namespace

    from pezoo.registry import Entry


@uncollected()
def list_members(argv: list[str]) -> int:
    """Every member and where it stands in the taxonomy."""
    parser = make_parser(
        "list",
        list_members,
        "pezoo list",
        "pezoo list 'ro*'",
        "pezoo list --extensions",
        "pezoo list --works-with rope --needs-no-tuning",
        "pezoo list --tasks",
        "pezoo list --json",
    )
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="names, as in a shell: 'ro*'")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--encodings", action="store_true", help="encodings and literature names only")
    kinds.add_argument("--extensions", action="store_true", help="extensions only")
    kinds.add_argument("--schedules", action="store_true", help="layer schedules only")
    kinds.add_argument("--tasks", action="store_true", help="tasks only")
    needs = parser.add_argument_group("what you need")
    needs.add_argument(
        "--works-with",
        metavar="SCHEME",
        help="extensions that fit this scheme, or encodings that this extension fits",
    )
    needs.add_argument(
        "--needs-no-tuning",
        action="store_true",
        help="extensions that a trained model takes as it is: they are not there in training, and learn nothing",
    )
    needs.add_argument("--no-parameters", action="store_true", help="members that add nothing to be learned")
    needs.add_argument("--in-encoders", action="store_true", help="members that tell left from right in an encoder")
    add_json(parser)
    add_plugin(parser)
    args = parser.parse_args(argv)

    from pezoo import registry

    load_plugins(args.plugin)
    every = not (args.encodings or args.extensions or args.schedules or args.tasks)
    names = registry.list_encodings(args.pattern) if args.encodings or every else []
    names += registry.list_extensions(args.pattern) if args.extensions or every else []
    names += registry.list_schedules(args.pattern) if args.schedules or every else []
    names += registry.list_tasks(args.pattern) if args.tasks or every else []
    found = bool(names)
    names = [name for name in names if _wanted(registry.entry(name), args)]
    if args.works_with is not None:
        fitting = _fitting(as_named(args.works_with))
        names = [name for name in names if name in fitting]
    if found and not names:
        raise UserError("no member is all of that; ask for less. All: pezoo list")
    if not names:
        known = list(registry.entries())
        if fnmatch.filter(known, args.pattern):
            raise UserError(
                f"{brief(args.pattern)} is of another kind; to see it: pezoo list {shlex.quote(args.pattern)}"
            )
        raise UserError(f"nothing is called {brief(args.pattern)}.{suggest(args.pattern, known)} All: pezoo list")
    if args.json:
        print_json([registry.describe(name) for name in names])
        return 0
    members, width = [registry.entry(name) for name in names], max(map(len, names))
    sections = {"encodings": ("encoding", "alias"), "extensions": ("extension",)}
    sections |= {"layer schedules": ("schedule",), "tasks": ("task",)}
    lines = []
    for title, kinds in sections.items():
        shown = [e for e in members if e.kind in kinds]
        families = {e.family for e in shown}
        if shown:
            lines.append(f"[bold]{title}[/bold] [dim]({len(shown)})[/dim]")
        known = [family for family in registry.FAMILIES if family in families]
        for family in (*known, *sorted(families.difference(known))):
            lines.append(f"  [bold]{escape(family)}[/bold]")
            lines += [f"    {_line(entry, width)}" for entry in shown if entry.family == family]
    same = any(entry.scheme for entry in members)
    say("\n".join(lines))
    say(f"\n{'NAME = SCHEME: two names of one thing. ' if same else ''}More about one: pezoo show NAME")
    return 0


def _wanted(entry: "Entry", args: "Namespace") -> bool:
    """Whether a member is what the flags ask for."""
    if not (args.needs_no_tuning or args.no_parameters or args.in_encoders):
        return True
    if entry.kind in ("alias", "schedule"):
        return all(_wanted(part, args) for part in _parts(entry.name))
    if entry.traits is None:
        return False
    ready = entry.kind == "extension" and "train" not in entry.cls.default_at and not learns(entry)
    return (
        (ready or not args.needs_no_tuning)
        and not (args.no_parameters and learns(entry))
        and (entry.traits.bidirectional or not args.in_encoders)
    )


def _parts(scheme: str) -> list["Entry"]:
    from pezoo.registry import entry
    from pezoo.scheme import parse

    return [entry(member.name) for member in parse(scheme).all_members()]


def _fitting(scheme: str) -> set[str]:
    """Names that make a scheme together with this one; what is wrong with this one is said."""
    from pezoo.registry import entries
    from pezoo.scheme import parse

    known = entries()
    extension = scheme in known and known[scheme].kind == "extension"
    if not extension and not parse(scheme).members and scheme.startswith("{"):
        raise UserError(f"{brief(scheme)} is a mixture; name one of its schemes")

    def fits(name: str) -> bool:
        try:
            return bool(parse(f"{name}+{scheme}" if extension else f"{scheme}+{name}"))
        except UserError:
            return False

    kind = "encoding" if extension else "extension"
    return {name for name, entry in known.items() if entry.kind == kind and fits(name)}


def _line(entry: "Entry", width: int) -> str:
    title = escape(f"{entry.title}, {entry.year}" if entry.year else entry.title)
    stands = f" = {escape(entry.scheme)}" if entry.scheme else ""
    told = [*needs_of(entry), *(mark for mark in marks_of(entry.traits) if mark != "shift-invariant")]
    marks = f"  [dim]({', '.join(told)})[/dim]" if told else ""
    return f"[cyan]{entry.name:<{width}}[/cyan] {title}{stands}{marks}"
