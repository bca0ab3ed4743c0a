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

from pezoo.data.tasks._expressions import encode, expression
from pezoo.data.tasks._rows import python_random
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
    chance = 0.2

    def output_length(self, length: int) -> int:
        """One symbol."""
        return 1

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform splits, digits and operators."""
        if length < 3:
            zeros = torch.zeros((batch_size, length), dtype=torch.int64)
            return Pairs(zeros, zeros[:, :1])
        draws = python_random(generator)
        questions, answers = [], []
        for _ in range(batch_size):
            text, value = expression(length - 2, "+-", draws)
            place = draws.randrange(len(text))
            while not text[place].isdigit():
                place = (place + 1) % len(text)
            questions.append(f"{text[:place]}x{text[place + 1 :]}={value}")
            answers.append(int(text[place]))
        return Pairs(encode(questions, "01234+-()x="), torch.tensor(answers)[:, None])
