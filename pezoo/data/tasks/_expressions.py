"""Expressions modulo five in brackets, as text."""

import operator
import random
from collections.abc import Sequence

import torch
from torch import Tensor

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
SHORT = {1: "{}", 2: "-{}", 3: "({})", 4: "(-{})"}
"""The expressions too short for an operator, by length."""


def expression(length: int, operators: str, draws: random.Random) -> tuple[str, int]:
    """An expression of just so many symbols, and its value: `("((4*2)-(-1))", 4)`.

    From 5 symbols on it is `(e o e)`, with the room split at a uniform place; no recursion, whatever the length.
    """
    waiting, lengths = [length], []
    while waiting:  # each expression before the two in it, the left one first
        lengths.append(waiting.pop())
        if lengths[-1] > 4:
            left = draws.randint(1, lengths[-1] - 4)
            waiting += [lengths[-1] - 3 - left, left]
    done = []
    for size in reversed(lengths):
        if size in SHORT:
            digit = draws.randrange(5)
            done.append((SHORT[size].format(digit), digit if size % 2 else -digit % 5))
        else:
            (left, a), (right, b), sign = done.pop(), done.pop(), draws.choice(operators)
            done.append((f"({left}{sign}{right})", OPERATORS[sign](a, b) % 5))
    return done.pop()


def encode(texts: Sequence[str], symbols: str) -> Tensor:
    """Texts of one length as places in `symbols`, (B, n) int64."""
    ids = {symbol: i for i, symbol in enumerate(symbols)}
    return torch.tensor([[ids[symbol] for symbol in text] for text in texts])
