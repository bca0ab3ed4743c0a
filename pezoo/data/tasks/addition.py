"""Add two numbers (Kazemnejad et al. 2023, arXiv 2305.19466; as in the builder of their `s2s_addition` data).

    order              input                output
    highest_first      9 5 + 7              1 0 2
    lowest_first       5 9 + 7              2 0 1        (95 + 7 with all numbers turned round)

Length: digits of the longer number (n), 1 or more. The paper draws the pair of digit counts (a, b) uniformly from a
square and tests where either is beyond training; here one pair is drawn per call, uniform among the 2 n - 1 with
max(a, b) = n. Numbers are uniform among those of their digit count, 0 included for one digit.
The paper has the highest digit first. With the lowest first, each digit of the sum depends on what stands at its place
and before it, and encodings that count places from the beginning of a number (`abacus`, `coupling`) align them.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pezoo.data.tasks._bounds import check_length
from pezoo.registry import register, setting
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

    @dataclass(frozen=True)
    class Config:
        """How numbers are written."""

        order: Literal["highest_first", "lowest_first"] = setting(
            "highest_first", "which digit of a number comes first"
        )

    n_symbols = 11
    symbols = "0123456789+"
    chance = 0.1  # of long sums; short ones have more ones, which lead after a carry

    def input_length(self, length: int) -> int:
        """Two numbers and the sign between them."""
        return 2 * length + 1

    def output_length(self, length: int) -> int:
        """One more digit than the longer number, for a carry."""
        return length + 1

    def solve(self, inputs: Tensor) -> Tensor:
        """In columns, from the right, with carries; the sum is padded where it has none."""
        asked, turned = inputs, self.config.order == "lowest_first"
        if turned:  # the second number is then the first, which makes no difference
            inputs = inputs.flip(1)
        is_plus, places = inputs == PLUS, torch.arange(inputs.shape[1])
        plus = is_plus.int().argmax(1, keepdim=True)
        digits = torch.cat([plus, len(places) - 1 - plus], 1)  # of each number
        first = torch.cat([torch.zeros_like(plus), (plus + 1).clamp(max=len(places) - 1)], 1)
        good = (inputs.gather(1, first) > 0) | (digits == 1)
        good &= (is_plus.sum(1, keepdim=True) == 1) & (digits > 0)
        zeros = "zeros at the end" if turned else "leading zeros"
        self.require(good, asked, f"two numbers with one + between them, without {zeros}")
        longer = digits.amax(1, keepdim=True)
        width = int(longer.max()) + 1
        columns = inputs.new_zeros(len(inputs), width)
        above = torch.where(places < plus, plus, len(places)) - places  # 1: the last digit of a number
        columns.scatter_add_(1, width - above, inputs.where(~is_plus, 0))
        for i in range(width - 1, 0, -1):
            columns[:, i - 1] += columns[:, i] // 10
            columns[:, i] %= 10
        start = width - longer - columns.gather(1, width - 1 - longer)  # a carry is one digit more
        if turned:
            return columns.flip(1).where(torch.arange(width) < width - start, IGNORE)
        shown = start + torch.arange(width)
        return columns.gather(1, shown.clamp(max=width - 1)).where(shown < width, IGNORE)

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform numbers, without leading zeros."""
        check_length("addition", length, 1)
        pair = int(torch.randint(2 * length - 1, (), generator=generator))
        counts = (length, pair + 1) if pair < length else (pair + 1 - length, length)
        a, b = (_numbers(batch_size, n, generator) for n in counts)
        inputs = torch.cat([a, torch.full_like(a[:, :1], PLUS), b], 1)
        if self.config.order == "lowest_first":
            inputs = inputs.flip(1)
        return Pairs(inputs, self.solve(inputs))


def _numbers(batch_size: int, n_digits: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers of so many digits, (B, n_digits)."""
    lead = torch.randint(int(n_digits > 1), 10, (batch_size, 1), generator=generator)
    return torch.cat([lead, torch.randint(10, (batch_size, n_digits - 1), generator=generator)], 1)
