"""Dual chunk attention (DCA): positions start anew in each chunk, so that no distance is read as more than a limit.

    n -> (i mod c) - (j mod c)               in the same chunk, where it is i - j
         min(i mod c + c, s) - (j mod c)     in the chunk before
         min(2 c - 1, s) - (j mod c)         in older chunks,               c = s - w

i, j: coordinates of query and key, c: chunk, s: limit, w: local window. The last w tokens are read at their true
distance also across the border of two chunks. Older chunks are told apart by nothing, the places in them are.

Shapes: two far regions over (R, Lq, Lk), four in an encoder. Not in training or tuning; in testing. Three times the
attention cost. With `mscale` the logits of q.k get (mscale ln s' + 1)^2, s' = max(1, T / L) of the declared length T.

Source: An, Huang, Zhang, Gong, Qiu, Zhou, Kong 2024 (arXiv 2402.17463), as in the released code: s = 3L/4, L being the
training length, and w = L/8 or L/16. Qwen2.5-1M ships s = 262144 and w = 8192. A chunk of 3L/4 with distances up to
L - 1 is the same with s = L - 1 and w = L/4 - 1. Parts of the released code have a temperature, mscale = 0.1 or 0.05;
the paper's results, a note there says, were had without.
Departures: any encoding with a term of position pairs, at real coordinates; an encoder does the same on both sides.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.contract import Branch, Extension, Positions, Shape, Traits, settle
from pezoo.errors import UserError
from pezoo.registry import register, setting


@register(
    "dca",
    title="Dual chunk attention (DCA)",
    year=2024,
    authors="An, Huang, Zhang, Gong, Qiu, Zhou, Kong",
    arxiv="2402.17463",
    equation="n -> i - j in a chunk, min(i mod c + c, s) - (j mod c) in the one before, min(2c-1, s) - (j mod c) else",
)
class DCA(Extension):
    """Positions that start anew in each chunk, and a limit to every distance."""

    traits = Traits(neutral={"size": 1_000_000_000})
    default_at = ("test",)

    @dataclass
    class Config:
        """Settings of chunks and of the temperature."""

        size: int | None = setting(None, "s; unset: three quarters of the training length", at_least=2)
        local: int | None = setting(None, "w, less than s; unset: a sixth of s", at_least=0)
        mscale: float = setting(0.0, "how fast logits are sharpened with ln(T / L); 0: not at all", at_least=0)

    def __init__(self, shape: Shape, config: Config, at: tuple[str, ...] | None = None) -> None:
        super().__init__(shape, config, at)
        self.size = config.size or max(2, 3 * shape.train_length // 4)
        self.local = self.size // 6 if config.local is None else config.local
        if self.local >= self.size:
            raise UserError(f"dca:local = {self.local} leaves no chunk of dca:size = {self.size}; type a smaller one")

    @property
    def prefix_stable(self) -> bool:
        """Only without a temperature, which follows the length."""
        return self.config.mscale == 0

    def branches(self, positions: Positions) -> tuple[Branch, ...]:
        """Pairs in neighbouring chunks, and pairs further apart; in an encoder on both sides."""
        chunk, limit = self.size - self.local, self.size

        def number(p: Tensor) -> Tensor:
            return (settle(p) / chunk).floor()

        def far(sign: int, read: Callable[[Tensor], Tensor], apart: Callable[[Tensor], Tensor]) -> Branch:
            query, key = (p - chunk * number(p) for p in (positions.query, positions.key))
            query, key = (read(query), key) if sign > 0 else (query, read(key))

            def region(here: Positions) -> Tensor:
                return apart(sign * (number(here.query)[:, :, None] - number(here.key)[:, None]))

            return Branch(positions.replace(query=query, key=key, spacing=None, ruler=None), region)

        found = []
        for sign in (1,) if positions.causal else (1, -1):
            found.append(far(sign, lambda p: (p + chunk).clamp(max=limit), lambda n: n == 1))
            found.append(far(sign, lambda p: torch.full_like(p, min(2 * chunk - 1, limit)), lambda n: n > 1))
        return tuple(found)

    def scale(self, positions: Positions) -> float | Tensor | None:
        """(mscale ln s' + 1)^2, a number or (R, 1); None without a temperature."""
        if not self.config.mscale:
            return None
        factor = positions.factor(self.shape.train_length)
        return (self.config.mscale * (factor.log() if isinstance(factor, Tensor) else math.log(factor)) + 1) ** 2
