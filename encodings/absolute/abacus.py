"""Abacus embeddings: a learned vector for the place of a digit in its number.

    x_i = E[token_i] + W[p_1 + 1 + p_i - p_s]       where token i is a digit; s: the first digit of its number
    x_i = E[token_i] + W[0]                         elsewhere

p: coordinates, those of the index if no extension changes them; p_1: that of the document's first token. So the n-th
digit of a number reads row n. Digits of one place meet there where numbers are written lowest digit first, as in the
paper. The table W has N rows; beyond the last one, that is read. Real coordinates read between two rows, linearly.

    token    7 0 1 + 9 9 SEP 6 0 2      addition:order=lowest_first
    row      1 2 3 0 1 2  0  1 2 3

Shapes: (B, L, D) -> (B, L, D). Tokens before alone decide, so decoding goes on as it began.
Training and testing: the same. The paper adds a random number, U{0 ... 99}, to the rows of all digits in training, so
that longer numbers find trained rows: that is `abacus+shift:max_shift=100`. N is by default what training shows then.
Other extensions of coordinates act as well, through p. By itself it tells apart the digits of one number and nothing
else. The paper joins it with FIRE, which is `abacus+fire`, or with RoPE.
Where the text has no digits, all tokens get the same vector, and the model knows no positions from it. A study refuses
it for a task in which one of `digits` is no digit.

Source: McLeish, Bansal, Stein, Jain, Kirchenbauer, Bartoldson, Kailkhura, Bhatele, Geiping, Schwarzschild, Goldstein
2024 (arXiv 2405.17399) and the authors' code.
Departures: the authors draw one number for each batch, `shift` one for each sequence. Initialisation N(0, 0.02^2).
`digits` defaults to the ids that tasks of this library give to the digits 0 to 9; in bytes they are 48 to 57.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pezoo.contract import Positions, Traits
from pezoo.encodings.absolute.coupling import IDLE, Counted, TableConfig, counted, is_one_of
from pezoo.registry import register, setting


@register(
    "abacus",
    title="Abacus embeddings",
    year=2024,
    authors="McLeish, Bansal, Stein, Jain, Kirchenbauer, Bartoldson, Kailkhura, Bhatele, Geiping, Schwarzschild, "
    "Goldstein",
    arxiv="2405.17399",
    equation="x_i = E[token_i] + W[place of the digit in its number]",
    aliases={"abacus_fire": ("abacus+fire+shift:max_shift=100", "Abacus with its random starts, and FIRE")},
)
class Abacus(Counted):
    """A learned vector for the place of a digit in its number, and one for all else."""

    traits = Traits(tokens=True, parameters=lambda shape, c: c.rows(shape) * shape.d_model, deviations=IDLE)

    @dataclass
    class Config(TableConfig):
        """Settings of the digits and of the table."""

        digits: list[int] = setting([*range(10)], "tokens that are digits; in bytes 48 to 57", at_least=0)  # noqa: RUF009

    def refuses_task(self, task: Any) -> str | None:
        """A task in which one of `digits` is no digit, or one of many numbers."""
        names = task.symbols
        whole = next((name for name in names if name.isdecimal() and len(name) > 1), None)
        if whole:
            return f"its tokens are whole numbers, such as {whole}, and have no digits"
        for digit in self.config.digits:
            if digit >= len(names) or not (names[digit].isdecimal() and names[digit].isascii()):
                shown = repr(names[digit]) if digit < len(names) else "a mark"
                return f"token {digit} is {shown} there, no digit. Give the ids of digits, as abacus:digits=0,1"
        return None

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        """Add W of each digit's place, or of no place."""
        digits = is_one_of(positions, self.config.digits)
        places = counted(positions, ~digits).where(digits, 0.0)
        return x + self.rows(positions.of_queries(places)).to(x.dtype)
