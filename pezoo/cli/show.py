"""`pezoo show`."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from pezoo.cli.shared import (
    add_json,
    add_plugin,
    load_plugins,
    make_console,
    make_parser,
    marks_of,
    print_json,
    written,
)

if TYPE_CHECKING:
    from pezoo.registry import Entry


def show(argv: list[str]) -> int:
    """Facts, equation and settings of a scheme and its members."""
    parser = make_parser(
        "show",
        show,
        "pezoo show rope",
        "pezoo show rope+yarn:factor=8",
        "pezoo show shape",
        "pezoo show pi",
        "pezoo show rope+yarn --save yarn.svg",
    )
    parser.add_argument("scheme", metavar="SCHEME", help="a scheme such as rope+pi, or any name of `pezoo list`")
    parser.add_argument("--save", metavar="FILE", help="draw it too, to a .png, .svg or .pdf file")
    add_json(parser)
    add_plugin(parser)
    args = parser.parse_args(argv)

    from pezoo import registry
    from pezoo.scheme import parse

    load_plugins(args.plugin)
    alone = registry.entries().get(args.scheme)
    if alone is not None and alone.kind in ("extension", "task"):
        spec, names = None, [alone.name]
    else:
        spec = parse(args.scheme)
        names = [*spec.encodings, *spec.extensions]
    scheme = None
    if spec is not None:
        scheme = {"scheme": str(spec), "family": spec.family, "settings": spec.data}
        scheme |= {f"in {phase}ing": str(spec.at(phase)) for phase in ("train", "test")}
    if args.save:
        from pezoo import drawing as pictures

        print(f"picture: {pictures.save(pictures.picture(args.scheme), args.save)}", file=sys.stderr)
    if args.json:
        print_json({"scheme": scheme, "members": [registry.describe(name) for name in names]})
        return 0
    console = make_console()
    if alone is not None and alone.kind == "alias":
        console.print(f"[bold]{alone.name}[/bold]: {escape(alone.title)}, stands for {escape(alone.scheme)}\n")
    if spec is not None and (spec.extensions or len(names) > 1):
        acting = {"training": spec.at("train"), "tuning": spec.at("tune"), "testing": spec.at("test")}
        console.print(_facts(str(spec), {"family": spec.family} | {f"in {k}": str(v) for k, v in acting.items()}))
    for name in names:
        entry = registry.entry(name)
        console.print(_member(entry))
    return 0


def _member(entry: "Entry") -> Table:
    source = f"{entry.authors} ({entry.year})" if entry.year else entry.authors
    facts = {
        "what": f"{entry.title}, {entry.kind}, {entry.family}",
        "": entry.summary,
        "source": source + (f", arXiv:{entry.arxiv}" if entry.arxiv else ""),
        "equation": entry.equation,
        "traits": ", ".join(marks_of(entry.traits)),
    }
    if entry.kind == "task":
        facts["example"] = _example(entry.name)
    facts |= {f":{name}": f"{written(p['default'])}  {p['help']}" for name, p in entry.parameters.items()}
    return _facts(entry.name, facts)


def _example(name: str) -> str:
    """A short question of a task with its answer, as text."""
    import torch

    from pezoo.task import make_task

    task = make_task(name)
    pairs = task.sample(1, task.least_length + 5, torch.Generator().manual_seed(0))
    question, answer = (task.text(ids) for ids in (pairs.inputs[0], task.ended(pairs.outputs[0])))
    return f"{' '.join(question.split())}  ->  {answer}"


def _facts(title: str, facts: Mapping[str, str]) -> Table:
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=None, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        if fact:
            table.add_row(escape(name), escape(fact))
    return table
