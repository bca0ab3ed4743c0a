"""Position Interpolation's theory: fits against direct formulas, bounds against random and extremal scores."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pezoo.contract import Shape
from pezoo.errors import UserError
from pezoo.registry import entry, make_config
from tools import interpolation_theory as theory
from tools.interpolation_theory import (
    SOLVERS,
    abel_sum,
    analyse,
    bounds,
    deviation,
    features,
    fit,
    frequencies,
    grid,
    largest_h,
)

SMALL = {"length": 64, "head_dim": 16}


def score(x, a, b, theta):
    return sum(a[k] * math.sin(x * theta[k]) + b[k] * math.cos(x * theta[k]) for k in range(len(theta)))


@pytest.fixture(scope="module")
def llama():
    """The paper's setting, with few seeds."""
    return analyse(ridges=[0.0, 1e-3, 1.0, 10.0], seeds=3)


def test_frequencies_are_those_of_rope():
    config, _ = make_config("rope", {"base": 500.0})
    rope = entry("rope").cls(Shape(64, 4, 1, 8), config)
    np.testing.assert_allclose(frequencies(16, 500.0), rope.inv_freq().numpy(), rtol=1e-6)


def test_features_times_coefficients_are_the_score():
    rng, theta = np.random.default_rng(0), frequencies(8)
    coefficients, x = rng.standard_normal(8), rng.uniform(0, 100, 20)
    expected = [score(one, coefficients[:4], coefficients[4:], theta) for one in x]
    np.testing.assert_allclose(features(x, theta) @ coefficients, expected)
    h = [complex(b, -a) for a, b in zip(coefficients[:4], coefficients[4:], strict=True)]
    as_waves = [sum(z * np.exp(1j * one * t) for z, t in zip(h, theta, strict=True)).real for one in x]
    np.testing.assert_allclose(as_waves, expected)
    assert largest_h(coefficients[:, None]) == pytest.approx(max(map(abs, h)))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_a_fit_is_a_minimum_of_its_objective(solver, ridge):
    theta, y = frequencies(8, base=30.0), theory.targets(40, 2)
    found = fit(y, theta, ridge, solver).astype(float)
    x = features(np.arange(40), theta)
    gradient = x.T @ (x @ found - y) + ridge * found
    assert np.abs(gradient).max() < (1e-4 if solver == "normal32" else 1e-10)


def test_a_fit_finds_the_score_that_made_the_targets():
    theta = frequencies(8, base=30.0)
    made = np.random.default_rng(1).standard_normal((8, 3))
    np.testing.assert_allclose(fit(features(np.arange(50), theta) @ made, theta), made, rtol=1e-9)


def test_one_seed_gives_the_same_targets_whatever_their_number():
    np.testing.assert_array_equal(theory.targets(20, 5)[:, :2], theory.targets(20, 2))


@pytest.mark.parametrize("x", [0, 1, 17.5, 900])
def test_the_abel_sum_is_that_of_partial_sums(x):
    theta, total = frequencies(12), 0.0
    for k in range(1, 7):
        total += abs(sum(complex(math.cos(x * t), math.sin(x * t)) for t in theta[:k]))
    assert abel_sum([x], theta)[0] == pytest.approx(total)


def test_deviations_are_from_the_chord_between_integers():
    theta, length = frequencies(8), 6
    coefficients = np.random.default_rng(2).standard_normal((8, 2))
    found = deviation(features(grid(length), theta) @ coefficients)
    for j in range(2):
        a, b = coefficients[:4, j], coefficients[4:, j]
        for left in range(length - 1):
            ends = score(left, a, b, theta), score(left + 1, a, b, theta)
            for step in range(1, theory.STEPS):
                part = step / theory.STEPS
                off = score(left + part, a, b, theta) - (1 - part) * ends[0] - part * ends[1]
                assert found[left, step - 1, j] == pytest.approx(abs(off), abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(
    half=st.integers(1, 64),
    base=st.floats(1.5, 1e6),
    start=st.floats(0, 5000),
    width=st.floats(0.1, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_score_keeps_the_proved_bound_and_the_bounds_on_itself(half, base, start, width, seed):
    """On an interval of any width; coefficients of any phase."""
    rng, theta = np.random.default_rng(seed), frequencies(2 * half, base)
    h = rng.uniform(0, 1, half) * np.exp(2j * np.pi * rng.uniform(0, 1, half))
    part = rng.uniform(0, 1, 20)
    x = start + part * width
    ends, scores = ((np.exp(1j * np.outer(at, theta)) @ h).real for at in ([start, start + width], x))
    off = np.abs(scores - (1 - part) * ends[0] - part * ends[1])
    largest = np.abs(h).max()
    bound = largest * (x - start) * (start + width - x) * (theta**2).sum() / 2
    assert (off <= bound + 1e-9).all()
    assert (np.abs(scores) <= largest * half + 1e-9).all()
    assert (np.abs(scores) <= 2 * largest * abel_sum(x, theta) + 1e-9).all()


@pytest.mark.parametrize("head_dim", [8, 64, 128])
def test_the_stated_bound_is_exceeded_by_waves_with_crests_half_way(head_dim):
    theta = frequencies(head_dim)
    crests = np.concatenate([np.sin(theta / 2), np.cos(theta / 2)])[:, None]  # of (x - 1/2) theta
    assert largest_h(crests) == pytest.approx(1)
    off = deviation(features(grid(2), theta) @ crests).max()
    found = bounds(16, head_dim)
    assert off == pytest.approx(found["crests_over_stated"] * found["stated"])
    assert off == pytest.approx(found["crests_over_proved"] * found["proved"])
    assert found["stated"] < off <= found["proved"]


def test_the_papers_numbers_for_llama_7b():
    found = bounds()
    assert 128 / found["stated"] == pytest.approx(294.73, abs=0.005)
    assert found["abel_least"] == pytest.approx(1.116, abs=5e-4)
    assert found["abel_mean"] == pytest.approx(2.80, abs=5e-3)
    assert found["abel_over_stated"] > 2 * 294.73
    assert found["abel_over_proved"] < 2 * 294.73  # with the bound that holds, not quite
    assert found["triangle_over_proved"] == pytest.approx(128, rel=0.01)


def test_fitted_scores_are_small_in_the_window_and_large_beyond(llama):
    bare = llama[llama["ridge"] == 0]
    assert llama["between"].max() < 5
    assert (llama["between"] < 1.5 * llama["inside"]).all()
    assert (bare["outside"] > 2 * bare["inside"]).all()
    largest = bare.groupby("solver")["outside"].min()
    assert largest["normal32"] < largest["normal64"] < largest["svd64"]


def test_a_ridge_settles_what_precision_decided(llama):
    settled = llama[llama["ridge"] >= 1].pivot(index=["ridge", "seed"], columns="solver", values="outside")
    for solver in ("normal32", "normal64"):
        np.testing.assert_allclose(settled[solver], settled["svd64"], rtol=1e-3)
    medians = llama[llama["solver"] == "svd64"].groupby("ridge")["outside"].median()
    assert medians.is_monotonic_decreasing
    assert medians[10.0] < 2


def test_fits_keep_the_proved_bound(llama):
    assert (llama["deviation"] <= llama["proved"]).all()
    small = analyse(**SMALL, ridges=[0.0, 0.1, 10.0], seeds=4)
    assert (small["deviation"] <= small["proved"]).all()


def test_one_command_writes_table_numbers_and_figures(tmp_path, capsys):
    assert theory.main(["--length", "64", "--head-dim", "16", "--seeds", "2", "--out", str(tmp_path / "new")]) == 0
    pictures = [f"interpolation_theory.{form}" for form in ("pdf", "png", "svg")]
    names = [*pictures, "scores.csv", "table.md"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    assert str(tmp_path / "new") in capsys.readouterr().out
    written = pd.read_csv(tmp_path / "new" / "scores.csv")
    expected = analyse(**SMALL, seeds=2)
    settled = expected["ridge"] > 0
    pd.testing.assert_frame_equal(written[settled], expected[settled], rtol=1e-4)
    table = (tmp_path / "new" / "table.md").read_text()
    assert f"| {bounds(**SMALL)['crests_over_stated']:.3f} |" in table
    lengths = {line.count("|") for line in table.splitlines() if line.startswith("| 0")}
    assert lengths == {7}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 7}, "head_dim must be even and at least 2, got 7"),
        ({"base": 1.0}, "base must be above 1, got 1"),
        ({"length": 1}, "length must be at least 2 and seeds at least 1, got 1 and 2"),
        ({"seeds": 0}, "got 64 and 0"),
        ({"solvers": ["svd46"]}, r"no solver 'svd46'\. Did you mean 'svd64'.* Known: normal32, normal64, svd64"),
        ({"ridges": [-1.0]}, "the ridge must be 0 or more, got -1"),
    ],
)
def test_a_mistake_is_one_clear_message(change, message):
    with pytest.raises(UserError, match=message):
        analyse(**SMALL | {"seeds": 2} | change)


def test_the_command_says_what_is_wrong(capsys):
    with pytest.raises(SystemExit, match="2"):
        theory.main(["--head-dim", "5"])
    assert "head_dim must be even" in capsys.readouterr().err
