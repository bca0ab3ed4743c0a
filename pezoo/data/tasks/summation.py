"""Add digits modulo 10 (Kazemnejad et al. 2023, arXiv 2305.19466; as in the builder of their `s2s_sum` data).

    input: 7 4 9        output: 0

Length: digits (n), 1 or more, each uniform in 1 ... 9.
Departures: no plus signs between the digits.
"""

import torch
from torch import Tensor

from pezoo.data.tasks._bounds import check_length
from pezoo.registry import register
from pezoo.task import Pairs, Task


@register(
    "summation",
    title="Summation",
    year=2023,
    authors="Kazemnejad et al.",
    arxiv="2305.19466",
    family="length generalisation",
    equation="y = sum_i x_i mod 10",
)
class Summation(Task):
    """The last digit of a sum of digits; length: digits."""

    n_symbols = 10

    def output_length(self, length: int) -> int:
        """One digit."""
        return 1

    def solve(self, inputs: Tensor) -> Tensor:
        """Add them up."""
        return inputs.sum(1, keepdim=True) % 10

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform digits without 0."""
        check_length("summation", length, 1)
        inputs = torch.randint(1, 10, (batch_size, length), generator=generator)
        return Pairs(inputs, self.solve(inputs))
