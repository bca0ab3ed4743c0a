"""Position Interpolation: coordinates divided by a factor, so that a longer text spans those of a training text.

    p_i -> p_i / s,   s = L' / L         L: training length, L': target length

Shapes: coordinates (R, L) -> the same. Not in training; in tuning and testing. s is the setting `factor`, else max(1,
T / L) of the declared length T; after tuning it stays at the tuned length.

Source: Chen, Wong, Chen, Tian 2023 (arXiv 2306.15595), equation 4, for RoPE. Here any encoding that reads
coordinates: for biases see Al-Khateeb et al. 2023 (arXiv 2310.13017); for a learned table this is linear resampling.
"""

from dataclasses import dataclass

from pezoo.contract import Extension, Positions, Traits
from pezoo.registry import register, setting


@register(
    "pi",
    title="Position Interpolation (PI)",
    year=2023,
    authors="Chen, Wong, Chen, Tian",
    arxiv="2306.15595",
    equation="p_i -> p_i / s,  s = L'/L",
    aliases={"rope_pi": ("rope+pi", "RoPE with Position Interpolation")},
)
class PositionInterpolation(Extension):
    """Coordinates divided by how far the sequence goes beyond training."""

    traits = Traits(shift_invariant=True, neutral={"factor": 1})

    @dataclass
    class Config:
        """Settings of the interpolation."""

        factor: float | None = setting(None, "s; unset: max(1, T / L)", at_least=1)

    @property
    def prefix_stable(self) -> bool:
        """Only with a fixed factor."""
        return self.config.factor is not None

    def coordinates(self, positions: Positions) -> Positions:
        """Coordinates p / s."""
        return positions.scaled(1.0 / positions.factor(self.shape.train_length, self.config.factor))
