"""Attention under a scheme: one definition, `eager`, and faster back-ends that are held equal to it.

Legend: B batch, R rows (1 or B), H heads, Lq queries, Lk keys, d head_dim.

    logits = sigma (scale q' k'^T + content(q, k)) + bias       q', k' rotated; sigma from extensions such as LogN
    out    = mix(softmax(logits where visible), v')              v' with what encodings add to values

An encoding may have a product of its own for q' k'^T, or another normaliser than softmax. A sink is one more logit in
the softmax of each head, for which there is no value. q' and k' may be wider than v.

A far region (a `Branch`) has logits from positions of its own, which replace the others where its region holds.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pezoo.attention import flex, key_bias, learned_pairs, learned_table, merged, pairwise, strided
from pezoo.composition import Composition, Held, autocast, fused_refusal, sharpen, typed, widened
from pezoo.contract import in_float32, overrides
from pezoo.errors import UserError, suggest

DENSE_LIMIT = 256
"""Up to this many keys a dense bias or mask is as fast as a chunked one."""
CHUNK = 512
"""Queries that the chunked back-end takes at a time, at most."""
SMALLEST_CHUNK = 128
"""Queries that it takes at least, where the keys in reach are few."""
PAIRS = 2**20
"""Pairs of a query and a key that it takes at a time, at most, in all rows, where something is computed for each."""
KEPT = 2**24
"""Pairs of a layer, at most, in all rows and heads, of which it keeps what it computed for the backward pass ..."""
KEPT_KEYS = 1024
"""... and keys."""

Observer = Callable[[Tensor, Tensor, Composition], None]
"""Called with logits (B, H, Lq, Lk), -inf where not visible, weights, and the composition of these queries and keys."""
_observer: Observer | None = None


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Show an observer what the definition computes, whatever the scheme and the back-end, while the block runs.

    Every `attend` then runs eagerly, in chunks of queries that bound the memory, and calls the observer for each chunk
    with float32 tensors; Lk leaves out keys that lie ahead of the whole chunk. Meant for passes without gradients.
    """
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before


def attend(q: Tensor, k: Tensor, v: Tensor, composition: Composition, backend: str = "auto") -> Tensor:
    """Attention of one layer.

    Args:
        q: queries, (B, H, Lq, d), not rotated.
        k: keys, (B, Hkv, Lk, d), not rotated; Hkv divides H.
        v: values, (B, Hkv, Lk, d).
        composition: what the scheme adds at this layer.
        backend: "auto", or a name from `BACKENDS`.

    Returns:
        (B, H, Lq, d), in the dtype of v.

    Raises:
        UserError: if the back-end is unknown, or would drop something that the scheme declares.
    """
    if _observer is not None:
        backend = "chunked"
    check(backend, composition)
    if reason := flex.missing(backend, q.device):
        raise UserError(f"back-end {backend!r} {reason}; use backend=auto")
    backend = choose(composition) if backend == "auto" else backend
    if k.shape[1] != q.shape[1] and not (backend == "flex" and flex.takes_fewer_keys(composition)):
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    q, k, v = autocast(q, k, v)
    with in_float32(q.device):
        return BACKENDS[backend](q, k, composition.change_values(v), composition)


def logits(q: Tensor, k: Tensor, composition: Composition) -> Tensor:
    """What the softmax of the definition sees: (B, H, Lq, Lk), float32, -inf where a query does not see a key.

    Args:
        q: queries, (B, H, Lq, d), not rotated.
        k: keys, (B, H, Lk, d), not rotated.
        composition: what the scheme adds at this layer.
    """
    q, k = autocast(q, k)
    with in_float32(q.device):
        return _logits(q, k, composition, _rotated(q, k, composition))[0]


def check(backend: str, composition: Composition) -> None:
    """Refuse a back-end that is none, or cannot run a scheme; whether a device has it, `flex.missing` says.

    Raises:
        UserError: if it is so.
    """
    if backend not in ("auto", *BACKENDS):
        known = ", ".join(["auto", *BACKENDS])
        raise UserError(f"no attention back-end {backend!r}.{suggest(backend, BACKENDS)} Known: {known}")
    if reason := refusal(backend, composition):
        raise UserError(f"back-end {backend!r} cannot run this scheme: {reason}; use backend=auto")


def refusal(backend: str, composition: Composition) -> str | None:
    """Why a back-end cannot reproduce `eager` for this scheme, or None if it can."""
    if backend == "flex":
        return flex.refusal(composition)
    if backend != "sdpa":
        return None  # eager defines the result; chunked falls back on it, chunk by chunk
    return fused_refusal(composition)


def choose(composition: Composition) -> str:
    """The fastest back-end that reproduces `eager`: by what the scheme declares and by length, never by name."""
    return choice(composition)[0]


def choice(composition: Composition) -> tuple[str, str]:
    """The back-end that `choose` takes, and why, in words."""
    n_queries, n_keys = composition.positions.query.shape[1], composition.positions.key.shape[1]
    large = n_keys > DENSE_LIMIT and (n_queries > 1 or composition.states_reach)
    refused = refusal("sdpa", composition)
    if refused is not None:
        return "chunked" if large else "eager", refused.replace("it", "sdpa", 1)
    if not large:
        return "sdpa", "so few pairs that a bias or a mask, if any, is one small tensor"
    pairs = _of_pairs(composition)
    return ("chunked", " and ".join(pairs)) if pairs else ("sdpa", "no bias, and no mask but causality")


def chunks(q: Tensor, v: Tensor, composition: Composition) -> tuple[str, str]:
    """Which function computes what `chunked` is asked for, and how, in words.

    Args:
        q: queries (B, H, Lq, d), rotated.
        v: values (B, H, Lk, d).
        composition: what the scheme adds at this layer.
    """
    if merged.fits(q, v, composition):
        return "merged.attend", "a fused pass for each region and range of keys, merged by log-sum-exps"
    if pairwise.plan(q, composition):
        return "pairwise.attend", "not fused, in blocks that fit a cache, with gradients by hand"
    grad, fused = torch.is_grad_enabled(), _fuses(q, v, composition)
    pairs = any(map(composition.uses, ("content", "mix")))
    table = composition.distance_table() if fused and not pairs else None
    near = fused and _narrows(composition, table)
    reach = "; keys out of reach are left out" if near else ""
    again = "; chunks are computed again in the backward pass" * (grad and not (fused and _keeps(q, v)))
    if key_bias.find(q, v, composition) is not None:
        return "key_bias.attend", "fused, with one number per key and head"
    if table is not None and learned_table.fits(q, v, table):
        words = f"fused, with one row of numbers per head for all distances, and a backward pass of its own{reach}"
        return "learned_table.attend", words
    if table is not None:
        again = again if table.requires_grad else ""
        return "strided.attend", f"fused, with one row of numbers per head for all distances{reach}{again}"
    if fused:
        what = "content and bias as one tensor" if pairs else "a dense bias or mask"
        return "_sdpa", f"fused, with {what} per chunk of queries{reach}{again}"
    return "_eager", f"not fused, per chunk of queries{again}"


def _fuses(q: Tensor, v: Tensor, composition: Composition) -> bool:
    """Whether chunks can be fused: content then joins the bias of pairs, and values may differ by distance."""
    near = composition.uses("mix") and learned_pairs.fits(q, v) and composition.near_values() is not None
    return _observer is None and fused_refusal(composition, but=("content", *["mix"] * near)) is None


def _narrows(composition: Composition, table: Tensor | None) -> bool:
    """Whether fused chunks leave out the keys that are out of reach; what has pairs may look at them."""
    of_pairs = table is None and any(map(composition.uses, ("bias", "content", "mix")))
    return composition.positions.key_document is None and composition.states_reach and not of_pairs


def _keeps(q: Tensor, v: Tensor) -> bool:
    """Whether the pairs of fused chunks are so few that what is computed for them is kept for the backward pass."""
    n_keys = v.shape[-2]
    return n_keys <= KEPT_KEYS and q.shape[:-1].numel() * n_keys <= KEPT


def _of_pairs(composition: Composition) -> list[str]:
    """What fused attention would need a tensor of pairs for, in words: all but whole-square causality."""
    positions = composition.positions
    n_queries, n_keys = positions.query.shape[1], positions.key.shape[1]
    square, last = positions.offset == 0 and n_queries == n_keys, n_queries == 1 and positions.offset == n_keys - 1
    found = ["packed or padded rows"] if positions.key_document is not None else []
    if positions.causal and not (square or last):
        found.append("queries that begin later than keys")
    hooks = {"bias": "a bias of pairs", "distance_bias": "a bias of distance", "mask": "a mask", "sink": "a sink"}
    return found + [words for hook, words in hooks.items() if composition.uses(hook)]


def eager(q: Tensor, k: Tensor, v: Tensor, composition: Composition) -> Tensor:
    """The definition: plain, quadratic in memory, softmax in float32."""
    return _eager(q, k, v, composition, _rotated(q, k, composition))


def _rotated(q: Tensor, k: Tensor, composition: Composition) -> list[tuple[Tensor, Tensor]]:
    return [composition.rotate(q, k, r) for r in range(len(composition.regions))]


def _logits(
    q: Tensor, k: Tensor, composition: Composition, rotated: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, list[Tensor]]:
    """The logits, and where each region counts, (R, Lq, Lk)."""
    logits: Tensor  # of the first region at once, which has no branch
    sigma, where = composition.sigma(), list[Tensor]()
    place = composition.owner("product")
    for r, region in enumerate(composition.regions):
        own = region.parts[place]
        content = own.encoding.product(*rotated[r], own.positions).float() * composition.scale
        for part in region.parts:
            more = part.encoding.content(q, k, part.positions)
            content = content if more is None else content + more.float()
        content, bias = content * sigma, composition.bias(r)
        for extension in composition.extensions:
            if overrides(extension, "adapt"):
                content, bias = extension.adapt(content, bias, region.parts[0].positions), None
        here = content if bias is None else content + bias
        if region.branch is None:
            logits, inside = here, torch.ones_like(here[:1, 0], dtype=torch.bool)
        else:
            inside = region.branch.region(composition.positions)
            logits = torch.where(inside[:, None], here, logits)
            where = [w & ~inside for w in where]
        where.append(inside)
    return logits.masked_fill(~composition.visible()[:, None], -torch.inf), where


def _eager(q: Tensor, k: Tensor, v: Tensor, composition: Composition, rotated: list[tuple[Tensor, Tensor]]) -> Tensor:
    logits, where = _logits(q, k, composition, rotated)
    sink = composition.sink()
    if sink is None:
        own = composition.base[composition.owner("normalise")]
        weights = own.encoding.normalise(logits, own.positions)
    else:
        weights = torch.softmax(_beside(logits, sink), dim=-1)[..., :-1]
    if _observer is not None:
        _observer(logits, weights, composition)
    weights = weights.to(v.dtype)
    place = composition.owner("mix")
    mixer = composition.base[place]
    if len(where) == 1 or not overrides(mixer.encoding, "mix"):
        return mixer.encoding.mix(weights, v, mixer.positions)
    parts = [region.parts[place] for region in composition.regions]
    mixed = [p.encoding.mix(weights * w[:, None], v, p.positions) for p, w in zip(parts, where, strict=True)]
    return torch.stack(mixed).sum(0)


def _beside(logits: Tensor, sink: Tensor) -> Tensor:
    """Logits or bias (R, 1 or H, Lq, Lk) with the sink, (H,), as one more key: (R, H, Lq, Lk + 1)."""
    rows, _, n_queries, n_keys = logits.shape
    size = (rows, len(sink), n_queries)
    return torch.cat([logits.expand(*size, n_keys), sink.to(logits.dtype)[:, None, None].expand(*size, 1)], dim=-1)


def sdpa(q: Tensor, k: Tensor, v: Tensor, composition: Composition) -> Tensor:
    """PyTorch's scaled-dot-product attention, with bias and masks as one dense (R, H, Lq, Lk) tensor."""
    rotated_q, rotated_k = composition.rotate(q, k)
    return _sdpa(rotated_q, rotated_k, widened(v, rotated_q, composition), composition)[..., : v.shape[-1]]


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, composition: Composition, content: Tensor | None = None, chunked: bool = False
) -> Tensor:
    """`sdpa` for q and k that are rotated already, and content logits; a chunk has a backward pass of its own."""
    sigma, scale, positions = composition.sigma(), composition.scale, composition.positions
    q = sharpen(q, sigma)
    if content is None and not _of_pairs(composition) and not composition.uses("mix"):
        causal = positions.causal and q.shape[-2] > 1
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    table = composition.distance_table() if content is None and not composition.uses("mix") else None
    if table is not None:  # entry (i, j) is table[..., Lq - 1 - i + j]
        table = typed(table, q)
        if table.requires_grad:
            rows = torch.arange(q.shape[-2] - 1, -1, -1, device=q.device)[:, None]
            mask = table[:, rows + torch.arange(k.shape[-2], device=q.device)][None]
        else:
            mask = table[:, : q.shape[-2] + k.shape[-2] - 1].unfold(-1, k.shape[-2], 1).flip(-2)[None]
    else:
        bias, sink = composition.bias(), composition.sink()
        near = composition.near_values() if chunked and composition.uses("mix") else None
        if content is not None:
            content = content if isinstance(sigma, float) and sigma == 1.0 else content * sigma
            bias = content if bias is None else content + bias
        elif bias is None and near is not None:
            bias = torch.zeros(1, 1, q.shape[-2], k.shape[-2], device=q.device)
        plain = chunked and sink is None and positions.key_document is None and not composition.uses("mask")
        if plain and bias is not None and learned_pairs.fits(q, v):
            return learned_pairs.attend(q, k, v, bias, scale, positions.offset if positions.causal else None, near)
        mask = composition.visible()[:, None]
        if bias is not None:
            mask = bias.masked_fill(~mask, -torch.inf)
        if bias is None and sink is not None:
            mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -torch.inf)
        if sink is not None:  # a key and a value of zeros, with the sink for a bias
            mask, k, v = _beside(mask, sink), F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        if mask.dtype != torch.bool:
            mask = typed(mask, q)
    if chunked and mask.requires_grad and learned_pairs.fits(q, v):
        return learned_pairs.attend(q, k, v, mask, scale)
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)


def chunked(q: Tensor, k: Tensor, v: Tensor, composition: Composition) -> Tensor:
    """Memory linear in length: `CHUNK` queries at a time, each against the keys it can see.

    Biases and masks of distance alone are read as a strided view of one row (`strided`). Content joins a bias of
    pairs. What no fused kernel can hold runs eagerly, a chunk at a time, or as a member says for blocks of pairs
    (`pairwise`). Keys out of a mask's reach are left out. While gradients are kept, a chunk is computed again in the
    backward pass instead of being stored, unless the kernel stores no pairs anyhow or they are few. A bias that is
    being learned has a backward pass of its own (`learned_table`, `learned_pairs`).
    """
    rotated = _rotated(q, k, composition)
    return _chunked(q, k, widened(v, rotated[0][0], composition), composition, rotated)[..., : v.shape[-1]]


def _chunked(q: Tensor, k: Tensor, v: Tensor, composition: Composition, rotated: list[tuple[Tensor, Tensor]]) -> Tensor:
    if _observer is None and merged.fits(rotated[0][0], v, composition):
        return merged.attend(v, composition, rotated)
    if _observer is None and (bias := key_bias.find(rotated[0][0], v, composition)) is not None:
        return key_bias.attend(*rotated[0], v, bias, composition)
    if _observer is None and (by_hand := pairwise.plan(rotated[0][0], composition)):
        return pairwise.attend(*rotated[0], v, by_hand)
    fused, content = _fuses(rotated[0][0], v, composition), any(map(composition.uses, ("content", "mix")))
    table = composition.distance_table() if fused and not content else None
    single = composition.positions.key_document is None
    n_queries, n_keys, offset = q.shape[-2], k.shape[-2], composition.positions.offset
    narrow = fused and _narrows(composition, table)
    width = composition.width(n_keys) if narrow else n_keys
    size = CHUNK if table is not None else max(1, min(CHUNK, PAIRS // (width * len(q))))
    if fused and content:
        size = min(size, learned_pairs.BLOCK)  # keys ahead of all of them are left out
    size = min(size, max(SMALLEST_CHUNK, width // 2)) if width < n_keys else size

    def span(start: int, size: int) -> tuple[int, int, int, int]:
        """Some queries, and the keys that they may see."""
        stop = min(start + size, n_queries)
        first, seen = 0, offset + stop if composition.positions.causal and single else n_keys
        if narrow:
            ranges = composition.reach(offset + start, offset + stop - 1, n_keys)
            first, seen = max(0, ranges[0][0]), min(seen, ranges[-1][1])
        return start, stop, first, seen

    if table is not None and learned_table.fits(rotated[0][0], v, table):
        spans = [span(start, learned_table.BLOCK) for start in range(0, n_queries, learned_table.BLOCK)]
        return learned_table.attend(*rotated[0], v, table, composition.scale, composition.sigma(), spans)

    def chunk(start: int) -> Tensor:
        _, stop, first, seen = span(start, size)
        keys = slice(first, seen)
        some = [(a[..., start:stop, :], b[..., keys, :]) for a, b in rotated]
        part = composition.slice(start, stop, seen, first)
        plain_q, plain_k = q[..., start:stop, :], k[..., keys, :]
        if table is not None:
            return strided.attend(*some[0], v[..., keys, :], part, table[:, n_queries - stop + first :])
        if fused:
            more = part.content(plain_q, plain_k) if content else None
            return _sdpa(*some[0], v[..., keys, :], part, more, chunked=True)
        return _eager(plain_q, plain_k, v[..., keys, :], part, some)

    def again(start: int) -> Tensor:  # the backward pass runs where the caller's default dtype holds
        with in_float32(q.device):
            return chunk(start) if held is None else held.run(lambda: chunk(start))

    starts = range(0, n_queries, size)
    kept = not table.requires_grad if table is not None else fused and _keeps(q, v)  # a fixed table keeps no pairs
    if torch.is_grad_enabled():
        anew = len(starts) > 1 and not kept
        held = Held(composition) if anew and not torch.compiler.is_compiling() else None
        return torch.cat([checkpoint(again, s, use_reentrant=False) if anew else chunk(s) for s in starts], dim=-2)
    # Into one tensor: small outputs left between large temporaries keep these from being given back to the system.
    out = v.new_empty(*q.shape[:-1], v.shape[-1])
    for start in starts:
        out[..., start : start + size, :] = chunk(start)
    return out


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, Composition], Tensor]] = {
    "eager": eager,
    "sdpa": sdpa,
    "chunked": chunked,
    "flex": flex.attend,
}
