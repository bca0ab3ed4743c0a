"""Hierarchical decomposition: a learned table of n positions read as two digits of base n, which reaches n^2.

    x_i = E[token_i] + a u_q + (1 - a) u_r,   p_i = n q + r,   u_m = (W[m] - a W[0]) / (1 - a)

W: table of n rows, q and r: whole part and remainder of p_i / n, a: share of the high digit. Put otherwise, a u_q +
(1 - a) u_r = W[r] + a / (1 - a) (W[q] - W[0]): exactly `learned` for p_i < n. A real coordinate reads between its two
positions, linearly.

Shapes: (B, L, D) -> (B, L, D).
Training and testing: the same; a table trained at length L reaches L^2 positions, of which those from L on were never
trained. A coordinate below 0, or of n^2 or more, raises `Undefined`.

Source: Su 2020 (the author's blog and bert4keras), who reads BERT's 512 trained positions so and then tunes; a = 0.4.
Departures: real coordinates; between n^2 - 1 and n^2 the last position is read.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.contract import Positions, Shape
from pezoo.encodings.absolute.learned import Learned, check_rows
from pezoo.errors import UserError
from pezoo.registry import register, setting


@register(
    "hierarchical",
    title="Hierarchical decomposition of a learned table",
    year=2020,
    authors="Su",
    equation="x_i = E[token_i] + W[r] + a / (1 - a) (W[q] - W[0]),  p_i = n q + r",
)
class Hierarchical(Learned):
    """A learned table whose rows serve as the digits of longer positions."""

    @dataclass
    class Config(Learned.Config):
        """Settings of the table and of its digits."""

        alpha: float = setting(0.4, "share of the high digit (a), not 0.5", above=0, at_most=0.9)

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        if config.alpha == 0.5:
            raise UserError("hierarchical:alpha = 0.5 cannot tell n q + r from n r + q; take another, such as 0.4")

    def check(self, positions: Positions) -> None:
        """Raise `Undefined` for coordinates that two digits do not reach."""
        check_rows("hierarchical", len(self.table) ** 2, positions)

    def position(self, place: Tensor) -> Tensor:
        """Vectors of whole positions (...), (..., D)."""
        n, ratio = len(self.table), self.config.alpha / (1 - self.config.alpha)
        high = self.table[place.div(n, rounding_mode="floor").clamp(max=n - 1)]
        return self.table[place % n] + ratio * (high - self.table[0])

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        """Add the two digits of each position."""
        low = positions.query.floor()
        share = (positions.query - low)[..., None].to(self.table.dtype)
        low = low.long()
        high = (low + 1).clamp(max=len(self.table) ** 2 - 1)
        return x + torch.lerp(self.position(low), self.position(high), share).to(x.dtype)
