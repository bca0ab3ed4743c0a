"""Position coupling: positions written down as the authors' data sets do, a naive reader, and whole models."""

import re

import pytest
import torch

import pezoo
from helpers import far_from_start, member, vectors
from pezoo import UserError
from pezoo.contract import Positions
from pezoo.encodings.absolute.coupling import counted, is_one_of
from pezoo.model.transformer import TransformerConfig
from pezoo.task import make_task

SIZES = {"d_model": 8, "n_heads": 2, "n_layers": 2, "train_length": 12}
L = 17
TOKENS = torch.randint(6, (3, L), generator=torch.Generator().manual_seed(4))


def naive(tokens, marks, start=0):
    """Positions of the tokens of one document."""
    found, place = [], 1
    for token in tokens:
        place = 0 if token in marks else place
        found.append(start + place)
        place += 1
    return found


def places(tokens, marks, **facts):
    positions = Positions.build(tokens.shape[1], len(tokens), tokens=tokens, **facts)
    return counted(positions, is_one_of(positions, marks))


def drawn(task, length):
    """What a model reads, row by row, and where its answers begin."""
    pairs = make_task(task).sample(20, length, torch.Generator().manual_seed(0))
    return make_task(task).example(pairs).tokens, pairs.inputs.shape[1]


def test_addition_is_coupled_as_in_the_paper_turned_round():
    """There, in a + b = c with the highest digit first and c reversed, a and b end before E, and + and = stand at E."""
    for row in drawn("addition:order=lowest_first", 6)[0].tolist():
        plus, equals = row.index(10), row.index(11)
        a, b, c = row[:plus], row[plus + 1 : equals], [t for t in row[equals + 1 :] if t != 12]
        end = max(len(a), len(b)) + 1
        theirs = [
            *reversed(range(end - len(a), end)),  # we write a from its lowest digit
            *(end, *reversed(range(end - len(b), end)), end),
            *reversed(range(end - len(c), end)),
        ]
        ours = places(torch.tensor([row]), [10, 11])[0].tolist()[: len(theirs)]
        assert ours == [end - place for place in theirs]


def test_copying_is_coupled_as_in_the_paper():
    tokens, n = drawn("copy", 5)
    start = 1
    theirs = [*range(start + 1, start + n + 1), *range(start, start + n + 1)]
    for row in places(tokens, [100])[:, : len(theirs)].tolist():
        assert [start + place for place in row] == theirs


@pytest.mark.parametrize("marks", [(3,), (0, 4), ()])
def test_positions_are_those_of_a_naive_reader_whatever_is_decoded(marks):
    whole = places(TOKENS, list(marks))
    assert whole.tolist() == [naive(row, marks) for row in TOKENS.tolist()]
    cut = Positions.build(L, 3, tokens=TOKENS).slice(9, 11, 11)
    assert torch.equal(counted(cut, is_one_of(cut, list(marks))), whole[:, :11])


def test_positions_begin_anew_with_a_document():
    tokens = torch.tensor([[1, 3, 1, 1, 1, 1, 3, 1], [3, 1, 3, 1, 1, 2, 1, 3]])
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 2, 2, 2, 2]])
    valid = torch.tensor([[True] * 8, [False] + [True] * 7])
    expected = [naive([1, 3, 1], [3]) + naive([1, 1, 1, 3, 1], [3])]
    expected += [naive([3], [3]) + naive([1, 3, 1], [3]) + naive([1, 2, 1, 3], [3])]
    assert places(tokens, [3], documents=documents, valid=valid).tolist() == expected


def test_the_input_gets_the_row_of_its_position_and_the_last_one_beyond():
    scheme = pezoo.create("coupling:marks=[3]:places=6", **SIZES)
    table, x = member(scheme, "coupling").table, vectors(3, L, 8)
    came = scheme.prepare(scheme.positions(3, L, tokens=TOKENS)).embed(x)
    rows = [[min(place, 5) for place in naive(row, [3])] for row in TOKENS.tolist()]
    assert max(map(max, rows)) == 5
    torch.testing.assert_close(came, x + table[torch.tensor(rows)])


def test_random_starts_move_all_of_a_sequence_and_stay_in_the_table():
    scheme = pezoo.create("coupling:marks=[3]+shift:max_shift=40", **SIZES)
    table, starts = member(scheme, "coupling").table, set()
    assert len(table) == 12 + 40  # positions up to 12, begun at 39
    with torch.no_grad():
        table.copy_(torch.arange(len(table))[:, None].expand_as(table))
    length = 12
    tokens = TOKENS[:1, :length].expand(200, -1)
    for phase, moves in (("train", True), ("test", False)):
        positions = scheme.positions(200, length, tokens=tokens, phase=phase, rows=range(200))
        rows = scheme.prepare(positions).embed(torch.zeros(200, length, 8))[..., 0].round().int()
        starts = rows[:, 0] - naive(TOKENS[0, :length].tolist(), [3])[0]
        for row, start in zip(rows.tolist(), starts.tolist(), strict=True):
            assert row == naive(TOKENS[0, :length].tolist(), [3], start)
        assert (starts.min(), len(starts.unique()) > 30, starts.max() > 35) == (0, moves, moves)


def test_squeezed_parts_stay_aligned():
    scheme = pezoo.create("coupling:marks=[3]+pi:factor=4", **SIZES)
    with torch.no_grad():
        member(scheme, "coupling").table.copy_(torch.arange(13.0)[:, None].expand(13, 8))
    tokens = torch.tensor([[1, 1, 1, 3, 1, 1, 1]])
    positions = scheme.positions(1, 7, tokens=tokens, phase="test")
    rows = scheme.prepare(positions).embed(torch.zeros(1, 7, 8))[0, :, 0]
    torch.testing.assert_close(rows, torch.tensor([1, 1.25, 1.5, 0, 1, 1.25, 1.5]))


@pytest.mark.parametrize("scheme", ["coupling:marks=[3]+shift", "rope+coupling:marks=0,3"])
def test_token_by_token_is_the_full_pass(scheme):
    config = {"scheme": scheme, "vocab_size": 6, "d_model": 12, "n_heads": 3, "n_layers": 2, "train_length": 8}
    model = far_from_start(TransformerConfig(**config))
    cache = model.cache(3, L)
    with torch.no_grad():
        came = torch.cat([model(piece, cache=cache) for piece in TOKENS.split(1, 1)], 1)
        torch.testing.assert_close(came, model(TOKENS), atol=1e-4, rtol=1e-4)


def test_what_moves_below_the_table_is_refused():
    with pytest.raises(UserError, match=r"cape draws coordinates below 0, and coupling counts from 0"):
        pezoo.create("coupling+cape", **SIZES)


@pytest.mark.parametrize(
    ("scheme", "task", "reason"),
    [
        ("coupling", "addition:order=lowest_first", None),
        ("coupling:marks=100", "copy", None),
        ("coupling:marks=2,3", "binary_addition", None),
        ("coupling", "copy", r"answers begin at a mark that it does not know. Give the ids of marks: 100, SEP, .*"),
        ("coupling", "flip_flop", "it counts from a mark between question and answer, and there is none"),
    ],
)
def test_a_task_without_its_marks_is_refused(scheme, task, reason):
    came = member(pezoo.create(scheme, **SIZES), "coupling").refuses_task(make_task(task))
    assert came is None if reason is None else re.fullmatch(reason, came)
    encoder = pezoo.create(scheme, **SIZES, causal=False)
    assert "there is none" in member(encoder, "coupling").refuses_task(make_task(task))
