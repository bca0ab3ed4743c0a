"""The questions that pages answer from published studies, and what the numbers say to them.

`QUESTIONS` says where each question is answered: a study, a number, and the schemes to choose among. Which of them are
best, and what can be told apart, come from the results alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pezoo.report.claims import BEYOND, EVERY, Other
from pezoo.report.comparisons import Comparison, compare, lower_is_better, ties
from pezoo.report.findings import unlearned
from pezoo.report.finished import Finished
from pezoo.report.groups import WINDOWED
from pezoo.report.statistics import PERPLEXITIES, Summary, summarise
from pezoo.report.verdicts import NotTested, numbers_of, side_of
from pezoo.results import LANGUAGE_MODELLING, Result

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
    rows: tuple[str, ...] = ()
    """Other labels that the table shows."""
    encoding: str = ""
    """The schemes to choose among are built on this one; empty: on any."""
    extensions: tuple[str, ...] = ()
    """They have one of these extensions; empty: any or none."""
    tuned: int | None = 0
    """They were tuned for so many steps; None: for any number, but never on a text that is longer than L."""
    also: tuple[str, ...] = ("1x",)
    """Other lengths that the table shows."""
    besides: Mapping[str, str] | None = None
    """What is asked otherwise in a second question to the same schemes, whose number the table shows as well: what the
    first one hides."""


TEXT = {"metric": "perplexity", "protocol": "non_overlapping"}
ANSWERS = {"metric": "exact_match", "protocol": "answers"}
PASSKEYS = {"task": "passkey", **ANSWERS}

TUNED_LONG = ("rope, 100 steps @ 16x", "rope+yarn:beta_fast=4, 100 steps @ 16x")
"""Rows of `frontier` that saw texts of 16L in a tuning: not to choose among, where none other did."""

QUESTIONS: dict[str, Question] = {
    "from_scratch": Question(study="survey", at="8x", **TEXT),
    "on_books": Question(study="survey-books", at="8x", **TEXT),
    "newest": Question(
        study="frontier",
        part="text",
        at="8x",
        beside="rope+window",
        rows=("rope", *TUNED_LONG),
        tuned=None,
        also=("1x", "64x"),
        besides={"part": "recall", **PASSKEYS},
        **TEXT,
    ),
    "schedules": Question(
        study="hybrids",
        part="text",
        at="16x",
        besides={"part": "recall", "at": "8x", **PASSKEYS},
        **TEXT,
    ),
    "as_it_is": Question(
        study="interpolation",
        part="text",
        at="8x",
        encoding="rope",
        besides={"part": "passkey", **PASSKEYS},
        **TEXT,
    ),
    "tuned": Question(
        study="interpolation",
        part="text",
        at="8x",
        encoding="rope",
        tuned=200,
        beside="rope, 200 steps @ 8x",
        also=("1x", "16x"),
        besides={"part": "passkey", **PASSKEYS},
        **TEXT,
    ),
    "tuned_llama": Question(
        study="extend_pretrained",
        part="text",
        at="4x",
        tuned=200,
        beside="own, 200 steps @ 4x",
        besides={"part": "recall", **PASSKEYS},
        **TEXT,
    ),
    "other_encodings": Question(study="extend_everything", at="4x", encoding="sinusoidal", beside="sinusoidal", **TEXT),
    "retrieval": Question(study="recall", part="retrieval", task=EVERY, at="8x", **ANSWERS),
    "newest_retrieval": Question(
        study="frontier",
        part="recall",
        at="8x",
        rows=TUNED_LONG,
        tuned=None,
        besides={"part": "text", "task": LANGUAGE_MODELLING, **TEXT},
        **PASSKEYS,
    ),
    "algorithms": Question(study="length_generalization", task=EVERY, at=BEYOND, **ANSWERS),
    "encoder": Question(study="randomized", task=EVERY, at=BEYOND, metric="token_accuracy", protocol="answers"),
    "streaming": Question(study="composition", at="16x", extensions=("window", "sinks", "lm_infinite"), **TEXT),
    "nothing_lost": Question(
        study="interpolation",
        part="text",
        at="1x",
        encoding="rope",
        tuned=200,
        also=("8x",),
        besides={"part": "passkey", **PASSKEYS},
        **TEXT,
    ),
    "never_longer": Question(
        study="frontier",
        part="text",
        at="1x",
        tuned=None,
        besides={"part": "recall", **PASSKEYS},
        **TEXT,
    ),
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
    """What has a row, each compared with the question's other scheme: the best, and the best of the other question."""
    ties: list[str]
    """Those of them that cannot be told apart from the best, corrected for their number."""
    besides: "Answer | None" = None
    """What the study says to the question that stands beside it."""

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
    labels = _different([r for r in found if among(r, question)], question.at)
    summaries = {label: summarise(side_of(found, label, question.at)) for label in labels}
    means = {label: one.whole_mean for label, one in summaries.items() if one.whole_mean is not None}
    ranked = sorted(means, key=lambda label: means[label], reverse=not lower_is_better(question.metric))
    length = side_of(found, question.beside, question.at)[0].test_length
    asked = found
    if question.tuned is None:  # what saw longer texts is shown, and moves no verdict
        asked = [r for r in found if not saw_longer(r)]
    tied = ties(asked, ranked, length, study.losses)
    tasks, missed = {question.task: found}, {}
    if question.task == EVERY:
        tasks = each_task(question, study)
        in_range = each_task(replace(question, at="1x"), study)
        missed = {task: in_range[task] for task in unlearned(in_range)}
    counted = {task: each for task, each in tasks.items() if task not in missed} or tasks
    besides = question.besides and answer(replace(question, besides=None, **question.besides), studies)
    rows = ranked[:shown]
    wanted = [label for label in (besides.ranked[:1] if besides else []) if label in ranked]
    wanted += [label for label in question.rows if _has_value(found, label, question.at)]
    rows += [label for label in dict.fromkeys(wanted) if label not in rows]
    known = {r.label for r in asked}
    compared = {label: asked if label in known else found for label in rows}
    beside = {label: compare(each, label, question.beside, length, study.losses) for label, each in compared.items()}
    return Answer(question, found, counted, missed, ranked, len(labels) - len(ranked), beside, tied, besides)


def _has_value(results: list[Result], label: str, at: str) -> bool:
    """Return whether each seed of a scheme has a value there."""
    try:
        return summarise(side_of(results, label, at)).whole_mean is not None
    except NotTested:
        return False


def among(result: Result, question: Question) -> bool:
    """Return whether the scheme of a result is one to choose."""
    wanted = not question.extensions or bool(set(question.extensions) & set(result.extensions))
    tuned = not saw_longer(result) if question.tuned is None else question.tuned == result.finetune_steps
    return wanted and tuned and question.encoding in ("", result.encoding)


def saw_longer(result: Result) -> bool:
    """Return whether a model was tuned on texts that are longer than L."""
    return (result.finetune_length or 0) > result.train_length


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


def each_task(question: Question, study: Finished) -> dict[str, list[Result]]:
    """Return the numbers that a question over several tasks is about, by task."""
    tasks = dict.fromkeys(r.task for r in study.results if r.part == question.part)
    return {task: numbers_of(study.results, replace(question, task=task)) for task in tasks}
