"""CREAM: a training sequence reads the first positions, the last, and a block that is mostly near the middle.

    p = [0 ... h - 1,  e - c + 1 ... e,  s T - h ... s T - 1],   c = T - 2 h,   s = floor(M / T)
    e ~ U{h + (c - 1) a / 2 ... T a / 2 - h - 1},   a = floor(clip(N(1 + s, sigma^2), 2, 2 s))
    h = floor(T / 3) or min(4 s, floor(T / 3)), by a fair coin

M: the length to be reached. A third for head and tail makes many distances (relativity), a few tokens make long
unbroken runs (continuity).

Shapes: coordinates (R, L) -> (B, L). In training and tuning; plain positions in testing. Draws are per sequence.

Source: Wu, Zhao, Zheng 2024 (arXiv 2406.07138), for tuning, with interpolation by s; all of the above as in the
authors' code, sigma = 3.
Departures: the text is unbroken (the code reads its middle and tail from later in a long text); the coin is thrown
for each sequence (the code: once for thousands); 4 s is kept below T / 3, which matters for short T. M defaults to 16
training lengths.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.contract import Positions, Traits
from pezoo.encodings.randomized._draws import Drawn, places
from pezoo.philox import uniform, whole
from pezoo.registry import register, setting


@register(
    "cream",
    title="CREAM (continuity, relativity, Gaussian middle)",
    year=2024,
    authors="Wu, Zhao, Zheng",
    arxiv="2406.07138",
    equation="p = head, a block that ends at e, tail;  e near the middle by a truncated Gaussian",
)
class CREAM(Drawn):
    """Head, middle and tail positions of a longer text."""

    traits = Traits(shift_invariant=True, prefix_stable=False, random=True, neutral={"max_length": 1})

    @dataclass
    class Config:
        """Settings of the range and of the middle."""

        max_length: int | None = setting(None, "M; unset: 16 training lengths", at_least=1)
        sigma: float = setting(3.0, "spread of the middle, in half lengths T / 2", above=0)

    @property
    def max_length(self) -> int:
        """M."""
        return self.config.max_length or 16 * self.shape.train_length

    def extent(self, extent: int) -> int:
        """M."""
        return max(extent, self.max_length)

    def sample(self, positions: Positions) -> Tensor:
        """The three parts."""
        total, place = positions.total(), places(positions)
        coin, end, *normal = positions.bits(self.name, 4).split(1, dim=1)  # (R, 1) each
        s = (self.max_length // total).clamp(min=1)
        third = total // 3
        head = torch.where(whole(coin, 0, 1) > 0, third, torch.minimum(4 * s, third))
        middle = total - 2 * head
        u, v = (uniform(bits) for bits in normal)
        gauss = (-2 * (1 - u).log()).sqrt() * (2 * math.pi * v).cos()  # Box and Muller
        a = (1 + s + self.config.sigma * gauss).clamp(min=2)
        a = torch.minimum(a, 2 * s).floor().long()
        end = whole(end, head + (middle - 1) * a // 2, total * a // 2 - head - 1)
        inner = end - middle + 1 + place - head
        tail = (s - 1) * total + place
        return torch.where(place < head, place, torch.where(place < total - head, inner, tail))
