"""PaTH: between a key and a query stand reflections, one for each token on the way, which the token itself decides.

    l_ij = k_j^T H_j+1 H_j+2 ... H_i q_i / sqrt(d),     H_t = I - b_t w_t w_t^T
    b_t = 2 sigmoid(u . x_t + c),     w_t = v_t / |v_t|,     v_t = silu(sum over s = 0, 1, 2 of a_s * (C B x)_t-s)

x_t: the layer's input (after the norm). u, c of each head; B, C: linear maps, by way of 32 numbers, to a vector of each
head; a_s: one number per channel, so v sees the last three tokens of the document. All are learned, in each layer. At
b_t = 0 a token changes nothing, at 1 it wipes out the direction w_t, near 2 it turns it round: so tokens can carry out
steps of a state, which angles of the position cannot.

Shapes: C B x (B, L, H d) and b (B, L, H), read once per token and kept while decoding; the product (B, H, Lq, Lk) takes
`BLOCK` keys at a time, from the last to the first, by a triangular system for each block (the UT transform). No fused
attention. Training and testing: the same; no length is special. It reads no coordinates, so extensions of these do not
fit: masks leave the reflections as they are. An encoder is refused.

Source: Yang, Shen, Wen, Tan, Mishra, Ren, Panda, Kim 2025 (arXiv 2505.16381), and for what it leaves open the authors'
library flash-linear-attention: 32 numbers, silu, all weights from N(0, 0.02^2), c = 0. `path+fox` is PaTH-FoX.
Departures: the paper writes no division by sqrt(d), the library has it. There PaTH-FoX divides the sums of its gates by
sqrt(d) too; here, as in the paper, they are added to the logits as they are. Decoding goes through all reflections for
each token, where the library changes the keys that it keeps. Beside `rope` the reflections act on turned vectors: then
a shift of all positions changes the logits.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pezoo.contract import Encoding, Positions, Shape, Traits
from pezoo.errors import UserError
from pezoo.registry import register, setting

BLOCK = 64
"""Keys that the product takes at a time."""


@register(
    "path",
    title="PaTH (accumulated Householder transformations)",
    year=2025,
    authors="Yang, Shen, Wen, Tan, Mishra, Ren, Panda, Kim",
    arxiv="2505.16381",
    equation="l_ij = k_j^T (prod_{t=j+1..i} (I - b_t w_t w_t^T)) q_i / sqrt(d)",
)
class PaTH(Encoding):
    """Products of reflections, read from the tokens between a key and a query."""

    traits = Traits(
        shift_invariant=True,
        bidirectional=False,
        contextual=True,
        parameters=lambda shape, c: (
            c.rank * (shape.input_width + shape.n_heads * shape.head_dim)
            + c.tokens * shape.n_heads * shape.head_dim
            + shape.n_heads * (shape.input_width + 1)
        ),
    )

    @dataclass
    class Config:
        """Settings of the reflections."""

        rank: int = setting(32, "numbers of a token from which the directions of all heads are made", at_least=1)
        tokens: int = setting(3, "tokens that a direction sees, its own included", at_least=1)

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        if not shape.causal:
            raise UserError("path is for decoders only: its reflections lie between a key and a later query")
        width = shape.n_heads * shape.head_dim
        self.down = nn.Linear(shape.input_width, config.rank, bias=False)
        self.up = nn.Linear(config.rank, width, bias=False)
        self.taps = nn.Parameter(torch.empty(config.tokens, width))
        self.strength = nn.Linear(shape.input_width, shape.n_heads)
        for weight in (self.down.weight, self.up.weight, self.taps, self.strength.weight):
            nn.init.normal_(weight, std=0.02)
        nn.init.zeros_(self.strength.bias)

    @classmethod
    def per_layer(cls, config: Config) -> bool:
        """Each layer has reflections of its own."""
        return True

    def read(self, x: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
        """C B x, (B, L, H d), and b, (B, L, H)."""
        return self.up(self.down(x)), 2 * self.strength(x).sigmoid()

    def directions(self, positions: Positions) -> Tensor:
        """The directions w of all keys, (B, H, Lk, d)."""
        code = positions.read[0]
        v = F.silu(sum(positions.earlier(code, s) * tap for s, tap in enumerate(self.taps)))
        return F.normalize(v.unflatten(-1, (self.shape.n_heads, -1)), dim=-1).transpose(1, 2)

    def product(self, q: Tensor, k: Tensor, positions: Positions) -> Tensor:
        """k_j^T H_j+1 ... H_i q_i; what lies ahead of a query is not seen, and has no meaning here.

        Within a block, before reflection t the query has become r_t = r - sum over u > t of a_u w_u, r being what it
        was before the block, and a_t = b_t w_t . r_t. So a solves a triangular system, and the logit is k_j . r_j.
        """
        w, b = self.directions(positions), positions.read[1].mT
        r, k, blocks = q.float(), k.float(), []
        query = positions.offset + torch.arange(q.shape[2], device=q.device)
        for start in reversed(range(0, k.shape[2], BLOCK)):
            here = slice(start, start + BLOCK)
            w_here, k_here, b_here = w[:, :, here], k[:, :, here], b[:, :, None, here]
            token = start + torch.arange(w_here.shape[2], device=q.device)
            along = (r @ w_here.mT).masked_fill(token > query[:, None], 0)
            system = torch.eye(len(token), device=q.device) + (w_here @ w_here.mT).tril(-1) * b_here
            a = torch.linalg.solve_triangular(system, along * b_here, upper=False, left=False, unitriangular=True)
            blocks.append(r @ k_here.mT - a @ (w_here @ k_here.mT).tril(-1))
            r = r - a @ w_here
        return torch.cat(blocks[::-1], dim=-1)
