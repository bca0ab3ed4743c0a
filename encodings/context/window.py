"""Sliding window: a query sees the last W tokens only, itself included.

    l_ij = -inf for i - j >= W         i, j: places in the document

W is `size`, or else the `share` of the training length.

Shapes: mask (R, Lq, Lk). Not in training unless asked (`window:size=128:at=train,tune,test`); in tuning and testing.
With N layers a token still draws on N (W - 1) + 1 tokens.

Source: Beltagy, Peters, Cohan 2020 (arXiv 2004.05150); Jiang et al. 2023 (arXiv 2310.06825). In an encoder it reaches
as far ahead as back.
"""

from dataclasses import dataclass

from torch import Tensor

from pezoo.contract import Extension, Positions, Traits
from pezoo.registry import register, setting


@register(
    "window",
    title="Sliding-window attention",
    year=2020,
    authors="Beltagy, Peters, Cohan",
    arxiv="2004.05150",
    equation="l_ij = -inf for i - j >= W",
)
class Window(Extension):
    """Attention to the last tokens only."""

    traits = Traits(shift_invariant=True, neutral={"size": 1_000_000_000})

    @dataclass
    class Config:
        """Settings of the window."""

        size: int | None = setting(None, "W; unset: a share of the training length", at_least=1)
        share: float = setting(1.0, "W as a share of the training length, where size is unset", above=0, at_most=1000)

    @property
    def size(self) -> int:
        """W, at least 1."""
        return self.config.size or max(1, round(self.config.share * self.shape.train_length))

    def mask(self, positions: Positions) -> Tensor:
        """True where |i - j| < W."""
        return self.distance_mask(positions.steps())

    def distance_mask(self, steps: Tensor) -> Tensor:
        """True where |i - j| < W."""
        return steps.abs() < self.size

    def reach(self, first: int, last: int) -> tuple[tuple[int, int], ...]:
        """W - 1 tokens to both sides."""
        return ((first - self.size + 1, last + self.size),)
