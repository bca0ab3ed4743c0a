"""Several keys with a value each, one asked (after multi-key NIAH; Hsieh et al. 2024, arXiv 2404.06654).

    input:  filler ... k_1 d_11 ... d_1m ... filler ... k_K d_K1 ... d_Km ... filler QUERY k_a
    output: d_a1 ... d_am

Digits are 0 ... 9, then come the keys' names, the filler's ids and QUERY. The names in a row differ.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.data.tasks._recall import DIGITS, Needles, after, column, distinct, names, places, strew, uniform
from pezoo.errors import UserError
from pezoo.registry import register, setting
from pezoo.task import Pairs


@register(
    "multi_key",
    title="Needles, several keys",
    year=2024,
    authors="Hsieh et al.",
    arxiv="2404.06654",
    family="recall",
    equation="y_i = x_{p+i}, x_p = x_{n-1}, i = 1 ... m",
)
class MultiKey(Needles):
    """The value of the key that the question names; length: tokens that the model reads."""

    @dataclass
    class Config:
        """Settings of multi_key."""

        n_keys: int = setting(4, "keys in a row, with the asked one (K)", at_least=1)
        n_digits: int = setting(1, "digits of a value (m)", at_least=1)
        n_names: int = setting(26, "names that keys are drawn from", at_least=1)
        n_filler: int = setting(20, "different tokens of the filler", at_least=1)

        def __post_init__(self) -> None:
            """Check that keys can differ."""
            if self.n_keys > self.n_names:
                raise UserError(f"multi_key:n_keys={self.n_keys} keys need as many names, got n_names={self.n_names}")

    tail = 2
    n_needles = property(lambda self: self.config.n_keys)
    width = property(lambda self: 1 + self.config.n_digits)
    query = property(lambda self: DIGITS + self.config.n_names + self.config.n_filler)
    n_symbols = property(lambda self: self.query + 1)
    symbols = property(
        lambda self: [*names("", DIGITS), *names("k", self.config.n_names), *names("f", self.config.n_filler), "QUERY"]
    )
    chance = 1 / DIGITS

    def output_length(self, length: int) -> int:
        """The digits of one value."""
        return self.config.n_digits

    def solve(self, inputs: Tensor) -> Tensor:
        """Find the key that is asked for."""
        self.require_room(inputs)
        n_digits, asked = self.config.n_digits, inputs[:, -1:]
        keys = inputs[:, :-2] == asked
        values = after(keys[:, :-n_digits], inputs, n_digits)
        good = (keys.sum(1) == 1) & (inputs[:, -2] == self.query) & (values < DIGITS).all(1)
        good &= ((asked >= DIGITS) & (asked < DIGITS + self.config.n_names))[:, 0]
        what = f"keys with {n_digits} digits each in filler, then QUERY and one of the keys"
        self.require(good, inputs, what)
        return values

    def sample(self, batch_size: int, length: int, generator: torch.Generator, depth: float | None = None) -> Pairs:
        """Random values of random keys in random filler.

        Args:
            batch_size: rows (B).
            length: tokens that the model reads.
            generator: of all draws.
            depth: share of filler and other keys that stands before the asked key; None: any, row by row.

        Raises:
            UserError: if the length has no room for keys and question, or the depth is not in 0 ... 1.
        """
        config, room = self.config, self.spare(length)
        filler = uniform(DIGITS + config.n_names, config.n_filler, (batch_size, room), generator)
        keys = DIGITS + distinct(batch_size, config.n_keys, config.n_names, generator)
        values = uniform(0, DIGITS, (batch_size, config.n_keys, config.n_digits), generator)
        needles = torch.cat([keys[..., None], values], 2)
        body = strew(filler, needles, places(batch_size, config.n_keys, room, depth, generator))
        inputs = torch.cat([body, column(self.query, batch_size), keys[:, :1]], 1)
        return Pairs(inputs, self.solve(inputs))
