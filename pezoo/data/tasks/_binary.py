"""Binary numbers as rows of digits, of any size."""

import torch
from torch import Tensor

from pezoo.data.tasks._rows import python_random

SEPARATOR = 2


def big_endian(number: int, width: int = 1) -> list[int]:
    """Binary digits, highest first, after as many zeros as `width` digits ask for."""
    return [int(digit) for digit in f"{number:0{width}b}"]


def little_endian(number: int, width: int = 1) -> list[int]:
    """Binary digits, lowest first, then zeros up to `width`."""
    return big_endian(number, width)[::-1]


def two_numbers(batch_size: int, length: int, generator: torch.Generator) -> tuple[Tensor, list[tuple[int, int]]]:
    """Questions about two numbers, (B, length): digits, separator, digits, lowest first; and the numbers.

    The first has U{1 ... length - 2} digits; each number is uniform from 1 up to what its digits hold. Below length 3
    there is room for one alone, of 0 ... 2^length - 2, and the other is 0.
    """
    draws = python_random(generator)
    inputs, numbers = [], []
    for _ in range(batch_size):
        if length < 3:
            a, b = draws.randrange(2**length - 1), 0
            inputs.append(little_endian(a, length))
        else:
            width = draws.randint(1, length - 2)
            a, b = (draws.randint(1, 2**w - 1) for w in (width, length - 1 - width))
            inputs.append([*little_endian(a, width), SEPARATOR, *little_endian(b, length - 1 - width)])
        numbers.append((a, b))
    return torch.tensor(inputs), numbers
