"""RoPE and its variants against LLaMA's rotation, the paper's formula in float64, and golden values."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import pezoo
from helpers import member
from pezoo.contract import Positions
from pezoo.encodings.relative._rotary import half_turns, rotary_frequencies, turn_halves


def build(text, head_dim=8, n_heads=2, train_length=16):
    return pezoo.create(text, d_model=n_heads * head_dim, n_heads=n_heads, n_layers=1, train_length=train_length)


def rotated(scheme, q, k, positions=None):
    """q and k as attention uses them."""
    positions = positions or Positions.build(q.shape[-2], phase="test")
    return scheme.prepare(positions).layers[0][0].composition.rotate(q, k)


def by_hand(x, coordinates, frequencies, half):
    """The paper's rotation of (H, L, d), one pair of channels at a time, in float64."""
    out, n = x.double().clone(), len(frequencies)
    for i, p in enumerate(coordinates):
        for k, w in enumerate(frequencies):
            a, b = (k, k + n) if half else (2 * k, 2 * k + 1)
            cos, sin = math.cos(p * w), math.sin(p * w)
            out[:, i, a] = x[:, i, a] * cos - x[:, i, b] * sin
            out[:, i, b] = x[:, i, a] * sin + x[:, i, b] * cos
    return out


layouts = pytest.mark.parametrize("pairing", ["interleaved", "half"])


@layouts
@pytest.mark.parametrize(("fraction", "kept"), [(1, 1), (0.5, 1), (0.25, 1), (1, 0.75), (1, 0.5), (0.75, 0.5), (1, 0)])
def test_rope_is_its_formula(pairing, fraction, kept):
    scheme = build(f"rope:pairing={pairing}:fraction={fraction}:kept={kept}:base=100", 16)
    width = int(16 * fraction)
    frequencies = [100 ** (-2 * k / width) for k in range(width // 2)]
    frequencies = [w if k < kept * width / 2 else 0 for k, w in enumerate(frequencies)]  # whole numbers of pairs
    q, k = torch.randn(2, 1, 2, 40, 16)
    q_turned, k_turned = rotated(scheme, q, k)
    for ours, x in ((q_turned, q), (k_turned, k)):
        expected = by_hand(x[0], range(40), frequencies, pairing == "half")
        torch.testing.assert_close(ours[0].double(), expected, rtol=0, atol=2e-5)
        assert torch.equal(ours[..., width:], x[..., width:])


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 32), st.floats(2.0, 1e6), st.integers(1, 300), st.integers(0, 10**6))
def test_half_split_is_that_of_llama(pairs, base, length, seed):
    pytest.importorskip("transformers", reason="parity needs transformers")
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 1, 2, length, 2 * pairs, generator=generator)
    angles = torch.arange(length)[:, None] * rotary_frequencies(2 * pairs, base)
    angles = torch.cat((angles, angles), -1)[None]
    expected = apply_rotary_pos_emb(q, k, angles.cos(), angles.sin())
    ours = rotated(build(f"rope:pairing=half:base={base}", 2 * pairs), q, k)
    for mine, their in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, their, rtol=0, atol=1e-4)


def test_pairings_are_one_family_up_to_the_order_of_channels():
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    q, k = torch.randn(2, 1, 2, 20, 8)
    interleaved = rotated(build("rope"), q, k)
    half = rotated(build("rope:pairing=half"), q[..., order], k[..., order])
    for a, b in zip(interleaved, half, strict=True):
        torch.testing.assert_close(a[..., order], b)


@pytest.mark.parametrize("width", [8, 6])
@pytest.mark.parametrize("learned", [False, True])
def test_halves_have_the_gradients_of_the_formula(width, learned):
    """To x, twice over, and to angles that are learned; x lies in memory as a projection leaves it."""
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64).transpose(1, 2).requires_grad_()
    angles = torch.randn(1, 5, width // 2, requires_grad=learned)
    given = [x, angles] if learned else [x]

    def formula(x, angles):
        n = width // 2
        cos, sin = angles.double().cos()[:, None], angles.double().sin()[:, None]
        a, b, rest = x[..., :n], x[..., n:width], x[..., width:]
        return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)

    def gradients(turned):
        first = torch.autograd.grad(turned.sin().square().sum(), given, create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), given)]

    ours, expected = turn_halves(x, half_turns(angles)), formula(x, angles)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    for mine, their in zip(gradients(ours), gradients(expected), strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 20).map(lambda n: n / 20), st.sampled_from([8, 16, 24, 48, 64, 96, 128]), st.floats(10, 1e6))
@example(0.3, 64, 1e4)
@example(0.9, 48, 1e4)
@example(0.9, 64, 1e4)
def test_kept_is_the_proportional_rotation_of_transformers(kept, head_dim, base):
    transformers = pytest.importorskip("transformers", reason="parity needs transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_type": "proportional", "rope_theta": base, "partial_rotary_factor": kept}
    config = transformers.LlamaConfig(
        hidden_size=head_dim, num_attention_heads=1, head_dim=head_dim, rope_parameters=rope
    )
    expected, _ = ROPE_INIT_FUNCTIONS["proportional"](config, torch.device("cpu"))
    ours = build(f"rope:kept={kept}:base={base}", head_dim).members[0].inv_freq()
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)


def test_golden_frequencies():
    assert member(build("rope"), "rope").inv_freq().tolist() == pytest.approx([1, 0.1, 0.01, 0.001])
    wavelengths = 2 * math.pi / rotary_frequencies(64, 10000).double()
    assert wavelengths[[0, -1]].tolist() == pytest.approx([6.2832, 47117.24], rel=1e-5)


def test_halves_are_turned_for_many_models_at_once():
    """`vmap` over gradients, as for many seeds in one pass."""
    x, by = torch.randn(3, 2, 2, 5, 8), half_turns(torch.randn(1, 5, 4))
    gradient = torch.func.grad(lambda one: turn_halves(one, by).pow(3).sum())
    torch.testing.assert_close(torch.func.vmap(gradient)(x), torch.stack([gradient(one) for one in x]))


@pytest.mark.parametrize(("name", "scheme"), [("partial_rope", "rope:fraction=0.25"), ("p_rope", "rope:kept=0.75")])
def test_literature_names(name, scheme):
    assert pezoo.parse(name) == pezoo.parse(scheme)


def test_partial_rotation_spreads_frequencies_over_what_turns():
    partial = member(build("partial_rope", 32), "rope").inv_freq()
    assert torch.equal(partial, rotary_frequencies(8, 10000))
    kept = member(build("p_rope", 32), "rope").inv_freq()
    assert torch.equal(kept[:12], rotary_frequencies(32, 10000)[:12])
    assert not kept[12:].any()


@layouts
def test_products_depend_on_distance_and_norms_stay(pairing):
    scheme = build(f"rope:pairing={pairing}")
    q, k = torch.randn(2, 1, 2, 1, 8).expand(-1, -1, -1, 50, -1)  # one vector at every position
    turned_q, turned_k = rotated(scheme, q, k)
    logits = (turned_q @ turned_k.mT)[0]
    for distance in (0, 1, 7, 40):
        line = logits.diagonal(-distance, 1, 2)
        torch.testing.assert_close(line, line[:, :1].expand_as(line), rtol=0, atol=1e-4)
    assert logits.std() > 0.1
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm(dim=-1))


def test_one_query_turns_by_its_own_position():
    q, k = torch.randn(2, 1, 2, 30, 8)
    full_q, full_k = rotated(build("rope"), q, k)
    last = Positions.build(30, phase="test").slice(29, 30)
    one_q, all_k = rotated(build("rope"), q[:, :, -1:], k, last)
    torch.testing.assert_close(one_q, full_q[:, :, -1:])
    assert torch.equal(all_k, full_k)


def test_the_dtype_is_kept_and_the_angle_is_not_rounded():
    q = torch.randn(1, 2, 3, 8, dtype=torch.bfloat16)
    far = Positions.build(3, phase="test").map(lambda p, index: p + 65533)
    turned, _ = rotated(build("rope"), q, q, far)
    assert turned.dtype == torch.bfloat16
    frequencies = [10000 ** (-2 * k / 8) for k in range(4)]
    expected = by_hand(q[0], [65533, 65534, 65535], frequencies, half=False)
    torch.testing.assert_close(turned[0].double(), expected, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("text", ["rope:fraction=0.1", "rope"])
def test_a_head_without_a_pair_is_refused(text):
    with pytest.raises(pezoo.UserError, match="rope turns pairs of channels; head_dim = 1 leaves none to turn"):
        build(text, 1)
