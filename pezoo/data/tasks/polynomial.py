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
    symbols = (*"0123456789+-", *(f"x^{degree}" for degree in range(4)))
    chance = 0.1  # of many terms; with few, 0 is likelier

    def input_length(self, length: int) -> int:
        """Two tokens for x, three for a term."""
        return 2 + 3 * length

    def output_length(self, length: int) -> int:
        """One digit."""
        return 1

    def solve(self, inputs: Tensor) -> Tensor:
        """Term by term."""
        what = "x with its sign, then terms of sign, digit and power"
        self.require(inputs.shape[1] % 3 == 2 and inputs.shape[1] > 2, inputs, what)
        signs, digits = (torch.cat([inputs[:, place : place + 1], inputs[:, place + 2 :: 3]], 1) for place in (0, 1))
        degrees = inputs[:, 4::3] - POWERS
        good = (signs >= PLUS) & (signs <= MINUS) & (digits < PLUS)
        self.require(torch.cat([good, degrees >= 0], 1), inputs, what)
        numbers = torch.where(signs == MINUS, -digits, digits)
        return (numbers[:, 1:] * numbers[:, :1] ** degrees).sum(1, keepdim=True) % 10

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform x, coefficients and degrees."""
        check_length("polynomial", length, 1)
        x = torch.randint(-2, 3, (batch_size, 1), generator=generator)
        coefficients = torch.randint(-3, 4, (batch_size, length), generator=generator)
        degrees = torch.randint(4, (batch_size, length), generator=generator)
        terms = torch.cat([_signed(coefficients), (POWERS + degrees)[..., None]], 2)
        inputs = torch.cat([_signed(x).flatten(1), terms.flatten(1)], 1)
        return Pairs(inputs, self.solve(inputs))


def _signed(numbers: Tensor) -> Tensor:
    """Numbers below ten as sign and digit, (B, n) -> (B, n, 2)."""
    return torch.stack([torch.where(numbers < 0, MINUS, PLUS), numbers.abs()], 2)
