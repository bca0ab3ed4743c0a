"""Odd places before even ones (Delétang et al. 2023, arXiv 2207.02098), context-sensitive.

    input: n bits; output: those at odd places, then those at even places, n bits

    00110101 -> 0111 0100

Places count from 0, as the authors' code does: the input's second bit comes first. The description in that code counts
from 1, and has the halves the other way round.
"""

import torch
from torch import Tensor

from pezoo.registry import register
from pezoo.task import Pairs, Task


@register(
    "odds_first",
    title="Odds first",
    year=2023,
    authors="Delétang et al.",
    arxiv="2207.02098",
    family="context-sensitive",
    equation="y = x_1 x_3 x_5 ... x_0 x_2 x_4 ...",
)
class OddsFirst(Task):
    """The bits at odd places, counted from 0, then those at even places; length: bits."""

    n_symbols = 2

    def output_length(self, length: int) -> int:
        """As long as the input."""
        return length

    def solve(self, inputs: Tensor) -> Tensor:
        """Take every other bit, twice."""
        return torch.cat([inputs[:, 1::2], inputs[:, ::2]], 1)

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform bits."""
        inputs = torch.randint(2, (batch_size, length), generator=generator)
        return Pairs(inputs, self.solve(inputs))
