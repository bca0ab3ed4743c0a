"""Attention under a bias of distance that is being learned: fused forward, and gradients in blocks of queries.

PyTorch's kernel keeps all pairs when its bias needs a gradient. Here the backward pass makes the weights of a block of
queries again, from the log-sum-exps that the kernel gives:

    P = exp(logits - lse),  dS = P * (dO V^T - rowsum(dO * O)),  dtable[m] = sum of dS over the pairs at m

where m counts distances from the largest down. The sums over pairs are sums along diagonals: blocks are added up first,
and then sheared once, so that each diagonal is a column. (The recomputation is that of FlashAttention, Dao et al. 2022,
arXiv 2205.14135.)

Legend: B batch, H heads, Lq queries, Lk keys, d head_dim. Queries are in reverse order throughout, so that the bias of
row r and column j is table[:, r + j], a view that copies nothing.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from pezoo.composition import sharpen, typed
from pezoo.contract import in_float32

LEAST = 512
"""From this many keys on it is faster than a dense bias."""
BLOCK = 128
"""Queries of a block."""
PAIRS = 2**20
"""Pairs of a block in all its heads, at most, but for blocks of one head."""

Span = tuple[int, int, int, int]
"""Some queries and the keys that they may see: [start, stop) of both."""


def fits(q: Tensor, v: Tensor, table: Tensor) -> bool:
    """Whether the table needs a gradient here, and the kernel takes q, (B, H, Lq, d), and v."""
    if not (torch.is_grad_enabled() and table.requires_grad) or torch.compiler.is_compiling():
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


def _view(table: Tensor, first: int, n_queries: int, n_keys: int) -> Tensor:
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
            mask = _view(table, start + first, stop - start, seen - first)[None]
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
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        q, k, v, table, out, lse = ctx.saved_tensors
        tensors = (q, k, v, table)
        with in_float32(gradient.device):
            if torch.is_grad_enabled():  # a graph of the gradients is wanted
                return (*_by_definition(gradient, tensors, ctx.scale, ctx.needs_input_grad), None, None)
            found = _gradients(gradient, q, k, v, table, out, lse, ctx.scale, ctx.spans)
        return (*(g.to(t.dtype) for g, t in zip(found, tensors, strict=True)), None, None)


def _by_definition(
    gradient: Tensor, tensors: Sequence[Tensor], scale: float, needed: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients that can be differentiated."""
    q, k, v, table = tensors
    logits = (q @ k.mT).to(table.dtype) * scale + _view(table, 0, q.shape[-2], k.shape[-2])
    out = torch.softmax(logits, dim=-1).to(v.dtype) @ v
    inputs = [t for t, need in zip(tensors, needed, strict=False) if need]
    found = iter(torch.autograd.grad(out, inputs, gradient, create_graph=True))
    return [next(found) if need else None for need in needed[: len(tensors)]]


def _gradients(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    spans: Sequence[Span],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients to q, k, v and the table, in the dtype of the table."""
    gradient, q, k, v, out, lse = (t.to(table.dtype) for t in (gradient, q, k, v, out, lse))
    inner, lse = (gradient * out).sum(-1, keepdim=True), lse[..., None]
    to_q, to_k, to_v, to_table = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v), torch.zeros_like(table)
    most, n_heads = max(stop - start for start, stop, _, _ in spans), q.shape[1]
    widest = max(seen - first for _, _, first, seen in spans)
    group = max(1, min(n_heads, PAIRS // (most * widest)))
    room = table.new_empty(2, group * most * widest)
    low, high = min(s + first for s, _, first, _ in spans), max(s + seen for s, _, _, seen in spans)
    for head in range(0, n_heads, group):
        heads = slice(head, head + group)
        some = table[heads]
        pairs = table.new_zeros(len(some), most, high - low)  # column c and row r: at low + c + r of the table
        for row in range(len(q)):
            for start, stop, first, seen in spans:
                at, keys = (row, heads, slice(start, stop)), (row, heads, slice(first, seen))
                size = (len(some), stop - start, seen - first)
                weights, change = (r[: size[0] * size[1] * size[2]].view(size) for r in room)
                bias = _view(some, start + first, *size[1:])
                torch.baddbmm(bias, q[at], k[keys].mT, alpha=scale, out=weights).sub_(lse[at]).exp_()
                to_v[keys].baddbmm_(weights.mT, gradient[at])
                torch.bmm(gradient[at], v[keys].mT, out=change).sub_(inner[at]).mul_(weights)
                to_q[at].baddbmm_(change, k[keys], beta=0, alpha=scale)
                to_k[keys].baddbmm_(change.mT, q[at], alpha=scale)
                pairs[:, : size[1], start + first - low : start + seen - low] += change
        to_table[heads, low : high + most - 1] = _diagonals(pairs)[:, : table.shape[1] - low]
    return to_q, to_k, to_v, to_table


def _diagonals(pairs: Tensor) -> Tensor:
    """Sums of (H, r, c) over all pairs with the same r + c: (H, r + c - 1)."""
    heads, rows, columns = pairs.shape
    sheared = pad(pairs, (0, rows)).flatten(1)[:, : rows * (columns + rows - 1)]
    return sheared.view(heads, rows, columns + rows - 1).sum(1)
