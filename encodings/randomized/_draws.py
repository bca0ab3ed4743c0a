"""Coordinates read from a table of drawn values: what members of this family share."""

import torch
from torch import Tensor

from pezoo.contract import Extension, Positions, Traits


def by_index(positions: Positions, table: Tensor, extent: int | None) -> Positions:
    """The coordinates table[row, index], from a table (R, T) of whole sequences; below `extent`, if that is known."""

    def read(p: Tensor, index: Tensor) -> Tensor:
        rows = max(len(table), len(index))
        return table.expand(rows, -1).gather(1, index.expand(rows, -1))

    return positions.map(read, bounds=None if extent is None else (0.0, extent - 1.0))


def places(positions: Positions) -> Tensor:
    """0 ... T - 1 for the longest declared length T, (1, T)."""
    return torch.arange(positions.longest, device=positions.query.device)[None]


class Drawn(Extension):
    """Coordinates drawn for each sequence in training and tuning; subclasses say how."""

    traits = Traits(shift_invariant=True, prefix_stable=False, random=True)
    default_at = ("train", "tune")

    def sample(self, positions: Positions) -> Tensor:
        """Coordinates of whole sequences, (R, T)."""
        raise NotImplementedError

    def coordinates(self, positions: Positions) -> Positions:
        """The drawn coordinates, by index."""
        table = positions.draw(self.name, lambda: self.sample(positions)).to(torch.float32)
        return by_index(positions, table, None if positions.draws else self.extent(positions.longest))
