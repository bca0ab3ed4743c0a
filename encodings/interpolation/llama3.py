"""Llama 3.1's frequency scaling: short wavelengths kept, long ones stretched, with a ramp between.

    w_k -> (1 - u_k) w_k / s + u_k w_k,   u = clip((L / lambda_k - low) / (high - low), 0, 1),   lambda_k = 2 pi / w_k

A wavelength below L / high is kept, one above L / low is stretched s-fold. This is NTK by parts with its ramp in
turns, without a temperature.

Shapes: frequencies (R, n) -> the same. Not in training; in tuning and testing. s is the setting `factor`, else max(1,
T / L).

Source: Llama team 2024 (arXiv 2407.21783) and the released model code: s = 8, low = 1, high = 4, L = 8192, base 500
000 (here `rope:base=500000`).
Departures: none.
"""

from dataclasses import dataclass

from torch import Tensor

from pezoo.contract import Positions
from pezoo.encodings.interpolation.yarn import NTKByParts, blend
from pezoo.errors import UserError
from pezoo.registry import register, setting


@register(
    "llama3",
    title="Llama 3.1 frequency scaling",
    year=2024,
    authors="Llama team, Meta",
    arxiv="2407.21783",
    equation="w_k -> (1 - u) w_k / s + u w_k,  u = clip((L/lambda_k - low) / (high - low), 0, 1)",
)
class Llama3(NTKByParts):
    """Long wavelengths stretched by the factor, short ones kept."""

    @dataclass
    class Config:
        """Settings of the ramp."""

        factor: float | None = setting(None, "s; unset: max(1, T / L)", at_least=1)
        low: float = setting(1.0, "wavelengths above L / low are stretched in full", above=0)
        high: float = setting(4.0, "wavelengths below L / high are kept", above=0)

        def __post_init__(self) -> None:
            if self.high <= self.low:
                raise UserError(f"llama3:high = {self.high:g} must exceed low = {self.low:g}")

    def frequencies(self, inv_freq: Tensor, positions: Positions) -> Tensor:
        """The blend of kept and stretched wavelengths."""
        c = self.config
        return blend(inv_freq, self.factor(positions), self.shape.train_length, c.low, c.high, "turns")
