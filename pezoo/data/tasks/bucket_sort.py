"""Sort a string over five symbols (Delétang et al. 2023, arXiv 2207.02098), context-sensitive.

    input: n symbols 0 ... 4; output: the same in ascending order

    4 0 2 0 1 -> 0 0 1 2 4

Chance is that of one symbol for all places. A guess that grows with the place, 0 early and 4 late, is right far more
often, without a look at the input.
"""

import torch
from torch import Tensor

from pezoo.registry import register
from pezoo.task import Pairs, Task


@register(
    "bucket_sort",
    title="Bucket sort",
    year=2023,
    authors="Delétang et al.",
    arxiv="2207.02098",
    family="context-sensitive",
    equation="y = sort(x)",
)
class BucketSort(Task):
    """The input in ascending order; length: symbols."""

    n_symbols = 5

    def output_length(self, length: int) -> int:
        """As long as the input."""
        return length

    def solve(self, inputs: Tensor) -> Tensor:
        """Sort."""
        return inputs.sort(1).values

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform symbols."""
        inputs = torch.randint(5, (batch_size, length), generator=generator)
        return Pairs(inputs, self.solve(inputs))
