"""The integer square root of a binary number (Delétang et al. 2023, arXiv 2207.02098), context-sensitive.

input: a number of U{1 ... 2^n - 1}, highest digit first, n bits
output: its square root, rounded down, highest digit first, ceil(n / 2) bits

100101 -> 110 (37 -> 6)
"""

import math

import torch
from torch import Tensor

from pezoo.data.tasks._binary import big_endian
from pezoo.data.tasks._rows import python_random, texts
from pezoo.registry import register
from pezoo.task import Pairs, Task


@register(
    "compute_sqrt",
    title="Compute square root",
    year=2023,
    authors="Delétang et al.",
    arxiv="2207.02098",
    family="context-sensitive",
    equation="y = floor(sqrt(x))",
)
class ComputeSqrt(Task):
    """The square root of a binary number, rounded down; length: bits of the number."""

    n_symbols = 2
    chance = 0.52  # at length 40; the first bit is 1 in three of four

    def output_length(self, length: int) -> int:
        """Half the input, rounded up."""
        return (length + 1) // 2

    def solve(self, inputs: Tensor) -> Tensor:
        """By integers of any size."""
        width = self.output_length(inputs.shape[1])
        roots = [math.isqrt(int(text, 2)) for text in texts(inputs, "01")]
        return torch.tensor([big_endian(root, width) for root in roots])

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform numbers."""
        draws = python_random(generator)
        numbers = [draws.randint(1, 2**length - 1) for _ in range(batch_size)]
        inputs = torch.tensor([big_endian(x, length) for x in numbers])
        return Pairs(inputs, self.solve(inputs))
