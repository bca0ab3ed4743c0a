"""An expression in brackets, modulo five (Delétang et al. 2023, arXiv 2207.02098), deterministic context-free.

    input: digits 0 ... 4, + (5), - (6), * (7), opening (8) and closing bracket (9), n symbols in all
    output: the value modulo 5

    ((4*2)-(-1)) -> 4

An expression of 5 symbols or more is two in brackets with an operator between them, split at a uniform place; shorter
ones are d, -d, (d) and (-d).
"""

import torch
from torch import Tensor

from pezoo.data.tasks._expressions import encode, expression, value
from pezoo.data.tasks._rows import python_random, texts
from pezoo.registry import register
from pezoo.task import Pairs, Task


@register(
    "modular_arithmetic_brackets",
    title="Modular arithmetic with brackets",
    year=2023,
    authors="Delétang et al.",
    arxiv="2207.02098",
    family="deterministic context-free",
    equation="y = value of e mod 5,  e = d | -d | (d) | (-d) | (e o e)",
)
class ModularArithmeticBrackets(Task):
    """The value modulo five of an expression in brackets; length: symbols."""

    n_symbols = 10
    symbols = "01234+-*()"
    chance = 0.29  # at length 40, 0.31 at 100: a product with 0 is 0

    def output_length(self, length: int) -> int:
        """One symbol."""
        return 1

    def solve(self, inputs: Tensor) -> Tensor:
        """From the inside out."""
        values = [value(text) for text in texts(inputs, self.symbols)]
        good = torch.tensor([found is not None for found in values])
        self.require(good, inputs, "d, -d, (d), (-d), and two of them in brackets with an operator between, and so on")
        return torch.tensor(values)[:, None]

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform splits, digits and operators."""
        draws = python_random(generator)
        inputs = encode([expression(length, "+-*", draws) for _ in range(batch_size)], self.symbols)
        return Pairs(inputs, self.solve(inputs))
