"""Comparisons in pairs: their formula, what they say of what is missing, and what their intervals cover."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pezoo.errors import UserError
from pezoo.report.comparisons import Comparison, best_in_range, compare, compare_all, ties
from pezoo.report.paired import NOTHING, Part, Prior, documents_part, fit_prior, half_width, p_value, seeds_part
from pezoo.report.shares import questions_of
from pezoo.results import Result
from pezoo.results.losses import Losses, write_losses

EFFECTS = {"rope": 0.0, "alibi": -0.2, "t5": 0.3, "nope": 0.31, "kerple": -0.1}


def result(label="rope", value=5.0, length=64, seed=0, **changes):
    facts = {
        **dict.fromkeys(("family", "config_hash", "device", "date"), ""),
        **dict.fromkeys(("params", "train_seconds", "eval_seconds", "tokens_per_second", "peak_memory_bytes")),
        **dict.fromkeys(("scale_factor", "finetune_length")),
        **dict.fromkeys(("steps", "finetune_steps", "learning_rate", "threads"), 1),
        **{"study": "made_up", "cell": f"{label}-{seed}", "scheme": label, "encoding": label, "extensions": ()},
        **{"task": "language_modelling", "corpus": "python", "protocol": "prefix", "metric": "perplexity"},
        **{"n_tokens": 32 * length, "n_documents": 20, "train_length": 64, "versions": {}},
        **changes,
    }
    ratio = length / facts["train_length"]
    return Result(label=label, value=value, test_length=length, length_ratio=ratio, seed=seed, **facts)


def lost(label, length, seed=0, **changes):
    return result(label, None, length, seed, status="diverged", reason="the loss is not finite", **changes)


def losses(sums, tokens, length=64, protocol="prefix", documents=None):
    """Losses of two position bins that add up to `sums` by document."""
    half = np.asarray(sums) / 2
    return Losses(
        loss_sum=np.stack([half, half], axis=1),
        tokens=np.stack([tokens, np.zeros_like(tokens)], axis=1),
        edges=[0, 1, 2],
        documents=documents or [f"{i}.py" for i in range(len(tokens))],
        test_length=length,
        protocol=protocol,
    )


def study(folder=None, seeds=4, documents=12, lengths=(64, 256), effects=EFFECTS, rng=None):
    """Results whose losses have a part for each seed, each document and each of both, and the losses themselves."""
    rng = rng or np.random.default_rng(1)
    tokens = rng.integers(50, 150, documents)
    made, sums = [], {}
    for label, effect in effects.items():
        at = effect + 0.05 * rng.standard_normal(documents)
        for seed in range(seeds):
            shift = 0.02 * rng.standard_normal()
            for length in lengths:
                loss = 2 + at + shift + 0.03 * rng.standard_normal(documents)
                sums[label, seed, length] = loss * tokens
                value = math.exp(loss @ tokens / tokens.sum())
                made.append(result(label, value, length, seed))
                if folder is not None:
                    write_losses(folder / made[-1].cell / f"losses_{length}.npz", losses(loss * tokens, tokens, length))
    return made, sums, tokens


# The formula


def naive_interval(differences, weights, level=0.95):
    """Two-way analysis of variance by loops, for equal weights; t for each part, weighted by Cochran and Cox."""
    seeds, documents = differences.shape
    mean = differences.mean()
    of_seeds = documents * sum((differences[s].mean() - mean) ** 2 for s in range(seeds)) / (seeds - 1)
    of_documents = seeds * sum((differences[:, d].mean() - mean) ** 2 for d in range(documents)) / (documents - 1)
    rest = 0.0
    for s in range(seeds):
        for d in range(documents):
            rest += (differences[s, d] - differences[s].mean() - differences[:, d].mean() + mean) ** 2
    rest /= (seeds - 1) * (documents - 1)
    one, other = of_seeds / (seeds * documents), max(0, of_documents - rest) / (seeds * documents)
    quantiles = [stats.t.ppf((1 + level) / 2, n - 1) for n in (seeds, documents)]
    half = (one * quantiles[0] + other * quantiles[1]) / math.sqrt(one + other)
    return mean - half, mean + half


@pytest.mark.parametrize("seeds", [2, 3, 7])
@pytest.mark.parametrize("spread", [0.01, 1.0])
def test_the_interval_is_that_of_the_two_way_analysis_of_variance(seeds, spread):
    rng = np.random.default_rng(seeds)
    differences = rng.normal(1, 0.3, (seeds, 9)) + spread * rng.normal(size=(seeds, 1)) + rng.normal(size=9)
    parts = seeds_part(differences.mean(axis=1), None), documents_part(differences, np.full(9, 70))
    half, mean = half_width(*parts, level=0.9), differences.mean()
    assert (mean - half, mean + half) == pytest.approx(naive_interval(differences, None, 0.9))


def test_documents_are_weighted_by_their_tokens():
    """A document that was read twice is not two: the variance is that of a ratio of sums over clusters."""
    rng = np.random.default_rng(0)
    differences, tokens = rng.normal(size=(3, 6)), np.array([10, 20, 30, 40, 50, 60])
    mean = sum(tokens[d] * differences[:, d].mean() for d in range(6)) / 210
    scores = [tokens[d] * (differences[:, d].mean() - mean) / 210 for d in range(6)]
    rests = []
    for s in range(3):
        own = sum(tokens[d] * differences[s, d] for d in range(6)) / 210
        rests += [tokens[d] * (differences[s, d] - differences[:, d].mean() - own + mean) / 210 for d in range(6)]
    expected = 6 / 5 * (sum(x**2 for x in scores) - sum(x**2 for x in rests) / (3 * 2))
    assert documents_part(differences, tokens).variance == pytest.approx(max(expected, 0))
    assert documents_part(differences + 5, tokens).variance == pytest.approx(max(expected, 0))


def test_what_is_borrowed_is_found_again():
    """Variances drawn as Smyth has them: their scale and degrees of freedom come back."""
    rng = np.random.default_rng(0)
    schemes, seeds, df, scale = 600, 4, 6, 0.04
    variances = df * scale / rng.chisquare(df, schemes)
    values = np.sqrt(variances)[:, None] * rng.standard_normal((schemes, seeds))
    found = fit_prior(values)
    pairs = variances + np.roll(variances, 1)  # of a difference
    implied = df_of(pairs)
    assert found.df == pytest.approx(implied, rel=0.25)
    assert found.variance == pytest.approx(1 / np.mean(1 / pairs), rel=0.1)
    assert found.most == 599 * 3


def df_of(variances):
    """Degrees of freedom of scaled inverse chi-squares, by the variance of their logarithms."""
    from scipy.optimize import brentq
    from scipy.special import polygamma

    return 2 * brentq(lambda x: polygamma(1, x) - np.log(variances).var(), 1e-3, 1e4)


def test_few_pairs_lend_nothing_and_no_pair_gets_more_than_there_is():
    own = np.array([0.1, 0.2])
    assert fit_prior(np.array([[0.0, 1.0], [0.0, 3.0]])) is None
    assert fit_prior(np.zeros((5, 3))) is None  # one model under five labels
    assert seeds_part(own, None) == Part(own.var(ddof=1) / 2, 1)
    borrowed = seeds_part(own, Prior(variance=0.5, df=math.inf, most=4))
    assert (borrowed.variance, borrowed.df) == (pytest.approx(0.25), 4)
    noisy = seeds_part(np.array([0.0, 9.0]), Prior(variance=0.5, df=3, most=8))
    assert (noisy.variance, noisy.df) == (pytest.approx(81 / 4), 4)


@given(st.floats(0.01, 30), *[st.floats(1e-3, 1)] * 2, st.integers(1, 40))
def test_p_is_where_the_interval_ends_at_no_difference(effect, one, other, df):
    parts = Part(one, df), Part(other, 11)
    p = p_value(effect, *parts)
    assert p == p_value(-effect, *parts)
    if p > 1e-11:
        assert half_width(*parts, level=1 - p) == pytest.approx(effect, rel=1e-3)
    assert (p < 0.05) == (half_width(*parts, level=0.95) < effect)


def test_p_of_one_part_is_that_of_students_t():
    assert p_value(1.0, Part(0.25, 5), NOTHING) == pytest.approx(2 * stats.t.sf(2, 5))
    assert p_value(0.0, NOTHING, NOTHING) == 1
    assert p_value(0.1, NOTHING, NOTHING) == 0


# Comparisons of results


def test_a_comparison_is_made_by_seed_and_document(tmp_path):
    made, sums, tokens = study(tmp_path, effects={"rope": 0.0, "alibi": -0.2})
    found = compare(made, "alibi", "rope", 256, losses=tmp_path)
    differences = np.array([(sums["alibi", s, 256] - sums["rope", s, 256]) / tokens for s in range(4)])
    parts = seeds_part(differences @ tokens / tokens.sum(), None), documents_part(differences, tokens)
    mean, half = (differences @ tokens / tokens.sum()).mean(), half_width(*parts, level=0.95)
    assert (found.effect, found.low, found.high) == pytest.approx(
        (math.exp(mean), math.exp(mean - half), math.exp(mean + half)), rel=1e-6
    )
    assert (found.seeds, found.documents, found.lost, found.verdict) == (4, 12, 0, "better")
    assert found.p == found.p_corrected < 0.05
    assert compare(made, "rope", "alibi", 256, losses=tmp_path).verdict == "worse"


def test_without_losses_by_document_seeds_are_all_there_is():
    made, _, _ = study(effects={"rope": 0.0, "alibi": -0.2})
    found = compare(made, "alibi", "rope", 64)
    logs = {label: [math.log(r.value) for r in made if (r.label, r.test_length) == (label, 64)] for label in EFFECTS}
    test = stats.ttest_rel(logs["alibi"], logs["rope"])
    low, high = test.confidence_interval()
    assert (found.low, found.high, found.p) == pytest.approx((math.exp(low), math.exp(high), test.pvalue), rel=1e-6)
    assert found.documents is None


def test_the_other_pairs_of_a_study_say_how_much_seeds_differ():
    shifts = {"rope": (0, 0.02), "alibi": (0.03, 0), "t5": (0, -0.02), "nope": (0.01, 0), "kerple": (0.02, -0.02)}
    made = [result(label, math.exp(2 + x), 64, s) for label, each in shifts.items() for s, x in enumerate(each)]
    alone = compare(made[:4], "alibi", "rope", 64)
    beside = compare(made, "alibi", "rope", 64)
    assert beside.effect == alone.effect
    assert beside.high / beside.low < (alone.high / alone.low) ** 0.5


@pytest.mark.parametrize("what", ["other length", "other documents", "other tokens", "other value", "one document"])
def test_losses_that_do_not_fit_are_left_alone(tmp_path, what):
    made, sums, tokens = study(tmp_path, effects={"rope": 0.0, "alibi": -0.2})
    changed, facts = tokens.copy(), {"length": 64}
    values = sums["alibi", 1, 64]
    if what == "other length":
        facts["length"] = 65
    elif what == "other documents":
        facts["documents"] = [f"{i}.txt" for i in range(12)]
    elif what == "other tokens":
        changed[:2] += [1, -1]
    elif what == "other value":
        values = values * 1.01
    else:
        changed, values = np.array([900] + [0] * 11), np.array([values.sum() / tokens.sum() * 900] + [0.0] * 11)
    cell = next(r.cell for r in made if (r.label, r.seed) == ("alibi", 1))
    write_losses(tmp_path / cell / "losses_64.npz", losses(values, changed, **facts))
    assert compare(made, "alibi", "rope", 64, losses=tmp_path).documents is None
    assert compare(made, "alibi", "rope", 256, losses=tmp_path).documents == 12


def test_what_cannot_be_said_is_not_said():
    made, _, _ = study(seeds=3)
    one_seed = compare([r for r in made if r.seed == 1], "alibi", "rope", 64)
    assert one_seed.effect < 1
    assert (one_seed.low, one_seed.high, one_seed.p, one_seed.verdict) == (None, None, None, "unknown")

    def without(*seeds, label="alibi"):
        return [
            lost(label, r.test_length, r.seed) if r.label == label and r.test_length == 256 and r.seed in seeds else r
            for r in made
        ]

    partly = compare(without(2), "alibi", "rope", 256)
    assert (partly.seeds, partly.lost, partly.verdict) == (2, 1, "unknown")
    assert partly.effect < 1
    wholly = compare(without(0, 1, 2), "alibi", "rope", 256)
    assert (wholly.effect, wholly.seeds, wholly.lost, wholly.verdict) == (None, 0, 3, "unknown")
    assert compare(without(2), "alibi", "rope", 64).verdict == "better"
    assert compare(made, "alibi", "rope", 100).effect is None
    with pytest.raises(UserError, match=r"no results of 'ropes' to compare\. Did you mean 'rope'"):
        compare(made, "alibi", "ropes", 64)


def test_seeds_that_one_of_the_two_lacks_do_not_count():
    made, _, _ = study(seeds=4)
    fewer = [r for r in made if not (r.label == "alibi" and r.seed == 3)]
    found = compare(fewer, "alibi", "rope", 64)
    assert (found.seeds, found.lost) == (3, 0)
    assert found == compare([r for r in made if r.seed < 3], "alibi", "rope", 64)


def test_one_model_under_two_labels_is_a_tie():
    made, _, _ = study(effects={"rope": 0.0, "t5": 0.3})
    made += [replace(r, label="rope+pi") for r in made if r.label == "rope"]
    found = compare(made, "rope+pi", "rope", 64)
    assert (found.effect, found.verdict, found.p) == (1, "tie", 1)


def accuracies(shares, **changes):
    facts = {"task": "copy", "metric": "exact_match", "protocol": "answers", "n_documents": 100} | changes
    return [result(label, v, 64, seed, **facts) for label, each in shares.items() for seed, v in enumerate(each)]


def test_accuracies_differ_by_shares_and_more_is_better():
    found = compare(accuracies({"a": [0.9, 0.95, 0.92], "b": [0.4, 0.42, 0.45]}), "a", "b", 64)
    assert found.effect == pytest.approx(0.5)
    assert (found.verdict, found.lower_is_better, found.documents) == ("better", False, None)


def test_seeds_that_agree_to_the_question_do_not_make_a_share_certain():
    found = compare(accuracies({"a": [0.52, 0.52, 0.52], "b": [0.5, 0.5, 0.5]}), "a", "b", 64)
    assert found.verdict == "tie"
    shares = (52 + 2) / 104, (50 + 2) / 104  # two right and two wrong ones added
    half = stats.t.ppf(0.975, 99) * math.sqrt(sum(p * (1 - p) for p in shares) / 100)
    assert (found.low, found.high) == pytest.approx((0.02 - half, 0.02 + half))
    whole = compare(accuracies({"a": [1.0, 1.0], "b": [1.0, 1.0]}), "a", "b", 64)
    assert whole.verdict == "tie"
    assert whole.high == -whole.low > 0.03  # of 100 questions all were right: of others some may not be
    assert compare(accuracies({"a": [1.0, 1.0], "b": [0.0, 0.0]}), "a", "b", 64).verdict == "better"


def test_all_are_compared_with_the_best_in_range_from_the_training_length_on():
    made, _, _ = study(lengths=(32, 64, 256))
    made += [replace(r, label="rope | windowed") for r in made if r.label == "rope"]
    found = compare_all(made)
    assert {one.baseline for one in found} == {"alibi"}
    expected = [(label, n) for label in ("rope", "t5", "nope", "kerple") for n in (64, 256)]
    assert [(one.label, one.test_length) for one in found] == expected
    assert [one.test_length for one in compare_all(made, "rope", lengths=[256])] == [256] * 4


def test_p_values_are_corrected_by_holm():
    made, _, _ = study()
    found = compare_all(made, "kerple")
    p = sorted(one.p for one in found)
    steps = [min(1, p[i] * (len(p) - i)) for i in range(len(p))]
    assert sorted(one.p_corrected for one in found) == pytest.approx(list(np.maximum.accumulate(steps)))
    assert all(one.p_corrected >= one.p for one in found)


def test_the_best_in_range_has_all_its_seeds_and_is_no_companion():
    assert best_in_range([result("a", 5.0), result("b", 4.0), result("a", 1.0, 128), result("b", 9.0, 128)]) == "b"
    assert best_in_range([result("a", 5.0), result("b", 4.0), lost("b", 64, 1)]) == "a"
    assert best_in_range([result("a", 5.0), result("a | windowed", 4.0)]) == "a"
    assert best_in_range(accuracies({"a": [0.2], "b": [0.3]})) == "b"
    assert best_in_range([result("a", 5.0, 128), result("b", 4.0, 128), result("a", 1.0, 256)]) == "b"
    with pytest.raises(UserError, match="no scheme has a value of perplexity with every seed at test length 64"):
        best_in_range([lost("a", 64)])
    with pytest.raises(UserError, match="no results yet"):
        best_in_range([])


def test_tuned_rows_are_compared_like_others():
    made, _, _ = study(effects={"rope": 0.0, "rope+pi, 200 steps @ 8x": 0.2})
    [at_l, beyond] = compare_all(made, "rope")
    assert at_l.verdict == beyond.verdict == "worse"


@pytest.mark.parametrize(
    ("metric", "low", "high", "verdict"),
    [
        ("perplexity", 1.1, 1.2, "worse"),
        ("perplexity", 0.9, 1.0, "tie"),
        ("loss", -0.2, -0.1, "better"),
        ("exact_match", 0.1, 0.2, "better"),
        ("exact_match", -0.2, -0.1, "worse"),
        ("exact_match", None, None, "unknown"),
    ],
)
def test_a_verdict_rests_on_the_interval_alone(metric, low, high, verdict):
    facts = {"effect": 0.5, "p": 0.9, "p_corrected": 1.0, "seeds": 3, "documents": None}
    one = Comparison("a", "b", metric, "prefix", 64, low=low, high=high, lower_is_better="match" not in metric, **facts)
    assert one.verdict == verdict


# One model beside itself


def test_one_model_beside_itself_borrows_from_no_other_model():
    made, *_ = study(seeds=3)
    seconds = {label: float(i) for i, label in enumerate(EFFECTS)}
    made = [replace(r, train_seconds=seconds[r.label]) for r in made]
    small = np.random.default_rng(5).normal(0, 1e-3, 3)
    twin = [replace(r, label="twin", value=r.value * math.exp(0.01 + small[r.seed])) for r in made if r.label == "rope"]
    one = compare([*made, *twin], "twin", "rope", 256)
    other = compare([*made, *(replace(r, train_seconds=99.0) for r in twin)], "twin", "rope", 256)
    assert one.effect == other.effect
    assert one.verdict == "worse"
    assert other.verdict == "tie", "as two models that were trained apart would be"
    unknown = [replace(r, train_seconds=None) for r in (*made, *twin)]
    assert compare(unknown, "twin", "rope", 256).high == pytest.approx(other.high)


@pytest.mark.parametrize("seconds", ["of its training", None])
def test_a_training_counts_once_under_however_many_labels(seconds):
    """Copies would say again how far seeds differ, as if more schemes had said it, and the intervals would be short."""
    made, *_ = study(seeds=3)
    made = [replace(r, train_seconds=None if seconds is None else hash((r.label, r.seed)) % 997 + 1.0) for r in made]
    copies = [replace(r, label=f"rope+{i}") for r in made if r.label == "rope" for i in range(5)]
    copies += [replace(r, label=f"{r.label} | windowed", value=r.value * 1.01) for r in made]
    for pair in (("alibi", "rope"), ("rope+3", "t5"), ("rope", "nope")):
        plain = tuple(label.partition("+")[0] for label in pair)
        one, other = compare([*made, *copies], *pair, 256), compare(made, *plain, 256)
        if seconds is None:  # then a companion is not known to be of the same training, and is no scheme of the table
            other = replace(other, label=one.label, baseline=one.baseline)
        assert (one.low, one.high, one.p) == pytest.approx((other.low, other.high, other.p))


def test_a_lost_seed_counts_that_only_one_of_the_two_was_run_with():
    """As where studies of other seeds are joined: no interval, instead of one from the seeds that are left."""
    made = accuracies({"a": [0.52, 0.52, 0.5], "b": [0.5, 0.5]})
    gone = {"value": None, "status": "diverged", "reason": "no", "n_documents": 0}
    one = compare([replace(r, **gone) if (r.label, r.seed) == ("a", 2) else r for r in made], "a", "b", 64)
    assert (one.lost, one.seeds, one.low, one.verdict) == (1, 2, None, "unknown")


def test_the_best_has_as_many_seeds_as_any():
    """A scheme that was run with one seed can be the best of it by luck."""
    made = [result("a", 4.9), *(result("b", value, seed=seed) for seed, value in enumerate((4.8, 5.2, 5.3)))]
    assert best_in_range(made) == "b"
    assert best_in_range([*made, lost("b", 64, 3)]) == "a"


def test_what_cannot_be_told_apart_from_the_best_is_corrected_for_the_number_of_schemes(tmp_path):
    made, _, _ = study(tmp_path, effects={f"s{i}": i * 0.02 for i in range(12)}, seeds=3)
    ranked = sorted({r.label for r in made}, key=lambda label: np.mean([r.value for r in made if r.label == label]))
    pairs = {one.label: one for one in compare_all(made, ranked[0], tmp_path, lengths=[64])}
    tied = ties(made, ranked, 64, tmp_path)
    assert tied == [label for label in ranked[1:] if pairs[label].p_corrected > 0.05]
    assert any(pairs[label].verdict == "worse" for label in tied)  # by itself
    assert ranked[-1] not in tied
    assert ties([r for r in made if r.seed == 0], ranked, 64) == ranked[1:]  # one seed: no interval


def test_one_comparison_is_of_one_metric():
    mixed = [result(), result("alibi"), result("alibi", metric="loss")]
    with pytest.raises(UserError, match=r"one comparison cannot mix loss \(prefix\), perplexity \(prefix\); select"):
        compare(mixed, "alibi", "rope", 64)


def test_a_mean_of_shares_varies_as_one_of_fewer_questions():
    """The variance of a mean of shares, from its definition; a share of few questions has its say."""
    few, many = (result(value=v, metric="exact_match", n_documents=n) for v, n in ((0.5, 10), (0.5, 1000)))
    exact = sum(p * (1 - p) / n for p, n in ((7 / 14, 10), (502 / 1004, 1000))) / 4
    assert 0.25 / questions_of([few, many]) == pytest.approx(exact, rel=0.03)
    assert questions_of([many, many]) == 2000
    assert questions_of([result(n_documents=3), result(n_documents=4)]) == 7  # no shares


def test_two_shares_differ_by_no_more_than_one():
    found = compare(accuracies({"a": [1.0, 0.3, 0.9], "b": [0.0, 0.0, 0.02]}), "a", "b", 64)
    assert found.effect + (found.effect - found.low) > 1 == found.high
