"""Chains of sums: results on the way by Python's own arithmetic, and their distribution at each length."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from helpers import make_task
from pezoo.errors import UserError
from pezoo.task import draw


def sample(task, rows, length, seed=0):
    return task.sample(rows, length, torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=25)
@given(largest=st.integers(1, 9), length=st.integers(1, 90), seed=st.integers(0, 2**32))
def test_every_result_on_the_way_is_a_digit(largest, length, seed):
    pairs = sample(make_task("chain_sum", largest=largest), 4, length, seed)
    for question, (answer,) in zip(pairs.inputs.tolist(), pairs.outputs.tolist(), strict=True):
        text = "".join("0123456789+-"[token] for token in question)
        assert len(text) == 2 * length - 1
        results = [eval(text[:end]) for end in range(1, len(text) + 1, 2)]
        assert set(results) <= set(range(10))
        assert all(1 <= int(number) <= largest for number in text[2::2])
        assert answer == results[-1]


@pytest.mark.parametrize("largest", [9, 3, 1])
@pytest.mark.parametrize("length", [1, 2, 30])
def test_answers_have_one_distribution_at_each_length(largest, length):
    answers = sample(make_task("chain_sum", largest=largest), 4000, length).outputs.flatten()
    neighbours = [sum(0 < abs(a - b) <= largest for b in range(10)) for a in range(10)]
    expected = [4000 * n / sum(neighbours) for n in neighbours]
    assert chisquare(answers.bincount(minlength=10).tolist(), expected).pvalue > 0.001
    chance = make_task("chain_sum", largest=largest).chance
    assert chance == pytest.approx(max(neighbours) / sum(neighbours))
    assert chance == pytest.approx({9: 0.1, 3: 6 / 48, 1: 2 / 18}[largest])


def test_each_other_result_is_as_likely_to_follow():
    inputs = sample(make_task("chain_sum"), 20000, 2).inputs
    after = torch.where(inputs[:, 1] == 10, inputs[:, 0] + inputs[:, 2], inputs[:, 0] - inputs[:, 2])
    counts = (10 * inputs[:, 0] + after).bincount(minlength=100).view(10, 10)
    assert counts.diagonal().sum() == 0
    assert chisquare(counts[~torch.eye(10, dtype=torch.bool)].tolist()).pvalue > 0.001


def enough(results):
    """How many of the last numbers leave one result: those whose results reach 0 and 9."""
    return next(n for n in range(1, len(results) + 1) if {0, 9} <= set(results[-n:])) - 1


@pytest.mark.parametrize(("largest", "median"), [(9, 10), (3, 25), (1, 78)])
def test_how_many_of_the_last_numbers_settle_the_answer(largest, median):
    inputs = sample(make_task("chain_sum", largest=largest), 200, 600).inputs
    signs = torch.where(inputs[:, 1::2] == 10, 1, -1)
    results = torch.cat([inputs[:, :1], signs * inputs[:, 2::2]], 1).cumsum(1)
    found = sorted(enough(row) if {0, 9} <= set(row) else 600 for row in results.tolist())
    assert found[100] == pytest.approx(median, rel=0.25)


def test_short_long_and_kept_questions():
    task = make_task("chain_sum")
    with pytest.raises(UserError, match=r"no questions of length 0; its shortest have length 1: .*min_length=1$"):
        sample(task, 2, 0)
    assert sample(task, 2, 500).inputs.shape == (2, 999)
    draw(task, 100, 40, torch.Generator().manual_seed(0), test=True)
