"""Randomised positions: each sequence gets a sorted random subset of a longer range.

    difference:  p_0 < p_1 < ... < p_(T-1),  drawn without replacement from {0 ... M - 1};  token i reads p_i
    toeplitz:    d_1 < d_2 < ... < d_(T-1),  drawn without replacement from {1 ... M - 1};  i - j = m is read as d_m

Shapes: coordinates (R, L) -> (B, L), or a ruler (B, T) of distances. In training, tuning and testing alike, as in the
authors' code; a draw depends on (seed, sequence, T), not on the batch. Depends on T, hence not prefix-stable. T > M
is undefined.

Source: Ruoss et al. 2023 (arXiv 2305.16843), whose code draws once a batch and, for relative encodings, in each layer
apart: `draw=batch`, `draw=layer` (which counts, in a mixture of layers, those of its own scheme).
Departures: M defaults to 16 training lengths (2048 for lengths up to 500 in the paper). Encodings of pairs read
differences of drawn positions; the authors' code draws their distances instead: `relative=toeplitz`, for which
encodings that read each position by itself are refused. That code's ALiBi, made for encoders, takes half a step off
the distances to earlier keys, drawn or not, by which it tells the past from the future; here both sides are alike. A
test needs T <= M only, so that the longest test may read consecutive integers.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pezoo.contract import Encoding, Extension, Positions, Traits, Undefined, overrides
from pezoo.encodings.randomized._draws import by_index
from pezoo.philox import subset
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

    traits = Traits(shift_invariant=True, prefix_stable=False, random=True)
    default_at = ("train", "tune", "test")

    @dataclass
    class Config:
        """Settings of the draw."""

        max_length: int | None = setting(None, "M; unset: 16 training lengths", at_least=1)
        draw: Literal["sequence", "batch", "layer"] = setting("sequence", "what gets a draw of its own")
        relative: Literal["difference", "toeplitz"] = setting("difference", "draw positions, or distances")

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

    def refuses(self, encoding: Encoding) -> str | None:
        """Drawn distances, for encodings that read positions one by one."""
        alone = [hook for hook in ("embed", "rotate") if overrides(encoding, hook)]
        if self.config.relative == "difference" or not alone:
            return None
        name = encoding.name
        return f"{name} reads each position by itself, and random:relative=toeplitz draws distances only"

    def check(self, positions: Positions) -> None:
        """Raise `Undefined` for sequences longer than the range."""
        if positions.longest > self.max_length:
            raise Undefined(f"random draws from {self.max_length} positions; {positions.longest} tokens need more")

    def coordinates(self, positions: Positions) -> Positions:
        """The drawn positions, or distances from the first token, by index."""
        low = int(self.config.relative == "toeplitz")

        def sample() -> Tensor:
            bits = positions.bits("random", positions.longest - low, self.config.draw)
            size = positions.longest if len(positions.lengths) == 1 else positions.total()
            drawn = subset(bits, size - low, self.max_length - low)
            return F.pad(drawn + low, (low, 0)) if low else drawn  # token 0 to itself: 0

        table = positions.draw("random", sample).to(torch.float32)  # (R, T)
        extent = None if positions.draws else self.max_length
        return by_index(positions, table, extent).replace(ruler=table if low else None)
