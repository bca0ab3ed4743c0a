"""Resonance RoPE: wavelengths are rounded to whole numbers of tokens, so that turns seen in training come back.

    w_k -> 2 pi / round(2 pi / w_k)

Shapes: frequencies (R, n) -> the same. In training, tuning and testing alike. A pair whose wavelength is at most the
training length then shows no angle in testing that training has not shown. After another rule for frequencies it
rounds that rule's wavelengths: write `rope+yarn+resonance`. Beside an extension that leaves test coordinates between
whole numbers, as `pi` does, it is refused: no wavelength would be whole there. Interpolate frequencies instead:
`rope+giraffe:power=0:factor=4+resonance`.

Source: Wang et al. 2024 (arXiv 2403.00071) and the authors' code, where it is applied over plain, NTK and YaRN
frequencies.
Departures: any encoding with frequencies that are not learned.

>>> rounded = Resonance(None, Resonance.Config()).frequencies(torch.tensor([[1.0, 0.1, 0.0]]), None)
>>> (2 * math.pi / rounded).tolist()
[[6.0, 63.0, inf]]
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.contract import Encoding, Extension, Positions, Traits
from pezoo.registry import register


@register(
    "resonance",
    title="Resonance RoPE",
    year=2024,
    authors="Wang, Kobyzev, Lu, Rezagholizadeh, Liu",
    arxiv="2403.00071",
    equation="w_k -> 2 pi / round(2 pi / w_k)",
)
class Resonance(Extension):
    """Wavelengths rounded to whole numbers."""

    traits = Traits(
        shift_invariant=True,
        deviations={"slows_the_slow_frequencies_most": "wavelengths are rounded up or down"},
    )
    default_at = ("train", "tune", "test")

    @dataclass
    class Config:
        """Settings: none."""

    def refuses(self, encoding: Encoding) -> str | None:
        """Learned frequencies, to which rounding lets no gradient through."""
        with torch.enable_grad():  # wherever the scheme is built
            inv_freq = encoding.inv_freq()
        if inv_freq is None or not inv_freq.requires_grad:
            return None
        return f"{encoding.name} learns its frequencies, and rounded ones have no gradient; it works with rope"

    def refuses_beside(self, other: Extension) -> str | None:
        """What leaves test coordinates between whole numbers: a turn of whole tokens then ends between two of them."""
        if "test" not in self.at or "test" not in other.at:
            return None
        with torch.device("cpu"):  # wherever the scheme is built
            beyond = other.coordinates(
                Positions.build(2, declared=self.shape.train_length + 1, phase="test", rows=(0,))
            )
        if not beyond.query.frac().any():
            return None
        factor = getattr(other.config, "factor", None) or 4
        return (
            "resonance would read its wavelengths, whole numbers of tokens, between whole numbers. "
            f"Interpolate frequencies instead, such as giraffe:power=0:factor={factor:g}+resonance"
        )

    def frequencies(self, inv_freq: Tensor, positions: Positions) -> Tensor:
        """Frequencies of the nearest whole wavelengths, at least one token long; zero stays zero."""
        wavelengths = (2 * math.pi / inv_freq.double()).round().clamp(min=1)
        return (2 * math.pi / wavelengths).float()
