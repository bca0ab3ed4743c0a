"""Evaluate a polynomial modulo 10 (Kazemnejad et al. 2023, arXiv 2305.19466; as in their `s2s_poly` data).

    input: x = -2, then the terms +3 x^2, -1 x^0        - 2  + 3 x^2  - 1 x^0
    output: (3 * 4 - 1) mod 10                          1

Length: terms (n), 1 or more. x is uniform in -2 ... 2, coefficients in -3 ... 3, degrees in 0 ... 3; a degree may
recur, and x^0 is 1 for x = 0 too.
Departures: every number has its sign, also + and before 0, so that all rows have one shape; a power is one token.
"""

import torch
from torch import Tensor

from pezoo.data.tasks._bounds import check_length
from pezoo.registry import register
from pezoo.task import Pairs, Task

PLUS, MINUS, POWERS = 10, 11, 12


@register(
    "polynomial",
    title="Polynomial evaluation",
    year=2023,
    authors="Kazemnejad et al.",
    arxiv="2305.19466",
    family="length generalisation",
    equation="y = sum_i c_i x^{d_i} mod 10",
)
class Polynomial(Task):
    """The last digit of a polynomial's value; length: terms."""

    n_symbols = POWERS + 4
    chance = 0.1  # of many terms; with few, 0 is likelier

    def input_length(self, length: int) -> int:
        """Two tokens for x, three for a term."""
        return 2 + 3 * length

    def output_length(self, length: int) -> int:
        """One digit."""
        return 1

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform x, coefficients and degrees."""
        check_length("polynomial", length, 1)
        x = torch.randint(-2, 3, (batch_size, 1), generator=generator)
        coefficients = torch.randint(-3, 4, (batch_size, length), generator=generator)
        degrees = torch.randint(4, (batch_size, length), generator=generator)
        terms = torch.cat([_signed(coefficients), (POWERS + degrees)[..., None]], 2)
        value = (coefficients * x**degrees).sum(1, keepdim=True)
        return Pairs(torch.cat([_signed(x).flatten(1), terms.flatten(1)], 1), value % 10)


def _signed(numbers: Tensor) -> Tensor:
    """Numbers below ten as sign and digit, (B, n) -> (B, n, 2)."""
    return torch.stack([torch.where(numbers < 0, MINUS, PLUS), numbers.abs()], 2)
