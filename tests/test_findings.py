"""What a report says and shows of its statistics: sentences, ranks, cost, ratios."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from test_report import answers, result

from pezoo.report import findings, ranks, tradeoff
from pezoo.report.figure import save
from pezoo.report.lines import beside_best, lines_by_length
from pezoo.results.losses import Losses, write_losses

NAMES = [f"task{i}" for i in range(9)]


def study(values, seeds=(0, 1, 2), seconds=None):
    """Results by label -> value at L, 2L; seeds differ by a little, alike for all."""
    made = []
    for label, (short, long) in values.items():
        for seed in seeds:
            for length, value in ((64, short), (128, long)):
                noise = 1 + 0.001 * seed + 0.0002 * (len(label) % 3) * (-1) ** seed
                changed = {"train_cpu_seconds": (seconds or {}).get(label, 10.0), "train_seconds": 99.0, "seed": seed}
                made.append(replace(result(label, value * noise, length), **changed))
    return made


def said(results):
    return " ".join(findings.findings(results))


def test_the_best_at_both_ends_is_named_with_what_breaks():
    text = said(study({"rope": (5.0, 9.0), "alibi": (5.5, 5.5), "nope": (8.0, 8.2), "t5": (7.0, 7.1)}))
    assert "At the training length, L = 64, rope has the best perplexity, 5.01" in text
    assert "At 2L = 128, alibi has the best perplexity, 5.51" in text
    assert "every other scheme is worse" in text
    assert "1 of 4 schemes rise more than 10 % above their own value at L: at 2L rope." in text
    assert "3 seeds" in text
    assert "the intervals speak of other seeds, not of other texts" in text


def test_ties_are_not_called_better():
    text = said(study({"rope": (5.0, 5.0), "alibi": (5.001, 5.001), "nope": (8.0, 8.0), "t5": (7.0, 7.0)}))
    assert "alibi cannot be told apart from it" in text
    assert "no scheme rises more than 10 % above its own value at L" in text


def test_one_model_under_several_labels_is_no_tie():
    alike = {label: (5.0, 9.0 + i) for i, label in enumerate(("rope", "ro+a", "ro+b"))}
    text = said(study(alike | {"alibi": (5.5, 5.5)}))
    assert "rope has the best perplexity, 5.01" in text
    assert "; ro+a and ro+b are the same model there; every other scheme is worse" in text
    alone = said(study({"rope": (5.0, 9.0), "ro+a": (5.0, 10.0), "t5": (6.0, 6.0)}, seeds=(0,)))
    assert "; ro+a is the same model there." in alone


def test_the_cheapest_near_the_best_is_named():
    values = {"rope": (5.0, 5.0), "alibi": (5.2, 5.2), "nope": (9.0, 9.0)}
    text = said(study(values, seconds={"rope": 20.0, "alibi": 10.0, "nope": 5.0}))
    assert "Of the 2 within 10 % of that, alibi trains fastest, in 50% of rope's time." in text
    text = said(study(values, seconds={"rope": 10.0, "alibi": 20.0, "nope": 5.0}))
    assert "it is also the one that trains fastest" in text


def test_learning_rates_at_an_end_of_those_tried_are_named():
    made = study({"rope": (5.0, 5.0), "alibi": (5.2, 5.2), "nope": (9.0, 9.0)})

    def at(**ends):
        return findings.at_an_end([replace(r, rate_is=ends.get(r.label, "")) for r in made])

    assert at() == ""
    assert at(rope="highest") == (
        "rope trained best at the highest learning rate that was tried, 0.002: one beyond may be better still."
    )
    assert "rope and alibi trained best at the lowest" in at(rope="lowest", alibi="lowest")
    everywhere = at(**dict.fromkeys(("rope", "alibi", "nope"), "highest"))
    assert "rope, alibi and nope trained best at the highest" in everywhere
    assert everywhere in said([replace(r, rate_is="highest") for r in made])


def test_one_seed_says_what_cannot_be_said():
    text = said(study({"rope": (5.0, 9.0), "alibi": (5.5, 5.5)}, seeds=(0,)))
    assert "All of this is one seed" in text
    assert "worse" not in text
    assert "told apart" not in text


def test_models_that_have_learned_nothing_do_not_look_good():
    made = [replace(r, tokenizer="bytes") for r in study({"rope": (249.0, 248.0), "alibi": (250.0, 249.0)})]
    assert "No scheme has learned much: guessing a byte has perplexity 256, and the best here has 249." in said(made)
    made = [replace(r, tokenizer="bytes") for r in study({"rope": (9.0, 9.0), "alibi": (250.0, 249.0)})]
    assert "has learned much" not in said(made)


def test_tasks_that_no_scheme_has_learned_are_named_with_what_guessing_gets():
    """Whatever schemes do beyond L; halfway from guessing to all is enough."""

    def answers(task, at_l):
        made = study({"rope": (at_l, 0.0), "alibi": (at_l / 2, 0.9)})
        return [replace(r, task=task, metric="exact_match", protocol="answers", n_documents=128) for r in made]

    warning = "Hardly learned, even at L: copy (2% at best), parity (70% at best, guessing 50%). What schemes do there "
    text = said([*answers("copy", 0.02), *answers("sorting", 0.6), *answers("parity", 0.7)])
    assert warning + "beyond L says little." in text
    assert "Hardly learned" not in said([*answers("copy", 0.6), *answers("parity", 0.8)])
    assert "Hardly learned" not in said(study({"rope": (5.0, 9.0), "alibi": (5.5, 5.5)}))


def test_what_is_lost_is_named():
    made = study({"rope": (5.0, 5.0), "alibi": (5.5, 5.5)})
    for seed in (0, 1, 2):
        made += [replace(result("learned", 6.0, 64), seed=seed)]
        made += [replace(result("learned", None, 128, status="undefined", reason="it has 64 positions"), seed=seed)]
    assert "learned is undefined from 2L" in said(made)
    gone = [replace(r, value=None, status="diverged", reason="no") if r.test_length == 128 else r for r in made]
    assert "At 2L = 128, no scheme has a value with every seed." in said([r for r in gone if r.label != "learned"])


def test_what_is_lost_at_l_or_in_some_seeds_is_named_too():
    made = study({"rope": (5.0, 5.0), "alibi": (5.5, 5.5)})
    gone = {("rope", 128, 1): "diverged", **{("alibi", n, seed): "undefined" for n in (64, 128) for seed in (0, 1, 2)}}
    for i, r in enumerate(made):
        if status := gone.get((r.label, r.test_length, r.seed)):
            made[i] = replace(r, value=None, status=status, reason="no")
    assert "rope is diverged in 1 of 3 seeds from 2L; alibi is undefined from L." in said(made)


def test_where_l_was_not_tested_nothing_is_said_of_it():
    made = [replace(r, train_length=32, length_ratio=r.test_length / 32) for r in study({"rope": (5.0, 5.1)})]
    assert "no scheme rises more than 10 % above its own value at 2L." in said(made)


def test_near_the_best_is_a_tenth_of_it_for_accuracies_too():
    made = study({"rope": (0.9, 0.307), "alibi": (0.9, 0.234)}, seconds={"alibi": 5.0})
    made = [replace(r, metric="exact_match", protocol="answers", task="copy", n_documents=128) for r in made]
    assert "within 10 % of that" not in said(made)


def test_all_that_are_best_are_named():
    made = study({"rope": (1.0, 0.5), "alibi": (0.9, 0.2), "nope": (0.1, 0.1)})
    made = [replace(r, value=1.0) if r.test_length == 64 and r.label != "nope" else r for r in made]
    made = [replace(r, metric="exact_match", protocol="answers", task="copy", n_documents=4096) for r in made]
    assert "L = 64, rope and alibi have the best exact match, 100.0 ± 0.0 %; every other scheme is worse" in said(made)


def test_equal_means_over_tasks_have_no_winner():
    made = []
    for task in ("copy", "parity"):
        for r in study({"rope": (0.0, 0.0), "alibi": (0.0, 0.0), "alibi | windowed": (0.0, 0.0)}):
            made.append(replace(r, metric="exact_match", protocol="answers", task=task, value=0.0, n_documents=9))
    assert "Over 2 tasks, beyond L, rope and alibi have the same exact match on average, 0.0 ± 0.0 %." in said(made)
    best = [replace(r, value=0.5) if r.label.endswith("windowed") or r.label == "rope" else r for r in made]
    assert "beyond L, rope is best on average: exact match 50.0" in said(best)


def test_one_document_says_nothing_of_others(tmp_path):
    sums = np.full((1, 2), 128.0)
    made = [replace(r, n_documents=1) for r in study({"rope": (5.0, 5.0), "alibi": (5.5, 5.5)})]
    for r in made:
        kept = Losses(
            loss_sum=sums * math.log(r.value),
            tokens=sums.astype(np.int64),
            edges=[0, 1, 2],
            documents=["a.txt"],
            test_length=r.test_length,
            protocol="prefix",
        )
        write_losses(tmp_path / r.cell / f"losses_{r.test_length}.npz", kept)
    text = " ".join(findings.findings(made, tmp_path))
    assert "3 seeds and 1 test document, under the protocol prefix. One document says nothing of others" in text


def test_a_study_without_a_value_says_so_and_why():
    made = [replace(r, value=None, status="failed", reason="out of memory") for r in study({"rope": (5.0, 5.0)})]
    assert findings.findings(made) == [
        "No scheme has a value, so nothing can be compared. rope has none because of this: out of memory."
    ]


def test_highlights_hold_the_best_and_the_worst():
    values = {f"x{i}": (5.0 + 0.1 * i, 5.0 + i) for i in range(12)}
    kept = findings.headline_results(study(values))
    shown = findings.highlights(kept, "x7")
    assert len(shown) == 6
    assert {"x0", "x7", "x11"} <= set(shown)


def test_ratios_to_the_best_are_one_at_the_best():
    kept = findings.headline_results(study({"rope": (5.0, 9.0), "alibi": (6.0, 6.0)}))
    ratios = beside_best(kept, lines_by_length(kept))
    assert ratios["rope"][64][0] == ratios["alibi"][128][0] == 1
    assert ratios["alibi"][64][0] == pytest.approx(1.2, rel=1e-3)


def scored(means):
    """Results of tasks by label -> a mean per task."""
    made = {name: [] for name in NAMES}
    for label, each in means.items():
        for name, value in zip(NAMES, each, strict=True):
            made[name] += [answers(label, value, length, task=name) for length in (40, 80)]
    return made


def test_ranks_are_those_of_scipy_and_equal_means_share_one():
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 1, (5, len(NAMES))).round(1)
    found = ranks.average_ranks(scored({f"s{i}": row for i, row in enumerate(values)}))
    assert found.shape == (5, len(NAMES))
    assert np.allclose(found.to_numpy(), stats.rankdata(-values, axis=0))


@pytest.mark.parametrize(("k", "q"), [(2, 1.960), (5, 2.728), (10, 3.164)])
def test_critical_differences_are_those_of_the_published_table(k, q):
    # Demšar (2006), table 5 (a): critical values of Nemenyi's test at 5 %.
    assert ranks.critical_difference(k, 14) == pytest.approx(q * np.sqrt(k * (k + 1) / (6 * 14)), rel=1e-3)


def test_ranks_are_drawn_of_many_tasks_alone(tmp_path):
    rng = np.random.default_rng(1)
    tasks = scored({f"s{i}": rng.uniform(0, 1, len(NAMES)) for i in range(4)})
    figure = ranks.draw_ranks(tasks)
    text = " ".join(one.get_text() for one in figure.texts)
    assert "over 9 tasks" in text
    assert "Friedman p" in text
    svg, *_ = save(figure, tmp_path / "ranks")
    assert "s3" in svg.read_text()
    assert ranks.draw_ranks(dict(list(tasks.items())[:7])) is None


def test_cost_is_drawn_by_how_far_a_scheme_is_good(tmp_path):
    values = {"nope": (9.0, 9.0), "rope": (5.0, 9.0), "alibi": (5.2, 5.2), "t5": (5.1, 5.1)}
    seconds = {"nope": 10.0, "rope": 12.0, "alibi": 11.0, "t5": 30.0}
    kept = findings.headline_results(study(values, seconds=seconds))
    [axes] = tradeoff.draw_cost(kept).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["nope", "rope", "t5", "alibi"]
    at = {line.get_ydata()[0]: line.get_xdata()[0] for line in axes.lines if line.get_marker() not in ("None", None)}
    assert at == pytest.approx({0: 1.0, 1: 1.2, 2: 3.0, 3: 1.1})
    said_ = {text.get_text() for text in axes.texts}
    assert said_ == {"good to 2L", "good to L", "not even at L"}
    assert tradeoff.draw_cost([replace(r, train_seconds=None) for r in kept]) is None
