"""Abacus: rows of digits by a naive reader, its starts in training, and beside other encodings."""

import re
from itertools import groupby

import pytest
import torch

import pezoo
from helpers import far_from_start, member, vectors
from pezoo.model.transformer import TransformerConfig
from pezoo.task import make_task

SIZES = {"d_model": 8, "n_heads": 2, "n_layers": 2, "train_length": 12}
L = 17
TOKENS = torch.randint(16, (3, L), generator=torch.Generator().manual_seed(4))


def naive(tokens, digits=range(10), start=0):
    """The row of each token of one document."""
    rows = []
    for in_number, run in groupby(tokens, lambda token: token in digits):
        rows += [start + n if in_number else 0 for n, _ in enumerate(run, 1)]
    return rows


def rows(scheme, tokens, phase="test", **facts):
    """The rows of the table that a scheme reads, as numbers."""
    table, size = member(scheme, "abacus").table, tokens.shape
    with torch.no_grad():
        table.copy_(torch.arange(len(table))[:, None].expand_as(table))
    positions = scheme.positions(*size, tokens=tokens, phase=phase, rows=range(size[0]), **facts)
    return scheme.prepare(positions).embed(torch.zeros(*size, 8))[..., 0].round().int()


@pytest.mark.parametrize("digits", [[*range(10)], [15, 3], []])
def test_rows_are_the_places_in_runs_of_digits(digits):
    scheme = pezoo.create({"abacus": {"digits": digits}}, **SIZES)
    assert rows(scheme, TOKENS).tolist() == [naive(row, digits) for row in TOKENS.tolist()]


def test_numbers_of_a_sum_meet_place_by_place():
    task = make_task("addition:order=lowest_first")
    pairs = task.sample(8, 5, torch.Generator().manual_seed(1))
    for tokens, question in zip(task.example(pairs).tokens, pairs.inputs.tolist(), strict=True):
        came = rows(pezoo.create("abacus", **SIZES | {"train_length": 30}), tokens[None])[0].tolist()
        a, b = (
            "".join(map(str, part)) for part in (question[: question.index(10)], question[question.index(10) + 1 :])
        )
        answer = str(int(a[::-1]) + int(b[::-1]))[::-1]
        read = {}
        for token, row in zip(tokens.tolist(), came, strict=True):
            read.setdefault(row, []).append(token)
        for place, digit in enumerate(answer, 1):
            column = [int(number[place - 1]) for number in (a, b) if len(number) >= place]
            assert read[place] == [*column, int(digit)]


def test_numbers_begin_anew_with_a_document():
    tokens = torch.tensor([[1, 2, 3, 4, 12, 5, 6, 7]])
    documents = torch.tensor([[0, 0, 1, 1, 1, 1, 2, 2]])
    assert rows(pezoo.create("abacus", **SIZES), tokens, documents=documents).tolist() == [[1, 2, 1, 2, 0, 1, 1, 2]]


def test_training_moves_digits_alone_by_a_number_up_to_99():
    scheme = pezoo.create("abacus+shift:max_shift=100", **SIZES)
    assert len(member(scheme, "abacus").table) == 12 + 100
    tokens = torch.tensor([[1, 2, 3, 12, 5, 6, 7, 8, 9, 1, 14, 3]]).expand(400, -1)
    came = rows(scheme, tokens, "train")
    starts = came[:, 0] - 1
    for row, start in zip(came.tolist(), starts.tolist(), strict=True):
        assert row == naive(tokens[0].tolist(), start=start)
    assert (starts.min() < 3, starts.max() > 96, starts.max() < 100) == (True, True, True)
    assert rows(scheme, tokens).tolist() == [naive(tokens[0].tolist())] * 400


def test_the_vector_is_added_and_beyond_the_table_that_of_the_last_row():
    scheme = pezoo.create("abacus:places=4", **SIZES)
    table, x = member(scheme, "abacus").table, vectors(3, L, 8)
    came = scheme.prepare(scheme.positions(3, L, tokens=TOKENS)).embed(x)
    wanted = [[min(row, 3) for row in naive(tokens)] for tokens in TOKENS.tolist()]
    assert max(max(naive(tokens)) for tokens in TOKENS.tolist()) > 3
    torch.testing.assert_close(came, x + table[torch.tensor(wanted)])


def test_without_digits_it_adds_one_vector_and_nothing_else():
    scheme = pezoo.create("abacus", **SIZES)
    x, tokens = vectors(3, L, 8), 10 + TOKENS % 6
    came = scheme.prepare(scheme.positions(3, L, tokens=tokens)).embed(x)
    torch.testing.assert_close(came, x + member(scheme, "abacus").table[0])


@pytest.mark.parametrize("scheme", ["abacus+fire", "rope+abacus:digits=1,2"])
def test_token_by_token_is_the_full_pass(scheme):
    config = {"scheme": scheme, "vocab_size": 16, "d_model": 12, "n_heads": 3, "n_layers": 2, "train_length": 8}
    model = far_from_start(TransformerConfig(**config))
    cache = model.cache(3, L)
    with torch.no_grad():
        came = torch.cat([model(piece, cache=cache) for piece in TOKENS.split(1, 1)], 1)
        torch.testing.assert_close(came, model(TOKENS), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("scheme", "task", "reason"),
    [
        ("abacus", "addition", None),
        ("abacus", "sorting:variant=multi_digit", None),
        ("abacus", "passkey", None),
        ("abacus:digits=0,1", "binary_addition", None),
        ("abacus:digits=48,49,50,51,52,53,54,55,56,57", "passkey_text", None),
        ("abacus", "passkey_text", r"token 0 is '\\x00' there, no digit. Give the ids of digits, as abacus:digits=0,1"),
        ("abacus", "parity_check", "token 2 is a mark there, no digit.*"),
        ("abacus", "scan", "token 0 is 'walk' there, no digit.*"),
        ("abacus", "copy", "its tokens are whole numbers, such as 10, and have no digits"),
    ],
)
def test_a_task_whose_digits_are_others_is_refused(scheme, task, reason):
    came = member(pezoo.create(scheme, **SIZES), "abacus").refuses_task(make_task(task))
    assert came is None if reason is None else re.fullmatch(reason, came)
