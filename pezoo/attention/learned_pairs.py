"""Attention under a bias of pairs that needs a gradient: fused forward, and gradients in blocks of queries.

PyTorch's kernel leaves its fused path when its bias needs a gradient. Here the backward pass makes the weights of a
block of queries again, from the log-sum-exps that the kernel gives:

    P = exp(logits - lse),  dS = P * (dO V^T - rowsum(dO * O)),  dbias = dS

(The recomputation is that of FlashAttention, Dao et al. 2022, arXiv 2205.14135.)

Legend: B batch, H heads, Lq queries, Lk keys, d head_dim.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from pezoo.composition import typed
from pezoo.contract import in_float32

BLOCK = 128
"""Queries of a block."""
PAIRS = 2**18
"""Pairs of a block in all its heads, at most, but for blocks of one head: what fits the cache."""

LONG = 1024
"""From so many keys on that all queries of a block see, these are a pass of their own, whose bias is not copied."""

Span = tuple[int, int, int, int]
"""Some queries and the keys that they may see: [start, stop) of both."""
Block = tuple[int, slice, slice, slice]
"""A row of the batch, heads, queries and keys."""


def fits(q: Tensor, v: Tensor) -> bool:
    """Whether the kernel takes q, (B, H, Lq, d), and v, and gives log-sum-exps."""
    return q.device.type == "cpu" and q.shape[-1] == v.shape[-1] and not torch.compiler.is_compiling()


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    scale: float,
    offset: int | None = None,
    near: Tensor | None = None,
) -> Tensor:
    """softmax(scale q k^T + bias) v, where the bias is a tensor of the graph.

    Args:
        q: queries, (B, H, Lq, d), rotated.
        k: keys, (B, H, Lk, d), rotated.
        v: values, (B, H, Lk, d).
        bias: (1 or B, 1 or H, Lq, Lk), -inf where a query does not see a key.
        scale: the factor on q k^T.
        offset: if given, query i sees no key after i + offset, whatever the bias is there.
        near: what joins v_j, (m, d): for a key 0, 1, ..., m - 1 places before i + offset, and the last one for all
            further; with an offset alone, where Lk = offset + Lq.

    Returns:
        (B, H, Lq, d), in the dtype of v. It can be differentiated twice, then with all pairs in memory.
    """
    bias = typed(bias, q)
    out, lse = _Attention.apply(q, k, v, bias, scale, offset)  # type: ignore[no-untyped-call]
    if near is None or not len(near):
        return out  # type: ignore[no-any-return]
    assert offset is not None
    shares = _shares(q, k, bias, lse, scale, offset, len(near) - 1)
    last, others = near[-1], near[:-1].flip(0)
    return (out + last + shares @ (others - last)).to(v.dtype)  # type: ignore[no-any-return]


def _shares(q: Tensor, k: Tensor, bias: Tensor, lse: Tensor, scale: float, offset: int, m: int) -> Tensor:
    """The weights of the keys m - 1, ..., 1, 0 places back, (B, H, Lq, m); 0 where there is no key."""
    first = max(0, offset - m + 1)
    logits = (q @ k[:, :, first:].mT).to(bias.dtype) * scale + bias[..., first:] - lse[..., None]
    logits = pad(logits, (m - 1 - offset + first, 0), value=-torch.inf)
    return _Diagonals.apply(logits, m).exp()  # type: ignore[no-any-return, no-untyped-call]


class _Diagonals(torch.autograd.Function):
    """Of pairs (B, H, r, c) the m from the diagonal on, (B, H, r, m), where c = r + m - 1."""

    @staticmethod
    def forward(pairs: Tensor, m: int) -> Tensor:
        return _diagonals(pairs.contiguous(), m)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.shape, ctx.m = inputs[0].shape, inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():  # as plain operations, which can be differentiated
            rows = torch.arange(ctx.shape[-2], device=gradient.device)[:, None]
            index = (rows + torch.arange(ctx.m, device=gradient.device)).expand_as(gradient)
            return gradient.new_zeros(ctx.shape).scatter(-1, index, gradient), None
        pairs = gradient.new_zeros(ctx.shape)
        _diagonals(pairs, ctx.m).copy_(gradient)
        return pairs, None


def _diagonals(pairs: Tensor, m: int) -> Tensor:
    *outer, rows, columns = pairs.shape
    return pairs.as_strided((*outer, rows, m), (*pairs.stride()[:-2], columns + 1, 1))


def _spans(bias: Tensor, offset: int | None) -> list[Span]:
    n_queries, n_keys = bias.shape[-2:]
    starts = range(0, n_queries, BLOCK)
    stops = [min(start + BLOCK, n_queries) for start in starts]
    return [(a, b, 0, n_keys if offset is None else offset + b) for a, b in zip(starts, stops, strict=True)]


def _hide(bias: Tensor, offset: int | None) -> Tensor:
    """The bias, or logits, with -inf where a key is after i + offset, whatever it was there; changes what it is given.

    Three times as fast as masked_fill.
    """
    if offset is not None:
        some = bias[..., offset + 1 :]
        some.tril_(-1).add_(bias.new_full((1, 1), -torch.inf).expand(some.shape[-2:]).triu())
    return bias


def _join(outs: Sequence[Tensor], sums: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax over the keys of several passes, and its log-sum-exps (B, H, r), of those (passes, B, H, r)."""
    lse = sums.logsumexp(0)
    shares = (sums - lse).exp()[..., None]
    return sum(out * share for out, share in zip(outs, shares, strict=True)), lse


class _Attention(torch.autograd.Function):
    """Queries (B, H, Lq, d), keys, values, a bias: outputs and log-sum-exps (B, H, Lq)."""

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, offset: int | None
    ) -> tuple[Tensor, Tensor]:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = q.new_empty(q.shape), bias.new_empty(q.shape[:-1])
        # What is ahead is hidden in a copy of a block, which fits the cache if it is of one row.
        rows = [slice(None)] if offset is None else [slice(r, r + 1) for r in range(len(q))]
        for row in rows:
            some = bias if len(bias) == 1 else bias[row]
            for start, stop, _, seen in _spans(bias, offset):
                at = row, slice(None), slice(start, stop)
                passes, cut = [], 0 if offset is None or offset + start < LONG else offset + start
                for keys in (slice(0, cut), slice(cut, seen)) if cut else (slice(0, seen),):
                    mask = some[:, :, start:stop, keys]
                    if offset is not None and keys.stop == seen:
                        mask = _hide(mask.clone(memory_format=torch.contiguous_format), offset + start - cut)
                    elif mask.stride(-1) != 1:
                        mask = mask.contiguous()
                    o, total = kernel(q[at], k[row, :, keys], v[row, :, keys], 0.0, attn_mask=mask, scale=scale)
                    if cut:  # of a query that sees none of these keys, the kernel's numbers mean nothing
                        none = mask.amax(-1) == -torch.inf
                        o, total = o.masked_fill(none[..., None], 0.0), total.masked_fill(none, -torch.inf)
                    passes.append((o, total))
                outs, sums = zip(*passes, strict=True)
                out[at], lse[at] = passes[0] if len(passes) == 1 else _join(outs, torch.stack(sums))
        return out, lse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.scale, ctx.offset = inputs
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, to_lse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, out, lse = ctx.saved_tensors
        offset, tensors = ctx.offset, (q, k, v, bias)
        with in_float32(gradient.device):
            if torch.is_grad_enabled():  # a graph of the gradients is wanted
                whole = _hide(bias.clone(), offset)
                found = by_definition((gradient, to_lse), tensors, whole, ctx.scale, ctx.needs_input_grad)
                return (*found, None, None)
            to_bias = torch.empty_like(bias, memory_format=torch.contiguous_format)

            def of_block(at: Block) -> Tensor:
                block: Tensor = bias[_within(at, bias)]
                return block

            def hide(at: Block, logits: Tensor) -> None:
                _hide(logits, None if offset is None else offset + at[2].start)

            def take(at: Block, change: Tensor) -> None:
                row, heads, queries, keys = _within(at, bias)
                change = change if bias.shape[1] > 1 else change.sum(0, keepdim=True)
                if (at[0] and len(bias) == 1) or (at[1].start and bias.shape[1] == 1):
                    to_bias[row, heads, queries, keys] += change
                else:
                    to_bias[row, heads, queries, keys] = change
                    to_bias[row, heads, queries, keys.stop :] = 0.0

            inputs = [t.to(bias.dtype) for t in (gradient, q, k, v, lse)]
            inner = (inputs[0] * out).sum(-1) - to_lse
            results = gradients(inputs, inner, ctx.scale, _spans(bias, offset), of_block, take, hide)
        return (*(g.to(t.dtype) for g, t in zip((*results, to_bias), tensors, strict=True)), None, None)


def _within(at: Block, bias: Tensor) -> Block:
    """The same block in a bias that all rows, or all heads, may share."""
    row, heads, queries, keys = at
    return row if len(bias) > 1 else 0, heads if bias.shape[1] > 1 else slice(0, 1), queries, keys


def by_definition(
    upstream: Sequence[Tensor], tensors: Sequence[Tensor], bias: Tensor, scale: float, needed: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients to q, k, v and what the bias is made of, of output and log-sum-exps; they can be differentiated."""
    q, k, v, _ = tensors
    logits = (q @ k.mT).to(bias.dtype) * scale + bias
    out = torch.softmax(logits, dim=-1).to(v.dtype) @ v
    inputs = [t for t, need in zip(tensors, needed, strict=False) if need]
    found = iter(torch.autograd.grad((out, logits.logsumexp(-1)), inputs, upstream, create_graph=True))
    return [next(found) if need else None for need in needed[: len(tensors)]]


def gradients(
    tensors: Sequence[Tensor],
    inner: Tensor,
    scale: float,
    spans: Sequence[Span],
    bias: Callable[[Block], Tensor],
    take: Callable[[Block, Tensor], None],
    hide: Callable[[Block, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to q, k and v, block by block.

    Args:
        tensors: the gradient of the output, (B, H, Lq, d), queries, keys, values, and log-sum-exps (B, H, Lq), all in
            one dtype.
        inner: rowsum(dO * O), less the gradient of the log-sum-exps, (B, H, Lq).
        scale: the factor on q k^T.
        spans: the queries in blocks, with the keys that they may see.
        bias: of a block, (heads or 1, queries, keys), -inf where a query does not see a key.
        take: is given the gradient of each block's bias, (heads, queries, keys), to be used at once.
        hide: puts -inf into a block's logits, for a bias without.
    """
    gradient, q, k, v, lse = (t.contiguous() for t in tensors)
    inner, lse = inner[..., None], lse[..., None]
    to_q, to_k, to_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    n_heads, most = q.shape[1], max((stop - start) * (seen - first) for start, stop, first, seen in spans)
    group = max(1, min(n_heads, PAIRS // most))
    room = q.new_empty(2, group * most)
    for row in range(len(q)):
        for head in range(0, n_heads, group):
            for start, stop, first, seen in spans:
                block = row, slice(head, head + group), slice(start, stop), slice(first, seen)
                at, keys = block[:3], (row, block[1], block[3])
                size = (len(lse[at]), stop - start, seen - first)
                weights, change = (r[: math.prod(size)].view(size) for r in room)
                torch.baddbmm(bias(block), q[at], k[keys].mT, alpha=scale, out=weights)
                if hide is not None:
                    hide(block, weights)
                weights.sub_(lse[at]).mul_(math.log2(math.e)).exp2_()  # exp is slow where its result is next to nothing
                to_v[keys].baddbmm_(weights.mT, gradient[at])
                torch.bmm(gradient[at], v[keys].mT, out=change).sub_(inner[at]).mul_(weights)
                to_q[at].baddbmm_(change, k[keys], beta=0, alpha=scale)
                to_k[keys].baddbmm_(change.mT, q[at], alpha=scale)
                take(block, change)
    return to_q, to_k, to_v
