"""Blockwise causal attention: a query sees its own block of tokens and the block before it.

    l_ij = -inf unless floor(i / b) - floor(j / b) is 0 or 1        i, j: places in the document, b: block

Shapes: mask (R, Lq, Lk). Not in training or tuning; in testing. With b half the training length L every distance
stays below L.

Source: Sun et al. 2022 (arXiv 2212.10554), section 3.3, for testing xPos models that were trained with full
attention; b = L / 2.
Departures: none. In an encoder a query sees the block after its own as well.
"""

from dataclasses import dataclass

from torch import Tensor

from pezoo.contract import Extension, Positions, Traits
from pezoo.registry import register, setting


@register(
    "blockwise",
    title="Blockwise causal attention",
    year=2022,
    authors="Sun, Dong, Patra, Ma, Huang, Benhaim, Chaudhary, Song, Wei",
    arxiv="2212.10554",
    equation="l_ij = -inf unless floor(i/b) - floor(j/b) in {0, 1}",
)
class Blockwise(Extension):
    """Attention to the own block and the one before."""

    traits = Traits(shift_invariant=True, neutral={"size": 1_000_000_000})
    default_at = ("test",)

    @dataclass
    class Config:
        """Settings of the blocks."""

        size: int | None = setting(None, "b; unset: half the training length", at_least=1)

    def mask(self, positions: Positions) -> Tensor:
        """True inside a block and into its neighbour."""
        size = self.config.size or max(1, self.shape.train_length // 2)
        query, key = positions.query_index // size, positions.key_index // size
        return (query[:, :, None] - key[:, None]).abs() <= 1

    def reach(self, first: int, last: int) -> tuple[tuple[int, int], ...]:
        """Whole blocks, from the one before the first query's to the one after the last's."""
        size = self.config.size or max(1, self.shape.train_length // 2)
        return (((first // size - 1) * size, (last // size + 2) * size),)
