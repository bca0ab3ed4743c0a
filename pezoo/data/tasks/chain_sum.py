"""A long chain of additions and subtractions within ten (after Zhao et al. 2023, arXiv 2312.17044, appendix).

    input: 7 - 4 + 6 - 9 + 5        output: 5        (results: 7, 3, 9, 0, 5)

The survey asks for a task whose difficulty stays level with the length, and names this one without more detail. Here
all results on the way are single digits, 0 ... 9, and so is the answer, whatever the length. The first number is a
result too. Each step goes to another result at most `largest` away, all as likely. So at each place the results have
one distribution: with `largest` of 9, which allows any step, the uniform one.

What bounds the results also gives them away: where the last numbers lead up and down over the whole range of 0 to 9,
one result alone fits, and the numbers before them are not needed. With `largest=9` the last 10 numbers are enough in
half of all long chains, with 3 the last 25, with 1 the last 78 (medians of 2000 chains of 600 numbers). So a smaller
`largest` asks for more of the chain.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.data.tasks._bounds import check_length
from pezoo.registry import register, setting
from pezoo.task import Pairs, Task

PLUS, MINUS = 10, 11


@register(
    "chain_sum",
    title="Chain of sums within ten",
    year=2023,
    authors="Zhao et al.",
    arxiv="2312.17044",
    family="length generalisation",
    equation="y = a_1 ± a_2 ± ... ± a_n,  0 <= each result on the way <= 9",
)
class ChainSum(Task):
    """The result of a chain of sums and differences that stays within one digit; length: numbers."""

    @dataclass
    class Config:
        """Settings of chain_sum."""

        largest: int = setting(9, "largest number that is added or taken away", at_least=1, at_most=9)

    n_symbols = 12
    symbols = "0123456789+-"

    @property
    def steps(self) -> Tensor:
        """From each result (row), which others can follow, (10, 10) bool."""
        apart = (torch.arange(10)[:, None] - torch.arange(10)).abs()
        return (apart > 0) & (apart <= self.config.largest)

    @property
    def chance(self) -> float:
        """Results come as often as they have neighbours: a walk there and back is as likely."""
        neighbours = self.steps.sum(1)
        return float(neighbours.max() / neighbours.sum())

    def input_length(self, length: int) -> int:
        """The numbers, and the signs between them."""
        return 2 * length - 1

    def output_length(self, length: int) -> int:
        """One digit."""
        return 1

    def solve(self, inputs: Tensor) -> Tensor:
        """Add them up."""
        what = "digits with + or - between them, whose results on the way are 0 to 9"
        numbers, signs = inputs[:, ::2], inputs[:, 1::2]
        self.require(inputs.shape[1] % 2 == 1, inputs, what)
        self.require(numbers < PLUS, inputs, what)
        self.require(signs >= PLUS, inputs, what)
        steps = torch.where(signs == PLUS, numbers[:, 1:], -numbers[:, 1:])
        results = torch.cat([numbers[:, :1], steps], 1).cumsum(1)
        self.require((results >= 0) & (results < PLUS), inputs, what)
        return results[:, -1:]

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """A walk from result to result."""
        check_length("chain_sum", length, 1)
        steps = self.steps
        choices = steps.sum(1)
        targets = steps.int().argsort(dim=1, descending=True, stable=True)  # first those that can follow
        chances = torch.rand(batch_size, length, generator=generator, dtype=torch.float64)
        results = torch.searchsorted(choices.cumsum(0), chances[:, :1] * choices.sum(), right=True)
        walk = [results[:, 0]]
        for i in range(1, length):
            now = walk[-1]
            walk.append(targets[now, (chances[:, i] * choices[now]).long()])
        results = torch.stack(walk, 1)
        moves = results.diff()
        inputs = torch.empty(batch_size, 2 * length - 1, dtype=torch.int64)
        inputs[:, 0], inputs[:, 2::2] = results[:, 0], moves.abs()
        inputs[:, 1::2] = torch.where(moves > 0, PLUS, MINUS)
        return Pairs(inputs, self.solve(inputs))
