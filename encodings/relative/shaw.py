"""Shaw et al.: learned vectors of the clipped distance, added to keys and to values.

    l_ij = q_i . (k_j + aK[c]) / sqrt(d),   o_i = sum_j alpha_ij (v_j + aV[c]),   c = clip(j - i, -K, K) + K

`by=both` adds k_j . aK[c] / sqrt(d) to l_ij: the key's view of the same vector.

Shapes: content (B, H, Lq, Lk) from a product of q with the (2K + 1, d) table, gathered; the L x L x d tensor is never
built. Tables are shared by heads and separate for each layer. Training and testing: the same. All distances beyond K
share one vector.

Source: Shaw, Uszkoreit, Vaswani 2018 (arXiv 1803.02155). Glorot initialisation. `by=both:values=false` is method 4 of
Huang, Liang, Xu, Xiang 2020 (arXiv 2009.13658), in BERT's code `relative_key_query`; without `by` it is `relative_key`.
Departures: a real distance is rounded. Under causality only rows 0 ... K are ever read; the others stay at their
initial values.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pezoo.contract import Encoding, Positions, Shape, Traits, settle
from pezoo.encodings.relative._shear import by_key, by_query, counted, fits
from pezoo.registry import register, setting


@register(
    "shaw",
    title="Relative position representations",
    year=2018,
    authors="Shaw, Uszkoreit, Vaswani",
    arxiv="1803.02155",
    equation="l_ij = q_i.(k_j + aK[c]) / sqrt(d),  o_i = sum_j alpha_ij (v_j + aV[c]),  c = clip(j - i, -K, K) + K",
)
class Shaw(Encoding):
    """Learned vectors of the clipped distance, added to keys and values, of each layer."""

    traits = Traits(
        shift_invariant=True,
        parameters=lambda shape, c: (1 + c.values) * (2 * c.clip + 1) * shape.head_dim,
        deviations={"every_row_learns": "a decoder never reads the rows of keys ahead of the query"},
    )

    @dataclass
    class Config:
        """Settings of the tables."""

        clip: int = setting(16, "distances beyond this share one vector (K)", at_least=1)
        values: bool = setting(True, "whether values get relative vectors too")
        by: Literal["query", "both"] = setting("query", "what meets a relative vector: the query, or the key as well")

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        size = (2 * config.clip + 1, shape.head_dim)
        self.keys = nn.Parameter(nn.init.xavier_uniform_(torch.empty(size)))
        self.values = nn.Parameter(nn.init.xavier_uniform_(torch.empty(size))) if config.values else None

    @classmethod
    def per_layer(cls, config: Config) -> bool:
        """Each layer has tables of its own."""
        return True

    def row(self, distance: Tensor) -> Tensor:
        """Row c of real distances, query minus key, of any shape."""
        clip = self.config.clip
        return ((-settle(distance)).round().clamp(-clip, clip) + clip).long()

    def rows(self, positions: Positions) -> Tensor:
        """c_ij, (R, 1, Lq, Lk)."""
        return self.row(positions.distance())[:, None]

    def content(self, q: Tensor, k: Tensor, positions: Positions) -> Tensor:
        """q_i . aK[c_ij] / sqrt(d), and the same of k_j."""
        if fits(positions):
            distances, most = counted(positions, self.config.clip)
            table = self.keys[self.row(distances)][None] * self.scale()
            logits = by_query(q, table, most, positions)
            return logits + by_key(k, table, most, positions) if self.config.by == "both" else logits
        rows = self.rows(positions)
        logits = self.meet(q, rows)
        return logits + self.meet(k, rows.mT).mT if self.config.by == "both" else logits

    def meet(self, x: Tensor, rows: Tensor) -> Tensor:
        """Products of x (B, H, L, d) with the vectors at rows (R, 1, L, L'), over sqrt(d): (B, H, L, L')."""
        products = (x @ self.keys.T.to(x.dtype)).float() * self.scale()  # (B, H, L, 2K + 1)
        return products.gather(-1, rows.expand(*products.shape[:-1], rows.shape[-1]))

    def mix(self, weights: Tensor, v: Tensor, positions: Positions) -> Tensor:
        """`weights @ v` plus, for each row of the table, its vector times the weight of the keys that read it."""
        out = weights @ v
        if self.values is None:
            return out
        shares = weights.new_zeros(*weights.shape[:-1], len(self.values))
        shares = shares.scatter_add(-1, self.rows(positions).expand_as(weights), weights)
        return out + shares @ self.values.to(v.dtype)

    def near_values(self, positions: Positions) -> Tensor | None:
        """AV of each distance from 0 on."""
        if self.values is None:
            return self.keys[:0]
        if not fits(positions):
            return None
        distances, _ = counted(positions, self.config.clip)
        return self.values[self.row(distances[distances >= 0].flip(0))]
