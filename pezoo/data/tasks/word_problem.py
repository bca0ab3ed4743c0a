"""Multiply elements of a group, one after another (Merrill, Petty & Sabharwal 2024, arXiv 2404.08819).

    input:  g_1 g_2 ... g_n        elements of a group of permutations, uniform
    asked:  at each g_i, the product g_1 g_2 ... g_i: first g_1, then g_2, and so on

    group    elements                                             such as
    A5       60: the even permutations of five things             21354 12345 23145 -> 21354 21354 32154
    S5       120: all permutations of five things
    A4xZ5    60: even permutations of four things, with a place on a cycle of five
    Z60      60: places on a cycle

An element is named by where it puts things: 23145 puts the first second, the second third, the third first. In A4xZ5 it
is such a name and the steps on the cycle, as 2143+3, in Z60 the steps. The products of A5 and S5 take a circuit whose
depth grows with n; those of Z60 and A4xZ5, whose elements are as many, do not. The paper asks for every product of a
row, as here; so does PaTH (arXiv 2505.16381), with A5. The product of a row is uniform, and needs all that precedes it.
"""

from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Literal

import torch
from torch import Tensor

from pezoo.data.tasks._bounds import check_length
from pezoo.registry import register, setting
from pezoo.task import Pairs, Task


def _even(order: tuple[int, ...]) -> bool:
    """Whether a permutation has an even number of pairs in the wrong order."""
    return sum(a > b for i, a in enumerate(order) for b in order[i + 1 :]) % 2 == 0


@cache
def _group(name: str) -> tuple[tuple[str, ...], Tensor]:
    """Names of the elements, and the table of products: [g, h] is first g, then h."""
    size, steps = {"A5": (5, 1), "S5": (5, 1), "A4xZ5": (4, 5), "Z60": (1, 60)}[name]
    orders = [order for order in permutations(range(size)) if name == "S5" or _even(order)]
    elements = [(order, step) for order in orders for step in range(steps)]
    number = {element: i for i, element in enumerate(elements)}
    products = [[number[tuple(h[i] for i in g), (s + t) % steps] for h, t in elements] for g, s in elements]
    shown = ["".join(str(i + 1) for i in order) for order in orders]
    named = {"A4xZ5": [f"{order}+{step}" for order in shown for step in range(5)], "Z60": list(map(str, range(60)))}
    return tuple(named.get(name, shown)), torch.tensor(products)


@register(
    "word_problem",
    title="Word problem of a group",
    year=2024,
    authors="Merrill, Petty & Sabharwal",
    arxiv="2404.08819",
    family="regular",
    equation="y_i = g_1 g_2 ... g_i",
)
class WordProblem(Task):
    """The product so far, at each element of a group; length: elements, which are the tokens that the model reads."""

    @dataclass
    class Config:
        """Settings of word_problem."""

        group: Literal["A5", "S5", "A4xZ5", "Z60"] = setting("A5", "whose elements are multiplied")

    layout = "inline"
    forms = ("causal",)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of the elements."""
        return _group(self.config.group)[0]

    @property
    def n_symbols(self) -> int:
        """As many as elements."""
        return len(self.symbols)

    def output_length(self, length: int) -> int:
        """A product for each element."""
        return length

    def solve(self, inputs: Tensor) -> Tensor:
        """Multiply from the left."""
        products, outputs = _group(self.config.group)[1], inputs.clone()
        for i in range(1, inputs.shape[1]):
            outputs[:, i] = products[outputs[:, i - 1], inputs[:, i]]
        return outputs

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform elements."""
        check_length("word_problem", length, 1)
        inputs = torch.randint(self.n_symbols, (batch_size, length), generator=generator)
        return Pairs(inputs, self.solve(inputs))
