"""PI, NTK, dynamic NTK, NTK by parts and YaRN against transformers, the papers' formulas, and golden values."""

import math

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import pezoo
from helpers import transformers_frequencies
from pezoo.contract import Positions
from pezoo.encodings.interpolation.yarn import kept_share
from pezoo.encodings.relative._rotary import rotary_frequencies


def build(text, head_dim=64, train_length=512):
    return pezoo.create(text, d_model=head_dim, n_heads=1, n_layers=1, train_length=train_length).eval()


def part(scheme, declared):
    """The encoding and what it reads at a declared length."""
    return scheme.prepare(Positions.build(1, declared=declared, phase="test")).layers[0][0].composition.base[0]


def frequencies(text, declared, head_dim=64, train_length=512):
    return part(build(text, head_dim, train_length), declared).positions.inv_freq[0]


def theirs(kind, head_dim, base, train_length, length, partial=1.0, **parameters):
    rope = {"rope_theta": base, "partial_rotary_factor": partial}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = train_length
    return transformers_frequencies(kind, head_dim, train_length, length, **rope | parameters)


head_dims = st.integers(2, 64).map(lambda n: 2 * n)
bases = st.floats(1e2, 1e6)
train_lengths = st.integers(32, 8192)
factors = st.floats(1.0, 32.0)
partials = st.sampled_from([1.0, 0.5])


# Transformers


@settings(deadline=None, max_examples=20)
@given(head_dims, bases, train_lengths, factors)
def test_pi_is_linear_scaling(head_dim, base, train_length, factor):
    expected, _ = theirs("linear", head_dim, base, train_length, 4 * train_length, factor=factor)
    scheme = build(f"rope:base={base}+pi:factor={factor}", head_dim, train_length)
    rope = part(scheme, 4 * train_length)
    turns, _ = rope.encoding.prepare(
        rope.positions.replace(query=Positions.build(40, phase="test").scaled(1 / factor).query)
    )
    angles = torch.arange(40)[:, None] * expected
    torch.testing.assert_close(turns[0, 0], torch.polar(torch.ones_like(angles), angles), rtol=0, atol=1e-4)


@settings(deadline=None, max_examples=20)
@given(head_dims.filter(lambda d: d >= 8), bases, train_lengths, st.floats(1, 8), st.floats(0.5, 20), partials)
def test_dynamic_ntk_is_that_of_transformers(head_dim, base, train_length, strength, times, partial):
    assume(head_dim * partial % 2 == 0)
    length = math.ceil(times * train_length)
    expected, _ = theirs("dynamic", head_dim, base, train_length, length, partial, factor=strength)
    text = f"rope:base={base}:fraction={partial}+dynamic_ntk:strength={strength}"
    torch.testing.assert_close(frequencies(text, length, head_dim, train_length), expected, rtol=1e-4, atol=0)


@settings(deadline=None, max_examples=30)
@given(head_dims.filter(lambda d: d >= 8), bases, train_lengths, factors, st.floats(8, 64), st.floats(0.5, 4), partials)
def test_yarn_is_that_of_transformers(head_dim, base, train_length, factor, fast, slow, partial):
    width = int(head_dim * partial)
    assume(width % 2 == 0)
    # The ramp ends at whole pairs; where rounding in float32 may choose another there is nothing to compare.
    ends = [width * math.log(train_length / (2 * math.pi * turns)) / (2 * math.log(base)) for turns in (fast, slow)]
    assume(all(abs(end - round(end)) > 1e-3 for end in ends) and ends[1] > 0)
    beta = {"beta_fast": fast, "beta_slow": slow}
    expected, m = theirs("yarn", head_dim, base, train_length, 9, partial, factor=factor, **beta)
    text = f"rope:base={base}:fraction={partial}+yarn:factor={factor}:beta_fast={fast}:beta_slow={slow}"
    torch.testing.assert_close(frequencies(text, 9, head_dim, train_length), expected, rtol=1e-4, atol=0)
    composition = build(text, head_dim, train_length).prepare(Positions.build(9, phase="test")).layers[0][0].composition
    assert composition.sigma() == pytest.approx(m**2, rel=1e-6)
    parts = text.replace("+yarn", "+ntk_by_parts")
    torch.testing.assert_close(frequencies(parts, 9, head_dim, train_length), expected, rtol=1e-4, atol=0)


@settings(deadline=None, max_examples=30)
@given(head_dims.filter(lambda d: d >= 8), bases, train_lengths, factors, st.floats(8, 64), st.floats(0.5, 4), partials)
@example(64, 150_000.0, 4096, 32.0, 32.0, 1.0, 1.0)  # gpt-oss
def test_yarn_untruncated_is_that_of_transformers(head_dim, base, train_length, factor, fast, slow, partial):
    width = int(head_dim * partial)
    low, high = (width * math.log(train_length / (2 * math.pi * n)) / (2 * math.log(base)) for n in (fast, slow))
    assume(width % 2 == 0 and high > max(low, 0) + 0.1)  # else their ramp ends before it begins
    beta = {"beta_fast": fast, "beta_slow": slow}
    expected, _ = theirs("yarn", head_dim, base, train_length, 9, partial, factor=factor, truncate=False, **beta)
    for name in ("yarn", "ntk_by_parts"):
        text = f"rope:base={base}:fraction={partial}+{name}:factor={factor}:beta_fast={fast}:beta_slow={slow}"
        ours = frequencies(f"{text}:truncate=false", 9, head_dim, train_length)
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=0)


@settings(deadline=None, max_examples=20)
@given(factors, st.floats(0.1, 3.0))
def test_an_attention_factor_is_that_of_transformers(factor, given_factor):
    _, m = theirs("yarn", 64, 1e4, 512, 9, factor=factor, attention_factor=given_factor)
    composition = build(f"rope+yarn:factor={factor}:attention_factor={given_factor}").prepare(
        Positions.build(9, phase="test")
    )
    assert composition.layers[0][0].composition.sigma() == pytest.approx(m**2, rel=1e-6)


@settings(deadline=None, max_examples=20)
@given(factors, st.floats(0.1, 2.0), st.floats(0.1, 2.0))
@example(40.0, 1.0, 1.0)  # DeepSeek-V3
@example(40.0, 0.707, 0.707)  # DeepSeek-V2
def test_mscale_is_that_of_deepseek(factor, mscale, mscale_all_dim):
    module = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3", reason="needs transformers")
    rope = {"rope_type": "yarn", "factor": factor, "mscale": mscale, "mscale_all_dim": mscale_all_dim}
    _, tables = theirs("yarn", 64, 1e4, 512, 9, **{k: v for k, v in rope.items() if k != "rope_type"})
    scale = module.yarn_apply_mscale(rope, 64**-0.5)  # of the softmax; the tables multiply q and k
    for name in (f"yarn:factor={factor}", "dynamic_yarn"):
        scheme = build(f"rope+{name}:mscale={mscale}")
        positions = Positions.build(1, declared=torch.tensor([512 * factor]), phase="test")
        composition = scheme.prepare(positions).layers[0][0].composition
        came = float(torch.as_tensor(composition.sigma())) * composition.scale
        assert came == pytest.approx(tables**2 * scale, rel=1e-5)


def test_two_temperatures_are_refused():
    with pytest.raises(pezoo.UserError, match="mscale does nothing beside it"):
        build("rope+yarn:attention_factor=1.2:mscale=0.5")


# Formulas


def test_ntk_is_rope_of_the_larger_base():
    for factor in (2, 4, 7.5):
        expected = rotary_frequencies(64, 10000 * factor ** (64 / 62))
        torch.testing.assert_close(frequencies(f"rope+ntk:factor={factor}", 9), expected, rtol=1e-6, atol=0)


def test_ntk_keeps_the_fastest_and_slows_the_slowest_by_the_factor():
    ratio = frequencies("rope", 9).double() / frequencies("rope+ntk:factor=8", 9).double()
    assert ratio[[0, -1]].tolist() == pytest.approx([1, 8], rel=1e-6)
    assert (ratio.diff() > 0).all()


def test_by_parts_with_a_ramp_in_turns_is_the_papers():
    length, low, high, factor = 512, 1, 32, 8
    expected = []
    for w in (10000 ** (-2 * k / 64) for k in range(32)):
        rho = length * w / (2 * math.pi)
        gamma = min(1, max(0, (rho - low) / (high - low)))
        expected.append((1 - gamma) * w / factor + gamma * w)
    ours = frequencies(f"rope+ntk_by_parts:factor={factor}:ramp=turns", 9)
    torch.testing.assert_close(ours.double(), torch.tensor(expected).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("ramp", ["index", "turns"])
def test_yarn_keeps_fast_pairs_and_slows_slow_ones(ramp):
    ratio = frequencies(f"rope+yarn:factor=8:ramp={ramp}", 9) / frequencies("rope", 9)
    assert ratio[0] == 1
    assert ratio[-1] == pytest.approx(1 / 8)
    assert (ratio.diff() <= 1e-7).all()


def test_yarn_sharpens_all_of_the_product():
    for head_dim, fraction in ((16, 1), (16, 0.5)):
        text = f"rope:fraction={fraction}+"
        q, k, v = torch.randn(3, 1, 1, 9, head_dim)
        yarn = pezoo.attend(build(f"{text}yarn:factor=8", head_dim), q, k, v, phase="test")
        sharp = q * (0.1 * math.log(8) + 1) ** 2
        parts = pezoo.attend(build(f"{text}ntk_by_parts:factor=8", head_dim), sharp, k, v, phase="test")
        torch.testing.assert_close(yarn, parts)


def test_pi_reads_every_position_at_its_share():
    positions = build("rope+pi", 8, 16).parts[0].positions_at(Positions.build(64, phase="test"), 0)
    assert positions.query[0].tolist() == [i / 4 for i in range(64)]
    assert positions.spacing == (0, 0.25)


@pytest.mark.parametrize("rule", ["ntk", "dynamic_ntk", "ntk_by_parts", "yarn"])
def test_rules_leave_training_lengths_alone(rule):
    for length in (1, 511, 512):
        torch.testing.assert_close(frequencies(f"rope+{rule}", length), frequencies("rope", length), rtol=1e-6, atol=0)
    changed = frequencies(f"rope+{rule}", 513) != frequencies("rope", 513)
    assert changed.any()


@pytest.mark.parametrize("rule", ["pi", "ntk", "ntk_by_parts", "yarn"])
def test_an_unset_factor_is_how_far_the_length_goes(rule):
    q, k, v = torch.randn(3, 1, 1, 40, 8)
    unset, fixed = (build(f"rope+{rule}{setting}", 8, 16) for setting in ("", ":factor=2.5"))
    torch.testing.assert_close(pezoo.attend(unset, q, k, v, phase="test"), pezoo.attend(fixed, q, k, v, phase="test"))


def test_rules_apply_in_the_order_they_are_written():
    ntk = frequencies("rope+ntk:factor=4", 9)[None]
    torch.testing.assert_close(
        frequencies("rope+ntk:factor=4+ntk_by_parts:factor=2", 9),
        torch.lerp(ntk / 2, ntk, kept_share(ntk, 512, 1, 32, "index"))[0],
    )
    other = frequencies("rope+ntk_by_parts:factor=2+ntk:factor=4", 9)
    assert not torch.allclose(other, frequencies("rope+ntk:factor=4+ntk_by_parts:factor=2", 9), rtol=1e-3)


# Golden values


@pytest.mark.parametrize(("factor", "base"), [(2, 20452.23), (4, 41829.37), (8, 85550.38)])
def test_ntk_golden_bases(factor, base):
    expected = rotary_frequencies(64, base)
    torch.testing.assert_close(frequencies(f"rope+ntk:factor={factor}", 9), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("strength", "length", "base"),
    [(1, 1024, 20452.23), (2, 1024, 31082.24), (2, 2048, 74534.83), (4, 2048, 141213.76)],
)
def test_dynamic_ntk_golden_bases(strength, length, base):
    ours = frequencies(f"rope+dynamic_ntk:strength={strength}", length)
    torch.testing.assert_close(ours, rotary_frequencies(64, base), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("width", "train_length", "low", "high"),
    [(64, 512, 3, 16), (128, 2048, 16, 41), (128, 4096, 20, 46), (64, 128, 0, 11)],
)
def test_yarn_golden_ends_of_the_ramp(width, train_length, low, high):
    kept = kept_share(rotary_frequencies(width, 10000)[None], train_length, 1, 32, "index")[0]
    expected = 1 - ((torch.arange(width // 2) - low) / (high - low)).clamp(0, 1)
    torch.testing.assert_close(kept, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("factor", "square"), [(2, 1.143434), (4, 1.296477), (8, 1.459129), (16, 1.631390), (32, 1.813260)]
)
def test_yarn_golden_logit_factors(factor, square):
    composition = (
        build("rope+yarn").prepare(Positions.build(1, declared=512 * factor, phase="test")).layers[0][0].composition
    )
    assert composition.sigma() == pytest.approx(square, rel=1e-6)


def test_frequencies_of_zero_stay_zero():
    for kept in (0, 0.5):
        ours = frequencies(f"rope:kept={kept}+yarn:factor=4", 9)
        assert ours.isfinite().all()
        assert not ours[int(32 * kept) :].any()
