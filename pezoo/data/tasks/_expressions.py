"""Expressions modulo five in brackets, as text."""

import operator
import random
from collections.abc import Sequence

import torch
from torch import Tensor

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
SHORT = {1: "{}", 2: "-{}", 3: "({})", 4: "(-{})"}
"""The expressions too short for an operator, by length."""


def expression(length: int, operators: str, draws: random.Random) -> str:
    """An expression of just so many symbols, such as `((4*2)-(-1))`.

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
            done.append(SHORT[size].format(draws.randrange(5)))
        else:
            done.append(f"({done.pop()}{draws.choice(operators)}{done.pop()})")
    return done.pop()


def value(text: str) -> int | None:
    """The value of an expression modulo five, or None if it is none; no recursion either."""
    outer, left, operator = [], None, None  # what waits outside the bracket, and in it
    negative, now = False, None
    for symbol in text:
        if symbol in "01234":
            if now is not None:
                return None
            now, negative = (-int(symbol) if negative else int(symbol)), False
        elif symbol == "(":
            if now is not None or negative:
                return None
            outer.append((left, operator))
            left = operator = None
        elif symbol == ")":
            if now is None or not outer:
                return None
            now = now if operator is None else OPERATORS[operator](left, now) % 5
            left, operator = outer.pop()
        elif now is None:  # a sign
            if symbol != "-" or negative:
                return None
            negative = True
        else:
            if symbol not in OPERATORS or operator is not None or not outer:
                return None
            left, operator, now = now, symbol, None
    return None if now is None or outer else now % 5


def encode(texts: Sequence[str], symbols: str) -> Tensor:
    """Texts of one length as places in `symbols`, (B, n) int64."""
    ids = {symbol: i for i, symbol in enumerate(symbols)}
    return torch.tensor([[ids[symbol] for symbol in text] for text in texts])
