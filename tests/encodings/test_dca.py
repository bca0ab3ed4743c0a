"""Dual chunk attention by pairs, against a loop over chunks in float64, and the row that it is explained by."""

import math

import pytest
import torch

import pezoo
from helpers import vectors
from pezoo.contract import Positions

SHAPE = {"d_model": 32, "n_heads": 2, "n_layers": 1, "train_length": 16}


def distances(text, length, **facts):
    """The distance at which each pair is read, (Lq, Lk)."""
    scheme = pezoo.create(text, **SHAPE, causal=facts.pop("causal", True))
    positions = scheme.positions(1, length, phase="test", **facts)
    composition = scheme.prepare(positions).at(0)[0].composition
    found = composition.base[0].positions.distance()[0]
    for region in composition.regions[1:]:
        inside = region.branch.region(composition.positions)[0]
        found = torch.where(inside, region.parts[0].positions.distance()[0], found)
    return found


def by_pairs(i, j, size, local):
    """The definition, for a key that is not ahead."""
    chunk = size - local
    apart = i // chunk - j // chunk
    if apart == 0:
        return i - j
    return min(i % chunk + chunk if apart == 1 else 2 * chunk - 1, size) - j % chunk


@pytest.mark.parametrize(("size", "local"), [(2, 0), (5, 4), (7, 2), (8, 0), (12, 5), (40, 3)])
@pytest.mark.parametrize("length", [1, 33])
def test_by_pairs(size, local, length):
    text, rows = f"rope+dca:size={size}:local={local}", range(length)
    there = torch.tensor([[float(by_pairs(i, j, size, local)) if j <= i else 0.0 for j in rows] for i in rows])
    assert torch.equal(distances(text, length).tril(), there)
    both = distances(text, length, causal=False)
    assert torch.equal(both, there - there.T)


def test_the_row_of_the_paper():
    """Chunks of 6 for a training length of 10: the limit is 9, and 3 tokens across a border stand where they are."""
    rows = distances("rope+dca:size=9:local=3", 15)
    assert rows[8, :9].tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert rows[11, :12].tolist() == [9, 8, 7, 6, 5, 4, 5, 4, 3, 2, 1, 0]
    assert rows[14].tolist() == [9, 8, 7, 6, 5, 4, 8, 7, 6, 5, 4, 3, 2, 1, 0]


def test_attention_is_that_of_a_loop_over_chunks():
    """As the released code does it: keys turn by their place in the chunk, each part of a query by its own."""
    length, size, local, d = 30, 12, 2, 16
    chunk = size - local
    q, k, v = (vectors(1, 2, length, d, seed=seed) for seed in range(3))
    w = 10000 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)

    def turned(x, place):
        pairs = torch.view_as_complex(x.double().unflatten(-1, (d // 2, 2)))
        return pairs * torch.polar(torch.ones(len(w), dtype=torch.float64), place * w)

    expected = torch.zeros(2, length, d, dtype=torch.float64)
    for h in range(2):
        keys = torch.stack([turned(k[0, h, j], j % chunk) for j in range(length)])
        for i in range(length):
            begin = i // chunk * chunk
            parts = [(i % chunk, keys[begin : i + 1])]
            if begin >= chunk:
                parts.insert(0, (min(i % chunk + chunk, size), keys[begin - chunk : begin]))
            if begin >= 2 * chunk:
                parts.insert(0, (min(2 * chunk - 1, size), keys[: begin - chunk]))
            logits = torch.cat([(turned(q[0, h, i], at) * some.conj()).real.sum(-1) for at, some in parts])
            expected[h, i] = (logits / math.sqrt(d)).softmax(-1) @ v[0, h, : i + 1].double()
    scheme = pezoo.create(f"rope+dca:size={size}:local={local}", **SHAPE)
    ours = pezoo.attend(scheme, q, k, v, phase="test")[0]
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-4)


def test_defaults_follow_the_training_length():
    assert torch.equal(distances("alibi+dca", 50), distances("alibi+dca:size=12:local=2", 50))
    assert distances("alibi+dca", 300).tril().max() == 12
    assert torch.equal(distances("alibi+dca", 10), distances("alibi", 10))  # within a chunk


def test_chunks_start_anew_in_each_document_and_read_other_coordinates():
    documents = torch.tensor([[0] * 23 + [1] * 30])
    together, alone = distances("rope+dca", 53, documents=documents), distances("rope+dca", 30)
    assert torch.equal(together[23:, 23:].tril(), alone.tril())
    halves = distances("rope+pi:factor=2+dca", 60)
    expected = [[by_pairs(i / 2, j / 2, 12, 2) if j <= i else 0.0 for j in range(60)] for i in range(60)]
    torch.testing.assert_close(halves.tril(), torch.tensor(expected))


def test_the_temperature_follows_the_length():
    scheme = pezoo.create("rope+dca:mscale=0.1", **SHAPE)
    for length, factor in ((8, 1), (16, 1), (64, 4)):
        scale = scheme.temperature(length, phase="test")
        torch.testing.assert_close(scale, torch.full((length,), (0.1 * math.log(factor) + 1) ** 2))
    assert not scheme.prefix_stable
    assert pezoo.create("rope+dca", **SHAPE).prefix_stable
    declared = scheme.prepare(Positions.build(8, 2, phase="test", declared=torch.tensor([16, 64])))
    sigma = declared.at(0)[0].composition.sigma().flatten()
    torch.testing.assert_close(sigma, torch.tensor([1.0, (0.1 * math.log(4) + 1) ** 2]))


@pytest.mark.parametrize("settings", ["local=12", "size=4:local=4"])
def test_a_chunk_must_be_left(settings):
    with pytest.raises(pezoo.UserError, match=r"dca:local = \d+ leaves no chunk of dca:size = \d+"):
        pezoo.create(f"rope+dca:{settings}", **SHAPE)
