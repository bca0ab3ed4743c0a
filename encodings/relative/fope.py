"""FoPE, Fourier position embedding: RoPE whose pairs of channels each turn by a mixture of frequencies; slow ones rest.

    (q_2k + i q_2k+1) -> (q_2k + i q_2k+1) (sum_m A_mk cos(p w_m) + i sum_m B_mk sin(p w_m)),  keys alike,
    where w_k = base^(-2k/d) >= 2 pi / L;  the other pairs stay as they are
    A = 1 + N(0, s^2),  B = 1 + N(0, s^2),  matrices of n x n for n such pairs, drawn once for each layer and head

L: the training length; 1: the identity, so that each pair keeps its own frequency as the strongest. Layers in between
mix the frequencies that channels carry, and a channel that listens to several can take them apart. A frequency that
makes no full turn in training says nothing certain about longer texts, and gives way to content alone.

Shapes: q (B, H, Lq, d), k (B, H, Lk, d) -> the same. Training and testing: the same; with L < 7 nothing turns. Products
of different frequencies read where a pair stands, and not its distance alone. Extensions change the w_m; which pairs
turn is settled by their first values.

Source: Hua, Jiang, Lv, Zhang, Sun, Fan, Zhu, Qi, Ding, Zhou 2024 (arXiv 2412.17739, fourth version) and its listing:
s^2 = 2 gain^2 / (n (n + H)), which is what Xavier's rule makes of one tensor for all heads, gain = 0.3. There A and B
stay as drawn; `learned=true` trains them, as the authors' code can.
Departures: where its formulas and its listing differ, the formulas are followed. The listing sets sin = cos = 1 for
pairs at rest, so that their content counts twice (`at_rest=twice`), as do models that ship with FoPE. It also mixes
d/4 pairs at most, and divides A and B by the sums of their columns; such models do neither, nor is it done here.
Frequencies beside those of RoPE, which the formulas allow, have no published values.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pezoo.contract import Encoding, Positions, Shape, Traits
from pezoo.encodings.relative._rotary import rotary_frequencies, turn
from pezoo.errors import UserError
from pezoo.registry import register, setting


def _frequencies(shape: Shape, config: "FoPE.Config") -> Tensor:
    """All d/2 frequencies, zero below the floor."""
    frequencies = rotary_frequencies(shape.head_dim // 2 * 2, config.base)
    return torch.where(frequencies >= 2 * math.pi / shape.train_length, frequencies, 0.0)


@register(
    "fope",
    title="Fourier position embedding (FoPE)",
    year=2024,
    authors="Hua, Jiang, Lv, Zhang, Sun, Fan, Zhu, Qi, Ding, Zhou",
    arxiv="2412.17739",
    equation="q_k -> q_k (sum_m A_mk cos(p w_m) + i sum_m B_mk sin(p w_m)) if w_k >= 2 pi / L, else q_k",
)
class FoPE(Encoding):
    """Queries and keys turned by mixtures of the frequencies that training shows in full."""

    traits = Traits(
        parameters=lambda shape, c: (
            2 * shape.n_heads * int(_frequencies(shape, c).count_nonzero()) ** 2 if c.learned else 0
        ),
    )

    @dataclass
    class Config:
        """Settings of the frequencies and their mixtures."""

        base: float = setting(10000.0, "wavelengths grow from 2 pi to 2 pi base", above=1)
        gain: float = setting(0.3, "how strong other frequencies are beside a pair's own", at_least=0)
        learned: bool = setting(False, "train the mixtures")
        at_rest: Literal["once", "twice"] = setting("once", "how often pairs that do not turn count")

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        if shape.head_dim < 2:
            raise UserError(f"fope turns pairs of channels; head_dim = {shape.head_dim} leaves none to turn")
        n = int(_frequencies(shape, config).count_nonzero())
        std = config.gain * math.sqrt(2 / max(1, n * (n + shape.n_heads)))
        mixtures = torch.eye(n) + std * torch.randn(2, shape.n_heads, n, n)
        if config.learned:
            self.mixtures = nn.Parameter(mixtures)
        else:
            self.register_buffer("mixtures", mixtures)

    @classmethod
    def per_layer(cls, config: Config) -> bool:
        """Each layer has mixtures of its own."""
        return True

    def inv_freq(self) -> Tensor:
        """Frequencies w_k, zero below the floor, (d / 2,)."""
        return _frequencies(self.shape, self.config)

    def prepare(self, positions: Positions) -> tuple[Tensor, Tensor]:
        """The angles p w_m of queries and of keys, (R, 1, L, n) each."""
        n = self.mixtures.shape[-1]
        by_q = positions.angles(positions.query)[:, None, :, :n]
        return by_q, by_q if positions.key is positions.query else positions.angles(positions.key)[:, None, :, :n]

    def rotate(self, q: Tensor, k: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
        """Multiply the pairs of q and k by their mixtures, each at its own position."""
        by_q, by_k = positions.prepared
        return self._turn(q, by_q), self._turn(k, by_k)

    def _turn(self, x: Tensor, angles: Tensor) -> Tensor:
        cosines, sines = self.mixtures
        by = torch.complex(angles.cos() @ cosines, angles.sin() @ sines)  # (R, H, L, n)
        if self.config.at_rest == "twice":
            rest = x.shape[-1] // 2 - by.shape[-1]
            by = torch.cat([by, by.new_full((*by.shape[:-1], rest), math.sqrt(2))], dim=-1)
        return turn(x, by) if by.shape[-1] else x
