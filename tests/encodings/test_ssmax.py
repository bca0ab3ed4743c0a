"""Scalable softmax against the paper's formula, pair by pair in float64."""

import math

import pytest
import torch

import pezoo
from helpers import member, vectors
from pezoo import attention

H, D, L, TRAINED = 3, 4, 13, 8


def created(scheme, **facts):
    """A scheme whose parameters have left their initial values."""
    built = pezoo.create(scheme, **{"d_model": 12, "n_heads": H, "n_layers": 2, "train_length": TRAINED} | facts)
    for i, parameter in enumerate(built.parameters()):
        parameter.data += 0.2 * vectors(*parameter.shape, seed=i)
    return built


def by_pairs(q, k, v, s, bias):
    """Attention of one row in float64, pair by pair: e^b_ij n^(s z_ij) over their sum, n = i + 1; a bias is not scaled.

    q, k, v (H, L, d); s (H,); bias (H, L, L).
    """
    out = torch.zeros(v.shape, dtype=torch.float64)
    for h, i in ((h, i) for h in range(H) for i in range(L)):
        z = [float(q[h, i].double() @ k[h, j].double()) / math.sqrt(D) for j in range(i + 1)]
        weights = [math.exp(bias[h, i, j]) * (i + 1) ** (s[h] * z[j]) for j in range(i + 1)]
        out[h, i] = sum(w / sum(weights) * v[h, j].double() for j, w in enumerate(weights))
    return out


@pytest.mark.parametrize("encoding", ["nope", "alibi"])
def test_weights_are_powers_of_the_number_of_keys(encoding, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 4)
    q, k, v = (vectors(1, H, L, D, seed=i) for i in range(3))
    built = created(f"{encoding}+ssmax")
    for layer in range(2):
        expected = by_pairs(q[0], k[0], v[0], member(built, "ssmax", layer).s.tolist(), built.bias(L))
        for backend in ("eager", "sdpa", "chunked"):
            came = pezoo.attend(built, q, k, v, layer=layer, backend=backend)
            torch.testing.assert_close(came[0].double(), expected, atol=2e-5, rtol=1e-4)
            last = pezoo.attend(built, q[:, :, -3:], k, v, layer=layer, backend=backend)
            torch.testing.assert_close(last[0].double(), expected[:, -3:], atol=2e-5, rtol=1e-4)


def test_each_layer_and_head_has_its_own():
    built = created("rope+ssmax")
    found = [built.temperature(5, layer=layer, head=h) for layer in range(2) for h in range(H)]
    strengths = [s for layer in range(2) for s in member(built, "ssmax", layer).s.tolist()]
    assert len(set(strengths)) == 2 * H
    for came, s in zip(found, strengths, strict=True):
        assert came.tolist() == pytest.approx([s * math.log(n) for n in range(1, 6)], abs=1e-6)


@pytest.mark.parametrize(("length", "expected"), [(1024, 0.168), (128, 0.2582), (2, 2.8854), (1, 2.8854)])
def test_s_starts_at_one_over_the_mean_logarithm(length, expected):
    built = pezoo.create("nope+ssmax", d_model=12, n_heads=H, n_layers=1, train_length=length)
    s = member(built, "ssmax").s
    assert s.tolist() == pytest.approx([expected] * H, abs=5e-4)
    if length > 1:
        assert built.temperature(length).mean().item() == pytest.approx(1, rel=1e-5)


def test_the_forms():
    logs = torch.arange(1, 7).log()
    fixed = created("nope+ssmax:form=fixed:init=1")
    assert not list(fixed.parameters())
    torch.testing.assert_close(fixed.temperature(6), logs)
    biased = created("nope+ssmax:form=biased")
    one = member(biased, "ssmax", 1)
    torch.testing.assert_close(biased.temperature(6, layer=1, head=2), one.s[2] * logs + one.b[2])


def test_an_encoder_counts_the_keys_of_the_document():
    built = created("alibi+ssmax:form=fixed:init=1", causal=False)
    one = member(built, "ssmax")
    assert one.scale(built.positions(1, 6)).tolist() == [pytest.approx([math.log(6)] * 6)]
    documents = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
    came = one.scale(built.positions(2, 6, documents=documents)).exp()
    torch.testing.assert_close(came, torch.tensor([[3.0, 3, 3, 3, 3, 3], [5, 5, 5, 5, 5, 1]]))


def test_it_counts_within_the_document():
    built = created("nope+ssmax:form=fixed:init=1")
    came = member(built, "ssmax").scale(built.positions(1, 7, documents=torch.tensor([[0] * 3 + [1] * 4]))).exp()
    torch.testing.assert_close(came, torch.tensor([[1.0, 2, 3, 1, 2, 3, 4]]))


def test_settings_out_of_range():
    with pytest.raises(pezoo.UserError, match="ssmax:init must be above 0, got 0"):
        created("nope+ssmax:init=0")
