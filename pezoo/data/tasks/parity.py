"""Is the number of ones even? (Kazemnejad et al. 2023, arXiv 2305.19466; as in `s2s_parity`).

    input: 0 1 1 0 1        output: NO

Length: bits (n), 1 or more. Yes and no are tokens of their own, unlike in `parity_check`, which answers with a bit.
"""

import torch
from torch import Tensor

from pezoo.data.tasks._bounds import check_length
from pezoo.registry import register
from pezoo.task import Pairs, Task

YES, NO = 2, 3


@register(
    "parity",
    title="Parity",
    year=2023,
    authors="Kazemnejad et al.",
    arxiv="2305.19466",
    family="length generalisation",
    equation="y = yes if sum_i x_i mod 2 = 0 else no",
)
class Parity(Task):
    """Whether the number of ones is even; length: bits."""

    n_symbols = 4
    symbols = ("0", "1", "YES", "NO")
    chance = 0.5

    def output_length(self, length: int) -> int:
        """Yes or no."""
        return 1

    def solve(self, inputs: Tensor) -> Tensor:
        """Count the ones."""
        self.require(inputs < 2, inputs, "bits")
        return YES + inputs.sum(1, keepdim=True) % 2

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform bits."""
        check_length("parity", length, 1)
        inputs = torch.randint(2, (batch_size, length), generator=generator)
        return Pairs(inputs, self.solve(inputs))
