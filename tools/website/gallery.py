"""The gallery: a page for each member, in Markdown, made of its registered facts, the grid and the published studies.

Links are those of a file in `docs/`, as everywhere there; `tools.website.links` moves them.
"""

import ast
import inspect
from collections.abc import Iterable, Iterator
from functools import cache
from inspect import getfile
from pathlib import Path

from pezoo.cli.shared import allowed, written
from pezoo.contract import PHASES, overrides
from pezoo.escape import in_markdown
from pezoo.registry import Entry
from pezoo.report import scorecard
from pezoo.scheme import parse
from pezoo.testing import known_deviations
from tools.catalogue import DRAWN, KINDS, layers, members, traits
from tools.grid import IDLE, REFUSED, SHORT, WORKS, Pair, read
from tools.paths import DOCS, ROOT
from tools.website import results
from tools.website.mathml import equation

MANY = 12
"""So many schemes with extensions of one encoding stand open in a table; more are folded."""
ACTS = {
    "embed": "the token embeddings",
    "rotate": "queries and keys",
    "distance_bias": "the logits by position alone",
    "bias": "the logits by position alone",
    "key_bias": "the logits by position alone",
    "product": "the product of queries and keys",
    "content": "the logits by what tokens hold",
    "normalise": "how logits become weights",
    "change_values": "the values",
    "mix": "what the weights gather",
    "coordinates": "the positions that the encoding reads",
    "frequencies": "the frequencies that it turns by",
    "branches": "how far distances are read",
    "scale": "how sharp attention is",
    "sink": "how little a head may attend to",
    "mask": "what a query sees",
    "adapt": "the logits as a whole",
}
"""What a hook changes, in words."""
SIGNS = {
    WORKS: "Works beyond the training length",
    SHORT: "Works up to the training length",
    IDLE: "Works, and changes nothing",
}


def pages() -> dict[str, str]:
    """Return the text of each page by its name; `index` has them all side by side."""
    return {"index": index()} | {e.name: page(e) for e in members(*DRAWN)}


def index() -> str:
    """Return the page of all members."""
    lines = [
        "# Gallery",
        "",
        "Every member of the zoo, by what it changes. A picture shows what it does in a small model; its page has the",
        "equation, the settings, and what our studies found. [What works with what](grid.md) crosses them all.",
    ]
    for kind in DRAWN:
        found = members(kind)
        for family in dict.fromkeys(e.family for e in found):
            title = KINDS[kind] if kind == "schedule" else f"{KINDS[kind]}: {family}"
            lines += ["", f"## {title}", "", '<div class="gallery" markdown>', ""]
            for e in found:
                if e.family == family:
                    picture = f"![](pictures/{e.name}.svg){{ loading=lazy }}"
                    lines.append(f"- [{picture} **{e.name}** {e.title}](zoo.md#{e.name})")
            lines += ["", "</div>"]
    lines += ["", "## Names from the literature", "", "| name | stands for | what it is | year |", "|---|---|---|---|"]
    lines += [f"| `{e.name}` | `{e.scheme}` | {e.title} | {e.year or ''} |" for e in members("alias")]
    return "\n".join(lines) + "\n"


def page(e: Entry) -> str:
    """Return the page of a member.

    Args:
        e: an encoding, an extension or a layer schedule.
    """
    lines = [
        f"# {e.name}", "", f"**{e.title}.** {' '.join(idea(e))}", "",
        *([equation(e.equation), ""] if e.equation else []),
        f"[![What {e.name} does](pictures/{e.name}.svg)](pictures/{e.name}.svg)", "",
        *_facts(e),
        *_try(e),
        *_settings(e),
        *_fits(e),
        *_results(e),
        *_claims(e),
        *_file(e),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def idea(e: Entry) -> list[str]:
    """Return two sentences: what a member does, and where.

    Args:
        e: an encoding, an extension or a layer schedule.
    """
    alone = [other.name for other in members(*DRAWN) if other.cls.__module__ == e.cls.__module__] == [e.name]
    first = _docstring(e).split("\n")[0].partition(": ")[2] if alone else ""
    first = first or e.summary
    if e.kind == "schedule":
        return [_capital(first), f"The layers are {layers(e)}, over and over."]
    changed = dict.fromkeys(ACTS[hook] for hook in ACTS if hasattr(e.cls, hook) and overrides(e.cls, hook))
    second = f"It changes {_and(changed)}" if changed else "It changes nothing in attention"
    if e.kind == "extension":
        at = " and ".join(f"{phase.removesuffix('e')}ing" for phase in e.cls.default_at)
        second += ", at all times" if len(e.cls.default_at) == len(PHASES) else f", in {at} only"
    return [_capital(first), f"{second}."]


def _try(e: Entry) -> list[str]:
    return ["## Try it", "", "```", *commands(e), "```", "", "With `size=test` the study takes seconds.", ""]


def commands(e: Entry) -> list[str]:
    """Return the commands that show a member and train it beside RoPE.

    Args:
        e: an encoding, an extension or a layer schedule.
    """
    scheme = host(e.name) + f"+{e.name}" if e.kind == "extension" else e.name
    beside = "nope" if e.name == "rope" else host(e.name) if e.kind == "extension" else "rope"
    depth = f" model.n_layers={len(parse(e.name).layers)}" if e.kind == "schedule" else ""
    return [f"pezoo show {e.name}", f"pezoo run quickstart 'schemes=[{beside}, {scheme}]'{depth} --out runs/{e.name}"]


def host(extension: str) -> str:
    """Return an encoding with which an extension works: RoPE if it does, else the first of the grid.

    Args:
        extension: its name.
    """
    works = [name for name, column in grid().items() if column[extension] == Pair(WORKS)]
    return "rope" if "rope" in works else works[0]


def _facts(e: Entry) -> list[str]:
    source = ", ".join(filter(None, (e.authors, str(e.year or ""))))
    paper = f"[arXiv {e.arxiv}](https://arxiv.org/abs/{e.arxiv})" if e.arxiv else ""
    path = _path(e)
    facts = {
        "Kind": f"{'layer schedule' if e.kind == 'schedule' else e.kind}, {e.family}",
        "Source": ", ".join(filter(None, (source, paper))),
        "Traits": ", ".join(traits(e)) if e.traits else "",
        "In the literature": ", ".join(said for said, names in _aliases().items() if e.name in names),
        "Known deviations from the kit": "; ".join(f"`{name}`, {why}" for name, why in known_deviations(e).items()),
        "File": f"[`{path}`](../{path})",
    }
    return [*(f"- **{name}:** {text}." for name, text in facts.items() if text), ""]


@cache
def _aliases() -> dict[str, frozenset[str]]:
    """The members of what each name of the literature stands for."""
    found = {e: parse(e.scheme) for e in members("alias")}
    return {f"`{e.name}` is `{e.scheme}`": frozenset((*s.encodings, *s.extensions)) for e, s in found.items()}


def _settings(e: Entry) -> list[str]:
    if not e.parameters:
        return ["## Settings", "", "None.", ""]
    lines = ["## Settings", "", "| setting | default | can be | what it is |", "|---|---|---|---|"]
    for name, facts in e.parameters.items():
        cells = (f"`{e.name}:{name}`", f"`{written(facts['default'])}`", allowed(facts), facts["help"])
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return [*lines, ""]


@cache
def grid() -> dict[str, dict[str, Pair]]:
    """Return what was tried of all pairs, encoding by encoding."""
    return read((DOCS / "grid.md").read_text(encoding="utf-8"))


def _fits(e: Entry) -> list[str]:
    if e.kind == "schedule":
        said = "Extensions join each layer that they fit, as in"
        return ["## What fits", "", f"{said} `{e.name}+yarn`. [All pairs](grid.md).", ""]
    pairs = grid()[e.name] if e.kind == "encoding" else {name: column[e.name] for name, column in grid().items()}
    sign = "+" if e.kind == "encoding" else ""
    what = "extensions" if e.kind == "encoding" else "encodings"
    lines = ["## What fits", "", f"All {what} were tried, with default settings ([all pairs](grid.md)).", ""]
    for mark, meaning in SIGNS.items():
        found = [_member(name, sign) + f" ({p.reason})" * bool(p.reason) for name, p in pairs.items() if p.sign == mark]
        lines += [f"- **{meaning}:** {', '.join(found)}."] if found else []
    reasons: dict[str, list[str]] = {}
    for name, p in pairs.items():
        if p.sign == REFUSED:
            reasons.setdefault(p.reason, []).append(_member(name, sign))
    lines += ["- **Refused:**"] if reasons else []
    lines += [f"  - {', '.join(names)}: {reason}." for reason, names in reasons.items()]
    return [*lines, ""]


def _member(name: str, sign: str = "") -> str:
    return f"[`{sign}{name}`](zoo.md#{name})"


def _results(e: Entry) -> list[str]:
    lines = ["## Results", ""]
    for ranking in results.rankings():
        found = [row for row in ranking.rows if e.name in row.names]
        if not found:
            continue
        title = f"[{ranking.folder.name}](../experiments/results/{ranking.folder.name}/table.md)"
        lines += [f"**{title}:** {in_markdown(ranking.caption)}.", ""]
        plain = [row for row in found if row.alone]
        others = [row for row in found if not row.alone]
        if not plain or len(others) <= MANY:
            plain, others = [*plain, *others], []
        lines += [*_table(ranking, plain), ""]
        if others:
            lines += [f'??? note "With extensions: {len(others)} schemes"', ""]
            lines += [*(f"    {line}" for line in _table(ranking, others)), ""]
    if len(lines) == 2:
        return [*lines, "No published study has it yet. The command above makes one.", ""]
    said = "± is the standard deviation over seeds. The interval, of 95 %, is for another draw of seeds, and of test"
    return [*lines, f"{said} documents where losses by document were kept; see [statistics.md](statistics.md).", ""]


def _table(ranking: results.Ranking, rows: Iterable[results.Row]) -> Iterator[str]:
    near, far = ranking.at
    mean = not near
    columns = {
        "scheme": lambda row: row.label,
        "" if mean else f"at {near}": lambda row: row.near,
        far if mean else f"at {far}": lambda row: row.far,
        "beside the baseline": lambda row: row.effect,
        "interval": lambda row: row.interval,
    }
    kept = {name: of for name, of in columns.items() if any(of(row).strip("–") for row in ranking.rows)}
    yield f"| {' | '.join(kept)} |"
    yield "|---|" + "--:|" * (len(kept) - 1)
    for row in rows:
        yield f"| {' | '.join(in_markdown(of(row)) for of in kept.values())} |"


def _claims(e: Entry) -> list[str]:
    found = [judged for judged, names in results.claims() if e.name in names]
    if not found:
        return []
    lines = ["## Published findings", "", "Judged from our studies; the [scorecard](scorecard.md) says how.", ""]
    lines += ["| finding | verdict | claimed | effect | study |", "|---|---|---|---|---|"]
    for one in found:
        study = f"[{one.claim.recipe}]({one.link})" if one.link else f"`{one.claim.recipe}`"
        cells = (in_markdown(one.claim.claim), one.verdict, scorecard.needed(one.claim.test), scorecard.effect(one))
        lines.append(f"| {' | '.join(cells)} | {study} |")
    return [*lines, ""]


def _file(e: Entry) -> list[str]:
    text = [f"    {line}".rstrip() for line in _docstring(e).split("\n")]
    return ["## In full", "", "What its file says: symbols, shapes, sources, and departures from them.", "", *text]


def _docstring(e: Entry) -> str:
    return ast.get_docstring(ast.parse(inspect.getsource(inspect.getmodule(e.cls)))) or ""


def _path(e: Entry) -> str:
    return Path(getfile(e.cls)).resolve().relative_to(ROOT).as_posix()


def _and(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)}, and {last}" if most else last


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
