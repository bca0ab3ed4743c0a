"""Add two numbers (Kazemnejad et al. 2023, arXiv 2305.19466; as in the builder of their `s2s_addition` data).

    input: 9 5 + 7        output: 1 0 2        (digits, most significant first)

Length: digits of the longer number (n), 1 or more. The paper draws the pair of digit counts (a, b) uniformly from a
square and tests where either is beyond training; here one pair is drawn per call, uniform among the 2 n - 1 with
max(a, b) = n. Numbers are uniform among those of their digit count, 0 included for one digit.
"""

import torch
from torch import Tensor

from pezoo.data.tasks._bounds import check_length
from pezoo.registry import register
from pezoo.task import IGNORE, Pairs, Task

PLUS = 10


@register(
    "addition",
    title="Addition",
    year=2023,
    authors="Kazemnejad et al.",
    arxiv="2305.19466",
    family="length generalisation",
    equation="y = a + b",
)
class Addition(Task):
    """The sum of two numbers, digit by digit; length: digits of the longer one."""

    n_symbols = 11
    chance = 0.1  # of long sums; short ones have more ones, which lead after a carry

    def input_length(self, length: int) -> int:
        """Two numbers and the sign between them."""
        return 2 * length + 1

    def output_length(self, length: int) -> int:
        """One more digit than the longer number, for a carry."""
        return length + 1

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform numbers, without leading zeros; the sum is padded where it has no carry."""
        check_length("addition", length, 1)
        pair = int(torch.randint(2 * length - 1, (), generator=generator))
        counts = (length, pair + 1) if pair < length else (pair + 1 - length, length)
        a, b = (_numbers(batch_size, n, generator) for n in counts)
        columns = torch.zeros(batch_size, length + 1, dtype=torch.long)
        for number in (a, b):
            columns[:, length + 1 - number.shape[1] :] += number
        for i in range(length, 0, -1):
            columns[:, i - 1] += columns[:, i] // 10
            columns[:, i] %= 10
        short = torch.cat([columns[:, 1:], torch.full_like(columns[:, :1], IGNORE)], 1)
        outputs = torch.where(columns[:, :1] > 0, columns, short)
        return Pairs(torch.cat([a, torch.full_like(a[:, :1], PLUS), b], 1), outputs)


def _numbers(batch_size: int, n_digits: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers of so many digits, (B, n_digits)."""
    lead = torch.randint(int(n_digits > 1), 10, (batch_size, 1), generator=generator)
    return torch.cat([lead, torch.randint(10, (batch_size, n_digits - 1), generator=generator)], 1)
