"""GRAPE, additive and key-gated: ALiBi's penalty, whose slope each key sets for itself.

    l_ij^h = q_i . k_j / sqrt(d) - |p_i - p_j| m_h softplus(r_h) softplus(u_h . k_j / sqrt(d))

m_h: the slope of head h in ALiBi. r_h, a number, and u_h, a vector of length 1, are learned, in each layer. A key that
points along u_h fades quickly with distance, one that points away from it stays.

Shapes: content (B, H, Lq, Lk) from unrotated keys (B, H, Lk, d). Training and testing: the same. It reads keys, so what
scales logits, such as `logn`, scales the penalty too, where it spares ALiBi's.

Source: Zhang, Chen, Liu, Qin, Yuan, Xu, Yuan, Gu, Yao 2025 (arXiv 2512.07805) and the authors' code, which starts at
softplus(r) = 1 and draws u from N(0, 1/d). There the keys have passed a norm. The formula that the code states has
neither m_h nor the length of u; whether the paper's has could not be established. With `unit=false` u may have any
length.
Departures: in an encoder both sides are penalised alike. Left out are the other forms of GRAPE: learned rotations,
penalties that the query sets, and sums along the path from key to query.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pezoo.contract import Encoding, Positions, Shape, Traits, to_device
from pezoo.encodings.bias.alibi import slopes
from pezoo.registry import register, setting


@register(
    "grape",
    title="Additive GRAPE, key-gated",
    year=2025,
    authors="Zhang, Chen, Liu, Qin, Yuan, Xu, Yuan, Gu, Yao",
    arxiv="2512.07805",
    equation="l_ij = q_i.k_j / sqrt(d) - |i - j| w_h softplus(u_h.k_j / sqrt(d)),  w_h = m_h softplus(r_h)",
)
class GRAPE(Encoding):
    """A penalty linear in distance, with a slope for each head and key."""

    traits = Traits(
        shift_invariant=True,
        bidirectional=False,
        parameters=lambda shape, c: shape.n_heads * (shape.head_dim + 1),
    )

    @dataclass
    class Config:
        """Settings of the gate."""

        unit: bool = setting(True, "u has length 1 wherever it is read")

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        self.slope = nn.Parameter(torch.full((shape.n_heads,), math.log(math.e - 1)))  # r
        self.gate = nn.Parameter(torch.randn(shape.n_heads, shape.head_dim) * shape.head_dim**-0.5)  # u

    @classmethod
    def per_layer(cls, config: Config) -> bool:
        """Each layer has slopes and gates of its own."""
        return True

    def content(self, q: Tensor, k: Tensor, positions: Positions) -> Tensor:
        """-|p_i - p_j| m_h softplus(r_h) softplus(u_h . k_j / sqrt(d))."""
        gate = self.gate.float()
        if self.config.unit:
            gate = F.normalize(gate, dim=-1, eps=1e-6)
        along = (k.float() @ gate[:, :, None]).squeeze(-1) * self.shape.head_dim**-0.5  # (B, H, Lk)
        fixed = to_device(torch.tensor(slopes(self.shape.n_heads), dtype=torch.float32), k.device)
        slope = (fixed * F.softplus(self.slope.float()))[:, None] * F.softplus(along)
        return -positions.distance().abs()[:, None] * slope[:, :, None]
