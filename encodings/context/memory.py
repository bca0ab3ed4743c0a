"""Segment recurrence: a text is read in segments, each of which sees the hidden states of the tokens before it.

    l_ij = -inf unless b_i - M <= j < b_i + N,   b_i = N floor(i / N)        i, j: places in the document

N: segment, M: memory. Layer by layer, so that what is seen at depth k reaches back by k memories. Its values are
those of reading segment by segment with a cache of the last M hidden states of each layer, which a causal mask gives
in one pass.

Shapes: mask (R, Lq, Lk). In training, tuning and testing. A training sequence has to be longer than a segment for
memory to be seen in training; distances then reach up to M + N - 1. Coordinates run on from segment to segment.

Source: Dai et al. 2019 (arXiv 1901.02860), section 3.2; in testing M may be larger: `test_memory`.
Departures: gradients flow into the memory (the paper stops them at its hidden states). N defaults to half the
training length, M to N, and a document begins with an empty memory, so that training sees memory, and testing no
distance that training has not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pezoo.contract import Extension, Positions, Traits
from pezoo.registry import register, setting


@register(
    "memory",
    title="Segment recurrence",
    year=2019,
    authors="Dai, Yang, Yang, Carbonell, Le, Salakhutdinov",
    arxiv="1901.02860",
    equation="l_ij = -inf unless b_i - M <= j < b_i + N,  b_i = N floor(i/N)",
)
class Memory(Extension):
    """Attention to the own segment and a memory before it."""

    traits = Traits(shift_invariant=True, neutral={"segment": 1_000_000_000})
    default_at = ("train", "tune", "test")

    @dataclass
    class Config:
        """Settings of segments and memory."""

        segment: int | None = setting(None, "N; unset: half the training length", at_least=1)
        memory: int | None = setting(None, "M; unset: one segment", at_least=0)
        test_memory: int | None = setting(None, "M in testing; unset: as in training", at_least=0)

    @property
    def segment(self) -> int:
        """N."""
        return self.config.segment or max(1, self.shape.train_length // 2)

    @property
    def memory(self) -> int:
        """M of training."""
        return self.segment if self.config.memory is None else self.config.memory

    def same_in(self, phases: Sequence[str]) -> bool:
        """Unless testing has a memory of its own."""
        return self.config.test_memory is None or "test" not in phases or len(phases) == 1

    def mask(self, positions: Positions) -> Tensor:
        """True in the segment and the memory."""
        segment, memory = self.segment, self.memory
        if positions.phase == "test" and self.config.test_memory is not None:
            memory = self.config.test_memory
        start = (positions.query_index // segment * segment)[:, :, None]
        key = positions.key_index[:, None]
        return (key >= start - memory) & (key < start + segment)

    def reach(self, first: int, last: int) -> tuple[tuple[int, int], ...]:
        """From the memory of the first query's segment, the larger one, to the end of the last's."""
        memory = max(self.memory, self.config.test_memory or 0)
        return ((first // self.segment * self.segment - memory, (last // self.segment + 1) * self.segment),)
