"""Giraffe's randomised positions: steps between tokens are random real numbers with mean 1.

    p_i = (z_0 + ... + z_i) min(1, T / (z_0 + ... + z_(T-1))),   z ~ U(0, 2)

The first position is random too; sums that pass T are scaled back to end there.

Shapes: coordinates (R, L) -> (B, L). In training and tuning; plain positions in testing. Draws are per sequence.

Source: Pal et al. 2023 (arXiv 2308.10882) and the authors' code.
Departures: none.
"""

from dataclasses import dataclass

from torch import Tensor

from pezoo.contract import Positions
from pezoo.encodings.randomized._draws import Drawn
from pezoo.philox import uniform
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

    def sample(self, positions: Positions) -> Tensor:
        """Sums of steps."""
        total = positions.total()
        steps = 2 * uniform(positions.bits(self.name, positions.longest))
        sums = steps.cumsum(1)
        rows = max(len(sums), len(total))
        last = sums.expand(rows, -1).gather(1, total.expand(rows, -1) - 1)
        return sums * (total / last).clamp(max=1.0)
