"""Flip-flop: reads by a loop over the tokens, and the shares of its instructions."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import make_task
from pezoo.errors import UserError
from pezoo.task import IGNORE, draw


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def read(tokens):
    """What each place asks for, with one cell of memory; checks the row's form on its way."""
    memory, asked = None, []
    for i, token in enumerate(tokens):
        asked.append(IGNORE)
        if i % 2 == 0:
            instruction = "wri"[token - 2]
            assert instruction == "w" or memory is not None
            if instruction == "r":
                asked[-1] = memory
            continue
        assert token in (0, 1)
        if instruction == "w":
            memory = token
        assert instruction != "r" or token == memory
    assert "wri"[tokens[(len(tokens) - 1) // 2 * 2] - 2] == "r"
    return asked


@settings(deadline=None, max_examples=25)
@given(ignore=st.floats(0, 1), length=st.integers(3, 90), seed=st.integers(0, 2**32))
def test_each_read_asks_for_the_bit_in_memory(ignore, length, seed):
    task = make_task("flip_flop", ignore=ignore)
    pairs = task.sample(5, length, generator(seed))
    assert pairs.inputs.shape == pairs.outputs.shape == (5, length)
    assert task.n_tokens(length) == length
    assert [read(row) for row in pairs.inputs.tolist()] == pairs.outputs.tolist()


@pytest.mark.parametrize("ignore", [0.1, 0.8, 0.98])
def test_instructions_have_the_published_shares(ignore):
    inputs = make_task("flip_flop", ignore=ignore).sample(400, 201, generator()).inputs
    inner = Counter(inputs[:, 2:-1:2].flatten().tolist())
    for symbol, share in ((2, (1 - ignore) / 2), (3, (1 - ignore) / 2), (4, ignore)):
        assert inner[symbol] / inner.total() == pytest.approx(share, abs=0.01)
    bits = inputs[:, 1::2][inputs[:, :-1:2] != 3].float()
    assert bits.mean() == pytest.approx(0.5, abs=0.015)


def test_sparse_rows_write_far_back():
    def distance(ignore):
        inputs = make_task("flip_flop", ignore=ignore).sample(200, 101, generator()).inputs
        return sum(100 - max(i for i, token in enumerate(row) if token == 2) for row in inputs.tolist()) / 200

    assert distance(0.1) < 6
    assert 15 < distance(0.8) < 25  # 2 (1 - q^49) / q with q = 0.1, the share of writes
    assert distance(0.98) > 60


@pytest.mark.parametrize(("ignore", "share"), [(0.8, 0.6), (0.1, 0.95), (0.98, 0.51)])
def test_the_nearest_bit_is_right_as_often_as_stated(ignore, share):
    pairs = make_task("flip_flop", ignore=ignore).sample(800, 401, generator())
    asked = pairs.outputs[:, 2:] != IGNORE
    right = pairs.outputs[:, 2:][asked] == pairs.inputs[:, 1:-1][asked]
    assert right.float().mean() == pytest.approx(share, abs=0.02)


def test_the_shortest_rows_and_those_kept_for_testing():
    task = make_task("flip_flop")
    assert {task.text(row) for row in task.sample(50, 3, generator()).inputs} == {"w0r", "w1r"}
    with pytest.raises(UserError, match=r"needs a length of at least 3 tokens, got 2$"):
        task.sample(2, 2, generator())
    draw(task, 100, 40, generator(), test=True)
