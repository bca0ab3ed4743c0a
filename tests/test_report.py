"""Statistics, tables and figures, from results that are made up here."""

import dataclasses
import io
import itertools
import json
import math
import re
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from pezoo.errors import UserError
from pezoo.escape import safe_names
from pezoo.report import beside, captions, curves, figure, groups, heatmap, intervals, statistics, table
from pezoo.report.grids import grids
from pezoo.report.lines import MOST, draw_lengths
from pezoo.report.statistics import Summary
from pezoo.report.write import markdown, write_report
from pezoo.results import Result
from pezoo.results.losses import Losses, write_losses

LENGTHS = (64, 128, 256, 512, 1024)
# label, encoding, extensions, tuning steps, perplexity at L, factor for each doubling
SCHEMES = (
    ("nope", "nope", (), 0, 5.5, 1.1),
    ("sinusoidal", "sinusoidal", (), 0, 6.6, 1.5),
    ("sinusoidal+pi", "sinusoidal", ("pi",), 0, 6.6, 1.2),
    ("shape", "sinusoidal", ("shift",), 0, 8.0, 1.1),
    ("alibi", "alibi", (), 0, 6.2, 0.98),
    ("rope", "rope", (), 0, 5.7, 1.35),
    ("rope+pi, zero-shot", "rope", ("pi",), 0, 5.7, 1.4),
    ("rope+pi, 200 steps @ 8x", "rope", ("pi",), 200, 6.9, 0.98),
    ("rope+ntk", "rope", ("ntk",), 0, 5.7, 1.15),
    ("learned", "learned", (), 0, 6.5, 1.0),
)


def result(label="rope", value=5.0, length=64, seed=0, **changes):
    facts = {
        "study": "made_up",
        "cell": f"{zlib.crc32(label.encode()):x}-{seed}",
        "scheme": "rope",
        "encoding": "rope",
        "extensions": (),
        "family": "relative",
        "task": "language_modelling",
        "corpus": "python",
        "protocol": "prefix",
        "metric": "perplexity",
        "n_tokens": 32 * length,
        "n_documents": 20,
        "train_length": 64,
        "length_ratio": length / changes.get("train_length", 64),
        "scale_factor": None,
        "learning_rate": 2e-3,
        "steps": 800,
        "finetune_steps": 0,
        "finetune_length": None,
        "params": 200_000,
        "train_seconds": 40.0,
        "eval_seconds": 0.4,
        "tokens_per_second": 5e4,
        "peak_memory_bytes": None,
        "threads": 1,
        "config_hash": "77ab",
        "versions": {"torch": "2.13.0"},
        "device": "cpu",
        "date": "2030-01-01T00:00:00+00:00",
    }
    return Result(**facts | changes, label=label, value=value, test_length=length, seed=seed)


def lost(label, length, seed=0, status="diverged", reason="the loss is not finite", **changes):
    return result(label, None, length, seed, status=status, reason=reason, **changes)


def study(seeds=(0, 1), protocols=("prefix",)):
    """Results as a study writes them: `learned` undefined beyond L, `nope` diverging once."""
    made = []
    for label, encoding, extensions, tuned, start, factor in SCHEMES:
        facts = {
            "scheme": "+".join([encoding, *extensions]),
            "encoding": encoding,
            "extensions": extensions,
            "finetune_steps": tuned,
            "finetune_length": 512 if tuned else None,
        }
        for seed in seeds:
            for protocol in protocols:
                for k, length in enumerate(LENGTHS):
                    value = start * factor**k * (1 + 0.01 * seed)
                    for metric in ("loss", "perplexity"):
                        at = {"metric": metric, "protocol": protocol} | facts
                        value = math.log(value) if metric == "loss" else math.exp(value)
                        if label == "learned" and length > 64:
                            why = "the table holds 64 positions"
                            made.append(lost(label, length, seed, "undefined", why, **at))
                        elif label == "nope" and length == 1024 and seed == 1:
                            made.append(lost(label, length, seed, **at))
                        else:
                            made.append(result(label, value, length, seed, **at))
    return made


def write_all_losses(results, cells):
    edges = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])
    for number, (label, cell) in enumerate(sorted({(r.label, r.cell) for r in results})):
        for longest in (64,) if label == "learned" else (512, 1024):
            own = edges[edges <= longest]
            tokens = np.tile(np.diff(own), (20, 1))
            losses = Losses(
                loss_sum=tokens * (1 + 0.1 * number),
                tokens=tokens,
                edges=own,
                documents=[f"{i}.py" for i in range(20)],
                test_length=longest,
                protocol="prefix",
            )
            write_losses(cells / cell / f"losses_{longest}.npz", losses)


# Statistics


@pytest.mark.parametrize(
    ("values", "troubles", "shown"),
    [
        ((5.234,), (), "5.23"),
        ((1.0, 2.0, 6.0), (), "3.00 ± 2.65"),  # sample deviation: sqrt((4 + 1 + 9) / 2)
        ((12.34, 12.36), (), "12.3 ± 0.0"),
        ((0.0123,), (), "0.0123"),
        ((1234.5,), (), "1234"),
        ((0.0,), (), "0.00"),
        ((2e7, 2e7), (), "2.00e+07 ± 0.00e+00"),
        ((), ("undefined", "undefined"), "undefined"),
        ((), ("out_of_memory",), "out of memory"),
        ((8.43,), ("diverged",), "8.43, diverged 1/2"),
        ((), ("diverged", "failed", "failed"), "diverged 1/3, failed 2/3"),
    ],
)
def test_a_summary_shows_mean_spread_and_troubles(values, troubles, shown):
    assert str(Summary(values, troubles)) == shown


def test_one_seed_has_no_spread_and_no_interval():
    assert Summary((5.0,)).spread is None
    assert intervals.interval([5.0]) is None


@given(st.lists(st.floats(1, 1e4), min_size=2, max_size=8), st.floats(0.5, 0.99))
def test_t_interval_is_the_textbooks(values, level):
    low, high = intervals.interval(values, level)
    mean, deviation = np.mean(values), np.std(values, ddof=1)
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * deviation / math.sqrt(len(values))
    assert low == pytest.approx(mean - half, rel=1e-6, abs=1e-6)
    assert high == pytest.approx(mean + half, rel=1e-6, abs=1e-6)


def test_intervals_of_logarithms_stay_positive():
    values = [1.0, 400.0]
    assert intervals.interval(values)[0] < 0 < intervals.interval(values, log=True)[0]


def test_results_that_cannot_share_a_table_are_refused():
    select = groups.select
    with pytest.raises(UserError, match="no results yet"):
        select([], "perplexity", "prefix")
    with pytest.raises(UserError, match=r"no results of accuracy \(prefix\), but of perplexity"):
        select([result()], "accuracy", "prefix")
    with pytest.raises(UserError, match="several part: , long"):
        select([result(), result("b", part="long")], "perplexity", "prefix")
    with pytest.raises(UserError, match=r"'rope' with seed 0 .* differ in train_length\. Give"):
        select([result(), result(train_length=32)], "perplexity", "prefix")


def test_losses_are_found_at_the_longest_length_of_each_label(tmp_path):
    results = study()
    write_all_losses(results, tmp_path)
    found = intervals.losses_by_label(results, tmp_path, "prefix")
    assert list(found) == [label for label, *_ in SCHEMES]
    assert [one.test_length for one in found["rope"]] == [1024, 1024]
    assert [one.test_length for one in found["learned"]] == [64, 64]
    assert intervals.losses_by_label(results, tmp_path, "non_overlapping") == {}


def test_loss_by_position_is_the_mean_over_seeds():
    facts = {"edges": [0, 1, 3], "documents": ["a"], "test_length": 3, "protocol": "prefix"}
    seeds = [Losses(loss_sum=[[s, 4 * s]], tokens=[[1, 2]], **facts).marginals() for s in (1.0, 3.0)]
    assert intervals.mean_by_position(seeds) == {1.0: 2.0, 2.5: 4.0}


def test_accuracies_are_shown_in_percent():
    made = [result(value=value, seed=seed, metric="exact_match") for seed, value in enumerate((0.852, 0.894))]
    assert str(statistics.summarise(made)) == "87.3 ± 3.0"
    assert str(statistics.summarise([*made, lost("rope", 64, 2, metric="exact_match")])) == "87.3 ± 3.0, diverged 1/3"


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ((10.0, 10.0 * math.exp(0.02)), "10.1 ± 1.4%"),  # losses 0.02 apart
        ((10.0, 10.0), "10.0 ± 0.00%"),
        ((5.0, 5.0 * math.exp(2)), "13.6 ± 141%"),
        ((10.0,) * 9 + (10_000.0,), "20.0 ± 218%"),
    ],
)
def test_perplexities_are_averaged_as_their_losses_are(values, shown):
    made = [result(value=value, seed=seed) for seed, value in enumerate(values)]
    found = statistics.summarise(made)
    losses = [math.log(value) for value in values]
    assert str(found) == shown
    assert found.mean == pytest.approx(math.exp(np.mean(losses)))
    assert found.spread == pytest.approx(np.std(losses, ddof=1), abs=1e-9)
    assert statistics.summarise([replace(r, metric="bits_per_byte") for r in made]).mean == pytest.approx(
        np.mean(values)
    )


@given(
    st.lists(st.floats(1, 1e20), min_size=2, max_size=8),
    st.sampled_from(["perplexity", "last_perplexity", "loss", "exact_match"]),
    st.sampled_from(["spread", "interval"]),
)
def test_every_point_is_inside_its_bar(values, metric, bars):
    if metric == "exact_match":
        values = [1 / value for value in values]
    found = statistics.summarise([result(value=v, seed=seed, metric=metric) for seed, v in enumerate(values)])
    low, high = curves._bar(found, bars)
    assert low <= found.mean * (1 + 1e-9)
    assert high >= found.mean * (1 - 1e-9)
    assert math.isfinite(high)
    if "perplexity" in metric:
        assert low > 0


def test_scores_beyond_the_training_length_are_averaged_on_the_scale_of_their_metric():
    made = [result(value=v, length=n) for n, v in ((64, 1.0), (128, 4.0), (256, 16.0))]
    [score] = statistics.mean_beyond(made)["rope"].values()
    assert score.value == pytest.approx(8)


def curve(*values, start=64):
    """Perplexities at L, 2L, 4L ...; None: diverged, a list: by seed."""
    made = {}
    for k, value in enumerate(values):
        each = value if isinstance(value, list) else [value]
        made[start << k] = Summary(
            tuple(v for v in each if v is not None), tuple("diverged" for v in each if v is None), scale="log"
        )
    return made


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ((10, 11, 10.5, 9), (512, False)),  # 10 % above is still near
        ((10, 11.1, 10, 10), (64, True)),  # a later recovery does not count
        ((10, 9, 10.9, 11.1), (256, True)),
        ((10, [8, 13], 20), (128, True)),  # the mean over seeds counts
        ((10, [10, None], 10), (64, True)),  # a seed that diverged does too
        ((10,), (64, False)),
        ((None, 10), None),
    ],
)
def test_effective_length_is_the_longest_up_to_which_perplexity_stays_near(values, found):
    assert statistics.effective_length(curve(*values), 64) == found


def test_an_untrained_model_is_stable_and_not_good():
    found = {"untrained": curve(249, 249, 249), "good": curve(10, 10.9, 12), "lost": curve([1, None], 1)}
    found["good | windowed"] = curve(2, 2)
    best = statistics.best_value(found, 64)
    assert best == 10
    assert statistics.effective_length(found["untrained"], 64) == (256, False)
    assert statistics.effective_length(found["untrained"], 64, reference=best) is None
    assert statistics.effective_length(found["good"], 64, reference=best) == (128, True)
    assert statistics.effective_length(found["lost"], 64, reference=best) is None
    assert statistics.best_value({"lost": found["lost"]}, 64) is None


def test_accuracies_work_as_long_as_they_stay_high():
    def accuracy(*values):
        return {64 << k: Summary((value,), scale="share") for k, value in enumerate(values)}

    found = {"a": accuracy(0.9, 0.82, 0.5), "b": accuracy(0.5, 0.5, 0.5), "c": accuracy(0, 0, 0)}
    best = statistics.best_value(found, 64)
    assert best == 0.9
    stable = {label: statistics.effective_length(each, 64) for label, each in found.items()}
    assert stable == {"a": (128, True), "b": (256, False), "c": None}
    good = {label: statistics.effective_length(each, 64, reference=best) for label, each in found.items()}
    assert good == {"a": (128, True), "b": None, "c": None}


def test_effective_length_starts_at_the_longest_length_in_range():
    assert statistics.effective_length(curve(20, 10, 10.5, 30, start=16), 48) == (64, True)
    assert statistics.effective_length(curve(10, 10, start=128), 64) is None
    assert statistics.effective_length(curve(10, 14, 16), 64, tolerance=0.5) == (128, True)


@pytest.mark.parametrize(
    ("values", "windowed", "verdict"),
    [
        ((10, 8, 7), (10, 9, 9), "uses context"),
        ((10, 10, 8.95), (10, 10, 9), "stable"),  # better by less than 1 %
        ((10, 10, 10.9), (10, 10, 10), "stable"),
        ((10, 10, 11.1), (10, 10, 99), "breaks"),
        ((10, 10, None), (10, 10, 10), "breaks"),
        ((10, 8, 8), (10, 9), "uses context"),  # at the longest length that both have
        ((10, 8), (10, None), None),
        ((10,), (10,), None),
        ((None, 8), (10, 9), None),
    ],
)
def test_the_windowed_companion_tells_use_from_stability(values, windowed, verdict):
    assert statistics.against_window(curve(*values), curve(*windowed), 64) == verdict


def answers(label="rope", value=0.5, length=80, seed=0, task="even_pairs", metric="token_accuracy", **changes):
    facts = {"corpus": f"{task}, encoder form", "protocol": "answers", "train_length": 40}
    return result(label, value, length, seed, **facts | {"task": task, "metric": metric} | changes)


def test_scores_are_means_beyond_the_training_length_then_over_tasks():
    made = {
        "one": [answers(value=v, length=n) for n, v in ((40, 1.0), (80, 0.6), (400, 0.2))],
        "two": [answers(value=0.8, seed=0), answers(value=0.2, seed=1), answers("nope", 0.1)],
    }
    made["one"].append(lost("nope", 80, 0, **{n: getattr(made["one"][0], n) for n in ("metric", "train_length")}))
    frame = statistics.score_frame(made)
    assert frame.map(str).to_dict("index") == {
        "rope": {"one": "40.0", "two": "50.0 ± 42.4", "mean": "60.0"},  # seed 0 alone has both
        "nope": {"one": "diverged", "two": "10.0", "mean": "diverged"},
        "(guessing)": {"one": "50.0", "two": "50.0", "mean": "None"},
    }


def crossing(encodings=("rope", "alibi", "t5"), extensions=("pi", "ntk", "yarn"), steps=(0, 200), **changes):
    """Plain encodings at 5, 6, 7 ... times length ratio; each extension halves that, tuning as well."""
    made = []
    for i, encoding in enumerate(encodings):
        for j, added in enumerate([(), *[(name,) for name in extensions]]):
            for n in steps:
                for length in (64, 128):
                    scheme = "+".join([encoding, *added])
                    facts = {"scheme": scheme, "encoding": encoding, "extensions": added, "finetune_steps": n}
                    facts["finetune_length"] = 512 if n else None
                    value = (5 + i) * (length / 64) / (2 if j else 1) / (2 if n else 1)
                    made.append(result(f"{scheme}, {n} steps", value, length, **facts | changes))
    return made


def test_a_grid_has_a_frame_for_each_length_and_tuning():
    made = [r for r in crossing() if r.label != "alibi+ntk, 0 steps"]
    found = grids(made)
    none, tuned = (0, 0), (200, 8)
    assert list(found) == [(64, none), (64, tuned), (128, none), (128, tuned)]
    frame = found[128, none]
    assert list(frame.index) == ["rope", "alibi", "t5"]
    assert list(frame.columns) == ["plain", "pi", "ntk", "yarn"]
    assert frame.loc["alibi", "plain"].mean == 12
    assert frame.loc["alibi", "ntk"] is None
    assert found[128, tuned].loc["t5", "pi"].mean == 3.5


def test_schemes_that_were_tuned_at_different_lengths_stand_in_grids_of_their_own():
    far = crossing(steps=(200,))
    near = [replace(r, label=r.label + " at 2x", value=r.value + 1, finetune_length=128) for r in far]
    found = grids(far + near)
    assert [found[64, tuning].loc["rope", "pi"].mean for tuning in ((200, 2), (200, 8))] == [2.25, 1.25]
    headings = [made.heading for made in table.crossed(far + near, "perplexity", "prefix")]
    assert [heading.partition("200 steps ")[2][:4] for heading in headings] == ["@ 2x", "@ 8x"]


def test_a_study_without_three_encodings_of_three_extensions_has_no_grid():
    assert grids(study()[::2]) == {}
    assert grids(crossing(encodings=("rope", "alibi"))) == {}
    assert grids(crossing(extensions=("pi", "ntk"))) == {}
    fitting = [r for r in crossing() if r.scheme != "alibi+ntk"]
    assert grids(fitting) != {}


def test_no_label_of_a_grid_takes_the_place_of_another():
    """In whatever order they stand, and where even the settings are alike."""
    made = crossing(steps=(0,))
    odd = [replace(r, label="odd", scheme="rope+pi:factor=8", value=1.0) for r in made if r.scheme == "rope+pi"]
    twice = [replace(r, label="twice", value=2.0) for r in odd]
    frame = grids([*odd, *twice, *made])[64, (0, 0)]
    assert list(frame.columns) == ["plain", "pi:factor=8", "twice", "pi", "ntk", "yarn"]
    assert [frame.loc["rope", name].mean for name in ("pi:factor=8", "twice", "pi")] == [1, 2, 2.5]


def test_in_a_grid_settings_are_named_where_names_are_not_enough():
    made = crossing(steps=(0,))
    made += [replace(r, label="again", scheme="rope+pi:factor=8", value=1.0) for r in made if r.scheme == "rope+pi"]
    made += [replace(r, label=r.label + " | windowed", value=9.0) for r in made]
    frame = grids(made)[64, (0, 0)]
    assert list(frame.columns) == ["plain", "pi", "ntk", "yarn", "pi:factor=8"]
    assert (frame.loc["rope", "pi"].mean, frame.loc["rope", "pi:factor=8"].mean) == (2.5, 1)
    assert frame.loc["alibi", "pi:factor=8"] is None


def needles(labels=("rope", "alibi"), lengths=(64, 128), seeds=(0, 1), **changes):
    """A needle is found if it is not far back: with alibi at all depths, with rope at the last two."""
    made = []
    for label in labels:
        for length in lengths:
            for seed in seeds:
                facts = {"task": "passkey:n_digits=5", "corpus": "passkey:n_digits=5", "protocol": "answers"}
                facts |= {"encoding": label} | changes
                found = {d: float(label == "alibi" or d >= 0.5) for d in (0.0, 0.5, 1.0)}
                for depth, value in found.items():
                    made.append(result(label, value, length, seed, metric="exact_match", depth=depth, **facts))
                made.append(result(label, sum(found.values()) / 3, length, seed, metric="exact_match", **facts))
                made.append(result(label, 32.0, length, seed, metric="k_max", **facts))
    return made


def test_depths_are_rows_and_lengths_columns():
    made = needles()
    made = [replace(r, seed=5, value=0.0) if r.seed == 1 and r.depth == 1 else r for r in made]
    frames = statistics.by_depth(groups.select(made, "exact_match", "answers", depths=True))
    assert list(frames) == ["rope", "alibi"]
    assert frames["rope"].to_dict() == {n: {0.0: 0.0, 0.5: 1.0, 1.0: 0.5} for n in (64, 128)}


# Groups


def test_groups_are_named_by_what_is_not_plain():
    made = [
        result(),
        answers(),
        answers(part="long"),
        result(part="long"),
        result(part="books", corpus="text"),
        result(part="books"),
    ]
    found = groups.groups(made)
    assert list(found) == ["", "even_pairs", "long, even_pairs", "long", "books, text", "books, python"]
    assert [group for [group] in found.values()] == made
    with pytest.raises(UserError, match="no results yet"):
        groups.groups([])


def test_results_on_different_texts_are_never_together():
    made = [result(corpus_digest="a" * 64), result(corpus_digest="b" * 64, seed=1), result(seed=2)]
    assert list(groups.groups(made)) == ["python aaaaaaaa", "python bbbbbbbb", "python unknown"]
    message = (
        "cannot mix results on different texts, though all are called python: their digests are aaaaaaaa, bbbbbbbb"
    )
    with pytest.raises(UserError, match=message):
        groups.select(made[:2], "perplexity", "prefix")
    apart = trained_at(32, 64, part=lambda n: f"at {n}", corpus_digest=lambda n: f"{n}" * 32)
    assert groups.matrices(apart) == {}
    same = trained_at(32, 64, part=lambda n: f"at {n}", corpus_digest=lambda n: "c" * 64)
    assert list(groups.matrices(same)) == ["train lengths"]


def trained_at(*lengths, labels=("rope", "alibi"), **changes):
    made = []
    for n in lengths:
        facts = {"train_length": n} | {name: value(n) for name, value in changes.items()}
        for label in labels:
            facts["encoding"] = label
            made += [result(label, 5.0, n, **facts), result(label, 6.0, 2 * n, **facts)]
    return made


def test_where_training_lengths_differ_labels_say_them():
    made = [*trained_at(32, 64), *trained_at(32, 64, labels=("rope | windowed",))]
    [group] = groups.groups(made).values()
    labels = [*dict.fromkeys(r.label for r in group)]
    assert labels == [f"{name}, L = {n}" for name in ("rope", "alibi") for n in (32, 64)] + [
        "rope, L = 32 | windowed",
        "rope, L = 64 | windowed",
    ]
    assert groups.select(group, "perplexity", "prefix") == group


def test_parts_that_differ_in_training_length_come_together():
    found = groups.matrices(trained_at(32, 64, part=lambda n: f"at {n}"))
    assert list(found) == ["train lengths"]
    assert [r.label for r in found["train lengths"]][::2] == [
        f"{x}, L = {n}" for x in ("rope", "alibi") for n in (32, 64)
    ]
    assert groups.matrices(trained_at(32, 64)) == {}  # one part: a group of its own has them already
    assert groups.matrices(trained_at(64, 64, part=lambda n: f"at {n}")) == {}
    assert groups.matrices([*trained_at(32, 64, part=lambda n: f"at {n}"), *trained_at(64, part=lambda n: "too")]) == {}
    others = [*trained_at(32, part=lambda n: "a"), *trained_at(64, part=lambda n: "b", labels=("nope", "alibi"))]
    assert {r.label for r in groups.matrices(others)["train lengths"]} == {"alibi, L = 32", "alibi, L = 64"}


def test_the_headline_is_the_foremost_metric_and_its_first_protocol():
    assert groups.headline({"attention": ["max_logit"], "prefix": ["loss", "perplexity"]}) == ("perplexity", "prefix")
    assert groups.headline({"answers": ["loss", "exact_match"], "generation": ["exact_match"]}) == (
        "exact_match",
        "answers",
    )
    assert groups.headline({"attention": ["max_logit", "mass_beyond"]}) == ("max_logit", "attention")


def test_chance_is_known_for_tokens_and_for_answers_of_one():
    assert groups.chance(answers()) == 0.5
    assert groups.chance(answers(metric="exact_match")) == 0.5
    assert groups.chance(answers(task="reverse_string", metric="exact_match")) is None
    assert groups.chance(answers(metric="loss")) is None
    assert groups.chance(answers(task="of_a_plug_in")) is None
    assert groups.chance(result()) is None


# Tables


def test_pivot_has_a_row_per_label_and_a_column_per_length():
    frame = table.pivot(study())
    assert list(frame.index) == [label for label, *_ in SCHEMES]
    assert list(frame.columns) == ["L", "2L", "4L", "8L", "16L"]
    assert frame.loc["rope", "L"].mean == pytest.approx(5.7 * math.sqrt(1.01))
    assert frame.loc["rope", "L"].spread == pytest.approx(math.log(1.01) / math.sqrt(2))
    assert str(frame.loc["learned", "2L"]) == "undefined"
    assert str(frame.loc["nope", "16L"]) == "8.05, diverged 1/2"


def test_a_result_that_is_not_there_yet_is_a_dash():
    made = [result("a", 5.0), result("a", 6.0, length=96), result("b|c", 7.0, length=100)]
    assert table.by_length(made).markdown().splitlines() == [
        "Perplexity on python; prefix protocol; L = 64 tokens; one seed.",
        "",
        "| scheme | L | 1.5L | T = 100 | stable to | good to |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| a | 5.00 | 6.00 | – | L | L |",
        r"| b\|c | – | – | 7.00 | – | – |",
        "",
        "- stable to: the longest length up to which the mean is within 10 % of its own at L, be that good or bad",
        "- good to: the longest length up to which the mean is within 10 % of the best scheme's at L",
    ]


def test_tables_give_the_reasons():
    text = table.by_length(study()).markdown()
    assert "geometric mean ± sample standard deviation of the loss over 2 seeds (1% is 0.01 nats)" in text
    assert "; mean ± sample standard deviation over 2 seeds" in table.by_length(study(), "loss").markdown()
    assert "- learned: undefined at 2L, 4L, 8L, 16L: the table holds 64 positions\n" in text
    assert "- nope: diverged at 16L: the loss is not finite\n" in text


def test_reasons_that_differ_in_numbers_alone_are_one():
    def undefined(length, reason, label="learned"):
        return result(label, None, length, train_length=32, status="undefined", reason=reason)

    lines = captions.reasons(
        [
            undefined(128, "coordinate 127.5 has no row"),
            undefined(64, "coordinate 63 has no row"),
            undefined(256, "the model is gone"),
            undefined(64, "coordinate 63 has no row", "tupe"),
        ]
    )
    assert lines == [
        "learned: undefined at 2L, 4L: coordinate 63 has no row",
        "tupe: undefined at 2L: coordinate 63 has no row",
        "learned: undefined at 8L: the model is gone",
    ]


def test_the_page_has_a_table_per_metric_and_protocol():
    page = markdown(study(protocols=("prefix", "non_overlapping")))
    assert re.findall("^#.*", page, re.M) == [
        "# made_up",
        "## Ranking by perplexity, the best at 16L first",
        "## Loss, prefix protocol",
        "## Perplexity, prefix protocol",
        "## Perplexity, against nope, prefix protocol",
        "## Loss, non_overlapping protocol",
        "## Perplexity, non_overlapping protocol",
        "## Perplexity, against nope, non_overlapping protocol",
        "## Cost",
    ]
    with pytest.raises(UserError, match="no results yet"):
        markdown([])


def test_grids_stand_before_their_rows():
    headings = re.findall("^## .*", markdown(crossing()), re.M)
    assert [heading.split(",")[0] for heading in headings[1:4]] == ["## Perplexity at 2L"] * 2 + ["## Perplexity"]


@pytest.mark.parametrize(("width", "terminal"), [(80, True), (80, False), (150, True)])
def test_the_terminal_shows_every_cell_whole(width, terminal):
    text = io.StringIO()
    table.by_length(study()).show(Console(file=text, width=width, force_terminal=terminal))
    plain = re.sub(r"\x1b\[[\d;]*m", "", text.getvalue())
    assert "…" not in plain
    assert plain.count("undefined") == 4 + 1  # one of them in the reasons
    assert plain.count("±") == 8 * 5 + 4 + 1 + 1
    if terminal and width == 80:
        assert max(len(line) for line in plain.splitlines() if "─" in line) <= 80
    else:
        assert re.search(r"^  rope  +5\.73 ± 0\.70%  +7\.73 ± 0\.70%  ", plain, re.M)


def with_bits(made, tokenizer="bytes"):
    """The results, and bits per byte of a text of one byte a token beside each loss."""
    bits = [
        replace(r, metric="bits_per_byte", value=r.value / math.log(2)) for r in made if r.metric == "loss" and r.value
    ]
    return [replace(r, tokenizer=tokenizer) for r in (*made, *bits)]


def test_loss_tables_have_bits_per_byte_at_the_training_length():
    made = with_bits(study())
    lines = table.by_length(made, "loss").markdown().splitlines()
    assert lines[2] == "| scheme | L | 2L | 4L | 8L | 16L | against baseline | bits/byte at L |"
    [rope] = [line for line in lines if line.startswith("| rope |")]
    bits = [math.log(5.7 * (1 + 0.01 * seed)) / math.log(2) for seed in (0, 1)]
    assert rope.endswith(f"| {np.mean(bits):.2f} ± {np.std(bits, ddof=1):.2f} |")
    assert lines[-1].startswith("- bits/byte at L: loss / ln 2 per byte of text")
    assert "bits/byte" not in table.by_length(made).markdown()
    assert "bits/byte" not in table.by_length(study(), "loss").markdown()


def test_bits_per_byte_have_a_table_where_tokens_are_more_than_bytes(tmp_path):
    heading = "## Bits per byte, prefix protocol"
    few = [r for r in study() if r.label in ("rope", "alibi")]
    assert heading not in markdown(with_bits(few))
    assert heading in markdown(with_bits(few, "gpt2"))
    write_report(with_bits(few, "gpt2"), tmp_path / "report", tmp_path / "cells")
    names = ["curves"]
    pictures = {f"{name}.{form}" for name in names for form in ("png", "svg", "pdf")}
    texts = {"report.html", "report.md", "table.tex", "results.csv"}
    assert {path.name for path in (tmp_path / "report").iterdir()} == pictures | texts


def test_the_page_says_which_versions_made_it():
    made = [result(seed=s, versions={"torch": f"2.{12 + s}.0", "pezoo": "0.3.0", "rich": "14"}) for s in (0, 1, 0)]
    made[2] = replace(made[2], label="nope")
    lines = markdown(made).splitlines()
    assert lines[0] == "# made_up"
    assert "Made with pezoo 0.3.0, torch 2.12.0 and 2.13.0." in lines


def test_windows_that_overlap_are_told():
    made = [result(length=length, window_overlap=12.25) for length in LENGTHS]
    assert "- test windows overlap: a token is in 12 of them on average" in table.by_length(made).markdown()
    assert any(
        "test windows overlap: each token is in 12" in text.get_text() for text in curves.draw_curves(made).texts
    )
    few = [replace(r, window_overlap=1.2) for r in made]
    assert "overlap" not in table.by_length(few).markdown()


def test_a_caption_tells_another_precision_than_float32():
    assert "; tested in bf16; one seed." in table.by_length([result(test_precision="bf16")]).markdown()


def test_perplexities_have_verdicts():
    made = [result("rope", v, n) for n, v in zip(LENGTHS, (5, 5.2, 5.6, 5.4, 5.3), strict=True)]
    made += [replace(r, label="rope | windowed", value=5.5) for r in made] + [result("alibi", 6.0, n) for n in LENGTHS]
    lines = table.by_length(made).markdown().splitlines()
    assert lines[2].endswith("| stable to | good to | against its window | against baseline |")
    assert lines[4].endswith("| 2L | 2L | uses context | baseline |")
    assert lines[5].endswith("| ≥ 16L | ≥ 16L |  |  |")
    assert lines[6].endswith("| ≥ 16L | – |  | ×1.13 |")
    made = [replace(r, metric="loss") for r in made]
    assert "stable to" not in table.by_length(made, "loss").markdown()


def test_accuracies_say_what_guessing_gets():
    text = table.by_length([answers(length=40), answers(length=80)], "token_accuracy", "answers").markdown()
    assert text.startswith(
        "Token accuracy in percent on even_pairs, encoder form; answers protocol; L = 40; guessing gets 50.0;"
    )
    assert "| rope | 50.0 | 50.0 | ≥ 2L | ≥ 2L |\n" in text


def test_rows_are_compared_with_the_baseline_at_the_longest_length(tmp_path):
    made = [r for r in study(seeds=(0, 1, 2)) if r.label in ("rope", "alibi", "rope+ntk", "learned")]
    one = table.by_length(made, baseline="alibi")
    column = dict(one.frame["against baseline"])
    assert column["alibi"] == "baseline"
    ratio = 5.7 * 1.35**4 / (6.2 * 0.98**4)
    assert column["rope"] == f"×{ratio:.2f} worse"
    assert column["learned"] == "–"
    assert one.notes[-2] == "against baseline: at 16L, ratio to alibi, the study's baseline"
    assert one.notes[-1].endswith("allow for another draw of seeds, not of test texts (3 seeds, compared in pairs)")
    assert "ratio to rope, the best at L" in table.by_length(made).markdown()
    assert "ratio to rope, the best at L" in table.by_length(made, baseline="gone").markdown()
    write_all_losses(made, tmp_path)
    assert "documents" not in table.by_length(made, losses=tmp_path).markdown()  # which do not give these values


def against_rope(seeds=(0, 1, 2), noise=0.01, **more):
    """Curves of which `close` is within the noise of `rope` at L, and far at 2L."""
    rng = np.random.default_rng(0)
    effects = {"rope": (0, 0), "close": (0.001, 0.3), "far": (0.5, -0.5)} | more
    return [
        result(label, 5 * math.exp(effect + noise * rng.standard_normal()), length, seed)
        for label, each in effects.items()
        for length, effect in zip((64, 128), each, strict=True)
        for seed in seeds
    ]


def test_a_table_compares_all_lengths_and_marks_ties():
    one = table.against(against_rope(), "perplexity", "prefix", baseline="rope")
    assert list(one.frame.columns) == ["L", "2L", "interval at 2L", "p"]
    assert list(one.frame.index) == ["close", "far"]
    assert [one.frame.loc["close", "L"], one.frame.loc["close", "2L"].split()[1]] == ["×1.00 =", "worse"]
    assert [text.split()[1] for text in one.frame.loc["far", ["L", "2L"]]] == ["worse", "better"]
    low, high = json.loads(one.frame.loc["far", "interval at 2L"])
    assert low < math.exp(-0.5) < high < 1
    assert float(one.frame.loc["far", "p"].removeprefix("< ")) < 0.05
    assert one.notes[-1].startswith("p: of no difference at 2L, corrected by Holm's method for 4 comparisons; ")
    assert one.caption.startswith("Perplexity, ratio to rope, the study's baseline; python")


def test_one_seed_gets_no_verdict_and_is_told_so():
    one = table.against(against_rope(seeds=(4,)), "perplexity", "prefix", baseline="rope")
    assert list(one.frame.columns) == ["L", "2L"]
    assert not any(word in text for text in one.frame.to_numpy().ravel() for word in ("=", "worse", "better"))
    assert one.notes == (beside.ONE_SEED,)
    assert beside.ONE_SEED in table.by_length(against_rope(seeds=(4,))).notes


def test_a_baseline_that_lost_a_seed_is_not_one_seed():
    made = [r for r in against_rope(seeds=(0, 1)) if (r.label, r.test_length, r.seed) != ("rope", 128, 0)]
    notes = table.by_length([*made, lost("rope", 128, 0)], baseline="rope").notes
    assert beside.ONE_SEED not in notes


def test_what_cannot_be_compared_has_no_table():
    assert table.against([result()], "perplexity", "prefix") is None
    entropy = [replace(r, metric="entropy") for r in against_rope()]
    assert table.against(entropy, "entropy", "prefix") is None
    assert table.against([lost("a", 64), lost("b", 64)], "perplexity", "prefix") is None
    assert "against baseline" not in table.by_length(entropy, "entropy").markdown()


def test_costs_stand_beside_the_scheme_without_positions():
    def run(label, seconds, params, seed=0, scheme=None, memory=None, **facts):
        facts |= {"train_seconds": seconds, "params": params, "peak_memory_bytes": memory}
        return result(label, seed=seed, scheme=scheme or label, **facts)

    made = [run("rope", 30.0, 1000), run("rope", 50.0, 1000, 1), run("nope", 20.0, 1000), run("t5", 60.0, 1128)]
    made += [replace(r, test_length=128, length_ratio=2.0) for r in made]  # each training counts once
    one = table.cost(made)
    assert list(one.frame.columns) == ["parameters", "training seconds", "tokens per second"]  # no memory
    assert dict(one.frame["training seconds"]) == {"rope": "40.0 (×2.00)", "nope": "20.0 (×1.00)", "t5": "60.0 (×3.00)"}
    assert list(one.frame["parameters"]) == ["+0", "+0", "+128"]
    assert "beside nope in the same runs" in one.caption
    without = table.cost([r for r in made if r.label != "nope"])
    assert "beside rope in the same runs, the one that trained fastest: there is no nope" in without.caption
    assert list(without.frame["training seconds"]) == ["40.0 (×1.00)", "60.0 (×1.50)"]
    assert table.cost([run("rope", None, 1000)]) is None
    others = table.cost([*made, run("fire", 5.0, 1000, train_device="H100")])
    assert "cpu, 1 threads; H100, 1 threads" in others.notes[-1] or "H100, 1 threads; cpu" in others.notes[-1]
    tuned = run("rope, tuned", 9.0, 1000, scheme="rope", trained_params=96, finetune_steps=9, finetune_length=128)
    found = table.cost([*(replace(r, trained_params=1000) for r in made), tuned]).frame["tuned parameters"]
    assert dict(found) == {"rope": "–", "nope": "–", "t5": "–", "rope, tuned": "96"}
    measured = [run("nope", 1.0, 5, memory=2**29), run("rope", 1.0, 5, memory=2**28)]
    far = {"test_length": 128, "length_ratio": 2.0, "peak_memory_bytes": 2**30}
    measured.append(replace(measured[1], **far))  # one forward may serve all lengths
    measured = table.cost(measured)
    assert list(measured.frame["peak memory of testing in MiB"]) == ["512 (×1.00)", "1,024 (×2.00)"]


def test_costs_are_of_the_processor_where_all_have_it():
    """By the clock nope took longest, beside other work."""
    made = [
        replace(result(label, scheme=label), train_seconds=clock, train_cpu_seconds=processor)
        for label, clock, processor in (("nope", 90.0, 20.0), ("rope", 40.0, 30.0), ("t5", 50.0, 40.0))
    ]
    one = table.cost(made)
    assert list(one.frame["training seconds"]) == ["20.0 (×1.00)", "30.0 (×1.50)", "40.0 (×2.00)"]
    assert "tokens per second" not in one.frame
    assert any("of the processor" in note for note in one.notes)
    mixed = table.cost([*made[:2], replace(made[2], train_cpu_seconds=None)])
    assert list(mixed.frame["training seconds"]) == ["90.0 (×1.00)", "40.0 (×0.44)", "50.0 (×0.56)"]
    assert any("by the clock" in note for note in mixed.notes)


def test_learning_rates_are_listed_if_they_differ():
    made = [result("rope"), result("alibi", learning_rate=4e-3), result("t5", learning_rate=4e-3)]
    assert table.by_length(made).notes[:2] == ("learning rate 0.002: rope", "learning rate 0.004: alibi; t5")
    assert "learning rate" not in table.by_length(made[1:]).markdown()
    highest = [replace(r, rate_is="highest") for r in made[1:]]
    assert table.by_length(highest).notes[0] == "learning rate 0.004, the highest that was tried: alibi; t5"


def test_a_matrix_has_a_row_for_each_training_length_and_tokens_as_columns():
    [group] = groups.groups(trained_at(32, 64, labels=("rope",))).values()
    assert table.by_length(group).markdown().splitlines()[2:6] == [
        "| scheme | 32 | 64 | 128 | stable to | good to |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| rope, L = 32 | 5.00 | 6.00 |  | L | L |",
        "| rope, L = 64 |  | 5.00 | 6.00 | L | L |",
    ]


TASKS = ("even_pairs", "parity_check", "cycle_navigation", "reverse_string", "bucket_sort", "odds_first", "copy")


def chomsky(tasks=TASKS, labels=("rope", "nope"), **changes):
    made = []
    for i, task in enumerate(tasks):
        for label in labels:
            for length in (40, 80):
                for metric in ("exact_match", "token_accuracy"):
                    made.append(answers(label, 0.1 * i, length, task=task, metric=metric, **changes))
    return made


def test_many_tasks_have_one_table_of_scores():
    tables = table.overview([*chomsky(), result()])
    scores = [f"{metric} by task, beyond the training length" for metric in ("Exact match", "Token accuracy")]
    assert [one.heading for one in tables] == [*scores, "Perplexity, prefix protocol"]
    frame = tables[1].frame
    assert list(frame.columns) == [*TASKS, "mean", "against baseline"]
    assert list(frame.loc["rope"]) == ["0.0", "10.0", "20.0", "30.0", "40.0", "50.0", "60.0", "30.0", "baseline"]
    assert list(frame.loc["(guessing)"]) == ["50.0", "50.0", "20.0", "50.0", "20.0", "50.0", "1.0", "–", ""]
    headings = [one.heading for one in table.every_table(chomsky())]
    assert headings[:2] == scores
    assert headings[2] == "even_pairs: exact match, answers protocol"
    assert len(headings) == 2 + 3 * len(TASKS) + 1
    forms = table.overview([*chomsky(part="causal"), *chomsky(part="encoder")])
    assert [one.heading.split()[0] for one in forms] == ["causal:", "encoder:"] * 2
    assert [list(one.frame.columns) for one in forms] == [[*TASKS, "mean", "against baseline"]] * 4
    few = table.overview(chomsky(TASKS[:6]))
    assert [one.heading for one in few] == [*scores, *(f"{task}: exact match, answers protocol" for task in TASKS[:6])]


def test_a_grid_has_tables_beyond_the_training_length():
    tables = table.overview(crossing(part="grid"))
    assert [one.heading for one in tables] == [
        "grid: perplexity at 2L, zero-shot, prefix protocol",
        "grid: perplexity at 2L, 200 steps @ 8x, prefix protocol",
    ]
    assert "| alibi | 12.0 | 6.00 | 6.00 | 6.00 |" in tables[0].markdown()
    assert tables[0].caption.startswith("grid: perplexity on python")


def test_parts_of_other_lengths_hide_no_scheme_that_one_of_them_alone_has():
    short = [
        result(label, value, n, part="short") for label, value in (("rope", 5.0), ("alibi", 6.0)) for n in (64, 128)
    ]
    long = [
        replace(r, part="long", train_length=128, cell=r.cell + "l", length_ratio=r.test_length / 128) for r in short
    ]
    long = [r for r in long if r.test_length == 128] + [result("t5", 7.0, 128, part="long", train_length=128)]
    rows = [row for one in table.overview([*short, *long]) for row in one.frame.index]
    assert "t5" in rows
    assert "rope, L = 64" in rows


def test_the_terminal_turns_and_splits_tables_that_are_too_wide():
    [tasks] = table.score_groups(groups.groups(chomsky()), "token_accuracy")
    whole = table.scores(tasks)
    scores = dataclasses.replace(whole, frame=whole.frame.drop(columns="against baseline"), notes=())

    def shown(width, terminal=True):
        text = io.StringIO()
        scores.show(Console(file=text, width=width, force_terminal=terminal, no_color=True))
        return re.sub(r"\x1b\[[\d;]*m", "", text.getvalue()).splitlines()[1:]

    assert any(line.split() == ["scheme", *TASKS, "mean"] for line in shown(150))
    assert any(line.split() == ["rope", "nope", "(guessing)"] for line in shown(60))
    narrow = shown(34)
    assert max(map(len, narrow)) <= 34
    heads = [line.split()[1:] for line in narrow if line.startswith("  scheme")]
    assert [name for head in heads for name in head] == [*TASKS, "mean"]
    assert any(line.split() == ["rope", "nope", "(guessing)"] for line in shown(34, terminal=False))


# Figures


def test_a_scheme_looks_the_same_in_every_figure():
    every = figure.styles(study())
    for label, look in every.items():
        alone = [r for r in study() if r.label == label]
        assert figure.styles(alone) == {label: look}
    assert every["rope"].colour == every["rope+ntk"].colour != every["alibi"].colour
    zero_shot, tuned = every["rope+pi, zero-shot"], every["rope+pi, 200 steps @ 8x"]
    assert zero_shot.dashes == tuned.dashes == every["sinusoidal+pi"].dashes
    assert not zero_shot.filled
    assert tuned.filled


def test_every_scheme_of_a_large_study_looks_different():
    extensions = [(), *[(name,) for name in figure.EXTENSIONS], ("pi", "window"), ("new_one",)]
    made = [
        result(
            f"{'+'.join([encoding, *added])}, {steps}",
            encoding=encoding,
            extensions=added,
            scheme="+".join([encoding, *added]),
            finetune_steps=steps,
        )
        for encoding in (*figure.ENCODINGS, "my_encoding", "another")
        for added in extensions
        for steps in (0, 200)
    ]
    looks = figure.styles(made)
    assert len(set(looks.values())) == len(looks) == 22 * len(extensions) * 2


def test_extensions_of_one_encoding_have_a_colour_each_and_keep_their_lines():
    every = {r.label: r for r in study() if r.encoding == "rope"}
    alone, beside = figure.styles(every.values()), figure.styles(study())
    colours = {label: look.colour for label, look in alone.items()}
    assert colours["rope"] == beside["rope"].colour
    assert len({colours[label] for label in ("rope", "rope+pi, zero-shot", "rope+ntk")}) == 3
    assert colours["rope+pi, zero-shot"] == colours["rope+pi, 200 steps @ 8x"]
    assert all(alone[label].dashes == beside[label].dashes for label in every)


def test_settings_that_differ_get_other_markers():
    made = [result(f"rope+pi:factor={n}", extensions=("pi",), scheme=f"rope+pi:factor={n}") for n in range(2, 40)]
    looks = figure.styles(made)
    assert len(set(looks.values())) == len(made)
    assert len({look.colour for look in looks.values()}) == 1


def test_curves_show_the_means_and_mark_the_training_length():
    drawn = curves.draw_curves(study())
    (axes,) = drawn.axes
    (legend,) = drawn.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    names = [tick.get_text() for tick in axes.get_xticklabels()]
    assert names == ["64\nL", "128\n2L", "256\n4L", "512\n8L", "1024\n16L"]
    assert axes.get_xlabel() == "test length (tokens), L = 64"
    (dashed,) = [line for line in axes.lines if list(line.get_xdata()) == [64, 64]]
    assert dashed.get_linestyle() == "--"
    assert (64,) in [tuple(line.get_xdata()) for line in axes.lines]  # `learned` ends where it is defined
    rope = axes.lines[[label for label, *_ in SCHEMES].index("rope")]
    assert rope.get_ydata() == pytest.approx([5.7 * 1.35**k * math.sqrt(1.01) for k in range(5)])
    assert "learned (undefined from 2L)" in texts
    assert "nope (diverged 1/2 from 16L)" in texts
    assert texts[0] == "sinusoidal"  # the legend stands in the order of the right ends
    assert texts[-1] == "alibi"


@pytest.mark.parametrize(
    ("seeds", "bars", "said"),
    [
        ((0,), None, "one seed"),
        ((0, 1), None, "geometric mean of 2 seeds; bars: ± sample standard deviation of the loss"),
        ((0, 1, 2), None, "geometric mean of 3 seeds; bars: 95 % confidence interval"),
        ((0, 1, 2), "spread", "geometric mean of 3 seeds; bars: ± sample standard deviation of the loss"),
    ],
)
def test_error_bars_say_what_they_are(seeds, bars, said):
    made = [result("rope", 5.0 + seed, length, seed) for seed in seeds for length in LENGTHS]
    drawn = curves.draw_curves(made, bars=bars)
    (axes,) = drawn.axes
    assert any(said in text.get_text() for text in drawn.texts)
    ends = [bar.vertices[:, 1] for c in axes.collections for bar in c.get_paths()]
    values = [5.0 + seed for seed in seeds]
    if said == "one seed":
        assert ends == []
    elif "interval" in said:
        assert ends[0] == pytest.approx(intervals.interval(values, log=True))
    else:
        middle, half = np.log(values).mean(), np.log(values).std(ddof=1)
        assert ends[0] == pytest.approx(np.exp([middle - half, middle + half]))


def test_figures_of_what_has_no_value_are_drawn_too(tmp_path):
    made = [lost("rope", length, seed) for length in LENGTHS for seed in (0, 1)]
    drawn = curves.draw_curves(made)
    assert [t.get_text() for t in drawn.legends[0].get_texts()] == ["rope (diverged from L)"]
    figure.save(drawn, tmp_path / "curves")
    losses = [lost("rope", length, metric="loss") for length in LENGTHS]
    figure.save(curves.draw_by_position(losses, tmp_path), tmp_path / "by_position")


def test_values_far_apart_and_close_together_get_ticks():
    for high in (5.001, 6, 50, 1e9):
        (axes,) = curves.draw_curves([result(value=5.0), result(value=high, length=128)]).axes
        ticks = [tick.get_text() for tick in axes.get_yticklabels()]
        assert 2 <= len(ticks) <= 12


def test_accuracies_stand_on_an_axis_from_0_to_1_beside_chance():
    made = [answers(value=v, length=n, seed=s) for s in (0, 1) for n, v in ((40, 1.0), (80, 0.6 + 0.3 * s))]
    drawn = curves.draw_curves(made, "token_accuracy", "answers")
    (axes,) = drawn.axes
    assert axes.get_yscale() == "linear"
    assert axes.get_ylim() == pytest.approx((-0.03, 1.03))
    assert axes.yaxis.get_major_formatter()(0.5) == "50%"
    (dotted,) = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert set(dotted.get_ydata()) == {0.5}
    assert drawn.texts[0].get_text() == "Token accuracy by test length: made_up, even_pairs"
    ends = [bar.vertices[:, 1] for c in axes.collections for bar in c.get_paths()]
    assert max(map(max, ends)) <= 1
    without = curves.draw_curves([answers(metric="loss")], "loss", "answers").axes[0]
    assert not any(line.get_linestyle() == ":" for line in without.lines)


def test_companions_are_thin_and_have_no_place_in_the_legend():
    made = [result("rope", 5.0, n) for n in LENGTHS]
    made += [replace(r, label="rope | windowed", extensions=("window",), value=6.0) for r in made]
    drawn = curves.draw_curves(made)
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["rope"]
    assert "the same with a window of L" in drawn.texts[1].get_text()
    thick, thin = [line for line in drawn.axes[0].lines if len(line.get_xdata()) == len(LENGTHS)]
    assert thin.get_color() == thick.get_color()
    assert thin.get_linewidth() < thick.get_linewidth()
    alone = curves.draw_curves([r for r in made if r.label != "rope"])
    assert [text.get_text() for text in alone.legends[0].get_texts()] == ["rope | windowed"]


def test_training_lengths_that_differ_have_a_marker_and_a_ring_each():
    [group] = groups.groups(trained_at(32, 64)).values()
    drawn = curves.draw_curves(group)
    (axes,) = drawn.axes
    assert axes.get_xlabel() == "test length (tokens)"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["32", "64", "128"]
    rings = [list(line.get_xdata()) for line in axes.lines if line.get_markersize() == 12]
    assert rings == [[32], [64], [32], [64]]
    looks = figure.styles(group)
    assert looks["rope, L = 32"].marker == looks["alibi, L = 32"].marker != looks["rope, L = 64"].marker


def test_many_test_lengths_leave_their_names_room():
    made = [result(value=5.0, length=n) for n in range(64, 129, 2)]
    (axes,) = curves.draw_curves(made).axes
    ticks = [int(tick.get_text().split("\n")[0]) for tick in axes.get_xticklabels()]
    assert {64, 128} <= set(ticks)
    assert 8 <= len(ticks) <= 17


def test_no_name_at_the_end_of_a_line_covers_another():
    made = [result(f"rope+{i}", 5.0 + 0.001 * i, n) for n in LENGTHS for i in range(9)]
    drawn = draw_lengths(made)
    figure.settle(drawn)
    assert len(drawn.axes) > 1
    for axes in drawn.axes:
        boxes = sorted((text.get_window_extent() for text in axes.texts), key=lambda box: box.y0)
        assert all(lower.y1 <= upper.y0 + 1e-6 for lower, upper in itertools.pairwise(boxes))


def test_many_tasks_have_a_panel_each():
    [tasks] = table.score_groups(groups.groups(chomsky()), "exact_match")
    drawn = curves.draw_tasks(tasks)
    assert [axes.get_title() for axes in drawn.axes if axes.get_title()] == list(TASKS)
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["rope", "nope"]
    axes = heatmap.draw_scores(tasks).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["rope", "nope", "(guessing)"]
    assert [text.get_text() for text in axes.texts][:8] == ["0", "10", "20", "30", "40", "50", "60", "30"]


def test_depths_have_a_panel_a_label():
    made = needles(labels=("rope", "alibi", "t5", "nope", "fire"))
    drawn = heatmap.draw_depth(made)
    panels = [axes for axes in drawn.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["rope", "alibi", "t5", "nope", "fire"]
    assert panels[0].images[0].get_array().tolist() == [[0, 0], [1, 1], [1, 1]]
    assert panels[1].images[0].get_array().min() == 1
    assert [text.get_text() for text in panels[-1].get_yticklabels()] == ["0%", "50%", "100%"]
    assert drawn.axes[-1].get_ylabel() == "exact match"  # one colour bar for all


def test_a_grid_without_plain_encodings_is_drawn_without_colours():
    made = [r for r in crossing(steps=(0,)) if r.extensions]
    axes, _ = heatmap.draw_grid(made, "perplexity", "prefix", 128).axes
    assert axes.images[0].get_array().mask.all()
    assert [text.get_text() for text in axes.get_xticklabels()] == ["pi", "ntk", "yarn"]


def test_a_grid_says_which_cells_lost_a_seed():
    made = [replace(r, seed=seed) for r in crossing(steps=(0,)) for seed in (0, 1)]
    place = next(i for i, r in enumerate(made) if (r.scheme, r.test_length, r.seed) == ("rope", 128, 1))
    made[place] = replace(made[place], value=None, status="diverged", reason="no")
    axes, _ = heatmap.draw_grid(made, "perplexity", "prefix", 128).axes
    assert axes.texts[0].get_text() == "diverged\n1/2"
    assert axes.images[0].get_array()[0].mask.all()


def test_a_grid_is_coloured_by_the_ratio_to_the_plain_encoding_before_tuning():
    made = [r for r in crossing() if (r.label, r.test_length) != ("t5, 0 steps", 128)]
    made.append(lost("t5, 0 steps", 128, encoding="t5", scheme="t5", status="undefined", reason="no such bucket"))
    zero_shot, tuned, _ = heatmap.draw_grid(made, "perplexity", "prefix", 128).axes
    assert (zero_shot.get_title("left"), tuned.get_title("left")) == ("zero-shot", "200 steps @ 8x")
    assert zero_shot.images[0].get_array()[:2].tolist() == [[0, -1, -1, -1]] * 2
    assert tuned.images[0].get_array()[:2].tolist() == [[-1, -2, -2, -2]] * 2
    assert zero_shot.images[0].get_array()[2].mask.all()
    assert [text.get_text() for text in zero_shot.texts] == [
        "10.0",
        *["5.00"] * 3,
        "12.0",
        *["6.00"] * 3,
        "undefined",
        *["7.00"] * 3,
    ]


def test_files_are_the_same_every_time(tmp_path):
    results = [r for r in study() if r.label.startswith(("alibi", "rope+pi"))]
    write_all_losses(results, tmp_path / "cells")
    for name in ("a.svg", "b.c.png"):
        made = figure.save(curves.draw_curves(results), tmp_path / name)
        assert [path.suffix for path in made] == [".svg", ".png", ".pdf"]
    assert sorted(p.name for p in tmp_path.glob("b*.*")) == ["b.c.pdf", "b.c.png", "b.c.svg"]
    for suffix in ("svg", "png", "pdf"):
        one, other = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("a", "b.c"))
        assert one == other
    text = (tmp_path / "a.svg").read_text()
    assert "<dc:date>" not in text
    assert "rope+pi, 200 steps @ 8x" in text  # text, not outlines: it can be searched
    by_position = curves.draw_by_position(results, tmp_path / "cells")
    svg, *_ = figure.save(by_position, tmp_path / "by_position")
    assert "loss (nats per token)" in svg.read_text()


def test_drawing_leaves_no_figures_behind():
    from matplotlib import pyplot

    curves.draw_curves(study())
    assert pyplot.get_fignums() == []


# The whole report


def files(folder):
    return {path.stem for path in folder.glob("*.svg")} & {path.stem for path in folder.glob("*.png")}


def test_the_report_of_one_text_keeps_its_names(tmp_path):
    made = [r for r in study(protocols=("prefix", "sliding:stride=16")) if r.label in ("rope", "alibi")]
    write_all_losses(made, tmp_path / "cells")
    write_report(made, tmp_path / "report", tmp_path / "cells", tmp_path / "logs")
    assert files(tmp_path / "report") == {"curves", "loss_by_position", "curves_sliding_stride=16"}
    assert (tmp_path / "report" / "report.md").read_text().startswith("# made_up\n")
    assert (tmp_path / "logs" / "test" / "rope").is_dir()


@pytest.fixture
def blank(monkeypatch):
    """Leave figures blank, since what is drawn is tested elsewhere; return them by name."""
    drawn = {}

    def save(figure, path):
        path.with_suffix(".svg").write_text('<svg width="1" height="1"></svg>')
        drawn[path.name] = figure
        return (path.with_suffix(".svg"),)

    monkeypatch.setattr("pezoo.report.write.save", save)
    return drawn


def test_the_report_has_figures_of_every_group(tmp_path, blank):
    made = [*needles(), *crossing(part="every one"), *trained_at(16, 32, part=lambda n: f"at {n}")]
    made += [*chomsky(part="many tasks"), *chomsky(TASKS[:2], part="two")]
    made += [result(protocol="attention", metric=metric) for metric in ("max_logit", "mass_at_2")]
    write_report(made, tmp_path, tmp_path / "cells", tmp_path / "logs")
    assert {path.stem for path in tmp_path.glob("*.svg")} == {
        "passkey_n_digits=5_exact_match",
        "passkey_n_digits=5_exact_match_by_depth",
        "every_one_curves",
        "every_one_beside_the_best",
        "every_one_cost",
        "every_one_grid_2L",
        "at_16_curves",
        "at_32_curves",
        "train_lengths_curves",
        "max_logit",
        *(f"two_{m}_by_task" for m in ("exact_match", "token_accuracy")),
        *(f"two_{task}_{m}" for task in TASKS[:2] for m in ("exact_match", "token_accuracy")),
        *(f"many_tasks_{m}_by_{what}" for m in ("exact_match", "token_accuracy") for what in ("task", "length")),
    }


def test_many_schemes_have_a_panel_per_family_with_the_others_in_grey(tmp_path, blank):
    made = crossing(extensions=[f"x{i}" for i in range(6)])
    assert len({r.label for r in made}) == 42
    write_report(made, tmp_path, tmp_path / "cells", tmp_path / "logs")
    assert set(blank) == {"curves", "beside_the_best", "cost", "grid_2L"}
    shown = []
    for axes in blank["curves"].axes:
        named = [text.get_text() for text in axes.texts if (text.get_gid() or "").startswith("name-")]
        assert len(named) <= MOST
        shown += named
        lines = [line for line in axes.lines if (line.get_gid() or "").startswith("line-")]
        assert len(lines) in (0, 42)
    assert sorted(text.replace("\n", "") for text in shown) == sorted({r.label for r in made})


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(), unique=True), st.sampled_from(" _"))
def test_names_of_files_are_distinct(labels, space):
    names = safe_names(labels, space)
    assert list(names) == labels
    assert len({name.casefold() for name in names.values()}) == len(labels)
    for name in names.values():
        assert not set(name) & set('/\\:*?"<>|\0\n')
        assert name.strip(" .") == name != ""
        assert len(name.encode()) < 255
