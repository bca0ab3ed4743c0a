"""PoPE against its formula in float64, pair by pair, and against the attention of x-transformers."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import grad

import pezoo
from helpers import member, vectors
from pezoo.contract import Positions

H, D, L = 3, 8, 12


def build(text="pope", **sizes):
    return pezoo.create(text, **{"d_model": H * D, "n_heads": H, "n_layers": 2, "train_length": 6} | sizes)


def with_phases(text="pope", **sizes):
    """A scheme with phases on both sides of the ends of their range."""
    scheme = build(text, **sizes)
    phase = member(scheme, "pope").phase
    phase.data = torch.linspace(-8, 1, phase.numel()).view_as(phase)
    return scheme


def by_pairs(q, k, phase, frequencies, causal=True):
    """The paper's sum over channels for one pair after another, over sqrt(d)."""
    logits = torch.full((len(q), H, L, L), -math.inf, dtype=torch.float64)
    for b, h, i, j in torch.cartesian_prod(*(torch.arange(n) for n in logits.shape)).tolist():
        if j > i and causal:
            continue
        terms = [
            math.log1p(math.exp(q[b, h, i, c]))
            * math.log1p(math.exp(k[b, h, j, c]))
            * math.cos((j - i) * w + min(0.0, max(-2 * math.pi, phase[h][c])))
            for c, w in enumerate(frequencies)
        ]
        logits[b, h, i, j] = sum(terms) / math.sqrt(D)
    return logits


@pytest.mark.parametrize("causal", [True, False])
def test_it_is_its_formula(causal):
    scheme = with_phases("pope:base=50", causal=causal)
    q, k = vectors(2, 1, H, L, D)
    phase = member(scheme, "pope").phase[:, 0].tolist()
    expected = by_pairs(q, k, phase, [50 ** (-c / D) for c in range(D)], causal)
    for layer in range(2):
        torch.testing.assert_close(scheme.logits(q, k, layer=layer).double(), expected, rtol=1e-5, atol=1e-5)


def test_it_is_the_attention_of_x_transformers():
    library = pytest.importorskip("x_transformers.x_transformers", reason="parity needs x-transformers")
    scheme = with_phases()
    their = library.Attention(dim=20, dim_head=D, heads=H, causal=True)
    polar = library.PolarEmbedding(D, H)
    polar.learned_bias.data = member(scheme, "pope").phase.data
    x = vectors(2, L, 20, seed=1)
    q, k, v = (f(x).unflatten(-1, (H, D)).transpose(1, 2) for f in (their.to_q, their.to_k, their.to_v))
    ours = their.to_out(pezoo.attend(scheme, q, k, v).transpose(1, 2).flatten(2))
    expected = their(x, polar_pos_emb=polar(torch.arange(L)))
    torch.testing.assert_close(ours, expected[0] if isinstance(expected, tuple) else expected, rtol=1e-5, atol=1e-5)


def test_keys_and_queries_are_twice_as_wide_as_values():
    composition = build().prepare(Positions.build(L, phase="test")).layers[0][0].composition
    q, k = vectors(2, 1, H, L, D)
    assert [t.shape for t in composition.rotate(q, k)] == [(1, H, L, 2 * D)] * 2
    assert pezoo.attend(build(), q, k, vectors(1, H, L, D)).shape == (1, H, L, D)


def test_phases_start_at_zero_or_all_over_their_range():
    q, k = vectors(2, 1, H, L, D)
    plain = build("pope:phase=none")
    assert not list(plain.parameters())
    assert torch.equal(build().logits(q, k), plain.logits(q, k))
    phase = member(build("pope:phase=uniform", d_model=30 * D, n_heads=30), "pope").phase
    assert -2 * math.pi <= phase.min() < -6.1
    assert -0.1 < phase.max() <= 0
    assert phase.mean().item() == pytest.approx(-math.pi, abs=0.5)


def test_a_phase_at_the_end_of_its_range_learns_and_one_beyond_does_not():
    scheme, (q, k, v) = build(), vectors(3, 1, H, L, D)
    phase = member(scheme, "pope").phase
    phase.data[0] = 0.1
    pezoo.attend(scheme, q, k, v).square().sum().backward()
    assert not phase.grad[0].any()
    assert phase.grad[1:].all()


def test_without_phases_an_encoder_sees_both_sides_alike():
    one = torch.ones(1, H, 1, D).expand(-1, -1, L, -1)
    plain = build("pope:phase=none", causal=False).logits(one, one)
    torch.testing.assert_close(plain, plain.mT)
    moved = with_phases(causal=False).logits(one, one)
    assert (moved - moved.mT).abs().max() > 0.1


@pytest.mark.parametrize("text", ["pi:factor=3", "giraffe:power=0:factor=3", "ntk:factor=3", "llama3:factor=3"])
def test_what_changes_frequencies_changes_all_of_them(text):
    scheme, (q, k) = with_phases(f"pope+{text}", train_length=400), vectors(2, 1, H, L, D)
    composition = scheme.prepare(Positions.build(L, phase="test")).layers[0][0].composition
    frequencies = composition.base[0].positions.inv_freq.flatten()
    if text.startswith("pi"):
        frequencies = frequencies / 3
    assert frequencies.shape == (D,)
    assert frequencies[-1] == pytest.approx(10000 ** (-(D - 1) / D) / 3, rel=1e-5)
    expected = by_pairs(q, k, member(scheme, "pope").phase[:, 0].tolist(), frequencies.tolist())
    torch.testing.assert_close(scheme.logits(q, k, phase="test").double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [64, 600])
def test_the_fused_kernel_gets_values_as_wide_as_keys(length, monkeypatch):
    """PyTorch's kernel for a CPU takes one width; of two it makes all pairs, in gigabytes at 8,192 tokens."""
    widths, inner = [], F.scaled_dot_product_attention

    def seen(q, k, v, *more, **names):
        widths.append((q.shape[-1], v.shape[-1]))
        return inner(q, k, v, *more, **names)

    monkeypatch.setattr(F, "scaled_dot_product_attention", seen)
    scheme = pezoo.create("pope", d_model=32, n_heads=4, n_layers=1, train_length=64)
    q, k, v = torch.randn(3, 2, 4, length, 8).requires_grad_().unbind()
    out = pezoo.attend(scheme, q, k, v, layer=0, phase="train", rows=range(2))
    assert widths
    assert set(widths) == {(16, 16)}
    exact = pezoo.attend(scheme, q, k, v, layer=0, phase="train", rows=range(2), backend="eager")
    torch.testing.assert_close(out, exact, rtol=1e-5, atol=1e-5)
    given = (q, k, v)
    for found, wanted in zip(grad(out.sum(), given), grad(exact.sum(), given), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
