"""CAPE: coordinates of each training sequence are shifted as a whole, jittered one by one, and stretched.

    p_i -> (p_i + D + e_i) s     D ~ U(-G, G) and ln s ~ U(-ln S, ln S) for each sequence, e_i ~ U(-l, l) for each token

With l at most 1/2 the order of tokens stays.

Shapes: coordinates (R, L) -> (B, L). In training and tuning; none in testing. Real coordinates, some below 0, so a
table of positions cannot take it. Distances beyond L - 1 are shown only as far as the stretching goes.

Source: Likhomanenko, Xu, Synnaeve, Collobert, Rogozhnikov 2021 (arXiv 2106.03143), for the sinusoid; G = 5, l = 1/2,
S = 1.03 are their values for text. To show a longer range of coordinates take G of the order of the target length.
Departures: positions are not centred on their mean, which is off for text in the paper too and would not be causal.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from pezoo.contract import Encoding, Extension, Positions, Traits, Undefined
from pezoo.philox import uniform
from pezoo.registry import register, setting


@register(
    "cape",
    title="Continuous augmented positional embeddings (CAPE)",
    year=2021,
    authors="Likhomanenko, Xu, Synnaeve, Collobert, Rogozhnikov",
    arxiv="2106.03143",
    equation="p_i -> (p_i + D + e_i) s,  D ~ U(-G, G), e_i ~ U(-l, l), ln s ~ U(-ln S, ln S)",
)
class CAPE(Extension):
    """Training coordinates shifted, jittered and stretched at random."""

    traits = Traits(shift_invariant=True, random=True, neutral={"max_shift": 0.0, "max_jitter": 0.0, "max_scale": 1.0})
    default_at = ("train", "tune")

    @dataclass
    class Config:
        """Ranges of the draws."""

        max_shift: float = setting(5.0, "G, of the shift of a sequence", at_least=0)
        max_jitter: float = setting(0.5, "l, of the shift of each token", at_least=0, at_most=0.5)
        max_scale: float = setting(1.03, "S, of the stretching of a sequence", at_least=1)

    @property
    def margin(self) -> float:
        """How far a coordinate may move before it is stretched."""
        return self.config.max_shift + self.config.max_jitter

    def extent(self, extent: int) -> int:
        """The largest coordinate moved and stretched as far as it may be."""
        return math.ceil((extent - 1 + self.margin) * self.config.max_scale) + 1

    def refuses(self, encoding: Encoding) -> str | None:
        """An encoding that has nothing below 0, unless no coordinate gets there."""
        try:
            encoding.check(Positions.build(1).scaled(0.0).map(lambda p, index: p - self.margin))
        except Undefined as reason:
            return f"cape draws coordinates below 0, and {reason}"
        return None

    def coordinates(self, positions: Positions) -> Positions:
        """(p + D + e) s."""
        c, n = self.config, positions.key.shape[1] + 2
        drawn = positions.draw("cape", lambda: 2 * uniform(positions.bits("cape", n)) - 1)  # (R, n), in [-1, 1)
        shift, scale = drawn[:, :1] * c.max_shift, (drawn[:, 1:2] * math.log(c.max_scale)).exp()
        jitter = drawn[:, 2:] * c.max_jitter

        def move(p: Tensor, index: Tensor) -> Tensor:
            rows = max(len(jitter), len(index))
            each = jitter.expand(rows, -1).gather(1, index.expand(rows, -1))
            return (p + shift + each) * scale

        return positions.map(move)
