"""Shifted absolute positions (SHAPE): each training sequence starts at a random coordinate.

    p_i -> p_i + k,   k ~ U{0 ... K - 1} for each sequence in training, k = `test_offset` in testing

Shapes: coordinates (R, L) -> the same. Shows training coordinates up to L + K - 1, but no distance beyond L - 1. On a
shift-invariant encoding it does nothing.

Source: Kiyono, Kobayashi, Suzuki, Inui 2021 (arXiv 2109.05644). K = 500 in their main models, about ten times their
sentences.
Departures: K defaults to four training lengths. The released code tests at offset K, the far edge of what training
shows, which leaves nothing for longer sequences; the default here is 0, and `test_offset` gives any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pezoo.contract import Extension, Positions, Traits
from pezoo.philox import whole
from pezoo.registry import register, setting


@register(
    "shift",
    title="Random shifts",
    year=2021,
    authors="Kiyono, Kobayashi, Suzuki, Inui",
    arxiv="2109.05644",
    equation="p_i -> p_i + k,  k ~ U{0..K-1} for each training sequence",
    aliases={"shape": ("sinusoidal+shift", "SHAPE, shifted absolute position embedding")},
)
class Shift(Extension):
    """A random start of the coordinates of each training sequence."""

    traits = Traits(shift_invariant=True, random=True, neutral={"max_shift": 1})
    default_at = ("train", "tune", "test")

    @dataclass
    class Config:
        """Settings of the shift."""

        max_shift: int | None = setting(None, "K; unset: four training lengths", at_least=1)
        test_offset: int = setting(0, "k in testing", at_least=0)

    @property
    def max_shift(self) -> int:
        """K."""
        return self.config.max_shift or 4 * self.shape.train_length

    def extent(self, extent: int) -> int:
        """L + K - 1."""
        return extent + self.max_shift - 1

    def same_in(self, phases: Sequence[str]) -> bool:
        """Draws outside testing only."""
        return "test" not in phases or len(phases) == 1

    def coordinates(self, positions: Positions) -> Positions:
        """Coordinates p + k."""
        if positions.phase == "test":
            offset, spacing = float(self.config.test_offset), positions.spacing
            spacing = spacing and (spacing[0] + offset, spacing[1])
            bounds = positions.bounds and (positions.bounds[0] + offset, positions.bounds[1] + offset)
            return positions.map(lambda p, index: p + offset, spacing, bounds)
        offsets = positions.draw("shift", lambda: whole(positions.bits("shift", 1), 0, self.max_shift - 1))  # (R, 1)
        bounds = None if positions.draws else positions.bounds
        bounds = bounds and (bounds[0], bounds[1] + self.max_shift - 1)
        return positions.map(lambda p, index: p + offsets, bounds=bounds)
