"""ReRoPE and Leaky ReRoPE: distances beyond a window are all read as the window's width, or grow more slowly there.

    rerope:        n -> min(n, w)                              n = p_i - p_j
    leaky_rerope:  n -> n for n < w,  else w + (n - w) / f

Attention at pairs with n >= w uses a query at coordinate w and keys at 0; leaky: a query at p_i / f + w (1 - 1 / f)
and keys at p_j / f.

Shapes: one far region over (R, Lq, Lk), two in an encoder. Not in training or tuning; in testing. Twice the attention
cost.

Source: Su 2023 (the author's blog and released code, for RoPE; w = 512, L = 4096, f = 16). Its reported results add
`logn`.
Departures: any encoding with a term of position pairs, biases included; an encoder does the same on both sides. w
defaults to half the training length. f defaults to (T - w) / (L - w), at least 1: the least that keeps every distance
of the declared length T within training, so it is then not prefix-stable.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.contract import Branch, Extension, Positions, Traits, settle
from pezoo.registry import register, setting


def far_regions(
    positions: Positions, query: Tensor, key: Tensor, step: float | Tensor, window: float | Tensor
) -> tuple[Branch, ...]:
    """Regions of pairs at least `window` apart, read at distance query - key + step; in an encoder on both sides.

    `step` and `window` are numbers or (R, 1).
    """

    def region(sign: int) -> Branch:
        far = positions.replace(query=query + sign * step, key=key, spacing=None, ruler=None)
        limit = window[..., None] if isinstance(window, Tensor) else window
        return Branch(far, lambda here: settle(here.distance()) * sign >= limit, by_distance=True)

    return tuple(region(sign) for sign in ((1,) if positions.causal else (1, -1)))


def capped(positions: Positions, limit: float) -> tuple[Branch, ...]:
    """Regions in which every distance is `limit`."""
    query, key = torch.zeros_like(positions.query), torch.zeros_like(positions.key)
    return far_regions(positions, query, key, limit, limit)


@register(
    "rerope",
    title="Rectified RoPE (ReRoPE)",
    year=2023,
    authors="Su",
    equation="n -> min(n, w)",
)
class ReRoPE(Extension):
    """Distances cut off at a window."""

    traits = Traits(shift_invariant=True, neutral={"window": 1_000_000_000})
    default_at = ("test",)

    @dataclass
    class Config:
        """Settings of the window."""

        window: int | None = setting(None, "w; unset: half the training length", at_least=1)

    @property
    def window(self) -> int:
        """The width w."""
        return self.config.window or max(1, self.shape.train_length // 2)

    def branches(self, positions: Positions) -> tuple[Branch, ...]:
        """Pairs at least w apart, read at distance w."""
        return capped(positions, self.window)


@register(
    "leaky_rerope",
    title="Leaky ReRoPE",
    year=2023,
    authors="Su",
    equation="n -> n if n < w, else w + (n - w)/f",
)
class LeakyReRoPE(ReRoPE):
    """Distances that grow more slowly beyond a window."""

    traits = Traits(shift_invariant=True, prefix_stable=False, neutral={"shrink": 1})

    @dataclass
    class Config:
        """Settings of the window and of the growth beyond it."""

        window: int | None = setting(None, "w; unset: half the training length", at_least=1)
        shrink: float | None = setting(None, "f; unset: what keeps distances within training", at_least=1)

    @property
    def prefix_stable(self) -> bool:
        """Only with a fixed f."""
        return self.config.shrink is not None

    def shrink(self, positions: Positions) -> float | Tensor:
        """f, a number or (R, 1)."""
        if self.config.shrink is not None:
            return self.config.shrink
        room = max(1, self.shape.train_length - self.window)
        if isinstance(positions.length, Tensor):
            return ((positions.length[:, None] - self.window) / room).clamp(min=1.0)
        return max(1.0, (positions.length - self.window) / room)

    def branches(self, positions: Positions) -> tuple[Branch, ...]:
        """Pairs at least w apart, read at w + (n - w) / f."""
        f, w = self.shrink(positions), self.window
        return far_regions(positions, positions.query / f, positions.key / f, w - w / f, w)
