"""DeBERTa: content meets relative position both ways: the query with the key's, the key with the query's.

    l_ij = (q_i . k_j + q_i . K[c(i, j)] + k_j . Q[c(j, i)]) / sqrt(3 d),   c(i, j) = clip(i - j + K', 0, 2K' - 1)

K = P W_k and Q = P W_q: projections, of each layer, of one table P of 2K' relative positions. All distances beyond K'
share a row.

Shapes: content (B, H, Lq, Lk), gathered from products of q and of k with the (2K', d) tables.
Training and testing: the same.

Source: He, Liu, Gao, Chen 2020 (arXiv 2006.03654), section 3.1. Initialisation N(0, 0.02^2).
Departures: c(j, i) in the third term is the paper's; the authors' code reads c(i, j) there,
`position_to_content=released`. K' = 512 in the paper, which is its training length; here by default half of what
training shows, so that no row a longer text reads is untrained. Real distances are rounded. Left out: projections
shared with the content's and logarithmic buckets (later versions), absolute positions before the output. In a decoder
`released` never reads rows 0 ... K' - 1 of P.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pezoo.contract import Encoding, Positions, Shape, Traits, settle
from pezoo.registry import register, setting


def _reach(shape: Shape, config: "DeBERTa.Config") -> int:
    return config.max_distance or max(1, (shape.extent or shape.train_length) // 2)


def _count(shape: Shape, config: "DeBERTa.Config") -> int:
    return 2 * shape.d_model * (_reach(shape, config) + shape.n_layers * shape.d_model)


@register(
    "deberta",
    title="Disentangled attention (DeBERTa)",
    year=2020,
    authors="He, Liu, Gao, Chen",
    arxiv="2006.03654",
    equation="l_ij = (q_i.k_j + q_i.K[c_ij] + k_j.Q[c_ji]) / sqrt(3 d),  c_ij = clip(i - j + K, 0, 2K - 1)",
)
class DeBERTa(Encoding):
    """Products of queries and of keys with projected relative positions."""

    traits = Traits(shift_invariant=True, parameters=_count)

    @dataclass
    class Config:
        """Settings of the table."""

        max_distance: int | None = setting(
            None, "distances beyond this share a row (K'); unset: half of what training shows", at_least=1
        )
        position_to_content: Literal["paper", "released"] = setting(
            "paper", "row that the third term reads: c(j, i), or c(i, j) as in the released code"
        )

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        self.reach = _reach(shape, config)
        self.table = nn.Parameter(torch.randn(2 * self.reach, shape.d_model) * 0.02)
        size = (2, shape.n_layers, shape.n_heads, shape.d_model, shape.head_dim)
        self.project = nn.Parameter(torch.randn(size) * 0.02)  # W_k, then W_q

    def scale(self) -> float:
        """1 / sqrt(3 d), for all three terms."""
        return (3 * self.shape.head_dim) ** -0.5

    def prepare(self, positions: Positions) -> Tensor:
        """K and Q of every layer, (2, layers, H, 2K', d)."""
        return self.table @ self.project

    def content(self, q: Tensor, k: Tensor, positions: Positions) -> Tensor:
        """(q_i . K[c(i, j)] + k_j . Q[c(j, i)]) / sqrt(3 d)."""
        keys, queries = positions.prepared[:, positions.layer].transpose(-1, -2)
        distance = settle(positions.distance()).round()
        forward = self.row(distance)
        backward = self.row(-distance) if self.config.position_to_content == "paper" else forward
        by_query = _pick(q @ keys.to(q.dtype), forward)
        by_key = _pick(k @ queries.to(k.dtype), backward.transpose(-1, -2)).transpose(-1, -2)
        return (by_query + by_key) * self.scale()

    def row(self, distance: Tensor) -> Tensor:
        """Rows of the table for whole distances (R, Lq, Lk), with an axis for the heads."""
        return (distance + self.reach).clamp(0, 2 * self.reach - 1).long()[:, None]


def _pick(products: Tensor, rows: Tensor) -> Tensor:
    """Of products (B, H, L, 2K') those at rows (R, 1, L, L'), float32."""
    return products.float().gather(-1, rows.expand(*products.shape[:-1], -1))
