"""Coordinates read from a table of drawn values: what members of this family share."""

import torch
from torch import Tensor

from pezoo.contract import Extension, Positions, Traits


def by_index(positions: Positions, table: Tensor) -> Positions:
    """The coordinates table[row, index], from a table (R, T) of all positions of a sequence."""

    def read(p: Tensor, index: Tensor) -> Tensor:
        rows = max(len(table), len(index))
        return table.expand(rows, -1).gather(1, index.expand(rows, -1))

    return positions.map(read)


def whole(low: int, high: int, generator: torch.Generator) -> int:
    """A number from U{low ... high}; `low` where there is none."""
    return int(torch.randint(low, max(low, high) + 1, (), generator=generator))


class Drawn(Extension):
    """Coordinates drawn for each sequence in training and tuning; subclasses say how."""

    traits = Traits(prefix_stable=False, random=True)
    default_at = ("train", "tune")

    def sample(self, length: int, generator: torch.Generator) -> Tensor:
        """Coordinates of one sequence, (T,), float32."""
        raise NotImplementedError

    def coordinates(self, positions: Positions) -> Positions:
        """The drawn coordinates, by index."""
        length = int(torch.as_tensor(positions.length).max())
        table = positions.draw(type(self).__name__, lambda g: self.sample(length, g))  # (B, T)
        return by_index(positions, table)
