"""Learned absolute embeddings: one trained vector a position, added at the input; undefined beyond its table.

    x_i = E[token_i] + W(p_i)        W: table of N rows; a real coordinate reads between its two rows, linearly

Shapes: (B, L, D) -> (B, L, D). N is the extent of coordinates that training shows: the training length, or more under
`random` and `shift`.
Training and testing: the same. A coordinate below 0, or of N or more, raises `Undefined`; which coordinates occur is
decided by extensions, so `learned+pi` reaches any length.

Source: Gehring et al. 2017 (arXiv 1705.03122). Initialisation N(0, 0.02^2).
Departures: real coordinates; between N - 1 and N the last row is read.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pezoo.contract import Encoding, Positions, Shape, Traits, Undefined
from pezoo.registry import register, setting


def check_rows(name: str, rows: int, positions: Positions) -> None:
    """Raise `Undefined` for coordinates outside the `rows` positions that an encoding has."""
    if not positions.within(0, rows):
        outside = min(positions.smallest(), 0) or positions.largest()
        raise Undefined(f"{name} has {rows} positions; coordinate {outside:g} has none")


def read_rows(table: Tensor, coordinates: Tensor) -> Tensor:
    """Rows of a table (N, D) at real coordinates (...), linear between them: (..., D)."""
    low = coordinates.floor().clamp(0, len(table) - 1)
    share = (coordinates - low)[..., None].to(table.dtype)
    low = low.long()
    high = (low + 1).clamp(max=len(table) - 1)
    return torch.lerp(table[low], table[high], share)


@register(
    "learned",
    title="Learned absolute",
    year=2017,
    authors="Gehring, Auli, Grangier, Yarats, Dauphin",
    arxiv="1705.03122",
    equation="x_i = E[token_i] + W[p_i]",
)
class Learned(Encoding):
    """One trained vector for each position of a table."""

    traits = Traits(parameters=lambda shape, c: (c.max_position or shape.extent or shape.train_length) * shape.d_model)

    @dataclass
    class Config:
        """Settings of the table."""

        max_position: int | None = setting(None, "rows of the table; unset: as many as training shows", at_least=1)

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        rows = config.max_position or shape.extent or shape.train_length
        self.table = nn.Parameter(torch.randn(rows, shape.d_model) * 0.02)

    def check(self, positions: Positions) -> None:
        """Raise `Undefined` for coordinates outside the table."""
        check_rows("learned", len(self.table), positions)

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        """Add W(p)."""
        return x + read_rows(self.table, positions.query).to(x.dtype)
