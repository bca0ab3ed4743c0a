"""Qwen's dynamic NTK: NTK-aware scaling by a factor that jumps each time the length doubles.

    base -> base a^(r / (r - 2)),   a = max(1, 2^ceil(log2(T / L) + 1) - 1)        T: declared total length

a is 1 up to the training length L, 3 up to 2 L, 7 up to 4 L, and so on: between jumps the frequencies stay, and with
them a cache of turned keys.

Shapes: frequencies (R, n) -> the same. Not in training; in tuning and testing. Depends on T, hence not prefix-stable.

Source: Bai et al. 2023 (arXiv 2309.16609), section 2.5 in words; the formula is that of the released code, with which
frequencies and attention agree. Qwen adds `logn` and windows.
Departures: none.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.contract import Positions, Traits
from pezoo.encodings.interpolation.ntk import SlowedBase, slow_base
from pezoo.registry import register


@register(
    "qwen_dynamic_ntk",
    title="Qwen's dynamic NTK",
    year=2023,
    authors="Bai et al. (Qwen team)",
    arxiv="2309.16609",
    equation="base -> base a^(r/(r-2)),  a = max(1, 2^ceil(log2(T/L) + 1) - 1)",
)
class QwenDynamicNTK(SlowedBase):
    """NTK-aware scaling in jumps, by the current length."""

    traits = Traits(shift_invariant=True, prefix_stable=False)

    @dataclass
    class Config:
        """Settings: none."""

    def frequencies(self, inv_freq: Tensor, positions: Positions) -> Tensor:
        """Frequencies of the base for this length."""
        length, train_length = positions.length, self.shape.train_length
        if not isinstance(length, Tensor):
            return slow_base(inv_freq, max(1.0, 2.0 ** math.ceil(math.log2(length / train_length) + 1) - 1))
        ratio = length[:, None].double() / train_length
        return slow_base(inv_freq, (2 ** torch.ceil(ratio.log2() + 1) - 1).clamp(min=1))
