"""NoPE, sinusoids and learned tables against the papers' formulas in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pezoo
from helpers import member
from pezoo.contract import Positions, Undefined


def build(text, d_model=16, train_length=16, causal=True):
    sizes = {"d_model": d_model, "n_heads": 1, "n_layers": 1, "train_length": train_length}
    return pezoo.create(text, **sizes, causal=causal)


def embed(scheme, x, positions):
    return scheme.prepare(positions).embed(x).detach()


def sinusoid(coordinates, width, base=10000.0):
    """The paper's table, one number at a time."""
    table = torch.empty(len(coordinates), width, dtype=torch.float64)
    for i, p in enumerate(coordinates):
        for c in range(width):
            angle = p / base ** (c // 2 * 2 / width)
            table[i, c] = math.cos(angle) if c % 2 else math.sin(angle)
    return table


# NoPE


def test_nope_is_plain_attention():
    q, k, v = torch.randn(3, 2, 1, 9, 16)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(pezoo.attend(build("nope"), q, k, v, phase="test"), expected)
    x = torch.randn(2, 9, 16)
    assert torch.equal(embed(build("nope"), x, Positions.build(9, phase="test")), x)


def test_nope_in_an_encoder_tells_no_order():
    q, k, v = torch.randn(3, 1, 1, 9, 16)
    order = torch.randperm(9)
    scheme = build("nope", causal=False)
    out = pezoo.attend(scheme, q, k, v, phase="test")
    permuted = pezoo.attend(scheme, *(t[:, :, order] for t in (q, k, v)), phase="test")
    torch.testing.assert_close(permuted, out[:, :, order])


def test_nope_counts_the_tokens_before_in_a_decoder():
    """With one special first token and equal attention, its share is 1 / (i + 1)."""
    q, k = torch.zeros(2, 1, 1, 50, 16)
    v = torch.zeros(1, 1, 50, 16)
    v[:, :, 0] = 1
    out = pezoo.attend(build("nope"), q, k, v, phase="test")[0, 0, :, 0]
    torch.testing.assert_close(out, 1 / torch.arange(1.0, 51.0))


# Sinusoids


@pytest.mark.parametrize("width", [2, 7, 16])
@pytest.mark.parametrize("base", [10000, 50])
def test_sinusoidal_is_its_formula(width, base):
    x = torch.randn(2, 40, width)
    ours = embed(build(f"sinusoidal:base={base}", width), x, Positions.build(40, phase="test"))
    expected = math.sqrt(width) * x.double() + sinusoid(range(40), width, base)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 200), st.integers(1, 40))
def test_sinusoids_are_those_of_transformers(length, pairs):
    """GPT-J's table, which holds all sines, then all cosines, where ours alternate."""
    library = pytest.importorskip("transformers.models.gptj.modeling_gptj", reason="parity needs transformers")
    theirs = library.create_sinusoidal_positions(length, 2 * pairs).unflatten(1, (2, pairs)).transpose(1, 2).flatten(1)
    ours = embed(
        build("sinusoidal", 2 * pairs), torch.zeros(1, length, 2 * pairs), Positions.build(length, phase="test")
    )[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)


def test_sinusoids_of_equal_distance_have_equal_products():
    table = embed(build("sinusoidal", 32), torch.zeros(1, 60, 32), Positions.build(60, phase="test"))[0]
    products = table @ table.T
    for distance in (0, 1, 10, 50):
        line = products.diagonal(distance)
        torch.testing.assert_close(line, line[:1].expand_as(line), rtol=0, atol=1e-4)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 100), st.integers(1, 100), st.sampled_from(["length", "beyond"]))
def test_dynamic_sinusoidal_reads_each_position_as_a_share_of_the_length(length, train_length, norm):
    scheme = build(f"dynamic_sinusoidal:norm={norm}", 6, train_length)
    ours = embed(scheme, torch.zeros(1, length, 6), Positions.build(length, phase="test"))[0]
    ratio = length / train_length if norm == "length" else max(1, length / train_length)
    expected = sinusoid([p / ratio for p in range(length)], 6)
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=2e-5)


def test_dynamic_sinusoidal_is_the_articles_formula():
    """sin((p / T) 2 pi / f) with f_k = 2 pi base^(2k/D) / L."""
    length, train_length, width = 48, 16, 6
    scheme = build("dynamic_sinusoidal", width, train_length)
    ours = embed(scheme, torch.zeros(1, length, width), Positions.build(length, phase="test"))
    for k in range(width // 2):
        f = 2 * math.pi * 10000 ** (2 * k / width) / train_length
        expected = [math.sin(p / length * 2 * math.pi / f) for p in range(length)]
        torch.testing.assert_close(ours[0, :, 2 * k].double(), torch.tensor(expected).double(), rtol=0, atol=1e-5)


def test_dynamic_sinusoidal_at_the_training_length_is_sinusoidal():
    x = torch.randn(1, 16, 16)
    for declared, same in ((16, True), (32, False)):
        positions = Positions.build(16, declared=declared, phase="test")
        equal = torch.equal(embed(build("dynamic_sinusoidal"), x, positions), embed(build("sinusoidal"), x, positions))
        assert equal is same


def test_dynamic_sinusoidal_beyond_training_is_interpolation():
    x = torch.randn(1, 40, 16)
    ours = embed(build("dynamic_sinusoidal"), x, Positions.build(40, phase="test"))
    torch.testing.assert_close(
        ours, embed(build("sinusoidal+pi"), x, Positions.build(40, phase="test")), rtol=0, atol=1e-5
    )


def test_rows_of_different_lengths_have_their_own_phases():
    declared = torch.tensor([16, 20, 64])
    x = torch.randn(3, 12, 16)
    for text in ("dynamic_sinusoidal", "dynamic_sinusoidal:norm=beyond", "sinusoidal+pi", "sinusoidal+ntk"):
        together = embed(build(text), x, Positions.build(12, 3, declared=declared, phase="test"))
        for row, length in enumerate(declared.tolist()):
            alone = embed(build(text), x[row : row + 1], Positions.build(12, declared=length, phase="test"))
            torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)


# Learned tables


def test_learned_adds_the_row_of_each_position():
    scheme = build("learned")
    table = member(scheme, "learned").table.detach()
    x = torch.randn(2, 10, 16)
    assert torch.equal(embed(scheme, x, Positions.build(10, phase="test")), x + table[:10])
    assert table.std().item() == pytest.approx(0.02, rel=0.2)


def test_learned_is_linear_between_rows():
    scheme = build("learned+pi:factor=4")
    table = member(scheme, "learned").table.detach().double()
    ours = embed(scheme, torch.zeros(1, 64, 16), Positions.build(64, phase="test"))[0]
    for i in range(64):
        low, share = divmod(i / 4, 1)
        low, high = int(low), min(int(low) + 1, 15)
        expected = (1 - share) * table[low] + share * table[high]
        torch.testing.assert_close(ours[i].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "length", "coordinate"),
    [("learned", 17, "16"), ("learned:max_position=5", 6, "5"), ("learned+shift:at=test:test_offset=9", 8, "16")],
)
def test_learned_is_undefined_past_its_table(text, length, coordinate):
    embed(build(text), torch.zeros(1, length - 1, 16), Positions.build(length - 1, phase="test"))
    with pytest.raises(Undefined, match=f"coordinate {coordinate} has none"):
        embed(build(text), torch.zeros(1, length, 16), Positions.build(length, phase="test"))


def test_a_scheme_and_a_body_of_one_seed_do_not_begin_alike():
    model = pezoo.Transformer({"scheme": "learned", "d_model": 16, "n_heads": 2})
    table, embedding = member(model.scheme, "learned").table, model.embedding.weight
    both = torch.stack((table.flatten(), embedding.flatten()[: table.numel()]))
    assert abs(torch.corrcoef(both.detach())[0, 1]) < 0.2
