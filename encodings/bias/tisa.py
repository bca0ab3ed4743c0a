"""TISA: each head adds a learned sum of bell curves of the offset between key and query.

    l_ij^h = q_i . k_j / sqrt(d) + sum_s a_hs exp(-|b_hs| (x - c_hs)^2),   x = p_j - p_i

a: amplitudes, b: sharpnesses, c: centres of the S kernels of head h, all learned. Far from every centre the bias is
zero: NoPE, without a pull to what is near.

Shapes: distances (...) -> (H, ...). Each layer has kernels of its own; `shared` gives all layers one set. Training
and testing: the same.

Source: Wennberg, Henter 2021 (arXiv 2106.01950). S = 5; a and b ~ N(0.1, 0.01^2), c ~ N(0, 5^2). The authors' code
reads x = i - j - 1 instead: `offset=code`.
Departures: in a decoder centres start on the visible side, c = -|c| (|c| for `offset=code`), since kernels centred in
the masked future learn little.
"""

from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn

from pezoo.contract import Encoding, Shape, Traits
from pezoo.registry import register, setting


@register(
    "tisa",
    title="Translation-invariant self-attention (TISA)",
    year=2021,
    authors="Wennberg, Henter",
    arxiv="2106.01950",
    equation="l_ij = q_i.k_j / sqrt(d) + sum_s a_s exp(-|b_s| (j - i - c_s)^2)",
)
class TISA(Encoding):
    """A learned sum of bell curves of the offset, for each head."""

    traits = Traits(shift_invariant=True, parameters=lambda shape, c: 3 * c.kernels * shape.n_heads)

    @dataclass
    class Config:
        """Settings of the kernels."""

        kernels: int = setting(5, "bell curves a head (S)", at_least=1)
        offset: Literal["paper", "code"] = setting("paper", "x = j - i, or i - j - 1")
        shared: bool = setting(False, "one set of kernels for all layers")

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        size = (config.kernels, shape.n_heads)
        self.amplitudes = nn.Parameter(0.1 + 0.01 * torch.randn(size))
        self.sharpnesses = nn.Parameter(0.1 + 0.01 * torch.randn(size))
        centres = 5 * torch.randn(size)
        if shape.causal:
            centres = -centres.abs() if config.offset == "paper" else centres.abs()
        self.centres = nn.Parameter(centres)

    @classmethod
    def per_layer(cls, config: Config) -> bool:
        """Each layer has kernels of its own, unless shared."""
        return not config.shared

    def distance_bias(self, distance: Tensor) -> Tensor:
        """The sum of kernels at each distance, (H, ...)."""
        x = -distance if self.config.offset == "paper" else distance - 1
        parameters = (self.amplitudes, self.sharpnesses, self.centres)
        kernels = zip(*(p.float().view(*p.shape, *(1,) * x.ndim) for p in parameters), strict=True)
        return reduce(torch.add, (a * torch.exp(-b.abs() * (x - c) ** 2) for a, b, c in kernels))  # one at a time
