"""Blocks of pairs with gradients by hand: against the formulas in float64, and against `eager`."""

import pytest
import torch
import torch.nn.functional as F
from test_learned_table import assert_close, gradients, make
from torch.autograd import grad

from pezoo import attention
from pezoo.attention import pairwise
from pezoo.contract import Positions
from pezoo.encodings.bias import dape
from pezoo.encodings.relative.cope import CoPE


@pytest.fixture
def used(monkeypatch):
    """Small blocks at any length, and how often they were taken."""
    calls, inner = [], pairwise.attend
    monkeypatch.setattr(pairwise, "attend", lambda *given: calls.append(given) or inner(*given))
    monkeypatch.setattr(pairwise, "SIZE", 7)
    monkeypatch.setattr(dape, "TILE", 60)
    monkeypatch.setattr(dape, "KEPT", 150)
    monkeypatch.setattr(attention, "DENSE_LIMIT", 5)
    return calls


COUNTED = ["cope", "cope:divide=true:max_position=5", "kerple+cope", "alibi+cope+window:size=9"]
CORRECTED = [
    "alibi+dape",
    "kerple+dape:width=5",
    "rope+t5+dape",
    "rope+dape:reads=sum",
    "kerple+dape:reads=sum+logn",
    "kerple+dape+window:size=9",
    "fire+dape",
]
"""fire's bias is learned, and none of distance."""


@pytest.mark.parametrize("text", COUNTED + CORRECTED)
def test_output_and_gradients_are_those_of_eager(text, used):
    """Odd lengths, fewer queries than keys, one row and several, decoders and encoders."""
    for causal in (True, False):
        if text in COUNTED and not causal:
            continue
        scheme = make(text, 40, causal=causal)
        sizes = ((41, 41, 2), (17, 41, 1), (2, 41, 1), (7, 7, 1))
        for n_queries, n_keys, rows in sizes if causal else sizes[1:2]:
            expected = gradients(scheme, "eager", n_queries, n_keys, rows, causal=causal)
            assert not used
            tolerance = 1e-4 if "fire" in text else 1e-5  # what is left of large sums, in float32
            assert_close(gradients(scheme, "chunked", n_queries, n_keys, rows, causal=causal), expected, tolerance)
            assert used.pop()


@pytest.mark.parametrize("text", ["cope", "kerple+cope", "alibi+dape", "kerple+dape", "rope+dape:reads=sum"])
def test_packed_and_padded_rows(text, used):
    """Coordinates are irregular then: a bias that learns is one of pairs."""
    scheme = make(text, 40)
    packed = torch.tensor([[0] * 13 + [1] * 9 + [2] * 19, [0] * 30 + [1] * 11])
    padded = torch.ones(2, 41, dtype=torch.bool)
    padded[0, :5], padded[1, 30:] = False, False
    for facts in ({"documents": packed}, {"valid": padded}):
        expected = gradients(scheme, "eager", 41, 41, **facts)
        assert_close(gradients(scheme, "chunked", 41, 41, **facts), expected, 1e-5)
        assert used.pop()


@pytest.mark.parametrize("text", ["cope", "kerple+dape"])
def test_at_real_sizes(text):
    """Grouped heads and blocks as they are; the least number of counts has been reached well before the last key."""
    scheme = make(text, 300, n_heads=4)
    expected = gradients(scheme, "eager", 301, 301, kv=2)
    assert_close(gradients(scheme, "auto", 301, 301, kv=2), expected, 2e-5)


@pytest.mark.parametrize("text", ["cope", "kerple+dape"])
def test_other_dtypes_and_autocast(text, used):
    scheme = make(text, 40)
    for dtype, tolerance in (
        (torch.float64, 1e-5),
        (torch.bfloat16, 0.1),
    ):  # eager in bf16 is that far off in torch 2.11
        expected = gradients(scheme, "eager", 41, 41, dtype=dtype)
        assert_close(gradients(scheme, "chunked", 41, 41, dtype=dtype), expected, tolerance)
        assert used.pop()
    prepared = scheme.prepare(Positions.build(41, 2, phase="train"))
    tensors = [
        t.bfloat16().float().requires_grad_() for t in torch.randn(3, 2, 3, 41, 8)
    ]  # so that no cast changes them
    with torch.autocast("cpu", torch.bfloat16):
        mixed = prepared.attend(0, *tensors, "chunked")
    assert used.pop()
    assert mixed.dtype == torch.bfloat16
    full, wanted = prepared.attend(0, *tensors, "eager"), [*tensors, *scheme.parameters()]
    upstream = torch.randn(2, 3, 41, 8).bfloat16()
    found, expected = grad(mixed, wanted, upstream), grad(full, wanted, upstream.float())
    assert_close([mixed.float(), *found], [full, *expected], 1e-2)


def of_cope(q, k, v, table):
    """The paper's listing, query by query."""
    out, (n_queries, n_keys) = torch.empty_like(q), (q.shape[-2], k.shape[-2])
    for i in range(n_queries):
        seen = n_keys - n_queries + i + 1
        product = torch.einsum("bhd,bhjd->bhj", q[:, :, i], k[:, :, :seen]) / q.shape[-1] ** 0.5
        gates = product.sigmoid()
        counts = torch.stack([gates[..., j:].sum(-1) for j in range(seen)], -1).clamp(max=len(table) - 1)
        low, high = counts.floor().long(), counts.ceil().long()
        at = torch.einsum("bhd,pd->bhp", q[:, :, i], table)
        share = counts - low
        logits = product + at.gather(-1, low) * (1 - share) + at.gather(-1, high) * share
        out[:, :, i] = torch.einsum("bhj,bhjd->bhd", logits.softmax(-1), v[:, :, :seen])
    return out


def of_dape(q, k, v, first, offset, last, bias):
    """A + B + f([A ; B]), query by query; the bias is a number for each head and distance, (H, Lk)."""
    out, (n_queries, n_keys) = torch.empty_like(q), (q.shape[-2], k.shape[-2])
    for i in range(n_queries):
        seen = n_keys - n_queries + i + 1
        a = torch.einsum("bhd,bhjd->bjh", q[:, :, i], k[:, :, :seen]) / q.shape[-1] ** 0.5
        b = bias[:, :seen].flip(-1).T.expand(len(q), -1, -1)
        logits = a + b + F.leaky_relu(torch.cat([a, b], -1) @ first.T + offset) @ last.T
        out[:, :, i] = torch.einsum("bjh,bhjd->bhd", logits.softmax(1), v[:, :, :seen])
    return out


@pytest.mark.parametrize("sizes", [(17, 17), (5, 17)])
@pytest.mark.parametrize("text", ["cope:max_position=6", "alibi:slopes=learned+dape"])
def test_float64_is_the_formula(text, sizes, used):
    scheme = make(text, 40)
    names, parameters = zip(*scheme.named_parameters(), strict=True)
    torch.manual_seed(3)
    q, k, v = (torch.randn(2, 3, n, 8, dtype=torch.float64, requires_grad=True) for n in (sizes[0], *[sizes[1]] * 2))
    upstream = torch.randn_like(q)
    positions = Positions.build(sizes[1], 2, phase="train").slice(sizes[1] - sizes[0], sizes[1])
    out = scheme.prepare(positions).attend(0, q, k, v, "chunked")
    assert used
    own = [p.detach().double().requires_grad_() for p in parameters]
    if "cope" in text:
        expected = of_cope(q, k, v, *own)
    else:
        named = {name.rsplit(".", 2)[-2] + "." + name.rsplit(".", 1)[-1]: p for name, p in zip(names, own, strict=True)}
        (slopes,) = (p for name, p in named.items() if "slopes" in name)
        bias = -slopes[:, None] * torch.arange(sizes[1])
        expected = of_dape(q, k, v, named["first.weight"], named["first.bias"], named["last.weight"], bias)
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-7 if "alibi" in text else 1e-12)
    ours, theirs = grad(out, [q, k, v, *parameters], upstream), grad(expected, [q, k, v, *own], upstream)
    assert_close([g.double() for g in ours], theirs, 1e-6)


def test_counts_stop_where_they_have_come_to_the_last_row(monkeypatch):
    """That is soon where gates are open, never where they are closed, and changes nothing."""
    counted, inner = [], torch.sigmoid
    monkeypatch.setattr(torch, "sigmoid", lambda t: counted.append(t.shape[-1]) or inner(t))
    scheme = make("cope:max_position=8", 600, n_heads=2)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 600, 8)
    for shift, some in ((0.0, True), (-8.0, False)):
        keys = k + shift * q.mean(2, keepdim=True).sign()
        queries = q.abs() * q.mean(2, keepdim=True).sign() if shift else q
        prepared = scheme.prepare(Positions.build(600, phase="test"))
        expected = prepared.attend(0, queries, keys, v, "eager")
        counted.clear()
        torch.testing.assert_close(prepared.attend(0, queries, keys, v, "chunked"), expected, rtol=1e-5, atol=1e-5)
        assert (max(counted) < 300) == some


def test_no_tensor_of_all_pairs_is_made_or_kept():
    """Of 1,024 queries and keys: nothing larger than a sixth of their pairs, and what autograd keeps is linear."""
    sizes, kept = [], []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **kwargs or {})
            tensors = [t for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, torch.Tensor)]
            sizes.extend(t.untyped_storage().nbytes() // t.element_size() for t in tensors)
            return out

    keep = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t)
    for text in ("cope", "kerple+dape:width=4"):
        scheme = make(text, 64, n_heads=1)
        with Sizes(), keep:
            gradients(scheme, "auto", 1024, 1024, rows=1)
    assert max(sizes) <= 1024**2 / 6
    assert max(kept) <= 1024 * 16


@pytest.mark.parametrize(
    "text",
    ["rope+cope", "cope+logn", "t5+cope", "cope+sink_logits", "alibi+dape_v2", "shaw+alibi+dape", "alibi+dape+rerope"],
)
def test_what_it_has_no_place_for_runs_as_before(text, used):
    """A product, scale or sum of its own beside the member's."""
    scheme = make(text, 40)
    assert_close(gradients(scheme, "chunked", 41, 41), gradients(scheme, "eager", 41, 41), 1e-5)
    assert not used


def test_a_class_that_inherits_it_is_not_taken_at_its_word(used):
    class Halved(CoPE):
        def content(self, q, k, positions):
            return super().content(q, k, positions) / 2

    scheme = make("cope", 40)
    for part in scheme.modules():
        if isinstance(part, CoPE):
            part.__class__ = Halved
    assert_close(gradients(scheme, "chunked", 41, 41), gradients(scheme, "eager", 41, 41), 1e-5)
    assert not used


def test_a_network_without_a_bias_to_read_changes_nothing():
    scheme = make("alibi+dape", 40)
    network = next(m for m in scheme.modules() if isinstance(m, dape.DAPE))
    product, q = torch.randn(3, 5, 9), torch.randn(3, 5, 8)
    logits, kept = network.pair_logits(product, q, None, None)
    assert logits is product
    gradient = torch.randn(3, 5, 9)
    found = network.pair_gradients(gradient, kept, q, False)
    assert found[0] is gradient
    assert not any(g.any() for g in found[3])


def test_its_gradients_can_be_taken_once(used):
    prepared = make("cope", 40).prepare(Positions.build(41, phase="train"))
    q, k, v = torch.randn(3, 1, 3, 41, 8, requires_grad=True)
    (found,) = grad(prepared.attend(0, q, k, v, "chunked").square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        found.sum().backward()
    assert attention.chunks(q, v, prepared.layers[0][0].composition)[0] == "pairwise.attend"
