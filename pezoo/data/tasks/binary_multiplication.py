"""Multiply two binary numbers (Delétang et al. 2023, arXiv 2207.02098), context-sensitive.

    input: two numbers with a separator (2) between them, lowest digit first, n symbols in all
    output: their product, lowest digit first, and an end token (2), at most n symbols

    001 2 01101 -> 0001101 2 (4 * 22 = 88)

Numbers are drawn as for `binary_addition`. At lengths 1 and 2 the question is one number and the answer no digit or a
single 0, as in the authors' code.
Departure: nothing is asked after the end token; the authors pad answers with zeros, which count in their loss, though
not in their accuracy.
"""

import torch
from torch import Tensor

from pezoo.data.tasks._binary import SEPARATOR, little_endian, read_numbers, two_numbers
from pezoo.data.tasks._rows import with_end
from pezoo.registry import register
from pezoo.task import Pairs, Task


@register(
    "binary_multiplication",
    title="Binary multiplication",
    year=2023,
    authors="Delétang et al.",
    arxiv="2207.02098",
    family="context-sensitive",
    equation="y = a b",
)
class BinaryMultiplication(Task):
    """The product of two binary numbers, lowest digit first; length: digits and the separator."""

    n_symbols = 3
    chance = 0.49  # at length 40; less below

    def output_length(self, length: int) -> int:
        """The digits of both numbers together, and the end token."""
        return length

    def solve(self, inputs: Tensor) -> Tensor:
        """Multiply."""
        length, numbers = inputs.shape[1], read_numbers(self, inputs)
        products = [little_endian(a * b)[: length - 1] for a, b in numbers]  # cuts the single 0 of length 1 alone
        return with_end(products, SEPARATOR, length)

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform numbers of uniform widths."""
        inputs = two_numbers(batch_size, length, generator)
        return Pairs(inputs, self.solve(inputs))
