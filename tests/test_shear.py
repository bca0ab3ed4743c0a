"""Sheared products: against a gather, and schemes with them against `eager` without."""

import pytest
import torch
from test_learned_pairs import assert_close
from test_learned_table import gradients, make

import pezoo
from pezoo.contract import Positions
from pezoo.encodings.relative import _shear


@pytest.fixture(autouse=True)
def _always(monkeypatch):
    monkeypatch.setattr(_shear, "LEAST", 1)
    monkeypatch.setattr(_shear, "TILE", 5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("most", "m"), [(3, 4), (0, 1), (4, 9), (60, 61), (60, 121), (30, 31)])
@pytest.mark.parametrize(("start", "stop", "n_keys"), [(0, 23, 23), (6, 17, 17), (16, 17, 17), (22, 23, 23), (0, 1, 1)])
def test_shear_is_a_gather(start, stop, n_keys, most, m, causal):
    """Slices of queries, prefixes of keys, vectors of few and of all distances; gradients, and theirs."""
    if not causal:
        n_keys = 23
    positions = Positions.build(23, causal=causal).slice(start, stop, n_keys)
    seen = positions.visible()[:, None]
    table = torch.randn(3, m, 4, dtype=torch.float64, requires_grad=True)
    index = (most - positions.steps()).clamp(0, m - 1)
    vectors = table[:, index[0]]  # (H, Lq, Lk, d)
    for function, n, formula in (
        (_shear.by_query, stop - start, "bhid,hijd->bhij"),
        (_shear.by_key, n_keys, "bhjd,hijd->bhij"),
    ):
        x = torch.randn(2, 3, n, 4, dtype=torch.float64, requires_grad=True)
        ours = torch.where(seen, function(x, table, most, positions).double(), 0.0)
        expected = torch.where(seen, torch.einsum(formula, x, vectors), 0.0)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
        upstream = torch.randn_like(ours)
        found, wanted = (torch.autograd.grad(out, (x, table), upstream, retain_graph=True) for out in (ours, expected))
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_its_gradient_has_one():
    products = torch.randn(1, 2, 5, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda p: _shear._Shear.apply(p, 4) ** 2, products)


TEXTS = [
    *("shaw:clip=4", "shaw:clip=90", "shaw:clip=3:by=both", "shaw:clip=3+pi:factor=2.5", "shaw:clip=4+logn"),
    *("transformer_xl", "transformer_xl:untie=true+logn", "transformer_xl+pi", "transformer_xl+yarn", "rope+shaw"),
    *("deberta", "deberta:max_distance=5", "deberta:terms=c2p", "deberta:terms=p2c:position_to_content=released"),
    *("deberta:buckets=6:max_distance=12", "deberta+pi", "deberta+window:size=9", "transformer_xl+rerope"),
    *("t5+transformer_xl", "shaw+random:draw=batch", "deberta+random", "transformer_xl+random:relative=toeplitz"),
]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_members_are_what_they_are_without(text, causal, monkeypatch):
    """Output and gradients; queries in chunks, fewer than keys, packed rows, rows whose lengths differ."""
    monkeypatch.setattr(pezoo.attention, "CHUNK", 16)
    scheme, documents = make(text, 30, causal=causal), (torch.arange(41) // 13).expand(2, -1)
    for n_queries, facts in ((41, {}), (17, {}), (1, {}), (41, {"documents": documents})):
        facts = facts | {"causal": causal}
        monkeypatch.setattr(_shear, "LEAST", 10**9)
        expected = gradients(scheme, "eager", n_queries, 41, **facts)
        monkeypatch.setattr(_shear, "LEAST", 1)
        for backend in ("eager", "chunked"):
            assert_close(gradients(scheme, backend, n_queries, 41, **facts), expected, 2e-5)


@pytest.mark.parametrize("text", ["shaw", "transformer_xl", "deberta"])
def test_published_lengths_keep_their_sums(text, monkeypatch):
    """Up to 256 tokens nothing is sheared, whatever the back-end."""
    monkeypatch.undo()
    monkeypatch.setattr(_shear, "_products", None)
    for length in (256, 257):
        if length == 257:
            with pytest.raises(TypeError):
                gradients(make(text, length), "auto", length, length, rows=1)
        else:
            gradients(make(text, length), "auto", length, length, rows=1)


@pytest.mark.parametrize("text", ["transformer_xl", "shaw:clip=40", "deberta:max_distance=30"])
@pytest.mark.parametrize("causal", [True, False])
def test_more_tokens_than_were_declared(text, causal):
    """All distances are told apart, as they are where as many tokens are declared."""
    scheme = make(text, 30, causal=causal)
    declared, plain = (gradients(scheme, "eager", 41, 41, causal=causal, declared=n) for n in (12, 41))
    assert_close(declared, plain, 2e-5)
