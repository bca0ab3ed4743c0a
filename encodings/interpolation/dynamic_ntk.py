"""Dynamic NTK: the base grows with the current total length, and is untouched up to the training length.

    base -> base a^(r / (r - 2)),   a = f T / L - (f - 1) for T > L, else 1        T: declared total length

Shapes: frequencies (R, n) -> the same. Not in training; in tuning and testing. Depends on T, hence not prefix-stable:
every key turns anew as T grows, so the cache keeps keys unrotated. Nothing is remembered between forwards: visiting
lengths in another order changes nothing.

Source: emozilla 2023 (community post); Peng et al. 2023 (arXiv 2309.00071), section 3.3. f = 1 is the plain form,
other f the common library form.
"""

from dataclasses import dataclass

from torch import Tensor

from pezoo.contract import Positions, Traits
from pezoo.encodings.interpolation.ntk import SlowedBase, slow_base
from pezoo.registry import register, setting


@register(
    "dynamic_ntk",
    title="Dynamic NTK",
    year=2023,
    authors="emozilla; Peng, Quesnelle, Fan, Shippole",
    arxiv="2309.00071",
    equation="base -> base (f T/L - (f - 1))^(r/(r-2)) for T > L",
)
class DynamicNTK(SlowedBase):
    """NTK-aware scaling by the current length."""

    traits = Traits(shift_invariant=True, prefix_stable=False)

    @dataclass
    class Config:
        """Settings of the scaling."""

        strength: float = setting(1.0, "f: how much faster than T / L the scale grows", above=0)

    def frequencies(self, inv_freq: Tensor, positions: Positions) -> Tensor:
        """Frequencies of the base for this length."""
        f = self.config.strength
        return slow_base(inv_freq, f * positions.factor(self.shape.train_length) - (f - 1))
