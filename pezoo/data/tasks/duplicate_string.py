"""Say a string twice (Delétang et al. 2023, arXiv 2207.02098), context-sensitive.

input: n bits; output: the same twice over, 2n bits

110 -> 110110
"""

import torch
from torch import Tensor

from pezoo.registry import register
from pezoo.task import Pairs, Task


@register(
    "duplicate_string",
    title="Duplicate string",
    year=2023,
    authors="Delétang et al.",
    arxiv="2207.02098",
    family="context-sensitive",
    equation="y = x x",
)
class DuplicateString(Task):
    """The input twice over; length: bits of the input."""

    n_symbols = 2

    def output_length(self, length: int) -> int:
        """Twice the input."""
        return 2 * length

    def solve(self, inputs: Tensor) -> Tensor:
        """Say it twice."""
        return inputs.repeat(1, 2)

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform bits."""
        inputs = torch.randint(2, (batch_size, length), generator=generator)
        return Pairs(inputs, self.solve(inputs))
