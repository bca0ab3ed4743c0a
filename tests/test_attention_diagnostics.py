"""The protocol `attention` against dense attention of one window at a time, and the observer that it reads through."""

import math

import numpy as np
import pytest
import torch

from pezoo import attention
from pezoo.attention import observing
from pezoo.compose import Scheme, prepared
from pezoo.data import Windows
from pezoo.evaluation import evaluate
from pezoo.evaluation.attention import METRICS
from pezoo.model.transformer import Transformer, TransformerConfig

VOCAB, LONGEST, L, LAST = 19, 40, 8, 6
LENGTHS = [8, 13, 40]
SCHEMES = [
    "rope",
    "alibi",
    "t5",
    "cope",
    "shaw:values=false",
    "rope+rerope",
    "rope+window",
    "rope+random",
    "rope+yarn+logn",
    "alibi+dape",
    "dynamic_sinusoidal",
    {"layers": ["rope", "alibi+window:size=5"]},
    {"heads": {"rope+rerope": 1, "alibi": 1}},
]


def make(scheme):
    """A small model with attention sharp enough for positions to show."""
    size = {"vocab_size": VOCAB, "d_model": 16, "n_heads": 2, "n_layers": 2}
    model = Transformer(TransformerConfig(**size, train_length=L, scheme=scheme))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "scheme" in name:
                parameter.add_(torch.rand(parameter.shape, generator=generator))
            elif parameter.ndim > 1:
                parameter.mul_(10)
    return model.eval()


@pytest.fixture
def text():
    ids = torch.randint(VOCAB, (4, LONGEST + 1), generator=torch.Generator().manual_seed(1))
    return Windows(ids, np.array([4, 4, 1, 7]), np.zeros(4, dtype=np.int64))


def measure(model, text, lengths=LENGTHS, last=LAST, octaves=False, **facts):
    return evaluate(model, text, lengths, protocol=f"attention:octaves={str(octaves).lower()}", last=last, **facts)


def dense(model, ids, length, row, monkeypatch):
    """Weights (n, T, T) of all layers and heads for one window: attention to values that are unit vectors."""
    seen = []

    def spy(q, k, v, composition, backend="auto", inner=attention.attend):
        units = torch.eye(k.shape[2]).expand(*k.shape[:2], -1, -1)
        seen.append(inner(q, k, units, composition, "eager")[0])
        return inner(q, k, v, composition, "eager")

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(prepared, "attend", spy)
        model(ids[None, :length], model.positions(1, length, phase="test", rows=(row,)))
    return torch.cat(seen).double().numpy()


def expected(model, text, length, last, monkeypatch):
    weights = np.concatenate([dense(model, ids, length, row, monkeypatch) for row, ids in enumerate(text.ids)])
    distance = np.subtract.outer(np.arange(length), np.arange(length))
    entropy = -np.sum(weights * np.log(np.where(weights > 0, weights, 1)), axis=-1)

    def mass(low, high):
        return np.sum(weights * ((low <= distance) & (distance < high)), axis=-1)

    found = {"attention_entropy": entropy[:, -last:].mean()}
    if length > L:
        found["mass_beyond"] = mass(L, length)[:, L:].mean()
    for n in (0, 1, 2, 4, 8, 16, 32):
        if n < length:
            found[f"mass_at_{n}"] = mass(n, max(1, 2 * n))[:, -last:].mean()
            found |= {f"entropy_at_{n}": entropy[:, n : 2 * n].mean()} if n else {}
    return found


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("batch_tokens", [1, 16384])
def test_diagnostics_are_those_of_dense_attention(scheme, batch_tokens, text, monkeypatch):
    model = make(scheme)
    for result in measure(model, text, octaves=True, batch_tokens=batch_tokens):
        length = result.test_length
        assert (result.status, result.reason, result.bins) == ("ok", "", None)
        assert (result.n_tokens, result.n_documents) == (4 * length, 3)
        logits = {name: result.values.pop(name) for name in ("max_logit", "mean_max_logit")}
        assert logits["max_logit"] > logits["mean_max_logit"]
        assert result.values == pytest.approx(expected(model, text, length, LAST, monkeypatch), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("scheme", ["rope", "alibi", "t5", "rope+window:size=5", "rope+yarn+logn"])
def test_largest_logits_are_those_of_the_formula(scheme, text, monkeypatch):
    model, found = make(scheme), []

    def spy(q, k, v, composition, backend="auto", inner=attention.attend):
        rotated_q, rotated_k = composition.rotate(q, k)
        logits = rotated_q @ rotated_k.mT * composition.scale * composition.sigma()
        bias = composition.bias()
        logits = logits if bias is None else logits + bias
        found.append(logits.masked_fill(~composition.visible()[:, None], -math.inf))
        return inner(q, k, v, composition, backend)

    for length in LENGTHS:
        [result] = measure(model, text, [length])
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(prepared, "attend", spy)
            model(text.ids[:, :length])
        largest = torch.cat(found).amax(-1)
        found.clear()
        assert result.values["max_logit"] == pytest.approx(largest.max().item(), rel=1e-5)
        assert result.values["mean_max_logit"] == pytest.approx(largest.mean().item(), rel=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize(("chunk", "pairs"), [(1, 2**20), (7, 2**20), (512, 100)])
def test_the_size_of_chunks_does_not_matter(scheme, chunk, pairs, text, monkeypatch):
    model = make(scheme)
    whole = measure(model, text, octaves=True)
    monkeypatch.setattr(attention, "CHUNK", chunk)
    monkeypatch.setattr(attention, "PAIRS", pairs)
    for a, b in zip(whole, measure(model, text, octaves=True), strict=True):
        assert a.values == pytest.approx(b.values, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("scheme", ["rope", "rope+random", "rope+random:draw=layer", "rope+dynamic_ntk"])
def test_batch_sizes_do_not_matter(scheme, text):
    model = make(scheme)
    one, two, all_at_once = (measure(model, text, octaves=True, batch_tokens=n) for n in (1, 80, 16384))
    for a, b, c in zip(one, two, all_at_once, strict=True):
        assert a.values == pytest.approx(b.values, rel=1e-5, abs=1e-7)
        assert a.values == pytest.approx(c.values, rel=1e-5, abs=1e-7)


def test_one_pass_serves_all_lengths_of_a_stable_scheme(text, monkeypatch):
    model, calls = make("rope"), []
    at_once = measure(model, text, octaves=True, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(160, 160)]
    monkeypatch.setattr(Scheme, "prefix_stable", False)
    for a, b in zip(at_once, measure(model, text, octaves=True), strict=True):
        assert a.values == pytest.approx(b.values, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_mass_adds_up_to_one(scheme, text):
    for result in measure(make(scheme), text, octaves=True):
        masses = [value for name, value in result.values.items() if name.startswith("mass_at_")]
        assert sum(masses) == pytest.approx(1, rel=1e-5)


def test_uniform_attention_has_the_entropy_of_the_number_of_keys(text):
    model = make("nope")
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight.zero_()
    for result in measure(model, text):
        length = result.test_length
        keys = np.arange(1, length + 1)
        assert result.values["attention_entropy"] == pytest.approx(np.log(keys[-LAST:]).mean(), rel=1e-5)
        assert result.values["max_logit"] == result.values["mean_max_logit"] == 0
        if length > L:
            beyond = (keys[L:] - L) / keys[L:]
            assert result.values["mass_beyond"] == pytest.approx(beyond.mean(), rel=1e-5)


def test_a_window_keeps_attention_from_reaching_beyond(text):
    *_, result = measure(make(f"rope+window:size={L}"), text, octaves=True)
    assert result.values["mass_beyond"] == 0
    assert result.values["mass_at_16"] == result.values["mass_at_32"] == 0
    assert result.values["mass_at_4"] > 0


def test_values_are_among_the_metrics_and_mass_beyond_needs_a_longer_context(text):
    short, _, long = measure(make("rope"), text)
    assert set(short.values) == {"max_logit", "mean_max_logit", "attention_entropy"}
    assert set(long.values) == {*short.values, "mass_beyond"}
    *_, long = measure(make("rope"), text, octaves=True)
    assert set(long.values) < set(METRICS)


def test_an_undefined_length_is_reported_and_loses_no_other(text):
    short, *others = measure(make("learned"), text)
    assert short.status == "ok"
    assert short.values == measure(make("learned"), text, [L])[0].values
    for result in others:
        assert (result.status, result.values) == ("undefined", {})
        assert "learned" in result.reason


def test_logits_that_are_not_finite_are_a_divergence(text, monkeypatch):
    def hidden(self, tokens, positions=None, cache=None, inner=Transformer.hidden):
        with torch.no_grad():
            self.blocks[1].attention.qkv.weight.fill_(math.nan if tokens.shape[1] > 13 else 0.0)
        return inner(self, tokens, positions, cache)

    monkeypatch.setattr(Transformer, "hidden", hidden)
    *short, long = measure(make("rope+dynamic_ntk"), text)
    assert [result.status for result in short] == ["ok", "ok"]
    assert (long.status, long.values, long.n_tokens) == ("diverged", {}, 0)
    assert long.reason == "an attention logit is not finite"


# The observer


@pytest.mark.parametrize("scheme", ["rope", "alibi", "rope+rerope", "shaw"])
@pytest.mark.parametrize("backend", ["auto", "eager", "chunked"])
def test_an_observed_model_computes_the_same(scheme, backend, text):
    model, seen = make(scheme), []
    for block in model.blocks:
        block.attention.backend = backend
    with torch.no_grad():
        alone = model(text.ids)
        with observing(lambda *found: seen.append(found)):
            observed = model(text.ids)
        assert len(seen) == 2
        model(text.ids)
    assert len(seen) == 2
    torch.testing.assert_close(observed, alone, rtol=1e-4, atol=1e-4)
    for logits, weights, composition in seen:
        assert logits.shape == weights.shape == (4, 2, LONGEST + 1, LONGEST + 1)
        torch.testing.assert_close(weights, torch.softmax(logits, -1))
        assert torch.equal(logits == -math.inf, ~composition.visible()[:, None].expand(logits.shape))


def test_the_observer_goes_whatever_happens(text):
    model, seen = make("rope"), []
    with pytest.raises(ZeroDivisionError), observing(lambda *found: 1 / 0):
        model(text.ids)
    with observing(lambda *found: seen.append("outer")):
        with observing(lambda *found: seen.append("inner")):
            model(text.ids)
        model(text.ids)
    model(text.ids)
    assert seen == ["inner"] * 2 + ["outer"] * 2


def test_memory_is_bounded_by_chunks_of_pairs(monkeypatch):
    monkeypatch.setattr(attention, "PAIRS", 1000)
    ids = torch.randint(VOCAB, (1, 101))
    text, sizes = Windows(ids, np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)), []
    entropy = torch.special.entr
    monkeypatch.setattr(torch.special, "entr", lambda w: sizes.append(w.shape) or entropy(w))
    measure(make("rope"), text, [100])
    assert sizes == [(1, 2, 10, n) for n in range(10, 101, 10)] * 2
