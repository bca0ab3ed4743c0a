"""Count unequal neighbours, modulo two (Delétang et al. 2023, arXiv 2207.02098), regular.

    input: n bits; output: 0 if an even number of the n - 1 neighbouring pairs are 01 or 10, else 1

    001110 -> 0 (one 01, one 10)

Each such pair flips the bit, so that the answer is 1 just when the first and the last bit differ.
"""

import torch
from torch import Tensor

from pezoo.registry import register
from pezoo.task import Pairs, Task


@register(
    "even_pairs",
    title="Even pairs",
    year=2023,
    authors="Delétang et al.",
    arxiv="2207.02098",
    family="regular",
    equation="y = x_0 xor x_{n-1}",
)
class EvenPairs(Task):
    """Whether 01 and 10 occur an odd number of times in all; length: bits."""

    n_symbols = 2

    def output_length(self, length: int) -> int:
        """One symbol."""
        return 1

    def solve(self, inputs: Tensor) -> Tensor:
        """Compare the ends."""
        return inputs[:, :1] ^ inputs[:, -1:]

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform bits."""
        inputs = torch.randint(2, (batch_size, length), generator=generator)
        return Pairs(inputs, self.solve(inputs))
