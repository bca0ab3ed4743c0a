"""Selective RoPE: rotations of queries and keys by angles that each token adds for all that comes after it.

    q_i -> R(p_i) q_i,  k_j -> R(p_j) k_j,     p_t = sum over s <= t of a_s;  R(p) turns pair c by p_c base^(-2c/d)
    a_t = g_t (e^b + sum over s = 0 ... 3 of f_s * (C B n(x))_t-s),     g_t = sigmoid(v . n(x_t) + r)

So between query i and key j a pair turns by a_j+1 + ... + a_i. x_t: the layer's input (after the norm); n makes each
stretch of d of its numbers a vector of length 1. B, C: linear maps, by way of `rank` numbers, to one number per pair
and head; f_s: one number per pair, so that an angle sees the last four tokens of the document. All are learned, in each
layer. `gate` brings in g, one for each head, and `bias` brings in e^b; without them a is the sum alone. A pair that
turns by pi for one kind of token counts its parity. With e^b = 1 and nothing read this is RoPE.

Shapes: C B n(x) (B, L, H d/2), and what g is made of (B, L, H), read once per token and kept while decoding; q (B, H,
Lq, d), k (B, H, Lk, d) -> the same. Training and testing: the same; no length is special. It reads no coordinates, so
extensions of these do not fit.

Source: Movahedi, Carstensen, Afzal, Hutter, Orvieto, Cevher 2025 (arXiv 2511.17388) and the authors' code: base
500,000, rank 32 (its configurations; 16 in the class), four tokens, weights from N(0, 0.02^2), b = r = 0. The paper's
sketch reads angles from q, the code from x; the code is followed. `selective_rope+fox` is their model with FoX.
Departures: pairs are neighbours, where the code takes halves. Left out are its full-rank map with normed weights, and
the spacing of frequencies by tan(t/2) that the paper derives, which its configurations do not use. The paper has no
encoder; here its sums run the same way there, and it sees earlier tokens alone.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pezoo.contract import Encoding, Positions, Shape, Traits, to_device
from pezoo.encodings.relative._angles import turn_along
from pezoo.encodings.relative._rotary import rotary_frequencies
from pezoo.errors import UserError
from pezoo.registry import register, setting


def _count(shape: Shape, config: "SelectiveRoPE.Config") -> int:
    pairs = shape.n_heads * (shape.head_dim // 2)
    gate = shape.n_heads * (shape.input_width + 1) if config.gate else 0
    return config.rank * (shape.input_width + pairs) + (config.tokens + config.bias) * pairs + gate


@register(
    "selective_rope",
    title="Selective rotary position embedding (Selective RoPE)",
    year=2025,
    authors="Movahedi, Carstensen, Afzal, Hutter, Orvieto, Cevher",
    arxiv="2511.17388",
    equation="q_i -> R(p_i) q_i, k_j -> R(p_j) k_j;  p_t = sum_{s<=t} (f * W n(x))_s;  pair c turns by p base^(-2c/d)",
)
class SelectiveRoPE(Encoding):
    """Queries and keys turned by sums of angles that tokens set."""

    traits = Traits(shift_invariant=True, contextual=True, parameters=_count)

    @dataclass
    class Config:
        """Settings of the angles."""

        base: float = setting(500000.0, "pair c turns base^(-2c/d) times as fast as its angle says", above=1)
        rank: int = setting(32, "numbers of a token from which the angles of all heads are made", at_least=1)
        tokens: int = setting(4, "tokens that an angle sees, its own included", at_least=1)
        gate: bool = setting(False, "each head decides at each token how far it turns")
        bias: bool = setting(False, "add to each angle what no token changes; 1 at first, as in RoPE")

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        if shape.head_dim < 2:
            raise UserError(f"selective_rope turns pairs of channels; head_dim = {shape.head_dim} leaves none to turn")
        pairs = shape.n_heads * (shape.head_dim // 2)
        self.down = nn.Linear(shape.input_width, config.rank, bias=False)
        self.up = nn.Linear(config.rank, pairs, bias=False)
        self.taps = nn.Parameter(torch.empty(config.tokens, pairs))
        self.gate = nn.Linear(shape.input_width, shape.n_heads) if config.gate else None
        self.bias_log = nn.Parameter(torch.zeros(pairs)) if config.bias else None
        for weight in (self.down.weight, self.up.weight, self.taps):
            nn.init.normal_(weight, std=0.02)
        if self.gate is not None:
            nn.init.normal_(self.gate.weight, std=0.02)
            nn.init.zeros_(self.gate.bias)

    @classmethod
    def per_layer(cls, config: Config) -> bool:
        """Each layer has angles of its own."""
        return True

    def read(self, x: Tensor, positions: Positions) -> tuple[Tensor, ...]:
        """C B n(x), (B, L, H d/2), and g, (B, L, H), if there are gates."""
        d = self.shape.head_dim
        stretches = x.unflatten(-1, (-1, d if x.shape[-1] % d == 0 else x.shape[-1]))
        unit = F.normalize(stretches, dim=-1).flatten(-2)
        code = self.up(self.down(unit))
        return (code,) if self.gate is None else (code, self.gate(unit).sigmoid())

    def rotate(self, q: Tensor, k: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
        """Turn q and k by the sums of angles up to their tokens."""
        code, *gates = positions.read
        angles = sum(positions.earlier(code, s) * tap for s, tap in enumerate(self.taps))
        angles = angles if self.bias_log is None else angles + self.bias_log.exp()
        angles = angles.unflatten(-1, (self.shape.n_heads, -1))
        for gate in gates:
            angles = angles * gate[..., None]
        speeds = rotary_frequencies(self.shape.head_dim // 2 * 2, self.config.base)
        return turn_along(q, k, angles * to_device(speeds, angles.device), positions)
