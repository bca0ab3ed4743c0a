"""Which scheme for which purpose, in words: the tables of `docs/choose.md`, README's answer.

What the numbers say comes from `tools/questions.py`.
"""

from collections.abc import Iterable
from typing import Any

from pezoo.escape import in_markdown
from pezoo.registry import Entry, entry, list_schedules
from pezoo.report import scorecard
from pezoo.report.claims import BEYOND, EVERY
from pezoo.report.comparisons import Comparison, lower_is_better
from pezoo.report.costs import by_clock, costs, training_seconds
from pezoo.report.findings import at_an_end, hardly_learned, in_a_row, unlearned
from pezoo.report.groups import words
from pezoo.report.shares import ACCURACIES
from pezoo.report.statistics import PERPLEXITIES, TOLERANCE, Summary, summarise
from pezoo.report.verdicts import VERDICTS, Judgement, NotTested, rank_correlation, side_of
from pezoo.results import LANGUAGE_MODELLING, Result
from pezoo.scheme import parse
from tools import speed
from tools.questions import QUESTIONS, SHOWN, Answer, Question, Studies, answer, saw_longer

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
    ideas = found.besides is None  # else the table is wide enough; names lead to them
    where = "" if question.at == BEYOND else f" {place_of(question.at)}"
    head = ["scheme", f"beside `{in_markdown(question.beside)}`{where}", *columns, *(["the idea"] * ideas)]
    rule = "|---" + "|---:" * (len(head) - 1 - ideas) + "|---" * ideas + "|"
    lines = [" ".join(sentences(found)), "", f"| {' | '.join(head)} |", rule]
    if (warning := hardly_learned(found.missed)) and found.missed.keys() >= found.tasks.keys():
        lines[0] = f"**No answer yet.** {warning}"
    else:
        warnings = [f"{warning} So they are not counted."] if warning else []
        warnings += filter(None, [at_an_end(_shown(found))])
        lines[1:1] = [line for each in warnings for line in ("", f"**Beware.** {in_markdown(each)}")]
    said: set[str] = set()
    for label in dict.fromkeys([*found.beside, question.beside]):
        values = [_at(each, label, at) for each, at in columns.values()]
        ratio = effect(found.beside[label]) if label in found.beside and label != question.beside else "–"
        idea = _idea(label, found.scheme(label))
        shown = "the same" if idea in said else idea
        cells = [_linked(label, found.scheme(label)), ratio, *values, *([shown] * ideas)]
        lines.append(f"| {' | '.join(cells)} |")
        said.add(idea)
    if question.encoding and (rival := _in_pieces(found)):
        lines += [
            "",
            f"The same text cut into pieces of L, each read for itself, gives {rival}. What is not below that gains "
            "nothing from the longer text; what is below may only see more of the last L tokens.",
        ]
    return "\n".join([*lines, "", _rests_on(found)]) + "\n"


def on_another_text(name: str, other: str, studies: Studies) -> str:
    """Return the answer to a question, and how alike it and another one rank the schemes that both have."""
    two = [answer(QUESTIONS[each], studies) for each in (name, other)]
    said = block(name, studies)
    if two[0] is None or two[1] is None:
        return said
    both = [label for label in two[0].ranked if label in two[1].ranked]
    if len(both) < 4:
        return said
    means = [[found.at(label, found.question.at).whole_mean or 0.0 for label in both] for found in two if found]
    rho, low, high = rank_correlation(*means)
    return said + (
        f"\nThis study and [{two[1].question.study}](../experiments/results/{two[1].question.study}/table.md) rank "
        f"{len(both)} schemes {place_of(two[0].question.at)} with a correlation of {rho:.2f} "
        f"[{low:.2f} to {high:.2f}]; 1 is the same order, 0 none in common.\n"
    )


def _columns(found: Answer) -> dict[str, tuple[list[Result], str]]:
    """Return the columns of a table: of several tasks one for each and their mean, else one for L and one far out."""
    question, name = found.question, words(found.question.metric)
    if question.task == EVERY:
        each = {task: (results, question.at) for task, results in found.tasks.items()}
        return each | {"mean": (found.results, question.at)}
    columns = {
        f"{name} {place_of(at)}": (found.results, at)
        for at in sorted({*question.also, question.at}, key=lambda at: float(at[:-1]))
    }
    if (other := found.besides) is not None:
        what = words(other.question.metric) if other.question.task == LANGUAGE_MODELLING else other.question.task
        asked = {"1x", other.question.at} if other.question.metric in ACCURACIES else {other.question.at}
        columns |= {
            f"{what} {place_of(at)}": (other.results, at) for at in sorted(asked, key=lambda at: float(at[:-1]))
        }
    return columns


def _shown(found: Answer) -> list[Result]:
    """Return the results of the rows of a table."""
    return [r for r in found.results if r.label in found.beside or r.label == found.question.beside]


def _in_pieces(found: Answer) -> str:
    """Return what a model that was trained without extensions makes of the same text in pieces of L, a free rival."""
    question = found.question
    if question.task != LANGUAGE_MODELLING or question.protocol != "non_overlapping" or question.at == "1x":
        return ""
    plain = parse(found.scheme(question.beside))
    labels = (r.label for r in found.results if not r.finetune_steps and parse(r.scheme) == plain)
    label = next(labels, question.beside)
    said = f"`{in_markdown(label)}` {_at(found.results, label, '1x')}"
    near, far = found.at(label, "1x").whole_mean, found.at(found.best, question.at).whole_mean
    return f"{said}, which is lower still" if question.encoding and near and far and near < far else said


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


def sentences(found: Answer) -> list[str]:
    """Return which scheme is best, and which cannot be told apart from it; then, a sentence each, what else to know."""
    return [said for said in (_first(found), _time(found), _besides(found), _tuned(found)) if said]


def _first(found: Answer) -> str:
    question, best = found.question, found.best
    name, at = f"`{in_markdown(best)}`", place_of(question.at)
    value = _value(found.at(best, question.at), question.metric)
    have = "has" if found.lost == 1 else "have"
    others = f" ({found.lost} more {have} no value {at})" if found.lost else ""
    schemes = f"{len(found.ranked)} schemes{others}"
    alike = 0 < len(found.ties) == len(found.ranked) - 1
    alike &= question.beside in found.ties or len(found.ties) > SHOWN  # else each is named
    said = f"**{name}** is {'first' if found.ties else 'the best'} of {schemes}"
    if alike:  # though one of them alone, beside the first, might be
        corrected = question.beside in found.ties and found.beside[best].verdict != "tie"
        said += f", which cannot be told apart{' by tests that allow for their number' if corrected else ''}"
    said += f": {_measured(found)} {value} {at}"
    if best != question.beside:
        said += f", {effect(found.beside[best])} beside `{in_markdown(question.beside)}`"
    tied = {label: f"`{in_markdown(label)}`" for label in found.ties}
    if question.beside in tied and not alike:
        said += f". It cannot be told apart from {tied[question.beside]}"
    elif tied and not alike:
        each = [f"{shown} ({_at(found.results, label, question.at)})" for label, shown in tied.items()]
        said += f". {in_a_row(each)} cannot be told apart from it"
    return f"{said}."


def _time(found: Answer) -> str:
    """Return in a sentence how long the best trains beside the other scheme, where that differs and was measured."""
    question, best = found.question, found.best
    spent = costs(_shown(found))
    seconds = training_seconds(spent)
    if question.encoding or by_clock(spent) or question.beside not in seconds:
        return ""
    ratio = seconds[best] / seconds[question.beside]
    if abs(ratio - 1) <= TOLERANCE:
        return ""
    said = f"Training it at L takes ×{ratio:.1f} the processor time of `{in_markdown(question.beside)}`"
    if (longer := speed.forward(found.scheme(best))) is not None and longer[1] > 2:
        said += f"; a forward of {longer[0]:,} tokens takes ×{longer[1]:.0f} that of `nope` ([speed](speed.md))"
    return f"{said}."


def _besides(found: Answer) -> str:
    """Return in a sentence what the best does where the other question asks, and which scheme is best there."""
    other, best = found.besides, found.best
    if other is None or best not in other.ranked:
        return ""
    at, first, what = other.question.at, other.best, words(other.question.metric)
    value, place = _at(other.results, best, at), place_of(at)
    if other.question.task == LANGUAGE_MODELLING:
        said = f"Trained on text instead, it has {what} {value} {place}"
    elif unlearned({"": [r for r in other.results if r.label == best]}):
        at_l = _at(other.results, best, "1x")
        said = f"Trained on {other.question.task} instead, it did not learn that: {at_l} right even at L"
    else:
        said = f"Trained on {other.question.task} instead, it answers {value} right {place}"
    if first != best and first in found.ranked:
        here, name = found.question, f"`{in_markdown(first)}`"
        rank = "first" if other.ties else "best"
        said += f"; {name} is {rank} there, with {_at(other.results, first, at)} {place}, and has "
        said += f"{words(here.metric)} {_at(found.results, first, here.at)} {place_of(here.at)}"
    return f"{said}."


def _tuned(found: Answer) -> str:
    """Return in a sentence what the better of the rows does that were tuned on longer texts; others saw none."""
    question, other = found.question, found.besides
    longer = sorted(
        {r.label for r in found.results if r.label in found.beside and saw_longer(r) and question.tuned is None}
    )
    if not longer:
        return ""
    choose = min if lower_is_better(question.metric) else max
    best = choose(longer, key=lambda label: found.at(label, question.at).whole_mean or 0.0)
    value, place = _at(found.results, best, question.at), place_of(question.at)
    one = next(r for r in found.results if r.label == best)
    texts = place_of(f"{(one.finetune_length or 0) / one.train_length:g}x").removeprefix("at ")
    said = f"Tuned for {one.finetune_steps} steps on texts of {texts}, of which the others saw none, "
    said += f"`{in_markdown(best.partition(', ')[0])}` has {words(question.metric)} {value} {place}"
    if other is not None and other.question.metric in ACCURACIES:
        right, place = _at(other.results, best, other.question.at), place_of(other.question.at)
        said += f"; trained and tuned on {other.question.task} instead, it answers {right} right {place}"
    return f"{said}."


def _measured(found: Answer) -> str:
    """Return what was measured, in words."""
    metric, tasks = words(found.question.metric), list(found.tasks)
    if found.question.task != EVERY:
        return metric
    named = in_a_row(tasks) if len(tasks) < 4 else f"{len(tasks)} tasks"
    return f"mean {metric} of {named}" if len(tasks) > 1 else f"{metric} of {tasks[0]}"


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
        why = f"{one.lost} of {one.lost + one.seeds} seeds lost" if one.lost else "one seed"
        return f"{text} [{why}, no interval]"
    return f"{text} [{form.format(ends[0])} to {form.format(ends[1])}]"


def _at(results: list[Result], label: str, at: str) -> str:
    """Return what the seeds of a scheme say at a multiple of the training length; a dash if it was not asked."""
    try:
        mine = side_of(results, label, at)
    except NotTested:
        return "–"
    return _value(summarise(mine), mine[0].metric)


def _value(summary: Summary, metric: str) -> str:
    return f"{summary} %" if metric in ACCURACIES and summary.mean is not None else str(summary)


def _parts(label: str, scheme: str) -> list[Entry]:
    """The members that set a scheme apart: its extensions if it has any; none of a mixture without a name."""
    if (name := label.partition(":")[0]) in list_schedules():
        return [entry(name)]
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
    question = found.question
    link = f"[{question.study}](../experiments/results/{question.study}/table.md)"
    facts = [*_models(found), _interval(found.beside.values())]
    facts += [
        f"made with pezoo {version}" for version in _ends(r.versions.get("pezoo", "") for r in found.results) if version
    ]
    said = f"*From {link}: {'; '.join(facts)}.*"
    if (other := found.besides) is not None:
        task = "text" if other.question.task == LANGUAGE_MODELLING else other.question.task
        said += f" *The numbers of {task} are of other models, trained on that: {'; '.join(_models(other))}.*"
    return said


def _models(found: Answer) -> list[str]:
    """Return on what, and with what models, numbers were measured."""
    question, one = found.question, found.results[0]
    on = f"{len(found.tasks)} tasks" if question.task == EVERY else in_markdown(one.corpus)
    seeds = len({r.seed for r in found.results})
    asked = sum(max(r.n_documents for r in results) for results in found.tasks.values())
    sizes = [r.params for r in found.results if r.label in found.beside and r.params]
    what = "documents" if question.task == LANGUAGE_MODELLING else "questions"
    facts = [on, f"{question.protocol} protocol", f"L = {one.train_length}", _steps(found), _millions(sizes)]
    return [*facts, f"{seeds} seed{'s' * (seeds > 1)}", f"{asked} {what}"]


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
            best = _linked(found.best, found.scheme(found.best)).replace("](", "](docs/")
            said, *more = sentences(found)
            idea = _idea(found.best, found.scheme(found.best)).removesuffix(".")
            said = said.replace(f"**`{in_markdown(found.best)}`**", f"{best} ({idea[0].lower()}{idea[1:]})", 1)
            more = [each.replace("](speed.md)", "](docs/speed.md)") for each in more]
            if (other := found.besides) is not None:
                on = f"Trained on {other.question.task} instead"
                where = f"{on} (L = {other.results[0].train_length}, {_steps(other)})"
                more = [each.replace(on, where, 1) for each in more]
            if rival := _in_pieces(found):
                first = f"`{in_markdown(found.best)}` {_at(found.results, found.best, '1x')}"
                own = "" if question.encoding else f"{first} and "
                more.append(f"The same text cut into pieces of L, each read for itself, gives {own}{rival}.")
            named = {found.best, question.beside, *found.ties}
            if at_an_end(r for r in found.results if r.label in named):
                facts.append("best learning rates at an end of those tried")
            lines += [f"- **{case}:** {said[:-1]} ({'; '.join([*facts, link])}).", *(f"  - {each}" for each in more)]
            used += found.results
    lines.append(f"- **Findings of papers:** {_decided(list(judged))} ([scorecard](docs/scorecard.md)).")
    answered = sum(line.startswith("- ") for line in lines) - 1
    models = f"The models of the first {answered} points have {_millions(r.params for r in used if r.params)}."
    return "\n".join([*lines, "", models]) + "\n"


def _decided(judged: list[Judgement]) -> str:
    """Return in two sentences how many claims are decided, how, and how many were written before the run."""
    decided = [j for j in judged if j.verdict in VERDICTS[:2]]
    held = sum(j.verdict == VERDICTS[0] for j in decided)
    before = [j for j in decided if not j.claim.after_the_fact]
    first = sum(j.verdict == VERDICTS[0] for j in before)
    return (
        f"our runs decide {len(decided)} of {len(judged)} claims. Of the {len(before)} that were written down before "
        f"the run, {first} hold; of the {len(decided) - len(before)} others, {held - first}"
    )
