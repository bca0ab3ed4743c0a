"""Induction heads (Fu et al. 2023, arXiv 2212.14052): what followed the special token the first time?

    input:  random tokens ... S x ... random tokens S; output: x

S is the last id. The place of the first S is uniform.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.data.tasks._recall import Recall, after, names, uniform
from pezoo.registry import register, setting
from pezoo.task import Pairs


@register(
    "induction",
    title="Induction heads",
    year=2023,
    authors="Fu et al.",
    arxiv="2212.14052",
    family="recall",
    equation="y = x_{p+1}, x_p = x_{n-1} = S",
)
class Induction(Recall):
    """The token after the special token's first place; length: tokens that the model reads."""

    @dataclass
    class Config:
        """Settings of induction."""

        vocabulary: int = setting(16, "different tokens beside the special one", at_least=2)

    layout = "plain"
    least_length = 3
    n_symbols = property(lambda self: self.config.vocabulary + 1)
    symbols = property(lambda self: [*names("", self.config.vocabulary), "S"])
    chance = property(lambda self: 1 / self.config.vocabulary)

    def output_length(self, length: int) -> int:
        """One token."""
        return 1

    def solve(self, inputs: Tensor) -> Tensor:
        """What followed the first S."""
        special = inputs == self.config.vocabulary
        good = (special.sum(1) == 2) & special[:, -1]
        self.require(good, inputs, "S, and a token after it, among others; then S")
        answers = after(special, inputs, 1)
        self.require(answers < self.config.vocabulary, inputs, "S, and a token after it, among others; then S")
        return answers

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Random tokens and a random place.

        Raises:
            UserError: if the length is below 3.
        """
        n_places = self.spare(length) + 1
        inputs = uniform(0, self.config.vocabulary, (batch_size, length), generator)
        place = torch.randint(n_places, (batch_size, 1), generator=generator)
        inputs.scatter_(1, place, self.config.vocabulary)
        inputs[:, -1] = self.config.vocabulary
        return Pairs(inputs, self.solve(inputs))
