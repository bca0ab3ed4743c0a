"""Add two binary numbers (Delétang et al. 2023, arXiv 2207.02098), context-sensitive.

    input: two numbers with a separator (2) between them, lowest digit first, n symbols in all
    output: their sum, lowest digit first, and an end token (2), at most n + 1 symbols

    001 2 01101 -> 01011 2 (4 + 22 = 26)

The first number has U{1 ... n - 2} digits, the second the rest; each is uniform from 1 up to the most that its digits
hold, and filled up with zeros, while the sum ends with its highest one. At lengths 1 and 2 the question is one number,
of 0 ... 2^n - 2, and the answer the same number, as in the authors' code.
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
    "binary_addition",
    title="Binary addition",
    year=2023,
    authors="Delétang et al.",
    arxiv="2207.02098",
    family="context-sensitive",
    equation="y = a + b",
)
class BinaryAddition(Task):
    """The sum of two binary numbers, lowest digit first; length: digits and the separator."""

    n_symbols = 3
    chance = 0.5  # at length 40; less below

    def output_length(self, length: int) -> int:
        """The authors' width: a sum has n - 1 digits at most, or n below length 3."""
        return length + 1

    def solve(self, inputs: Tensor) -> Tensor:
        """Add."""
        sums = [little_endian(a + b) for a, b in read_numbers(self, inputs)]
        return with_end(sums, SEPARATOR, inputs.shape[1] + 1)

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform numbers of uniform widths."""
        inputs = two_numbers(batch_size, length, generator)
        return Pairs(inputs, self.solve(inputs))
