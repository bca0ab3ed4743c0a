"""LM-Infinite: a query sees the first tokens and a window, and no distance is read as more than a limit.

    sees j with i - j < W or j < S;    n -> min(n, D)        n = p_i - p_j

S: first tokens, W: window, D: limit; i, j: places in the document.

Shapes: mask (R, Lq, Lk) and one far region, two in an encoder. Not in training or tuning; in testing. Twice the
attention cost.

Source: Han et al. 2023 (arXiv 2308.16137): W = D = L, 10 to 100 first tokens. The authors' code limits distances only
where i - j >= W: the same for W = D.
Departures: any encoding with a term of position pairs; middle tokens are not brought back. S defaults to 10.
"""

from dataclasses import dataclass

from torch import Tensor

from pezoo.contract import Branch, Extension, Positions, Traits
from pezoo.encodings.interpolation.rerope import capped
from pezoo.registry import register, setting


@register(
    "lm_infinite",
    title="LM-Infinite",
    year=2023,
    authors="Han, Wang, Peng, Xiong, Chen, Ji, Wang",
    arxiv="2308.16137",
    equation="sees i - j < W or j < S;  n -> min(n, D)",
)
class LMInfinite(Extension):
    """A window and the first tokens, with distances cut off."""

    traits = Traits(shift_invariant=True, neutral={"size": 1_000_000_000, "limit": 1e9})
    default_at = ("test",)

    @dataclass
    class Config:
        """Settings of the mask and the limit."""

        first: int = setting(10, "S", at_least=0)
        size: int | None = setting(None, "W; unset: the training length", at_least=1)
        limit: float | None = setting(None, "D; unset: the training length", above=0)

    def mask(self, positions: Positions) -> Tensor:
        """The window and the first tokens."""
        window = positions.steps().abs() < (self.config.size or self.shape.train_length)
        return window | (positions.key_index < self.config.first)[:, None]

    def reach(self, first: int, last: int) -> tuple[tuple[int, int], ...]:
        """The first tokens, and the window."""
        size = self.config.size or self.shape.train_length
        return (0, self.config.first), (first - size + 1, last + size)

    def branches(self, positions: Positions) -> tuple[Branch, ...]:
        """Pairs at least D apart, read at distance D."""
        return capped(positions, self.config.limit or self.shape.train_length)
