"""PoSE: a training sequence is cut in two, and the second part reads positions further on.

    p_i = i + u_0 for i < c,  i + u_1 else,   c ~ U{1 ... floor((T + 1) / 2)},   u_1 ~ U{u_0 ... M - T}

M: the length to be reached; u_0 = 0. Within each part positions stay next to each other.

Shapes: coordinates (R, L) -> (B, L). In training and tuning; plain positions in testing. Draws are per sequence.

Source: Zhu et al. 2023 (arXiv 2309.10400), for tuning, with interpolation by M / L, here
`rope+pose:at=tune+pi:factor=16`. u_0 = 0 as in the authors' code; it was u_0 ~ U{0 ... M - T} before: `start=random`.
Departures: M defaults to 16 training lengths. The second part's text is the next of the same text (skipping text as
well made little difference). A sequence as long as M keeps its positions.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pezoo.contract import Positions, Traits
from pezoo.encodings.randomized._draws import Drawn, places
from pezoo.philox import whole
from pezoo.registry import register, setting


@register(
    "pose",
    title="Positional skip-wise training (PoSE)",
    year=2023,
    authors="Zhu, Yang, Wang, Song, Wu, Wei, Li",
    arxiv="2309.10400",
    equation="p_i = i for i < c, else i + u;  c ~ U{1..(T+1)/2}, u ~ U{0..M-T}",
)
class PoSE(Drawn):
    """Two chunks of positions with a random gap between."""

    traits = Traits(shift_invariant=True, prefix_stable=False, random=True, neutral={"max_length": 1})

    @dataclass
    class Config:
        """Settings of the skip."""

        max_length: int | None = setting(None, "M; unset: 16 training lengths", at_least=1)
        start: Literal["zero", "random"] = setting("zero", "u_0: 0, or a skip of its own")

    @property
    def max_length(self) -> int:
        """M."""
        return self.config.max_length or 16 * self.shape.train_length

    def extent(self, extent: int) -> int:
        """M."""
        return max(extent, self.max_length)

    def sample(self, positions: Positions) -> Tensor:
        """Both chunks."""
        total, place = positions.total(), places(positions)
        bits = positions.bits(self.name, 3).split(1, dim=1)  # (R, 1) each
        room = (self.max_length - total).clamp(min=0)
        first = whole(bits[0], 0, room) if self.config.start == "random" else torch.zeros_like(total)
        second = whole(bits[1], first, room)
        cut = whole(bits[2], 1, (total + 1) // 2)
        return place + torch.where(place < cut, first, second)
