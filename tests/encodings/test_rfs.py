"""Random float sampling: how its positions are spread, and what sinusoids, RoPE and ALiBi read at them."""

import math

import pytest
import torch

import pezoo
from helpers import member, vectors
from pezoo.contract import Positions

SHAPE = {"d_model": 32, "n_heads": 2, "n_layers": 2, "train_length": 16}


def drawn(text="rope+rfs", length=16, batch=300, phase="train", **facts):
    """Coordinates (B, L) that the first layer reads."""
    prepared = pezoo.create(text, **SHAPE).prepare(
        Positions.build(length, batch, phase=phase, **{"rows": range(batch)} | facts)
    )
    return prepared.at(0)[0].composition.positions.key


@pytest.mark.parametrize("phase", ["train", "tune", "test"])
@pytest.mark.parametrize(("length", "m"), [(16, 16), (40, 16), (9, 100)])
def test_coordinates_are_sorted_uniform_numbers(phase, length, m):
    p = drawn(f"rope+rfs:max_length={m}:test=random", length, 2000, phase)
    assert p.shape == (2000, length)
    assert (p.diff() >= 0).all()
    assert p.min() >= 0
    assert p.max() < m
    assert p.frac().bool().float().mean() > 0.99
    k = torch.arange(1, length + 1)
    mean, deviation = k / (length + 1), (k * (length + 1 - k) / (length + 1) ** 2 / (length + 2)).sqrt()
    assert ((p.mean(0) / m - mean).abs() < 5 * deviation / 2000**0.5).all()  # those of order statistics
    assert ((p.std(0) / m / deviation - 1).abs() < 0.15).all()


def test_draws_belong_to_the_sequence_and_the_seed():
    p = drawn(batch=4)
    assert torch.equal(p, drawn(batch=4))
    assert torch.equal(p[2:], drawn(batch=2, rows=(2, 3)))
    assert not torch.equal(p, drawn(batch=4, seed=1))
    assert not torch.equal(p[0], p[1])
    assert not torch.equal(p, drawn(batch=4, phase="tune"))


def test_testing_divides_the_range_evenly():
    for length, m in ((5, 16), (16, 16), (40, 16), (40, 3)):
        p = drawn(f"rope+rfs:max_length={m}", length, 1, "test")[0].tolist()
        assert p == pytest.approx([m * (2 * i - 1) / (2 * max(length, 16)) for i in range(1, length + 1)], rel=1e-6)
    assert torch.equal(drawn(length=16, batch=1, phase="test")[0], torch.arange(16) + 0.5)


def test_rows_of_other_lengths_and_packed_documents():
    declared = torch.tensor([6, 16])
    for phase in ("train", "test"):
        p = drawn(length=6, batch=2, phase=phase, declared=declared)
        for row, length in enumerate(declared.tolist()):
            assert torch.equal(p[row], drawn(length=6, batch=1, rows=(row,), phase=phase, declared=length)[0])
    documents = torch.tensor([[0] * 9 + [1] * 7])
    p = drawn(batch=1, documents=documents)[0]
    assert torch.equal(p[9:], p[:7])


@pytest.mark.parametrize("phase", ["train", "test"])
def test_what_sinusoids_rope_and_alibi_make_of_them(phase):
    length = 24
    facts = {"phase": phase, "rows": (3,)}
    p = drawn(length=length, batch=1, phase=phase, rows=(3,))[0].double()
    x = vectors(1, length, 32)
    built = pezoo.create("sinusoidal+rfs", **SHAPE)
    angles = p[:, None] * 10000 ** (-torch.arange(0, 32, 2, dtype=torch.float64) / 32)
    table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
    came = built.prepare(built.positions(1, length, **facts)).embed(x)[0].double()
    torch.testing.assert_close(came, x[0].double() * math.sqrt(32) + table, atol=1e-5, rtol=1e-5)
    q, k = vectors(1, 2, length, 16, seed=1), vectors(1, 2, length, 16, seed=2)
    seen = torch.ones(length, length).tril().bool()
    turns = torch.polar(torch.ones(length, 8, dtype=torch.float64), p[:, None] * 10000 ** (-torch.arange(8.0) / 8))
    pairs = (torch.view_as_complex(t[0].double().unflatten(-1, (8, 2))) * turns for t in (q, k))
    one, other = pairs
    expected = torch.einsum("hik,hjk->hij", one, other.conj()).real / 4
    came = pezoo.create("rope+rfs", **SHAPE).logits(q, k, **facts)[0].double()
    torch.testing.assert_close(came[:, seen], expected[:, seen], atol=1e-5, rtol=1e-4)
    slopes = torch.tensor([2.0**-4, 2.0**-8], dtype=torch.float64)[:, None, None]
    expected = (q[0].double() @ k[0].double().mT) / 4 - slopes * (p[:, None] - p)
    came = pezoo.create("alibi+rfs", **SHAPE).logits(q, k, **facts)[0].double()
    torch.testing.assert_close(came[:, seen], expected[:, seen], atol=1e-5, rtol=1e-4)


def test_a_table_has_a_row_for_every_coordinate():
    built = pezoo.create("learned+rfs", **SHAPE)
    assert len(member(built, "learned").table) == 17
    assert built.undefined(160) is None
    assert drawn(batch=300).max() < 16


def test_what_needs_whole_numbers_is_refused():
    with pytest.raises(pezoo.UserError, match="resonance would read its wavelengths, whole numbers of tokens, between"):
        pezoo.create("rope+rfs+resonance", **SHAPE)


def test_phases_differ_unless_testing_draws():
    for text, phases in (("rope+rfs", ["rfs"]), ("rope+rfs:test=random", [])):
        assert pezoo.create(text, **SHAPE).differs_by_phase(("train", "tune", "test")) == phases
