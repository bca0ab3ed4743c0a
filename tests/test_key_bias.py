"""A bias of keys alone: attention without a tensor of pairs, against the formula in float64, and `eager`."""

import pytest
import torch
from test_learned_pairs import assert_close
from test_learned_table import gradients, make
from torch.autograd import grad, gradcheck, gradgradcheck

import pezoo
from pezoo import attention
from pezoo.attention import key_bias
from pezoo.contract import Positions


@pytest.fixture
def used(monkeypatch):
    """Small blocks at any length, and how often they were taken."""
    calls, inner = [], key_bias.attend
    monkeypatch.setattr(key_bias, "attend", lambda *given: calls.append(given) or inner(*given))
    monkeypatch.setattr(key_bias, "BLOCK", 7)
    monkeypatch.setattr(attention, "DENSE_LIMIT", 5)
    return calls


def reading(scheme, length):
    """The same scheme, which takes what it reads from a fixed input of the layer."""
    x = torch.randn(2, length, scheme.shape.d_model, generator=torch.Generator().manual_seed(3))
    inner = scheme.prepare

    def prepare(positions):
        prepared = inner(positions)
        attend = prepared.attend
        object.__setattr__(prepared, "attend", lambda *given: attend(*given, x=x))
        return prepared

    object.__setattr__(scheme, "prepare", prepare)
    return scheme


@pytest.mark.parametrize("text", ["fox", "rope+fox", "fox+logn", "fox:gate=bias_only", "rope+fox:gate=fixed+ssmax"])
@pytest.mark.parametrize(("n_queries", "n_keys"), [(41, 41), (17, 41), (2, 41), (7, 7)])
def test_output_and_gradients_are_those_of_eager(text, n_queries, n_keys, used):
    scheme = reading(make(text, 40), n_keys)
    expected = gradients(scheme, "eager", n_queries, n_keys, kv=1)
    assert not used
    assert_close(gradients(scheme, "auto" if n_keys > 7 else "chunked", n_queries, n_keys, kv=1), expected, 2e-5)
    assert len(used) == 1


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("fox+window:size=9", {}),
        ("fox+sink_logits", {}),
        ("fox+alibi", {}),
        ("alibi", {}),
        ("fox", {"documents": (torch.arange(41) // 13).expand(2, -1)}),
    ],
)
def test_what_softmax_does_not_ignore_keeps_its_pairs(text, facts, used):
    scheme = reading(make(text, 40), 41)
    expected = gradients(scheme, "eager", 41, 41, **facts)
    assert_close(gradients(scheme, "auto", 41, 41, **facts), expected, 2e-5)
    assert not used


def heads(length, dtype=torch.float32, requires_grad=True):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, length, 8, dtype=dtype)
    return [t.clone().requires_grad_(requires_grad) for t in (q, k, v)]


def by_hand(q, k, v, bias, scale=0.3):
    """In float64, all pairs at once."""
    q, k, v, bias = (t.double() for t in (q, k, v, bias))
    ahead = torch.ones(q.shape[-2], k.shape[-2]).triu(1).bool()
    return torch.softmax((q @ k.mT * scale + bias[:, :, None]).masked_fill(ahead, -torch.inf), -1) @ v


@pytest.mark.parametrize(("gate", "tolerance"), [(0.0, 1e-5), (0.01, 1e-5), (1.0, 2e-5), (30.0, 2e-4)])
def test_long_sums_lose_little(gate, tolerance):
    """Biases of thousands: less than their own last digit, since a block counts from its own end."""
    tensors = heads(700)
    bias = (gate * torch.rand(2, 3, 700)).cumsum(-1).requires_grad_()
    ours, expected = key_bias._attend(*tensors, bias, 0.3, 0), by_hand(*tensors, bias)
    assert (ours - expected).abs().max() < tolerance
    upstream = torch.randn(ours.shape)
    found, wanted = (grad(out, [*tensors, bias], upstream.to(out.dtype)) for out in (ours, expected))
    assert_close(found, wanted, 2 * tolerance)


def test_keys_that_are_forgotten_are_left_out():
    q, k, _ = heads(700, requires_grad=False)
    spans = key_bias._spans(q, k, torch.arange(700.0).expand(2, 3, -1), 0.01, 0)
    firsts = [first for _, _, first, _ in spans]
    assert firsts[0] == 0
    assert all(start - 125 < first < start - 100 for start, _, first, _ in spans[1:] if start > 125)
    assert {first for _, _, first, _ in key_bias._spans(q, k, torch.zeros(2, 3, 700), 0.01, 0)} == {0}
    apart = torch.stack([torch.arange(700.0), torch.zeros(700), torch.zeros(700)]).expand(2, -1, -1)
    assert {first for _, _, first, _ in key_bias._spans(q, k, apart, 0.01, 0)} == {0}  # one head forgets nothing


def test_it_can_be_differentiated_twice(monkeypatch):
    monkeypatch.setattr(key_bias, "BLOCK", 3)
    given = [t[:1, :1, :, :2] for t in heads(4, torch.float64)]
    given = [t.detach().requires_grad_() for t in given]
    given.append(torch.randn(1, 1, 4, dtype=torch.float64, requires_grad=True))
    assert gradcheck(lambda *t: key_bias._attend(*t, 0.3, 0), given)
    assert gradgradcheck(lambda *t: key_bias._attend(*t, 0.3, 0), given)


def test_it_is_explained():
    scheme = pezoo.create("fox:gate=fixed", d_model=24, n_heads=3, n_layers=1, train_length=64)
    composition = scheme.prepare(Positions.build(600, phase="test")).layers[0][0].composition
    q = torch.zeros(1, 3, 600, 8)
    assert attention.chunks(q, q, composition) == ("key_bias.attend", "fused, with one number per key and head")
