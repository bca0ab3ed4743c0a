"""KERPLE: learned, smooth penalties on distance, from conditionally positive definite kernels.

    log:    l_ij^h = q_i . k_j / sqrt(d) - r1 ln(1 + r2 n)          n = |p_i - p_j|
    power:  l_ij^h = q_i . k_j / sqrt(d) - r1 n^r2                  0 < r2 <= 2; ALiBi is r2 = 1

r1 and r2 are positive, learned for each head, and shared by all layers.

Shapes: distances (...) -> (H, ...). Training and testing: the same.

Source: Chi, Fan, Ramadge, Rudnicky 2022 (arXiv 2205.09921). Initialisation and limits as in the authors' code: log r1 ~
U(0, 2), r2 ~ U(0, 1); power r1 ~ U(0, 1), r2 ~ U(0, 2); all at least 0.01, the exponent at most 2. That code clamps
what is stored before it is used, so that the gradient is never cut.
Departures: the bias is added after division by sqrt(d), as in the authors' code (their paper adds it before). What is
stored is left as it is: a number outside its range counts as the nearest in it, and keeps its gradient, by which it
comes back.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pezoo.contract import Encoding, Shape, Traits
from pezoo.registry import register, setting


@register(
    "kerple",
    title="KERPLE",
    year=2022,
    authors="Chi, Fan, Ramadge, Rudnicky",
    arxiv="2205.09921",
    equation="l_ij = q_i.k_j / sqrt(d) - r1 ln(1 + r2 |i - j|)",
    aliases={"kerple_power": ("kerple:kernel=power", "KERPLE, power kernel")},
)
class KERPLE(Encoding):
    """A learned penalty that grows as the logarithm, or a power, of distance."""

    traits = Traits(shift_invariant=True, bidirectional=False, parameters=lambda shape, c: 2 * shape.n_heads)

    @dataclass
    class Config:
        """Settings of the kernel."""

        kernel: Literal["log", "power"] = setting("log", "how the penalty grows with distance")

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        r1, r2 = (2.0, 1.0) if config.kernel == "log" else (1.0, 2.0)
        self.r1 = nn.Parameter(torch.rand(shape.n_heads) * r1)
        self.r2 = nn.Parameter(torch.rand(shape.n_heads) * r2)

    def distance_bias(self, distance: Tensor) -> Tensor:
        """The penalty of each head, (H, ...)."""
        per_head = (-1, *(1,) * distance.ndim)
        most = None if self.config.kernel == "log" else 2.0
        r1, r2 = _held(self.r1.float()).view(per_head), _held(self.r2.float(), most).view(per_head)
        n = distance.abs()
        if self.config.kernel == "log":
            return -r1 * torch.log1p(r2 * n)
        positive = torch.where(n > 0, n, 1.0)  # 0^r2 has no gradient in r2
        return torch.where(n > 0, -r1 * positive**r2, 0.0)


def _held(stored: Tensor, most: float | None = None) -> Tensor:
    """Stored numbers as they count, at least 0.01 and at most `most`; the gradient is that without limits."""
    free = stored.detach()
    return free.clamp(0.01, most) + (stored - free)
