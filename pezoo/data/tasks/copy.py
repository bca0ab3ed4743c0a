"""Copy a sequence (Kazemnejad et al. 2023, arXiv 2305.19466; as in the builder of their `s2s_copy` data).

    variant          input                  output
    random           c a t                  c a t
    random_twice     c a t                  c a t NEXT c a t
    repeat           a a a                  a a a
    repeat_twice     a a a                  a a a a a a
    replace          a b a a a              b b b               ("replace a by b in a a a")

Length: tokens of the sequence (n), 1 or more. Tokens are uniform, and may recur. In the encoder form the slots give
the length of the answer away, which is all that the repeat variants ask.
Departures: token ids of its own; the paper takes the 100 tokens from T5's vocabulary and asks in words. It lists every
token once at each length for the repeats, here they are drawn.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pezoo.data.tasks._bounds import check_length
from pezoo.registry import register, setting
from pezoo.task import Pairs, Task


@register(
    "copy",
    title="Copy",
    year=2023,
    authors="Kazemnejad et al.",
    arxiv="2305.19466",
    family="length generalisation",
    equation="y_i = x_i",
)
class Copy(Task):
    """The input once more, or a count of it; length: tokens to copy."""

    @dataclass(frozen=True)
    class Config:
        """What is copied."""

        variant: Literal["random", "random_twice", "repeat", "repeat_twice", "replace"] = setting(
            "random", "random tokens, or one repeated (to count), or one for another; twice: the answer is doubled"
        )
        symbols: int = setting(100, "distinct tokens that are drawn from", at_least=2)

    @property
    def n_symbols(self) -> int:
        """The tokens, and NEXT where a variant has it."""
        return self.config.symbols + (self.config.variant == "random_twice")

    @property
    def symbols(self) -> list[str]:
        """Numbers, and NEXT."""
        return [*map(str, range(self.config.symbols)), "NEXT"][: self.n_symbols]

    @property
    def chance(self) -> float:
        """That of one token among all."""
        return 1 / self.config.symbols

    def input_length(self, length: int) -> int:
        """The sequence, and the rule where there is one."""
        return length + 2 * (self.config.variant == "replace")

    def output_length(self, length: int) -> int:
        """The sequence, or two of it."""
        return {"random_twice": 2 * length + 1, "repeat_twice": 2 * length}.get(self.config.variant, length)

    def solve(self, inputs: Tensor) -> Tensor:
        """Say it again, as often as the variant asks."""
        variant, symbols, n = self.config.variant, self.config.symbols, inputs.shape[1]
        self.require(inputs < symbols, inputs, "tokens without NEXT")
        if variant == "random":
            return inputs.clone()
        if variant == "random_twice":
            return torch.cat([inputs, torch.full_like(inputs[:, :1], symbols), inputs], 1)
        if variant == "replace":
            what = "a token, another to put in its place, then the first as often as you like"
            self.require(n > 2, inputs, what)
            self.require((inputs[:, 2:] == inputs[:, :1]) & (inputs[:, 1:2] != inputs[:, :1]), inputs, what)
            return inputs[:, 1:2].repeat(1, n - 2)
        self.require(inputs == inputs[:, :1], inputs, "one token as often as you like")
        return inputs[:, :1].repeat(1, self.output_length(n))

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform tokens; source and target of a replacement differ."""
        check_length("copy", length, 1)
        variant, symbols = self.config.variant, self.config.symbols
        if variant.startswith("random"):
            inputs = torch.randint(symbols, (batch_size, length), generator=generator)
            return Pairs(inputs, self.solve(inputs))
        token = torch.randint(symbols, (batch_size, 1), generator=generator)
        inputs = token.repeat(1, length)
        if variant == "replace":
            target = (token + torch.randint(1, symbols, (batch_size, 1), generator=generator)) % symbols
            inputs = torch.cat([token, target, inputs], 1)
        return Pairs(inputs, self.solve(inputs))
