"""What tasks share that make their questions row by row."""

import random

import torch
from torch import Tensor

from pezoo.task import IGNORE


def python_random(generator: torch.Generator) -> random.Random:
    """Python's own draws, quick one at a time and of any size, seeded by one draw of the generator."""
    return random.Random(int(torch.randint(2**62, (), generator=generator)))


def with_end(answers: list[list[int]], end: int, width: int) -> Tensor:
    """Answers of unequal length, each with its end token and `IGNORE` after it, (B, width)."""
    return torch.tensor([answer + [end] + [IGNORE] * (width - 1 - len(answer)) for answer in answers])
