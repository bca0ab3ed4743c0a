"""EABF: base and temperature in float64, layer by layer."""

import cmath
import math

import pytest
import torch

import pezoo
from helpers import far_from_start, vectors
from pezoo import UserError

D, L = 6, 19
SIZES = {"d_model": D, "n_heads": 1, "n_layers": 4, "train_length": 5}


def sigma(i, layer, unscaled=2, length=5):
    return 1.0 if layer < unscaled else max(1.0, math.log(i + 1) / math.log(length))


@pytest.mark.parametrize(("setting", "unscaled"), [("", 2), (":unscaled=0", 0), (":unscaled=3", 3)])
def test_logits_are_turned_by_the_new_base_and_scaled_from_a_layer_on(setting, unscaled):
    q, k, _ = vectors(3, 1, 1, L, D).unbind()
    scheme = pezoo.create(f"rope+eabf{setting}", **SIZES)
    w = [500_000 ** (-2 * c / D) for c in range(D // 2)]
    for layer in range(4):
        came = scheme.logits(q, k, layer=layer, phase="test")[0, 0]
        for i in range(L):
            for j in range(i + 1):
                a, b = (t.double().view(D // 2, 2).tolist() for t in (q[0, 0, i], k[0, 0, j]))
                turned = [
                    complex(*a[c]) * complex(*b[c]).conjugate() * cmath.exp(1j * (i - j) * w[c]) for c in range(D // 2)
                ]
                expected = sigma(i, layer, unscaled) * sum(z.real for z in turned) / D**0.5
                assert came[i, j].item() == pytest.approx(expected, abs=1e-5)


def test_temperatures_of_the_published_length():
    """ln(i + 1) / ln 4096 is 13/12 at 8192 tokens, 14/12 at 16384."""
    scheme = pezoo.create("rope+eabf", **SIZES | {"train_length": 4096})
    for layer, expected in ((1, [1, 1, 1]), (2, [1, 13 / 12, 14 / 12]), (3, [1, 13 / 12, 14 / 12])):
        found = scheme.temperature(16384, layer=layer)
        assert found[[4095, 8191, 16383]].tolist() == pytest.approx(expected, abs=1e-6)


def test_training_is_that_of_rope():
    q, k, _ = vectors(3, 1, 1, L, D).unbind()
    plain, scheme = pezoo.create("rope", **SIZES), pezoo.create("rope+eabf", **SIZES)
    assert torch.equal(scheme.logits(q, k, layer=3, phase="train"), plain.logits(q, k, layer=3, phase="train"))


def test_the_temperature_counts_within_the_document_and_first_layers_within_the_scheme():
    documents = torch.tensor([[0] * 8 + [1] * 11])
    scheme = pezoo.create({"layers": ["rope", "rope+eabf:unscaled=1"]}, **SIZES)
    positions = scheme.positions(1, L, phase="test", documents=documents)
    places = [*range(8), *range(11)]
    for layer, scaled in enumerate((False, False, False, True)):
        expected = [sigma(i, 0, 0 if scaled else 1) for i in places]
        assert scheme.temperature(L, layer=layer, positions=positions).tolist() == pytest.approx(expected)


def test_token_by_token_is_the_full_pass():
    config = {"scheme": "rope+eabf:unscaled=1", "vocab_size": 9, "d_model": 12, "n_heads": 3, "n_layers": 3}
    model = far_from_start(pezoo.model.transformer.TransformerConfig(**config, train_length=5))
    ids = torch.arange(2 * L).view(2, L) % 9
    cache = model.cache(2, L)
    with torch.no_grad():
        came = torch.cat([model(piece, cache=cache) for piece in ids.split(1, 1)], 1)
        torch.testing.assert_close(came, model(ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("other", ["abf", "logn"])
def test_it_does_not_join_what_it_is_made_of(other):
    for scheme in (f"rope+eabf+{other}", f"rope+{other}+eabf"):
        with pytest.raises(UserError, match=f"beside {other}, eabf would do twice what {other} does"):
            pezoo.create(scheme, **SIZES)
    with pytest.raises(UserError, match="eabf does not fit alibi: it needs frequencies"):
        pezoo.create("alibi+eabf", **SIZES)
