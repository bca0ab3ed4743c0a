"""`pezoo show`."""

import re
import sys
from itertools import groupby
from typing import TYPE_CHECKING

from pezoo.cli.shared import (
    add_json,
    add_plugin,
    allowed,
    as_named,
    at_least_one,
    escape,
    load_plugins,
    make_console,
    make_parser,
    marks_of,
    needs_of,
    print_json,
    table_of,
    uncollected,
    written,
)
from pezoo.cli.show_config import show_config
from pezoo.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from pezoo.registry import Entry
    from pezoo.scheme import Spec

KINDS = {"schedule": "layer schedule"}
"""Kinds of entries that people call otherwise."""


@uncollected()
def show(argv: list[str]) -> int:
    """Facts, equation and settings of a scheme, or a layer schedule, and its members."""
    parser = make_parser(
        "show",
        show,
        "pezoo show rope",
        "pezoo show rope+yarn:factor=8",
        "pezoo show shape",
        "pezoo show pi",
        "pezoo show gemma3",
        "pezoo show rope+yarn --save yarn.svg",
        "pezoo show --config config.json",
        "pezoo show rope+yarn:factor=4 --config config.json",
    )
    parser.add_argument(
        "scheme", metavar="SCHEME", nargs="?", help="a scheme such as rope+pi, or any name of `pezoo list`"
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="a model's config.json: its rope settings as a scheme, and what contradicts itself in them; with SCHEME: "
        "the rope settings under which the model has that scheme",
    )
    told = "with --config: of texts to come; for schemes that follow the length"
    parser.add_argument("--length", type=at_least_one, metavar="N", help=told)
    parser.add_argument("--save", metavar="FILE", help="draw it too, to a .png, .svg or .pdf file")
    add_json(parser)
    add_plugin(parser)
    args = parser.parse_args(argv)

    from pezoo import registry
    from pezoo.scheme import parse

    load_plugins(args.plugin)
    if args.save == "":
        raise UserError("--save needs the name of a .png, .svg or .pdf file")
    if args.length is not None and (args.config is None or args.scheme is None):
        raise UserError("--length says how a scheme is told to a config; type both: show SCHEME --config FILE")
    if args.config is not None:
        if args.save:
            raise UserError("--save draws a scheme, and --config reads a model's; type them one after the other")
        scheme_of_it = None if args.scheme is None else as_named(args.scheme)
        return show_config(args.config, scheme_of_it, args.length, args.json)
    if args.scheme is None:
        raise UserError("name a scheme, such as pezoo show rope, or a model's config, pezoo show --config config.json")
    typed = as_named(args.scheme)
    alone = registry.entries().get(typed)
    if alone is not None and alone.kind in ("extension", "task"):
        spec, names = None, [alone.name]
    else:
        spec = parse(typed)
        schedules = [n for n in re.findall(r"\w+", typed) if n in registry.list_schedules()]
        names = [*schedules, *spec.encodings, *spec.extensions]
    scheme = None
    if spec is not None:
        scheme = {"scheme": str(spec), "family": spec.family, "settings": spec.data}
        scheme |= {f"in {phase}ing": str(spec.at(phase)) for phase in ("train", "test")}
    if args.save:
        from pezoo import drawing as pictures

        print(f"picture: {pictures.save(pictures.picture(typed), args.save)}", file=sys.stderr)
    if args.json:
        print_json({"scheme": scheme, "members": [registry.describe(name) for name in names]})
        return 0
    console = make_console()
    if alone is not None and alone.kind == "alias":
        console.print(f"[bold]{alone.name}[/bold]: {escape(alone.title)}, stands for {escape(alone.scheme)}\n")
    if spec is not None and spec.layers:
        console.print(_layers(spec))
    elif spec is not None and (spec.extensions or len(names) > 1):
        acting = {"training": spec.at("train"), "tuning": spec.at("tune"), "testing": spec.at("test")}
        console.print(table_of(str(spec), {"family": spec.family} | {f"in {k}": str(v) for k, v in acting.items()}))
    for name in names:
        entry = registry.entry(name)
        console.print(_member(entry))
        if entry.parameters:
            console.print(_settings(entry))
    return 0


def _layers(spec: "Spec") -> "Table":
    """What each layer of a mixture is made of, in training and in testing where that differs."""
    facts, number = {}, 1
    for layer, alike in groupby(spec.layers):
        count = len(list(alike))
        trained, tested = (str(layer.at(phase)) for phase in ("train", "test"))
        key = f"layer {number}" if count == 1 else f"layers {number}-{number + count - 1}"
        facts[key] = trained if trained == tested else f"{trained}; in testing {tested}"
        number += count
    return table_of(f"a schedule of {len(spec.layers)} layers", facts)


def _member(entry: "Entry") -> "Table":
    source = f"{entry.authors} ({entry.year})" if entry.year else entry.authors
    facts = {
        "what": f"{entry.title}, {KINDS.get(entry.kind, entry.kind)}, {entry.family}",
        "": entry.summary,
        "source": source + (f", arXiv:{entry.arxiv}" if entry.arxiv else ""),
        "equation": entry.equation,
        "traits": ", ".join([*marks_of(entry.traits), *needs_of(entry)]),
    }
    if entry.kind == "task":
        facts["example"] = _example(entry.name)
    return table_of(entry.name, facts)


def _settings(entry: "Entry") -> "Table":
    """A line for each setting: what it is by default, what can be typed, and what it does."""
    from rich.table import Table

    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 1))
    table.add_column("setting", style="cyan", no_wrap=True)
    table.add_column("default")
    table.add_column("can be")
    table.add_column("", overflow="fold")
    for name, facts in entry.parameters.items():
        table.add_row(*map(escape, (f":{name}", written(facts["default"]), allowed(facts), facts["help"])))
    return table


def _example(name: str) -> str:
    """A short question of a task with its answer, as text."""
    import torch

    from pezoo.task import make_task

    task = make_task(name)
    pairs = task.sample(1, task.least_length + 5, torch.Generator().manual_seed(0))
    question, answer = (task.text(ids) for ids in (pairs.inputs[0], task.ended(pairs.outputs[0])))
    return f"{' '.join(question.split())}  ->  {answer}"
