"""Attention by PyTorch's FlexAttention, on CUDA: one kernel that adds biases and hides keys on its way.

    logits = q' k'^T / sqrt(width) + bias          where a query sees a key

q' and k' are rotated, and q' carries all factors on its logits. A bias of distance is one row of numbers per head, any
other one tensor of pairs; both may be learned. Blocks of pairs that nobody sees are left out. A sink joins a query's
sum in the end.

A kernel is compiled for a kind of bias and mask, not for a length: positions come as tensors, and sizes are symbols.
Once PyTorch has compiled a function too often it would run it without a kernel, and not say so. Here that is an error.

Legend: B batch, R rows (1 or B), H heads, Lq queries, Lk keys, d head_dim; n and m blocks of queries and of keys.
A tensor by distance has Lq + Lk - 1 entries, the largest distance first: that of (i, j) is at Lq - 1 - i + j.

Source: Dong et al. 2024, arXiv 2412.05496.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import flex_attention as library

from pezoo.composition import Composition, fused_refusal, sharpen
from pezoo.contract import overrides
from pezoo.errors import UserError

DEVICES = ("cuda",)
"""Where it runs. PyTorch has no backward pass elsewhere, and on a CPU `chunked` is faster."""
COMPILER = "inductor"
"""What turns it into a kernel."""
LEAST_WIDTH = 16
"""Width of a head that the kernel takes at least."""
SIDE = 128
"""Queries and keys of a block."""
PAIRS = 2**22
"""Pairs that are looked at together to find the blocks, at most, in all rows."""
NUMBERS = 2**31
"""Numbers of a bias of pairs must be fewer: the kernel counts them in 32 bits."""
KERNELS = 64
"""Kernels that a process compiles, at most: for kinds of schemes, sizes of models and precisions."""

Kernel = Callable[..., tuple[Tensor, Tensor | None]]
Blocks = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""How many blocks, and which: partly seen ones of each block of queries, whole ones; the same of blocks of keys."""


class Seen(NamedTuple):
    """What a query sees, as the kernel reads it."""

    by_distance: Tensor | None
    """Whether it sees so far within a document, (Lq + Lk - 1); None: pairs say it."""
    documents: tuple[Tensor, Tensor] | None
    """Of queries and keys, (R, Lq) and (R, Lk); None: there is one in a row."""
    pairs: Tensor | None
    """(R, Lq, Lk), where a mask is not of distance alone."""
    blocks: Blocks


def missing(backend: str, device: torch.device) -> str | None:
    """Why a device has no such back-end, in words, or None if it has: all but this one run anywhere."""
    if backend != "flex" or device.type in DEVICES:
        return None
    return f"needs a CUDA GPU, and this is device={device.type}"


def refusal(composition: Composition) -> str | None:
    """Why it cannot reproduce `eager` for this scheme, or None if it can."""
    width = composition.base[0].encoding.shape.head_dim
    if width < LEAST_WIDTH:
        return f"its kernel takes heads that are {LEAST_WIDTH} wide or more, and these are {width}"
    return fused_refusal(composition)


def takes_fewer_keys(composition: Composition) -> bool:
    """Whether keys and values may come once for each group of query heads: nothing tells the heads of a group apart."""
    turning = (p.encoding for p in composition.base if overrides(p.encoding, "rotate"))
    return not composition.uses("change_values") and all(encoding.traits.turns_once for encoding in turning)


def attend(q: Tensor, k: Tensor, v: Tensor, composition: Composition) -> Tensor:
    """Attention under a scheme that is not refused.

    Args:
        q: queries, (B, H, Lq, d), not rotated.
        k: keys, (B, H or fewer, Lk, d), not rotated.
        v: values, (B, H or fewer, Lk, d).
        composition: what the scheme adds for these heads.

    Returns:
        (B, H, Lq, d), in the dtype of v. It can be differentiated once. The gradient of a bias is summed in an order
        that differs from run to run.

    Raises:
        UserError: if the kernel does not take such tensors, or has been compiled too often.
    """
    if q.dtype == torch.float64:
        raise UserError("back-end 'flex' computes in float32 or less, and these tensors are float64; use backend=auto")
    q, k = composition.rotate(q, k)
    q = sharpen(q, composition.sigma() * (composition.scale * q.shape[-1] ** 0.5))
    seen, sink = visible(composition), composition.sink()
    place = torch.arange(q.shape[-2] - 1, -1, -1, dtype=torch.int32, device=q.device)
    fewer_keys = k.shape[1] < q.shape[1]
    run = kernel if torch.compiler.is_compiling() else compiled(COMPILER)  # with the whole model, or by itself
    out, sums = run(q, k, v, _bias(composition, q.shape[1]), *seen, place, fewer_keys, sink is not None)
    if sink is not None and sums is not None:
        out = out * torch.sigmoid(sums - sink[:, None])[..., None]
    return out.to(v.dtype)


# ---- the kernel ---------------------------------------------------------------------------------


def kernel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    by_distance: Tensor | None,
    documents: tuple[Tensor, Tensor] | None,
    pairs: Tensor | None,
    blocks: Blocks,
    place: Tensor,
    fewer_keys: bool,
    with_sums: bool,
) -> tuple[Tensor, Tensor | None]:
    """What is compiled: outputs, and where they are asked for the log-sum-exps, (B, H, Lq).

    Whatever differs from call to call comes as a tensor; `place` is where a query's entries by distance begin, (Lq,).
    """

    def score(logit: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if bias is None:
            return logit
        if bias.ndim == 2:
            return logit + bias[h, place[i] + j]
        return logit + (bias[h, i, j] if bias.ndim == 3 else bias[b, h, i, j])

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if pairs is not None:
            return pairs[i, j] if pairs.ndim == 2 else pairs[b, i, j]
        assert by_distance is not None
        near = by_distance[place[i] + j]
        if documents is None:
            return near
        of_query, of_key = documents
        same = of_query[i] == of_key[j] if of_query.ndim == 1 else of_query[b, i] == of_key[b, j]
        return near & same

    lengths, side = (q.shape[-2], k.shape[-2]), (SIDE, SIDE)
    mask = library.BlockMask(lengths, *blocks, BLOCK_SIZE=side, mask_mod=sees)
    if not with_sums:
        return library.flex_attention(q, k, v, score, mask, enable_gqa=fewer_keys), None
    request = library.AuxRequest(lse=True)
    out, more = library.flex_attention(q, k, v, score, mask, enable_gqa=fewer_keys, return_aux=request)
    return out, more.lse


@functools.cache
def compiled(compiler: str) -> Kernel:
    """The kernel, to be compiled once for all lengths of its kind; what cannot be one kernel is an error."""
    from torch._dynamo import config
    from torch._dynamo.exc import FailOnRecompileLimitHit

    made: Kernel = torch.compile(kernel, dynamic=True, fullgraph=True, backend=compiler)

    def run(*args: Any) -> tuple[Tensor, Tensor | None]:
        try:
            return made(*args)
        except FailOnRecompileLimitHit:  # PyTorch's limit is meant for one kind of arguments
            try:
                with config.patch(recompile_limit=KERNELS):
                    return made(*args)
            except FailOnRecompileLimitHit as error:
                raise UserError(
                    f"back-end 'flex' has compiled {KERNELS} kernels in this process, for schemes, models and "
                    "precisions that differ, and stops there; use backend=auto, or a process for fewer of them"
                ) from error

    return run


# ---- biases -------------------------------------------------------------------------------------


def _bias(composition: Composition, n_heads: int) -> Tensor | None:
    """By distance, (H, Lq + Lk - 1); of pairs, (H, Lq, Lk) or (B, H, Lq, Lk); None if there is none."""
    if not any(map(composition.uses, ("bias", "distance_bias"))):
        return None
    bias = composition.bias_by_distance()
    if bias is not None:
        bias = bias.expand(n_heads, -1)
    elif (bias := composition.bias()) is not None:
        if bias.numel() >= NUMBERS:
            raise UserError(
                f"back-end 'flex' would need a bias of {' x '.join(map(str, bias.shape))} pairs, more than its kernel "
                "can count; use backend=auto"
            )
        bias = bias.expand(-1, n_heads, -1, -1)
        bias = bias[0] if len(bias) == 1 else bias
    # PyTorch 2.13 drops, without a word, the gradient of a tensor that is a view of another.
    return bias.clone() if bias is not None and bias.requires_grad else bias


# ---- masks --------------------------------------------------------------------------------------


def visible(composition: Composition) -> Seen:
    """What the queries see, found once for all layers with the same masks and positions."""
    shared: dict[str, Any] = composition.found.setdefault("shared", {})
    if "seen" not in shared:
        shared["seen"] = _visible(composition)
    found: Seen = shared["seen"]
    return found


def _visible(composition: Composition) -> Seen:
    positions = composition.positions
    n_queries, n_keys = positions.query.shape[1], positions.key.shape[1]
    masks = [e for e in composition.extensions if overrides(e, "mask")]
    if not all(overrides(e, "distance_mask") for e in masks):
        pairs = composition.visible()
        blocks = _blocks(*_by_pairs(composition))
        return Seen(None, None, pairs[0] if len(pairs) == 1 else pairs, blocks)
    steps = torch.arange(n_queries + n_keys - 1, device=positions.query.device)
    steps = positions.offset + n_queries - 1 - steps
    row = steps >= 0 if positions.causal else torch.ones_like(steps, dtype=torch.bool)
    for seen in (e.distance_mask(steps) for e in masks):
        row = row if seen is None else row & seen
    if positions.query_document is None or positions.key_document is None:
        return Seen(row, None, None, _blocks(*_by_distance(row, n_queries, n_keys)))
    documents = positions.query_document, positions.key_document
    if len(documents[1]) == 1:
        documents = documents[0][0], documents[1][0]
    return Seen(row, documents, None, _blocks(*_by_pairs(composition)))


def _by_distance(row: Tensor, n_queries: int, n_keys: int) -> tuple[Tensor, Tensor]:
    """Which blocks are seen in part, and which as a whole, (1, n, m), by what is seen at a distance."""
    (first_query, last_query), (first_key, last_key) = (_edges(n, row) for n in (n_queries, n_keys))
    low = n_queries - last_query[:, None] + first_key
    high = n_queries - 1 - first_query[:, None] + last_key
    there = (first_query < last_query)[:, None] & (first_key < last_key)
    counts = F.pad(row.cumsum(0), (1, 0))
    number = counts[high.clamp(0, len(row))] - counts[low.clamp(0, len(row))]
    inside = (last_query - first_query == SIDE)[:, None] & (last_key - first_key == SIDE)
    whole = inside & (number == high - low)
    return (there & (number > 0) & ~whole)[None], whole[None]


def _edges(length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Where blocks begin, and end before; two blocks at least, since PyTorch would compile anew for a single one."""
    first = torch.arange(0, max(length, SIDE + 1), SIDE, device=like.device)
    return first.clamp(max=length), (first + SIDE).clamp(max=length)


def _by_pairs(composition: Composition) -> tuple[Tensor, Tensor]:
    """The same, (R, n, m), by a look at every pair."""
    counts = torch.cat(list(_counts(composition)), dim=1)
    counts = F.pad(counts, (0, max(0, 2 - counts.shape[2]), 0, max(0, 2 - counts.shape[1])))
    whole = counts == SIDE**2  # a block that sticks out is not whole
    return (counts > 0) & ~whole, whole


def _counts(composition: Composition) -> Iterator[Tensor]:
    """How many pairs of a block are seen, for some blocks of queries at a time."""
    positions = composition.positions
    n_queries, n_keys = positions.query.shape[1], positions.key.shape[1]
    size = SIDE * max(1, PAIRS // (SIDE * n_keys * len(positions.key)))
    for start in range(0, n_queries, size):
        stop = min(start + size, n_queries)
        pairs = composition.slice(start, stop, n_keys).visible()
        pairs = F.pad(pairs, (0, -n_keys % SIDE, 0, (start - stop) % SIDE))
        yield pairs.unflatten(2, (-1, SIDE)).unflatten(1, (-1, SIDE)).sum((2, 4))


def _blocks(part: Tensor, whole: Tensor) -> Blocks:
    """Those of each block of queries, and then those of each block of keys; both are (R, n, m)."""
    return *_listed(part), *_listed(whole), *_listed(part.mT), *_listed(whole.mT)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many of the last dimension there are, (R, 1, n), and their places, first of all, (R, 1, n, m)."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[:, None], order.int()[:, None]
