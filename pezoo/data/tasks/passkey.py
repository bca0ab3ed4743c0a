"""Passkey in tokens (after Mohtashami & Jaggi 2023, arXiv 2305.16300), for small models.

    input:  filler ... KEY d_1 ... d_m filler ... QUERY; output: d_1 ... d_m

Digits are 0 ... 9, then come the filler's ids, KEY and QUERY. Here the filler is random, the key is
told once and its digits are independent, where the published text (`passkey_text`) repeats itself.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.data.tasks._recall import DIGITS, Needles, after, column, names, places, strew, uniform
from pezoo.registry import register, setting
from pezoo.task import Pairs


@register(
    "passkey",
    title="Passkey retrieval, in tokens",
    year=2023,
    authors="Mohtashami & Jaggi",
    arxiv="2305.16300",
    family="recall",
    equation="y_i = x_{p+i}, x_p = KEY, i = 1 ... m",
)
class Passkey(Needles):
    """The digits told once, somewhere in the filler; length: tokens that the model reads."""

    @dataclass
    class Config:
        """Settings of passkey."""

        n_digits: int = setting(3, "digits of the key (m)", at_least=1)
        n_filler: int = setting(20, "different tokens of the filler", at_least=1)

    width = property(lambda self: 1 + self.config.n_digits)
    key = property(lambda self: DIGITS + self.config.n_filler)
    query = property(lambda self: self.key + 1)
    n_symbols = property(lambda self: self.key + 2)
    symbols = property(lambda self: [*names("", DIGITS), *names("f", self.config.n_filler), "KEY", "QUERY"])
    chance = 1 / DIGITS

    def output_length(self, length: int) -> int:
        """The digits."""
        return self.config.n_digits

    def solve(self, inputs: Tensor) -> Tensor:
        """Find the key."""
        self.require_room(inputs)
        n_digits, keys = self.config.n_digits, inputs == self.key
        digits = after(keys[:, : -1 - n_digits], inputs, n_digits)
        good = (keys.sum(1) == 1) & (inputs[:, -1] == self.query) & (digits < DIGITS).all(1)
        self.require(good, inputs, f"KEY with {n_digits} digits in filler, then QUERY")
        return digits

    def sample(self, batch_size: int, length: int, generator: torch.Generator, depth: float | None = None) -> Pairs:
        """Random digits in random filler.

        Args:
            batch_size: rows (B).
            length: tokens that the model reads.
            generator: of all draws.
            depth: share of the filler that stands before the key; None: any, row by row.

        Raises:
            UserError: if the length has no room for key and question, or the depth is not in 0 ... 1.
        """
        room = self.spare(length)
        filler = uniform(DIGITS, self.config.n_filler, (batch_size, room), generator)
        digits = uniform(0, DIGITS, (batch_size, self.config.n_digits), generator)
        needle = torch.cat([column(self.key, batch_size), digits], 1)[:, None]
        body = strew(filler, needle, places(batch_size, 1, room, depth, generator))
        inputs = torch.cat([body, column(self.query, batch_size)], 1)
        return Pairs(inputs, self.solve(inputs))
