"""CARoPE, context-aware RoPE: each token sets the base frequency by which it turns all that comes after it.

    q_i -> R(p_i) q_i,  k_j -> R(p_j) k_j,     p_t = sum over s <= t of f_s^c for pair c = 0 ... d/2 - 1
    f_t^h = 1 / (softplus(w_h . x_t + b_h) + 1),  in (0, 1)

RoPE turns pair c by theta^c for each token, theta = base^(-2/d): here every token and head has a theta of its own. So
between query i and key j pair c turns by f_j+1^c + ... + f_i^c. x_t: the layer's input (after the norm); w, b: learned,
of each layer and head. Pair 0 turns by 1 whatever is read.

Shapes: f (B, L, H), read once per token and kept while decoding; q (B, H, Lq, d), k (B, H, Lk, d) -> the same. Training
and testing: the same; no length is special. It reads no coordinates, so extensions of these do not fit.

Source: Veisi, Fartoot, Amirzadeh 2025 (arXiv 2507.23083). No code of its authors was found. It starts as RoPE, as the
paper says; how the paper gets there with w alone could not be established, nor whether x is the input of each layer or
the embedding of the token.
Departures: the constant b, which the paper's formula has not. It makes the start RoPE's: w = 0, and b such that f is
theta. The paper has no encoder; here its sums run the same way there.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pezoo.contract import Encoding, Positions, Shape, Traits
from pezoo.encodings.relative._angles import turn_along
from pezoo.errors import UserError
from pezoo.registry import register, setting


@register(
    "carope",
    title="Context-aware rotary position embedding (CARoPE)",
    year=2025,
    authors="Veisi, Fartoot, Amirzadeh",
    arxiv="2507.23083",
    equation="q_i -> R(p_i) q_i, k_j -> R(p_j) k_j;  p_t = sum_{s<=t} f_s^c (pair c),  f = 1 / (1 + softplus(w.x + b))",
)
class CARoPE(Encoding):
    """Queries and keys turned by sums of frequencies that tokens set."""

    traits = Traits(
        shift_invariant=True,
        contextual=True,
        parameters=lambda shape, c: shape.n_heads * (shape.input_width + 1),
    )

    @dataclass
    class Config:
        """Settings of the start."""

        base: float = setting(10000.0, "of the RoPE that it starts as", above=1)

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        if shape.head_dim < 4:
            raise UserError(
                f"carope sets frequencies of pairs of channels after the first; head_dim = {shape.head_dim} has none"
            )
        start = max(1e-9, config.base ** (1 / (shape.head_dim // 2)) - 1)  # softplus(b), where f is theta
        self.slow = nn.Linear(shape.input_width, shape.n_heads)
        nn.init.zeros_(self.slow.weight)
        nn.init.constant_(self.slow.bias, start + math.log(-math.expm1(-start)))

    @classmethod
    def per_layer(cls, config: Config) -> bool:
        """Each layer has w and b of its own."""
        return True

    def read(self, x: Tensor, positions: Positions) -> Tensor:
        """The base frequencies f, (B, L, H)."""
        return 1 / (F.softplus(self.slow(x)) + 1)

    def rotate(self, q: Tensor, k: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
        """Turn q and k by the sums of powers of f up to their tokens."""
        pairs = torch.arange(self.shape.head_dim // 2, device=q.device)
        return turn_along(q, k, positions.read[..., None] ** pairs, positions)
