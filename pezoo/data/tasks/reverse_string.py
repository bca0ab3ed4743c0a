"""Reverse a string (Delétang et al. 2023, arXiv 2207.02098), deterministic context-free.

input: n bits; output: the same, last first, n bits

0010 -> 0100
"""

import torch
from torch import Tensor

from pezoo.registry import register
from pezoo.task import Pairs, Task


@register(
    "reverse_string",
    title="Reverse string",
    year=2023,
    authors="Delétang et al.",
    arxiv="2207.02098",
    family="deterministic context-free",
    equation="y_i = x_{n-1-i}",
)
class ReverseString(Task):
    """The input from its end to its beginning; length: bits."""

    n_symbols = 2

    def output_length(self, length: int) -> int:
        """As long as the input."""
        return length

    def solve(self, inputs: Tensor) -> Tensor:
        """Turn it round."""
        return inputs.flip(1)

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform bits."""
        inputs = torch.randint(2, (batch_size, length), generator=generator)
        return Pairs(inputs, self.solve(inputs))
