"""Blockwise causal attention: a query sees its own block of tokens and the block before it.

    l_ij = -inf unless floor(i / b) - floor(j / b) is 0 ... n        i, j: places in the document, b: block

n is the number of blocks before its own, 1 if it is not set; with `before=0` blocks know nothing of each other. b is
`size`, or else the `share` of the training length L.

Shapes: mask (R, Lq, Lk). Not in training or tuning; in testing. With b half the training length every distance stays
below L.

Source: Sun et al. 2022 (arXiv 2212.10554), section 3.3, for testing xPos models that were trained with full
attention; b = L / 2. Llama 4's chunked attention (Meta 2025, as in transformers) is
`blockwise:before=0:at=train,tune,test`, b = 8192.
Departures: none. In an encoder a query sees as many blocks after its own.
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
    equation="l_ij = -inf unless floor(i/b) - floor(j/b) in {0..n}",
)
class Blockwise(Extension):
    """Attention to the own block and the one before."""

    traits = Traits(shift_invariant=True, neutral={"size": 1_000_000_000})
    default_at = ("test",)

    @dataclass
    class Config:
        """Settings of the blocks."""

        size: int | None = setting(None, "b; unset: a share of the training length", at_least=1)
        share: float = setting(0.5, "b as a share of the training length, where size is unset", above=0, at_most=1000)
        before: int = setting(1, "blocks before its own that a query sees (n)", at_least=0)

    @property
    def size(self) -> int:
        """b, at least 1."""
        return self.config.size or max(1, int(self.config.share * self.shape.train_length))

    def mask(self, positions: Positions) -> Tensor:
        """True inside a block and into its neighbours."""
        query, key = positions.query_index // self.size, positions.key_index // self.size
        return (query[:, :, None] - key[:, None]).abs() <= self.config.before

    def reach(self, first: int, last: int) -> tuple[tuple[int, int], ...]:
        """Whole blocks: the queries' own, and the neighbours of the first and of the last."""
        size, n = self.size, self.config.before
        return (((first // size - n) * size, (last // size + n + 1) * size),)
