"""Far regions in fused attention: a pass per region and range of keys, merged by their log-sum-exps.

    out = sum_p exp(lse_p - lse) out_p,  lse = log(sum_p exp(lse_p) + exp(sink))

Each pair counts in one pass, so this is the softmax over all of them. A pass where no pair counts is left out; one
where all pairs count needs no mask. For passes without gradients on a CPU, whose kernel gives log-sum-exps.

Legend: R rows, H heads, Lq queries, Lk keys, d head_dim.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pezoo.composition import Composition, fused_refusal, sharpen, typed

NOTHING = -1e30
"""Logit of a pair that does not count: a row of nothing else then has no weight, but is no row of -inf."""
CHUNK = 256
"""Queries of a pass, at most."""
PAIRS = 2**20
"""Pairs of a query and a key in a pass with a mask of pairs, at most, in all rows."""

Pass = tuple[Tensor, Tensor]
"""Outputs (B, H, Lq, d), and log-sum-exps (B, H, Lq), float32."""


def fits(q: Tensor, v: Tensor, composition: Composition) -> bool:
    """Whether this scheme has regions or sinks that passes can be merged of, and nothing else that is not fused."""
    if torch.is_grad_enabled() or q.device.type != "cpu" or q.shape[-1] != v.shape[-1]:
        return False
    if composition.positions.key_document is not None or not any(map(composition.uses, ("branches", "sink"))):
        return False
    return fused_refusal(composition, but=("branches",)) is None


def attend(v: Tensor, composition: Composition, rotated: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention of values (B, H, Lk, d) under queries and keys that are rotated for each region: (B, H, Lq, d)."""
    n_queries, n_keys = rotated[0][0].shape[-2], v.shape[-2]
    sink = composition.sink()
    biased = any(map(composition.uses, ("bias", "distance_bias")))
    tables = None if biased else _tables(composition)
    size = CHUNK if tables is not None else max(1, min(CHUNK, PAIRS // (n_keys * len(composition.positions.key))))
    out = v.new_empty(*rotated[0][0].shape[:-1], v.shape[-1])
    for start in range(0, n_queries, size):
        stop = min(start + size, n_queries)
        if tables is None:
            passes = list(_by_pairs(v, composition, rotated, start, stop))
        else:
            passes = list(_by_distance(v, composition, rotated, start, stop, tables))
        out[..., start:stop, :] = _join(passes, sink).to(v.dtype)
    return out


def _flash(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Pass:
    if mask is not None:
        mask = typed(mask, q)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = kernel(q, k, v, 0.0, False, attn_mask=mask, scale=scale)
    return out, lse


def _join(passes: Sequence[Pass], sink: Tensor | None) -> Tensor:
    """The softmax over the pairs of all passes, and the sink's logit (H,)."""
    lse = torch.stack([lse for _, lse in passes])  # (passes, B, H, Lq)
    total = lse.logsumexp(0)
    if sink is not None:
        total = torch.logaddexp(total, sink[:, None])
    elif len(passes) == 1:
        return passes[0][0]
    weights = (lse - total).exp()[..., None]
    joined = passes[0][0] * weights[0]
    for (out, _), weight in zip(passes[1:], weights[1:], strict=True):
        joined = joined + out * weight
    return joined


def _by_pairs(
    v: Tensor, composition: Composition, rotated: Sequence[tuple[Tensor, Tensor]], start: int, stop: int
) -> Iterator[Pass]:
    """Passes of some queries whose regions are found pair by pair."""
    offset, n_keys = composition.positions.offset, v.shape[-2]
    seen = offset + stop if composition.positions.causal else n_keys
    ranges = [(0, seen)]
    if composition.states_reach and not composition.uses("bias"):
        ranges = composition.reach(offset + start, offset + stop - 1, n_keys)
    for first, last in ranges:
        part = composition.slice(start, stop, last, first)
        sigma = part.sigma()
        for r, where in enumerate(part.where()):
            if not where.any():
                continue
            bias = part.bias(r)
            mask = torch.zeros_like(where, dtype=torch.float32)[:, None] if bias is None else bias
            mask = mask.masked_fill(~where[:, None], NOTHING)
            q, k = rotated[r]
            yield _flash(
                sharpen(q[..., start:stop, :], sigma), k[..., first:last, :], v[..., first:last, :], mask, part.scale
            )


def _tables(composition: Composition) -> list[tuple[Tensor, int, int]] | None:
    """Of each region without bias its pairs by distance, if that alone decides: a row, and its least and largest.

    The row is (1, Lk + Lq - 1), entry m at distance largest - m, 0 where pairs count and else `NOTHING`. None if
    something else decides too, or a region's distances are not one run.
    """
    positions = composition.positions
    alone = all(r.branch is None or r.branch.by_distance for r in composition.regions)
    if positions.spacing is None or not alone or composition.uses("mask"):
        return None
    n_queries, n_keys = positions.query.shape[1], positions.key.shape[1]
    largest = positions.offset + n_queries - 1
    # The last query has the distances of the first Lk entries, the first query those of the others.
    last, first = composition.slice(n_queries - 1, n_queries, n_keys), composition.slice(0, 1, n_keys)
    rows = zip(last.where(), first.where(), strict=True)
    found = []
    for of_last, of_first in rows:
        where = torch.cat([of_last[0, 0], of_first[0, 0, n_keys - n_queries + 1 :]])
        inside = where.nonzero().flatten()
        if len(of_last) > 1 or (len(inside) and int(inside[-1] - inside[0]) + 1 != len(inside)):
            return None
        row = torch.zeros_like(where, dtype=torch.float32).masked_fill(~where, NOTHING)[None]
        ends = (largest - int(inside[-1]), largest - int(inside[0])) if len(inside) else (1, 0)
        found.append((row, *ends))
    return found


def _by_distance(
    v: Tensor,
    composition: Composition,
    rotated: Sequence[tuple[Tensor, Tensor]],
    start: int,
    stop: int,
    tables: Sequence[tuple[Tensor, int, int]],
) -> Iterator[Pass]:
    """Passes of some queries whose regions are runs of distances: masks at both edges, none between them."""
    n_queries, n_keys = composition.positions.query.shape[1], v.shape[-2]
    first, last = (composition.positions.offset + place for place in (start, stop - 1))
    sigma = composition.slice(start, stop, n_keys).sigma()
    for (q, k), (row, least, largest) in zip(rotated, tables, strict=True):
        low, high = max(0, first - largest), min(n_keys, last - least + 1)
        if least > largest or low >= high:
            continue
        all_low, all_high = max(low, last - largest), min(high, first - least + 1)
        spans = [(low, high, True)]
        if all_high - all_low > 2 * (stop - start):
            spans = [(low, all_low, True), (all_low, all_high, False), (all_high, high, True)]
        some = sharpen(q[..., start:stop, :], sigma).flip(-2)  # so that both strides of a masked pass are 1
        for a, b, masked in spans:
            if a < b:
                mask = None
                if masked:
                    width = stop - start + b - a - 1
                    cut = row[:, n_queries - stop + a :][:, :width].contiguous()
                    mask = cut.as_strided((1, 1, stop - start, b - a), (0, 0, 1, 1))
                out, lse = _flash(some, k[..., a:b, :], v[..., a:b, :], mask, composition.scale)
                yield out.flip(-2), lse.flip(-1)
