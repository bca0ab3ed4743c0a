"""Attention under a bias that, but for a number for each query, is one of the key alone: no tensor of pairs is made.

    out_i = sum_j softmax_j(scale q_i k_j + b_j) v_j

Softmax ignores what all keys of a query share. So each block of queries counts b from its own last key on: what is far
from 0 is then far behind, and weighs little. Keys before the block and those inside it are a fused pass each, merged by
their log-sum-exps. The backward pass is that of `learned_pairs`, where the gradient of b is a sum over queries.

Keys so far behind that no weight of a block reaches the least number of float32 are left out, whatever their products
with queries are (the pruning of Lin et al. 2025, arXiv 2504.06949).

Legend: B batch, H heads, Lq queries, Lk keys, d head_dim.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pezoo.attention.learned_pairs import Block, Span, by_definition, fits, gradients
from pezoo.composition import Composition, fused_refusal, sharpen, typed
from pezoo.contract import in_float32

BLOCK = 128
"""Queries of a block."""
NOTHING = 104.0
"""exp of minus this is 0 in float32."""


def find(q: Tensor, v: Tensor, composition: Composition) -> Tensor | None:
    """The bias, (1 or B, 1 or H, Lk), if it is one of keys alone and the kernel takes q, (B, H, Lq, d), and v."""
    return composition.key_bias() if fits(q, v) and fused_refusal(composition) is None else None


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, composition: Composition) -> Tensor:
    """Attention under a bias of keys.

    Args:
        q: queries, (B, H, Lq, d), rotated.
        k: keys, (B, H, Lk, d), rotated.
        v: values, (B, H, Lk, d).
        bias: what `find` gave.
        composition: what the scheme adds at this layer.

    Returns:
        (B, H, Lq, d), in the dtype of v. It can be differentiated twice, then with all pairs in memory.
    """
    return _attend(sharpen(q, composition.sigma()), k, v, bias, composition.scale, composition.positions.offset)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, offset: int) -> Tensor:
    """The same, where query i sees the keys up to i + offset."""
    bias = typed(bias, q).expand(*k.shape[:2], -1)
    spans = _spans(q, k, bias, scale, offset)
    out: Tensor = _Attention.apply(q, k, v, bias, scale, offset, spans)[0]  # type: ignore[no-untyped-call]
    return out


@torch.no_grad()
def _spans(q: Tensor, k: Tensor, bias: Tensor, scale: float, offset: int) -> list[Span]:
    """Blocks of queries, with the keys that weigh anything: a query's own key bounds the weight of the others."""
    products = 2 * abs(scale) * float(q.float().norm(dim=-1).max() * k.float().norm(dim=-1).max())
    found = []
    for start in range(0, q.shape[-2], BLOCK):
        stop = min(start + BLOCK, q.shape[-2])
        seen = bias[..., : offset + stop]
        least = seen[..., offset + start :].amin(-1, keepdim=True) - NOTHING - products
        found.append((start, stop, int((seen >= least).any(0).any(0).int().argmax()), offset + stop))
    return found


def _pairs(bias: Tensor, n_queries: int, first: int) -> Tensor:
    """(..., Lk), counted from the last key, for queries that see the keys up to first, first + 1 ...: (..., Lq, Lk)."""
    pairs = (bias - bias[..., -1:])[..., None, :].repeat(*[1] * (bias.ndim - 1), n_queries, 1)
    ahead = torch.ones(n_queries, bias.shape[-1] - first, device=bias.device, dtype=torch.bool).triu(1)
    pairs[..., first:].masked_fill_(ahead, -torch.inf)
    return pairs


class _Attention(torch.autograd.Function):
    """Queries (B, H, Lq, d), keys, values, a bias (B, H, Lk): outputs and log-sum-exps (B, H, Lq)."""

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, offset: int, spans: Sequence[Span]
    ) -> tuple[Tensor, Tensor]:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, sums = q.new_empty(q.shape), bias.new_empty(q.shape[:-1])
        for start, stop, first, last in spans:
            some, inside = q[:, :, start:stop], slice(offset + start, last)
            here = (bias[..., :last] - bias[..., last - 1 : last])[:, :, None]
            found, lse = kernel(
                some, k[:, :, inside], v[:, :, inside], 0.0, True, attn_mask=here[..., inside], scale=scale
            )
            before = slice(first, offset + start)
            if before.start < before.stop:
                mask = here[..., before]
                other, other_lse = kernel(some, k[:, :, before], v[:, :, before], 0.0, attn_mask=mask, scale=scale)
                total = torch.logaddexp(lse, other_lse)
                found = found * (lse - total).exp()[..., None] + other * (other_lse - total).exp()[..., None]
                lse = total
            out[:, :, start:stop], sums[:, :, start:stop] = found, lse
        return out, sums

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.scale, ctx.offset, ctx.spans = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, out, lse = ctx.saved_tensors
        gradient, offset, tensors = upstream[0], ctx.offset, (q, k, v, bias)
        with in_float32(gradient.device):
            if torch.is_grad_enabled():  # a graph of the gradients is wanted
                whole = _pairs(bias, q.shape[-2], offset)
                return (*by_definition(upstream, tensors, whole, ctx.scale, ctx.needs_input_grad), None, None, None)
            to_bias = torch.zeros_like(bias, memory_format=torch.contiguous_format)

            def of_block(at: Block) -> Tensor:
                row, heads, queries, keys = at
                first = offset + queries.start - keys.start
                return _pairs(bias[row, heads, keys], queries.stop - queries.start, first)

            def take(at: Block, change: Tensor) -> None:
                row, heads, _, keys = at
                to_bias[row, heads, keys] += change.sum(-2)

            inputs = [t.to(bias.dtype) for t in (gradient, q, k, v, lse)]
            inner = (inputs[0] * out).sum(-1)
            found = gradients(inputs, inner, ctx.scale, ctx.spans, of_block, take)
        return (*(g.to(t.dtype) for g, t in zip((*found, to_bias), tensors, strict=True)), None, None, None)
