"""DeBERTa: content meets relative position both ways: the query with the key's, the key with the query's.

    l_ij = (q_i . k_j + q_i . K[c(i, j)] + k_j . Q[c(j, i)]) / sqrt(3 d),   c(i, j) = clip(i - j + K', 0, 2K' - 1)

K = P W_k and Q = P W_q: projections, of each layer, of one table P of 2K' relative positions. All distances beyond K'
share a row. The sums are of n terms, over sqrt(n d): `terms=c2p` leaves out the third, `terms=p2c` the second.

With `buckets` K', larger distances n share rows, and b(i - j) stands for i - j:

    b(n) = n for |n| <= m,  else sign(n) (m + ceil((m - 1) ln(|n| / m) / ln((M - 1) / m))),   m = K' / 2

M is `max_distance`, from which on all share a row.

Shapes: content (B, H, Lq, Lk), gathered from products of q and of k with the (2K', d) tables.
Training and testing: the same.

Source: He, Liu, Gao, Chen 2020 (arXiv 2006.03654), section 3.1. Initialisation N(0, 0.02^2). Buckets: the authors' code
of versions 2 and 3 (He, Gao, Chen 2021, arXiv 2111.09543), which has K' = 256 and M = 512.
Departures: c(j, i) in the third term is the paper's; the authors' code reads c(i, j) there,
`position_to_content=released`. K' = 512 in the paper, which is its training length; here by default half of what
training shows, so that no row a longer text reads is untrained, and M likewise. Real distances are rounded. Left out:
projections shared with the content's (versions 2 and 3), absolute positions before the output. In a decoder `released`
and `terms=c2p` never read rows 0 ... K' - 1 of P, and the paper's `terms=p2c` no row above K'.

>>> log_bucket(torch.tensor([0.0, 4, 5, 6, 9, 15, 16, 99, -6]), 8, 16).tolist()
[0.0, 4.0, 5.0, 5.0, 6.0, 7.0, 8.0, 8.0, -5.0]
"""

import math
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn

from pezoo.contract import Encoding, Positions, Shape, Traits, settle
from pezoo.encodings.relative._shear import by_key, by_query, counted, fits
from pezoo.errors import UserError
from pezoo.registry import register, setting


def bucket_ends(n_buckets: int, max_distance: int) -> list[int]:
    """The largest distance of each bucket from m on; whole numbers, so that no rounding decides a bucket."""
    middle = n_buckets // 2
    ratio = (max_distance - 1) / middle
    ends = (middle * ratio ** (b / (middle - 1)) for b in range(middle))
    return [math.floor(round(end, 9)) for end in ends]


def log_bucket(distance: Tensor, n_buckets: int, max_distance: int) -> Tensor:
    """b(n) of whole distances of any shape, in their dtype, at most K' either way."""
    middle, far = n_buckets // 2, distance.abs()
    ends = torch.tensor(bucket_ends(n_buckets, max_distance), device=distance.device, dtype=distance.dtype)
    shared = (middle + torch.bucketize(far, ends)).clamp(max=n_buckets) * distance.sign()
    return torch.where(far <= middle, distance, shared)


def _max_distance(shape: Shape, config: "DeBERTa.Config") -> int:
    return config.max_distance or max(1, (shape.extent or shape.train_length) // 2)


def _reach(shape: Shape, config: "DeBERTa.Config") -> int:
    return config.buckets or _max_distance(shape, config)


def _count(shape: Shape, config: "DeBERTa.Config") -> int:
    sides = 2 if config.terms == "both" else 1
    heads = shape.n_layers * shape.n_heads * shape.head_dim
    return shape.d_model * (2 * _reach(shape, config) + sides * heads)


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
            None, "distances from here on share a row (K'); unset: half of what training shows", at_least=1
        )
        buckets: int | None = setting(
            None, "rows each way (K'), logarithmic in distance beyond half of them; unset: one a distance", at_least=4
        )
        terms: Literal["both", "c2p", "p2c"] = setting(
            "both", "query with relative position (c2p), key with relative position (p2c), or both"
        )
        position_to_content: Literal["paper", "released"] = setting(
            "paper", "row that the third term reads: c(j, i), or c(i, j) as in the released code"
        )

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        self.reach, self.max_distance = _reach(shape, config), _max_distance(shape, config)
        if config.buckets and config.buckets % 2:
            raise UserError(f"deberta:buckets must be even, such as {config.buckets + 1}, not {config.buckets}")
        if config.buckets and self.max_distance < config.buckets // 2 + 2:
            least, given = config.buckets // 2 + 2, self.max_distance
            raise UserError(f"deberta:buckets={config.buckets} needs max_distance={least} or more; it is {given}")
        self.sides = ("c2p", "p2c") if config.terms == "both" else (config.terms,)
        self.table = nn.Parameter(torch.randn(2 * self.reach, shape.d_model) * 0.02)
        size = (len(self.sides), shape.n_layers, shape.n_heads, shape.d_model, shape.head_dim)
        self.project = nn.Parameter(torch.randn(size) * 0.02)  # W_k, then W_q

    def scale(self) -> float:
        """1 / sqrt(n d), for all n terms."""
        return ((1 + len(self.sides)) * self.shape.head_dim) ** -0.5

    def prepare(self, positions: Positions) -> Tensor:
        """K and Q of every layer, (2, layers, H, 2K', d), or one of them."""
        return self.table @ self.project

    def content(self, q: Tensor, k: Tensor, positions: Positions) -> Tensor:
        """(q_i . K[c(i, j)] + k_j . Q[c(j, i)]) / sqrt(3 d), or one of the two over sqrt(2 d)."""
        tables = dict(zip(self.sides, positions.prepared[:, positions.layer].transpose(-1, -2), strict=True))
        if fits(positions):
            return self.sheared(q, k, tables, positions)
        distance, terms = settle(positions.distance()).round(), []
        if "c2p" in tables:
            terms.append(_pick(q @ tables["c2p"].to(q.dtype), self.row(distance)[:, None]))
        if "p2c" in tables:
            back = self.row(-distance if self.config.position_to_content == "paper" else distance)
            terms.append(_pick(k @ tables["p2c"].to(k.dtype), back[:, None].transpose(-1, -2)).transpose(-1, -2))
        return reduce(torch.add, terms) * self.scale()

    def sheared(self, q: Tensor, k: Tensor, tables: dict[str, Tensor], positions: Positions) -> Tensor:
        """The same where distances follow from places."""
        distances, most = counted(positions, self.max_distance)
        distances, terms = settle(distances).round(), []
        if "c2p" in tables:
            terms.append(by_query(q, tables["c2p"].mT[:, self.row(distances)] * self.scale(), most, positions))
        if "p2c" in tables:
            rows = self.row(-distances if self.config.position_to_content == "paper" else distances)
            terms.append(by_key(k, tables["p2c"].mT[:, rows] * self.scale(), most, positions))
        return reduce(torch.add, terms)

    def row(self, distance: Tensor) -> Tensor:
        """Rows of the table for whole distances of any shape."""
        if self.config.buckets:
            distance = log_bucket(distance, self.config.buckets, self.max_distance)
        return (distance + self.reach).clamp(0, 2 * self.reach - 1).long()


def _pick(products: Tensor, rows: Tensor) -> Tensor:
    """Of products (B, H, L, 2K') those at rows (R, 1, L, L'), float32."""
    return products.float().gather(-1, rows.expand(*products.shape[:-1], -1))
