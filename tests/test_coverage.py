"""What the intervals of comparisons cover, on studies that are drawn with the variances of real ones.

`python tests/test_coverage.py` prints the table in docs/statistics.md.
"""

import sys

import numpy as np
import pytest

from pezoo.report.paired import NOTHING, Part, documents_part, fit_prior, half_width, p_value, seeds_part

SEEDS = (2, 3, 5, 10)
SEED, NOISY, MORE = 0.013, 0.07, 6.0
"""Standard deviation of a scheme's loss between seeds, in nats: the middle of the published survey and grids; one
scheme in fourteen varies six times as much, as those do that break beyond L."""
DOCUMENT, BOTH = 0.06, 0.025
"""Standard deviations of a scheme's loss between documents, less what all schemes share, and of both together: from the
losses by document of a run of the survey."""
SPREAD = 0.4
"""Standard deviation of the logarithms of all these, from scheme to scheme."""
METHODS = ("as chosen", "one quantile", "own seeds only", "t over seeds", "t over documents")


def draw(rng, seeds, schemes=10, documents=32):
    """Losses of a study (schemes, seeds, documents), all with one mean in the long run; which schemes are noisy."""

    def scale(middle, n):
        return (middle * np.exp(SPREAD * rng.standard_normal(schemes))).reshape(-1, *[1] * n)

    noisy = rng.random(schemes) < NOISY
    by_seed = np.where(noisy, MORE, 1.0)[:, None, None] * scale(SEED, 2) * rng.standard_normal((schemes, seeds, 1))
    by_document = scale(DOCUMENT, 2) * rng.standard_t(5, (schemes, 1, documents)) / np.sqrt(5 / 3)
    losses = by_seed + by_document + scale(BOTH, 2) * rng.standard_normal((schemes, seeds, documents))
    return losses, noisy


def one_quantile(seeds, documents):
    """Both parts as one, with Satterthwaite's degrees of freedom."""
    total = seeds.variance + documents.variance
    return Part(total, total**2 / (seeds.variance**2 / seeds.df + documents.variance**2 / documents.df))


def simulate(seeds, studies, seed=0, best=False, **size):
    """Compare all schemes with the first, or with the best.

    Returns:
        By method half widths, and whether they cover; p-values; whether one of the two is noisy.
    """
    rng = np.random.default_rng(seed)
    widths, covered, p, noisy = {name: [] for name in METHODS}, {name: [] for name in METHODS}, [], []
    for _ in range(studies):
        losses, varied = draw(rng, seeds, **size)
        tokens = rng.integers(300, 600, losses.shape[2])
        values = losses @ (tokens / tokens.sum())
        prior, base = fit_prior(values), values.mean(axis=1).argmin() if best else 0
        for one in (i for i in range(len(values)) if i != base):
            noisy.append(varied[one] | varied[base])
            differences, by_document = values[one] - values[base], losses[one] - losses[base]
            rest = documents_part(by_document, tokens)
            alone = documents_part(np.repeat(by_document.mean(axis=0)[None], 2, axis=0), tokens)
            own, borrowed = seeds_part(differences, None), seeds_part(differences, prior)
            parts = (
                *((borrowed, rest), (one_quantile(borrowed, rest), NOTHING)),
                *((own, rest), (own, NOTHING), (NOTHING, alone)),
            )
            for name, both in zip(METHODS, parts, strict=True):
                widths[name].append(half_width(*both, level=0.95))
                covered[name].append(abs(differences.mean()) <= widths[name][-1])
            p.append(p_value(differences.mean(), borrowed, rest))
    return widths, {name: np.array(each) for name, each in covered.items()}, np.array(p), np.array(noisy)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", SEEDS)
def test_intervals_cover_what_they_claim(seeds):
    widths, covered, p, _ = simulate(seeds, studies=500)
    share = {name: np.mean(each) for name, each in covered.items()}
    print(seeds, {name: f"{100 * share[name]:.1f} % ± {np.median(widths[name]):.3f}" for name in METHODS})
    assert 0.93 <= share["as chosen"] <= 0.97
    assert 0.03 <= np.mean(p < 0.05) <= 0.07
    assert np.mean(p < 0.05) == pytest.approx(1 - share["as chosen"], abs=1e-3)
    assert np.median(widths["as chosen"]) <= np.median(widths["own seeds only"])
    assert min(share["t over seeds"], share["t over documents"]) < 0.93  # one source of variance is not enough


@pytest.mark.slow
@pytest.mark.parametrize("schemes", [2, 4, 30])
def test_intervals_cover_in_studies_of_all_sizes(schemes):
    for seeds in SEEDS:
        _, covered, _, _ = simulate(seeds, studies=2000 // schemes, schemes=schemes, seed=1)
        assert 0.925 <= np.mean(covered["as chosen"]) <= 0.985, seeds


def one_is_called_worse(schemes, studies, seeds=3):
    """How often at least one of several equal schemes is called worse than the best: pair by pair, and corrected."""
    p = simulate(seeds, studies, seed=3, best=True, schemes=schemes)[2].reshape(studies, schemes - 1).min(axis=1)
    return [np.mean(p < 0.05), np.mean(p * (schemes - 1) < 0.05)]  # Holm's smallest p-value is Bonferroni's


@pytest.mark.slow
@pytest.mark.parametrize("schemes", [4, 27])
def test_the_best_of_many_equal_schemes_is_seldom_called_better_than_another(schemes):
    """`comparisons.ties`, which sentences on the best scheme rest on."""
    pairs, corrected = one_is_called_worse(schemes, studies=300)
    assert corrected < 0.15
    assert corrected < pairs / 2


if __name__ == "__main__":
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    print(f"| seeds | {' | '.join(METHODS)} | p < 0.05 | noisy pairs |\n| ---: |{' ---: |' * (len(METHODS) + 2)}")
    for n in SEEDS:
        found, covered, p, noisy = simulate(n, studies)
        cells = [f"{100 * np.mean(covered[name]):.1f}% (± {100 * np.median(found[name]):.1f}%)" for name in METHODS]
        cells += [f"{100 * np.mean(each):.1f}%" for each in (p < 0.05, covered["as chosen"][noisy])]
        print(f"| {n} | {' | '.join(cells)} |")
    lucky = [100 * np.mean(simulate(n, studies, seed=2, best=True)[2] < 0.05) for n in SEEDS]
    print(f"against the best: p < 0.05 in {', '.join(f'{share:.1f}%' for share in lucky)}")
    for schemes in (4, 10, 27):
        pairs, corrected = (f"{100 * share:.0f}%" for share in one_is_called_worse(schemes, studies))
        print(f"one of {schemes} equal schemes is called worse than the best: {pairs}; corrected: {corrected}")
    for schemes in (2, 4, 30):
        shares = [100 * np.mean(simulate(n, 4000 // schemes, seed=1, schemes=schemes)[1]["as chosen"]) for n in SEEDS]
        print(f"{schemes} schemes: {', '.join(f'{share:.1f}%' for share in shares)}")
