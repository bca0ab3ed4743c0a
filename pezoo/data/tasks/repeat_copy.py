"""Repeated random tokens (Olsson et al. 2022, arXiv 2209.11895): the loss on the second half is exact lookup.

    input:  w_0 ... w_{p-1} w_0 ... w_{p-1}, cut to the length; p is half of it, rounded up
    asked:  at each w_i of the second half but the last, w_{i+1}

The second half's first token is not asked: nothing before it says that w is over. Tokens are independent,
so a long w needs a large vocabulary, or more than one token to tell its places apart. A model trained at one
length alone can learn to look p back without comparing tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.data.tasks._recall import Recall, uniform
from pezoo.registry import register, setting
from pezoo.task import IGNORE, Pairs


@register(
    "repeat_copy",
    title="Repeated random tokens",
    year=2022,
    authors="Olsson et al.",
    arxiv="2209.11895",
    family="recall",
    equation="y_i = x_{i+1-p}, i = p ... 2p - 2",
)
class RepeatCopy(Recall):
    """A random string again; length: tokens that the model reads, which is both halves."""

    @dataclass
    class Config:
        """Settings of repeat_copy."""

        vocabulary: int = setting(256, "different tokens", at_least=2)

    layout = "inline"
    least_length = 3
    n_symbols = property(lambda self: self.config.vocabulary)

    def solve(self, inputs: Tensor) -> Tensor:
        """Read on in the first half."""
        self.require_room(inputs)
        length, period = inputs.shape[1], (inputs.shape[1] + 1) // 2
        again = inputs[:, period:] == inputs[:, : length - period]
        self.require(again, inputs, "tokens twice over, the last one missing where the length is odd")
        outputs = torch.full_like(inputs, IGNORE)
        outputs[:, period : 2 * period - 1] = inputs[:, 1:period]
        return outputs

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform tokens.

        Raises:
            UserError: if the length is below 3.
        """
        period = (self.spare(length) + self.least_length + 1) // 2
        word = uniform(0, self.config.vocabulary, (batch_size, period), generator)
        inputs = word.repeat(1, 2)[:, :length]
        return Pairs(inputs, self.solve(inputs))
