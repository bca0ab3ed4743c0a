"""StreamingLLM: a query sees the first and the last tokens only, and reads positions inside that cache.

    sees j with i - j < W or j < S
    distance to a recent key: as ever;   to a sink a < S: that of token min(i, S + W - 1) to token a

S: sinks, W: recent tokens, itself included; i, j: places in the document. Distances stay below S + W. The model stays
stable on endless text, but knows no more of it than the cache holds.

Shapes: mask (R, Lq, Lk) and one far region. Not in training or tuning; in testing. Twice the attention cost.

Source: Xiao et al. 2023 (arXiv 2309.17453), S = 4; one place is freed before each new token. The perplexity script of
the authors' code frees it afterwards, which keeps one key more: `evict=after`.
Departures: any encoding with a term of position pairs, at real coordinates; W defaults to the training length less S;
no sink token is learned.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pezoo.contract import Branch, Extension, Positions, Traits
from pezoo.registry import register, setting


@register(
    "sinks",
    title="StreamingLLM (attention sinks)",
    year=2023,
    authors="Xiao, Tian, Chen, Han, Lewis",
    arxiv="2309.17453",
    equation="sees i - j < W or j < S;  distance to a sink a: min(i, S + W - 1) - a",
)
class Sinks(Extension):
    """The first and the last tokens, at positions inside the cache."""

    traits = Traits(shift_invariant=True, neutral={"size": 1_000_000_000})
    default_at = ("test",)

    @dataclass
    class Config:
        """Settings of the cache."""

        sinks: int = setting(4, "S", at_least=1)
        size: int | None = setting(None, "W; unset: the training length less S", at_least=1)
        evict: Literal["before", "after"] = setting("before", "when a place is freed for a new token")

    @property
    def size(self) -> int:
        """W, as a query sees it."""
        size = self.config.size or max(1, self.shape.train_length - self.config.sinks)
        return size + (self.config.evict == "after")

    def mask(self, positions: Positions) -> Tensor:
        """Recent keys and sinks."""
        recent = positions.steps().abs() < self.size
        return recent | (positions.key_index < self.config.sinks)[:, None]

    def reach(self, first: int, last: int) -> tuple[tuple[int, int], ...]:
        """Sinks, and recent keys."""
        return (0, self.config.sinks), (first - self.size + 1, last + self.size)

    def branches(self, positions: Positions) -> tuple[Branch, ...]:
        """Sinks that are no longer recent."""
        full = self.config.sinks + self.size - 1
        place = positions.offset + torch.arange(positions.query.shape[1], device=positions.query.device)
        place = place - positions.query_index + positions.query_index.clamp(max=full)
        rows = max(len(place), len(positions.key))
        query = positions.key.expand(rows, -1).gather(1, place.expand(rows, -1))
        cache = positions.replace(query=query, spacing=None, ruler=None)

        def region(here: Positions) -> Tensor:
            return (here.steps() >= self.size) & (here.key_index < self.config.sinks)[:, None]

        return (Branch(cache, region),)
