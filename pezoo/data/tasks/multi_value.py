"""One key told several values, all asked (after multi-value NIAH; Hsieh et al. 2024, arXiv 2404.06654).

    input:  filler ... KEY v_1 ... filler ... KEY v_m ... filler QUERY; output: v_1 ... v_m

Values are the digits 0 ... 9, then come the filler's ids, KEY and QUERY. The values in a row differ, so that
each names the place to go on from; they are asked in the order of the text, where the paper takes any.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.data.tasks._recall import DIGITS, Needles, column, distinct, names, places, strew, uniform
from pezoo.registry import register, setting
from pezoo.task import Pairs


@register(
    "multi_value",
    title="Needles, several values of a key",
    year=2024,
    authors="Hsieh et al.",
    arxiv="2404.06654",
    family="recall",
    equation="y_i = x_{p_i + 1}, x_{p_i} = KEY, p_1 < ... < p_m",
)
class MultiValue(Needles):
    """All values of the key, in order of appearance; length: tokens that the model reads."""

    @dataclass
    class Config:
        """Settings of multi_value."""

        n_values: int = setting(4, "values of the key (m)", at_least=1, at_most=DIGITS)
        n_filler: int = setting(20, "different tokens of the filler", at_least=1)

    depths = ()
    width = 2
    n_needles = property(lambda self: self.config.n_values)
    key = property(lambda self: DIGITS + self.config.n_filler)
    query = property(lambda self: self.key + 1)
    n_symbols = property(lambda self: self.key + 2)
    symbols = property(lambda self: [*names("", DIGITS), *names("f", self.config.n_filler), "KEY", "QUERY"])
    chance = 1 / DIGITS

    def output_length(self, length: int) -> int:
        """The values."""
        return self.config.n_values

    def solve(self, inputs: Tensor) -> Tensor:
        """What follows each KEY."""
        self.require_room(inputs)
        n_values, keys = self.config.n_values, inputs[:, :-1] == self.key
        what = f"KEY with a digit {n_values} times in filler, then QUERY"
        self.require((keys.sum(1) == n_values) & (inputs[:, -1] == self.query), inputs, what)
        values = inputs[:, 1:][keys].view(-1, n_values)
        self.require(values < DIGITS, inputs, what)
        return values

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Random values in random filler.

        Raises:
            UserError: if the length has no room for values and question.
        """
        room = self.spare(length)
        filler = uniform(DIGITS, self.config.n_filler, (batch_size, room), generator)
        values = distinct(batch_size, self.config.n_values, DIGITS, generator)
        needles = torch.stack([torch.full_like(values, self.key), values], 2)
        order = places(batch_size, self.config.n_values, room, None, generator).sort().values
        inputs = torch.cat([strew(filler, needles, order), column(self.query, batch_size)], 1)
        return Pairs(inputs, self.solve(inputs))
