"""YaRN and NTK by parts: slow frequencies are interpolated, fast ones kept; YaRN also sharpens the softmax.

    w_k -> (1 - g_k) w_k / s + g_k w_k,     logits of q.k times m^2, m = 0.1 c ln s + 1, c = 1 (YaRN only)

g ramps from 0 for pairs that turn at most beta_slow times in the training length L to 1 for those that turn beta_fast
times or more. With rho_k = L w_k / (2 pi) turns: g = clip((rho - beta_slow) / (beta_fast - beta_slow), 0, 1) for
`ramp=turns`, linear in k between the pairs with those turns for `ramp=index`, rounded outwards unless
`truncate=false`.

Shapes: frequencies (R, n) -> the same. Not in training; in tuning and testing. s is the setting `factor`, else max(1,
T / L) of the declared length T, which tuning fixes; `dynamic_yarn` has no such setting and follows T always.

Source: Peng, Quesnelle, Fan, Shippole 2023 (arXiv 2309.00071), equations 17-22; by parts: bloc97 2023.
Published configurations: gpt-oss (arXiv 2508.10925) has `truncate=false`. `attention_factor` is m itself, by which
many codes multiply their tables of cosines and sines: q and k both get it, and logits its square. `mscale` is that of
DeepSeek (arXiv 2405.04434), c. Its models also divide the tables by 0.1 b ln s + 1, b = mscale_all_dim, and multiply
the logits by the square of that: b cancels, and has no setting. Where a model divides and does not multiply, give m =
(0.1 c ln s + 1) / (0.1 b ln s + 1) as `attention_factor`.
Departures: `ramp=index` is the default, as in the released models; the paper's is `ramp=turns`. The temperature
multiplies all of q.k (paper); code that scales tables differs where only a part of the head turns (DeepSeek's other
part gets b for c; in its published models they are equal). At
small L look at beta_fast: no pair may turn 32 times, and then all are interpolated.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pezoo.contract import Extension, Positions, Traits
from pezoo.errors import UserError
from pezoo.registry import register, setting


def kept_share(
    inv_freq: Tensor, train_length: int, slow: float, fast: float, ramp: str, truncate: bool = True
) -> Tensor:
    """How much of each frequency is kept, g, (R, n) in [0, 1]."""
    n = inv_freq.shape[-1]
    if ramp == "turns" or n < 2:
        turns = train_length * inv_freq / (2 * math.pi)
        return ((turns - slow) / (fast - slow)).clamp(0, 1)
    first, second = inv_freq[:, :1], inv_freq[:, 1:2]

    def index(turns: float) -> Tensor:  # the real index of the pair that turns so often
        return torch.log(first * train_length / (2 * math.pi * turns)) / torch.log(first / second)

    low, high = index(fast), index(slow)
    if truncate:
        low, high = low.floor(), high.ceil()
    low, high = low.clamp(0, 2 * n - 1), high.clamp(0, 2 * n - 1)
    high = torch.where(high == low, high + 0.001, high)
    place = torch.arange(n, device=inv_freq.device)
    kept = 1 - ((place - low) / (high - low)).clamp(0, 1)
    return torch.where(inv_freq > 0, kept, 1.0)  # where all are zero there is no ramp


def blend(
    inv_freq: Tensor,
    factor: float | Tensor,
    train_length: int,
    slow: float,
    fast: float,
    ramp: str,
    truncate: bool = True,
) -> Tensor:
    """Kept and interpolated frequencies blended, (R, n); exactly `inv_freq` at factor 1 and where all is kept."""
    kept = kept_share(inv_freq, train_length, slow, fast, ramp, truncate)
    return torch.lerp(inv_freq / factor, inv_freq, kept)


@dataclass
class FactorConfig:
    """How far to interpolate."""

    factor: float | None = setting(None, "s; unset: max(1, T / L)", at_least=1)


@dataclass
class RampConfig:
    """Which frequencies to interpolate."""

    beta_fast: float = setting(32.0, "pairs that turn so often in L are kept", above=0)
    beta_slow: float = setting(1.0, "pairs that turn no more than this are interpolated in full", above=0)
    ramp: Literal["index", "turns"] = setting("index", "what the ramp between them is linear in")
    truncate: bool = setting(True, "ends of ramp=index are rounded outwards to whole pairs")

    def __post_init__(self) -> None:
        if self.beta_fast <= self.beta_slow:
            raise UserError(f"beta_fast = {self.beta_fast:g} must exceed beta_slow = {self.beta_slow:g}")


@dataclass
class TemperatureConfig(RampConfig):
    """How much to sharpen the logits."""

    attention_factor: float | None = setting(None, "m; logits get its square; unset: 0.1 mscale ln s + 1", above=0)
    mscale: float = setting(1.0, "c: how fast m grows with ln s; 0: no temperature", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention_factor is not None and self.mscale != 1:
            raise UserError("attention_factor is the magnitude itself, so mscale does nothing beside it; drop one")


@dataclass
class ByPartsConfig(RampConfig, FactorConfig):
    """Settings of the interpolation by parts."""


@dataclass
class YaRNConfig(TemperatureConfig, FactorConfig):
    """Settings of the interpolation by parts and of the temperature."""


@register(
    "ntk_by_parts",
    title="NTK by parts",
    year=2023,
    authors="bloc97; Peng, Quesnelle, Fan, Shippole",
    arxiv="2309.00071",
    equation="w_k -> (1 - g_k) w_k / s + g_k w_k",
)
class NTKByParts(Extension):
    """Slow frequencies divided by the factor, fast ones kept."""

    traits = Traits(shift_invariant=True, neutral={"factor": 1})
    Config: ClassVar[type] = ByPartsConfig

    @property
    def prefix_stable(self) -> bool:
        """Only with a fixed factor."""
        return self.config.factor is not None

    def factor(self, positions: Positions) -> float | Tensor:
        """s, a number or (R, 1)."""
        return positions.factor(self.shape.train_length, self.config.factor)

    def frequencies(self, inv_freq: Tensor, positions: Positions) -> Tensor:
        """The blend of kept and interpolated frequencies."""
        c, length = self.config, self.shape.train_length
        return blend(inv_freq, self.factor(positions), length, c.beta_slow, c.beta_fast, c.ramp, c.truncate)


@register(
    "yarn",
    title="YaRN",
    year=2023,
    authors="Peng, Quesnelle, Fan, Shippole",
    arxiv="2309.00071",
    equation="w_k -> (1 - g_k) w_k / s + g_k w_k,  q.k -> (0.1 ln s + 1)^2 q.k",
)
class YaRN(NTKByParts):
    """Interpolation by parts, and logits sharpened with the factor."""

    Config: ClassVar[type] = YaRNConfig

    def scale(self, positions: Positions) -> float | Tensor:
        """m^2."""
        if self.config.attention_factor is not None:
            return self.config.attention_factor**2
        factor = self.factor(positions)
        log = factor.log() if isinstance(factor, Tensor) else math.log(factor)
        return (0.1 * self.config.mscale * log + 1) ** 2


@register(
    "dynamic_yarn",
    title="Dynamic YaRN",
    year=2023,
    authors="Peng, Quesnelle, Fan, Shippole",
    arxiv="2309.00071",
    equation="as yarn, with s = max(1, T/L) of the current length T",
)
class DynamicYaRN(YaRN):
    """YaRN by the current length, also after tuning."""

    traits = Traits(shift_invariant=True, prefix_stable=False)
    Config = TemperatureConfig

    @property
    def prefix_stable(self) -> bool:
        """Never: every key turns anew as the length grows."""
        return False

    def factor(self, positions: Positions) -> float | Tensor:
        """max(1, T / L)."""
        return positions.factor(self.shape.train_length)
