"""CABLE, context-aware biases: each token adds to a penalty on all that came before it, and each query sets its weight.

    l_ij^h = q_i . k_j / sqrt(d) - g_i^h sum over t = j+1 ... i of f_t^h
    f_t^h = relu(w_h . x_t),     g_i^h = softplus(u_h . x_i)

x_t: the layer's input (after the norm); w, u: learned, of each layer and head. With f_t = 1 and g_i^h = 2^-h this is
ALiBi. `weight=false` leaves g out (the paper's CABLE-NW); with `gate=softplus` as well it is FoX with the sign of w
turned, and without FoX's constant. `kernel=log` adds -ln(1 + b^2) in place of -b (K-CABLE): the paper found it better
in models of few layers.

Shapes: f and g (B, L, H), read once per token and kept while decoding; bias (B, H, Lq, Lk), a difference of two sums.
Training and testing: the same; no length is special. It reads no coordinates, so extensions of these do not fit: masks
leave the sums as they are. An encoder is refused.

Source: Veisi, Amirzadeh, Mansourian 2025 (arXiv 2503.08067, third version). Its formula lacks the minus sign, which its
words and its case of ALiBi demand. Initial values are those of the authors' first code, N(0, 0.02^2); this has
`gate=softplus:weight=false`, with a constant beside w. The code of the third version could not be read.
Departures: none from the paper that could be established. That first code does not divide q.k by sqrt(d). How the paper
fills in keys ahead of the query in its encoders could not be established either.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from pezoo.contract import Encoding, Positions, Shape, Traits
from pezoo.errors import UserError
from pezoo.registry import register, setting


@register(
    "cable",
    title="Context-aware biases (CABLE)",
    year=2025,
    authors="Veisi, Amirzadeh, Mansourian",
    arxiv="2503.08067",
    equation="l_ij = q_i.k_j / sqrt(d) - g_i sum_{t=j+1..i} f_t,  f_t = relu(w.x_t),  g_i = softplus(u.x_i)",
)
class Cable(Encoding):
    """A penalty on the logits that each token adds to for all that came before it, weighed by the query."""

    traits = Traits(
        shift_invariant=True,
        bidirectional=False,
        contextual=True,
        parameters=lambda shape, c: (1 + c.weight) * shape.n_heads * shape.input_width,
    )

    @dataclass
    class Config:
        """Settings of the penalty."""

        gate: Literal["relu", "softplus"] = setting("relu", "what makes f of w.x")
        weight: bool = setting(True, "each query weighs its penalties; false: CABLE-NW")
        kernel: Literal["linear", "log"] = setting("linear", "the penalty is b, or ln(1 + b^2): K-CABLE")

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        if not shape.causal:
            raise UserError("cable is for decoders only: its sums run from a key to a later query")
        self.added = nn.Linear(shape.input_width, shape.n_heads, bias=False)
        self.weight = nn.Linear(shape.input_width, shape.n_heads, bias=False) if config.weight else None
        for linear in self.children():
            nn.init.normal_(linear.weight, std=0.02)

    @classmethod
    def per_layer(cls, config: Config) -> bool:
        """Each layer has w and u of its own."""
        return True

    def read(self, x: Tensor, positions: Positions) -> tuple[Tensor, ...]:
        """The numbers f, (B, L, H), and g likewise where queries weigh."""
        added = (F.relu if self.config.gate == "relu" else F.softplus)(self.added(x))
        return (added,) if self.weight is None else (added, F.softplus(self.weight(x)))

    def bias(self, positions: Positions) -> Tensor:
        """The sum of f over the tokens after a key up to the query, times the query's g, below zero."""
        added, *weight = positions.read
        total = positions.sums(added).mT  # (B, H, Lk)
        penalty = positions.of_queries(total, 2)[..., None] - total[:, :, None]
        for g in weight:
            penalty = penalty * positions.of_queries(g.mT, 2)[..., None]
        return -penalty if self.config.kernel == "linear" else -penalty.square().log1p()
