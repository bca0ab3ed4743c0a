"""Members, recipes, keys and tasks in Markdown, as they describe themselves: tables of `docs/`, and `docs/zoo.md`."""

import ast
import dataclasses
import inspect
import re
import typing
from inspect import getfile
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import yaml

from pezoo.cli.shared import marks_of, written
from pezoo.contract import Shape
from pezoo.registry import FAMILIES, Entry, entries, make_config
from pezoo.scheme import parse
from pezoo.study.reading import own_recipes
from pezoo.study.recipe import Recipe
from pezoo.study.trees import typed_name
from pezoo.task import make_task
from pezoo.testing import known_deviations
from tools.paths import PUBLISHED, ROOT

SHAPE = Shape(d_model=64, n_heads=4, n_layers=4, train_length=64)
KINDS = {
    "encoding": "Encodings",
    "alias": "Literature names",
    "extension": "Extensions",
    "schedule": "Layer schedules",
}
DRAWN = ("encoding", "extension", "schedule")
"""Kinds that have a picture."""
_ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")


def members(*kinds: str) -> list[Entry]:
    """The zoo's own members of some kinds, by kind, family and name."""
    ours = [e for e in entries().values() if e.kind in kinds and e.family in FAMILIES]
    ours = [e for e in ours if e.cls is None or e.cls.__module__.startswith(("pezoo.encodings.", "pezoo.data.tasks."))]
    return sorted(ours, key=lambda e: (kinds.index(e.kind), FAMILIES.index(e.family)))


def members_table() -> str:
    """Every member as a Markdown table: name, family, title, year, source."""
    lines = ["| name | family | what it is | year | paper |", "|---|---|---|---|---|"]
    lines += [f"| {_shown(e)} | {e.family} | {e.title} | {e.year or ''} | {_paper(e)} |" for e in members(*KINDS)]
    return "\n".join(lines) + "\n"


def _shown(e: Entry) -> str:
    name = {"extension": f"+{e.name}", "alias": f"{e.name} = {e.scheme}"}.get(e.kind, e.name)
    return f"`{name}`" if e.kind == "alias" else f"[`{name}`](zoo.md#{e.name})"


def _paper(e: Entry) -> str:
    return f"[{e.arxiv}](https://arxiv.org/abs/{e.arxiv})" if e.arxiv else ""


def papers_table() -> str:
    """Every paper that members come from, the newest last, with its members."""
    found: dict[str, list[Entry]] = {}
    for e in members(*KINDS):
        if e.arxiv:
            found.setdefault(e.arxiv, []).append(e)
    lines = ["| paper | authors | members |", "|---|---|---|"]
    for each in sorted(found.values(), key=lambda each: (each[0].year, each[0].arxiv)):
        lines.append(f"| {_paper(each[0])} | {each[0].authors} {each[0].year} | {', '.join(map(_shown, each))} |")
    return "\n".join(lines) + "\n"


def tasks_tables() -> str:
    """Every task: a table for each family, and the settings below it."""
    lines, found = [], members("task")
    for family in dict.fromkeys(e.family for e in found):
        lines += ["", f"## {family[0].upper()}{family[1:]}", ""]
        lines += ["| task | what is asked | length counts | shortest | forms | chance | source |", "|---" * 7 + "|"]
        settings, deep = [], []
        for e in (e for e in found if e.family == family):
            task, path = make_task(e.name), Path(getfile(e.cls)).resolve().relative_to(ROOT).as_posix()
            asked, length = e.summary.removesuffix(".").split("; length: ")
            source = f"{e.authors} {e.year}, {_paper(e)}"
            facts = (asked, length, task.least_length, ", ".join(task.forms), f"{100 * task.chance:.2g} %", source)
            lines.append(f"| [`{e.name}`](../{path}) | {' | '.join(map(str, facts))} |")
            deep += [f"`{e.name}`"] * bool(task.depths)
            for name, p in e.parameters.items():
                choices = f"; one of {', '.join(p['choices'])}" if p["choices"] else ""
                settings.append(f"- `{e.name}:{name}={written(p['default'])}`: {p['help']}{choices}")
        lines += ["", *settings] if settings else []
        lines += ["", f"Tested at several depths, from the first place to the last: {', '.join(deep)}."] if deep else []
    return "\n".join(lines).lstrip("\n") + "\n"


def recipes() -> dict[str, dict[str, Any]]:
    """The recipes that come with pezoo by name, as they are written, the quickstart first."""
    paths = sorted(own_recipes().items(), key=lambda item: (item[0] != "quickstart", item[0]))
    return {name: yaml.safe_load(path.read_text(encoding="utf-8")) for name, path in paths}


def recipes_table() -> str:
    """Every recipe as a Markdown table: name, the first sentence of its description, papers, what is published."""
    lines = ["| recipe | question | papers | results |", "|---|---|---|---|"]
    for name, recipe in recipes().items():
        question = re.match(r".*?[.?](?= |$)", re.sub(r" \(arXiv [\d.]+\)", "", recipe["description"]))[0]
        papers = dict.fromkeys(_ARXIV.findall(recipe["description"]))
        papers = ", ".join(f"[{paper}](https://arxiv.org/abs/{paper})" for paper in papers)
        links = [
            f"[{size or 'cpu'}](../experiments/results/{folder}/table.md)"
            for folder in sorted(path.parent.name for path in PUBLISHED.glob("*/table.md"))
            for size in re.findall(rf"^{name}(?:-(\w+))?$", folder)
        ]
        lines.append(f"| [`{name}`](../experiments/{name}.yaml) | {question} | {papers} | {', '.join(links)} |")
    return "\n".join(lines) + "\n"


def descriptions() -> str:
    """What each recipe asks, in full, and its sizes."""
    lines = []
    for name, recipe in recipes().items():
        sizes = dict.fromkeys(["test", "cpu", *recipe["sizes"]])
        text = _ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", recipe["description"])
        lines.append(f"- [`{name}`](../experiments/{name}.yaml): {text} Sizes: {', '.join(sizes)}.")
    return "\n".join(lines) + "\n"


def keys_tables() -> str:
    """Every key of a recipe with its default and its docstring: a table for the study's own, and one for each group."""
    hints = typing.get_type_hints(Recipe)
    groups = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    lines = _keys("", Recipe)
    for name, cls in groups.items():
        about = inspect.getdoc(cls).split("\n")[0]
        lines += ["", f"### {name}", "", about, "", *_keys(f"{name}.", cls)]
    return "\n".join(lines) + "\n"


def _keys(prefix: str, cls: type) -> list[str]:
    """The table of one dataclass, groups left out."""
    bodies = [ast.parse(inspect.getsource(each)).body[0].body for each in cls.__mro__ if dataclasses.is_dataclass(each)]
    texts = {
        above.target.id: " ".join(ast.literal_eval(below.value).split())
        for body in bodies
        for above, below in pairwise(body)
        if isinstance(above, ast.AnnAssign) and isinstance(below, ast.Expr)
    }
    lines, hints = ["| key | default | what it is |", "|---|---|---|"], typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[f.name]):
            continue
        default = f.default if f.default is not dataclasses.MISSING else f.default_factory()
        written = yaml.safe_dump(default, default_flow_style=True).removesuffix("...\n").strip()
        choices = typing.get_args(hints[f.name]) if typing.get_origin(hints[f.name]) is typing.Literal else ()
        others = [f"`{choice}`" for choice in choices if choice != default]
        cell = f"`{written}`" + (f", or {', '.join(others)}" if others else "")
        about = texts[f.name].replace("|", r"\|")
        lines.append(f"| `{prefix}{typed_name(f.name)}` | {cell} | {about} |")
    return lines


# ---- the zoo, member by member ------------------------------------------------------------------


def zoo() -> str:
    """An account of every member, in Markdown."""
    lines = [
        "# The zoo",
        "",
        "Generated by `make docs` from the members' own files. `pezoo show NAME --save FILE` draws any of the",
        "pictures, and schemes like `rope+yarn` too; [grid.md](grid.md) says what works with what. Parameters",
        f"are counted in a model of width {SHAPE.d_model} with {SHAPE.n_heads} heads and {SHAPE.n_layers} layers, "
        f"trained on {SHAPE.train_length} tokens.",
    ]
    for kind, title in KINDS.items():
        found = members(kind)
        lines += ["", f"## {title}"]
        if kind == "alias":
            lines += ["", "| name | stands for | what it is | year | paper |", "|---|---|---|---|---|"]
            lines += [f"| `{e.name}` | `{e.scheme}` | {e.title} | {e.year or ''} | {_paper(e)} |" for e in found]
            continue
        for family in dict.fromkeys(e.family for e in found):
            links = ", ".join(f"[{e.name}](#{e.name})" for e in found if e.family == family)
            lines += ["", f"**{family}**: {links}"]
        lines += [line for e in found for line in _section(e)]
    return "\n".join(lines) + "\n"


def _section(e: Entry) -> list[str]:
    path = Path(getfile(e.cls)).resolve().relative_to(ROOT).as_posix()
    source = ", ".join(filter(None, (e.authors, str(e.year or ""), _paper(e) and f"arXiv {_paper(e)}")))
    settings = [f"`{name}` = {written(facts['default'])}: {facts['help']}" for name, facts in e.parameters.items()]
    facts = [
        *([f"Source: {source}."] if source else []),
        f"File: [{path}](../{path}).",
        *([f"Traits: {', '.join(found)}."] if e.traits and (found := traits(e)) else []),
        *[f"Known deviation from the kit: {name}, {why}." for name, why in known_deviations(e).items()],
        *([f"Layers: {layers(e)}."] if e.kind == "schedule" else []),
        "Settings: " + "; ".join(settings) + "." if settings else "No settings.",
    ]
    return [
        "", f"### {e.name}", "", f"**{e.title}** ({e.family}). {e.summary}", "",
        *(["```", e.equation, "```", ""] if e.equation else []),
        *[f"- {fact}" for fact in facts],
        "", f"![{e.name}](pictures/{e.name}.svg)",
    ]  # fmt: skip


def layers(e: Entry) -> str:
    """The schemes of a layer schedule, each with the number of layers in a row that have it."""
    return ", ".join(f"{len(list(alike))} x `{layer}`" for layer, alike in groupby(parse(e.name).layers))


def traits(e: Entry) -> list[str]:
    """A member's traits in words, with the parameters that it has in a model of `SHAPE`."""
    config, at = make_config(e.name, {})
    member = e.cls(SHAPE, config, at) if at else e.cls(SHAPE, config)
    count = e.traits.parameters(SHAPE, config)
    copies = "per layer" if e.cls.per_layer(config) else "in all"
    marks = marks_of(dataclasses.replace(e.traits, prefix_stable=member.prefix_stable))
    return marks + [f"{count:,} parameters {copies}"] * (count > 0)
