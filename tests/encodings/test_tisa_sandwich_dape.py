"""Biases against their papers' formulas, pair by pair, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

import pezoo
from pezoo import testing
from pezoo.contract import Positions, Shape
from pezoo.encodings.bias import dape
from pezoo.encodings.bias.alibi import slopes
from pezoo.registry import entry, make_config
from pezoo.testing.properties import CHECKS

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


def content(composition, q, k):
    """q_i . k_j / sqrt(d), turned or not, (B, H, L, L), float64."""
    q, k = composition.rotate(q, k)
    return q.double() @ k.double().mT / 4


@pytest.mark.parametrize("text", ["alibi+dape", "kerple+dape", "fire+dape", "alibi+dape:reads=sum"])
@pytest.mark.parametrize("base", ["", "rope", "nope"])
@pytest.mark.parametrize("layer", [0, 1])
def test_dape_is_its_formula(text, base, layer):
    if base == "nope":
        text = "nope+dape:reads=sum"
    elif base:
        text = text.replace("alibi", "rope") if "sum" in text else f"rope+{text}"
    scheme, composition = composed(text, 20, layer)
    network = scheme.parts[0].extensions[0][layer]
    torch.manual_seed(2)
    q, k, v = torch.randn(3, 2, 3, 20, 16).unbind()
    ours = scheme.prepare(Positions.build(20, 2, phase="test")).attend(layer, q, k, v, "eager")
    content_logits = content(composition, q, k)
    bias = torch.zeros(1, 3, 20, 20) if composition.bias() is None else composition.bias().detach()
    first, last = network.first.weight.double(), network.last.weight.double()
    expected = torch.empty(2, 3, 20, 20, dtype=torch.float64)
    for b in range(2):
        for i in range(20):
            for j in range(20):
                a, base_bias = content_logits[b, :, i, j], bias[0, :, i, j].double()
                read = a + base_bias if "sum" in text else torch.cat((a, base_bias))
                hidden = first @ read + network.first.bias.double()
                hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
                expected[b, :, i, j] = a + base_bias + last @ hidden
    hidden = torch.ones(20, 20).triu(1).bool()
    weights = expected.masked_fill(hidden, -torch.inf).softmax(-1)
    torch.testing.assert_close(ours.double(), weights @ v.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("base", ["alibi", "fire", "rope+kerple", "rope", "nope"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_dape_v2_is_the_released_convolution_of_a_longer_text(base, kernel):
    """The released code changes the last queries once the text goes on: what it gives then is expected of all."""
    reads, length, longer = "both" if base not in ("rope", "nope") else "sum", 20, 24
    scheme, composition = composed(f"{base}+dape_v2:kernel={kernel}:width=5:reads={reads}", longer)
    network = scheme.parts[0].extensions[0][0]
    torch.manual_seed(2)
    q, k, v = torch.randn(3, 2, 3, longer, 16).unbind()
    total = read = content(composition, q, k)
    if (bias := composition.bias()) is not None:
        total = total + bias.detach().double()
        read = torch.cat((read, bias.detach().double().expand(2, -1, -1, -1)), dim=1)
    first, last = network.first.weight.double(), network.last.weight.double()
    hidden = F.conv2d(read.tril(), first, network.first.bias.double(), padding=(0, kernel // 2))
    logits = total + F.conv2d(F.leaky_relu(hidden), last, padding=(0, kernel // 2))
    ahead = torch.ones(longer, longer).triu(1).bool()
    expected = (logits.masked_fill(ahead, -torch.inf).softmax(-1) @ v.double())[:, :, :length]
    for backend in ("eager", "chunked"):
        ours = pezoo.attend(scheme.eval(), *(x[:, :, :length] for x in (q, k, v)), backend=backend, phase="test")
        torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-5)


def test_dape_v2_with_a_kernel_of_one_is_dape():
    schemes = [composed(f"kerple+{name}", 20)[0] for name in ("dape", "dape_v2:kernel=1")]
    there, here = (s.parts[0].extensions[0] for s in schemes)
    for one, other in zip(there, here, strict=True):
        for name in ("first.weight", "first.bias", "last.weight"):
            source = one.get_parameter(name).data
            other.get_parameter(name).data = source.reshape(other.get_parameter(name).shape)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 20, 16).unbind()
    torch.testing.assert_close(*(pezoo.attend(s, q, k, v, phase="test") for s in schemes), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.ci(one_in=4)
@pytest.mark.parametrize("text", ["rope+dape:reads=sum", "nope+dape:reads=sum", "rope+dape_v2:reads=sum"])
@pytest.mark.parametrize("check", [name for name, check in CHECKS.items() if not check.slow and not check.once])
def test_dape_without_a_bias_passes_the_kit(text, check):
    """The kit's own hosts of it have a bias."""
    outcome = testing.run(testing.Subject(entry(text.split("+")[1].split(":")[0]), pezoo.parse(text)), check)
    assert outcome.status in ("pass", "skip"), outcome


@pytest.mark.parametrize("name", ["dape", "dape_v2"])
@pytest.mark.parametrize("base", ["alibi", "sandwich"])
def test_dape_starts_as_its_base_bit_for_bit(base, name):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 20, 16).unbind()
    outputs = [pezoo.attend(pezoo.create(s, **SHAPE), q, k, v, backend="eager") for s in (base, f"{base}+{name}")]
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


@pytest.mark.parametrize("name", ["dape", "dape_v2"])
def test_dape_takes_pairs_in_parts(name, monkeypatch):
    scheme, _ = composed(f"alibi+{name}", 20)
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
    logits = a + bias + network.correction([a, bias], Positions.build(12, phase="test"))
    expected = logits.masked_fill(steps < 0, -torch.inf).softmax(-1) @ v
    torch.testing.assert_close(pezoo.attend(scheme, q, k, v, phase="test"), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["dape", "dape_v2"])
@pytest.mark.parametrize("base", ["rope", "nope", "sinusoidal", "shaw"])
def test_dape_without_a_bias_says_what_to_type(base, name):
    with pytest.raises(pezoo.UserError, match=r"no bias for the network to read .*; add the setting reads=sum"):
        pezoo.create(f"{base}+{name}", **SHAPE)
    pezoo.create(f"{base}+alibi+{name}", **SHAPE)
    pezoo.create(f"{base}+{name}:reads=sum", **SHAPE)


def test_dape_v2_refuses_an_even_kernel():
    with pytest.raises(pezoo.UserError, match="dape_v2:kernel must be odd, such as 3, not 2"):
        pezoo.create("alibi+dape_v2:kernel=2", **SHAPE)


@pytest.mark.parametrize("text", ["dape+dape_v2", "dape_v2+dape", "dape:reads=sum+dape_v2"])
def test_a_second_network_finds_no_bias_to_read(text):
    second = text.split("+")[1]
    with pytest.raises(pezoo.UserError, match=f"{second} finds no bias apart .* give {second} the setting reads=sum"):
        pezoo.create(f"alibi+{text}", **SHAPE)
    pezoo.create(f"alibi+{text}:reads=sum", **SHAPE)
    pezoo.create(f"alibi+{text.replace('+', ':at=train+')}:at=test", **SHAPE)
