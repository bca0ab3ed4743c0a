"""An expression of digits without brackets, modulo five (Delétang et al. 2023, arXiv 2207.02098), regular.

    input: digits 0 ... 4 with + (5), - (6) or * (7) between them; output: the value modulo 5

    1 + 2 * 3 -> 2

Products come before sums and differences, which are taken from left to right. An expression has odd length; an even n
is lowered by one.
"""

import torch
from torch import Tensor

from pezoo.registry import register
from pezoo.task import Pairs, Task

PLUS, TIMES = 5, 7


@register(
    "modular_arithmetic",
    title="Modular arithmetic",
    year=2023,
    authors="Delétang et al.",
    arxiv="2207.02098",
    family="regular",
    equation="y = (d_0 o_1 d_1 o_2 ... d_k) mod 5",
)
class ModularArithmetic(Task):
    """The value modulo five of an expression without brackets; length: digits and operators."""

    n_symbols = 8
    symbols = "01234+-*"
    chance = 0.2

    def input_length(self, length: int) -> int:
        """The odd number that is n or n - 1."""
        return length - 1 + length % 2

    def output_length(self, length: int) -> int:
        """One symbol."""
        return 1

    def solve(self, inputs: Tensor) -> Tensor:
        """Products first, then the sum."""
        what = "digits 0 ... 4 with operators between them"
        self.require(inputs.shape[1] % 2 == 1, inputs, what)
        self.require((inputs >= PLUS) == (torch.arange(inputs.shape[1]) % 2 == 1), inputs, what)
        total, term = torch.zeros_like(inputs[:, 0]), inputs[:, 0]  # what is summed up, and the product under way
        for operator, digit in zip(inputs[:, 1::2].T, inputs[:, 2::2].T, strict=True):
            times = operator == TIMES
            total = total.where(times, total + term)
            term = torch.where(times, term * digit % 5, digit.where(operator == PLUS, -digit))
        return (total + term)[:, None] % 5

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform digits and operators."""
        inputs = torch.randint(5, (batch_size, self.input_length(length)), generator=generator)
        inputs[:, 1::2] = torch.randint(PLUS, TIMES + 1, inputs[:, 1::2].shape, generator=generator)
        return Pairs(inputs, self.solve(inputs))
