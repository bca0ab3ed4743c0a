"""How far back a model finds what it was told."""

from collections.abc import Mapping


def k_max(success: Mapping[int, float], *, threshold: float = 0.2) -> int:
    """The effective window (Chen et al. 2023, arXiv 2306.15595): as far as retrieval works without a gap.

    Args:
        success: share of right answers by distance of the needle from the end, in tokens
            (a task's `distance` at each depth).
        threshold: least share that counts as working.

    Returns:
        The largest tested distance k such that `success` is at least `threshold` at every tested k' <= k;
        0 if it fails at the nearest.

    >>> k_max({10: 1.0, 20: 0.2, 30: 0.1, 40: 0.9})
    20
    """
    reached = 0
    for distance in sorted(success):
        if success[distance] < threshold:
            break
        reached = distance
    return reached
