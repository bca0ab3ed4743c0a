"""Key-gated GRAPE against its formula in float64, pair by pair, and against ALiBi where its gates are shut."""

import math

import pytest
import torch

import pezoo
from helpers import member, vectors
from pezoo.encodings.bias.alibi import slopes

H, D, L = 3, 8, 12


def build(text="grape", **sizes):
    scheme = pezoo.create(text, **{"d_model": H * D, "n_heads": H, "n_layers": 2, "train_length": 6} | sizes)
    generator = torch.Generator().manual_seed(1)
    for parameter in scheme.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator)
    return scheme


def softplus(x):
    return math.log1p(math.exp(x))


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_it_is_its_formula(unit, causal):
    scheme = build(f"grape:unit={unit}".lower(), causal=causal)
    q, k = 2 * vectors(2, 2, H, L, D)
    for layer in range(2):
        grape = member(scheme, "grape", layer)
        expected = torch.full((2, H, L, L), -math.inf, dtype=torch.float64)
        for b, h, i, j in torch.cartesian_prod(*(torch.arange(n) for n in expected.shape)).tolist():
            if causal and j > i:
                continue
            u, key = grape.gate[h].tolist(), k[b, h, j].tolist()
            length = math.sqrt(sum(c * c for c in u)) if unit else 1.0
            gate = softplus(sum(c * x / length for c, x in zip(u, key, strict=True)) / math.sqrt(D))
            penalty = abs(i - j) * slopes(H)[h] * softplus(grape.slope[h].item()) * gate
            expected[b, h, i, j] = q[b, h, i].double() @ k[b, h, j].double() / math.sqrt(D) - penalty
        torch.testing.assert_close(scheme.logits(q, k, layer=layer).double(), expected, rtol=1e-5, atol=1e-5)


def test_it_starts_as_alibi_at_half_open_gates():
    sizes = {"d_model": H * D, "n_heads": H, "n_layers": 1, "train_length": 6}
    q, k = torch.zeros(2, 1, H, L, D)
    grape, alibi = (pezoo.create(name, **sizes).logits(q, k) for name in ("grape", "alibi"))
    torch.testing.assert_close(grape, alibi * math.log(2))


def test_each_layer_draws_gates_of_its_own():
    torch.manual_seed(0)
    scheme = pezoo.create("grape", d_model=40 * 64, n_heads=40, n_layers=2, train_length=6)
    first, second = (member(scheme, "grape", layer).gate for layer in range(2))
    assert not torch.equal(first, second)
    assert first.std().item() == pytest.approx(1 / 8, rel=0.05)


def test_the_length_of_a_gate_counts_only_where_it_is_free():
    q, k = vectors(2, 1, H, L, D)
    for unit in (True, False):
        scheme = build(f"grape:unit={unit}".lower())
        before = scheme.logits(q, k)
        for layer in range(2):
            member(scheme, "grape", layer).gate.data *= 3
        assert torch.allclose(before, scheme.logits(q, k), atol=1e-5) == unit


def test_rotations_leave_the_keys_that_it_reads():
    q, k = vectors(2, 1, H, L, D)
    alone, both, rope = build("grape"), build("rope+grape"), build("rope")
    both.load_from(alone)
    plain = q @ k.mT / math.sqrt(D)
    seen = torch.ones(L, L).tril().bool()
    came = (both.logits(q, k) - rope.logits(q, k))[..., seen]
    torch.testing.assert_close(came, (alone.logits(q, k) - plain)[..., seen], rtol=1e-4, atol=1e-4)


def test_interpolation_divides_the_penalty():
    q, k = torch.zeros(1, H, L, D), vectors(1, H, L, D)
    plain, slowed = build("grape"), build("grape+pi:factor=4")
    torch.testing.assert_close(slowed.logits(q, k, phase="test"), plain.logits(q, k, phase="test") / 4)
