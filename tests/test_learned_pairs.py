"""Biases of pairs that need a gradient: their own backward pass against the formula in float64, and `eager`."""

import pytest
import torch
from test_learned_table import gradients, make
from torch.autograd import grad, gradcheck, gradgradcheck

from pezoo import attention
from pezoo.attention import learned_pairs
from pezoo.contract import Positions


def assert_close(ours, expected, tolerance):
    """Relative to the largest entry of each tensor; but what softmax ignores has gradients of rounding alone."""
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == b.dtype
        assert (a.double() - b.double()).abs().max() <= tolerance * b.double().abs().max() + 3e-5


@pytest.fixture
def used(monkeypatch):
    """Small blocks and chunks at any length, and how often they were taken."""
    calls, inner = [], learned_pairs.attend
    monkeypatch.setattr(learned_pairs, "attend", lambda *given: calls.append(given) or inner(*given))
    monkeypatch.setattr(learned_pairs, "BLOCK", 7)
    monkeypatch.setattr(learned_pairs, "LONG", 9)
    monkeypatch.setattr(attention, "CHUNK", 16)
    monkeypatch.setattr(attention, "DENSE_LIMIT", 5)
    return calls


TEXTS = [
    *("shaw:values=false", "shaw:by=both:values=false:clip=5"),
    *("transformer_xl", "deberta", "rope+cope", "fire", "tupe"),
    *("rope+cope", "alibi+deberta+logn", "t5+transformer_xl+pi", "deberta+head_scale", "cope+ssmax"),
    *("transformer_xl+window:size=9", "deberta+sink_logits", "deberta+random:draw=batch"),
]


@pytest.mark.parametrize(("text", "causal"), [(t, c) for t in TEXTS for c in (True, False) if c or "cope" not in t])
def test_output_and_gradients_are_those_of_eager(text, causal, used, monkeypatch):
    """Odd lengths, fewer queries than keys, packed and padded rows; chunks kept and computed again."""
    scheme, place = make(text, 41, causal=causal), torch.arange(41)
    packed, padded = {"documents": (place // 13).expand(2, -1)}, {"valid": place >= torch.tensor([[0], [9]])}
    for n_queries, facts in ((41, {}), (17, {}), (2, {}), (41, packed), (17, padded)):
        facts = facts | {"causal": causal}
        expected = gradients(scheme, "eager", n_queries, 41, **facts)
        assert not used
        for kept in (0, 2**24):
            monkeypatch.setattr(attention, "KEPT", kept)
            assert_close(gradients(scheme, "chunked", n_queries, 41, **facts), expected, 2e-5)
            assert used
            used.clear()


@pytest.mark.parametrize("text", ["shaw", "shaw+kerple", "transformer_xl+logn", "deberta", "rope+cope", "fire+deberta"])
def test_at_real_sizes(text, monkeypatch):
    """Grouped heads; blocks that do not hold all heads."""
    scheme = make(text, 300, n_heads=4)
    expected = gradients(scheme, "eager", 531, 531, kv=2)
    for pairs in (learned_pairs.PAIRS, 1):
        monkeypatch.setattr(learned_pairs, "PAIRS", pairs)
        assert_close(gradients(scheme, "auto", 531, 531, kv=2), expected, 2e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("text", ["deberta", "cope+logn"])
def test_other_dtypes_and_autocast(text, dtype, used):
    scheme, tolerance = make(text, 40), 1e-5 if dtype == torch.float64 else 3e-2
    expected = gradients(scheme, "eager", 41, 41, dtype=dtype)
    assert_close(gradients(scheme, "chunked", 41, 41, dtype=dtype), expected, tolerance)
    if dtype != torch.float64:
        full = gradients(scheme, "eager", 41, 41)
        with torch.autocast("cpu", dtype):
            mixed = gradients(scheme, "chunked", 41, 41)
        assert_close([mixed[0].float(), *mixed[1:]], full, 3e-2)
    assert used


@pytest.mark.parametrize("text", ["shaw:values=false", "deberta", "transformer_xl+logn", "rope+cope", "fire"])
def test_without_gradients_too(text, used):
    scheme = make(text, 40)
    q, k, v = torch.randn(3, 2, 3, 41, 8)
    with torch.no_grad():
        for n_queries in (41, 10):
            prepared = scheme.prepare(Positions.build(41, phase="test").slice(41 - n_queries, 41))
            ours, expected = (prepared.attend(0, q[:, :, -n_queries:], k, v, b) for b in ("chunked", "eager"))
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
            assert used
            used.clear()


def by_formula(q, k, v, bias, offset):
    """Query after query, row after row and head after head."""
    out, bias = torch.empty_like(q), bias.expand(*q.shape[:-1], k.shape[-2])
    for b in range(len(q)):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                n = k.shape[2] if offset is None else offset + i + 1
                logits = 0.7 * (k[b, h, :n] @ q[b, h, i]) + bias[b, h, i, :n]
                out[b, h, i] = logits.softmax(-1) @ v[b, h, :n]
    return out


@pytest.mark.parametrize("shape", [(2, 2), (1, 2), (2, 1), (1, 1)])
@pytest.mark.parametrize("sizes", [(11, 11, 0), (4, 11, 7), (5, 9, None)])
def test_float64_is_the_formula(sizes, shape, monkeypatch):
    """And the gradients are what small steps give, and theirs too; what the bias is ahead of a query does not count."""
    monkeypatch.setattr(learned_pairs, "BLOCK", 3)
    monkeypatch.setattr(learned_pairs, "LONG", 5)
    torch.manual_seed(0)
    n_queries, n_keys, offset = sizes
    q, k, v = (torch.randn(2, 2, n, 4, dtype=torch.float64, requires_grad=True) for n in (n_queries, n_keys, n_keys))
    bias = torch.randn(*shape, n_queries, n_keys, dtype=torch.float64)
    if offset is not None:
        bias[..., torch.ones(n_queries, n_keys).triu(offset + 1).bool()] = torch.nan
    tensors = (q, k, v, bias.requires_grad_())
    out, expected = learned_pairs.attend(*tensors, 0.7, offset), by_formula(*tensors, offset)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    upstream = torch.randn_like(out)
    for graph in (False, True):
        found = grad(out, tensors, upstream, create_graph=graph, retain_graph=True)
        for ours, theirs in zip(found, grad(expected, tensors, upstream, retain_graph=True), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    finite = (q, k, v, bias.detach().nan_to_num(-1.0).requires_grad_())
    assert gradcheck(lambda *t: learned_pairs.attend(*t, 0.7, offset), finite, fast_mode=True)
    assert gradgradcheck(lambda *t: learned_pairs.attend(*t, 0.7, offset), finite, fast_mode=True)


def test_rows_that_see_little_and_weights_that_are_next_to_nothing():
    """-inf in the bias, and logits hundreds below the others."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 20, 4).unbind()
    bias = -30.0 * torch.arange(20.0).expand(1, 2, 20, 20).clone()
    bias[..., 1::2] = -torch.inf
    tensors = [t.requires_grad_() for t in (q, k, v, bias)]
    expected = torch.softmax(q @ k.mT * 0.5 + bias, dim=-1) @ v
    found = grad(learned_pairs.attend(*tensors, 0.5).square().sum(), tensors)
    for ours, theirs in zip(found, grad(expected.square().sum(), tensors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_queries_that_see_few_keys_of_many(monkeypatch):
    """-inf for all keys of a pass."""
    monkeypatch.setattr(learned_pairs, "BLOCK", 3)
    monkeypatch.setattr(learned_pairs, "LONG", 5)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 20, 4).unbind()
    back = torch.arange(20)[:, None] - torch.arange(20)
    bias = torch.zeros(1, 1, 20, 20).masked_fill(back > 2, -torch.inf)
    tensors = [t.requires_grad_() for t in (q, k, v, bias)]
    expected = torch.softmax((q @ k.mT * 0.5 + bias).masked_fill(back < 0, -torch.inf), dim=-1) @ v
    ours = learned_pairs.attend(*tensors, 0.5, 0)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    for a, b in zip(grad(ours.sum(), tensors), grad(expected.sum(), tensors), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_beyond_what_is_kept_nothing_of_all_pairs_is():
    """Of 2,048 queries and keys what autograd keeps is linear."""
    scheme, kept = make("deberta:max_distance=8", 64, n_heads=1), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        gradients(scheme, "auto", 2048, 2048, rows=1)
    assert max(kept) <= 2048 * 64


@pytest.mark.parametrize("m", [1, 2, 5, 30])
@pytest.mark.parametrize(("n_queries", "n_keys"), [(13, 13), (4, 13), (1, 13)])
def test_values_of_distance_are_the_formula(n_queries, n_keys, m, monkeypatch):
    """In float64, with gradients to all, and theirs."""
    monkeypatch.setattr(learned_pairs, "BLOCK", 3)
    monkeypatch.setattr(learned_pairs, "LONG", 5)
    torch.manual_seed(0)
    offset, near = n_keys - n_queries, torch.randn(m, 4, dtype=torch.float64, requires_grad=True)
    q, k, v = (torch.randn(2, 2, n, 4, dtype=torch.float64, requires_grad=True) for n in (n_queries, n_keys, n_keys))
    bias = torch.randn(2, 2, n_queries, n_keys, dtype=torch.float64, requires_grad=True)
    tensors = (q, k, v, bias, near)

    def ours(q, k, v, bias, near):
        return learned_pairs.attend(q, k, v, bias, 0.7, offset, near)

    back = offset + torch.arange(n_queries)[:, None] - torch.arange(n_keys)
    weights = (0.7 * q @ k.mT + bias).masked_fill(back < 0, -torch.inf).softmax(-1)
    expected = weights @ v + (weights[..., None] * near[back.clamp(0, m - 1)]).sum(-2)
    torch.testing.assert_close(ours(*tensors), expected, rtol=0, atol=1e-12)
    upstream = torch.randn_like(expected)
    for graph in (False, True):
        found = grad(ours(*tensors), tensors, upstream, create_graph=graph)
        for a, b in zip(found, grad(expected, tensors, upstream, retain_graph=True), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert gradgradcheck(ours, tensors, fast_mode=True)
