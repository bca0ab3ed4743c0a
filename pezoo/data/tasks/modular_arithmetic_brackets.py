"""An expression in brackets, modulo five (Delétang et al. 2023, arXiv 2207.02098), deterministic context-free.

    input: digits 0 ... 4, + (5), - (6), * (7), opening (8) and closing bracket (9), n symbols in all
    output: the value modulo 5

    ((4*2)-(-1)) -> 4

An expression of 5 symbols or more is two in brackets with an operator between them, split at a uniform place; shorter
ones are d, -d, (d) and (-d).
"""

import torch

from pezoo.data.tasks._expressions import encode, expression
from pezoo.data.tasks._rows import python_random
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
    chance = 0.29  # at length 40, 0.31 at 100: a product with 0 is 0

    def output_length(self, length: int) -> int:
        """One symbol."""
        return 1

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform splits, digits and operators."""
        draws = python_random(generator)
        texts, values = zip(*(expression(length, "+-*", draws) for _ in range(batch_size)), strict=True)
        return Pairs(encode(texts, "01234+-*()"), torch.tensor(values)[:, None])
