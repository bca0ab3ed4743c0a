"""Attention under a row of numbers per distance, read by a view that copies nothing.

Legend: B batch, H heads, Lq queries, Lk keys, d head_dim. With the queries in reverse order the row index
i' = Lq - 1 - i makes the column of the table i' + j: both strides are 1, which a strided view allows (a Toeplitz
matrix itself would need a negative one).
"""

import torch.nn.functional as F
from torch import Tensor

from pezoo.composition import Composition, sharpen, typed


def attend(q: Tensor, k: Tensor, v: Tensor, composition: Composition, table: Tensor) -> Tensor:
    """Attention whose bias at (i, j) is table[:, Lq - 1 - i + j].

    Args:
        q: queries, (B, H, Lq, d), rotated.
        k: keys, (B, H, Lk, d), rotated.
        v: values, (B, H, Lk, d).
        composition: what the scheme adds for these queries and keys.
        table: (1 or H, Lq + Lk - 1 or more), -inf where a query does not see a key.
    """
    n_queries, n_keys = q.shape[-2], k.shape[-2]
    table = typed(table[:, : n_queries + n_keys - 1], q).contiguous()
    shape, strides = (1, table.shape[0], n_queries, n_keys), (0, table.stride(0), 1, 1)
    view = table.as_strided(shape, strides)
    if view.is_cuda:
        view = view.contiguous()  # CUDA's kernels want aligned rows
    q = sharpen(q, composition.sigma()).flip(-2)
    return F.scaled_dot_product_attention(q, k, v, view, scale=composition.scale).flip(-2)
