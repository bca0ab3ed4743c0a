"""Coordinates read from a table of drawn values: what members of this family share."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pezoo.contract import Extension, Positions, Traits


def by_index(positions: Positions, table: Tensor, extent: int) -> Positions:
    """The coordinates table[row, index], from a table (R, T) of all positions of a sequence, 0 ... extent - 1."""

    def read(p: Tensor, index: Tensor) -> Tensor:
        rows = max(len(table), len(index))
        return table.expand(rows, -1).gather(1, index.expand(rows, -1))

    return positions.map(read, bounds=(0.0, extent - 1.0))


def draw_table(
    positions: Positions, salt: str, sample: Callable[[int, torch.Generator], Tensor], scope: str = "sequence"
) -> Tensor:
    """What `sample(length, generator)` gives for each row and its declared length, (R, T), padded with zeros."""
    if not isinstance(positions.length, Tensor):
        return positions.draw(salt, lambda g: sample(positions.length, g), scope)
    rows = positions.rows[:1] * len(positions.rows) if scope == "batch" else positions.rows
    drawn = [
        positions.replace(rows=(row,)).draw(salt, lambda g, n=n: sample(n, g), scope)[0]
        for row, n in zip(rows, positions.lengths, strict=True)
    ]
    return pad_sequence(drawn, batch_first=True)


def whole(low: int, high: int, generator: torch.Generator) -> int:
    """A number from U{low ... high}; `low` where there is none."""
    return int(torch.randint(low, max(low, high) + 1, (), generator=generator))


class Drawn(Extension):
    """Coordinates drawn for each sequence in training and tuning; subclasses say how."""

    traits = Traits(shift_invariant=True, prefix_stable=False, random=True)
    default_at = ("train", "tune")

    def sample(self, length: int, generator: torch.Generator) -> Tensor:
        """Coordinates of one sequence, (T,), float32."""
        raise NotImplementedError

    def coordinates(self, positions: Positions) -> Positions:
        """The drawn coordinates, by index."""
        table = draw_table(positions, type(self).__name__, self.sample)
        return by_index(positions, table, self.extent(max(positions.lengths)))
