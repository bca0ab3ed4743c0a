"""Products of tokens with vectors of distance, as logits of pairs, without a gather.

Where coordinates are regular, entry (i, j) of the logits is the product of query i with the vector of its distance from
key j. So products of one query with all distances, the largest first, are a row of the logits, moved by one place for
each query: a view with one column less (the skew of Music Transformer, Huang et al. 2018, arXiv 1809.04281). The way
back is a copy into that view, where a gather would need sums over rows.

Legend: B batch, H heads, Lq queries, Lk keys, d head_dim, m distances.
"""

import math
from typing import Any

import torch
from torch import Tensor

from pezoo.contract import Positions

LEAST = 257
"""From this declared length on it is done; up to it, sums keep the order that published numbers were made in."""
TILE = 128
"""Keys that are sheared at a time: distances between them, and so products too many, are few."""


def fits(positions: Positions) -> bool:
    """Whether the distance of a query and a key follows from their places."""
    return positions.spacing is not None and positions.ruler is None and positions.longest >= LEAST


def counted(positions: Positions, most: float) -> tuple[Tensor, int]:
    """Real distances (m,) of the largest number of tokens first, which is `most` or what pairs have, and that number.

    Args:
        positions: of queries and keys.
        most: the distance, in coordinates, from which on all are alike.
    """
    assert positions.spacing is not None
    step = positions.spacing[1]
    tokens = math.ceil(min(most / step, max(positions.longest, positions.key.shape[1])))
    counts = torch.arange(tokens, -1 if positions.causal else -tokens - 1, -1, device=positions.query.device)
    return counts.to(torch.float32) * step, tokens


def by_query(x: Tensor, table: Tensor, most: int, positions: Positions) -> Tensor:
    """Logits (B, H, Lq, Lk) of x_i and the vector of i - j, of x (B, H, Lq, d).

    Args:
        x: what is made of the queries.
        table: vectors (1 or H, m, d) of the distances, counted in tokens, most, most - 1, ..., most - m + 1. Those
            beyond read the first vector or the last.
        most: see above.
        positions: of the queries and keys. Under causality, keys ahead get any numbers.
    """
    return _products(x, table, most - positions.offset, positions.key.shape[1], positions.causal)


def by_key(x: Tensor, table: Tensor, most: int, positions: Positions, more: Tensor | None = None) -> Tensor:
    """Logits (B, H, Lq, Lk) of x_j and the vector of i - j, of x (B, H, Lk, d), and `more` added; see `by_query`."""
    n_queries, n_keys = positions.query.shape[1], positions.key.shape[1]
    far = min(max(positions.offset - most, 0), n_keys)  # these are further than any vector: one number each
    parts = [(x[:, :, :far] @ table[:, 0, :, None].to(x.dtype)).float()] if far else []
    back, first = table.flip(-2), table.shape[-2] - 1 - most + positions.offset
    for start in range(far, n_keys, TILE):
        parts.append(_products(x[:, :, start : start + TILE], back, first - start, n_queries, False))
    if more is None:
        return torch.cat([part.mT.expand(-1, -1, n_queries, -1) for part in parts], dim=-1)
    found: Tensor = _Added.apply(more, *parts)  # type: ignore[no-untyped-call]
    return found


class _Added(torch.autograd.Function):
    """Logits (B, H, Lq, Lk) and, added to their columns from the first on, parts (B, H, n, 1 or Lq)."""

    @staticmethod
    def forward(logits: Tensor, *parts: Tensor) -> Tensor:
        found, start = logits.new_empty(logits.shape), 0
        for part in parts:
            columns = slice(start, start + part.shape[-2])
            torch.add(logits[..., columns], part.mT, out=found[..., columns])
            start = columns.stop
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.shapes = [part.shape for part in inputs[1:]]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        found = gradient.mT.split([shape[-2] for shape in ctx.shapes], dim=-2)
        summed = [
            g.sum(-1, keepdim=True) if s[-1] == 1 < g.shape[-1] else g for g, s in zip(found, ctx.shapes, strict=True)
        ]
        return gradient, *summed


def _products(x: Tensor, table: Tensor, first: int, n: int, ahead: bool) -> Tensor:
    """Products (B, H, R, n) of x (B, H, R, d): row r, column c that of x_r and vector first - r + c of the table.

    The vectors before and after the table's are its first and last. `ahead`: columns c > n - R + r get any numbers.
    """
    rows, last = x.shape[-2], table.shape[-2] - 1
    low = first - rows + 1
    width = n + 1 if ahead else n + rows  # one more than n at least, so that no two entries are one
    start, stop = (min(max(m, 0), last) for m in (low, low + width - 1))
    some = table[:, start : stop + 1].mT.to(x.dtype)
    products = (x @ (some[0] if len(some) == 1 else some)).float()
    left = min(max(0, -low), width - 1)
    right = width - left - products.shape[-1]
    parts = (products[..., :1], left), (products, None), (products[..., -1:], right)
    filled = [p if m is None else p.expand(*p.shape[:-1], m) for p, m in parts if m != 0]
    found: Tensor = _Shear.apply(filled[0] if len(filled) == 1 else torch.cat(filled, dim=-1), n)  # type: ignore[no-untyped-call]
    return found


class _Shear(torch.autograd.Function):
    """Products (B, H, Lq, n) as (B, H, Lq, Lk): column j of row i is column Lq - 1 - i + j."""

    @staticmethod
    def forward(products: Tensor, n_keys: int) -> Tensor:
        return _view(products.contiguous(), n_keys)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.shape = inputs[0].shape

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Back.apply(gradient, ctx.shape), None  # type: ignore[no-untyped-call]


class _Back(torch.autograd.Function):
    """The gradient of `_Shear`, whose own is `_Shear` again."""

    @staticmethod
    def forward(gradient: Tensor, shape: torch.Size) -> Tensor:
        products = gradient.new_empty(shape)
        if shape[-1] == gradient.shape[-1] + 1:  # the view then holds all numbers but the first few and the last
            flat = products.flatten(-2)
            flat[..., : shape[-2] - 1], flat[..., -1] = 0.0, 0.0
        else:
            products.zero_()
        _view(products, gradient.shape[-1]).copy_(gradient)
        return products

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.n_keys = inputs[0].shape[-1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Shear.apply(gradient, ctx.n_keys), None  # type: ignore[no-untyped-call]


def _view(products: Tensor, n_keys: int) -> Tensor:
    *outer, n_queries, width = products.shape
    strides = (*products.stride()[:-2], width - 1, 1)
    return products.as_strided((*outer, n_queries, n_keys), strides, products.storage_offset() + n_queries - 1)
