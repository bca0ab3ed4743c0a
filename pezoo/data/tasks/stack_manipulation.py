"""Carry out pushes and pops on a stack (Delétang et al. 2023, arXiv 2207.02098), deterministic context-free.

    input: a stack of bits, bottom first, then pop (2), push 0 (3) or push 1 (4), n symbols in all
    output: the stack that is left, top first, and an end token (2), at most n + 1 symbols

    0 1 1 0 4 2 2 -> 1 1 0 2

The first stack has U{1 ... n - 1} bits, or one if n is 1. A pop of an empty stack does nothing.
Departure: nothing is asked after the end token; the authors pad answers with zeros, which count in their loss, though
not in their accuracy.
"""

import torch
from torch import Tensor

from pezoo.data.tasks._rows import with_end
from pezoo.registry import register
from pezoo.task import Pairs, Task

POP = END = 2


@register(
    "stack_manipulation",
    title="Stack manipulation",
    year=2023,
    authors="Delétang et al.",
    arxiv="2207.02098",
    family="deterministic context-free",
    equation="y = reverse(o_k(... o_1(s)))",
)
class StackManipulation(Task):
    """What a row of pushes and pops leaves on a stack; length: bits of the stack and actions."""

    n_symbols = 5
    chance = 0.48  # at length 40; less below, 0.5 in the end

    def output_length(self, length: int) -> int:
        """A bit for each symbol, and the end token."""
        return length + 1

    def solve(self, inputs: Tensor) -> Tensor:
        """Carry it out."""
        acts = inputs >= POP
        self.require(acts[:, 1:] | ~acts[:, :-1], inputs, "bits, then actions")
        stacks = []
        for row in inputs.tolist():
            stack = []
            for symbol in row:
                if symbol == POP:
                    del stack[-1:]
                else:
                    stack.append(symbol % 3)  # 0 and 3 push a zero, 1 and 4 a one
            stacks.append(stack[::-1])
        return with_end(stacks, END, inputs.shape[1] + 1)

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Pairs:
        """Uniform sizes of the first stack, bits and actions."""
        size = torch.randint(1, max(length, 2), (batch_size, 1), generator=generator)
        bits = torch.randint(2, (batch_size, length), generator=generator)
        actions = torch.randint(POP, POP + 3, (batch_size, length), generator=generator)
        inputs = bits.where(torch.arange(length) < size, actions)
        return Pairs(inputs, self.solve(inputs))
