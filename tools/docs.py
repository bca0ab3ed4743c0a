"""What is generated from the code: `python -m tools.docs` renews it, and tests assert that it is current.

`python -m tools.docs runs/survey runs/kerple-gpu` publishes studies first: what people read of them goes to
`experiments/results`, whose tables are renewed as well.

Four pages as a whole: `docs/zoo.md`, an account of each member, with `docs/pictures`; `docs/grid.md`, which pairs of
an encoding and an extension work, each of them tried; `docs/scorecard.md`, what became of published findings; and
`docs/survey.md`, the survey's tables with the members that stand for their rows. In
pages that people write, the blocks between `<!-- name -->` and `<!-- /name -->`: tables of members, recipes, tasks and
keys, and whatever a page says of published results: README's answer (`tools/choose.py`), the table that `docs/start.md`
explains (`tools/reading.py`), the schemes of `docs/choose.md`, the figures of `docs/why.md` (`tools/why.py`),
what a release was tried with (`tools/release.py`), and what all costs (`tools/speed.py`).
"""

import ast
import dataclasses
import inspect
import re
import shutil
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from inspect import getfile
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from pezoo.cli.shared import marks_of, written
from pezoo.contract import Shape
from pezoo.errors import UserError
from pezoo.model.transformer import Transformer
from pezoo.registry import FAMILIES, Entry, entries, entry, make_config
from pezoo.report import scorecard
from pezoo.report.claims import read_claims
from pezoo.report.finished import LOSSES, Finished, about, load
from pezoo.report.verdicts import Judgement, judge, judge_elsewhere
from pezoo.report.write import markdown
from pezoo.results import find_results, write
from pezoo.results.losses import losses_of, pack_losses
from pezoo.scheme import Spec, parse
from pezoo.study.reading import own_recipes
from pezoo.study.recipe import Recipe, typed_name
from pezoo.task import make_task
from pezoo.testing import known_deviations
from pezoo.testing.properties.seen import causal, decodes_like_the_full_pass
from pezoo.testing.subject import LENGTH, CheckFailed, Subject, acts, finite, logits_and_gradients, tokens
from tools import choose, reading, release, speed, survey, why

ROOT = Path(__file__).resolve().parent.parent
README, ZOO, GRID = ROOT / "README.md", ROOT / "docs" / "zoo.md", ROOT / "docs" / "grid.md"
SCORECARD, SURVEY = ROOT / "docs" / "scorecard.md", ROOT / "docs" / "survey.md"
TASKS, PROTOCOLS, RECIPES = (ROOT / "docs" / f"{name}.md" for name in ("tasks", "protocols", "recipes"))
PICTURES, PUBLISHED = ROOT / "docs" / "pictures", ROOT / "experiments" / "results"
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
_BLOCK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- /\2 -->)", re.DOTALL)


def members(*kinds: str) -> list[Entry]:
    """The zoo's own members of some kinds, by kind, family and name."""
    ours = [e for e in entries().values() if e.kind in kinds and e.family in FAMILIES]
    ours = [e for e in ours if e.cls is None or e.cls.__module__.startswith(("pezoo.encodings.", "pezoo.data.tasks."))]
    return sorted(ours, key=lambda e: (kinds.index(e.kind), FAMILIES.index(e.family)))


# ---- tables in pages that people write ----------------------------------------------------------


def pages() -> list[Path]:
    """The pages that people write and that have blocks."""
    found = [README, *sorted(ZOO.parent.glob("*.md"))]
    return [page for page in found if _BLOCK.search(page.read_text(encoding="utf-8"))]


def renewed(page: str) -> str:
    """The text of a page with its blocks as they are now."""
    return _BLOCK.sub(lambda m: m[1] + BLOCKS[m[2]]() + m[3], page)


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


def cite() -> str:
    """How to cite pezoo itself, in BibTeX."""
    facts = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    authors = " and ".join("{" + one["name"] + "}" for one in facts["authors"])
    given = {"author": authors, "title": facts["title"], "version": facts["version"]}
    lines = [f"  {key} = {{{value}}}," for key, value in given.items()]
    return "\n".join(["```bibtex", "@software{pezoo,", *lines, "}", "```"]) + "\n"


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


BLOCKS: dict[str, Callable[[], str]] = {
    "members": members_table,
    "recipes": recipes_table,
    "descriptions": descriptions,
    "keys": keys_tables,
    "tasks": tasks_tables,
    "cite": cite,
    "papers": papers_table,
    "platforms": release.table,
    "speed_schemes": speed.schemes,
    "speed_goals": speed.goals,
    "speed_options": speed.options,
    "answer": lambda: choose.readme(studies(), judged()),
    "reading": lambda: reading.block(studies()["quickstart"]),
    **{f"choose_{name}": partial(lambda name: choose.block(name, studies()), name) for name in choose.QUESTIONS},
    "choose_far_text": lambda: why.far_text(studies()),
    "choose_other_models": lambda: choose.claimed("ranking_carries_over_", judged()),
    **{f"why_{name}": partial(lambda name: why.block(name, studies()), name) for name in why.FIGURES},
}


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


# ---- the grid -----------------------------------------------------------------------------------

WORKS, SHORT, IDLE, REFUSED = "✓", "L", "=", "–"
SIZES = {"d_model": 24, "n_layers": 1}


@dataclass(frozen=True)
class Pair:
    """What came of an encoding with an extension: one of the four signs, and for a refusal its reason."""

    sign: str
    reason: str = ""


class _Small(Subject):
    """A scheme in the smallest model that shows what the grid looks at."""

    def model(self, spec: Spec | None = None, **config: Any) -> Transformer:
        return super().model(spec, **SIZES | config)


def column(encoding: str) -> dict[str, Pair]:
    """Try an encoding with every extension.

    Raises:
        CheckFailed: if a pair that is not refused does not work.
    """
    return {e.name: pair(encoding, e.name) for e in members("extension")}


def pair(encoding: str, extension: str, settings: str = "") -> Pair:
    """Try an encoding with an extension: forward, backward, causality, and decoding against the full pass.

    Where a refusal names settings to type, these are tried.

    Raises:
        CheckFailed: if it is not refused, but does not work.
    """
    try:
        subject = _Small(entry(extension), parse(f"{encoding}+{settings or extension}"))
        scheme = subject.model().scheme
    except UserError as error:
        advice = re.search(rf"type ({extension}:\S+)", str(error))
        sign = pair(encoding, extension, advice[1]).sign if advice and not settings else REFUSED
        return Pair(sign, _reason(str(error), encoding, extension))
    far = 2 * LENGTH + 1
    try:
        for phase, length in subject.cases(LENGTH, far):
            for name, tensor in logits_and_gradients(subject.model(), tokens(length), phase).items():
                finite(tensor, name)
        with torch.no_grad():
            causal(subject)
            decodes_like_the_full_pass(subject)
            if scheme.undefined(far):
                return Pair(SHORT)
            carried = subject.model(subject.host).scheme.undefined(far) is not None
            idle = not carried and acts(subject) is False
            return Pair(IDLE if idle else WORKS)
    except CheckFailed as failed:
        raise CheckFailed(f"of {subject.spec} {failed.expected}", failed.came) from None


def _reason(text: str, encoding: str, extension: str) -> str:
    """A refusal without the names of the two: many pairs share it."""
    for head in (f"{extension} does not fit {encoding}: it ", f"{encoding}+{extension} cannot work: "):
        text = text.removeprefix(head)
    text = re.sub(rf"\b{encoding}\b", "the encoding", text)
    return re.split(r"[.;] [Ii]t works with", text)[0]


def grid(columns: Mapping[str, Mapping[str, Pair]]) -> str:
    """The page of all pairs, in Markdown: a table for each family of encodings, and the reasons of refusals.

    Args:
        columns: what `column` gave, by encoding.
    """
    reasons = list(dict.fromkeys(p.reason for column in columns.values() for p in column.values() if p.reason))
    lines = [
        "# What works with what",
        "",
        "Generated by `make docs`, which runs each pair that is not refused, with default settings: forward,",
        "backward, causality, and decoding against the full pass, in a model of width "
        f"{SIZES['d_model']} with 3 heads,",
        f"trained on L = {LENGTH} tokens and tested on up to {2 * LENGTH + 1}.",
        "",
        f"- {WORKS} works beyond the training length; with a number, with the setting that the note names",
        f"- {SHORT} works up to the training length, beyond which the encoding stays undefined",
        f"- {IDLE} works, and changes nothing in this encoding",
        f"- {REFUSED} is refused, for the reason with that number",
    ]
    for family in dict.fromkeys(entry(name).family for name in columns):
        names = [name for name in columns if entry(name).family == family]
        lines += ["", f"## {family.capitalize()} encodings", ""]
        lines += [f"| | {' | '.join(f'`{name}`' for name in names)} |", "|---|" + ":-:|" * len(names)]
        for e in members("extension"):
            cells = (columns[name][e.name] for name in names)
            lines.append(f"| `+{e.name}` | {' | '.join(_cell(cell, reasons) for cell in cells)} |")
    lines += ["", "## Reasons", ""]
    lines += [f"{n}. {reason}" for n, reason in enumerate(reasons, start=1)]
    return "\n".join(lines) + "\n"


def _cell(cell: Pair, reasons: list[str]) -> str:
    return cell.sign + (f"<sup>{reasons.index(cell.reason) + 1}</sup>" if cell.reason else "")


def read_grid(page: str) -> dict[str, dict[str, Pair]]:
    """What `grid` wrote, as it was given."""
    table, _, rest = page.partition("## Reasons")
    reasons = ["", *re.findall(r"^\d+\. (.*)$", rest, re.MULTILINE)]
    columns: dict[str, dict[str, Pair]] = {}
    names: list[str] = []
    for line in table.splitlines():
        first, *cells = (cell.strip().strip("`") for cell in line.strip("|").split("|"))
        if line.startswith("| |"):
            names = cells
        elif line.startswith("| `+"):
            for name, cell in zip(names, cells, strict=True):
                sign, number = re.fullmatch(r"(.)(?:<sup>(\d+)</sup>)?", cell).groups()
                columns.setdefault(name, {})[first.removeprefix("+")] = Pair(sign, reasons[int(number or 0)])
    return columns


# ---- all of it ----------------------------------------------------------------------------------


def draw(names: Iterable[str]) -> None:
    """Draw members into `docs/pictures`, and remove the pictures of those that are gone."""
    from pezoo import drawing as pictures

    for name in names:
        pictures.save(pictures.picture(name), PICTURES / f"{name}.svg")
    known = {e.name for e in members(*DRAWN)}
    for path in PICTURES.glob("*.svg"):
        if path.stem not in known:
            path.unlink()


# ---- published results --------------------------------------------------------------------------


def publish(study: Path) -> Path:
    """Keep of a finished study what others read: recipe, results and losses compressed, its tables, one picture.

    `pezoo report` draws the other pictures from it.

    Returns:
        The folder, which is replaced if it was there.

    Raises:
        UserError: if there is no finished study in that folder.
    """
    if missing := [name for name in ("recipe.yaml", "results.jsonl", "report") if not (study / name).exists()]:
        raise UserError(f"{study} is no finished study: it lacks {', '.join(missing)}")
    finished = load(study)
    folder = PUBLISHED / study.resolve().name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copyfile(study / "recipe.yaml", folder / "recipe.yaml")
    write(folder / "results.jsonl.gz", finished.results)
    if losses := losses_of(finished.losses, (r.cell for r in finished.results)):
        pack_losses(folder / LOSSES, losses)
    picture = foremost(study / "report")
    shrink(picture, folder / picture.name)
    return folder


def shrink(picture: Path, to: Path) -> None:
    """Write a picture in 256 colours, which for figures look the same and take a third of the bytes."""
    with Image.open(picture) as image:
        few = image.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(to, "PNG", optimize=True)


def foremost(report: Path) -> Path:
    """The picture of a report to see first: curves over the length, or what all tasks come to."""
    pictures = sorted(report.glob("*.png"))
    for end in ("curves", "exact_match_by_task", "exact_match", ""):
        for picture in pictures:
            if end in picture.stem:
                return picture
    raise UserError(f"{report} has no picture")


def finished() -> dict[Path, Finished]:
    """The published studies that have results, by folder."""
    return {folder: _load(folder) for folder in sorted(PUBLISHED.iterdir()) if find_results(folder) is not None}


_load = cache(load)


def studies() -> dict[str, Finished]:
    """The same by the name of the folder."""
    return {folder.name: study for folder, study in finished().items()}


def published() -> dict[Path, str]:
    """The text of each published study's tables, from its results."""
    return {
        folder / "table.md": markdown(study.results, study.losses, about(study.recipe, f"pezoo report {folder.name}"))
        for folder, study in finished().items()
    }


@cache
def judged() -> list[Judgement]:
    """What became of all claims in the published studies; one that two studies test stands there twice."""
    found: list[Judgement] = []
    for claim in read_claims():
        ran = {folder: study for folder, study in finished().items() if study.results[0].study == claim.recipe}
        for folder, study in ran.items():
            one = judge(claim, study.results, study.losses)
            found.append(dataclasses.replace(one, link=f"../experiments/results/{folder.name}/table.md"))
        found += [] if ran else [judge(claim, [])]
    return found


def scorecard_page() -> str:
    """The same in Markdown, and what other studies say to the same claims."""
    found = judged()
    elsewhere: dict[str, list[Judgement]] = {}
    for claim in read_claims():
        for folder, study in finished().items():
            link = f"../experiments/results/{folder.name}/table.md"
            mine = judge_elsewhere(claim, study.results, study.losses)
            elsewhere.setdefault(claim.key, []).extend(dataclasses.replace(one, link=link) for one in mine)
    parts = scorecard.counts(found), scorecard.sections(found), scorecard.disagreements(found, elsewhere)
    return "\n".join([_SCORECARD, *chain.from_iterable(parts)]) + "\n"


_SCORECARD = """# Scorecard

Generated by `make docs`: published findings and open questions, each judged from our published results alone.
[claims.yaml](../experiments/claims.yaml) holds them as data, each with the comparison that decides it. The models here
are small and read bytes, so a verdict speaks of this setting; that of the source stands beside it.

A claim names an effect, and the smallest one that matters. It is *reproduced* if the whole 95 % interval of the effect
lies where the claim says, *contradicted* if the whole interval lies elsewhere, and else *undecided*. The interval is
for another draw of seeds and, where losses by document were kept, of test documents. Of several schemes in a row each
must be better than the next; the more there are, the wider are their intervals. A claim that was written when the
results that decide it had been published is marked *after the fact*, and counted apart.

Each interval is one of 95 % for its claim alone: among so many claims, a few are decided by chance. Some claims ask one
thing in several kinds of model; they are one finding in several settings. Of tasks only those count that some scheme
learned at L; where none was, the claim is undecided.

Which tokens are scored can turn a verdict. So each claim names the protocol of its source, and is judged under the one
of ours that is nearest to it; [protocols.md](protocols.md) says what these are. × is a ratio of perplexities, L the
training length.
"""


def main(folders: Iterable[str] = ()) -> int:
    """Publish studies, then renew README.md, docs/ and published tables in place."""
    torch.set_num_threads(1)
    try:
        for folder in folders:
            print(f"published {publish(Path(folder))}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path, text in published().items():
        path.write_text(text, encoding="utf-8")
    GRID.parent.mkdir(exist_ok=True)
    GRID.write_text(grid({e.name: column(e.name) for e in members("encoding")}), encoding="utf-8")
    for page in pages():
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
    ZOO.write_text(zoo(), encoding="utf-8")
    SCORECARD.write_text(scorecard_page(), encoding="utf-8")
    SURVEY.write_text(survey.page(), encoding="utf-8")
    draw(e.name for e in members(*DRAWN))
    why.draw(PICTURES / "why", studies())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
