"""Find the bit that one of two copies lacks (Delétang et al. 2023, arXiv 2207.02098), context-sensitive.

    input: n/2 bits twice over with one of the n masked (2); output: the masked bit

    0110 0210 -> 1

For an odd n the copies have (n - 1)/2 bits and a padding symbol (3) comes last. At length 1, where there is no bit to
mask, question and answer are 1, as in the authors' code.
"""

import torch
from torch import Tensor

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

    def solve(self, inputs: Tensor) -> Tensor:
        """Look it up in the other copy."""
        half = inputs.shape[1] // 2
        if not half:
            self.require(inputs == 1, inputs, "1 at length 1")
            return inputs.clone()
        strings, padding = inputs[:, : 2 * half], inputs[:, 2 * half :]
        others, masked = strings.roll(half, 1), strings == MASK
        what = f"bits twice over, one of them masked by {MASK}, with {PADDING} at the end of an odd length"
        self.require((masked.sum(1) == 1) & (strings <= MASK).all(1) & (padding == PADDING).all(1), inputs, what)
        self.require((strings == others) | masked | (others == MASK), inputs, what)
        return others[masked][:, None]

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform bits, masked at a uniform place."""
        if length == 1:
            inputs = torch.ones((batch_size, 1), dtype=torch.int64)
            return Pairs(inputs, self.solve(inputs))
        strings = torch.randint(2, (batch_size, length // 2), generator=generator).repeat(1, 2)
        place = torch.randint(strings.shape[1], (batch_size, 1), generator=generator)
        padding = torch.full((batch_size, length % 2), PADDING)
        inputs = torch.cat([strings.scatter(1, place, MASK), padding], 1)
        return Pairs(inputs, self.solve(inputs))
