"""Mixed-radix NTK: every frequency is slowed, a little at the fast end, by s at the slow end.

    w_k -> w_k exp(-a (k + 1)^b),   a = ln(s) / n^b,   k = 0 ... n - 1

n is the number of frequencies, s the factor, b how late the slowing sets in (b = 1 is a geometric series).

Shapes: frequencies (R, n) -> the same. Not in training; in tuning and testing. s is the setting `factor`, else
max(1, T / L).

Source: Su 2023 (the author's blog on mixed-radix encodings, and the ReRoPE repository), for RoPE, with b = 0.75 and
`logn` beside it.
Departures: any encoding that has frequencies.

>>> from pezoo.contract import Shape
>>> rule = MixedNTK(Shape(8, 1, 1, 64), MixedNTK.Config(factor=16.0))
>>> slowed = rule.frequencies(torch.ones(1, 4), Positions.build(1))
>>> [round(1 / w, 2) for w in slowed[0].tolist()]
[2.67, 5.2, 9.34, 16.0]
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.contract import Extension, Positions, Traits
from pezoo.registry import register, setting


@register(
    "mixed_ntk",
    title="Mixed-radix NTK",
    year=2023,
    authors="Su",
    equation="w_k -> w_k exp(-a (k + 1)^b),  a = ln(s) / n^b",
)
class MixedNTK(Extension):
    """Every frequency slowed, the slowest by the factor."""

    traits = Traits(shift_invariant=True, neutral={"factor": 1})

    @dataclass
    class Config:
        """Settings of the slowing."""

        factor: float | None = setting(None, "s; unset: max(1, T / L)", at_least=1)
        power: float = setting(0.75, "b: how late the slowing sets in", above=0)

    @property
    def prefix_stable(self) -> bool:
        """Only with a fixed factor."""
        return self.config.factor is not None

    def frequencies(self, inv_freq: Tensor, positions: Positions) -> Tensor:
        """w_k s^(-((k + 1) / n)^b)."""
        n = inv_freq.shape[-1]
        share = (torch.arange(1, n + 1, device=inv_freq.device) / n) ** self.config.power
        factor = positions.factor(self.shape.train_length, self.config.factor)
        return inv_freq * factor**-share
