"""ReRoPE: distances beyond a window are all read as the window's width.

    n -> min(n, w)         n = p_i - p_j

Attention at pairs with n >= w uses a query at coordinate w and keys at 0.

Shapes: one far region over (R, Lq, Lk). Not in training or tuning; in testing. Twice the attention cost.

Source: Su 2023 (the author's blog and released code, for RoPE). Its reported results add `logn`.
Departures: any encoding with a term of position pairs, biases included. w defaults to half the training length.
"""

from dataclasses import dataclass

import torch

from pezoo.contract import Branch, Extension, Positions, Traits
from pezoo.registry import register, setting


@register(
    "rerope",
    title="Rectified RoPE (ReRoPE)",
    year=2023,
    authors="Su",
    equation="n -> min(n, w)",
)
class ReRoPE(Extension):
    """Distances cut off at a window."""

    traits = Traits(shift_invariant=True)
    default_at = ("test",)

    @dataclass
    class Config:
        """Settings of the window."""

        window: int | None = setting(None, "w; unset: half the training length", at_least=1)

    def branches(self, positions: Positions) -> tuple[Branch, ...]:
        """Pairs at least w apart, read at distance w."""
        window = self.config.window or max(1, self.shape.train_length // 2)
        query, key = torch.full_like(positions.query, window), torch.zeros_like(positions.key)
        far = positions.replace(query=query, key=key, spacing=None)
        return (Branch(far, lambda here: here.distance() >= window),)
