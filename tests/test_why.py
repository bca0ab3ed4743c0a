"""The figures of the page on why models break: small, and of the numbers that schemes and studies give.

Whether they are current is tested in test_docs.py, which has read the published studies.
"""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from test_choose import results

from pezoo.report.claims import read_claims
from pezoo.report.finished import Finished, load
from pezoo.report.verdicts import judge
from pezoo.study.reading import own_recipes
from tools import why
from tools.paths import PICTURES, PUBLISHED

FOLDER = PICTURES / "why"


def test_there_is_no_other_picture_and_each_is_small():
    files = {path.stem: path.stat().st_size for path in FOLDER.iterdir()}
    assert set(files) == set(why.FIGURES)
    assert max(files.values()) < 60_000


def test_a_number_that_has_moved_is_seen():
    numbers = {"rope": {"64": 5.0, "128": 6.0}}
    assert why.digest(numbers) == why.digest({"rope": {"64": 5.0001, "128": 6.0}})
    for other in ({"rope": {"64": 5.1, "128": 6.0}}, {"rope": {"64": 5.0}}, {"nope": {"64": 5.0, "128": 6.0}}):
        assert why.digest(other) != why.digest(numbers)
    assert why.drawn_from(FOLDER / "none.svg") == ""


def test_wavelengths_are_those_of_the_papers():
    """Su et al. 2021; Chen et al. 2023; bloc97's NTK-aware base, as in Peng et al. 2023."""
    found = {scheme: np.array(list(turns.values())) for scheme, turns in why.wavelengths(None).items()}
    k = np.arange(why.HEAD // 2, dtype=np.float64)
    rope = 2 * math.pi * 10_000.0 ** (2 * k / why.HEAD)
    base = 10_000.0 * why.LONGER ** (why.HEAD / (why.HEAD - 2))
    np.testing.assert_allclose(found["rope"], rope, rtol=1e-5)
    np.testing.assert_allclose(found["rope+pi"], why.LONGER * rope, rtol=1e-5)
    np.testing.assert_allclose(found["rope+ntk"], 2 * math.pi * base ** (2 * k / why.HEAD), rtol=1e-5)
    slow = rope > why.TRAINED / 1.0
    np.testing.assert_allclose(found["rope+yarn"][slow], why.LONGER * rope[slow], rtol=1e-5)
    np.testing.assert_allclose(found["rope+yarn"][rope < why.TRAINED / 32], rope[rope < why.TRAINED / 32], rtol=1e-5)
    assert f"{slow.sum()} of 32 pairs" in why.say_wavelengths(why.wavelengths(None), None)


def test_bounds_on_the_base_are_those_of_the_recipe():
    """test_recipes.py holds them against the rule of Xu et al. 2024."""
    path = own_recipes()["base_bound"]
    told = re.findall(r"^#   (\w+) +d = (\d+) +L = (\d+) +([\d,]+)", path.read_text().split("at gpu:")[0], re.MULTILINE)
    bounds = {(int(width), int(length)): int(bound.replace(",", "")) for _, width, length, bound in told}
    assert {place: why.least_base(*place) for place in bounds} == bounds
    assert {name: int(width) for name, width, length, _ in told if length == "128"} == why.HEADS


def test_a_window_s_ratio_is_that_of_the_scorecard():
    """The same comparison, made for a published claim, of another protocol's tokens."""
    studies = {"kerple": load(PUBLISHED / "kerple")}
    numbers = why.windows(why.FIGURES["recency"].kept(studies))
    claim = next(claim for claim in read_claims() if claim.test.baseline == "alibi | windowed")
    judged = judge(claim, studies["kerple"].results)
    assert numbers["alibi"]["all"] / numbers["alibi"]["window"] == pytest.approx(judged.effect, abs=0.01)


def test_what_far_text_is_worth_is_said_of_schemes_that_long_texts_do_not_break():
    """The page of choices names those whose perplexity holds at the longest length, and which of them gain."""
    values = {
        "rope": (5.0, 20.0, 6.0),
        "alibi": (6.0, 6.0, 6.0),
        "fox": (6.0, 5.0, 6.0),
    }  # at L, far out, and there with a window
    made = []
    for label, (near, far, window) in values.items():
        for name, ratio, value in ((label, 1, near), (label, 8, far), (f"{label} | windowed", 8, window)):
            made += [one for one in results(name, value, scheme=label) if one.length_ratio == ratio]
    kept = [replace(one, protocol="non_overlapping", study="kerple") for one in made]
    said = why.far_text({"kerple": Finished((), kept)}).splitlines()
    assert said[:2] == [
        "- `alibi` with all of the text: ×1.00 [1.00 to 1.00] beside the last L tokens alone",
        "- `fox` with all of the text: ×0.83 [0.83 to 0.83] beside the last L tokens alone",
    ]
    assert said[3].startswith("Far text helps `fox`. *From [kerple]")
