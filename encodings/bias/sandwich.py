"""Sandwich: the products of sinusoidal encodings with each other as a bias, with another strength for each head.

    l_ij^h = q_i . k_j / sqrt(d) + (sum_k cos(n base^(-2k/D)) - D/2) / (8h/H)
    n = p_i - p_j,   k = 0 ... D/2 - 1,   h = 1 ... H

D is a width of its own, not the model's. The constant D/2 makes the bias 0 at n = 0; softmax ignores it. Low heads
have the strongest bias. It falls roughly as a logarithm, with small waves.

Shapes: distances (...) -> (H, ...). Training and testing: the same; no parameters.

Source: Chi, Fan, Rudnicky, Ramadge 2022 (arXiv 2212.10356); D = 128, base 10000. A port in wide use counts k = 1 ...
D/2 and takes D = head_dim: `first=1`, `width`.
Departures: none.

At distance 1 the first of 8 heads has

>>> from pezoo.contract import Shape
>>> shape = Shape(64, 8, 1, 16)
>>> round(float(Sandwich(shape, Sandwich.Config()).distance_bias(torch.tensor(1.0))[0]), 4)
-1.9063
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.contract import Encoding, Traits
from pezoo.registry import register, setting


@register(
    "sandwich",
    title="Sandwich",
    year=2022,
    authors="Chi, Fan, Rudnicky, Ramadge",
    arxiv="2212.10356",
    equation="l_ij = q_i.k_j / sqrt(d) + (sum_k cos((i - j) base^(-2k/D)) - D/2) / (8h/H)",
)
class Sandwich(Encoding):
    """The product of two sinusoidal encodings, divided by each head's number."""

    traits = Traits(shift_invariant=True, bidirectional=False)

    @dataclass
    class Config:
        """Settings of the sinusoids."""

        width: int = setting(128, "D: twice the number of sinusoids", at_least=2)
        base: float = setting(10000.0, "wavelengths grow from 2 pi to 2 pi base", above=1)
        first: int = setting(0, "k of the fastest sinusoid", at_least=0, at_most=1)

    def distance_bias(self, distance: Tensor) -> Tensor:
        """The sum of cosines less its largest value, for each head, (H, ...)."""
        c, n_heads = self.config, self.shape.n_heads
        total = torch.zeros_like(distance, dtype=torch.float32)
        for k in range(c.first, c.first + c.width // 2):  # one at a time: never (..., D / 2)
            total += torch.cos(distance * c.base ** (-2 * k / c.width)) - 1
        strengths = n_heads / (8 * torch.arange(1, n_heads + 1, device=distance.device))
        return strengths.view(-1, *(1,) * distance.ndim) * total
