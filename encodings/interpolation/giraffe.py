"""Giraffe's bases: slow frequencies are made slower still (power), or constant and then zero (truncated), or both.

    power:      w_k -> w_k (1 - k / n)^q,   k = 0 ... n - 1
    truncated:  w_k -> w_k if w_k >= c,  c / 16 if c / 8 <= w_k < c,  0 if w_k < c / 8        c = 2 pi / L

    both:       power, then truncated

c is the frequency that turns once in the training length L; a frequency of zero leaves its pair of channels to
content alone. A linear factor s, if any, divides all frequencies first; `power=0` leaves it alone, and is Position
Interpolation by frequencies.

Shapes: frequencies (R, n) -> the same. Not in training; in tuning and testing. It is a change of base: the authors
tune after it.

Source: Pal et al. 2023 (arXiv 2308.10882) and the authors' code, whose middle group is 2 pi / (16 L) and where power
and truncation can be had together. q = 0.5.
Departures: none.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pezoo.contract import Extension, Positions, Traits
from pezoo.registry import register, setting


@register(
    "giraffe",
    title="Giraffe (power and truncated bases)",
    year=2023,
    authors="Pal, Karkhanis, Roberts, Dooley, Sundararajan, Naidu",
    arxiv="2308.10882",
    equation="w_k -> w_k (1 - k/n)^q, and/or w_k cut below 2 pi / L",
)
class Giraffe(Extension):
    """Slow frequencies slowed by a power, or cut."""

    traits = Traits(shift_invariant=True, neutral={"power": 0})

    @dataclass
    class Config:
        """Settings of the basis."""

        basis: Literal["power", "truncated", "both"] = setting("power", "what becomes of slow frequencies")
        power: float = setting(0.5, "q", at_least=0)
        factor: float = setting(1.0, "s: divides all frequencies first", at_least=1)

    def frequencies(self, inv_freq: Tensor, positions: Positions) -> Tensor:
        """The power basis, the truncated one, or one after the other."""
        inv_freq = inv_freq / self.config.factor
        if self.config.basis != "truncated":
            n = inv_freq.shape[-1]
            inv_freq = inv_freq * (1 - torch.arange(n, device=inv_freq.device) / n) ** self.config.power
        if self.config.basis == "power":
            return inv_freq
        cut = 2 * math.pi / self.shape.train_length
        slow = torch.where(inv_freq >= cut / 8, cut / 16, 0.0)
        return torch.where(inv_freq >= cut, inv_freq, slow)
