"""xPos: RoPE whose pairs also shrink with distance, each by a rate of its own, the fast ones most.

    q -> z_k^(p_i / S) R(p_i) q,   k -> z_k^(-p_j / S) R(p_j) k,   z_k = (2k/r + g) / (1 + g),   k = 0 ... r/2 - 1

R(p) turns pair k by p base^(-2k/r) as in `rope`; the product shrinks pair k by z_k^((p_i - p_j) / S) <= 1 for j
before i. r is the rotated width of a head: the other channels neither turn nor shrink.

Shapes: q (B, H, Lq, d), k (B, H, Lk, d) -> the same.
Training and testing: the same; no parameters. The decay reads the same coordinates as the angle. Extrapolation in the
paper is with blockwise attention at test.

Source: Sun, Dong, Patra, Ma, Huang, Benhaim, Chaudhary, Song, Wei 2022 (arXiv 2212.10554). g = 0.4, S = 512. An
encoder is refused: towards later tokens the product grows. Partial rotation as in the library x-transformers.
Departures: none in the product. Exponents are counted from the middle of the coordinates of a call, in float32, so
that both factors stay in range; beyond that range (about 69,000 tokens at S = 512) it raises `Undefined`. Not for
float16. The middle differs from call to call and cancels in the product alone, so no encoding may change q and k after
xPos: `floater+xpos`, not `xpos+floater`.

>>> decay_rates(64, 0.4)[[0, 16, 31]].exp()
tensor([0.2857, 0.6429, 0.9777])
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.contract import Encoding, Positions, Shape, Traits, Undefined, to_device
from pezoo.encodings.relative._rotary import rotary_frequencies, turn
from pezoo.errors import UserError
from pezoo.registry import register, setting

LARGEST = 85.0
"""Exponents of e that float32 holds, with room for q and k themselves."""


def decay_rates(width: int, gamma: float) -> Tensor:
    """Logarithms of z_k for k = 0 ... width/2 - 1, float32."""
    share = torch.arange(0, width, 2, dtype=torch.float64) / width
    return ((share + gamma) / (1 + gamma)).log().float()


@register(
    "xpos",
    title="Extrapolatable position embedding (xPos)",
    year=2022,
    authors="Sun, Dong, Patra, Ma, Huang, Benhaim, Chaudhary, Song, Wei",
    arxiv="2212.10554",
    equation="q_i -> z_k^(p_i/S) R(p_i) q_i, k_j -> z_k^(-p_j/S) R(p_j) k_j,  z_k = (2k/r + g) / (1 + g)",
)
class XPos(Encoding):
    """Queries and keys turned as in RoPE, and scaled so that their product decays with distance."""

    traits = Traits(shift_invariant=True, bidirectional=False, turns_last=True)

    @dataclass
    class Config:
        """Settings of rotation and decay."""

        base: float = setting(10000.0, "wavelengths grow from 2 pi to 2 pi base", above=1)
        fraction: float = setting(1.0, "share of a head's channels that turn and shrink", above=0, at_most=1)
        gamma: float = setting(0.4, "less makes fast pairs decay faster (g)", above=0)
        scale_base: float = setting(512.0, "tokens over which pair k decays to z_k (S)", above=0)

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        if not shape.causal:
            raise UserError("xpos is for decoders only: its factors grow towards later tokens")
        self.width = int(config.fraction * shape.head_dim) // 2 * 2
        if self.width < 2:
            raise UserError(f"xpos turns pairs of channels; head_dim = {shape.head_dim} leaves none to turn")

    def inv_freq(self) -> Tensor:
        """Frequencies base^(-2k/r), (r / 2,)."""
        return rotary_frequencies(self.width, self.config.base)

    def rates(self) -> Tensor:
        """Logarithms of z_k over S, (r / 2,)."""
        return decay_rates(self.width, self.config.gamma) / self.config.scale_base

    def check(self, positions: Positions) -> None:
        """Raise `Undefined` where the factors leave float32's range."""
        longest = -2 * LARGEST / float(self.rates()[0])
        if positions.spacing is not None:
            span = positions.largest() - positions.spacing[0]
        elif positions.bounds is not None and positions.bounds[1] - positions.bounds[0] <= longest:
            return
        else:
            low, high = _range(positions)
            span = float((high - low).max())
        if span > longest:
            raise Undefined(f"xpos cannot hold factors over {span:g} positions; raise scale_base or use pi")

    def prepare(self, positions: Positions) -> tuple[Tensor, Tensor]:
        """z^((p - m) / S) exp(i p w) of queries, and the same with z^-1 of keys, (R, 1, L, r / 2); m: middle of all."""
        middle, rates = sum(_range(positions)) / 2, to_device(self.rates(), positions.query.device)

        def factors(p: Tensor, sign: int) -> Tensor:
            size = (sign * (p - middle)[..., None] * rates).exp()
            return torch.polar(size, positions.angles(p))[:, None]

        return factors(positions.query, 1), factors(positions.key, -1)

    def rotate(self, q: Tensor, k: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
        """Turn and scale q and k, each by its own position."""
        by_q, by_k = positions.prepared
        return turn(q, by_q), turn(k, by_k)


def _range(positions: Positions) -> tuple[Tensor, Tensor]:
    """Smallest and largest coordinate of each row, (R, 1)."""
    low = torch.minimum(positions.query.amin(1, keepdim=True), positions.key.amin(1, keepdim=True))
    return low, torch.maximum(positions.query.amax(1, keepdim=True), positions.key.amax(1, keepdim=True))
