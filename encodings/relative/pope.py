"""PoPE: a channel is a length, which reads content alone, turned by an angle, which reads the position alone.

    l_ij = sum_c softplus(q_ic) softplus(k_jc) cos((p_i - p_j) w_c - delta_c) / sqrt(d)
    w_c = base^(-c/d),   c = 0 ... d - 1

Each of a head's d channels has a frequency of its own, where RoPE has d/2. delta_c is learned, for each head and
channel, held in [-2 pi, 0], and shared by the layers. As a product of vectors: channel c of q becomes the pair
softplus(q_c) (cos, sin)(p_i w_c), and that of k softplus(k_c) (cos, sin)(p_j w_c + delta_c).

Shapes: q (B, H, Lq, d), k (B, H, Lk, d) -> the same, 2d wide; values keep d. Training and testing: the same.

Source: Gopalakrishnan, Csordas, Schmidhuber, Mozer 2025 (arXiv 2509.10534). The library x-transformers has the same
formula, range and base. delta starts at zero, or anywhere in its range (`phase=uniform`). `phase=none` leaves it out,
and an encoder then cannot tell left from right.
Departures: the division by sqrt(d) and one delta for all layers are those of x-transformers. The paper was read at
second hand, and no code of its authors was found, so neither could be established. A delta that training has carried
out of its range gets no gradient, as there.

>>> PoPE(Shape(4, 1, 1, 8), PoPE.Config()).inv_freq()
tensor([1.0000, 0.1000, 0.0100, 0.0010])
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pezoo.contract import Encoding, Positions, Shape, Traits
from pezoo.encodings.relative._rotary import rotary_frequencies, turns
from pezoo.registry import register, setting


@register(
    "pope",
    title="Polar coordinate position embedding (PoPE)",
    year=2025,
    authors="Gopalakrishnan, Csordas, Schmidhuber, Mozer",
    arxiv="2509.10534",
    equation="l_ij = sum_c softplus(q_ic) softplus(k_jc) cos((i - j) base^(-c/d) - delta_c) / sqrt(d)",
)
class PoPE(Encoding):
    """Channels of queries and keys as lengths, each turned by an angle of its position."""

    traits = Traits(
        shift_invariant=True,
        parameters=lambda shape, c: 0 if c.phase == "none" else shape.n_heads * shape.head_dim,
    )

    @dataclass
    class Config:
        """Settings of the angles."""

        base: float = setting(10000.0, "wavelengths grow from 2 pi to 2 pi base", above=1)
        phase: Literal["zero", "uniform", "none"] = setting("zero", "where delta starts in [-2 pi, 0]; none: no delta")

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        start = torch.zeros(shape.n_heads, 1, shape.head_dim)
        if config.phase == "uniform":
            start.uniform_(-2 * math.pi, 0)
        self.phase = None if config.phase == "none" else nn.Parameter(start)

    def inv_freq(self) -> Tensor:
        """Frequencies w_c, (d,)."""
        return rotary_frequencies(2 * self.shape.head_dim, self.config.base)

    def prepare(self, positions: Positions) -> tuple[Tensor, Tensor]:
        """exp(i p w) of queries, (R, 1, Lq, d), and exp(i (p w + delta)) of keys, (R, H, Lk, d)."""
        by_q = turns(positions.angles(positions.query))
        by_k = by_q if positions.key is positions.query else turns(positions.angles(positions.key))
        if self.phase is not None:
            phase = self.phase.float()
            ended = phase.detach().clamp(-2 * math.pi, 0)
            phase = torch.where(phase == ended, phase, ended)  # clamp has no gradient at its ends in newer PyTorch
            by_k = by_k * torch.polar(torch.ones_like(phase), phase)
        return by_q, by_k

    def rotate(self, q: Tensor, k: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
        """Lengths of q and k as vectors of their angles: first all cosines, then all sines."""
        by_q, by_k = positions.prepared
        return _polar(q, by_q), _polar(k, by_k)


def _polar(x: Tensor, by: Tensor) -> Tensor:
    """softplus(x) (B, H, L, d) times complex numbers (R, H or 1, L, d): (B, H, L, 2d), real parts first."""
    length = F.softplus(x.float())
    return torch.cat((length * by.real, length * by.imag), dim=-1).to(x.dtype)
