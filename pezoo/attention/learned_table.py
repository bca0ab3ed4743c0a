"""Attention under a bias of distance in training: fused forward, and gradients in blocks of queries.

It is for biases that are being learned; for a fixed one it is faster than the kernel's own backward pass as well.

The backward pass is that of `learned_pairs`, but for the gradient of the bias:

    dtable[m] = sum of dS over the pairs at m

where m counts distances from the largest down. The sums over pairs are sums along diagonals: blocks are added up first,
and then sheared once, so that each diagonal is a column.

Legend: B batch, H heads, Lq queries, Lk keys, d head_dim. Queries are in reverse order throughout, so that the bias of
row r and column j is table[:, r + j], a view that copies nothing.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from pezoo.attention.learned_pairs import Block, Span, by_definition, gradients
from pezoo.composition import sharpen, typed
from pezoo.contract import in_float32

LEAST = 512
"""From this many keys on it is faster than a dense bias."""
BLOCK = 128
"""Queries of a block."""


def fits(q: Tensor, v: Tensor, table: Tensor) -> bool:
    """Whether gradients are needed here, and the kernel takes q, (B, H, Lq, d), and v."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or not (q.requires_grad or table.requires_grad):
        return False
    return q.device.type == "cpu" and q.shape[-1] == v.shape[-1] and v.shape[-2] >= LEAST


def attend(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, scale: float, sigma: float | Tensor, spans: Sequence[Span]
) -> Tensor:
    """Attention whose bias at (i, j) is table[:, Lq - 1 - i + j].

    Args:
        q: queries, (B, H, Lq, d), rotated.
        k: keys, (B, H, Lk, d), rotated.
        v: values, (B, H, Lk, d).
        table: (1 or H, Lq + Lk - 1), -inf where a query does not see a key.
        scale: the factor on q k^T.
        sigma: one more, or (1 or B, 1 or H, Lq, 1).
        spans: blocks of queries, all of them in order, with the keys outside of which they see none.

    Returns:
        (B, H, Lq, d), in the dtype of v. It can be differentiated twice, then with all pairs in memory.
    """
    n_queries = q.shape[-2]
    rows = [(n_queries - stop, n_queries - start, first, seen) for start, stop, first, seen in reversed(spans)]
    table = typed(table, q).expand(q.shape[1], -1).contiguous()
    out: Tensor = _Attention.apply(sharpen(q, sigma).flip(-2), k, v, table, scale, rows)[0]  # type: ignore[no-untyped-call]
    return out.flip(-2)


def view(table: Tensor, first: int, n_queries: int, n_keys: int) -> Tensor:
    """(H, Lq, Lk), at (r, j) the column first + r + j of a table (H, n), as a view."""
    cut = table[:, first : first + n_queries + n_keys - 1]
    return cut.as_strided((len(cut), n_queries, n_keys), (cut.stride(0), 1, 1))


class _Attention(torch.autograd.Function):
    """Queries (B, H, Lq, d) in reverse order, keys, values, a table (H, n): outputs and log-sum-exps (B, H, Lq)."""

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, table: Tensor, scale: float, spans: Sequence[Span]
    ) -> tuple[Tensor, Tensor]:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        found = []
        for start, stop, first, seen in spans:
            mask = view(table, start + first, stop - start, seen - first)[None]
            keys = slice(first, seen)
            found.append(kernel(q[:, :, start:stop], k[:, :, keys], v[:, :, keys], 0.0, attn_mask=mask, scale=scale))
        outs, sums = zip(*found, strict=True)
        return torch.cat(outs, dim=-2), torch.cat(sums, dim=-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.scale, ctx.spans = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient = upstream[0]
        q, k, v, table, out, lse = ctx.saved_tensors
        tensors, scale = (q, k, v, table), ctx.scale
        with in_float32(gradient.device):
            if torch.is_grad_enabled():  # a graph of the gradients is wanted
                whole = view(table, 0, q.shape[-2], k.shape[-2])
                return (*by_definition(upstream, tensors, whole, scale, ctx.needs_input_grad), None, None)
            inputs = [t.to(table.dtype) for t in (gradient, q, k, v, lse)]
            most, low = max(b - a for a, b, _, _ in ctx.spans), min(a + first for a, _, first, _ in ctx.spans)
            columns = max(a + seen for a, _, _, seen in ctx.spans) - low
            pairs = table.new_zeros(len(table), most, columns)  # column c and row r: at low + c + r of the table

            def bias(at: Block) -> Tensor:
                _, heads, queries, keys = at
                some = table[heads], queries.start + keys.start
                return view(*some, queries.stop - queries.start, keys.stop - keys.start)

            def take(at: Block, change: Tensor) -> None:
                if ctx.needs_input_grad[3]:
                    _, heads, queries, keys = at
                    first = queries.start - low
                    pairs[heads, : change.shape[1], first + keys.start : first + keys.stop] += change

            found = gradients(inputs, (inputs[0] * out).sum(-1), scale, ctx.spans, bias, take)
            to_table = torch.zeros_like(table)
            to_table[:, low : low + columns + most - 1] = diagonals(pairs)[:, : table.shape[1] - low]
        return (*(g.to(t.dtype) for g, t in zip((*found, to_table), tensors, strict=True)), None, None)


def diagonals(pairs: Tensor) -> Tensor:
    """Sums of (H, r, c) over all pairs with the same r + c: (H, r + c - 1)."""
    heads, rows, columns = pairs.shape
    sheared = pad(pairs, (0, rows)).flatten(1)[:, : rows * (columns + rows - 1)]
    return sheared.view(heads, rows, columns + rows - 1).sum(1)
