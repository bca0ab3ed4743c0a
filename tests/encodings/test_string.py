"""STRING by pairs, and its attention in float64."""

import math

import pytest
import torch

import pezoo
from helpers import vectors

SHAPE = {"d_model": 32, "n_heads": 2, "n_layers": 1, "train_length": 96}


def attention(scheme, read, length, factor=1.0, causal=True):
    """RoPE's attention at distances read(i - j), in float64, with ours beside it."""
    q, k, v = (vectors(1, 2, length, 16, seed=seed) for seed in range(3))
    w = 10000 ** (-torch.arange(8, dtype=torch.float64) / 8)
    pairs_q, pairs_k = (torch.view_as_complex(x[0].double().unflatten(-1, (8, 2))) for x in (q, k))
    n = torch.tensor([[float(read(i - j)) for j in range(length)] for i in range(length)], dtype=torch.float64)
    turns = torch.polar(torch.ones(length, length, 8, dtype=torch.float64), n[..., None] * w)
    logits = factor * torch.einsum("hik,hjk,ijk->hij", pairs_q, pairs_k.conj(), turns).real / 4
    if causal:
        logits = logits.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    built = pezoo.create(scheme, **SHAPE, causal=causal)
    return pezoo.attend(built, q, k, v, phase="test")[0].double(), logits.softmax(-1) @ v[0].double()


def shifted(shift, local):
    return lambda n: n if abs(n) < shift else math.copysign(abs(n) - shift + local, n)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("settings", "shift", "local"), [("", 32, 3), (":shift=20:local=0", 20, 0), (":shift=9", 9, 3)]
)
def test_attention_at_shifted_distances(settings, shift, local, causal):
    ours, expected = attention(f"rope+string{settings}", shifted(shift, local), 60, causal=causal)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_the_temperature_of_the_released_code():
    factor = 0.1 * math.log(2) + 1
    ours, expected = attention(f"rope+string:attention_factor={factor}", shifted(32, 3), 60, factor**2)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


def test_near_distances_stand():
    ours, expected = attention("rope+string", lambda n: n, 32)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    scheme = pezoo.create("alibi+string", **SHAPE)
    assert torch.equal(scheme.bias(32).tril(), pezoo.create("alibi", **SHAPE).bias(32).tril())
    far = scheme.bias(96)[0, 95]  # 95 is read as 95 - 32 + 3
    assert far[0] == -66 * 2**-4
