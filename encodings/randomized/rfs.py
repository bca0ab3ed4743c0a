"""Random float sampling (RFS): sorted real positions from one range, random in training and evenly spaced in testing.

    training:  p_1 <= p_2 <= ... <= p_T,   the sorted M u_1 ... M u_T,   u ~ U[0, 1)
    testing:   p_i = M (i - 1/2) / max(T, L)

L: training length, T: declared length. So no length shows a coordinate outside of [0, M), and training shows distances
between tokens of all sizes.

Shapes: coordinates (R, L) -> (B, L). In training and tuning drawn, per sequence; in testing the same for all rows.
Depends on T, hence not prefix-stable.

Source: Shimizu, Taniguchi, Matsuo 2026 (arXiv 2602.14050), with sinusoids, RoPE and ALiBi. The paper was read at second
hand: a reader's notes give the draw from [0, 1) and the positions of testing.
Departures: M is L by default, so that tokens are one apart on average in training; how the paper's encodings scale
[0, 1), which is `max_length=1`, could not be established. `test=random` draws in testing as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pezoo.contract import Positions
from pezoo.encodings.randomized._draws import Drawn, by_index, places
from pezoo.philox import uniform
from pezoo.registry import register, setting


@register(
    "rfs",
    title="Random float sampling (RFS)",
    year=2026,
    authors="Shimizu, Taniguchi, Matsuo",
    arxiv="2602.14050",
    equation="p = sorted M u_1 ... M u_T, u ~ U[0, 1);  in testing M (i - 1/2) / max(T, L)",
)
class RandomFloatSampling(Drawn):
    """Sorted real positions, random in training."""

    default_at = ("train", "tune", "test")

    @dataclass
    class Config:
        """Settings of the range, and of testing."""

        max_length: int | None = setting(None, "M; unset: the training length", at_least=1)
        test: Literal["even", "random"] = setting("even", "positions in testing: evenly spaced, or drawn")

    @property
    def max_length(self) -> int:
        """M."""
        return self.config.max_length or self.shape.train_length

    def extent(self, extent: int) -> int:
        """One more than M: rounding may reach M itself."""
        return max(extent, self.max_length + 1)

    def same_in(self, phases: Sequence[str]) -> bool:
        """Unless testing draws nothing."""
        return self.config.test == "random" or "test" not in phases or len(phases) == 1

    def sample(self, positions: Positions) -> Tensor:
        """Sorted draws, or the middles of even parts."""
        total, place = positions.total(), places(positions)
        if positions.phase == "test" and self.config.test == "even":
            return self.max_length * (place + 0.5) / total.clamp(min=self.shape.train_length)
        drawn = uniform(positions.bits(self.name, positions.longest))
        drawn = torch.where(place < total, drawn, 1.0)  # shorter rows leave the end of the table
        return self.max_length * drawn.sort(dim=1).values

    def coordinates(self, positions: Positions) -> Positions:
        """The sorted positions, by index."""
        table = positions.draw(self.name, lambda: self.sample(positions)).to(torch.float32)
        return by_index(positions, table, None if positions.draws else self.max_length + 1)
