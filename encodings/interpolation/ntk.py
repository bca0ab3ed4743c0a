"""NTK-aware scaling: a larger base, so that the lowest frequency is slowed by s and the highest not at all.

    w_k -> w_k s^(-k / (n - 1)),  k = 0 ... n - 1

Equal to base -> base s^(r / (r - 2)) for w_k = base^(-2k/r), r = 2n.

Shapes: frequencies (R, n) -> the same. Not in training; in tuning and testing. s is the setting `factor`, else max(1,
T / L).

Source: bloc97 2023 (community post); written up in Peng et al. 2023 (arXiv 2309.00071), equations 14-16. Middle
frequencies are slowed by less than s, so a factor above L'/L is common in practice. Here for any encoding that has
frequencies.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.contract import Encoding, Extension, Positions, Traits
from pezoo.registry import register, setting


def slow_base(inv_freq: Tensor, factor: float | Tensor) -> Tensor:
    """Frequencies (R, n) of the base that slows the lowest of them by `factor`, a number or (R, 1)."""
    n = inv_freq.shape[-1]
    exponent = torch.arange(n, dtype=torch.float64, device=inv_freq.device) / (n - 1)
    factor = factor.double() if isinstance(factor, Tensor) else factor
    return (inv_freq.double() * factor**-exponent).float()


class SlowedBase(Extension):
    """Frequencies of a larger base; subclasses say how much larger."""

    def refuses(self, encoding: Encoding) -> str | None:
        """Encodings with a single frequency, which is the highest and the lowest."""
        inv_freq = encoding.inv_freq()
        enough = inv_freq is not None and len(inv_freq) > 1
        return None if enough else "NTK scaling needs at least two frequencies; raise head_dim"


@register(
    "ntk",
    title="NTK-aware scaling",
    year=2023,
    authors="bloc97; Peng, Quesnelle, Fan, Shippole",
    arxiv="2309.00071",
    equation="base -> base s^(r/(r-2)),  s = L'/L",
)
class NTK(SlowedBase):
    """A base raised so that the lowest frequency is slowed by the factor."""

    traits = Traits(shift_invariant=True, neutral={"factor": 1})

    @dataclass
    class Config:
        """Settings of the scaling."""

        factor: float | None = setting(None, "s; unset: max(1, T / L)", at_least=1)

    @property
    def prefix_stable(self) -> bool:
        """Only with a fixed factor."""
        return self.config.factor is not None

    def frequencies(self, inv_freq: Tensor, positions: Positions) -> Tensor:
        """Frequencies of the raised base."""
        return slow_base(inv_freq, positions.factor(self.shape.train_length, self.config.factor))
