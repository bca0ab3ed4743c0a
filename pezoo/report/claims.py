"""Published findings as data: what a claim is, and how the file of claims is read and checked.

`experiments/claims.yaml` holds `sources`, by name, and `claims`, each with the one comparison that decides it. What
they came to is in `pezoo.report.verdicts`.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from pezoo.errors import UserError, brief, suggest
from pezoo.report.statistics import PERPLEXITIES
from pezoo.results import LANGUAGE_MODELLING
from pezoo.typed import check_plain, read_yaml

Says = Literal["lower", "higher", "no higher", "no lower", "near", "ranks like"]
"""What a label's metric is beside the baseline's; `ranks like` is of the order of all labels by two metrics."""
BEYOND = "beyond"
"""Stands for the mean over all tested lengths above the training length."""
EVERY = "*"
"""Stands for the mean over all tasks of a part."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a claim comes from."""

    arxiv: str = ""
    url: str = ""
    """Where there is no paper."""
    scope: str
    """What was tested there: size of the models, text, lengths."""
    protocol: str
    """How it was tested there."""


@dataclass(frozen=True, kw_only=True)
class Other:
    """A second number of each scheme, which a claim of correlation has."""

    at: str
    metric: str = "perplexity"
    protocol: str
    part: str = ""
    task: str = LANGUAGE_MODELLING


@dataclass(frozen=True, kw_only=True)
class Decision(Other):
    """The comparison that decides a claim."""

    says: Says
    """What the metric of the label is, compared with that of the baseline."""
    by: float
    """The smallest effect that matters: of perplexities a share, of accuracies points (0.1 are ten), else units."""
    label: tuple[str, ...] = ()
    """One label; or a chain, each compared with the next; none for a correlation, which is over all labels."""
    baseline: str = ""
    """Empty: the label itself, at another length."""
    baseline_at: str = ""
    """Empty: the same length."""
    other: Other | None = None

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The labels that are compared; none for a correlation."""
        beside = self.label[1:] or tuple(self.baseline or label for label in self.label)
        return list(zip(self.label, beside, strict=False))

    @property
    def region(self) -> tuple[float, float]:
        """The effects, from lowest to highest, with which the claim holds."""
        ratio = self.metric in PERPLEXITIES and self.says != "ranks like"
        less, more = (1 / (1 + self.by), 1 + self.by) if ratio else (-self.by, self.by)
        return {
            "lower": (-math.inf, less),
            "no higher": (-math.inf, more),
            "higher": (more, math.inf),
            "no lower": (less, math.inf),
            "near": (less, more),
            "ranks like": (more, math.inf),
        }[self.says]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A published finding, or an open question put as one."""

    key: str
    claim: str
    """One sentence."""
    source: Source
    where: str
    """Where in the source: a table, a figure, a section."""
    recipe: str
    """Name of the study whose results decide."""
    test: Decision
    after_the_fact: bool = False
    """Whether the results that decide it were published before the claim was written."""


def read_claims(path: str | Path | None = None) -> list[Claim]:
    """Read a file of claims and check it.

    Args:
        path: a YAML file; None: the claims that come with pezoo.

    Raises:
        UserError: naming the claim and the key, what was given and what is allowed.
    """
    if path is None:
        from pezoo.study.reading import CLAIMS, recipes_dir

        path = recipes_dir() / CLAIMS
    try:
        found = read_yaml(Path(path).read_text(encoding="utf-8"), long=True)
    except (OSError, UnicodeDecodeError, UserError) as error:
        raise UserError(f"cannot read claims from {path}: {error}") from None
    return parse_claims(found)


def parse_claims(found: Any) -> list[Claim]:
    """Make claims of plain data, as `read_claims` does.

    Raises:
        UserError: as there.
    """
    check_plain(found)
    if not isinstance(found, Mapping) or set(found) != {"sources", "claims"}:
        raise UserError("a file of claims holds two keys, sources and claims")
    sources = {name: _made(Source, given, f"sources.{name}") for name, given in _group(found["sources"], "sources")}
    for name, source in sources.items():
        if bool(source.arxiv) == bool(source.url):
            raise UserError(f"sources.{name} must have an arxiv number or else a url")
    claims: dict[str, Claim] = {}
    for i, given in enumerate(found["claims"] if isinstance(found["claims"], list) else [found["claims"]]):
        key = given.get("key") if isinstance(given, Mapping) else None
        claim = _claim(given, f"claims.{key if isinstance(key, str) else i}", sources)
        if claims.setdefault(claim.key, claim) is not claim:
            raise UserError(f"claims.{claim.key} stands there twice; give one of them another key")
    return list(claims.values())


def _claim(given: Any, where: str, sources: Mapping[str, Source]) -> Claim:
    given = dict(_group(given, where))
    if (name := given.get("source")) not in sources:
        raise UserError(f"{where}.source must be one of sources, got {brief(name)}.{suggest(str(name), sources)}")
    test = dict(_group(given.get("test"), f"{where}.test"))
    if isinstance(test.get("label"), str):
        test["label"] = [test["label"]]
    if test.get("other") is not None:
        test["other"] = _made(Other, test["other"], f"{where}.test.other")
    made = _made(Decision, test, f"{where}.test")
    ranks = made.says == "ranks like"
    if ranks != (made.other is not None) or ranks != (not made.label):
        raise UserError(f"{where}.test: `ranks like` has `other` and no label, everything else a label and no `other`")
    one = len(made.label) == 1 and not made.baseline and made.baseline_at in ("", made.at)
    if one or (len(made.label) > 1 and made.baseline):
        raise UserError(
            f"{where}.test compares {brief(made.label)} with nothing; give baseline, baseline_at or a chain"
        )
    other_tokens = made.protocol == "prefix" or (made.metric == "last_perplexity" and made.protocol != "last")
    if made.task == LANGUAGE_MODELLING and made.baseline_at not in ("", made.at) and other_tokens:
        raise UserError(
            f"{where}.test compares {made.metric} ({made.protocol}) at two lengths, where it is that of other tokens; "
            "take perplexity under non_overlapping, sliding or last"
        )
    if not 0 <= made.by < math.inf or (made.by == 0 and made.says in ("lower", "higher", "near", "ranks like")):
        raise UserError(f"{where}.test.by must be the smallest effect that matters, above 0, got {made.by}")
    return _made(Claim, given | {"source": sources[name], "test": made}, where)


def _group(given: Any, where: str) -> Iterable[tuple[str, Any]]:
    if not isinstance(given, Mapping):
        raise UserError(f"{where} must be a group of keys, got {brief(given)}")
    return given.items()


def _made(cls: type, given: Any, where: str) -> Any:
    """Return an instance of a dataclass, its keys and their types checked."""
    given, hints = dict(_group(given, where)), get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}
    for name in given:
        if name not in known:
            raise UserError(f"{where} has no key {brief(name)}.{suggest(str(name), known)} It has: {', '.join(known)}")
    for name, f in known.items():
        if name not in given and f.default is f.default_factory:
            raise UserError(f"{where} lacks the key {name}")
    for name, value in given.items():
        given[name] = _typed(value, hints[name], f"{where}.{name}", required=known[name].default is f.default_factory)
    return cls(**given)


def _typed(value: Any, hint: Any, where: str, required: bool) -> Any:
    if hint is str and (not isinstance(value, str) or (required and not value.strip())):
        raise UserError(f"{where} must be a text, got {brief(value)}")
    if hint is bool and not isinstance(value, bool):
        raise UserError(f"{where} must be true or false, got {brief(value)}")
    if hint is float and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UserError(f"{where} must be a number, got {brief(value)}")
    if hint == Says and value not in get_args(Says):
        raise UserError(f"{where} must be one of {', '.join(get_args(Says))}, got {brief(value)}")
    if hint == tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise UserError(f"{where} must be a label or a list of labels, got {brief(value)}")
        return tuple(value)
    if where.endswith((".at", ".baseline_at")) and value != BEYOND and not re.fullmatch(r"[1-9]\d*(\.\d+)?x", value):
        raise UserError(
            f"{where} must be a multiple of the training length such as 8x, or {BEYOND}, got {brief(value)}"
        )
    return float(value) if hint is float else value
