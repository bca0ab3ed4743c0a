"""Claims: what decides each kind, from results that are made up here; the file of claims; where they are shown."""

import copy
import itertools
import math
import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import stats

from pezoo.cli.report import report
from pezoo.errors import UserError
from pezoo.evaluation.answers import ANSWER_PROTOCOLS
from pezoo.evaluation.protocols import PROTOCOLS, parse_protocol
from pezoo.registry import entries
from pezoo.report import scorecard
from pezoo.report.claims import BEYOND, EVERY, Decision, parse_claims, read_claims
from pezoo.report.groups import TOGETHER, WINDOWED
from pezoo.report.verdicts import VERDICTS, judge, judge_all, judge_elsewhere
from pezoo.report.write import write_report
from pezoo.results import LANGUAGE_MODELLING, Result, write
from pezoo.scheme import parse
from pezoo.study.reading import load_recipe, own_recipes
from pezoo.task import parse_task
from tools import questions

SOURCE = {"arxiv": "2108.12409", "scope": "large models", "protocol": "blocks"}
TEST = {"says": "lower", "by": 0.1, "protocol": "sliding", "label": "alibi", "baseline": "rope", "at": "8x"}
CLAIM = {"key": "one", "claim": "A sentence.", "source": "s", "where": "Table 1", "recipe": "survey", "test": TEST}
TRAINED = 64
SEEDS = (0, 1, 2)
NOISE = (0.011, -0.008, 0.002, 0.006, -0.009)


def claim(**test):
    kept = {k: v for k, v in (TEST | test).items() if v is not None}
    return parse_claims({"sources": {"s": SOURCE}, "claims": [CLAIM | {"test": kept}]})[0]


def result(label, value, ratio=8, seed=0, **changes):
    facts = {"study": "survey", "cell": f"{label}-{seed}", "scheme": "rope", "encoding": "rope", "extensions": ()}
    facts |= {"family": "relative", "task": LANGUAGE_MODELLING, "corpus": "python", "protocol": "sliding"}
    facts |= {"metric": "perplexity", "n_tokens": 99, "n_documents": 500, "train_length": TRAINED, "scale_factor": None}
    facts |= {"learning_rate": 1e-3, "steps": 9, "finetune_steps": 0, "finetune_length": None, "params": 250_000}
    facts |= {"train_seconds": None, "eval_seconds": 1.0, "tokens_per_second": 1.0, "peak_memory_bytes": None}
    facts |= {"threads": 1, "config_hash": "7", "versions": {}, "device": "cpu", "date": "2030-01-01T00:00:00+00:00"}
    facts |= {"length_ratio": float(ratio), "test_length": int(ratio * changes.get("train_length", TRAINED))} | changes
    if value is None:
        facts |= {"status": "diverged", "reason": "no number"}
    return Result(label=label, value=value, seed=seed, **facts)


def perplexities(values, ratio=8, seeds=SEEDS, noise=1.0, **changes):
    """One value for each label and seed, which differ a little, each label in its own way."""
    return [
        result(
            label, value * math.exp(noise * NOISE[(seed + i) % 5]), ratio, seed, **{"train_seconds": i + 1.5} | changes
        )
        for i, (label, value) in enumerate(values.items())
        for seed in seeds
    ]


def accuracies(values, **changes):
    return [
        result(
            label,
            value + NOISE[(seed + i) % 5],
            seed=seed,
            **{"metric": "exact_match", "protocol": "answers"} | changes,
        )
        for i, (label, value) in enumerate(values.items())
        for seed in SEEDS
    ]


# ---- what decides -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "verdicts"),
    [
        # of alibi / rope: far below, just at the smallest effect, no difference, just at it above, far above
        ("lower", ("reproduced", "undecided", "contradicted", "contradicted", "contradicted")),
        ("higher", ("contradicted", "contradicted", "contradicted", "undecided", "reproduced")),
        ("no higher", ("reproduced", "reproduced", "reproduced", "undecided", "contradicted")),
        ("no lower", ("contradicted", "undecided", "reproduced", "reproduced", "reproduced")),
        ("near", ("contradicted", "undecided", "reproduced", "undecided", "contradicted")),
    ],
)
def test_each_verdict_follows_the_data(says, verdicts):
    for ratio, verdict in zip((0.7, 1 / 1.1, 1.0, 1.1, 1.4), verdicts, strict=True):
        judged = judge(claim(says=says), perplexities({"alibi": 10 * ratio, "rope": 10.0}))
        assert judged.verdict == verdict, ratio
        assert judged.low < ratio < judged.high
        assert bool(judged.note) == (verdict == "undecided")
    for points, verdict in zip((-0.3, -0.1, 0.0, 0.1, 0.3), verdicts, strict=True):
        test = {"says": says, "metric": "exact_match", "protocol": "answers"}
        assert judge(claim(**test), accuracies({"alibi": 0.5 + points, "rope": 0.5})).verdict == verdict, points


@pytest.mark.parametrize(("says", "ratio"), [("lower", 0.95), ("higher", 1.05)])
def test_an_effect_in_that_direction_that_is_too_small_is_told_from_none(says, ratio):
    judged = judge(claim(says=says), perplexities({"alibi": 10 * ratio, "rope": 10.0}, noise=0.1))
    assert (judged.verdict, judged.note) == ("contradicted", "in that direction, but smaller")
    assert "; in that direction, but smaller |" in "\n".join(scorecard.sections([judged]))
    assert not judge(claim(says=says), perplexities({"alibi": 10 / ratio, "rope": 10.0}, noise=0.1)).note


def test_the_interval_is_that_of_the_paired_logarithms():
    results = perplexities({"alibi": 8.0, "rope": 10.0})
    values = {label: [math.log(r.value) for r in results if r.label == label] for label in ("alibi", "rope")}
    differences = np.subtract(values["alibi"], values["rope"])
    half = stats.t.ppf(0.975, 2) * differences.std(ddof=1) / math.sqrt(3)
    judged = judge(claim(), results)
    expected = np.exp([differences.mean(), differences.mean() - half, differences.mean() + half])
    np.testing.assert_allclose([judged.effect, judged.low, judged.high], expected)


def test_a_scheme_beside_itself_at_the_training_length():
    holds = claim(says="no higher", by=0.02, baseline=None, baseline_at="1x")
    others = perplexities({"rope": 5.0, "nope": 9.0}, ratio=1, noise=9) + perplexities(
        {"rope": 9.0, "nope": 9.0}, noise=9
    )
    for far, verdict in ((7.0, "reproduced"), (7.14, "undecided"), (8.0, "contradicted")):
        near, long = (perplexities({"alibi": v}, ratio) for v, ratio in ((7.0, 1), (far, 8)))
        long = [result("alibi", r.value * math.exp(0.001 * NOISE[r.seed]), 8, r.seed, train_seconds=1.5) for r in long]
        judged = judge(holds, near + long + others)
        assert judged.verdict == verdict, far
        # What a seed does to the model is the same at both lengths; other models, which differ more, do not count.
        assert math.log(judged.high / judged.low) < 1e-3
        assert judged.pair == ("alibi", "alibi")


def test_one_model_with_two_masks_does_not_borrow_the_spread_of_other_models():
    windowed = claim(says="near", by=0.02, baseline=f"alibi{WINDOWED}")
    others = perplexities({"rope": 5.0, "nope": 9.0, "t5": 8.0, "fire": 7.0}, noise=9)
    same = perplexities({"alibi": 7.0})
    same += [result(f"alibi{WINDOWED}", r.value * 1.001, 8, r.seed, train_seconds=r.train_seconds) for r in same]
    assert judge(windowed, same + others).verdict == "reproduced"
    another = [r if r.label == "alibi" else result(r.label, r.value, 8, r.seed, train_seconds=99.0) for r in same]
    assert judge(windowed, another + others).verdict == "undecided"


def test_a_chain_holds_if_each_pair_does_and_falls_if_one_does():
    chain = claim(label=["alibi", "t5", "rope"], baseline=None)
    for values, verdict, pair in (
        ((5.0, 7.0, 10.0), "reproduced", ("alibi", "t5")),
        ((5.0, 5.5, 10.0), "undecided", ("alibi", "t5")),
        ((5.0, 7.0, 5.0), "contradicted", ("t5", "rope")),
        ((5.0, 5.5, 5.0), "contradicted", ("t5", "rope")),
    ):
        judged = judge(chain, perplexities(dict(zip(("alibi", "t5", "rope"), values, strict=True))))
        assert judged.verdict == verdict
        if verdict != "reproduced":
            assert judged.pair == pair
    # The intervals of two pairs are wider than that of one.
    results = perplexities({"alibi": 5.0, "t5": 7.0, "rope": 10.0})
    alone, paired = judge(claim(baseline="t5"), results), judge(chain, results)
    assert paired.low < alone.low or paired.pair != ("alibi", "t5")


def test_the_mean_over_lengths_beyond_and_over_tasks():
    test = {"task": EVERY, "metric": "token_accuracy", "protocol": "answers", "at": BEYOND, "says": "higher"}
    facts = {"metric": "token_accuracy", "protocol": "answers", "n_documents": 400}
    shares = {
        ("copy", 1): 0.0,
        ("copy", 2): 0.4,
        ("copy", 4): 0.2,
        ("sort", 1): 0.0,
        ("sort", 2): 0.3,
        ("sort", 4): 0.1,
    }
    results = [
        result(label, 0.55 + (label == "alibi") * gain + NOISE[seed], ratio, seed, task=task, **facts)
        for (task, ratio), gain in shares.items()
        for label in ("alibi", "rope")
        for seed in SEEDS
    ]
    judged = judge(claim(**test), results)
    assert judged.effect == pytest.approx(0.25)
    assert judged.verdict == "reproduced"
    assert {r.n_documents for r in judged.results} == {4 * 400}
    assert judge(claim(**test | {"by": 0.4}), results).verdict == "contradicted"
    assert judge(claim(**test | {"task": "sort"}), results).effect == pytest.approx(0.2)
    # What no scheme learned at L says nothing further out: such a task does not count, and alone decides nothing.
    failed = [replace(r, task="reverse", value=0.1) for r in results if r.task == "copy"]
    assert judge(claim(**test), results + failed).effect == pytest.approx(0.25)
    alone = judge(claim(**test), failed)
    assert (alone.verdict, alone.effect) == ("undecided", None)
    assert alone.note.startswith("no scheme learned the task even at L: reverse (10% at best")
    # A seed that lacks a task is left out, one that has no value leaves the claim open.
    few = [r for r in results if (r.task, r.seed) != ("sort", 2)]
    assert len({r.seed for r in judge(claim(**test), few).results}) == 2
    gone = [r for r in results if (r.label, r.task, r.length_ratio, r.seed) != ("alibi", "sort", 2, 2)]
    judged = judge(claim(**test), [*gone, result("alibi", None, 2, 2, task="sort", **facts)])
    assert judged.verdict == "undecided"
    assert judged.note == "1 of 3 seeds have no value"


def test_schemes_trained_at_different_lengths():
    test = {"part": TOGETHER, "label": "alibi, L = 64", "at": "4x", "baseline": "rope, L = 256", "baseline_at": "1x"}
    results = []
    for part, trained in (("short", 64), ("long", 256)):
        facts = {"part": part, "train_length": trained}
        for ratio in (1, 4):
            values = {"alibi": 6.0, "rope": 9.0 if ratio == 1 else 20.0}
            results += perplexities(values, ratio, **facts)
    assert judge(claim(**test), results).verdict == "reproduced"
    assert judge(claim(**test | {"says": "no lower"}), results).verdict == "contradicted"


def test_a_correlation_over_schemes():
    test = {"says": "ranks like", "by": 0.5, "label": None, "baseline": None}
    other = {"task": "copy", "protocol": "answers", "metric": "exact_match", "at": "2x"}
    names = [f"scheme {i}" for i in range(9)]
    text = perplexities({name: 5.0 + i for i, name in enumerate(names)})
    for shares, verdict in (
        ([0.9 - 0.1 * i for i in range(9)], "reproduced"),
        ([0.1 + 0.1 * i for i in range(9)], "contradicted"),
        ([0.9, 0.5, 0.8, 0.4, 0.7, 0.6, 0.3, 0.1, 0.2], "undecided"),
    ):
        facts = {"task": "copy", "ratio": 2, "metric": "exact_match", "protocol": "answers"}
        asked = [
            result(name, share, seed=seed, **facts) for name, share in zip(names, shares, strict=True) for seed in SEEDS
        ]
        judged = judge(claim(**test, other=other), text + asked)
        assert judged.verdict == verdict
        assert judged.effect == pytest.approx(-stats.spearmanr(range(9), shares).statistic)
    assert "9 schemes" in judged.note
    few = [r for r in text + asked if r.label < "scheme 3"]
    judged = judge(claim(**test, other=other), few)
    assert (judged.verdict, judged.effect) == ("undecided", None)
    assert judge(claim(**test, other=other), text).verdict == "not run"


def test_what_is_not_tested_is_not_run_and_says_what_is_missing():
    results = perplexities({"alibi": 5.0, "rope": 9.0})
    for test, why in (
        ({"label": "t5"}, "no 't5'"),
        ({"at": "2x"}, "'alibi' was not tested at 2x"),
        ({"protocol": "last"}, "under last"),
        ({"part": "text"}, "no results of text"),
        ({"baseline_at": "1x"}, "'rope' was not tested at 1x"),
    ):
        judged = judge(claim(**test), results)
        assert judged.verdict == "not run"
        assert why in judged.note
    assert judge(claim(), []).note == "no results of `pezoo run survey`"
    others = perplexities({"alibi": 5.0, "rope": 9.0}, study="mine")
    assert judge(claim(), others).verdict == "not run"
    assert judge_all([claim()], others) == []
    two_texts = results + perplexities({"alibi": 5.0, "rope": 9.0}, corpus="books")
    assert "cannot mix" in judge(claim(), two_texts).note


def test_a_protocol_is_meant_with_whatever_settings_the_study_gave_it():
    set_so = perplexities({"alibi": 5.0, "rope": 9.0}, protocol="sliding:stride=64")
    assert judge(claim(protocol="sliding"), set_so).verdict == "reproduced"
    assert judge(claim(protocol="sliding:stride=64"), set_so).verdict == "reproduced"
    assert judge(claim(protocol="sliding:stride=8"), set_so).verdict == "not run"
    both = set_so + perplexities({"alibi": 9.0, "rope": 5.0}, protocol="sliding")
    assert judge(claim(protocol="sliding"), both).verdict == "contradicted"
    several = set_so + perplexities({"alibi": 9.0, "rope": 5.0}, protocol="sliding:stride=8")
    assert judge(claim(protocol="sliding"), several).verdict == "not run"


def test_what_more_seeds_would_decide():
    one = judge(claim(), perplexities({"alibi": 5.0, "rope": 9.0}, seeds=[0]))
    assert (one.verdict, one.low) == ("undecided", None)
    assert "one seed" in one.note
    results = perplexities({"alibi": 8.0, "rope": 9.0})
    judged = judge(claim(), results)
    seeds = int(judged.note.removeprefix("about ").split()[0])
    differences = [math.log(a.value / b.value) for a, b in zip(results[:3], results[3:], strict=True)]
    distance, spread = abs(np.mean(differences) - math.log(1 / 1.1)), np.std(differences, ddof=1)

    def decided(n):
        return stats.t.ppf(0.975, n - 1) * spread / math.sqrt(n) < distance

    assert decided(seeds)
    assert not decided(seeds - 1)
    at_the_edge = judge(claim(by=9 / 8 - 1 - 1e-9), perplexities({"alibi": 8.0, "rope": 9.0}, noise=5))
    assert "hardly" in at_the_edge.note
    lost = [*results, result("alibi", None, 8, 3), result("rope", 9.0, 8, 3)]
    assert judge(claim(), lost).note == "1 of 4 seeds have no value"


def test_fewer_test_documents_than_it_takes_are_named():
    # Two thirds of the answers to ten questions: the questions decide, however many seeds there are.
    facts = {"n_documents": 10}
    test = {"says": "higher", "metric": "exact_match", "protocol": "answers"}
    judged = judge(claim(**test), accuracies({"alibi": 0.65, "rope": 0.5}, **facts))
    assert judged.verdict == "undecided"
    assert "more questions" in judged.note


def test_other_studies_with_the_same_comparison_are_asked_too():
    mine, one = perplexities({"alibi": 5.0, "rope": 10.0}), claim()
    turned = perplexities({"alibi": 10.0, "rope": 5.0}, study="kerple", part="long", train_length=128, steps=1000)
    lacking = perplexities({"alibi": 1.0, "nope": 9.0}, study="shift")
    open_ = perplexities({"alibi": 9.05, "rope": 10.0}, study="shift", part="even")
    other_protocol = perplexities({"alibi": 5.0, "rope": 10.0}, study="shift", part="blocks", protocol="last")
    found = judge_elsewhere(one, [*mine, *turned, *lacking, *open_, *other_protocol])
    assert [(j.claim.recipe, j.claim.test.part, j.verdict) for j in found] == [("kerple", "long", "contradicted")]
    lines = scorecard.disagreements([judge(one, mine)], {"one": found})
    assert "Of the decided claims 1 are" in lines[3]
    assert lines[5] == "For 0 of them all studies say the same."
    row = r"\| A sentence\. \| reproduced in survey \(L = 64, 9 steps\): ×0\.50\d \[.*\] "
    row += r"\| contradicted in kerple, long \(L = 128, 1,000 steps\): ×2\.00\d \[.*\] \|$"
    assert re.match(row, lines[-1])
    same = judge_elsewhere(one, [replace(r, part="again") for r in mine])
    assert len(scorecard.disagreements([judge(one, mine)], {"one": same})) == 6  # no table


def test_at_the_training_length_two_protocols_read_the_same():
    blocks = perplexities({"alibi": 5.0, "rope": 10.0}, ratio=1, study="kerple", protocol="non_overlapping")
    assert [j.verdict for j in judge_elsewhere(claim(protocol="prefix", at="1x"), blocks)] == ["reproduced"]
    assert not judge_elsewhere(claim(protocol="sliding", at="1x"), blocks)
    assert not judge_elsewhere(claim(protocol="prefix", at="8x"), blocks)


# ---- the file -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("claims", 0, "key"), None, r"claims\.0 lacks the key key"),
        (("claims", 0, "claim"), " ", r"claims\.one\.claim must be a text, got ' '"),
        (("claims", 0, "source"), "t", r"claims\.one\.source must be one of sources, got 't'"),
        (("claims", 0, "wher"), "x", r"claims\.one has no key 'wher'\. Did you mean 'where'"),
        (("claims", 0, "after_the_fact"), "yes", r"after_the_fact must be true or false, got 'yes'"),
        (("claims", 0, "test"), "lower", r"claims\.one\.test must be a group of keys, got 'lower'"),
        (("claims", 0, "test", "says"), "lowr", r"says must be one of lower, higher, .*, got 'lowr'"),
        (("claims", 0, "test", "by"), "2 %", r"by must be a number, got '2 %'"),
        (("claims", 0, "test", "by"), 0, r"by must be the smallest effect that matters, above 0, got 0"),
        (("claims", 0, "test", "by"), -1, r"above 0, got -1"),
        (("claims", 0, "test", "by"), math.inf, r"above 0, got inf"),
        (("claims", 0, "test", "at"), "8", r"test\.at must be a multiple of the training length such as 8x.*, got '8'"),
        (("claims", 0, "test", "at"), 8, r"test\.at must be a text, got 8"),
        (("claims", 0, "test", "label"), [], r"compares \(\) with nothing|has `other` and no label"),
        (("claims", 0, "test", "label"), [1], r"label must be a label or a list of labels, got \[1\]"),
        (("claims", 0, "test", "label"), ["a", "b"], r"compares \('a', 'b'\) with nothing"),
        (("claims", 0, "test", "baseline"), None, r"compares \('alibi',\) with nothing; give baseline"),
        (("claims", 0, "test", "other"), {"at": "8x", "protocol": "last"}, r"`ranks like` has `other`"),
        (
            ("claims", 0, "test"),
            TEST | {"protocol": "prefix", "baseline_at": "1x"},
            r"at two lengths, where it is that of other",
        ),
        (("claims", 0, "test"), TEST | {"metric": "last_perplexity", "baseline_at": "1x"}, r"take perplexity under"),
        (("claims", 0, "test", "protocol"), None, r"claims\.one\.test lacks the key protocol"),
        (("claims", 1), copy.deepcopy(CLAIM), r"claims\.one stands there twice"),
        (("sources", "s", "arxiv"), None, r"sources\.s must have an arxiv number or else a url"),
        (("sources", "s", "url"), "https://x", r"sources\.s must have an arxiv number or else a url"),
        (("sources", "s"), [], r"sources\.s must be a group of keys, got \[\]"),
        (("source",), {}, "two keys, sources and claims"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, path, value, message):
    found = {"sources": {"s": dict(SOURCE)}, "claims": [copy.deepcopy(CLAIM)]}
    place = found
    for step in path[:-1]:
        place = place[step]
    if isinstance(place, list) and path[-1] == len(place):
        place.append(value)
    elif value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    with pytest.raises(UserError, match=message):
        parse_claims(found)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read claims from .*none\.yaml"):
        read_claims(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("claims: [")
    with pytest.raises(UserError, match="it is no YAML"):
        read_claims(tmp_path / "bad.yaml")


CLAIMS = read_claims()
"""Keys are unique: the file is refused otherwise."""


def test_there_are_many_claims_and_each_of_the_field_s_papers_has_one():
    assert len(CLAIMS) >= 40
    papers = {one.source.arxiv or one.source.url for one in CLAIMS}
    assert papers >= {
        *(
            "2312.17044",
            "2108.12409",
            "2205.09921",
            "2104.09864",
            "2306.15595",
            "2309.00071",
            "2109.05644",
            "2106.03143",
        ),
        *(
            "2212.10554",
            "2310.04418",
            "2212.10356",
            "2106.01950",
            "2305.16843",
            "2305.19466",
            "2309.17453",
            "2308.16137",
        ),
        *("2401.01325", "2202.12172", "2310.16450", "2402.13753", "https://github.com/bojone/rerope"),
    }
    assert all(one.claim.endswith(".") for one in CLAIMS)


@cache
def parts(recipe):
    """The parts of a recipe as it stands, by name."""
    return dict(load_recipe(recipe).split())


def is_tested(recipe, test, label):
    """Whether a recipe, as it stands, tests a label in the part and on the task of a test."""
    for part, one in parts(recipe).items():
        if test.part in (part, TOGETHER) and _asks(one, test):
            plain = label.removesuffix(WINDOWED)
            if test.part == TOGETHER:
                plain, trained = plain.split(", L = ")
                if one.train.length != int(trained):
                    continue
            at = [test.at, test.baseline_at or test.at]
            ratios = {length / one.train.length for length in one.test_lengths}
            lengths = all(a == BEYOND or float(a[:-1]) in ratios for a in at) or test.part == TOGETHER
            if lengths and plain in labels(one) and (plain == label or one.test.companion or test.part == TOGETHER):
                return True
    return False


def _asks(one, test):
    tasks = {task if task == LANGUAGE_MODELLING else str(parse_task(task)) for task in one.tasks}
    known = PROTOCOLS if test.task == LANGUAGE_MODELLING else ANSWER_PROTOCOLS
    default = ["prefix"] if test.task == LANGUAGE_MODELLING else ["answers"]
    asked = [protocol.partition(":")[0] for protocol in one.test.protocols or default]
    if test.task not in (EVERY, *tasks) or test.protocol not in asked:
        return False
    name = parse_protocol(test.protocol).name if known is PROTOCOLS else test.protocol
    return test.metric in (known[name].METRICS if known is PROTOCOLS else known[name])


def labels(one):
    """The labels of a recipe's rows, and of its grid without asking which pairs work."""
    grid = [encoding for encoding in one.grid.encodings if encoding != "*"]
    grid += [n for n, e in entries().items() if e.kind == "encoding"] if "*" in one.grid.encodings else []
    rows = [(row.label or row.scheme, row.tune) for row in one.rows]
    rows += [("+".join(filter(None, pair)), one.tune) for pair in itertools.product(grid, ["", *one.grid.extensions])]
    return {label(one, name, tune, n) for name, tune in rows for n in tune.steps}


def label(one, name, tune, steps):
    return f"{name}, {steps} steps @ {one.tuning(tune, steps).length / one.train.length:g}x" if steps else name


@pytest.mark.parametrize("one", CLAIMS, ids=lambda one: one.key)
def test_its_recipe_tests_what_the_claim_compares(one):
    assert one.recipe in own_recipes()
    test = one.test
    for label in {label for pair in test.pairs for label in pair}:
        assert is_tested(one.recipe, test, label), label
        scheme = label.split(", ")[0].removesuffix(WINDOWED)
        if scheme != "own":  # that of somebody's model
            parse(scheme)
    if test.other is not None:
        both = [(asked, parts(one.recipe)[asked.part]) for asked in (test, test.other)]
        assert len(labels(both[0][1]) & labels(both[1][1])) >= 4
        for asked, part in both:
            assert _asks(part, asked)
            assert float(asked.at[:-1]) * part.train.length in part.test_lengths


@pytest.mark.parametrize("name", questions.QUESTIONS)
def test_its_recipe_tests_what_the_page_of_choices_asks(name):
    asked = questions.QUESTIONS[name]
    facts = {key: getattr(asked, key) for key in ("at", "metric", "protocol", "part", "task")}
    test = Decision(says="lower", by=0.1, label=(asked.beside,), **facts)
    assert is_tested(asked.study.partition("-")[0], test, asked.beside)  # `survey-books` is `survey` on books


# ---- where they are shown -----------------------------------------------------------------------


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr("pezoo.report.write._pictures", lambda *_: [])


@pytest.mark.usefixtures("no_figures")
def test_a_report_has_the_claims_that_its_study_tests(tmp_path, capsys):
    results = perplexities(
        {"alibi": 5.0, "rope": 9.0, "nope": 8.0, "sinusoidal": 8.1}, ratio=1, protocol="non_overlapping"
    )
    results += perplexities({"alibi": 5.0, "rope": 19.0, "nope": 9.0}, protocol="non_overlapping")
    write(tmp_path / "results.jsonl", results)
    assert report([str(tmp_path)]) == 0
    printed, page = capsys.readouterr().out, (tmp_path / "report" / scorecard.PAGE).read_text()
    mine = [one for one in CLAIMS if one.recipe == "survey"]
    assert all(one.key in printed and one.claim in page for one in mine)
    holds = next(line for line in printed.splitlines() if "alibi_holds" in line)
    assert "reproduced" in holds
    judged = judge_all(CLAIMS, results)
    counted = dict.fromkeys(VERDICTS, 0)
    for j in judged:
        counted[j.verdict] += 1
    row = " | ".join(str(counted[verdict]) for verdict in VERDICTS)
    assert f"| after the fact | {row} | {len(mine)} |" in page
    assert f"{counted['reproduced'] + counted['contradicted']} of {len(mine)} claims are decided." in page


@pytest.mark.usefixtures("no_figures")
def test_a_study_of_ones_own_has_no_claims(tmp_path):
    results = perplexities({"alibi": 5.0, "rope": 9.0}, study="mine")
    write_report(results, tmp_path, tmp_path / "cells")
    assert (tmp_path / "report.md").exists()
    assert not (tmp_path / scorecard.PAGE).exists()


@pytest.mark.parametrize(
    ("test", "shown"),
    [
        ({"says": "no higher", "by": 0.02}, "at most ×1.020"),
        ({"says": "near", "by": 0.25}, "×0.800 to ×1.250"),
        ({"says": "higher", "by": 0.12, "metric": "exact_match", "protocol": "answers"}, "at least +12.0 points"),
        ({"says": "lower", "by": 10, "metric": "max_logit", "protocol": "attention"}, "at most -10"),
    ],
)
def test_what_a_claim_needs_is_shown(test, shown):
    assert scorecard.needed(claim(**test).test) == shown
