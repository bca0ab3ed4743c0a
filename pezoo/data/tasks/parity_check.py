"""Parity of a bit string (Delétang et al. 2023, arXiv 2207.02098), regular.

input: n bits; output: the number of ones modulo 2

1010100 -> 1
"""

import torch
from torch import Tensor

from pezoo.registry import register
from pezoo.task import Pairs, Task


@register(
    "parity_check",
    title="Parity check",
    year=2023,
    authors="Delétang et al.",
    arxiv="2207.02098",
    family="regular",
    equation="y = sum_i x_i mod 2",
)
class ParityCheck(Task):
    """The number of ones, modulo two; length: bits."""

    n_symbols = 2

    def output_length(self, length: int) -> int:
        """One symbol."""
        return 1

    def solve(self, inputs: Tensor) -> Tensor:
        """Count the ones."""
        return inputs.sum(1, keepdim=True) % 2

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform bits."""
        inputs = torch.randint(2, (batch_size, length), generator=generator)
        return Pairs(inputs, self.solve(inputs))
