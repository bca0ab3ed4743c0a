"""T5 bias: one learned number for each head and bucket of distances; buckets widen logarithmically.

    l_ij^h = q_i . k_j + W[bucket(p_i - p_j), h]
    bucket(n) = n for n < m,  else min(N - 1, m + floor(ln(n / m) / ln(D / m) (N - m))),   m = N / 2 under causality

In an encoder half of the N buckets is for keys ahead of the query.

Shapes: distances (...) -> (H, ...). One table for all layers. Training and testing: the same; distances beyond the
last bucket's start share it.

Source: Raffel et al. 2019 (arXiv 1910.10683), section 2.1. T5 does not divide q.k by sqrt(d); `scale=sqrt` does, as
ports to other models do.
Departures: a real distance is rounded down. W starts at zero (NoPE), for want of T5's own initialisation of the whole
model.

With N = 32, D = 128 the last bucket begins at distance 113:

>>> bucket(torch.tensor([0., 15., 16., 18., 19., 112., 113., 5000.]), 32, 128).tolist()
[0, 15, 16, 16, 17, 30, 31, 31]
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pezoo.contract import Encoding, Shape, Traits, settle, to_device
from pezoo.errors import UserError
from pezoo.registry import register, setting


def bucket_starts(n_buckets: int, max_distance: int) -> list[int]:
    """The smallest distance in each bucket but the first; whole numbers, so that no rounding decides a bucket."""
    exact = n_buckets // 2
    far = n_buckets - exact
    starts = (exact * (max_distance / exact) ** (b / far) for b in range(far))
    return [*range(1, exact), *(math.ceil(round(s, 9)) for s in starts)]


def bucket(distance: Tensor, n_buckets: int, max_distance: int) -> Tensor:
    """Bucket of each distance >= 0, int64; those below zero go to bucket 0."""
    starts = torch.tensor(bucket_starts(n_buckets, max_distance), dtype=distance.dtype)
    return torch.bucketize(distance, to_device(starts, distance.device), right=True)


@register(
    "t5",
    title="T5 bucketed bias",
    year=2019,
    authors="Raffel, Shazeer, Roberts, Lee, Narang, Matena, Zhou, Li, Liu",
    arxiv="1910.10683",
    equation="l_ij = q_i.k_j + W[bucket(i - j), h]",
)
class T5(Encoding):
    """A learned bias for each head and bucket of distances, shared by all layers."""

    traits = Traits(shift_invariant=True, parameters=lambda shape, c: c.n_buckets * shape.n_heads)

    @dataclass
    class Config:
        """Settings of the buckets."""

        n_buckets: int = setting(32, "buckets (N); both directions together in an encoder", at_least=4)
        max_distance: int = setting(128, "distances from here on share the last bucket (D)", at_least=2)
        scale: Literal["one", "sqrt"] = setting("one", "q.k as it is, or divided by sqrt(d)")

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        if config.max_distance <= config.n_buckets // 2:
            raise UserError(f"t5:max_distance must exceed n_buckets / 2, got {config.max_distance}")
        self.table = nn.Parameter(torch.zeros(config.n_buckets, shape.n_heads))

    def scale(self) -> float:
        """1, as in T5, or 1 / sqrt(d)."""
        return 1.0 if self.config.scale == "one" else super().scale()

    def distance_bias(self, distance: Tensor) -> Tensor:
        """W[bucket(distance)], (H, ...)."""
        n, largest, distance = self.config.n_buckets, self.config.max_distance, settle(distance)
        if self.shape.causal:
            rows = bucket(distance, n, largest)
        else:
            rows = bucket(distance.abs(), n // 2, largest) + (distance < 0) * (n // 2)
        return self.table.float()[rows].movedim(-1, 0)
