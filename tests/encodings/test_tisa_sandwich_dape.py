"""Biases against their papers' formulas, pair by pair, in float64."""

import math

import pytest
import torch

import pezoo
from pezoo.contract import Positions, Shape
from pezoo.encodings.bias import dape
from pezoo.encodings.bias.alibi import slopes
from pezoo.registry import entry, make_config

SHAPE = {"d_model": 48, "n_heads": 3, "n_layers": 2, "train_length": 16}


def member(name, n_heads=3, causal=True, **given):
    config, _ = make_config(name, given)
    torch.manual_seed(0)
    return entry(name).cls(Shape(16 * n_heads, n_heads, 2, 16, causal=causal), config)


def composed(text, length, layer=0, randomise=True):
    """A layer's composition under a scheme, with parameters moved off their initial values."""
    scheme = pezoo.create(text, **SHAPE)
    torch.manual_seed(1)
    if randomise:
        for parameter in scheme.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return scheme, scheme.prepare(Positions.build(length, phase="test")).layers[layer][0].composition


# TISA


@pytest.mark.parametrize("offset", ["paper", "code"])
@pytest.mark.parametrize("causal", [True, False])
def test_tisa_is_its_formula(offset, causal):
    ours = member("tisa", offset=offset, causal=causal)
    bias = ours.bias(Positions.build(20, causal=causal, phase="test"))[0]
    a, b, c = (p.detach().double() for p in (ours.amplitudes, ours.sharpnesses, ours.centres))
    for h in range(3):
        for i in (0, 7, 19):
            for j in range(20):
                x = j - i if offset == "paper" else i - j - 1
                expected = sum(a[s, h] * math.exp(-abs(b[s, h]) * (x - c[s, h]) ** 2) for s in range(5))
                assert bias[h, i, j].item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("offset", ["paper", "code"])
def test_tisa_begins_on_the_visible_side_of_a_decoder(offset):
    centres = member("tisa", offset=offset).centres
    assert (centres < 0 if offset == "paper" else centres > 0).all()
    both = member("tisa", offset=offset, causal=False).centres
    assert (both < 0).any()
    assert (both > 0).any()


def test_tisa_has_kernels_for_each_layer_unless_shared():
    assert sum(p.numel() for p in pezoo.create("tisa", **SHAPE).parameters()) == 2 * 3 * 5 * 3
    assert sum(p.numel() for p in pezoo.create("tisa:shared=true:kernels=2", **SHAPE).parameters()) == 3 * 2 * 3


def test_tisa_tends_to_no_bias_far_away():
    far = member("tisa").distance_bias(torch.tensor([1000.0, 65536.0]))
    assert torch.equal(far, torch.zeros(3, 2))


# Sandwich


@pytest.mark.parametrize(
    ("head", "first", "expected"),
    [
        (0, 0, [0, -1.9063, -18.2795, -33.4799, -49.9568]),
        (0, 1, [0, -1.4466, -17.1340, -32.8718, -47.9613]),
        (7, 0, [0, -0.2383, -2.2849, -4.1850, -6.2446]),
    ],
)
def test_sandwich_golden_values(head, first, expected):
    bias = member("sandwich", n_heads=8, first=first).distance_bias(torch.tensor([0.0, 1, 8, 64, 512]))
    torch.testing.assert_close(bias[head], torch.tensor(expected), atol=6e-5, rtol=0)


@pytest.mark.parametrize("width", [16, 128])
def test_sandwich_is_the_product_of_sinusoids(width):
    k = torch.arange(width // 2, dtype=torch.float64)
    angles = torch.arange(300, dtype=torch.float64)[:, None] * 10000 ** (-2 * k / width)
    table = torch.cat((angles.sin(), angles.cos()), dim=-1)
    products = table @ table.T - width / 2
    bias = member("sandwich", n_heads=6, width=width).bias(Positions.build(300, phase="test"))[0]
    for h in range(6):
        torch.testing.assert_close(bias[h].double(), products / (8 * (h + 1) / 6), atol=2e-3, rtol=1e-4)


# DAPE


@pytest.mark.parametrize("base", ["alibi", "kerple", "fire"])
@pytest.mark.parametrize("layer", [0, 1])
def test_dape_is_its_formula(base, layer):
    scheme, composition = composed(f"{base}+dape", 20, layer)
    network = scheme.parts[0].extensions[0][layer]
    torch.manual_seed(2)
    q, k, v = torch.randn(3, 2, 3, 20, 16).unbind()
    ours = scheme.prepare(Positions.build(20, 2, phase="test")).attend(layer, q, k, v, "eager")
    bias = composition.bias().detach().double()[0]
    first, last = network.first.weight.double(), network.last.weight.double()
    expected = torch.empty(2, 3, 20, 20, dtype=torch.float64)
    for b in range(2):
        for i in range(20):
            for j in range(20):
                a = (q[b, :, i].double() * k[b, :, j].double()).sum(-1) / 4
                hidden = first @ torch.cat((a, bias[:, i, j])) + network.first.bias.double()
                hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
                expected[b, :, i, j] = a + bias[:, i, j] + last @ hidden
    hidden = torch.ones(20, 20).triu(1).bool()
    weights = expected.masked_fill(hidden, -torch.inf).softmax(-1)
    torch.testing.assert_close(ours.double(), weights @ v.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("base", ["alibi", "sandwich"])
def test_dape_starts_as_its_base_bit_for_bit(base):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 20, 16).unbind()
    outputs = [pezoo.attend(pezoo.create(s, **SHAPE), q, k, v, backend="eager") for s in (base, f"{base}+dape")]
    assert torch.equal(*outputs)


def test_dape_gives_each_layer_its_network_and_every_parameter_a_gradient():
    scheme, _ = composed("kerple+dape:width=5", 20)
    parameters = dict(scheme.named_parameters())
    assert len([n for n in parameters if ".dape." in n]) == 2 * 3
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 3, 20, 16).unbind()
    prepared = scheme.prepare(Positions.build(20, phase="test"))
    (prepared.attend(0, q, k, v) + prepared.attend(1, q, k, v)).square().sum().backward()
    for name, parameter in parameters.items():
        assert parameter.grad.abs().sum() > 0, name


def test_dape_takes_pairs_in_parts(monkeypatch):
    scheme, _ = composed("alibi+dape", 20)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 20, 16).unbind()
    whole = pezoo.attend(scheme, q, k, v, backend="eager", phase="test")
    monkeypatch.setattr(dape, "PAIRS", 130)
    torch.testing.assert_close(pezoo.attend(scheme, q, k, v, backend="eager", phase="test"), whole)


def test_dape_adapts_a_far_region_with_its_own_bias():
    """Far logits are corrected from the bias at far positions, not from that of the near ones."""
    scheme, _ = composed("alibi+dape+rerope:window=4", 12)
    scheme.eval()
    network = scheme.parts[0].extensions[0][0]
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 3, 12, 16).unbind()
    steps = torch.arange(12)[:, None] - torch.arange(12)
    bias = -torch.tensor(slopes(3)).view(1, 3, 1, 1) * steps.clamp(max=4).abs()
    a = q @ k.transpose(-1, -2) / 4
    logits = a + bias + network.correction(a, bias)
    expected = logits.masked_fill(steps < 0, -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(pezoo.attend(scheme, q, k, v, phase="test"), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("base", ["rope", "nope", "sinusoidal", "shaw"])
def test_dape_without_a_bias_is_refused(base):
    with pytest.raises(pezoo.UserError, match="dape corrects a bias on the logits"):
        pezoo.create(f"{base}+dape", **SHAPE)
    pezoo.create(f"{base}+alibi+dape", **SHAPE)
