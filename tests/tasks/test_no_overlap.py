"""Needles without overlap: the answer by a scan over the symbols' names, and where the needles stand."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from helpers import make_task
from pezoo.errors import UserError
from pezoo.task import draw


def sample(task, rows, length, seed=0, **place):
    return task.sample(rows, length, torch.Generator().manual_seed(seed), **place)


def read(words, direct):
    """Who is where the question asks, from the names of the symbols."""
    told = {place: who for who, place in pairwise(words[:-2]) if place[0] == "p"}
    assert all(who[0] == "n" for who in told.values())
    assert 2 * len(set(told.values())) == 2 * len(told) == sum(word[0] in "np" for word in words[:-2])
    assert all(word[0] in "npf" for word in words[:-2]), "no region is told"
    query, asked = words[-2:]
    assert (query, asked[0]) == ("QUERY", "p" if direct else "r")
    return told["p" + asked[1:]]


@settings(deadline=None, max_examples=25)
@given(
    n_told=st.integers(1, 6),
    more=st.integers(0, 10),
    direct=st.booleans(),
    extra=st.integers(0, 60),
    depth=st.none() | st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
def test_the_answer_is_who_a_reader_finds(n_told, more, direct, extra, depth, seed):
    task = make_task("no_overlap", n_told=n_told, n_names=n_told + more, n_places=n_told + more // 2, direct=direct)
    length = task.least_length + extra
    pairs = sample(task, 3, length, seed, depth=depth)
    assert pairs.inputs.shape == (3, length) == (3, task.n_tokens(length))
    for question, (answer,) in zip(pairs.inputs.tolist(), pairs.outputs.tolist(), strict=True):
        words = [task.symbols[token] for token in question]
        assert sum(word[0] == "p" for word in words[:-2]) == n_told
        assert task.symbols[answer] == read(words, direct)


def test_question_and_needle_share_no_symbol_unless_asked_to():
    for direct in (False, True):
        for question in sample(make_task("no_overlap", direct=direct), 50, 40).inputs.tolist():
            assert (question[-1] in question[:-1]) == direct


def test_a_region_belongs_to_one_place_in_all_rows():
    task, found = make_task("no_overlap"), {}
    for question in sample(task, 500, 12).inputs.tolist():
        who = task.solve(torch.tensor([question])).item()
        found.setdefault(question[-1], set()).add(question[question.index(who) + 1])
    assert len(found) == 16
    assert all(len(places) == 1 for places in found.values())
    assert len(set().union(*found.values())) == 16


def test_depth_is_where_the_asked_person_stands():
    task = make_task("no_overlap", n_told=1)
    for depth in task.depths:
        pairs = sample(task, 8, task.least_length + 50, depth=depth)
        for question, (who,) in zip(pairs.inputs.tolist(), pairs.outputs.tolist(), strict=True):
            assert question.index(who) == round(50 * depth)
            assert task.distance(len(question), depth) == len(question) - question.index(who)
    pairs = sample(task, 4000, task.least_length + 19)
    counts = Counter(q.index(a) for q, (a,) in zip(pairs.inputs.tolist(), pairs.outputs.tolist(), strict=True))
    assert sorted(counts) == list(range(20))
    assert chisquare(list(counts.values())).pvalue > 0.001
    assert chisquare(pairs.outputs.flatten().bincount(minlength=26).tolist()).pvalue > 0.001


def test_what_has_no_room_is_refused():
    task = make_task("no_overlap")
    assert task.least_length == 4 * 2 + 2
    with pytest.raises(UserError, match=r"at least 10 tokens, got 9$"):
        sample(task, 2, 9)
    with pytest.raises(UserError, match="n_told=20 needs as many names and places, got n_names=26 and n_places=16"):
        make_task("no_overlap", n_told=20)
    draw(task, 100, 40, torch.Generator().manual_seed(0), test=True)
