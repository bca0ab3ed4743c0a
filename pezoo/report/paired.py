"""The difference of two schemes, its interval and its p-value, from pairs of losses by seed and document.

A study's seeds are a few of all trainings, its test documents a few of all texts. Both make the difference of two
schemes uncertain, so its variance has two parts:

- **Seeds.** The variance of the seeds' differences over their number. A pair of schemes has one degree of freedom for
  each seed but one, which is next to nothing with two or three seeds. So it borrows from the other pairs of the study
  at the same length: their variances are taken as draws of a scaled inverse chi-square, whose scale and degrees of
  freedom are fitted (Smyth 2004, doi 10.2202/1544-6115.1027). A pair that varies more than that keeps its own variance.
- **Documents.** The variance of the documents' differences, each averaged over seeds and weighted by its tokens, less
  the interaction, which the seeds' part has already. Both parts together are the variance clustered both ways
  (Cameron, Gelbach and Miller 2011, doi 10.1198/jbes.2010.07136); for documents of one length, that is the two-way
  analysis of variance.

Each part has a quantile of Student's t of its own. The interval takes their mean, weighted by the parts (Cochran and
Cox 1950, Experimental Designs). `docs/statistics.md` says how these were chosen, and what the intervals cover.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special


@dataclass(frozen=True)
class Part:
    """A part of the variance of a mean."""

    variance: float
    df: float
    """Degrees of freedom."""


NOTHING = Part(0.0, 1.0)


@dataclass(frozen=True)
class Prior:
    """What other pairs say of the variance between seeds: as much as `df` degrees of freedom would."""

    variance: float
    """Of one seed's difference."""
    df: float
    most: float
    """Most degrees of freedom that a pair may have with those borrowed: those of all seeds and schemes together."""


def fit_prior(values: NDArray[np.float64]) -> Prior | None:
    """Fit how the variance between seeds is spread over pairs of schemes.

    The moments of its logarithm are matched, as by Smyth (2004). Pairs without any variance, such as the same model
    under two labels, are left out.

    Args:
        values: (schemes, seeds), two seeds or more.

    Returns:
        What to borrow; None where fewer than three pairs vary.
    """
    schemes, seeds = values.shape
    one, other = np.triu_indices(schemes, 1)
    found = (values[one] - values[other]).var(axis=1, ddof=1)
    found = found[found > np.finfo(float).eps * (values**2).max(initial=0)]
    if len(found) < 3:
        return None
    df = seeds - 1
    logs = np.log(found) - special.digamma(df / 2) + np.log(df / 2)
    excess = logs.var(ddof=1) - special.polygamma(1, df / 2)
    own = np.inf if excess <= _trigamma(_MOST) else optimize.brentq(lambda x: _trigamma(x) - excess, 1e-3, _MOST)
    variance = logs.mean() if np.isinf(own) else logs.mean() + special.digamma(own / 2) - np.log(own / 2)
    return Prior(float(np.exp(variance)), float(own), float((schemes - 1) * df))


_MOST = 1e4


def _trigamma(df: float) -> float:
    return float(special.polygamma(1, df / 2))


def seeds_part(values: NDArray[np.float64], prior: Prior | None) -> Part:
    """Return the variance of the mean of differences (seeds,), two or more, that comes from the seeds."""
    n = len(values)
    own, df = float(values.var(ddof=1)), n - 1.0
    if prior is None or prior.most <= df:
        return Part(own / n, df)
    share = 1.0 if np.isinf(prior.df) else prior.df / (prior.df + df)
    together = share * prior.variance + (1 - share) * own
    return Part(max(own, together) / n, min(df + prior.df, prior.most))


def documents_part(differences: NDArray[np.float64], tokens: NDArray[np.int64]) -> Part:
    """Return the variance of the mean difference that comes from the documents, without what the seeds' part has.

    Args:
        differences: (seeds, documents), two of each or more: the difference of the mean losses.
        tokens: (documents,), by which documents are weighted.
    """
    seeds, documents = differences.shape
    weights = tokens / tokens.sum()
    by_seed, by_document = differences @ weights, differences.mean(axis=0)
    mean = by_seed.mean()
    rest = differences - by_document - by_seed[:, None] + mean
    few = documents / (documents - 1)
    both = few * float((weights**2 * rest**2).sum()) / (seeds * (seeds - 1))
    alone = few * float((weights**2 * (by_document - mean) ** 2).sum())
    return Part(max(alone - both, 0.0), documents - 1.0)


def half_width(seeds: Part, documents: Part, level: float) -> float:
    """Return half of the interval's width."""
    total = seeds.variance + documents.variance
    if total == 0:
        return 0.0
    parts = (part.variance * special.stdtrit(part.df, (1 + level) / 2) for part in (seeds, documents))
    return float(sum(parts) / np.sqrt(total))


def p_value(effect: float, seeds: Part, documents: Part) -> float:
    """Return the two-sided p-value: one minus the level at which the interval ends at no difference."""
    if effect == 0:
        return 1.0
    if seeds.variance + documents.variance == 0:
        return 0.0

    def beyond(log_p: float) -> float:
        total = seeds.variance + documents.variance
        parts = (part.variance * special.stdtrit(part.df, np.exp(log_p) / 2) for part in (seeds, documents))
        return float(-sum(parts) / np.sqrt(total)) - abs(effect)

    least = np.log(1e-12)
    return float(np.exp(optimize.brentq(beyond, least, 0.0))) if beyond(least) > 0 else 1e-12
