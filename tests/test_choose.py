"""What pages say of published studies: which schemes are best for what, and the table that the first page explains."""

import gzip
import json
import math
import re
from collections import defaultdict
from dataclasses import replace
from statistics import fmean

import pytest
from scipy import stats

from pezoo.report.claims import EVERY, read_claims
from pezoo.report.finished import Finished, load
from pezoo.report.statistics import curves
from pezoo.report.verdicts import Judgement, NotTested, judge
from pezoo.results import LANGUAGE_MODELLING, Result
from tools import choose, questions, reading
from tools.paths import DOCS, PUBLISHED, README

NOISE = (0.01, -0.01, 0.004)
QUESTION = questions.Question(study="mine", at="8x", metric="perplexity", protocol="sliding")
FACTS = {
    "study": "mine", "encoding": "rope", "extensions": (), "family": "relative", "task": "language_modelling",
    "corpus": "python", "protocol": "sliding", "metric": "perplexity", "n_tokens": 99, "n_documents": 7,
    "train_length": 64, "scale_factor": None, "learning_rate": 1e-3, "steps": 9, "finetune_steps": 0,
    "finetune_length": None, "params": 250_000, "eval_seconds": 1.0, "tokens_per_second": 1.0,
    "peak_memory_bytes": None, "threads": 1, "config_hash": "7", "versions": {}, "device": "cpu", "date": "2030-01-01",
}  # fmt: skip


def results(label, value, far=None, seeds=3, **facts):
    """Values at L and 8L, a little different from seed to seed."""
    scheme = facts.pop("scheme", label)
    made = []
    for seed in range(seeds):
        for ratio, mean in ((1, value), (8, value if far is None else far)):
            lengths = {"test_length": 64 * ratio, "length_ratio": float(ratio)}
            one = (
                FACTS
                | lengths
                | {"train_seconds": float(sum(map(ord, label))), "value": mean * math.exp(NOISE[seed])}
                | facts
            )
            made.append(Result(label=label, scheme=scheme, seed=seed, cell=f"{label}-{seed}", **one))
    return made


def study(*each):
    return {"mine": Finished((), [r for rs in each for r in rs])}


LOST = {"value": None, "status": "diverged", "reason": "no number"}
SOME = study(
    results("rope", 5.0, 20.0),
    results("alibi", 6.0, 6.0, encoding="alibi"),
    results("kerple", 6.0, 6.06, encoding="kerple"),
    results("rope+pi", 5.0, 10.0),
    results("rope+pi, 200 steps @ 8x", 5.0, 5.0, scheme="rope+pi", finetune_steps=200),
    [replace(r, **LOST) if r.seed == 2 else r for r in results("t5", 7.0, 5.0, encoding="t5")],
)


def test_the_best_are_those_of_the_numbers():
    found = questions.answer(QUESTION, SOME)
    assert found.ranked == [
        "alibi",
        "kerple",
        "rope+pi",
        "rope",
    ]  # t5 has lost a seed, and what is tuned is another case
    assert list(found.beside) == found.ranked[: questions.SHOWN]
    assert found.beside["alibi"].effect == pytest.approx(0.3)
    assert found.beside["alibi"].verdict == "better"


def test_schemes_to_choose_among_can_be_fewer():
    among = {"encoding": "rope"}
    assert questions.answer(replace(QUESTION, **among), SOME).ranked == ["rope+pi", "rope"]
    assert questions.answer(replace(QUESTION, **among, tuned=200), SOME).ranked == ["rope+pi, 200 steps @ 8x"]


def test_what_was_tuned_on_longer_texts_is_no_rival_of_what_saw_none():
    far = "rope+pi, 200 steps @ 8x"
    longer = results(far, 5.0, 5.2, scheme="rope+pi", finetune_steps=200, finetune_length=512)
    short = results("rope+drope, 50 steps @ 1x", 5.0, 7.0, scheme="rope+drope", finetune_steps=50, finetune_length=64)
    some = study(results("rope", 5.0, 20.0), results("alibi", 6.0, 6.0, encoding="alibi"), longer, short)
    asked = replace(QUESTION, tuned=None, rows=(far,))
    found = questions.answer(asked, some)
    assert found.ranked == ["alibi", "rope+drope, 50 steps @ 1x", "rope"]
    assert list(found.beside) == [*found.ranked, far]
    said = choose.block_of(asked, some)
    assert said.startswith("**`alibi`** is the best of 3 schemes")
    assert "Tuned for 200 steps on texts of 8L, of which the others saw none, `rope+pi` has" in said.splitlines()[0]
    lost = [replace(r, **LOST) if r.seed == 2 else r for r in longer]
    near = [r for r in longer if r.length_ratio == 1]
    for gone in (lost, near):
        assert far not in choose.block_of(asked, study(*[[r for r in some["mine"].results if r.label != far], gone]))
    assert "others saw none" not in choose.block_of(replace(asked, rows=()), some)
    assert "others saw none" not in choose.block_of(replace(asked, rows=("rope",)), some)


def test_two_studies_of_the_same_schemes_are_said_to_rank_alike(monkeypatch):
    here = {"rope": 20.0, "alibi": 6.0, "nope": 9.0, "kerple": 5.5, "t5": 12.0}
    there = {"rope": 30.0, "alibi": 5.0, "nope": 11.0, "kerple": 7.0, "fire": 4.0}
    one, other = (
        {name: Finished((), [r for label, far in each.items() for r in results(label, 5.0, far)])}
        for name, each in (("here", here), ("there", there))
    )
    asked = {name: replace(QUESTION, study=name) for name in ("here", "there")}
    monkeypatch.setattr(choose, "QUESTIONS", asked)
    said = choose.on_another_text("there", "here", one | other)
    both = [label for label in here if label in there]
    rho = stats.spearmanr([here[label] for label in both], [there[label] for label in both]).statistic
    assert said.startswith("**`fire`** is the best of 5 schemes")
    assert f"rank 4 schemes at 8L with a correlation of {rho:.2f} [" in said
    assert "Not run yet" in choose.on_another_text("there", "here", one)


def test_what_cannot_be_told_apart_is_said():
    seeds = [{"value": 6.0 * math.exp(noise)} for noise in (0.05, -0.05, 0.02)]
    kerple = [replace(r, **seeds[r.seed]) for r in results("kerple", 6.0, encoding="kerple")]
    said = choose.block_of(
        QUESTION, study(results("rope", 5.0, 20.0), results("alibi", 6.0, 5.99, encoding="alibi"), kerple)
    )
    sentence = said.splitlines()[0]
    assert sentence.startswith("**`alibi`** is first of 3 schemes: perplexity 6.00 ")
    assert re.search(r"beside `rope`\. `kerple` \(6\.04 ± [\d.]+%\) cannot be told apart from it\.$", sentence)
    alike = choose.block_of(
        replace(QUESTION, beside="alibi"), study(results("alibi", 6.0, 5.99, encoding="alibi"), kerple)
    )
    assert re.search(r"is first of 2 schemes: perplexity 6\.00 .*`kerple` .* cannot be told apart from it\.\n", alike)
    among = replace(QUESTION, beside="kerple")
    two = study(results("alibi", 6.0, 5.99, encoding="alibi"), kerple)
    assert "is first of 2 schemes, which cannot be told apart: perplexity 6.00" in choose.block_of(among, two)
    corrected = questions.answer(QUESTION, SOME)
    corrected = choose.sentences(replace(corrected, ties=corrected.ranked[1:]))[0]
    assert "which cannot be told apart by tests that allow for their number: perplexity 6.01" in corrected
    plain = study(results("alibi", 6.0, 5.99, encoding="alibi"), kerple, results("rope", 5.0, 20.0))
    assert "It cannot be told apart from `kerple`." in choose.block_of(replace(QUESTION, beside="kerple"), plain)
    apart = choose.block_of(QUESTION, SOME)
    assert apart.startswith("**`alibi`** is the best of 4 schemes (1 more has no value at 8L): perplexity 6.01 ")
    assert "cannot be told apart" not in apart


def test_where_nothing_was_learned_there_is_no_answer():
    facts = {"metric": "exact_match", "protocol": "answers"}
    asked = replace(QUESTION, task=EVERY, **facts)

    def said(**values):
        each = [results("rope", value, value / 2, task=task, **facts) for task, value in values.items()]
        return choose.block_of(asked, study(*each)).splitlines()[:3]

    assert said(copy=0.2, reverse=0.1)[0].startswith("**No answer yet.** Hardly learned, even at L: copy (20% at best)")
    best, _, beware = said(copy=0.9, reverse=0.1)
    assert best.startswith("**`rope`** is the best of 1 schemes: exact match of copy 45.1 ")
    assert beware.startswith("**Beware.** Hardly learned, even at L: reverse (10% at best).")
    assert beware.endswith("So they are not counted.")


def test_one_model_under_several_labels_is_one_scheme():
    """Extensions that do nothing at a length give the very same values there."""
    alike = [results(label, 5.0, 20.0) for label in ("rope+pi", "rope", "rope+ntk")]
    found = questions.answer(replace(QUESTION, at="1x"), study(*alike, results("alibi", 6.0, encoding="alibi")))
    assert found.ranked == ["rope", "alibi"]
    facts = {"metric": "exact_match", "protocol": "answers", "task": "copy"}
    right = study(*(results(label, 0.9, **facts) for label in ("rope", "alibi")))
    assert questions.answer(replace(QUESTION, at="1x", **facts), right).ranked == ["rope", "alibi"]


def test_another_number_of_the_same_schemes_stands_beside():
    """The best on text does worst on passkeys, and the table and the sentence say so."""
    facts = {"metric": "exact_match", "protocol": "answers", "task": "passkey"}
    found = {"rope": 0.9, "alibi": 0.1, "kerple": 0.8}
    asked = [results(label, 0.9, value, encoding=label, **facts) for label, value in found.items()]
    both = study(SOME["mine"].results, *asked)
    best, _, head, _, first, *_ = choose.block_of(replace(QUESTION, besides=facts), both).splitlines()
    assert best.endswith(
        " Trained on passkey instead, it answers 10.0 ± 0.1 % right at 8L; `rope` is first there, with 90.1 ± 0.9 % "
        "at 8L, and has perplexity 20.0 ± 1.0% at 8L."
    )
    assert "| perplexity at 8L | passkey at L | passkey at 8L |" in head
    assert "| 10.0 ± 0.1 % |" in first
    text = {"task": LANGUAGE_MODELLING, "metric": QUESTION.metric, "protocol": QUESTION.protocol}
    other = replace(QUESTION, besides=text, **facts)
    assert " Trained on text instead, it has perplexity 20.0" in choose.block_of(other, both)
    assert "*The numbers of passkey are of other models, trained on that: python; " in choose.block_of(
        replace(QUESTION, besides=facts), both
    )
    lost = [results(label, 0.01, value, encoding=label, **facts) for label, value in found.items()]
    never = choose.block_of(replace(QUESTION, besides=facts), study(SOME["mine"].results, *lost)).splitlines()[0]
    assert "Trained on passkey instead, it did not learn that: 1.0 ± 0.0 % right even at L; `rope` is first" in never
    missing = choose.block_of(replace(QUESTION, besides=facts), study(SOME["mine"].results, *asked[::2]))
    assert "Trained on" not in missing
    assert "| – |" in missing.splitlines()[4]


def test_the_best_by_the_other_number_has_a_row():
    facts = {"metric": "exact_match", "protocol": "answers", "task": "passkey"}
    order = ("alibi", "kerple", "sandwich", "rope", "path")
    text = [results(label, 5.0, 6.0 + i, encoding=label) for i, label in enumerate(order)]
    asked = [results(label, 0.9, 0.1 + 0.1 * i, encoding=label, **facts) for i, label in enumerate(order)]
    lines = choose.block_of(replace(QUESTION, besides=facts), study(*text, *asked)).splitlines()
    rows = [line.split("`")[1] for line in lines if line.startswith("| [")]
    assert rows == ["alibi", "kerple", "sandwich", "path", "rope"]


def test_a_question_can_ask_for_a_row():
    text = [results(label, 5.0, 6.0 + i, encoding=label) for i, label in enumerate(("alibi", "kerple", "t5", "xpos"))]
    asked = replace(QUESTION, beside="kerple", rows=("alibi", "rope"))
    lines = choose.block_of(asked, study(*text, results("rope", 5.0, 20.0))).splitlines()
    assert [line.split("`")[1] for line in lines if line.startswith("| [")] == ["alibi", "kerple", "t5", "rope"]


def test_pieces_of_the_training_length_are_a_free_rival():
    asked = replace(QUESTION, protocol="non_overlapping", encoding="rope")
    told = study(*([replace(r, protocol="non_overlapping") for r in each.results] for each in SOME.values()))
    rival = "The same text cut into pieces of L, each read for itself, gives `rope` 5.01 "
    assert rival in choose.block_of(asked, told)
    tuned = replace(asked, tuned=200, beside="rope+pi, 200 steps @ 8x")
    assert rival.replace("`rope`", "`rope+pi`") in choose.block_of(tuned, told)
    assert "pieces of L" not in choose.block_of(replace(asked, encoding=""), told), "each has its own value at L"
    assert "pieces of L" not in choose.block_of(replace(asked, at="1x"), told)


def test_a_learning_rate_at_an_end_is_told():
    ends = study([replace(r, rate_is="highest") if r.label == "alibi" else r for r in SOME["mine"].results])
    assert "**Beware.** alibi trained best at the highest learning rate" in choose.block_of(QUESTION, ends)
    assert "Beware" not in choose.block_of(replace(QUESTION, encoding="rope"), ends)


def test_what_training_takes_is_told_where_it_differs():
    def took(**seconds):
        each = [results(label, 5.0 + len(label), train_cpu_seconds=taken) for label, taken in seconds.items()]
        return choose.block_of(replace(QUESTION, beside="cable"), study(*each)).splitlines()[0]

    assert "Training it at L takes ×2.5 the processor time of `cable`." in took(xpos=5.0, cable=2.0)
    assert "Training" not in took(xpos=2.1, cable=2.0)
    assert "Training" not in took(xpos=None, cable=2.0)


def test_schemes_can_be_those_with_an_extension():
    windows = study(
        results("rope", 5.0, 20.0),
        results("alibi", 5.0, 5.0, encoding="alibi"),
        results("rope+window", 5.0, 6.0, extensions=("window",)),
        results("rope+sinks", 5.0, 6.1, extensions=("sinks",)),
    )
    question = replace(QUESTION, extensions=("window", "sinks"))
    assert questions.answer(question, windows).ranked == ["rope+window", "rope+sinks"]


def test_an_idea_that_rows_share_is_told_once():
    said = choose.block_of(
        QUESTION,
        study(results("rope", 5.0), results("rope+pi", 4.0), results("sinusoidal+pi", 4.5, encoding="sinusoidal")),
    )
    assert said.count("Coordinates divided") == 1
    assert said.count("| the same |") == 1


def test_one_seed_has_no_interval():
    one = study(results("rope", 5.0, 20.0, seeds=1), results("alibi", 6.0, seeds=1, encoding="alibi"))
    said = choose.block_of(QUESTION, one)
    assert "×0.30 [one seed, no interval] beside `rope`" in said
    assert said.rstrip().endswith("1 seed; 7 documents; no intervals.*")


@pytest.mark.parametrize(
    ("label", "scheme", "link", "idea"),
    [
        ("rope", "rope", "[`rope`](zoo.md#rope)", "Queries and keys turned"),
        ("rope+pi, 200 steps @ 8x", "rope+pi", "[`rope+pi, 200 steps @ 8x`](zoo.md#pi)", "Coordinates divided"),
        ("rope+alibi", "rope+alibi", "[`rope+alibi`](zoo.md#alibi)", "proportional to their positions. A penalty"),
        (
            "gemma3:window=0.25",
            "{layers: [rope+window, rope]}",
            "[`gemma3:window=0.25`](zoo.md#gemma3)",
            "windowed layers",
        ),
        ("half | half", "{heads: {rope: 2, alibi: 2}}", r"`half \| half`", "A mixture of schemes."),
        ("gemma3", "{layers: [rope, rope+window]}", "[`gemma3`](zoo.md#gemma3)", "layers"),
    ],
)
def test_each_scheme_leads_to_what_sets_it_apart(label, scheme, link, idea):
    assert choose._linked(label, scheme) == link
    assert idea in choose._idea(label, scheme)


def test_a_study_that_is_not_published_says_what_to_type():
    assert choose.block_of(QUESTION, {}) == "Not run yet. `pezoo run mine` will say.\n"


def test_claims_are_quoted_with_what_came_of_them():
    mine = [claim for claim in read_claims() if claim.key.startswith("ranking_carries_over_")]
    judged = [Judgement(claim, "undecided", effect=0.5, low=-0.25, high=0.75, link="there.md") for claim in mine]
    lines = choose.claimed("ranking_carries_over_", judged).splitlines()
    assert len(lines) == len(mine) > 1
    assert (
        lines[0]
        == f"- {mine[0].claim} Undecided, with a rank correlation of 0.50 [-0.25 to 0.75] ([other_models](there.md))."
    )
    not_run = [*judged[1:], judge(mine[0], [])]
    assert choose.claimed("ranking_carries_over_", not_run) == "Not run yet. `pezoo run other_models` will say.\n"


def test_a_scheme_to_compare_with_that_is_not_there_is_an_error():
    with pytest.raises(NotTested, match="no 'nope'"):
        questions.answer(replace(QUESTION, beside="nope"), SOME)


def raw(name):
    """Lines of a published study, as they are stored."""
    path = PUBLISHED / name / "results.jsonl.gz"
    return [json.loads(line) for line in gzip.open(path, "rt", encoding="utf-8")]


@pytest.mark.parametrize("name", [n for n, q in questions.QUESTIONS.items() if q.metric == "perplexity"])
def test_the_page_names_the_best_of_what_is_stored(name):
    question = questions.QUESTIONS[name]
    page = (DOCS / "choose.md").read_text(encoding="utf-8")
    block = page.partition(f"<!-- choose_{name} -->\n")[2].partition("<!-- /")[0]
    if block.startswith("Not run yet"):
        assert not (PUBLISHED / question.study).exists()
        return
    values, lost = defaultdict(list), set()
    for r in raw(question.study):
        here = (r["metric"], r["protocol"], r.get("part", "")) == (question.metric, question.protocol, question.part)
        among = question.tuned in (None, r["finetune_steps"]) and question.encoding in ("", r["encoding"])
        among &= question.tuned is not None or (r["finetune_length"] or 0) <= r["train_length"]
        among = among and (not question.extensions or not set(question.extensions).isdisjoint(r["extensions"]))
        whole = r["length_ratio"] == float(question.at[:-1]) and not r["label"].endswith("| windowed")
        if here and among and whole:
            (lost.add(r["label"]) if r["value"] is None else values[r["label"]].append(math.log(r["value"])))
    means = {label: math.exp(fmean(each)) for label, each in values.items() if label not in lost}
    best = min(means, key=means.get)
    said = re.match(r"\*\*`(.*?)`\*\* is (?:the best|first) of (\d+) schemes.*? perplexity ([\d.]+)", block)
    different = {tuple(values[label]) for label in means}  # one model under several labels counts once
    assert (said[1], int(said[2])) == (best, len(different))
    assert float(said[3]) == pytest.approx(means[best], rel=0.006)


def test_what_is_advised_in_short_follows_from_the_table():
    """README and the page give it in words; if a newer study says otherwise, these must change."""
    found = questions.answer(questions.QUESTIONS["newest"], {"frontier": load(PUBLISHED / "frontier")})
    passkeys, at = found.besides, found.question.at
    assert at == "8x"  # 2k tokens used at 16k
    tuned = questions.TUNED_LONG[-1]
    perplexity = {label: found.at(label, at).whole_mean for label in (found.best, "rope+window", "rope")}
    right = {label: passkeys.at(label, at).whole_mean for label in (passkeys.best, tuned, "rope+window", "rope")}
    assert (found.best, passkeys.best) == ("stick_breaking", "path")
    assert perplexity["rope+window"] < 1.1 * perplexity["stick_breaking"] < 0.5 * perplexity["rope"]
    assert right["rope+window"] + 0.2 < right[tuned] < right["path"]
    for page in (README, DOCS / "choose.md"):
        short = page.read_text(encoding="utf-8").partition("**In short")[2].partition("\n\n")[0]
        assert all(f"`{label}`" in short for label in ("rope+window", "stick_breaking", "path"))


def test_what_is_said_of_harder_tasks_follows_from_the_table():
    """docs/choose.md gives it in words."""
    results = [r for r in load(PUBLISHED / "recall").results if r.metric == "exact_match" and r.depth is None]
    lookup, repetition = (curves([r for r in results if r.part == part]) for part in ("lookup", "repetition"))
    assert {label for label, curve in lookup.items() if min(curve[32].values) == 1} == {"sinusoidal", "path"}
    assert all(lookup[label][256].mean > 0.8 for label in ("sinusoidal", "path"))
    assert all(curve[n].mean < 0.05 for curve in repetition.values() for n in curve if n > 32)
    said = (DOCS / "choose.md").read_text(encoding="utf-8")
    assert "Only `sinusoidal` and `path` learned associative recall with every seed" in said


def test_readme_answers_in_five_sentences_with_a_link_each():
    block = README.read_text(encoding="utf-8").partition("<!-- answer -->\n")[2].partition("\n\n")[0]
    points = [line for line in block.splitlines() if not line.startswith("  - ")]
    assert len(points) == 5
    assert all(re.search(r"\((L = \d+; .*)?\[\w+\]\(\S+\.md\)\)\.$", line) for line in points)


def test_the_table_that_is_explained_is_that_of_the_quickstart():
    folder = PUBLISHED / "quickstart"
    block, table = reading.block(load(folder)), (folder / "table.md").read_text(encoding="utf-8")
    rows = [line for line in block.splitlines() if line.startswith("| `")]
    assert len(rows) > 3
    for row in rows:
        assert row.replace("`", "").replace("**", "") in table, row
    marks = [mark for mark in reading.NUMBERS if f"- {mark} " in block]
    assert "".join(marks) == reading.NUMBERS
    assert all(block.count(mark) == 2 for mark in marks)
