"""Length-normalised sinusoid: the sinusoid of p L / T, so that any sequence spans the phases of a training sequence.

    x_i = sqrt(D) E[token_i] + P(p_i L / T)        P: the sinusoidal encoding, L: training length, T: total length

At T = L this is `sinusoidal`; at T > L it is position interpolation of the absolute sinusoid; at T < L positions are
stretched.

Shapes: (B, L, D) -> (B, L, D). Training and testing: the same. Depends on T, hence not prefix-stable: T must be known
before the first token.

Source: no paper; a teaching article on encodings that extrapolate gives sin and cos of (p / T) 2 pi / f and leaves f
open.
Departure: f_k = 2 pi base^(2k/D) / L, the choice that makes T = L the ordinary sinusoid.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from pezoo.contract import Encoding, Positions, Traits
from pezoo.encodings.absolute.sinusoidal import add_sinusoid, sinusoid_frequencies
from pezoo.registry import register, setting


@register(
    "dynamic_sinusoidal",
    title="Length-normalised sinusoid",
    equation="x_i = sqrt(D) E[token_i] + P(p_i L / T)",
)
class DynamicSinusoidal(Encoding):
    """The sinusoid of the position's share of the whole length."""

    traits = Traits(prefix_stable=False)

    @dataclass
    class Config:
        """Settings of the length-normalised sinusoid."""

        base: float = setting(10000.0, "wavelengths grow from 2 pi to 2 pi base", above=1)
        norm: Literal["length", "beyond"] = setting(
            "length", "divide by T / L always, or only beyond the training length"
        )

    def inv_freq(self) -> Tensor:
        """Frequencies base^(-2k/D), (ceil(D / 2),)."""
        return sinusoid_frequencies(self.shape, self.config.base)

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        """sqrt(D) x + P(p L / T)."""
        length = positions.length[:, None] if isinstance(positions.length, Tensor) else positions.length
        ratio = length / self.shape.train_length
        if self.config.norm == "beyond":
            ratio = positions.factor(self.shape.train_length)
        return add_sinusoid(x, positions.angles(positions.query / ratio))
