"""YaRN and NTK-by-parts: slow frequencies are interpolated, fast ones kept, with a ramp between; YaRN also sharpens the softmax.

    w_k -> (1 - g_k) w_k / s + g_k w_k,     logits of q.k times (0.1 ln s + 1)^2 (YaRN only)

g ramps from 0 for pairs that turn at most beta_slow times in the training length L to 1 for those that turn beta_fast times or more.
With rho_k = L w_k / (2 pi) turns: g = clip((rho - beta_slow) / (beta_fast - beta_slow), 0, 1) for `ramp=turns`, linear in k between the pairs with
those turns, rounded outwards, for `ramp=index`.

Shapes: frequencies (R, n) -> the same. Not in training; in tuning and testing. s is the setting `factor`, else max(1, T / L).

Source: Peng, Quesnelle, Fan, Shippole 2023 (arXiv 2309.00071), equations 17-22; by parts: bloc97 2023.
Departures: `ramp=index` is the default, as in the released models; the paper's is `ramp=turns`. The temperature multiplies all of q.k (paper); code that
scales cosine and sine tables differs where only a part of the head turns. At small L look at beta_fast: no pair may turn 32 times, and then all are
interpolated.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pezoo.contract import Extension, Positions, Traits
from pezoo.errors import UserError
from pezoo.registry import register, setting


def kept_share(inv_freq: Tensor, train_length: int, slow: float, fast: float, ramp: str) -> Tensor:
    """How much of each frequency is kept, g, (R, n) in [0, 1]."""
    n = inv_freq.shape[-1]
    if ramp == "turns" or n < 2:
        turns = train_length * inv_freq / (2 * math.pi)
        return ((turns - slow) / (fast - slow)).clamp(0, 1)
    first, second = inv_freq[:, :1], inv_freq[:, 1:2]

    def index(turns: float) -> Tensor:  # the real index of the pair that turns so often
        return torch.log(first * train_length / (2 * math.pi * turns)) / torch.log(first / second)

    low = index(fast).floor().clamp(0, 2 * n - 1)
    high = index(slow).ceil().clamp(0, 2 * n - 1)
    high = torch.where(high == low, high + 0.001, high)
    place = torch.arange(n, device=inv_freq.device)
    return 1 - ((place - low) / (high - low)).clamp(0, 1)


@dataclass
class ByPartsConfig:
    """Settings of the interpolation by parts."""

    factor: float | None = setting(None, "s; unset: max(1, T / L)", at_least=1)
    beta_fast: float = setting(32.0, "pairs that turn so often in L are kept", above=0)
    beta_slow: float = setting(1.0, "pairs that turn no more than this are interpolated in full", above=0)
    ramp: Literal["index", "turns"] = setting("index", "what the ramp between them is linear in")

    def __post_init__(self) -> None:
        if self.beta_fast <= self.beta_slow:
            raise UserError(f"beta_fast = {self.beta_fast:g} must exceed beta_slow = {self.beta_slow:g}")


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

    traits = Traits(shift_invariant=True)
    Config = ByPartsConfig

    @property
    def prefix_stable(self) -> bool:
        """Only with a fixed factor."""
        return self.config.factor is not None

    def frequencies(self, inv_freq: Tensor, positions: Positions) -> Tensor:
        """The blend of kept and interpolated frequencies."""
        c = self.config
        factor = positions.factor(self.shape.train_length, c.factor)
        kept = kept_share(inv_freq, self.shape.train_length, c.beta_slow, c.beta_fast, c.ramp)
        return (1 - kept) * inv_freq / factor + kept * inv_freq


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

    def scale(self, positions: Positions) -> float | Tensor:
        """(0.1 ln s + 1)^2."""
        factor = positions.factor(self.shape.train_length, self.config.factor)
        log = factor.log() if isinstance(factor, Tensor) else math.log(factor)
        return (0.1 * log + 1) ** 2
