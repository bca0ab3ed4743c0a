"""Reverse random tokens (Kazemnejad et al. 2023, arXiv 2305.19466; as in the builder of their `s2s_reverse` data).

    variant     input      output
    once        c a t      t a c
    twice       c a t      t a c NEXT t a c
    back        c a t      t a c NEXT c a t        (reverse, then reverse that)

Length: tokens of the sequence (n), 1 or more. Tokens are uniform, and may recur.
Departures: token ids of its own; the paper takes the 100 tokens from T5's vocabulary and asks in words.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pezoo.data.tasks._bounds import check_length
from pezoo.registry import register, setting
from pezoo.task import Pairs, Task


@register(
    "reverse",
    title="Reverse",
    year=2023,
    authors="Kazemnejad et al.",
    arxiv="2305.19466",
    family="length generalisation",
    equation="y_i = x_{n-1-i}",
)
class Reverse(Task):
    """The input from its end to its beginning, from a larger vocabulary; length: tokens to reverse."""

    @dataclass(frozen=True)
    class Config:
        """What follows the reverse."""

        variant: Literal["once", "twice", "back"] = setting(
            "once", "the reverse alone, the reverse again after a marker, or the original after a marker"
        )
        symbols: int = setting(100, "distinct tokens that are drawn from", at_least=2)

    @property
    def n_symbols(self) -> int:
        """The tokens, and NEXT where a variant has it."""
        return self.config.symbols + (self.config.variant != "once")

    @property
    def symbols(self) -> list[str]:
        """Numbers, and NEXT."""
        return [*map(str, range(self.config.symbols)), "NEXT"][: self.n_symbols]

    @property
    def chance(self) -> float:
        """That of one token among all."""
        return 1 / self.config.symbols

    def output_length(self, length: int) -> int:
        """The sequence, or two and the marker."""
        return length if self.config.variant == "once" else 2 * length + 1

    def solve(self, inputs: Tensor) -> Tensor:
        """Turn it round."""
        self.require(inputs < self.config.symbols, inputs, "tokens without NEXT")
        turned = inputs.flip(1)
        if self.config.variant == "once":
            return turned
        marker = torch.full_like(inputs[:, :1], self.config.symbols)
        return torch.cat([turned, marker, turned if self.config.variant == "twice" else inputs], 1)

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform tokens."""
        check_length("reverse", length, 1)
        inputs = torch.randint(self.config.symbols, (batch_size, length), generator=generator)
        return Pairs(inputs, self.solve(inputs))
