"""Learned tables of distance: their own backward pass against the formula in float64, and against `eager`."""

import pytest
import torch
from torch.autograd import grad, gradcheck, gradgradcheck

import pezoo
from pezoo import attention
from pezoo.attention import learned_pairs, learned_table
from pezoo.contract import Positions


@pytest.fixture
def used(monkeypatch):
    """Small blocks at any length, and how often they were taken."""
    calls, inner = [], learned_table.attend
    monkeypatch.setattr(learned_table, "attend", lambda *given: calls.append(given) or inner(*given))
    monkeypatch.setattr(learned_table, "BLOCK", 7)
    monkeypatch.setattr(learned_table, "LEAST", 1)
    monkeypatch.setattr(attention, "DENSE_LIMIT", 5)
    return calls


def make(text, length, n_heads=3, **facts):
    torch.manual_seed(0)
    sizes = {"d_model": 8 * n_heads, "n_heads": n_heads, "n_layers": 1, "train_length": length} | facts
    scheme = pezoo.create(text, **sizes)
    for parameter in scheme.parameters():
        parameter.data.add_(0.3 * torch.rand_like(parameter))
    return scheme


def gradients(scheme, backend, n_queries, n_keys, rows=2, kv=None, dtype=torch.float32, phase="test", **facts):
    """The output, and the gradients to q, k, v and the parameters of the scheme."""
    torch.manual_seed(1)
    n_heads = scheme.shape.n_heads
    q, upstream = torch.randn(2, rows, n_heads, n_queries, 8, dtype=dtype)
    k, v = torch.randn(2, rows, kv or n_heads, n_keys, 8, dtype=dtype)
    tensors = [t.requires_grad_() for t in (q, k, v)]
    positions = Positions.build(n_keys, rows, phase=phase, rows=range(rows), **facts).slice(n_keys - n_queries, n_keys)
    out = scheme.prepare(positions).attend(0, *tensors, backend)
    return [out.detach(), *grad(out, [*tensors, *scheme.parameters()], upstream)]


def assert_close(ours, expected, tolerance):
    """Relative to the largest entry of each tensor."""
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == b.dtype
        assert (a.double() - b.double()).abs().max() <= tolerance * b.double().abs().max()


TEXTS = ["alibi:slopes=learned", "kerple", "t5", "tisa", "rope+kerple+logn", "kerple+t5+pi", "tisa+window:size=9"]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_output_and_gradients_are_those_of_eager(text, causal, used):
    """Odd lengths, fewer queries than keys, one row and several."""
    scheme = make(text, 40, causal=causal)
    for n_queries, n_keys, rows in ((41, 41, 2), (17, 41, 1), (2, 41, 1), (7, 7, 1)):
        expected = gradients(scheme, "eager", n_queries, n_keys, rows, causal=causal)
        assert not used
        assert_close(gradients(scheme, "chunked", n_queries, n_keys, rows, causal=causal), expected, 1e-5)
        assert used.pop()
        assert not used


@pytest.mark.parametrize("text", TEXTS)
def test_at_real_sizes(text, monkeypatch):
    """Grouped heads, rows whose declared lengths differ; blocks that do not hold all heads."""
    scheme = make(text, 300, n_heads=4)
    facts = {} if "pi" in text else {"declared": torch.tensor([531, 600])}
    expected = gradients(scheme, "eager", 531, 531, kv=2, **facts)
    for pairs in (learned_pairs.PAIRS, 3 * 531 * learned_table.BLOCK, 1):
        monkeypatch.setattr(learned_pairs, "PAIRS", pairs)
        assert_close(gradients(scheme, "auto", 531, 531, kv=2, **facts), expected, 2e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("text", ["kerple", "alibi:slopes=learned"])
def test_other_dtypes_and_autocast(text, dtype, used):
    scheme, tolerance = make(text, 40), 1e-5 if dtype == torch.float64 else 3e-2
    expected = gradients(scheme, "eager", 41, 41, dtype=dtype)
    assert_close(gradients(scheme, "chunked", 41, 41, dtype=dtype), expected, tolerance)
    if dtype != torch.float64:
        full = gradients(scheme, "eager", 41, 41)
        with torch.autocast("cpu", dtype):
            mixed = gradients(scheme, "chunked", 41, 41)
        assert mixed[0].dtype == dtype
        assert_close([mixed[0].float(), *mixed[1:]], full, 3e-2)
        assert used.pop()
    assert used


def case(n_queries, n_keys, window=None):
    """Tensors in float64, the spans of the keys in sight, and the mask."""
    q, k, v = (torch.randn(2, 2, n, 4, dtype=torch.float64, requires_grad=True) for n in (n_queries, n_keys, n_keys))
    steps = n_keys - 1 - torch.arange(n_queries + n_keys - 1)  # the largest distance first
    hidden = (steps < 0) | (steps >= (window or n_keys))
    table = torch.randn(2, len(steps), dtype=torch.float64, requires_grad=True)
    offset, spans = n_keys - n_queries, []
    for start in range(0, n_queries, 3):
        stop = min(start + 3, n_queries)
        spans.append((start, stop, max(0, offset + start + 1 - (window or n_keys)), offset + stop))

    def ours(q, k, v, table):
        return learned_table.attend(q, k, v, table.masked_fill(hidden, -torch.inf), 0.7, 1.0, spans)

    return (q, k, v, table), ours, hidden


def by_formula(q, k, v, table, hidden):
    """Query after query and head after head."""
    out = torch.empty_like(q)
    n_queries, n_keys = q.shape[-2], k.shape[-2]
    for i in range(n_queries):
        for h in range(q.shape[1]):
            at = [n_queries - 1 - i + j for j in range(n_keys)]
            seen = [j for j in range(n_keys) if not hidden[at[j]]]
            bias = torch.stack([table[h, at[j]] for j in seen])
            logits = 0.7 * torch.einsum("bd,bjd->bj", q[:, h, i], k[:, h, seen]) + bias
            out[:, h, i] = torch.einsum("bj,bjd->bd", logits.softmax(-1), v[:, h, seen])
    return out


@pytest.mark.parametrize("sizes", [(11, 11, None), (4, 11, None), (11, 11, 4), (2, 5, None)])
def test_float64_is_the_formula(sizes):
    """And the gradients are what small steps give, and theirs too."""
    torch.manual_seed(0)
    tensors, ours, hidden = case(*sizes)
    out, expected = ours(*tensors), by_formula(*tensors, hidden)
    upstream = torch.randn_like(out)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    pairs = zip(grad(out, tensors, upstream), grad(expected, tensors, upstream), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert gradcheck(ours, tensors, fast_mode=True)
    assert gradgradcheck(ours, tensors, fast_mode=True)


def test_a_gradient_to_the_table_alone_and_a_table_for_all_heads():
    torch.manual_seed(0)
    (q, k, v, table), ours, hidden = case(11, 11)
    q, k, v, one = q.detach(), k.detach(), v.detach(), table[:1].detach().requires_grad_()
    expected = grad(by_formula(q, k, v, one.expand(2, -1), hidden).square().sum(), one)
    torch.testing.assert_close(grad(ours(q, k, v, one).square().sum(), one), expected, rtol=0, atol=1e-12)
    graph = grad(ours(q, k, v, one).square().sum(), one, create_graph=True)
    torch.testing.assert_close(graph, expected, rtol=0, atol=1e-12)


def test_no_tensor_of_all_pairs_is_made_or_kept():
    """Of 2,048 queries and keys: nothing larger than an eighth of their pairs, and what autograd keeps is linear."""
    scheme, sizes, kept = make("kerple", 64, n_heads=1), [], []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **kwargs or {})
            tensors = [t for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, torch.Tensor)]
            sizes.extend(t.untyped_storage().nbytes() // t.element_size() for t in tensors)
            return out

    keep = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t)
    with Sizes(), keep:
        gradients(scheme, "auto", 2048, 2048, rows=1)
    assert max(sizes) <= 2048**2 / 8
    assert max(kept) <= 2048 * 16


def test_it_is_taken_where_gradients_are_needed_and_nowhere_else(monkeypatch):
    calls, inner = [], learned_table.attend
    monkeypatch.setattr(learned_table, "attend", lambda *given: calls.append(given) or inner(*given))
    long, short = 2 * learned_table.LEAST, learned_table.LEAST - 1
    for text, length, expected in (("kerple", long, 1), ("kerple", short, 0), ("rope", long, 0), ("alibi", long, 1)):
        gradients(make(text, 64), "auto", length, length, rows=1)
        assert len(calls) == expected
        calls.clear()
    with torch.no_grad():
        q, k, v = torch.randn(3, 1, 3, long, 8)
        make("kerple", 64).prepare(Positions.build(long, phase="train")).attend(0, q, k, v)
    assert not calls


def test_a_fixed_bias_has_the_gradients_of_the_definition():
    scheme = make("alibi", 64)
    ours, expected = (gradients(scheme, backend, 600, 600, rows=1) for backend in ("auto", "eager"))
    assert_close(ours, expected, 1e-5)
