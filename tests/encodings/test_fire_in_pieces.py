"""FIRE of many pairs, whose network is taken in its linear pieces: against the formula in float64, and `eager`."""

import pytest
import torch
from torch.autograd import grad, gradcheck, gradgradcheck

import pezoo
from helpers import member
from pezoo.encodings.bias import fire


def make(text="fire", train_length=512, m=1.0, n_heads=3, **facts):
    """A scheme whose numbers are off their initial values."""
    sizes = {"d_model": 8 * n_heads, "n_heads": n_heads, "n_layers": 1, "train_length": train_length}
    scheme = pezoo.create(text, **sizes | facts)
    generator = torch.Generator().manual_seed(0)
    for parameter in scheme.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    member(scheme, "fire").m.data.fill_(m)
    return scheme


def by_hand(fires, positions, step):
    """The formula, pair by pair, in float64, from coordinates that lie `step` apart."""
    (w1, b1), (w2, b2) = ((m.weight.double(), m.bias.double()) for m in (fires.network[0], fires.network[2]))
    place = positions.query_index[0].double()
    distance = (place[:, None] - positions.key_index[0]).clamp(min=0) * step

    def psi(x):
        return (fires.c.double().abs() * x + 1).log()

    threshold = (fires.m.double() * fires.shape.train_length).abs()
    argument = psi(distance) / (psi(torch.maximum(place * step, threshold)) + 1e-6)[:, None]
    slope = 0.01 if fires.config.activation == "leaky_relu" else 0.0
    hidden = argument[..., None] * w1[:, 0] + b1
    return (torch.where(hidden > 0, hidden, slope * hidden) @ w2.T + b2).permute(2, 0, 1)[None]


def asked(monkeypatch):
    """How many pairs the network is asked for."""
    pairs, inner = [], fire.F.linear
    monkeypatch.setattr(fire.F, "linear", lambda x, *given: pairs.append(x[..., 0].numel()) or inner(x, *given))
    return pairs


@pytest.mark.parametrize(
    ("text", "train_length", "m", "first", "length"),
    [
        ("fire", 512, 1.0, 0, 301),  # all queries nearer than the threshold
        ("fire", 300, 0.5, 100, 301),  # some
        ("fire", 40, -1.0, 250, 601),  # none
        ("fire", 40, 0.0, 0, 301),
        ("fire:width=7:activation=leaky_relu", 100, 1.0, 50, 333),
        ("fire+pi:factor=4", 64, 1.0, 0, 301),
        ("fire:width=1", 40, 1.0, 899, 900),  # one query
    ],
)
def test_bias_and_gradients_are_the_formula(text, train_length, m, first, length, monkeypatch):
    monkeypatch.setattr(fire, "FEW", 0)
    scheme = make(text, train_length, m)
    whole = scheme.positions(1, length, phase="test")
    composition = scheme.prepare(whole.slice(first, length, length)).layers[0][0].composition
    calls = asked(monkeypatch)
    ours, fires = composition.bias(), member(scheme, "fire")
    assert not calls
    expected = by_hand(fires, composition.positions, 0.25 if "pi" in text else 1.0)
    seen = composition.visible()[:, None]
    assert ours.shape == (1, 3, length - first, length)
    assert ((ours - expected).abs() * seen).max() < 1e-6 * max(1.0, float(expected.detach().abs().max()))
    upstream = torch.rand(ours.shape, generator=torch.Generator().manual_seed(1)) * seen
    parameters = list(fires.parameters())
    pairs = zip(grad((ours * upstream).sum(), parameters), grad((expected * upstream).sum(), parameters), strict=True)
    for given, wanted in pairs:
        torch.testing.assert_close(given, wanted.float(), rtol=1e-5, atol=1e-5 * float(wanted.abs().max()) + 1e-12)


def test_pairs_can_be_differentiated_twice():
    torch.manual_seed(0)
    n_queries, n_keys, heads, units = 3, 4, 2, 5
    width = n_queries + n_keys - 1
    sizes = [(n_queries,), (width,), (heads, width), (heads, width), (units,), (units,), (heads, units)]
    inputs = tuple(torch.rand(size, dtype=torch.float64).add_(0.1).requires_grad_() for size in sizes)
    spans = [(1, 0, 3), (4, 2, 6)]
    assert gradcheck(lambda *given: fire._Pairs.apply(spans, *given), inputs)
    assert gradgradcheck(lambda *given: fire._Pairs.apply(spans, *given), inputs)


@pytest.mark.parametrize(("text", "m"), [("fire", 1.0), ("fire", 0.4), ("rope+fire+logn", 0.7), ("fire+alibi", 0.4)])
def test_attention_is_that_of_eager(text, m, monkeypatch):
    """Grouped heads, fewer queries than keys, chunks; the network asked for each pair in `eager`."""
    scheme = make(text, 300, m, n_heads=4)
    generator, parameters = torch.Generator().manual_seed(2), dict(scheme.named_parameters())
    ignored = next(name for name in parameters if name.endswith("network.2.bias"))  # by softmax
    parameters.pop(ignored)
    for n_queries, n_keys in ((531, 531), (90, 531)):
        q, upstream = torch.randn(2, 2, 4, n_queries, 8, generator=generator)
        k, v = torch.randn(2, 2, 2, n_keys, 8, generator=generator)
        found = {}
        for backend, short in (("eager", 10**9), ("auto", fire.SHORT), ("eager", fire.SHORT)):
            monkeypatch.setattr(fire, "SHORT", short)
            tensors = [t.clone().requires_grad_() for t in (q, k, v)]
            out = pezoo.attend(scheme, *tensors, phase="test", backend=backend)
            ours = out, *grad(out, [*tensors, *parameters.values()], upstream)
            for given, wanted in zip(ours, found.setdefault("eager", ours), strict=True):
                torch.testing.assert_close(given, wanted, rtol=1e-5, atol=3e-5 * float(wanted.detach().abs().max()))


def test_short_and_irregular_texts_ask_the_network_for_each_pair(monkeypatch):
    scheme, encoder = make(), make(causal=False)
    calls = asked(monkeypatch)
    packed = (torch.arange(300) // 100)[None]
    for built, length, facts in ((scheme, 256, {}), (scheme, 300, {"documents": packed}), (encoder, 300, {})):
        built.prepare(built.positions(1, length, phase="test", **facts)).layers[0][0].composition.bias()
        assert calls[0] == length**2
        calls.clear()
    random = make("fire+random")
    random.prepare(random.positions(1, 300, phase="train", rows=(0,))).layers[0][0].composition.bias()
    assert calls
