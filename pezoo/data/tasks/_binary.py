"""Binary numbers as rows of digits, of any size."""

import torch
from torch import Tensor

from pezoo.data.tasks._rows import python_random, texts
from pezoo.task import Task

SEPARATOR = 2


def big_endian(number: int, width: int = 1) -> list[int]:
    """Binary digits, highest first, after as many zeros as `width` digits ask for."""
    return [int(digit) for digit in f"{number:0{width}b}"]


def little_endian(number: int, width: int = 1) -> list[int]:
    """Binary digits, lowest first, then zeros up to `width`."""
    return big_endian(number, width)[::-1]


def two_numbers(batch_size: int, length: int, generator: torch.Generator) -> Tensor:
    """Questions about two numbers, (B, length): digits, separator, digits, lowest first.

    The first has U{1 ... length - 2} digits; each number is uniform from 1 up to what its digits hold. Below length 3
    there is room for one alone, of 0 ... 2^length - 2, and the other is 0.
    """
    draws = python_random(generator)
    inputs = []
    for _ in range(batch_size):
        if length < 3:
            inputs.append(little_endian(draws.randrange(2**length - 1), length))
        else:
            width = draws.randint(1, length - 2)
            a, b = (draws.randint(1, 2**w - 1) for w in (width, length - 1 - width))
            inputs.append([*little_endian(a, width), SEPARATOR, *little_endian(b, length - 1 - width)])
    return torch.tensor(inputs)


def read_numbers(task: Task, inputs: Tensor) -> list[tuple[int, int]]:
    """The two numbers of each question; the second is 0 below length 3.

    Raises:
        UserError: if a question is none.
    """
    is_separator = inputs == SEPARATOR
    if inputs.shape[1] < 3:
        task.require(~is_separator, inputs, "one number at lengths 1 and 2")
    else:
        between = (is_separator.sum(1) == 1) & ~is_separator[:, 0] & ~is_separator[:, -1]
        task.require(between, inputs, f"two numbers of binary digits with one {SEPARATOR} between them")
    pairs = [text.partition(str(SEPARATOR)) for text in texts(inputs, "012")]
    return [(int(a[::-1], 2), int(b[::-1] or "0", 2)) for a, _, b in pairs]
