"""Randomised positions: each sequence gets a sorted random subset of a longer range, so that training shows long coordinates and distances.

    p_0 < p_1 < ... < p_(T-1),  drawn without replacement from {0 ... M - 1};  token i reads p_i

Shapes: coordinates (R, L) -> (B, L). In training, tuning and testing alike, as in the authors' code; a draw depends on (seed, sequence, T), not on
the batch. Depends on T, hence not prefix-stable. T > M is undefined.

Source: Ruoss et al. 2023 (arXiv 2305.16843), whose code draws once a batch and, for relative encodings, in each layer apart: `draw=batch`, `draw=layer`.
Departures: M defaults to 16 training lengths (2048 for lengths up to 500 in the paper). Biases read differences of drawn positions; the authors' code
draws distances instead. A test needs T <= M only, so that the longest test may read consecutive integers.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pezoo.contract import Extension, Positions, Traits, Undefined
from pezoo.registry import register, setting


@register(
    "random",
    title="Randomised positions",
    year=2023,
    authors="Ruoss, Deletang, Genewein, Grau-Moya, Csordas, Bennani, Legg, Veness",
    arxiv="2305.16843",
    equation="p = sorted random subset of {0..M-1}",
    aliases={"randomized_rope": ("rope+random", "RoPE with randomised positions")},
)
class Random(Extension):
    """A sorted random subset of a longer range of positions."""

    traits = Traits(prefix_stable=False, random=True)
    default_at = ("train", "tune", "test")

    @dataclass
    class Config:
        """Settings of the draw."""

        max_length: int | None = setting(None, "M; unset: 16 training lengths", at_least=1)
        draw: Literal["sequence", "batch", "layer"] = setting("sequence", "what gets a draw of its own")

    @property
    def max_length(self) -> int:
        """M."""
        return self.config.max_length or 16 * self.shape.train_length

    @property
    def draws_per_layer(self) -> bool:
        """Whether each layer draws its own."""
        return self.config.draw == "layer"

    def extent(self, extent: int) -> int:
        """M."""
        return max(extent, self.max_length)

    def check(self, positions: Positions) -> None:
        """Raise `Undefined` for sequences longer than the range."""
        length = int(torch.as_tensor(positions.length).max())
        if length > self.max_length:
            raise Undefined(f"random draws from {self.max_length} positions; {length} tokens need more")

    def coordinates(self, positions: Positions) -> Positions:
        """The drawn positions, by index."""
        length = int(torch.as_tensor(positions.length).max())

        def sample(generator: torch.Generator) -> Tensor:
            return torch.randperm(self.max_length, generator=generator)[:length].sort().values.float()

        table = positions.draw("random", sample, self.config.draw)  # (R, T)

        def read(p: Tensor, index: Tensor) -> Tensor:
            rows = max(len(table), len(index))
            return table.expand(rows, -1).gather(1, index.expand(rows, -1))

        return positions.map(read)
