"""Sinusoidal absolute encoding, added to the token embeddings at the input.

    x_i = sqrt(D) E[token_i] + P(p_i),   P(p)[2k] = sin(p w_k),  P(p)[2k+1] = cos(p w_k),  w_k = base^(-2k/D)

with p_i the (real) coordinate of token i and k = 0 ... D/2 - 1.

Shapes: (B, L, D) -> (B, L, D). Training and testing: the same; no parameters.

Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5.
Departures: an odd width D drops the last cosine. Frequencies are open to extensions (`sinusoidal+ntk`), which the
paper does not consider.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.contract import Encoding, Positions, Shape
from pezoo.registry import register, setting


@register(
    "sinusoidal",
    title="Sinusoidal",
    year=2017,
    authors="Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin",
    arxiv="1706.03762",
    equation="x_i = sqrt(D) E[token_i] + [sin(p_i w_k), cos(p_i w_k)]_k,  w_k = base^(-2k/D)",
)
class Sinusoidal(Encoding):
    """Sines and cosines of the position, added to the token embeddings."""

    @dataclass
    class Config:
        """Settings of the sinusoid."""

        base: float = setting(10000.0, "wavelengths grow from 2 pi to 2 pi base", above=1)

    def inv_freq(self) -> Tensor:
        """Frequencies w_k, (ceil(D / 2),)."""
        return sinusoid_frequencies(self.shape, self.config.base)

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        """sqrt(D) x + P(p)."""
        return add_sinusoid(x, positions.angles(positions.query))


def sinusoid_frequencies(shape: Shape, base: float) -> Tensor:
    """base^(-2k/D) for k = 0 ... ceil(D/2) - 1."""
    return (base ** (-torch.arange(0, shape.d_model, 2, dtype=torch.float64) / shape.d_model)).float()


def add_sinusoid(x: Tensor, angles: Tensor) -> Tensor:
    """sqrt(D) x plus interleaved sines and cosines of angles (R, L, n), in the dtype of x."""
    table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., : x.shape[-1]]
    return x * x.shape[-1] ** 0.5 + table.to(x.dtype)
