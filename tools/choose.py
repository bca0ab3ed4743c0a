"""Which scheme for which purpose, from the published studies: the tables of `docs/choose.md`, README's answer.

`QUESTIONS` says where each question is answered: a study, a number, and the schemes to choose among. Which of them are
best, their numbers and what can be told apart come from the results alone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pezoo.escape import in_markdown
from pezoo.registry import Entry, entry, list_schedules
from pezoo.report import scorecard
from pezoo.report.claims import BEYOND, EVERY, Other
from pezoo.report.comparisons import Comparison, compare, lower_is_better, ties
from pezoo.report.findings import hardly_learned, in_a_row, unlearned
from pezoo.report.finished import Finished
from pezoo.report.groups import WINDOWED, words
from pezoo.report.shares import ACCURACIES
from pezoo.report.statistics import PERPLEXITIES, Summary, summarise
from pezoo.report.verdicts import VERDICTS, Judgement, numbers_of, side_of
from pezoo.results import LANGUAGE_MODELLING, Result
from pezoo.scheme import parse

Studies = Mapping[str, Finished]
"""The published studies, by the name of their folder."""
SHOWN = 3
"""Schemes that a table shows, beside the one that they are compared with."""


@dataclass(frozen=True, kw_only=True)
class Question(Other):
    """Where a question is answered: one number of every scheme of a published study."""

    study: str
    """Its folder in `experiments/results`."""
    beside: str = "rope"
    """Label that the best are compared with."""
    encoding: str = ""
    """The schemes to choose among are built on this one; empty: on any."""
    extensions: tuple[str, ...] = ()
    """They have one of these extensions; empty: any or none."""
    tuned: int | None = 0
    """They were tuned for so many steps; None: for any number."""
    also: tuple[str, ...] = ("1x",)
    """Other lengths that the table shows."""


TEXT = {"metric": "perplexity", "protocol": "non_overlapping"}
ANSWERS = {"metric": "exact_match", "protocol": "answers"}

QUESTIONS: dict[str, Question] = {
    "from_scratch": Question(study="survey", at="8x", **TEXT),
    "newest": Question(study="frontier", part="text", at="16x", tuned=None, also=("1x", "64x"), **TEXT),
    "as_it_is": Question(study="interpolation", part="text", at="8x", encoding="rope", **TEXT),
    "tuned": Question(
        study="interpolation",
        part="text",
        at="8x",
        encoding="rope",
        tuned=200,
        beside="rope, 200 steps @ 8x",
        also=("1x", "16x"),
        **TEXT,
    ),
    "tuned_llama": Question(
        study="extend_pretrained", part="text", at="4x", tuned=200, beside="own, 200 steps @ 4x", **TEXT
    ),
    "other_encodings": Question(study="extend_everything", at="4x", encoding="sinusoidal", beside="sinusoidal", **TEXT),
    "retrieval": Question(study="recall", part="retrieval", task=EVERY, at="8x", **ANSWERS),
    "newest_retrieval": Question(study="frontier", part="recall", task="passkey", at="16x", tuned=None, **ANSWERS),
    "algorithms": Question(study="length_generalization", task=EVERY, at=BEYOND, **ANSWERS),
    "encoder": Question(study="randomized", task=EVERY, at=BEYOND, metric="token_accuracy", protocol="answers"),
    "streaming": Question(study="composition", at="16x", extensions=("window", "sinks", "lm_infinite"), **TEXT),
    "nothing_lost": Question(
        study="interpolation", part="text", at="1x", encoding="rope", tuned=200, also=("8x",), **TEXT
    ),
    "never_longer": Question(study="survey", at="1x", **TEXT),
}
"""Questions by the name of their block."""


@dataclass(frozen=True)
class Answer:
    """What a study says to a question."""

    question: Question
    results: list[Result]
    """The numbers that the question is about."""
    tasks: dict[str, list[Result]]
    """The same for each task."""
    missed: dict[str, list[Result]]
    """Values at L of the tasks that no scheme learned; those count only if there are no others."""
    ranked: list[str]
    """The schemes to choose among that have a value with every seed, the best first."""
    lost: int
    """How many others lack a value, since they are undefined there or diverged."""
    beside: dict[str, Comparison]
    """The best of them, each compared with the question's other scheme."""
    ties: list[str]
    """Those of them that cannot be told apart from the best, corrected for their number."""

    @property
    def best(self) -> str:
        """The label of the best."""
        return self.ranked[0]

    def at(self, label: str, at: str) -> Summary:
        """Return what the seeds of a scheme say at a multiple of the training length."""
        return summarise(side_of(self.results, label, at))

    def scheme(self, label: str) -> str:
        """Return the scheme that a label stands for."""
        return next(r.scheme for r in self.results if r.label == label)


def answer(question: Question, studies: Studies, shown: int = SHOWN) -> Answer | None:
    """Return what the published study says to a question; None if it is not published.

    Raises:
        NotTested: if the study has no such numbers, or none of the scheme to compare with.
    """
    study = studies.get(question.study)
    if study is None:
        return None
    found = [r for r in numbers_of(study.results, question) if not r.label.endswith(WINDOWED)]
    labels = _different([r for r in found if _among(r, question)], question.at)
    summaries = {label: summarise(side_of(found, label, question.at)) for label in labels}
    means = {label: one.whole_mean for label, one in summaries.items() if one.whole_mean is not None}
    ranked = sorted(means, key=lambda label: means[label], reverse=not lower_is_better(question.metric))
    length = side_of(found, question.beside, question.at)[0].test_length
    beside = {label: compare(found, label, question.beside, length, study.losses) for label in ranked[:shown]}
    tied = ties(found, ranked, length, study.losses)
    tasks, missed = _each_task(question, study), {}
    if question.task == EVERY:
        in_range = _each_task(replace(question, at="1x"), study)
        missed = {task: in_range[task] for task in unlearned(in_range)}
    counted = {task: each for task, each in tasks.items() if task not in missed} or tasks
    return Answer(question, found, counted, missed, ranked, len(labels) - len(ranked), beside, tied)


def _among(result: Result, question: Question) -> bool:
    """Return whether the scheme of a result is one to choose."""
    wanted = not question.extensions or bool(set(question.extensions) & set(result.extensions))
    return wanted and question.encoding in ("", result.encoding) and question.tuned in (None, result.finetune_steps)


def _different(results: list[Result], at: str) -> list[str]:
    """Return the labels, but of those that are one and the same model there only the plainest.

    Such labels have one perplexity to the last digit. Accuracies may be alike by chance, as where all are right.
    """
    values: dict[object, list[str]] = {}
    for label in dict.fromkeys(r.label for r in results):
        mine = [(r.seed, r.value) for r in side_of(results, label, at)]
        told = results[0].metric in PERPLEXITIES and all(value is not None for _, value in mine)
        values.setdefault(tuple(mine) if told else label, []).append(label)
    return [min(alike, key=len) for alike in values.values()]


# ---- tables of docs/choose.md --------------------------------------------------------------------


def block(name: str, studies: Studies) -> str:
    """Return the answer to a question by its name, as `block_of` does."""
    return block_of(QUESTIONS[name], studies)


def block_of(question: Question, studies: Studies) -> str:
    """Return the answer to a question in Markdown: a sentence, a table of the best, what it rests on."""
    found = answer(question, studies)
    if found is None:
        return f"Not run yet. `pezoo run {question.study}` will say.\n"
    columns = _columns(found)
    head = ["scheme", *columns, f"beside `{in_markdown(question.beside)}`", "the idea"]
    lines = [sentence(found), "", f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 2) + "|---|"]
    if warning := hardly_learned(found.missed):
        none = found.missed.keys() >= found.tasks.keys()
        beware = f"**Beware.** {warning} So they are not counted."
        lines[:1] = [f"**No answer yet.** {warning}"] if none else [lines[0], "", beware]
    said: set[str] = set()
    for label in dict.fromkeys([*found.beside, question.beside]):
        values = [_value(summarise(side_of(each, label, at)), question.metric) for each, at in columns.values()]
        ratio = effect(found.beside[label]) if label in found.beside and label != question.beside else "–"
        idea = _idea(label, found.scheme(label))
        shown = "the same" if idea in said else idea
        lines.append(f"| {' | '.join([_linked(label, found.scheme(label)), *values, ratio, shown])} |")
        said.add(idea)
    return "\n".join([*lines, "", _rests_on(found)]) + "\n"


def _columns(found: Answer) -> dict[str, tuple[list[Result], str]]:
    """Return the columns of a table: of several tasks one for each and their mean, else one for L and one far out."""
    question, name = found.question, words(found.question.metric)
    if question.task == EVERY:
        each = {task: (results, question.at) for task, results in found.tasks.items()}
        return each | {"mean": (found.results, question.at)}
    return {
        f"{name} {place_of(at)}": (found.results, at)
        for at in sorted({*question.also, question.at}, key=lambda at: float(at[:-1]))
    }


def _each_task(question: Question, study: Finished) -> dict[str, list[Result]]:
    """Return the numbers that a question over several tasks is about, by task."""
    tasks = dict.fromkeys(r.task for r in study.results if r.part == question.part)
    return {task: numbers_of(study.results, replace(question, task=task)) for task in tasks}


def claimed(beginning: str, judged: Iterable[Judgement]) -> str:
    """Return what became of the claims whose keys begin alike, in Markdown: a line for each."""
    mine = [j for j in judged if j.claim.key.startswith(beginning)]
    if not_run := {j.claim.recipe for j in mine if j.verdict == "not run"}:
        return f"Not run yet. `pezoo run {not_run.pop()}` will say.\n"
    said = (
        f"- {j.claim.claim} {j.verdict.capitalize()}, with {_measure(j)} of {scorecard.effect(j)} "
        f"([{j.claim.recipe}]({j.link}))."
        for j in mine
    )
    return "\n".join(said) + "\n"


def _measure(judged: Judgement) -> str:
    """Return what a claim's effect is: of two numbers over schemes, how alike they rank."""
    return "a rank correlation" if judged.claim.test.other is not None else "an effect"


def sentence(found: Answer) -> str:
    """Return in a sentence which scheme is best, and which cannot be told apart from it."""
    question, best = found.question, found.best
    name, at = f"`{in_markdown(best)}`", place_of(question.at)
    value = _value(found.at(best, question.at), question.metric)
    have = "has" if found.lost == 1 else "have"
    others = f" ({found.lost} more {have} no value {at})" if found.lost else ""
    among = f"the best of {len(found.ranked)} schemes{others}"
    if found.ties:
        names = in_a_row([f"`{in_markdown(label)}`" for label in (best, *found.ties)])
        said = f"{names.replace(name, f'**{name}**', 1)} are {among}, and cannot be told apart: "
        said += f"{name} has {_measured(found)} "
    else:
        said = f"**{name}** is {among}: {_measured(found)} "
    said += f"{value} {at}"
    if best != question.beside:
        said += f", {effect(found.beside[best])} beside `{in_markdown(question.beside)}`"
    return f"{said}."


def _measured(found: Answer) -> str:
    """Return what was measured, in words."""
    metric, tasks = words(found.question.metric), list(found.tasks)
    if found.question.task != EVERY:
        return metric
    return f"mean {metric} of {len(tasks)} tasks" if len(tasks) > 1 else f"{metric} of {tasks[0]}"


def place_of(at: str) -> str:
    """Return in words at which lengths a number is taken."""
    return "over the tested lengths beyond L" if at == BEYOND else "at L" if at == "1x" else f"at {at[:-1]}L"


def effect(one: Comparison) -> str:
    """Return how a scheme compares, with the 95 % interval where there is one: "×0.61 [0.59 to 0.64]"."""
    if one.effect is None:
        return "–"
    if one.metric in PERPLEXITIES:
        text, form = f"×{one.effect:.2f}", "{:.2f}"
        ends = (one.low, one.high)
    else:
        text, form = f"{100 * one.effect:+.1f} points", "{:+.1f}"
        ends = tuple(None if end is None else 100 * end for end in (one.low, one.high))
    if None in ends:
        return f"{text} [one seed, no interval]"
    return f"{text} [{form.format(ends[0])} to {form.format(ends[1])}]"


def _value(summary: Summary, metric: str) -> str:
    return f"{summary} %" if metric in ACCURACIES and summary.mean is not None else str(summary)


def _parts(label: str, scheme: str) -> list[Entry]:
    """The members that set a scheme apart: its extensions if it has any; none of a mixture without a name."""
    if label in list_schedules():
        return [entry(label)]
    spec = parse(scheme)
    return [] if spec.layers or spec.heads else [entry(name) for name in spec.extensions or spec.encodings]


def _linked(label: str, scheme: str) -> str:
    parts, text = _parts(label, scheme), f"`{in_markdown(label)}`"
    return f"[{text}](zoo.md#{parts[-1].name})" if parts else text


def _idea(label: str, scheme: str) -> str:
    """Return what sets a scheme apart, in words."""
    return in_markdown(" ".join(part.summary for part in _parts(label, scheme))) or "A mixture of schemes."


def _rests_on(found: Answer) -> str:
    """Return what numbers stand on, with a link to the study."""
    question, one = found.question, found.results[0]
    link = f"[{question.study}](../experiments/results/{question.study}/table.md)"
    on = f"{len(found.tasks)} tasks" if question.task == EVERY else in_markdown(one.corpus)
    seeds = len({r.seed for r in found.results})
    asked = sum(max(r.n_documents for r in results) for results in found.tasks.values())
    sizes = [r.params for r in found.results if r.label in found.beside and r.params]
    what = "documents" if question.task == LANGUAGE_MODELLING else "questions"
    facts = [on, f"{question.protocol} protocol", f"L = {one.train_length}", _steps(found), _millions(sizes)]
    facts += [f"{seeds} seed{'s' * (seeds > 1)}", f"{asked} {what}", _interval(found.beside.values())]
    facts += [
        f"made with pezoo {version}" for version in _ends(r.versions.get("pezoo", "") for r in found.results) if version
    ]
    return f"*From {link}: {'; '.join(facts)}.*"


def _steps(found: Answer) -> str:
    """Return how long the schemes were trained."""
    steps = " to ".join(f"{n:,}" for n in _ends(r.steps for r in found.results))
    return f"{steps} steps"


def _ends(values: Iterable[Any]) -> list[Any]:
    """Return the least and the greatest; one where they are the same."""
    values = sorted(set(values))
    return values if len(values) < 2 else [values[0], values[-1]]


def _millions(sizes: Iterable[int]) -> str:
    ends = dict.fromkeys(f"{n / 1e6:.2g}" for n in _ends(sizes))
    return f"{' to '.join(ends)} million parameters"


def _interval(compared: Iterable[Comparison]) -> str:
    """Return for what the intervals hold."""
    with_one = [one for one in compared if one.low is not None]
    if not with_one:
        return "no intervals"
    if with_one[0].metric in ACCURACIES:
        return "95 % intervals over seeds and questions"
    both = all(one.documents is not None for one in with_one)
    return "95 % intervals over seeds and documents" if both else "95 % intervals over seeds alone"


# ---- README's answer -----------------------------------------------------------------------------

CASES = {
    "newest": "A decoder trained from scratch and used far beyond its training length, as from 2k to 16k",
    "as_it_is": "A trained RoPE model, used at eight times its length as it is",
    "tuned": "The same, after a short tuning at that length",
    "retrieval": "Finding what stood far back, which perplexity does not show",
}
"""Questions that README answers, each with the case that it speaks of."""


def readme(studies: Studies, judged: Iterable[Judgement]) -> str:
    """Return what was found in five sentences, each with a link to the table that it comes from, and on what models."""
    lines: list[str] = []
    used: list[Result] = []
    for name, case in CASES.items():
        question = QUESTIONS[name]
        if (found := answer(question, studies)) is not None:
            link = f"[{question.study}](experiments/results/{question.study}/table.md)"
            facts = [f"L = {found.results[0].train_length}", _steps(found)]
            facts += ["intervals over seeds alone"] * ("seeds alone" in _interval(found.beside.values()))
            lines.append(f"- **{case}:** {sentence(found).replace('**', '')[:-1]} ({'; '.join([*facts, link])}).")
            used += found.results
    lines.append(f"- **Findings of papers:** {_decided(list(judged))} ([scorecard](docs/scorecard.md)).")
    models = f"These models have {_millions(r.params for r in used if r.params)}."
    return "\n".join([*lines, "", models]) + "\n"


def _decided(judged: list[Judgement]) -> str:
    """Return in two sentences how many claims are decided, how, and how many were written before the run."""
    decided = [j for j in judged if j.verdict in VERDICTS[:2]]
    held = sum(j.verdict == VERDICTS[0] for j in decided)
    before = sum(not j.claim.after_the_fact for j in decided)
    return (
        f"our runs decide {len(decided)} of {len(judged)} claims, {before} of them written down before the run. "
        f"{held} hold here, {len(decided) - held} do not"
    )
