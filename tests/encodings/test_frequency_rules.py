"""Rules for frequencies against transformers, the papers' formulas in float64, and golden values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

import pezoo
from helpers import transformers_frequencies
from pezoo.contract import Extension, Positions, Shape
from pezoo.registry import entry, make_config, register

RULES = (
    "abf",
    "clex",
    "dynamic_ntk",
    "dynamic_yarn",
    "giraffe",
    "giraffe:basis=truncated",
    "giraffe:basis=both",
    "llama3",
    "longrope",
    "ntk",
    "ntk_by_parts",
    "qwen_dynamic_ntk",
    "resonance",
    "yarn",
)


def series(width, base=10000.0):
    """Frequencies (1, width / 2)."""
    return (base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)).float()[None]


def build(name, train_length, width=64, **given):
    config, at = make_config(name, given)
    return entry(name).cls(Shape(width, 1, 1, train_length), config, at)


def apply(name, inv_freq, length, train_length, **given):
    """Frequencies (n,) that a rule makes at a declared length."""
    extension = build(name, train_length, 2 * inv_freq.shape[-1], **given)
    return extension.frequencies(inv_freq, Positions.build(1, declared=length, phase="test"))[0]


def theirs(kind, width, base, train_length, length, **parameters):
    rope = {"rope_theta": base, "original_max_position_embeddings": train_length}
    return transformers_frequencies(kind, width, length, length, **rope | parameters)


widths = st.integers(2, 64).map(lambda n: 2 * n)
bases = st.floats(1e3, 1e6)
train_lengths = st.integers(32, 8192)
factors = st.floats(1.0, 32.0)


# transformers


@settings(deadline=None, max_examples=25)
@given(widths, bases, train_lengths, factors, st.floats(0.5, 2.0), st.floats(2.5, 8.0))
def test_llama3_is_that_of_transformers(width, base, train_length, factor, low, high):
    parameters = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
    expected, _ = theirs("llama3", width, base, train_length, 2 * train_length, **parameters)
    ours = apply("llama3", series(width, base), 7, train_length, factor=factor, low=low, high=high)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=0)


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(2, 16), bases, train_lengths, st.floats(1.0, 16.0))
def test_longrope_is_that_of_transformers(data, n, base, train_length, factor):
    lists = st.lists(st.floats(1.0, 1.25 * factor), min_size=n, max_size=n).map(sorted)
    short, long = data.draw(lists), data.draw(lists)
    length = data.draw(st.sampled_from([train_length - 1, train_length, train_length + 1, 4 * train_length]))
    given_lists = {"short_factor": short, "long_factor": long, "factor": factor}
    expected, m = theirs("longrope", 2 * n, base, train_length, length, **given_lists)
    extension = build("longrope", train_length, 2 * n, short=short, long=long, factor=factor)
    positions = Positions.build(1, declared=length, phase="test")
    ours = extension.frequencies(series(2 * n, base), positions)[0]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)
    assert extension.scale(positions) == pytest.approx(m**2, rel=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(4, 64).map(lambda n: 2 * n), bases, train_lengths, st.integers(2, 16))
def test_dynamic_yarn_is_yarn_of_transformers_at_the_current_length(width, base, train_length, times):
    length = times * train_length
    expected, m = theirs("yarn", width, base, train_length, length, factor=float(times))
    extension = build("dynamic_yarn", train_length, width)
    positions = Positions.build(1, declared=length, phase="test")
    # The ramp's ends are whole numbers of pairs; where they fall on one, rounding in float32 may choose its neighbour.
    real = [width * math.log(train_length / (2 * math.pi * b)) / (2 * math.log(base)) for b in (32, 1)]
    if any(abs(r - round(r)) < 1e-3 for r in real):
        return
    ours = extension.frequencies(series(width, base), positions)[0]
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=0)
    assert extension.scale(positions) == pytest.approx(m**2, rel=1e-6)


# Formulas and golden values


def test_llama3_golden_values():
    ours = apply("llama3", series(16, 5e5), 8192, 8192, factor=8)
    expected = torch.tensor([1, 1, 1, 1, 0.371122, 0.125, 0.125, 0.125])
    torch.testing.assert_close(ours / series(16, 5e5)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("length", "alpha"), [(1, 1), (2048, 1), (2049, 3), (4096, 3), (4097, 7), (8192, 7)])
def test_qwen_scales_by_its_golden_alpha(length, alpha):
    ours = apply("qwen_dynamic_ntk", series(64), length, 2048)
    base = 10000.0 * alpha ** (64 / 62)
    torch.testing.assert_close(ours, series(64, base)[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("width", [8, 64, 126])
def test_abf_is_rope_of_the_new_base(width):
    assert torch.equal(apply("abf", series(width), 5, 64, base=500000), series(width, 500000.0)[0])


def test_abf_leaves_zero_frequencies():
    frequencies = series(16)
    frequencies[:, 6:] = 0
    ours = apply("abf", frequencies, 5, 64)
    assert torch.equal(ours[6:], torch.zeros(2))
    assert torch.equal(ours[:6], series(16, 5e5)[0, :6])


@pytest.mark.parametrize(("factor", "length", "m"), [(4, 2048, 1.087115), (32, 4096, 1.190238), (8, 512, 1.154701)])
def test_longrope_golden_magnitudes(factor, length, m):
    extension = build("longrope", length, factor=factor)
    assert extension.scale(Positions.build(1, phase="test")) == pytest.approx(m**2, rel=2e-6)
    assert build("longrope", length, magnitude=1.5).scale(Positions.build(1, phase="test")) == 2.25


@pytest.mark.parametrize("name", ["yarn", "dynamic_yarn"])
@pytest.mark.parametrize(("factor", "square"), [(2, 1.143434), (4, 1.296477), (8, 1.459129), (16, 1.631390)])
def test_yarn_golden_temperatures(name, factor, square):
    positions = Positions.build(1, declared=64 * factor, phase="test")
    assert build(name, 64).scale(positions) == pytest.approx(square, rel=1e-6)


@pytest.mark.parametrize("table", ["short", "long"])
def test_longrope_with_one_table_is_prefix_stable(table):
    fixed = {"table": table, "factor": 4, "short": [1.0] * 32, "long": [3.0] * 32}
    extension = build("longrope", 64, **fixed)
    assert extension.prefix_stable
    for length in (8, 64, 65, 512):
        ours = extension.frequencies(series(64), Positions.build(1, declared=length, phase="test"))
        assert torch.equal(ours, series(64) / (1.0 if table == "short" else 3.0))


@pytest.mark.parametrize(
    ("text", "stable"),
    [
        ("table=short:magnitude=1.2", True),
        ("table=long:long=1,2,3,4:magnitude=1.2", True),
        ("table=long:factor=4", True),
        ("table=short", False),
        ("table=long:magnitude=1.2", False),
        ("table=long:long=1,2,3,4", False),
        ("table=switch:long=1,2,3,4:magnitude=1.2:factor=4", False),
    ],
)
def test_longrope_is_prefix_stable_where_it_reads_no_length(text, stable):
    scheme = pezoo.create(f"rope+longrope:{text}", d_model=8, n_heads=1, n_layers=1, train_length=8)
    found = [
        (part.base[0].positions.inv_freq.tolist(), float(part.sigma()))
        for n in (8, 9, 80)
        for part in [scheme.prepare(Positions.build(1, declared=n, phase="test")).layers[0][0].composition]
    ]
    assert (found[0] == found[1] == found[2]) is stable
    assert scheme.prefix_stable is stable


def test_longrope_without_lists_keeps_short_texts_and_reads_long_ones_as_yarn():
    yarn = apply("yarn", series(64), 512, 64)
    assert torch.equal(apply("longrope", series(64), 64, 64), series(64)[0])
    assert torch.equal(apply("longrope", series(64), 512, 64), yarn)


def test_giraffe_power_is_its_formula():
    n = 32
    expected = [10000.0 ** (-k / n) * (1 - k / n) ** 0.3 / 2 for k in range(n)]
    ours = apply("giraffe", series(64), 5, 64, power=0.3, factor=2)
    torch.testing.assert_close(ours.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0)


def test_giraffe_can_slow_first_and_cut_then():
    n, length, expected = 32, 512, []
    cut = 2 * math.pi / length
    for k in range(n):
        w = 10000.0 ** (-k / n) / 2 * (1 - k / n) ** 0.3
        expected.append(w if w >= cut else cut / 16 if w >= cut / 8 else 0.0)
    assert len({w for w in expected if w in (0.0, cut / 16)}) == 2
    ours = apply("giraffe", series(64), 5, length, basis="both", power=0.3, factor=2)
    torch.testing.assert_close(ours.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0)


def test_giraffe_truncated_golden_counts():
    ours = apply("giraffe", series(128), 5, 2048, basis="truncated")
    constant = 2 * math.pi / (16 * 2048)
    assert (ours == 0).sum() == 9
    assert torch.isclose(ours, torch.tensor(constant), rtol=1e-5).sum() == 14
    assert torch.equal(ours[:41], series(128)[0, :41])


def test_resonance_rounds_every_wavelength_and_turns_come_back():
    ours = apply("resonance", series(64), 5, 64)
    wavelengths = 2 * math.pi / ours.double()
    assert torch.allclose(wavelengths, wavelengths.round(), rtol=1e-6)
    assert wavelengths[0].round() == 6
    seen = torch.arange(64)
    for wavelength, w in zip(wavelengths.round().long().tolist(), ours, strict=True):
        if wavelength <= 64:  # every far turn is one that training has shown
            far = torch.tensor([1000, 1001, 4097])
            there = torch.polar(torch.ones(3, dtype=torch.float64), far * w.double())
            here = torch.polar(torch.ones(64, dtype=torch.float64), seen * w.double())
            assert (there[:, None] - here).abs().min(1).values.max() < 1e-3


@pytest.mark.parametrize("text", ["pi", "pi:factor=3", "halved"])
def test_resonance_is_refused_where_coordinates_are_divided(text):
    if text == "halved":

        @register("halved", title="Coordinates over 2")
        class Halved(Extension):
            """A stranger's interpolation."""

            def coordinates(self, positions):
                return positions.scaled(0.5)

    sizes = {"d_model": 64, "n_heads": 1, "n_layers": 1, "train_length": 64}
    factor = 3 if "3" in text else 4
    for scheme in (f"rope+{text}+resonance", f"rope+resonance+{text}"):
        with pytest.raises(pezoo.UserError, match=rf"giraffe:power=0:factor={factor}\+resonance"):
            pezoo.create(scheme, **sizes)


def test_resonance_is_refused_where_frequencies_are_learned():
    sizes = {"d_model": 64, "n_heads": 1, "n_layers": 1, "train_length": 64}
    with pytest.raises(pezoo.UserError, match="complex_order learns its frequencies"):
        pezoo.create("complex_order+resonance", **sizes)
    with pytest.raises(pezoo.UserError, match="complex_order learns its frequencies"), torch.no_grad():
        pezoo.create("complex_order+rope+resonance", **sizes)


@pytest.mark.parametrize("text", ["pi:factor=1", "pi:at=tune", "random", "shift", "giraffe_random", "clex", "rerope"])
def test_resonance_goes_with_whole_coordinates(text):
    pezoo.create(f"rope+{text}+resonance", d_model=64, n_heads=1, n_layers=1, train_length=64)


def test_what_resonance_suggests_rounds_interpolated_wavelengths():
    scheme = pezoo.create("rope+giraffe:power=0:factor=4+resonance", d_model=64, n_heads=1, n_layers=1, train_length=64)
    composition = scheme.prepare(Positions.build(1, declared=256, phase="test")).layers[0][0].composition
    expected = (2 * math.pi * 4 * 10000 ** (torch.arange(32, dtype=torch.float64) / 32)).round()
    wavelengths = 2 * math.pi / composition.base[0].positions.inv_freq.double()
    torch.testing.assert_close(wavelengths[0], expected, rtol=1e-6, atol=0)


def test_resonance_rounds_what_yarn_has_made():
    scheme = pezoo.create("rope+yarn+resonance", d_model=64, n_heads=1, n_layers=1, train_length=64)
    composition = scheme.prepare(Positions.build(1, declared=512, phase="test")).layers[0][0].composition
    wavelengths = 2 * math.pi / composition.base[0].positions.inv_freq.double()
    expected = (2 * math.pi / apply("yarn", series(64), 512, 64).double()).round()
    torch.testing.assert_close(wavelengths[0], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("text", RULES)
def test_rows_of_different_lengths_get_their_own_frequencies(text):
    name, *setting = text.split(":")
    given_settings = dict(pair.split("=") for pair in setting)
    lengths = torch.tensor([16, 64, 65, 200, 1024])
    together = build(name, 64, **given_settings).frequencies(
        series(64), Positions.build(1, 5, declared=lengths, phase="test")
    )
    rows = series(64).expand(5, -1)
    again = build(name, 64, **given_settings).frequencies(rows, Positions.build(1, 5, declared=lengths, phase="test"))
    for i, length in enumerate(lengths.tolist()):
        alone = apply(name, series(64), length, 64, **given_settings)
        for found in (together, again):
            torch.testing.assert_close(found.expand(5, -1)[i], alone, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["yarn", "dynamic_yarn", "longrope"])
def test_temperatures_of_rows_of_different_lengths(name):
    lengths, extension = torch.tensor([16, 64, 200]), build(name, 64)
    rows = extension.scale(Positions.build(1, 3, declared=lengths, phase="test"))
    for row, length in zip(rows, lengths.tolist(), strict=True):
        alone = extension.scale(Positions.build(1, declared=length, phase="test"))
        assert row.item() == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize(
    "text", ["abf", "giraffe", "giraffe:basis=truncated", "llama3", "longrope", "resonance", "clex"]
)
def test_frequencies_of_zero_stay_zero(text):
    scheme = pezoo.create(f"rope:kept=0.5+{text}", d_model=64, n_heads=1, n_layers=1, train_length=64)
    composition = scheme.prepare(Positions.build(1, declared=512, phase="test")).layers[0][0].composition
    frequencies = composition.base[0].positions.inv_freq
    assert torch.equal(frequencies[:, 16:], torch.zeros(1, 16))
    assert torch.isfinite(frequencies).all()


# CLEX


def clex(train_length=64, width=16, **given_settings):
    extension = build("clex", train_length, width, **given_settings)
    torch.manual_seed(0)
    for parameter in extension.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return extension


def test_clex_starts_as_ntk_by_2t_minus_1():
    ours = apply("clex", series(64), 4 * 64, 64)
    assert (ours[-1] / series(64)[0, -1]).item() == pytest.approx(1 / 7, rel=1e-5)
    torch.testing.assert_close(ours, apply("ntk", series(64), 1, 64, factor=7), rtol=1e-5, atol=0)


@pytest.mark.parametrize("activation", ["silu", "tanh"])
def test_clex_solves_the_papers_equation(activation):
    extension = clex(activation=activation, step=0.05)
    n, frequencies = 8, series(16)
    up, down = (layer.weight.detach().double() for layer in (extension.up, extension.down))
    act = torch.nn.functional.silu if activation == "silu" else torch.tanh
    k = torch.arange(n, dtype=torch.float64)

    def slope(t, state):
        ln_w = torch.as_tensor(state)
        ln_v = frequencies[0].double().log() - k / (n - 1) * math.log(2 * t - 1)
        xi = -2 * k / ((n - 1) * (2 * t - 1))
        return (xi + down @ act(up @ (ln_w + ln_v))).numpy()

    start = frequencies[0].double().log().numpy()
    for t in (2, 5):
        solved = solve_ivp(slope, (1, t), start, rtol=1e-9, atol=1e-9).y[:, -1]
        ours = extension.frequencies(frequencies, Positions.build(1, declared=64 * t - 3, phase="test"))[0].log()
        torch.testing.assert_close(ours.double(), torch.from_numpy(solved), rtol=1e-4, atol=1e-4)


def test_clex_reaches_no_further_than_its_largest_factor():
    extension = clex(max_factor=3)
    there, further = (
        extension.frequencies(series(16), Positions.build(1, declared=64 * t, phase="test")) for t in (3, 9)
    )
    assert torch.equal(there, further)


def test_clex_tunes_on_a_random_subset_of_the_longer_text():
    extension = clex(max_factor=4)
    found = set()
    for row in range(40):
        positions = Positions.build(24, rows=(row,), phase="tune")
        t = int(extension.times(positions))
        p = extension.coordinates(positions).query[0]
        assert p[0] == 0
        assert p[-1] == 24 * t - 1
        assert (p.diff() >= 1).all()
        assert torch.equal(p, p.round())
        found.add(t)
    assert found == {1, 2, 3, 4}
    long = Positions.build(3 * 64, rows=(1,), phase="tune")
    t, p = int(extension.times(long)), extension.coordinates(long).query[0]
    assert p[-1].item() == pytest.approx((3 * 64 * t - 1) / 3)


def test_clex_is_refused_where_it_has_another_number_of_frequencies():
    shape = {"d_model": 64, "n_heads": 4, "n_layers": 1, "train_length": 16}
    with pytest.raises(pezoo.UserError, match="n_frequencies=32"):
        pezoo.create("sinusoidal+clex", **shape)
    pezoo.create("sinusoidal+clex:n_frequencies=32", **shape)
    with pytest.raises(pezoo.UserError, match="alibi has none"):
        pezoo.create("alibi+clex", **shape)


# LongRoPE's search and refusals


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rope+longrope:long=1,2,3", "longrope:long has 3 factors, but the encoding has 8"),
        ("rope+longrope:short=1,0", "longrope:short must be above 0"),
        ("rope+llama3:low=4:high=2", "llama3:high = 2 must exceed low = 4"),
        ("rope+dynamic_yarn:factor=2", "dynamic_yarn has no setting 'factor'"),
        ("rope+dynamic_yarn:beta_fast=0.5", "beta_fast = 0.5 must exceed"),
        ("rope+abf:base=1", "abf:base must be above 1"),
        ("alibi+llama3", "frequencies"),
    ],
)
def test_refusals_say_why(text, words):
    with pytest.raises(pezoo.UserError, match=words):
        pezoo.create(text, d_model=64, n_heads=4, n_layers=1, train_length=16)
