"""RoPE: pairs of channels of q and k turn by angles proportional to the position, so that q.k depends on the distance.

    (a, b)_k -> (a cos(p w_k) - b sin(p w_k),  a sin(p w_k) + b cos(p w_k)),   w_k = base^(-2k/r),  k = 0 ... r/2 - 1

q turns by its own position p_i and k by p_j, in every layer; values do not. r is the rotated width of a head.

Shapes: q (B, H, Lq, d), k (B, H, Lk, d) -> the same. Training and testing: the same; no parameters.

Source: Su et al. 2021 (arXiv 2104.09864). Partial rotation (the first r of d channels, exponent over r): GPT-J, and
with 25 % GPT-NeoX (Black et al. 2022, arXiv 2204.06745). p-RoPE (only the fastest share of the frequencies turns, the
rest are zero): Barbero et al. 2024 (arXiv 2410.06205); of a share p, int(p r // 2) pairs turn, as in transformers'
`proportional`.
Departures: none. Pairs are interleaved as in the paper; `pairing=half` is LLaMA's layout, the same family up to a
permutation of channels.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from pezoo.contract import Encoding, Positions, Shape, Traits
from pezoo.encodings.relative._rotary import half_turns, rotary_frequencies, turn, turn_halves, turns
from pezoo.errors import UserError
from pezoo.registry import register, setting


@register(
    "rope",
    title="Rotary position embedding (RoPE)",
    year=2021,
    authors="Su, Lu, Pan, Murtadha, Wen, Liu",
    arxiv="2104.09864",
    equation="q_i -> R(p_i) q_i, k_j -> R(p_j) k_j;  R(p) turns pair k by p base^(-2k/r)",
    aliases={
        "partial_rope": (
            "rope:fraction=0.25",
            "Partial rotary, as in GPT-NeoX",
            {"year": 2022, "authors": "Black, Biderman, Hallahan, et al.", "arxiv": "2204.06745"},
        ),
        "p_rope": (
            "rope:kept=0.75",
            "p-RoPE",
            {"year": 2024, "authors": "Barbero, Vitvitskyi, Perivolaropoulos, et al.", "arxiv": "2410.06205"},
        ),
    },
)
class RoPE(Encoding):
    """Queries and keys turned by angles proportional to their positions."""

    traits = Traits(shift_invariant=True, turns_once=True)

    @dataclass
    class Config:
        """Settings of the rotation."""

        base: float = setting(10000.0, "wavelengths grow from 2 pi to 2 pi base", above=1)
        fraction: float = setting(1.0, "share of a head's channels that turn", above=0, at_most=1)
        kept: float = setting(1.0, "share of the frequencies, fastest first, that are not zero", at_least=0, at_most=1)
        pairing: Literal["interleaved", "half"] = setting("interleaved", "channels (2k, 2k+1), or (k, k + r/2)")

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        self.width = int(config.fraction * shape.head_dim) // 2 * 2
        if self.width < 2:
            raise UserError(f"rope turns pairs of channels; head_dim = {shape.head_dim} leaves none to turn")

    def inv_freq(self) -> Tensor:
        """Frequencies w_k, (r / 2,)."""
        frequencies = rotary_frequencies(self.width, self.config.base)
        if self.config.kept < 1:
            frequencies[int(self.config.kept * self.width // 2) :] = 0.0
        return frequencies

    def prepare(self, positions: Positions) -> tuple[Any, Any]:
        """What turns queries and keys, made of the angles p w, (R, L, r / 2)."""
        make = turns if self.config.pairing == "interleaved" else half_turns
        by_q = make(positions.angles(positions.query))
        return by_q, by_q if positions.key is positions.query else make(positions.angles(positions.key))

    def rotate(self, q: Tensor, k: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
        """Turn q and k, each by its own position."""
        by_q, by_k = positions.prepared
        by = turn if self.config.pairing == "interleaved" else turn_halves
        return by(q, by_q), by(k, by_k)
