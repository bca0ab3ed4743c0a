"""Solve an equation in brackets, modulo five (Delétang et al. 2023, arXiv 2207.02098), deterministic context-free.

    input: an expression of digits 0 ... 4, + (5), - (6), opening (7) and closing bracket (8) with one digit
    replaced by x (9), then = (10) and its value modulo 5, n symbols in all
    output: the digit

    ((4-x)+(-1))=0 -> 3

Expressions are those of `modular_arithmetic_brackets` without products, so that just one digit solves them. The digit
to replace is the first from a uniform place on, the start following the end. Below length 3 there is no equation:
questions and answers are zeros, as in the authors' code.
"""

import torch
from torch import Tensor

from pezoo.data.tasks._expressions import encode, expression, value
from pezoo.data.tasks._rows import python_random, texts
from pezoo.registry import register
from pezoo.task import Pairs, Task


@register(
    "solve_equation",
    title="Solve equation",
    year=2023,
    authors="Delétang et al.",
    arxiv="2207.02098",
    family="deterministic context-free",
    equation="e(y) = v mod 5,  e = d | -d | (d) | (-d) | (e o e)",
)
class SolveEquation(Task):
    """The digit that makes an equation in brackets true, modulo five; length: symbols."""

    n_symbols = 11
    symbols = "01234+-()x="
    chance = 0.2

    def output_length(self, length: int) -> int:
        """One symbol."""
        return 1

    def solve(self, inputs: Tensor) -> Tensor:
        """Try 0 and 1 for x: the value is linear in it, and rises or falls by one."""
        if inputs.shape[1] < 3:
            self.require(inputs == 0, inputs, "zeros at lengths 1 and 2")
            return inputs[:, :1].clone()
        answers = [_solution(text) for text in texts(inputs, self.symbols)]
        good = torch.tensor([found is not None for found in answers])
        self.require(good, inputs, "an expression in brackets with one x in it, then = and a digit")
        return torch.tensor(answers)[:, None]

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform splits, digits and operators."""
        if length < 3:
            inputs = torch.zeros((batch_size, length), dtype=torch.int64)
            return Pairs(inputs, self.solve(inputs))
        draws = python_random(generator)
        questions = []
        for _ in range(batch_size):
            text = expression(length - 2, "+-", draws)
            place = draws.randrange(len(text))
            while not text[place].isdigit():
                place = (place + 1) % len(text)
            questions.append(f"{text[:place]}x{text[place + 1 :]}={value(text)}")
        inputs = encode(questions, self.symbols)
        return Pairs(inputs, self.solve(inputs))


def _solution(text: str) -> int | None:
    """What x is in an equation; None if it is none."""
    expression, result = text[:-2], text[-2:]
    zero, one = (value(expression.replace("x", digit)) for digit in "01")
    if expression.count("x") != 1 or zero is None or result[0] != "=" or not result[1].isdigit():
        return None
    return (int(result[1]) - zero) * (one - zero) % 5
