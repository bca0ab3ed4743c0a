"""Entropy-aware ABF (EABF): another base for RoPE, and logits sharpened with the place, but not in the first layers.

    w_k -> base'^(-2k/r)
    q.k -> max(1, ln(i + 1) / ln L) q.k  in layers 3, 4, ...      i: place in the document, L: training length

That is `abf` and `logn` in one, less the temperature of two layers.

Shapes: frequencies (R, n), n = r / 2, -> the same; one factor a query, (R, Lq). Not in training; in tuning and
testing. Up to the training length the temperature does nothing.

Source: Zhang, Li, Liu 2024 (arXiv 2401.07004) and the authors' code: base' = 500 000, L = 4096.
Departures: two layers are left as they are, as the authors' code means to do for Llama 2; other models may want another
number. There the exemption sets a name that attention never reads, so in fact all layers are scaled: `unscaled=0`.
In a mixture of layers the first layers are those of this scheme. The other departures are those of `abf`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pezoo.contract import Extension, Positions, Traits
from pezoo.encodings.context.logn import LogN
from pezoo.encodings.interpolation.abf import ABF
from pezoo.registry import register, setting


@dataclass
class EABFConfig(ABF.Config):
    """Settings of the base and of the temperature."""

    unscaled: int = setting(2, "first layers, whose logits get no temperature", at_least=0)


@register(
    "eabf",
    title="Entropy-aware adjusted base frequency (EABF)",
    year=2024,
    authors="Zhang, Li, Liu",
    arxiv="2401.07004",
    equation="w_k -> base'^(-2k/r),  q.k -> max(1, ln(i + 1) / ln L) q.k from the third layer on",
)
class EABF(ABF):
    """A new base for the frequencies, and logits scaled by the logarithm of the place."""

    traits = Traits(shift_invariant=True, neutral={"base": 10000, "unscaled": 1_000_000_000})
    Config: ClassVar[type] = EABFConfig

    def refuses_beside(self, other: Extension) -> str | None:
        """What it is made of."""
        return (
            f"eabf would do twice what {other.name} does; take one of them" if isinstance(other, ABF | LogN) else None
        )

    def scale(self, positions: Positions) -> Tensor | None:
        """The temperature of this layer."""
        if positions.layer < self.config.unscaled:
            return None
        sigma = (positions.query_index + 1).log() / math.log(max(2, self.shape.train_length))
        return sigma.clamp(min=1.0)
