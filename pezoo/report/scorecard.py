"""Shows what claims came to: a table for a terminal, and pages in Markdown."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas

from pezoo.escape import in_markdown
from pezoo.files import replacing
from pezoo.report.claims import BEYOND, EVERY, Claim, Decision, Source, read_claims
from pezoo.report.printed import Table
from pezoo.report.shares import ACCURACIES
from pezoo.report.statistics import scale_of
from pezoo.report.verdicts import VERDICTS, Judgement, judge_all
from pezoo.results import LANGUAGE_MODELLING, Result
from pezoo.results.losses import Sources

PAGE = "claims.md"
"""File of a report, where the study tests claims."""
AFTER = "after the fact"
MEANING = {
    "reproduced": "the whole 95 % interval of the effect lies where the claim says",
    "contradicted": "the whole interval lies elsewhere: in this setting an effect of the claimed size can be ruled out",
    "undecided": "the interval crosses the smallest effect that matters, or there is none, as with one seed",
    "not run": "no results of that study, or none of what the claim compares",
}


def of_study(results: Iterable[Result], losses: Sources | None = None) -> list[Judgement]:
    """Say what became of the claims that a study tests; there are none for a study of one's own.

    Args:
        results: of the study.
        losses: where losses by document are, as in `pezoo.results.losses.losses_of`.
    """
    from pezoo.study.reading import own_recipes

    results = list(results)
    mine = {r.study for r in results} & set(own_recipes())
    return judge_all(read_claims(), results, losses) if mine else []


def write(judged: Sequence[Judgement], folder: str | Path) -> None:
    """Write the page of a study's claims into its report, if there are any.

    Raises:
        OSError: if it cannot be written.
    """
    if judged:
        with replacing(Path(folder, PAGE)) as file:
            file.write("\n".join(["# Claims", "", *counts(judged), *sections(judged)]).encode() + b"\n")


def table(judged: Sequence[Judgement]) -> Table:
    """Return what became of claims as a table: a row for each, by its key."""
    rows = [[j.verdict, effect(j), needed(j.claim.test), j.note] for j in judged]
    index = pandas.Index([j.claim.key for j in judged], name="claim")
    frame = pandas.DataFrame(rows, index=index, columns=["verdict", "effect", "claimed", "note"], dtype=object)
    return Table("Claims", "Published findings, judged by the 95 % interval of the effect", frame)


def counts(judged: Sequence[Judgement]) -> list[str]:
    """Return a table in Markdown of how many claims came to what, those judged after the fact apart."""
    lines = [f"| | {' | '.join(VERDICTS)} | all |", "|---" + "|--:" * (len(VERDICTS) + 1) + "|"]
    for name, after in (("claimed before the run", False), (AFTER, True)):
        found = [j.verdict for j in judged if j.claim.after_the_fact == after]
        lines.append(f"| {name} | {' | '.join(str(found.count(v)) for v in VERDICTS)} | {len(found)} |")
    decided = sum(j.verdict in VERDICTS[:2] for j in judged)
    return [*lines, "", f"{decided} of {len(judged)} claims are decided."]


def sections(judged: Sequence[Judgement]) -> list[str]:
    """Return a section in Markdown for each verdict, with a table of its claims."""
    lines: list[str] = []
    for verdict in VERDICTS:
        found = [j for j in judged if j.verdict == verdict]
        if found:
            last = "what would decide" if verdict == "undecided" else "what is missing" if verdict == "not run" else ""
            head = ["claim", "claimed", "effect", *[last] * bool(last), "tested here", "source"]
            lines += ["", f"## {verdict.capitalize()}", "", f"{MEANING[verdict].capitalize()}.", ""]
            lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
            for j in found:
                smaller = f"; {j.note}" * (verdict == "contradicted" and bool(j.note))
                cells = [_claim(j.claim), needed(j.claim.test), effect(j) + smaller, *[j.note] * bool(last)]
                lines.append(f"| {' | '.join([*cells, _tested(j), _source(j.claim)])} |")
    return lines


def disagreements(judged: Sequence[Judgement], elsewhere: Mapping[str, Sequence[Judgement]]) -> list[str]:
    """Return a section in Markdown on claims that other studies decide as well, and on those where they disagree.

    Args:
        judged: what claims came to in their own studies.
        elsewhere: by key of a claim, what `judge_elsewhere` returned for all other studies.
    """
    asked = [j for j in judged if j.verdict in VERDICTS[:2] and elsewhere.get(j.claim.key)]
    turned = [j for j in asked if any(one.verdict != j.verdict for one in elsewhere[j.claim.key])]
    lines = ["", "## In other studies", ""]
    lines += [
        f"Of the decided claims {len(asked)} are decided by other published studies as well, which have the same",
        "comparison with other steps, lengths, learning rates or texts.",
        f"For {len(asked) - len(turned)} of them all studies say the same.",
    ]
    if not turned:
        return lines
    lines += [
        "Of these claims it depends on the study:",
        "",
        "| claim | in its own study | in others |",
        "|---|---|---|",
    ]
    for j in turned:
        others = "; ".join(_said(one) for one in elsewhere[j.claim.key])
        lines.append(f"| {_claim(j.claim)} | {_said(j)} | {others} |")
    return lines


def _said(judged: Judgement) -> str:
    """Return a verdict with its study, how long that trained, and the effect."""
    study = f"[{judged.claim.recipe}]({judged.link})" if judged.link else judged.claim.recipe
    steps, length = judged.results[0].steps, judged.results[0].train_length
    part = f", {judged.claim.test.part}" if judged.claim.test.part else ""
    return f"{judged.verdict} in {study}{part} (L = {length}, {steps:,} steps): {effect(judged)}"


def needed(test: Decision) -> str:
    """Return the effects with which a claim holds.

    >>> needed(Decision(says="lower", by=0.02, protocol="last", label=("alibi",), baseline="rope", at="8x"))
    'at most ×0.980'
    """
    low, high = (_shown(edge, test) if math.isfinite(edge) else "" for edge in test.region)
    return f"{low} to {high}" if low and high else f"at least {low}" if low else f"at most {high}"


def effect(judged: Judgement) -> str:
    """Return the effect with its interval, or a dash."""
    if judged.effect is None:
        return "–"
    test, (low, high) = judged.claim.test, (judged.low, judged.high)
    around = "no interval" if low is None or high is None else f"{_shown(low, test)} to {_shown(high, test)}"
    chain = " / ".join(judged.pair) + ": " if len(test.pairs) > 1 and all(judged.pair) else ""
    return f"{in_markdown(chain)}{_shown(judged.effect, test)} [{around}]"


def _shown(value: float, test: Decision) -> str:
    scale = scale_of(test.metric)
    if test.other is not None:
        return f"{value:.2f}"
    if scale == "log":
        return f"×{value:.3f}" if value < 10 else f"×{value:.3g}"
    return f"{100 * value:+.1f} points" if scale == "share" else f"{value:+.3g}"


def _claim(claim: Claim) -> str:
    mark = f" *({AFTER})*" if claim.after_the_fact else ""
    return f"{in_markdown(claim.claim)}{mark}"


def _source(claim: Claim) -> str:
    source: Source = claim.source
    link = f"[{source.arxiv}](https://arxiv.org/abs/{source.arxiv})" if source.arxiv else f"[code]({source.url})"
    return f"{link}, {claim.where}: {in_markdown(source.scope)}; {in_markdown(source.protocol)}"


def _tested(judged: Judgement) -> str:
    """Return what was compared, in which study, and how large that was."""
    claim, test = judged.claim, judged.claim.test
    study = f"[{claim.recipe}]({judged.link})" if judged.link else f"`{claim.recipe}`"
    task = "all tasks that were learned" if test.task == EVERY else "" if test.task == LANGUAGE_MODELLING else test.task
    facts = [study, test.part, task, f"{test.metric.replace('_', ' ')} ({test.protocol})", compared(test)]
    return "; ".join(filter(None, [*facts, *size(judged)]))


def compared(test: Decision) -> str:
    """Return in words which numbers a claim compares.

    >>> compared(Decision(says="no higher", by=0.02, protocol="last", label=("alibi",), at="8x", baseline_at="1x"))
    '`alibi` at 8L with `alibi` at L'
    """
    if test.other is not None:
        other = f"{test.other.metric.replace('_', ' ')} on {test.other.task} at {_place(test.other.at)}"
        where = f" of {test.other.part}" * (test.other.part != test.part)
        return f"schemes at {_place(test.at)} with their {other}{where}"
    if len(test.label) > 1:
        return f"{', '.join(f'`{label}`' for label in test.label)} at {_place(test.at)}"
    (label, baseline), at = test.pairs[0], _place(test.at)
    there = f" at {at}" if not test.baseline_at else f" at {_place(test.baseline_at)}"
    return f"`{label}`{f' at {at}' if test.baseline_at else ''} with `{baseline}`{there}".replace("|", "\\|")


def _place(at: str) -> str:
    return "lengths beyond L" if at == BEYOND else "L" if at == "1x" else f"{at[:-1]}L"


def size(judged: Judgement) -> list[str]:
    """Return how large the study of a claim was: seeds, test documents or questions, parameters."""
    results = judged.results
    if not results:
        return []
    seeds = len({r.seed for r in results})
    params = max((r.params or 0 for r in results), default=0)
    asked = max(r.n_documents for r in results)
    what = "documents" if all(r.task == LANGUAGE_MODELLING for r in results) else "questions"
    over = f", interval over {_over(judged)}" if judged.low is not None else ""
    return [f"{seeds} seed{'s' * (seeds > 1)}{over}", f"{asked} {what}", f"{params / 1e6:.2f} M parameters"]


def _over(judged: Judgement) -> str:
    """Return for another draw of what an interval is."""
    if judged.claim.test.other is not None:
        return "schemes"
    if judged.claim.test.metric in ACCURACIES:
        return "seeds and questions"
    return "seeds alone" if judged.documents is None else "seeds and documents"
