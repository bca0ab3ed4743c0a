"""Walk on a cycle of five places (Delétang et al. 2023, arXiv 2207.02098), regular.

input: n moves, 0 one step back, 1 none, 2 one step on; output: the place where the walk from 0 ends, 0 ... 4

0 0 2 0 -> 3 (-1 -1 +1 -1 = -2)
"""

import torch
from torch import Tensor

from pezoo.registry import register
from pezoo.task import Pairs, Task


@register(
    "cycle_navigation",
    title="Cycle navigation",
    year=2023,
    authors="Delétang et al.",
    arxiv="2207.02098",
    family="regular",
    equation="y = sum_i (x_i - 1) mod 5",
)
class CycleNavigation(Task):
    """The end of a walk on a cycle of five places; length: moves."""

    n_symbols = 5

    def output_length(self, length: int) -> int:
        """One symbol."""
        return 1

    def solve(self, inputs: Tensor) -> Tensor:
        """The sum of the moves."""
        self.require(inputs < 3, inputs, "moves 0, 1 and 2")
        return (inputs - 1).sum(1, keepdim=True) % 5

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform moves."""
        inputs = torch.randint(3, (batch_size, length), generator=generator)
        return Pairs(inputs, self.solve(inputs))
