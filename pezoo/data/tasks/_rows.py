"""What tasks share that make their questions row by row."""

import random

import torch
from torch import Tensor

from pezoo.task import IGNORE


def python_random(generator: torch.Generator) -> random.Random:
    """Python's own draws, quick one at a time and of any size, seeded by one draw of the generator."""
    return random.Random(int(torch.randint(2**62, (), generator=generator)))


def texts(inputs: Tensor, symbols: str) -> list[str]:
    """Rows of ids (B, n) as texts of these characters."""
    codes = torch.tensor(list(symbols.encode()), dtype=torch.uint8)
    return [row.tobytes().decode() for row in codes[inputs].numpy()]


def padded(answers: list[list[int]], width: int) -> Tensor:
    """Answers of unequal length with `IGNORE` after them, (B, width)."""
    return torch.tensor([answer + [IGNORE] * (width - len(answer)) for answer in answers])


def with_end(answers: list[list[int]], end: int, width: int) -> Tensor:
    """The same, each with its end token."""
    return padded([[*answer, end] for answer in answers], width)
