"""TUPE: learned absolute positions enter attention as a bias of their own, untied from the tokens.

    l_ij = (q_i . k_j + U_q N(P(p_i)) . U_k N(P(p_j))) / sqrt(2 d)   [+ b(p_i - p_j), TUPE-R]

P: table of learned positions, N: layer normalisation, U_q and U_k: projections of each head; nothing is added to the
input. One table and one pair of projections serve all layers. b is the bias of `t5`.

Shapes: bias (R, H, Lq, Lk) of projected rows (R, H, L, d), read from tables (N, H d); a real coordinate reads between
its two rows, linearly.
Training and testing: the same. A coordinate outside the table raises `Undefined`, as for `learned`.

Source: Ke, He, Liu 2020 (arXiv 2006.15595). Initialisation N(0, 0.02^2), as in the authors' code.
Departures: the paper resets the terms of [CLS], the first token, to a learned number for each head; `untie_first`
does so, but is off, since a decoder has no such token (with it, a decoder never reads P(0); in an encoder softmax
ignores the number in the first token's own row, as it does the paper's). The authors' code makes that number, too, from
projected rows, gives [CLS] relative buckets of its own, and U_q and U_k a bias, of which softmax ignores the second.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pezoo.contract import Encoding, Positions, Shape, Traits
from pezoo.encodings.absolute.learned import check_rows, read_rows
from pezoo.encodings.bias.t5 import T5
from pezoo.registry import register, setting

FEW = 2**16
"""Pairs up to which each layer makes the bias anew, which is as fast."""
MOST = 2**22
"""Numbers in a bias that layers share, at most."""


class Prepared(NamedTuple):
    """What all layers share."""

    offset: int
    """Place of the first query among the keys."""
    q: Tensor
    """U_q N(P) of the queries, (R, H, Lq, d)."""
    k: Tensor
    """U_k N(P) of the keys, (R, H, Lk, d)."""
    shared: Tensor | None
    """The bias, (R, H, Lq, Lk)."""


def _count(shape: Shape, config: "TUPE.Config") -> int:
    rows, width = config.max_position or shape.extent or shape.train_length, shape.d_model
    relative = T5.Config().n_buckets * shape.n_heads if config.relative else 0
    first = (1 if shape.causal else 2) * shape.n_heads if config.untie_first else 0
    return rows * width + 2 * width + 2 * width * shape.n_heads * shape.head_dim + relative + first


@register(
    "tupe",
    title="Untied positional encoding (TUPE)",
    year=2020,
    authors="Ke, He, Liu",
    arxiv="2006.15595",
    equation="l_ij = (q_i.k_j + U_q N(P[i]) . U_k N(P[j])) / sqrt(2 d)",
    aliases={"tupe_r": ("tupe:relative=true", "TUPE-R, with a relative bias")},
)
class TUPE(Encoding):
    """The product of two projections of learned positions, as a bias."""

    traits = Traits(parameters=_count)

    @dataclass
    class Config:
        """Settings of the table and of the terms."""

        max_position: int | None = setting(None, "rows of the table; unset: as many as training shows", at_least=1)
        untie_first: bool = setting(False, "a learned number for each head where the first token takes part")
        relative: bool = setting(False, "add a T5 bias (TUPE-R)")

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        rows, width = config.max_position or shape.extent or shape.train_length, shape.d_model
        heads = shape.n_heads * shape.head_dim
        self.table = nn.Parameter(torch.randn(rows, width) * 0.02)
        self.norm, self.project = nn.LayerNorm(width), nn.Linear(width, 2 * heads, bias=False)
        nn.init.normal_(self.project.weight, std=0.02)
        self.first = self.relative = None
        if config.untie_first:  # seen by others; seeing others, which a causal first token does not
            self.first = nn.Parameter(torch.zeros(1 if shape.causal else 2, shape.n_heads))
        if config.relative:
            self.relative = T5(shape, T5.Config())

    def scale(self) -> float:
        """1 / sqrt(2 d), for both terms."""
        return (2 * self.shape.head_dim) ** -0.5

    def check(self, positions: Positions) -> None:
        """Raise `Undefined` for coordinates outside the table, of keys that an encoder sees too."""
        check_rows("tupe", len(self.table), positions if positions.causal else positions.of_keys())

    def prepare(self, positions: Positions) -> Prepared:
        """U_q N(P) of the queries and U_k N(P) of the keys; while gradients are kept, the bias too if it is not large.

        Each layer would keep a bias of its own then; else it makes what it looks at, chunk by chunk.
        """
        tables = self.project(self.norm(self.table)).chunk(2, dim=-1)
        coordinates, heads = (positions.query, positions.key), (self.shape.n_heads, self.shape.head_dim)
        q, k = (
            read_rows(table, where).float().unflatten(-1, heads).transpose(1, 2)
            for table, where in zip(tables, coordinates, strict=True)
        )
        n_pairs = q.shape[-2] * k.shape[-2]
        share = torch.is_grad_enabled() and n_pairs > FEW and n_pairs * heads[0] * len(q) <= MOST
        return Prepared(positions.offset, q, k, self._pairs(q, k, positions) if share else None)

    def bias(self, positions: Positions) -> Tensor:
        """The term of positions, (R, H, Lq, Lk)."""
        prepared, n_queries, n_keys = positions.prepared, positions.query.shape[1], positions.key.shape[1]
        start = positions.offset - prepared.offset
        rows = slice(start, start + n_queries)
        if prepared.shared is not None:
            return prepared.shared[..., rows, :n_keys]
        return self._pairs(prepared.q[..., rows, :], prepared.k[..., :n_keys, :], positions)

    def _pairs(self, q: Tensor, k: Tensor, positions: Positions) -> Tensor:
        """The bias of pairs, from projected rows (R, H, Lq or Lk, d)."""
        bias = q @ k.transpose(-1, -2) * self.scale()
        if self.first is not None:
            is_first = (positions.key_index == 0)[:, None, None, :]
            bias = torch.where(is_first, self.first[0].float().view(-1, 1, 1), bias)
            if not self.shape.causal:
                is_first = (positions.query_index == 0)[:, None, :, None]
                bias = torch.where(is_first, self.first[1].float().view(-1, 1, 1), bias)
        if self.relative is not None:
            bias = bias + self.relative.bias(positions)
        return bias
