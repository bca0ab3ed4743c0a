"""Giraffe's randomised positions: steps between tokens are random real numbers with mean 1.

    p_i = (z_0 + ... + z_i) min(1, T / (z_0 + ... + z_(T-1))),   z ~ U(0, 2)

The first position is random too; sums that pass T are scaled back to end there.

Shapes: coordinates (R, L) -> (B, L). In training and tuning; plain positions in testing. Draws are per sequence.

Source: Pal et al. 2023 (arXiv 2308.10882) and the authors' code.
Departures: none.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.encodings.randomized._draws import Drawn
from pezoo.registry import register


@register(
    "giraffe_random",
    title="Giraffe's randomised positions",
    year=2023,
    authors="Pal, Karkhanis, Roberts, Dooley, Sundararajan, Naidu",
    arxiv="2308.10882",
    equation="p_i = z_0 + ... + z_i,  z ~ U(0, 2), scaled to end at T or before",
)
class GiraffeRandom(Drawn):
    """Random real steps between positions."""

    @dataclass
    class Config:
        """Settings: none."""

    def extent(self, extent: int) -> int:
        """One more: the last position may be T itself."""
        return extent + 1

    def sample(self, length: int, generator: torch.Generator) -> Tensor:
        """Sums of steps."""
        sums = (2 * torch.rand(length, generator=generator)).cumsum(0)
        return sums * (length / sums[-1]).clamp(max=1.0)
