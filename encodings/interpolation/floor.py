"""Frequency floor (HoPE): frequencies too slow to come round within the training length turn no more.

    w_k -> w_k if w_k >= 2 pi n / L,  else 0

Training shows only a part of a slow pair's circle, and a longer text shows the rest for the first time. A pair that
stands still reads content alone. L is the training length, n the number of turns asked for; with L < 2 pi n nothing
turns.

Shapes: frequencies (R, n) -> the same. In training, tuning and testing alike; `at=test` stops the slow pairs of a model
that was trained with them. Name it before other extensions that change frequencies: they leave zero as it is.

Source: Chen, Lv, Luan, Wang, Liu 2024 (arXiv 2410.21216): their High-frequency rotary Position Encoding is `rope+floor`
with n = 1. FoPE, Hua et al. 2024 (arXiv 2412.17739), has the same floor as one of its parts.
Departures: any encoding with frequencies. The rule was read in public code that rebuilds the paper, not in the paper:
whether its authors keep a frequency where none is left, as that code does, could not be established.

>>> from pezoo.contract import Shape
>>> Floor(Shape(8, 1, 1, 64), Floor.Config()).frequencies(torch.tensor([[1.0, 0.1, 0.09]]), None)
tensor([[1.0000, 0.1000, 0.0000]])
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.contract import Extension, Positions, Traits
from pezoo.registry import register, setting


@register(
    "floor",
    title="Frequency floor",
    year=2024,
    authors="Chen, Lv, Luan, Wang, Liu",
    arxiv="2410.21216",
    equation="w_k -> w_k if w_k >= 2 pi n / L, else 0",
    aliases={"hope": ("rope+floor", "High-frequency rotary position encoding (HoPE)")},
)
class Floor(Extension):
    """Frequencies that complete no turn in the training length, set to zero."""

    traits = Traits(shift_invariant=True, neutral={"turns": 0})
    default_at = ("train", "tune", "test")

    @dataclass
    class Config:
        """Settings of the floor."""

        turns: float = setting(1.0, "turns that a frequency must complete in the training length (n)", at_least=0)

    def frequencies(self, inv_freq: Tensor, positions: Positions) -> Tensor:
        """The frequencies, with zero for those below the floor."""
        slowest = 2 * math.pi * self.config.turns / self.shape.train_length
        return torch.where(inv_freq >= slowest, inv_freq, 0.0)
