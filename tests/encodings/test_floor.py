"""The frequency floor against its rule in float64, and HoPE against RoPE on the channels that still turn."""

import math

import pytest
import torch

import pezoo
from helpers import member, vectors
from pezoo.contract import Positions

D, L = 32, 64


def build(text, **sizes):
    return pezoo.create(text, **{"d_model": D, "n_heads": 1, "n_layers": 1, "train_length": L} | sizes)


def frequencies(text, phase="test", length=4 * L, **sizes):
    """What a scheme turns by, (n,)."""
    prepared = build(text, **sizes).prepare(Positions.build(length, phase=phase, rows=(0,)))
    return prepared.layers[0][0].composition.base[0].positions.inv_freq[0].double()


@pytest.mark.parametrize("turns", [0.5, 1, 2.5])
@pytest.mark.parametrize("train_length", [40, 64, 1000])
def test_it_is_its_rule(turns, train_length):
    series = [10000 ** (-2 * k / D) for k in range(D // 2)]
    kept = [w if train_length / (2 * math.pi / w) >= turns else 0.0 for w in series]  # length over wavelength: turns
    assert 0 < kept.count(0.0) < D // 2
    expected = torch.tensor(kept, dtype=torch.float64)
    for phase in ("train", "tune", "test"):
        came = frequencies(f"rope+floor:turns={turns}", phase, train_length=train_length)
        torch.testing.assert_close(came, expected, rtol=1e-6, atol=0)


def test_hope_turns_the_fast_pairs_as_rope_and_leaves_the_slow_ones():
    q, k = vectors(2, 1, 1, 4 * L, D)
    hope, rope = (
        build(text).prepare(Positions.build(4 * L, phase="test")).layers[0][0].composition.rotate(q, k)
        for text in ("hope", "rope")
    )
    width = 2 * 5  # 10000^(-k/16) completes a turn in 64 tokens up to k = 4
    assert 10000 ** (-4 / 16) * L > 2 * math.pi > 10000 ** (-5 / 16) * L
    for ours, turned, plain in zip(hope, rope, (q, k), strict=True):
        assert torch.equal(ours[..., :width], turned[..., :width])
        assert torch.equal(ours[..., width:], plain[..., width:])


def test_it_is_the_share_that_p_rope_keeps():
    q, k = vectors(2, 1, 1, 4 * L, D)
    came, expected = (build(text).logits(q, k, phase="test") for text in ("hope", f"rope:kept={5 / 16}"))
    torch.testing.assert_close(came, expected)


def test_every_turn_that_it_keeps_was_shown_in_training():
    w = frequencies("hope", length=50 * L)
    shown = torch.polar(torch.ones(1).double(), torch.arange(L) * w[w > 0, None])
    far = torch.polar(torch.ones(1).double(), torch.arange(L, 50 * L) * w[w > 0, None])
    gap = (far[:, :, None] - shown[:, None]).abs().amin(2).amax(1)
    assert (gap <= w[w > 0]).all()  # no further from one that was shown than a step


@pytest.mark.parametrize("encoding", ["pope", "xpos", "sinusoidal"])
def test_it_acts_on_whatever_has_frequencies(encoding):
    plain, floored = frequencies(encoding), frequencies(f"{encoding}+floor")
    assert torch.equal(floored, torch.where(plain >= 2 * math.pi / L, plain, 0.0))
    assert 0 < floored.count_nonzero() < len(floored)


def test_what_follows_leaves_its_zeros():
    still = frequencies("rope+floor") == 0
    for rule in ("yarn:factor=4", "abf", "ntk:factor=4", "llama3:factor=4"):
        assert torch.equal(frequencies(f"rope+floor+{rule}") == 0, still)


def test_a_model_can_be_stopped_in_testing_alone():
    assert torch.equal(frequencies("rope+floor:at=test", "train"), frequencies("rope", "train"))
    assert torch.equal(frequencies("rope+floor:at=test"), frequencies("hope"))
    assert member(build("hope"), "floor").at == ("train", "tune", "test")
