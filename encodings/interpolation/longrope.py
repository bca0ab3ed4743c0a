"""LongRoPE: each frequency has a divisor of its own, found by search, one list for short texts and one for long.

    w_k -> w_k / a_k,     logits of q.k times m^2,   m = sqrt(1 + ln s / ln L)

a: the list `short` up to the training length L, `long` for declared lengths T > L (`table` fixes one of the two).
Published lists never fall with k.

Shapes: frequencies (R, n) -> the same; a list holds n factors. Not in training; in tuning and testing. s is the
setting `factor`, else max(1, T / L). The switch at L makes it not prefix-stable, and so does an unset s that is needed.

Source: Ding et al. 2024 (arXiv 2402.13753); lists, switch and m as in the released models.
Departures: the search itself is not here. Lists default to ones for short texts and to YaRN's factors for long, one of
those from which the paper's search starts. No tokens at the start are left unscaled (its n-hat; released models have
none).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pezoo.contract import Encoding, Extension, Positions, Traits, to_device
from pezoo.encodings.interpolation.yarn import blend
from pezoo.registry import register, setting


@register(
    "longrope",
    title="LongRoPE",
    year=2024,
    authors="Ding, Zhang, Zhang, Xu, Shang, Xu, Yang, Yang",
    arxiv="2402.13753",
    equation="w_k -> w_k / a_k (a: searched),  q.k -> (1 + ln s / ln L) q.k",
)
class LongRoPE(Extension):
    """Frequencies divided by given factors, one list for short texts and one for long."""

    traits = Traits(shift_invariant=True, prefix_stable=False, neutral={"factor": 1})

    @dataclass
    class Config:
        """Settings of the factors."""

        factor: float | None = setting(None, "s, for m and the default of long; unset: max(1, T / L)", at_least=1)
        short: list[float] = setting([], "factors up to the training length; unset: ones", above=0)  # noqa: RUF009
        long: list[float] = setting([], "factors beyond it; unset: YaRN's", above=0)  # noqa: RUF009
        table: Literal["switch", "short", "long"] = setting("switch", "which list: by length, or always one")
        magnitude: float | None = setting(None, "m; unset: sqrt(1 + ln s / ln L)", above=0)

    @property
    def prefix_stable(self) -> bool:
        """Only with one list, where neither it nor m is made of T."""
        c = self.config
        given = c.magnitude is not None and (c.table == "short" or bool(c.long))
        return c.table != "switch" and (c.factor is not None or given)

    def refuses(self, encoding: Encoding) -> str | None:
        """Lists that do not have a factor for each frequency."""
        inv_freq = encoding.inv_freq()
        n = 0 if inv_freq is None else len(inv_freq)
        for name in ("short", "long"):
            given = len(getattr(self.config, name))
            if given not in (0, n):
                return f"longrope:{name} has {given} factors, but the encoding has {n} frequencies"
        return None

    def factor(self, positions: Positions) -> float | Tensor:
        """s, a number or (R, 1)."""
        return positions.factor(self.shape.train_length, self.config.factor)

    def frequencies(self, inv_freq: Tensor, positions: Positions) -> Tensor:
        """Divided frequencies, each row by its own length."""
        c, train_length = self.config, self.shape.train_length
        device = inv_freq.device
        short = inv_freq / to_device(inv_freq.new_tensor(c.short, device="cpu"), device) if c.short else inv_freq
        if c.long:
            long = inv_freq / to_device(inv_freq.new_tensor(c.long, device="cpu"), device)
        else:
            long = blend(inv_freq, self.factor(positions), train_length, 1.0, 32.0, "index")
        if c.table != "switch":
            return short if c.table == "short" else long
        if isinstance(positions.length, Tensor):
            return torch.where((positions.length > train_length)[:, None], long, short)
        return long if positions.length > train_length else short

    def scale(self, positions: Positions) -> float | Tensor:
        """m^2."""
        if self.config.magnitude is not None:
            return self.config.magnitude**2
        factor = self.factor(positions)
        log = factor.log() if isinstance(factor, Tensor) else math.log(factor)
        return 1 + log / math.log(max(2, self.shape.train_length))
