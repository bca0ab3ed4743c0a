"""Attention whose logits a member makes pair by pair, in blocks of pairs that fit a cache, with gradients by hand.

A member that has `pair_logits` and `pair_gradients` beside its `content` or `adapt` says there what these do to a block
of pairs. The rest of attention is here:

    P = softmax(logits),  out = P V,  dlogits = P * (dO V^T - rowsum(dO * O))

No pairs are kept; the backward pass makes each block again. Keys come in reverse order: what counts from the query back
then counts from the first column, and a bias of distance is a view of one row of numbers.

Legend: B batch, R rows (1 or B), H heads, Lq queries, Lk keys, d head_dim; n queries and m keys of a block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pezoo.attention.learned_table import diagonals, view
from pezoo.composition import Composition, Held, sharpen
from pezoo.contract import Encoding, Extension, Member, in_float32, overrides

SIZE = 64
"""Queries of a block, at most."""
DENSE = 1024
"""Up to this many keys a learned bias that is not of distance is one tensor of all pairs."""


@dataclass(frozen=True)
class Block:
    """Queries [start, stop), and of the keys the first `last`."""

    start: int
    stop: int
    last: int
    seen: Tensor | None
    """Of the first columns, whether causality and documents show them: (R, n, columns), 1 or 0; the others are seen."""
    hidden: Tensor | None
    """The same with masks of extensions, to be added to logits: 0 or -inf."""
    bias: Tensor | None
    """(R, H, n, m), where it is not made of a tensor of the whole."""


@dataclass(frozen=True)
class Plan:
    """What is computed, and how it is cut into blocks."""

    composition: Composition
    member: Any
    bias: Tensor | None
    """Of distance, (H, Lq + Lk - 1), the least first; or of pairs, (R, H, Lq, Lk)."""
    by_block: bool
    """Whether the bias is made block by block instead."""

    @property
    def n_keys(self) -> int:
        """All keys (Lk)."""
        return self.composition.positions.key.shape[1]

    def blocks(self) -> Iterator[Block]:
        """All queries, in order."""
        whole, positions = self.composition, self.composition.positions
        n_queries = positions.query.shape[1]
        single, masked = positions.key_document is None, whole.uses("mask")
        for start in range(0, n_queries, SIZE):
            stop = min(start + SIZE, n_queries)
            last = positions.offset + stop if positions.causal and single else self.n_keys
            part, seen = whole.slice(start, stop, last), None
            if not single:
                seen = part.positions.visible().flip(-1).float()
            elif positions.causal:
                seen = torch.ones(1, stop - start, stop - start).triu().flip(-2)
            hidden = part.visible().flip(-1).float() if masked else seen
            bias = part.bias() if self.by_block else None
            yield Block(
                start,
                stop,
                last,
                seen,
                None if hidden is None else hidden.log(),
                None if bias is None else bias.flip(-1),
            )

    def weights(self, q: Tensor, k: Tensor, bias: Tensor | None, block: Block, row: int) -> tuple[Tensor, Any]:
        """The weights (H, n, m) of queries (H, n, d) and keys, and what the gradients of their logits need."""
        product = torch.baddbmm(q.new_zeros(()), q, k.mT, beta=0, alpha=self.composition.scale)
        if block.bias is not None:
            bias = _of_row(block.bias, row).to(q.dtype)
        elif bias is not None:
            bias = _part(bias, block, row, self.n_keys)
        logits, kept = self.member.pair_logits(product, q, bias, _of_row(block.seen, row))
        if block.hidden is not None:
            logits[..., : block.hidden.shape[-1]] += _of_row(block.hidden, row)
        return torch.softmax(logits, dim=-1), kept


def plan(q: Tensor, composition: Composition) -> Plan | None:
    """How attention of queries (B, H, Lq, d), rotated, is computed here; None if it cannot be."""
    member = _member(composition)
    if member is None or q.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    if not any(map(composition.uses, ("bias", "distance_bias"))):
        return Plan(composition, member, None, False)
    dtype = torch.promote_types(q.dtype, torch.float32)
    anywhere = composition.positions.replace(causal=False)
    table = replace(composition, extensions=(), positions=anywhere).distance_table()
    if table is not None:
        return Plan(composition, member, table.flip(-1).to(dtype).expand(q.shape[1], -1).contiguous(), False)
    if not (torch.is_grad_enabled() and _learned(composition)):
        return Plan(composition, member, None, True)
    bias = composition.bias() if composition.positions.key.shape[1] <= DENSE else None
    return None if bias is None else Plan(composition, member, bias.flip(-1).to(dtype), False)


def _member(composition: Composition) -> Member | None:
    """Whose logits can be made by block, if nothing else is in the way.

    The member's own class must have `pair_logits`: what inherits it may have changed what the logits are.
    """
    encodings = [p.encoding for p in composition.base if overrides(p.encoding, "content")]
    changing: list[Member] = [*encodings, *(e for e in composition.extensions if overrides(e, "adapt"))]
    if len(changing) != 1 or "pair_logits" not in vars(type(changing[0])):
        return None
    if any(map(composition.uses, ("branches", "product", "normalise", "mix", "sink"))):
        return None
    (found,) = changing
    if isinstance(found, Encoding):  # it reads q and k as they were, and their product is made once
        factor = composition.sigma()
        plain = isinstance(factor, float) and factor == 1.0 and composition.scale == found.scale()
        return found if plain and not composition.uses("rotate") else None
    return found


def _learned(composition: Composition) -> bool:
    bias = composition.slice(0, 1, 1).bias()
    return bias is not None and bias.requires_grad


def attend(q: Tensor, k: Tensor, v: Tensor, how: Plan) -> Tensor:
    """Attention as planned.

    Args:
        q: queries, (B, H, Lq, d), rotated.
        k: keys, (B, H, Lk, d), rotated.
        v: values, (B, H, Lk, d).
        how: from `plan`.

    Returns:
        (B, H, Lq, d), in the dtype of v. It can be differentiated once.
    """
    if isinstance(how.member, Extension):
        q = sharpen(q, how.composition.sigma())
    dtype, inputs = torch.promote_types(q.dtype, torch.float32), (q, k.flip(-2), v.flip(-2))
    q, k, v_reversed = (t.to(dtype) for t in inputs)
    if not torch.is_grad_enabled():
        return _forward(q, k, v_reversed, how.bias, how).to(v.dtype)
    free, parameters = (replace(how, bias=None), Held(how.composition)), how.member.parameters()
    out: Tensor = _Attention.apply(q, k, v_reversed, how.bias, free, *parameters)  # type: ignore[no-untyped-call]
    return out.to(v.dtype)


def _of_row(tensor: Tensor | None, row: int) -> Any:
    return None if tensor is None else tensor[row if len(tensor) > 1 else 0]


def _part(bias: Tensor, block: Block, row: int, n_keys: int) -> Tensor:
    """The part (H, n, m) of a bias of distance or of pairs, as a view."""
    if bias.ndim == 2:
        return view(bias, n_keys - block.last + block.start, block.stop - block.start, block.last)
    found: Tensor = _of_row(bias, row)[:, block.start : block.stop, n_keys - block.last :]
    return found


def _forward(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, how: Plan) -> Tensor:
    """Outputs (B, H, Lq, d); keys and values in reverse order."""
    out, n_keys = v.new_empty(*q.shape[:-1], v.shape[-1]), k.shape[-2]
    for block in how.blocks():
        some, keys = slice(block.start, block.stop), slice(n_keys - block.last, n_keys)
        parts = zip(*(t.unbind() for t in (q[:, :, some], k[:, :, keys], v[:, :, keys], out[:, :, some])), strict=True)
        for row, (q_here, k_here, v_here, out_here) in enumerate(parts):
            out_here.copy_(torch.bmm(how.weights(q_here, k_here, bias, block, row)[0], v_here))
    return out


class _Attention(torch.autograd.Function):
    """Queries, keys and values (B, H, L, d), a bias, how and by what members, and the member's parameters: outputs."""

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, how: tuple[Plan, Held], *parameters: Tensor
    ) -> Tensor:
        return _forward(q, k, v, bias, how[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        q, k, v, bias, (ctx.how, ctx.held), *parameters = inputs
        ctx.save_for_backward(q, k, v, bias, output, *parameters)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, out, *parameters = ctx.saved_tensors
        given = gradient, (q, k, v), bias, out, ctx.how, parameters, ctx.needs_input_grad[3]
        with in_float32(out.device):
            found = ctx.held.run(lambda: _gradients(*given))
        return (*found[:4], None, *found[4:])


def _gradients(
    gradient: Tensor,
    tensors: Sequence[Tensor],
    bias: Tensor | None,
    out: Tensor,
    how: Plan,
    parameters: Sequence[Tensor],
    learned: bool,
) -> list[Tensor | None]:
    """Gradients to q, k, v, to the bias if it is learned, and to the parameters."""
    n_keys, scale = tensors[1].shape[-2], how.composition.scale
    totals = [torch.zeros_like(t) for t in tensors]
    to_parameters = [torch.zeros_like(p, dtype=out.dtype) for p in parameters]
    to_bias, by_distance = None, bias is not None and bias.ndim == 2
    if learned and bias is not None:  # of distance: column c and row r at first + c + r
        to_bias = bias.new_zeros(len(bias), SIZE, n_keys + out.shape[-2]) if by_distance else torch.zeros_like(bias)
    inner = (gradient * out).sum(-1, keepdim=True)
    for block in how.blocks():
        some, keys = slice(block.start, block.stop), slice(n_keys - block.last, n_keys)
        cut = [t[:, :, s].unbind() for ts in (tensors, totals) for t, s in zip(ts, (some, keys, keys), strict=True)]
        of_queries = [t[:, :, some].unbind() for t in (gradient, inner)]
        for row, (q, k, v, to_q, to_k, to_v, upstream, own) in enumerate(zip(*cut, *of_queries, strict=True)):
            weights, kept = how.weights(q, k, bias, block, row)
            to_v.baddbmm_(weights.mT, upstream)
            change = torch.bmm(upstream, v.mT).sub_(own).mul_(weights)
            product, beside, change, found = how.member.pair_gradients(change, kept, q, learned)
            for total, part in zip(to_parameters, found, strict=True):
                total += part
            if to_bias is not None and by_distance:
                first = n_keys - block.last + block.start
                to_bias[:, : block.stop - block.start, first : first + block.last] += change
            elif to_bias is not None:
                _part(to_bias, block, row, n_keys).add_(change)
            more = q.new_zeros(()) if beside is None else beside
            to_q.copy_(torch.baddbmm(more, product, k, beta=float(beside is not None), alpha=scale))
            to_k.baddbmm_(product.mT, q, alpha=scale)
    if to_bias is not None and bias is not None and by_distance:
        to_bias = diagonals(to_bias)[:, : bias.shape[1]]
    return [*totals, to_bias, *(t.to(p.dtype) for t, p in zip(to_parameters, parameters, strict=True))]
