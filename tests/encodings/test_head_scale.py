"""HeadScale: logits of each head times its own factor, against the formula in float64."""

import pytest
import torch

import pezoo
from helpers import member, vectors
from pezoo import attention

H, D, L = 3, 4, 13
SIZES = {"d_model": H * D, "n_heads": H, "n_layers": 2, "train_length": 8}


def by_head(q, k, v, factors, bias):
    """Causal attention in float64 whose products, not its bias, each head multiplies by its factor."""
    heads = []
    for h, factor in enumerate(factors):
        logits = factor * (q[:, h].double() @ k[:, h].double().mT) / D**0.5 + bias[h].double()
        heads.append(logits.masked_fill(torch.ones(L, L).triu(1) > 0, -torch.inf).softmax(-1) @ v[:, h].double())
    return torch.stack(heads, 1)


@pytest.mark.parametrize("encoding", ["nope", "alibi"])
def test_each_head_of_each_layer_has_its_factor(encoding, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 4)
    q, k, v = (vectors(2, H, L, D, seed=i) for i in range(3))
    built = pezoo.create(f"{encoding}+head_scale", **SIZES)
    for layer, factors in enumerate(([1.5, 2.0, 1.1], [3.0, 0.2, 1.0])):
        member(built, "head_scale", layer).factor.data = torch.tensor(factors)
        expected = by_head(q, k, v, [max(1, a) for a in factors], built.bias(L))
        for backend in ("eager", "sdpa", "chunked"):
            came = pezoo.attend(built, q, k, v, layer=layer, phase="test", backend=backend)
            torch.testing.assert_close(came.double(), expected, atol=1e-5, rtol=1e-4)


def test_a_factor_below_one_can_rise_again():
    built = pezoo.create("nope+head_scale", **SIZES)
    factor = member(built, "head_scale").factor
    factor.data = torch.tensor([0.5, 1.0, 2.0])
    q, k, v = (vectors(2, H, L, D, seed=i) for i in range(3))
    pezoo.attend(built, q, k, v, phase="tune").square().sum().backward()
    assert factor.grad.abs().min() > 0


def test_the_uniform_scale():
    built = pezoo.create("nope+head_scale:learned=false:init=1.6", **SIZES)
    assert not list(built.parameters())
    assert built.temperature(40, layer=1, head=2).tolist() == [pytest.approx(1.6)] * 40
    assert built.temperature(40, phase="train").tolist() == [1.0] * 40
    untuned, uniform = (pezoo.create(f"nope+head_scale{s}", **SIZES) for s in ("", ":learned=false"))
    assert torch.equal(untuned.temperature(9), uniform.temperature(9))


def test_factors_below_one_are_refused():
    with pytest.raises(pezoo.UserError, match=r"head_scale:init must be at least 1, got 0\.9"):
        pezoo.create("nope+head_scale:init=0.9", **SIZES)
