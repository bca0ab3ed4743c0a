"""Flip-flop language modelling: keep one bit, whatever stands in between (Liu et al. 2023, arXiv 2306.00946).

    input:  w 1 i 0 i 1 r 1 i 0 w 0 r        (an instruction, its bit, the next instruction, and so on)
    asked:  at each r, the bit that w wrote last: here 1 at the first r, 0 at the second

Instructions are w (write), r (read) and i (ignore). The first is w and the last is r; the others are i with
probability p_i, else w or r, as likely. The bits of w and i are uniform, that of r is the one written last, and follows
it. The paper trains at 512 tokens with p_i = 0.8 and tests at 0.98, where writes lie far back, and at 0.1, where many
are overwritten: `flip_flop:ignore=0.98` is trained and tested as a task of its own.

The bit that stands nearest is right at 60 % of the reads with p_i = 0.8, at 95 % with 0.1 and at 51 % with 0.98, so
look at exact match, for which every read of a row must be right. At an even length the bit of the last r is read too,
and nothing is asked there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.data.tasks._recall import Recall
from pezoo.registry import register, setting
from pezoo.task import IGNORE, Pairs

WRITE, READ, SKIP = 2, 3, 4


@register(
    "flip_flop",
    title="Flip-flop language",
    year=2023,
    authors="Liu et al.",
    arxiv="2306.00946",
    family="recall",
    equation="y_i = x_{j+1} where x_i = r, j = max {j < i: x_j = w}",
)
class FlipFlop(Recall):
    """The bit that was written last, at each read; length: tokens that the model reads."""

    @dataclass
    class Config:
        """Settings of flip_flop."""

        ignore: float = setting(0.8, "share of instructions that write and read nothing (p_i)", at_least=0, at_most=1)

    layout = "inline"
    least_length = 3
    n_symbols = 5
    symbols = ("0", "1", "w", "r", "i")
    chance = 0.5

    def solve(self, inputs: Tensor) -> Tensor:
        """Look back from each read to the last write."""
        what = "w, r or i with a bit after each, first w and last r; the bit after r is the one written last"
        self.require(inputs.shape[1] >= self.least_length, inputs, what)
        instructions, bits = inputs[:, ::2], inputs[:, 1::2]
        self.require((instructions >= WRITE) & (bits.shape[1] > 0), inputs, what)
        self.require(bits < WRITE, inputs, what)
        self.require((instructions[:, 0] == WRITE) & (instructions[:, -1] == READ), inputs, what)
        at = torch.arange(instructions.shape[1])
        written = bits.gather(1, torch.where(instructions == WRITE, at, 0).cummax(1).values)
        read = instructions == READ
        shown = bits.shape[1]
        self.require(~read[:, :shown] | (bits == written[:, :shown]), inputs, what)
        outputs = torch.full_like(inputs, IGNORE)
        outputs[:, ::2] = written.where(read, IGNORE)
        return outputs

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Random instructions and bits.

        Raises:
            UserError: if the length is below 3.
        """
        self.spare(length)
        count = (length + 1) // 2
        chances = torch.rand(batch_size, count, generator=generator)
        half = (1 - self.config.ignore) / 2
        instructions = torch.where(chances < half, WRITE, torch.where(chances < 2 * half, READ, SKIP))
        instructions[:, 0], instructions[:, -1] = WRITE, READ
        bits = torch.randint(2, (batch_size, count), generator=generator)
        last = torch.where(instructions == WRITE, torch.arange(count), 0).cummax(1).values
        bits = torch.where(instructions == READ, bits.gather(1, last), bits)
        inputs = torch.stack([instructions, bits], 2).flatten(1)[:, :length]
        return Pairs(inputs, self.solve(inputs))
