"""Attention under a scheme: one definition, `eager`, and faster back-ends that are held equal to it.

Legend: B batch, R rows (1 or B), H heads, Lq queries, Lk keys, d head_dim.

    logits = sigma (scale q' k'^T + content(q, k)) + bias       q', k' rotated; sigma from extensions such as LogN
    out    = mix(softmax(logits where visible), v)

A far region (a `Branch`) has logits from positions of its own, which replace the others where its region holds.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pezoo.contract import Branch, Encoding, Extension, Positions, in_float32, overrides
from pezoo.errors import UserError, suggest

DENSE_LIMIT = 256
"""Up to this many keys a dense bias or mask is as fast as a chunked one."""
CHUNK = 512
"""Queries that the chunked back-end takes at a time, at most."""
PAIRS = 2**20
"""Pairs of a query and a key that it takes at a time, at most, in all rows, where something is computed for each."""


@dataclass(frozen=True)
class Part:
    """An encoding (its part for this layer) with the positions it reads."""

    encoding: Encoding
    positions: Positions


@dataclass(frozen=True)
class Region:
    """Encodings at one set of positions, and where their logits count (None: everywhere)."""

    parts: tuple[Part, ...]
    branch: Branch | None = None


@dataclass(frozen=True)
class Composition:
    """All that a scheme adds to the attention of one layer: what back-ends work from."""

    positions: Positions
    regions: tuple[Region, ...]
    extensions: tuple[Extension, ...]

    @property
    def base(self) -> tuple[Part, ...]:
        """The encodings at the scheme's own positions."""
        return self.regions[0].parts

    def slice(self, start: int, stop: int, n_keys: int) -> "Composition":
        """The same for some of the queries and the first keys. Branches are found anew from the sliced positions."""

        def cut(region: Region) -> Region:
            parts = tuple(Part(p.encoding, p.positions.slice(start, stop, n_keys)) for p in region.parts)
            return Region(parts, region.branch)

        positions = self.positions.slice(start, stop, n_keys)
        return Composition(positions, tuple(map(cut, self.regions)), self.extensions)

    def uses(self, hook: str) -> bool:
        """Whether any encoding or acting extension overrides a hook."""
        encodings = any(hasattr(Encoding, hook) and overrides(p.encoding, hook) for p in self.base)
        return encodings or any(hasattr(Extension, hook) and overrides(e, hook) for e in self.extensions)

    @property
    def scale(self) -> float:
        """The factor on q k^T: that of the encoding which sets one, else 1 / sqrt(d)."""
        owners = [p.encoding for p in self.base if overrides(p.encoding, "scale")]
        return (owners or [self.base[0].encoding])[0].scale()

    def sigma(self) -> float | Tensor:
        """The extensions' factor on content logits: a number, or (R, 1, Lq, 1)."""
        sigma: float | Tensor = 1.0
        for extension in self.extensions:
            factor = extension.scale(self.positions)
            if isinstance(factor, Tensor):
                factor = factor[:, None, :, None]
            if factor is not None:
                sigma = sigma * factor
        return sigma

    def mask(self) -> Tensor | None:
        """What extensions let a query see, (R, Lq, Lk), without causality and documents; None is all."""
        masks = [m for e in self.extensions if (m := e.mask(self.positions)) is not None]
        return _reduce(torch.logical_and, masks)

    def visible(self) -> Tensor:
        """Causality, documents and masks, (R, Lq, Lk)."""
        mask = self.mask()
        visible = self.positions.visible()
        return visible if mask is None else visible & mask

    def bias(self, region: int = 0) -> Tensor | None:
        """The encodings' bias at a region's positions, (R, H, Lq, Lk)."""
        parts = self.regions[region].parts
        biases = [b for p in parts if (b := p.encoding.bias(p.positions)) is not None]
        return _reduce(torch.add, biases)

    def rotate(self, q: Tensor, k: Tensor, region: int = 0) -> tuple[Tensor, Tensor]:
        """Rotate q and k at a region's positions."""
        for part in self.regions[region].parts:
            q, k = part.encoding.rotate(q, k, part.positions)
        return q, k

    def distance_table(self) -> Tensor | None:
        """The whole bias as one row a head, (H, Lk + Lq - 1), entry m at distance largest - m; None if it needs more.

        It can be had where coordinates are regular, nothing but causality masks, and every bias is of distance alone.
        """
        positions = self.positions
        regular = positions.spacing is not None and not self.uses("mask") and not self.uses("branches")
        if not regular or any(overrides(p.encoding, "bias") or p.positions.spacing is None for p in self.base):
            return None
        n_queries, n_keys = positions.query.shape[1], positions.key.shape[1]
        steps = torch.arange(n_queries + n_keys - 1, device=positions.query.device)
        steps = positions.offset + n_queries - 1 - steps  # largest index distance first
        biased = [p for p in self.base if overrides(p.encoding, "distance_bias")]
        tables = [p.encoding.distance_bias(steps.to(torch.float32) * p.positions.spacing[1]) for p in biased]
        table = _reduce(torch.add, tables)
        if table is not None and positions.causal:
            table = table.masked_fill(steps < 0, -torch.inf)
        return table


def _reduce(operation: Callable[[Tensor, Tensor], Tensor], items: list[Tensor]) -> Tensor | None:
    total = None
    for item in items:
        total = item if total is None else operation(total, item)
    return total


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
    if k.shape[1] != q.shape[1]:
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if _observer is not None:
        backend = "chunked"
    elif backend == "auto":
        backend = choose(composition)
    if backend not in BACKENDS:
        known = ", ".join(["auto", *BACKENDS])
        raise UserError(f"no attention back-end {backend!r}.{suggest(backend, BACKENDS)} Known: {known}")
    reason = refusal(backend, composition)
    if reason:
        raise UserError(f"back-end {backend!r} cannot run this scheme: {reason}; use backend=auto")
    q, k, v = _autocast(q, k, v)
    with in_float32(q.device):
        return BACKENDS[backend](q, k, v, composition)


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors as autocast would hand them to a product, since hooks run without it."""
    kind = tensors[0].device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t if t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def logits(q: Tensor, k: Tensor, composition: Composition) -> Tensor:
    """What the softmax of the definition sees: (B, H, Lq, Lk), float32, -inf where a query does not see a key.

    Args:
        q: queries, (B, H, Lq, d), not rotated.
        k: keys, (B, H, Lk, d), not rotated.
        composition: what the scheme adds at this layer.
    """
    q, k = _autocast(q, k)
    with in_float32(q.device):
        return _logits(q, k, composition, _rotated(q, k, composition))[0]


def refusal(backend: str, composition: Composition) -> str | None:
    """Why a back-end cannot reproduce `eager` for this scheme, or None if it can."""
    if backend != "sdpa":
        return None  # eager defines the result; chunked falls back on it, chunk by chunk
    for hook in ("branches", "content", "adapt", "mix"):
        if composition.uses(hook):
            return f"it has no place for {hook}"
    return None


def choose(composition: Composition) -> str:
    """The fastest back-end that reproduces `eager`: by what the scheme declares and by length, never by name."""
    n_queries, n_keys = composition.positions.query.shape[1], composition.positions.key.shape[1]
    large = n_keys > DENSE_LIMIT and n_queries > 1
    if refusal("sdpa", composition) is None and (not large or _is_bare(composition)):
        return "sdpa"
    return "chunked" if large else "eager"


def _is_bare(composition: Composition) -> bool:
    """Whether scaled-dot-product attention needs no tensor of pairs: no bias, no mask but whole-square causality."""
    positions = composition.positions
    square = positions.offset == 0 and positions.query.shape[1] == positions.key.shape[1]
    if positions.key_document is not None or (positions.causal and not square):
        return False
    return not any(map(composition.uses, ("bias", "distance_bias", "mask")))


def eager(q: Tensor, k: Tensor, v: Tensor, composition: Composition) -> Tensor:
    """The definition: plain, quadratic in memory, softmax in float32."""
    return _eager(q, k, v, composition, _rotated(q, k, composition))


def _rotated(q: Tensor, k: Tensor, composition: Composition) -> list[tuple[Tensor, Tensor]]:
    return [composition.rotate(q, k, r) for r in range(len(composition.regions))]


def _logits(
    q: Tensor, k: Tensor, composition: Composition, rotated: list[tuple[Tensor, Tensor]]
) -> tuple[Tensor, list[Tensor]]:
    """The logits, and where each region counts, (R, Lq, Lk)."""
    sigma, logits, where = composition.sigma(), None, []
    for r, region in enumerate(composition.regions):
        rotated_q, rotated_k = rotated[r]
        content = (rotated_q @ rotated_k.transpose(-1, -2)).float() * composition.scale
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
    weights = torch.softmax(logits, dim=-1)
    if _observer is not None:
        _observer(logits, weights, composition)
    weights = weights.to(v.dtype)
    mixer = next((p for p in composition.base if overrides(p.encoding, "mix")), composition.base[0])
    if len(where) == 1 or not overrides(mixer.encoding, "mix"):
        return mixer.encoding.mix(weights, v, mixer.positions)
    place = composition.base.index(mixer)
    parts = [region.parts[place] for region in composition.regions]
    mixed = [p.encoding.mix(weights * w[:, None], v, p.positions) for p, w in zip(parts, where, strict=True)]
    return torch.stack(mixed).sum(0)


def sdpa(q: Tensor, k: Tensor, v: Tensor, composition: Composition) -> Tensor:
    """PyTorch's scaled-dot-product attention, with bias and masks as one dense (R, H, Lq, Lk) tensor."""
    rotated_q, rotated_k = composition.rotate(q, k)
    return _sdpa(rotated_q, rotated_k, v, composition)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, composition: Composition) -> Tensor:
    """`sdpa` for q and k that are rotated already."""
    q, scale = _sharpen(q, composition.sigma()), composition.scale
    if _is_bare(composition):
        causal = composition.positions.causal
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    table = composition.distance_table()
    if table is not None:  # entry (i, j) is table[..., Lq - 1 - i + j]
        rows = torch.arange(q.shape[-2] - 1, -1, -1, device=q.device)[:, None]
        mask = _typed(table, q)[:, rows + torch.arange(k.shape[-2], device=q.device)][None]
    else:
        mask, bias = composition.visible()[:, None], composition.bias()
        if bias is not None:
            mask = _typed(bias.masked_fill(~mask, -torch.inf), q)
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)


def _typed(bias: Tensor, q: Tensor) -> Tensor:
    """A bias in the dtype that the kernels take: that of q, but on a CPU float32 for a q of less."""
    return bias.to(torch.promote_types(q.dtype, torch.float32) if q.device.type == "cpu" else q.dtype)


def _sharpen(q: Tensor, sigma: float | Tensor) -> Tensor:
    return q if isinstance(sigma, float) and sigma == 1.0 else (q * sigma).to(q.dtype)


def chunked(q: Tensor, k: Tensor, v: Tensor, composition: Composition) -> Tensor:
    """Memory linear in length: `CHUNK` queries at a time, each against the keys it can see.

    A bias of distance alone is read as a strided view of its one row (see `_strided`); what no fused kernel can hold
    runs eagerly, a chunk at a time. While gradients are kept, each chunk is computed again in the backward pass
    instead of being stored.
    """
    rotated = _rotated(q, k, composition)
    fused = _observer is None and refusal("sdpa", composition) is None
    table = composition.distance_table() if fused else None
    single = composition.positions.key_document is None
    n_queries, n_keys, offset = q.shape[-2], k.shape[-2], composition.positions.offset
    size = CHUNK if table is not None else max(1, min(CHUNK, PAIRS // (n_keys * len(q))))

    def chunk(start: int) -> Tensor:
        stop = min(start + size, n_queries)
        seen = offset + stop if composition.positions.causal and single else n_keys
        some = [(a[..., start:stop, :], b[..., :seen, :]) for a, b in rotated]
        part = composition.slice(start, stop, seen)
        if table is not None:
            return _strided(*some[0], v[..., :seen, :], part, table[:, n_queries - stop :])
        if fused:
            return _sdpa(*some[0], v[..., :seen, :], part)
        return _eager(q[..., start:stop, :], k[..., :seen, :], v[..., :seen, :], part, some)

    def again(start: int) -> Tensor:  # the backward pass runs where the caller's default dtype holds
        with in_float32(q.device):
            return chunk(start)

    starts = range(0, n_queries, size)
    if torch.is_grad_enabled() and len(starts) > 1:
        return torch.cat([checkpoint(again, s, use_reentrant=False) for s in starts], dim=-2)
    # Into one tensor: small outputs left between large temporaries keep these from being given back to the system.
    out = v.new_empty(*q.shape[:-1], v.shape[-1])
    for start in starts:
        out[..., start : start + size, :] = chunk(start)
    return out


def _strided(q: Tensor, k: Tensor, v: Tensor, composition: Composition, table: Tensor) -> Tensor:
    """Attention whose bias at (i, j) is table[:, Lq - 1 - i + j], by a view that copies nothing.

    With the queries in reverse order the row index i' = Lq - 1 - i makes the column of the table i' + j: both strides
    are 1, which a strided view allows (a Toeplitz matrix itself would need a negative one).
    """
    n_queries, n_keys = q.shape[-2], k.shape[-2]
    table = _typed(table[:, : n_queries + n_keys - 1], q).contiguous()
    shape, strides = (1, table.shape[0], n_queries, n_keys), (0, table.stride(0), 1, 1)
    view = table.as_strided(shape, strides)
    if view.is_cuda:
        view = view.contiguous()  # CUDA's kernels want aligned rows
    q = _sharpen(q, composition.sigma()).flip(-2)
    return F.scaled_dot_product_attention(q, k, v, view, scale=composition.scale).flip(-2)


BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, Composition], Tensor]] = {
    "eager": eager,
    "sdpa": sdpa,
    "chunked": chunked,
}
