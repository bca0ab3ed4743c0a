"""The quickstart itself: the published shape of the curves, measured."""

from statistics import geometric_mean

import pytest

import pezoo

L, T4, T8, T16 = 64, 256, 512, 1024


@pytest.fixture(scope="module")
def perplexity(tmp_path_factory):
    """Geometric mean over seeds by (label, test length)."""
    results = pezoo.run("quickstart", out=tmp_path_factory.mktemp("quickstart"))
    found = {}
    for r in results:
        assert r.status == "ok", r.reason
        if r.metric == "perplexity":
            found.setdefault((r.label, r.test_length), []).append(r.value)
    assert all(len(values) == 2 for values in found.values())
    return {key: geometric_mean(values) for key, values in found.items()}


@pytest.mark.slow
def test_the_quickstart_shows_what_was_published(perplexity):
    p, tuned = perplexity, "rope+pi, 200 steps @ 8x"
    best = min(value for (label, length), value in p.items() if length == L)
    shows = {
        "alibi extrapolates": p["alibi", T16] < 1.15 * p["alibi", L],
        "rope is the best in range, or near": p["rope", L] < 1.05 * best,
        "rope does not extrapolate": p["rope", T8] > 1.8 * p["rope", L],
        "sinusoidal does not extrapolate": p["sinusoidal", T4] > 1.8 * p["sinusoidal", L],
        "shifts help sinusoidal": p["shape", T8] < p["sinusoidal", T8],
        "random positions help rope": p["rope+random", T4] < p["rope", T4],
        "ntk helps rope": p["rope+ntk", T4] < p["rope", T4],
        "tuning with pi extends rope": p[tuned, T8] < p["rope", T8],
        "and stays near its perplexity in range": p[tuned, T8] < 1.4 * p["rope", L],
    }
    assert all(shows.values()), (shows, p)
