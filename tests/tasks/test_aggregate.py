"""Counting tasks: counts by Python's Counter, and the distribution of answers at each length."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from helpers import make_task
from pezoo.errors import UserError
from pezoo.task import draw

ASKS = ("count", "most")


def sample(task, rows, length, seed=0):
    return task.sample(rows, length, torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=25)
@given(ask=st.sampled_from(ASKS), labels=st.integers(2, 20), extra=st.integers(0, 60), seed=st.integers(0, 2**32))
def test_answers_are_those_of_a_counter(ask, labels, extra, seed):
    task = make_task("aggregate", ask=ask, labels=labels)
    length = task.least_length + extra
    pairs = sample(task, 4, length, seed)
    assert pairs.inputs.shape == (4, length) == (4, task.n_tokens(length))
    for question, (answer,) in zip(pairs.inputs.tolist(), pairs.outputs.tolist(), strict=True):
        end = question.index(10 + labels)
        counts = Counter(question[:end])
        assert set(counts) <= set(range(10, 10 + labels))
        if ask == "count":
            (asked,) = question[end + 1 :]
            assert answer == counts[asked] <= 9
        else:
            assert question[end + 1 :] == []
            (first, most), *others = counts.most_common(2)
            assert answer == first
            assert not others or others[0][1] < most


@pytest.mark.parametrize("length", [11, 60])
def test_counts_and_places_are_uniform_at_each_length(length):
    pairs = sample(make_task("aggregate"), 4000, length)
    assert chisquare(pairs.outputs.flatten().bincount(minlength=10).tolist()).pvalue > 0.001
    asked = pairs.inputs[:, :-2] == pairs.inputs[:, -1:]
    assert chisquare(asked.sum(0).tolist()).pvalue > 0.001
    others = (pairs.inputs[:, :-2] - pairs.inputs[:, -1:]) % 8
    assert chisquare(others[~asked].bincount(minlength=8)[1:].tolist()).pvalue > 0.001


@pytest.mark.parametrize("length", [2, 10, 60])
def test_each_label_is_as_often_the_commonest(length):
    pairs = sample(make_task("aggregate", ask="most"), 2000, length)
    assert chisquare(pairs.outputs.flatten().bincount(minlength=18)[10:].tolist()).pvalue > 0.001


def test_the_lead_of_the_commonest_is_a_share_of_the_row():
    pairs = sample(make_task("aggregate", ask="most"), 200, 901)
    counts = torch.stack([(pairs.inputs[:, :-1] == label).sum(1) for label in range(10, 18)], 1).sort(1).values
    assert counts[:, -1].float().mean() == pytest.approx(200, rel=0.05)  # two shares in nine
    assert counts[:, :-1].float().mean() == pytest.approx(100, rel=0.05)


def test_short_long_and_kept_questions():
    for ask, least in zip(ASKS, (11, 2), strict=True):
        task = make_task("aggregate", ask=ask)
        assert task.least_length == least
        with pytest.raises(UserError, match=rf"needs a length of at least {least} tokens, got {least - 1}$"):
            sample(task, 2, least - 1)
        assert task.chance == {"count": 0.1, "most": 0.125}[ask]
        draw(task, 100, 40, torch.Generator().manual_seed(0), test=True)
        assert sample(task, 2, 500).inputs.shape == (2, 500)
