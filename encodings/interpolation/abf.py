"""Adjusted base frequency (ABF): another base, chosen once.

    w_k = base^(-2k/r) -> base'^(-2k/r)

Shapes: frequencies (R, n), n = r / 2, -> the same; those that the encoding has set to zero stay zero. Not in
training; in tuning and testing (`at=train,tune,test` trains with it from the start, which equals `rope:base=...`).

Source: Xiong et al. 2023 (arXiv 2309.16039), base' = 500 000; Code Llama, Roziere et al. 2023 (arXiv 2308.12950),
base' = 1 000 000. Both tune after the change. For short training lengths a large base leaves most pairs nearly still:
try several.
Departures: the geometric series is replaced whatever it was, so that the base of the encoding need not be known; put
`abf` before other extensions of frequencies.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.contract import Extension, Positions, Traits
from pezoo.registry import register, setting


@register(
    "abf",
    title="Adjusted base frequency (ABF)",
    year=2023,
    authors="Xiong, Liu, Molybog, Zhang, Bhargava, Hou, Martin, et al.",
    arxiv="2309.16039",
    equation="w_k -> base'^(-2k/r)",
)
class ABF(Extension):
    """A new base for the frequencies."""

    traits = Traits(shift_invariant=True, neutral={"base": 10000})

    @dataclass
    class Config:
        """Settings of the base."""

        base: float = setting(500000.0, "base'", above=1)

    def frequencies(self, inv_freq: Tensor, positions: Positions) -> Tensor:
        """The series of the new base, where the old one is not zero."""
        n = inv_freq.shape[-1]
        exponents = -torch.arange(n, dtype=torch.float64, device=inv_freq.device) / n
        return torch.where(inv_freq > 0, (self.config.base**exponents).float(), inv_freq)
