"""LogN: logits sharpened with the number of tokens seen, so that attention does not thin out on long texts.

    l_ij -> sigma_i l_ij,   sigma_i = max(1, ln n_i / ln L)       n_i: keys that query i sees, L: training length

Only q.k is scaled; a bias is not. n_i is i + 1 in a decoder, and the length of the document in an encoder.

Shapes: one factor a query, (R, Lq). Not in training; in tuning and testing. Up to the training length it does
nothing; trained with from the start (`at=train,tune,test`) it is usual without the max: `floor=false`.

Source: Su 2021 (the author's blog, and code released with ReRoPE); Chiang, Cholak 2022 (arXiv 2202.12172), encoders.
Departures: none.

>>> [round(max(1, math.log(n) / math.log(512)), 4) for n in (512, 1024, 4096)]
[1, 1.1111, 1.3333]
"""

import math
from dataclasses import dataclass

from torch import Tensor

from pezoo.contract import Extension, Positions, Traits
from pezoo.registry import register, setting


@register(
    "logn",
    title="Log-length scaling",
    year=2022,
    authors="Su; Chiang, Cholak",
    arxiv="2202.12172",
    equation="l_ij -> max(1, ln n_i / ln L) l_ij",
)
class LogN(Extension):
    """Logits scaled by the logarithm of the keys seen."""

    traits = Traits(shift_invariant=True)

    @dataclass
    class Config:
        """Settings of the scale."""

        floor: bool = setting(True, "never less than 1")

    def scale(self, positions: Positions) -> Tensor:
        """sigma_i."""
        sigma = positions.seen().log() / math.log(max(2, self.shape.train_length))
        return sigma.clamp(min=1.0) if self.config.floor else sigma
