"""Find the bit that one of two copies lacks (Delétang et al. 2023, arXiv 2207.02098), context-sensitive.

    input: n/2 bits twice over with one of the n masked (2); output: the masked bit

    0110 0210 -> 1

For an odd n the copies have (n - 1)/2 bits and a padding symbol (3) comes last. At length 1, where there is no bit to
mask, question and answer are 1, as in the authors' code.
"""

import torch

from pezoo.registry import register
from pezoo.task import Pairs, Task

MASK, PADDING = 2, 3


@register(
    "missing_duplicate_string",
    title="Missing duplicate string",
    year=2023,
    authors="Delétang et al.",
    arxiv="2207.02098",
    family="context-sensitive",
    equation="y = w_{i mod n/2},  x = w w without w_i",
)
class MissingDuplicateString(Task):
    """The bit that is masked in one of two copies of a string; length: symbols of the input."""

    n_symbols = 4
    chance = 0.5

    def output_length(self, length: int) -> int:
        """One symbol."""
        return 1

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform bits, masked at a uniform place."""
        if length == 1:
            ones = torch.ones((batch_size, 1), dtype=torch.int64)
            return Pairs(ones, ones)
        strings = torch.randint(2, (batch_size, length // 2), generator=generator).repeat(1, 2)
        place = torch.randint(strings.shape[1], (batch_size, 1), generator=generator)
        padding = torch.full((batch_size, length % 2), PADDING)
        return Pairs(torch.cat([strings.scatter(1, place, MASK), padding], 1), strings.gather(1, place))
