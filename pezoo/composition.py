"""What a scheme adds to the attention of one layer: all that back-ends work from.

Legend: B batch, R rows (1 or B), H heads, Lq queries, Lk keys, d head_dim.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from pezoo.contract import Branch, Encoding, Extension, Positions, overrides
from pezoo.errors import UserError

T = TypeVar("T")


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
    turned: bool = False
    """Whether q and k come as `turn` leaves them: keys out of a cache that keeps them so."""
    found: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What was found out once, for all layers with the same members and positions; in `shared`, the same masks."""

    @property
    def base(self) -> tuple[Part, ...]:
        """The encodings at the scheme's own positions."""
        return self.regions[0].parts

    def reading(self, reads: tuple[Any, ...]) -> "Composition":
        """The same with what each encoding has read of the layer's input, for all keys."""

        def add(region: Region) -> Region:
            pairs = zip(region.parts, reads, strict=True)
            return Region(tuple(Part(p.encoding, p.positions.replace(read=r)) for p, r in pairs), region.branch)

        return replace(self, regions=tuple(map(add, self.regions)))

    def slice(self, start: int, stop: int, n_keys: int, first_key: int = 0) -> "Composition":
        """The same for some of the queries and keys. Branches are found anew from the sliced positions.

        Keys that are left out are still counted by `positions.seen`.
        """

        def some(positions: Positions) -> Positions:
            n_all = positions.n_keys or positions.key.shape[1]
            return positions.slice(start, stop, n_keys, first_key).replace(n_keys=n_all)

        def cut(region: Region) -> Region:
            return Region(tuple(Part(p.encoding, some(p.positions)) for p in region.parts), region.branch)

        return replace(self, positions=some(self.positions), regions=tuple(map(cut, self.regions)), found={})

    def uses(self, hook: str) -> bool:
        """Whether any encoding or acting extension overrides a hook."""
        known: bool | None = self.found.get(hook)
        if known is None:
            encodings = any(hasattr(Encoding, hook) and overrides(p.encoding, hook) for p in self.base)
            known = encodings or any(hasattr(Extension, hook) and overrides(e, hook) for e in self.extensions)
            self.found[hook] = known
        return known

    @property
    def scale(self) -> float:
        """The factor on q k^T: that of the encoding which sets one, else 1 / sqrt(d)."""
        return self.base[self.owner("scale")].encoding.scale()

    def sigma(self) -> float | Tensor:
        """The extensions' factor on content logits: a number, or (R, 1 or H, Lq, 1)."""
        sigma: float | Tensor = 1.0
        for extension in self.extensions:
            factor = extension.scale(self.positions)
            if isinstance(factor, Tensor):
                factor = (factor if factor.ndim == 3 else factor[:, None])[..., None]
            if factor is not None:
                sigma = sigma * factor
        return sigma

    def sink(self) -> Tensor | None:
        """The logit that joins each head's denominator, (H,), all sinks together; None if there is none."""
        sinks = [s for e in self.extensions if (s := e.sink()) is not None]
        return _reduce(torch.logaddexp, sinks)

    def reach(self, first: int, last: int, n_keys: int) -> list[tuple[int, int]]:
        """Ranges [start, stop) that hold all keys which the queries first ... last see, in order and apart.

        Queries and keys are meant by their place in the document, which has `n_keys` tokens.
        """
        found = [(0, last + 1 if self.positions.causal else n_keys)]
        for extension in self.extensions:
            ranges = extension.reach(first, last)
            if ranges is not None:
                both = [(max(a, c), min(b, d)) for a, b in found for c, d in sorted(ranges)]
                found = _joined([(a, b) for a, b in both if a < b])
        return found

    def width(self, n_keys: int) -> int:
        """How many keys the last query can see, from the first to the last of them."""
        last = self.positions.offset + self.positions.query.shape[1] - 1
        ranges = self.reach(last, last, n_keys)
        return min(n_keys, ranges[-1][1] - max(0, ranges[0][0]))

    @property
    def states_reach(self) -> bool:
        """Whether there is a mask, and for each mask it is known where the keys lie that it shows."""
        masks = [e for e in self.extensions if overrides(e, "mask")]
        return bool(masks) and all(overrides(e, "reach") for e in masks)

    def mask(self) -> Tensor | None:
        """What extensions let a query see, (R, Lq, Lk), without causality and documents; None is all."""
        masks = [m for e in self.extensions if (m := e.mask(self.positions)) is not None]
        return _reduce(torch.logical_and, masks)

    def visible(self) -> Tensor:
        """Causality, documents and masks, (R, Lq, Lk)."""
        mask = self.mask()
        visible = self.positions.visible()
        return visible if mask is None else visible & mask

    def where(self) -> list[Tensor]:
        """Of each region the visible pairs that it decides, (R, Lq, Lk): each pair is in one of them."""
        found = [self.visible()]
        for region in self.regions[1:]:
            assert region.branch is not None
            inside = region.branch.region(self.positions)
            visible = found[0] & inside
            for earlier in found[1:]:
                visible = visible | (earlier & inside)
            found = [w & ~inside for w in found] + [visible]
        return found

    def bias(self, region: int = 0) -> Tensor | None:
        """The encodings' bias at a region's positions, (R, H, Lq, Lk)."""
        parts = self.regions[region].parts
        biases = [b for p in parts if (b := p.encoding.bias(p.positions)) is not None]
        return _reduce(torch.add, biases)

    def content(self, q: Tensor, k: Tensor, region: int = 0) -> Tensor | None:
        """Logits of unrotated q and k at a region's positions, beside their product, (B, H, Lq, Lk), float32."""
        parts = self.regions[region].parts
        found = [c.float() for p in parts if (c := p.encoding.content(q, k, p.positions)) is not None]
        return _reduce(torch.add, found)

    def near_values(self) -> Tensor | None:
        """What joins the values of keys by how far back they are, (m, d), if nothing else decides; see the contract."""
        own, positions = self.base[self.owner("mix")], self.positions
        found = own.encoding.near_values(own.positions)
        regular = positions.causal and positions.key_document is None
        regular = regular and positions.spacing is not None and own.positions.spacing is not None
        if found is None or not len(found) or (regular and not any(map(self.uses, ("branches", "mask", "sink")))):
            return found
        return None

    def rotate(self, q: Tensor, k: Tensor, region: int = 0) -> tuple[Tensor, Tensor]:
        """Rotate q and k at a region's positions, unless they come turned."""
        return (q, k) if self.turned else self.turn(q, k, region)

    def turn(self, q: Tensor, k: Tensor, region: int = 0) -> tuple[Tensor, Tensor]:
        """Rotate q and k at a region's positions."""
        width, last = q.shape[-1], None
        for part in self.regions[region].parts:
            if overrides(part.encoding, "rotate"):
                name = part.encoding.name
                if q.shape[-1] != width:
                    raise UserError(f"{name} cannot rotate what is no longer {width} wide; name it first in the scheme")
                if last:
                    raise UserError(f"{name} cannot change q and k after {last}; name it first in the scheme")
                last = name if part.encoding.traits.turns_last else None
            q, k = part.encoding.rotate(q, k, part.positions)
            own = self.base[self.owner("product")].encoding
            if q.shape[-1] != width and overrides(own, "product") and own.name != part.encoding.name:
                wide, least = part.encoding.name, f"q and k that are {width} wide"
                raise UserError(
                    f"{own.name} has a product of its own for {least}, and {wide} makes them wider; drop one"
                )
        return q, k

    def change_values(self, v: Tensor) -> Tensor:
        """Values (B, H, Lk, d) as the encodings change them, one after the other."""
        for part in self.base:
            v = part.encoding.change_values(v, part.positions)
        return v

    def owner(self, hook: str) -> int:
        """Which encoding has a hook that one alone can have; the first if all have the default."""
        return next((i for i, p in enumerate(self.base) if overrides(p.encoding, hook)), 0)

    def key_bias(self) -> Tensor | None:
        """The bias as one number for each key, (R, H, Lk), but for what softmax ignores; None if it needs more.

        It can be had in a decoder without packed rows, where nothing hides keys or joins them.
        """
        biased = [p for p in self.base if any(overrides(p.encoding, hook) for hook in ("bias", "distance_bias"))]
        single = self.positions.causal and self.positions.key_document is None
        if len(biased) != 1 or not single or any(map(self.uses, ("branches", "mask", "sink"))):
            return None
        return biased[0].encoding.key_bias(biased[0].positions)

    def distance_table(self) -> Tensor | None:
        """The whole bias as one row a head, (H, Lk + Lq - 1), entry m at distance largest - m; None if it needs more.

        It can be had where every bias and mask is of distance alone, and distances are of steps. Masks are in it too.
        """
        name = f"table {torch.is_grad_enabled()}"
        table: Tensor | None = self.found[name] if name in self.found else self._distance_table()
        if table is None or not table.requires_grad:  # gradients are summed up layer by layer
            self.found[name] = table
        return table

    def bias_by_distance(self) -> Tensor | None:
        """The bias alone as one row a head, as in `distance_table`, finite; None if it needs more, or there is none."""
        if self.regions[1:]:
            return None
        name = f"bias {torch.is_grad_enabled()}"
        if name in self.found:
            known: Tensor | None = self.found[name]
            return known
        table = replace(self, extensions=(), positions=self.positions.replace(causal=False), found={}).distance_table()
        if table is None or not table.requires_grad:
            self.found[name] = table
        return table

    def _distance_table(self) -> Tensor | None:
        positions = self.positions
        regular = positions.key_document is None and not any(map(self.uses, ("branches", "sink")))
        masks = [e for e in self.extensions if overrides(e, "mask")]
        if not all(overrides(e, "distance_mask") for e in masks):
            return None
        biased = [p for p in self.base if overrides(p.encoding, "distance_bias")]
        if not regular or self.uses("bias") or not all(p.positions.by_step for p in biased):
            return None
        n_queries, n_keys = positions.query.shape[1], positions.key.shape[1]
        steps = torch.arange(n_queries + n_keys - 1, device=positions.query.device)
        steps = positions.offset + n_queries - 1 - steps  # largest index distance first
        tables = [p.encoding.distance_bias(p.positions.distance_of(steps)) for p in biased]
        table = _reduce(torch.add, tables)
        if table is None and masks:
            table = torch.zeros_like(steps[None], dtype=torch.float32)
        if table is None:
            return None
        hidden = [~seen for e in masks if (seen := e.distance_mask(steps)) is not None]
        for unseen in [*hidden, *[steps < 0] * positions.causal]:
            table = table.masked_fill(unseen, -torch.inf)
        return table


class Held(nn.Module):
    """The members of a composition with the parameters that they have now, for what runs again in the backward pass.

    By then they may have others, as under `torch.func.functional_call`.
    """

    def __init__(self, composition: Composition) -> None:
        super().__init__()
        self.members = nn.ModuleList([*(part.encoding for part in composition.base), *composition.extensions])
        self.now = self._parameters_there()

    def _parameters_there(self) -> dict[str, Tensor]:
        return dict(self.named_parameters(remove_duplicate=False))

    def run(self, function: Callable[[], T]) -> T:
        """What a function returns while the members have these parameters."""
        there = self._parameters_there()
        if all(there[name] is parameter for name, parameter in self.now.items()):  # as they mostly are
            return function()
        found: T = functional_call(self, self.now, (function,))
        return found

    def forward(self, function: Callable[[], T]) -> T:
        """What a function returns."""
        return function()


def fused_refusal(composition: Composition, but: Collection[str] = ()) -> str | None:
    """Why fused attention has no place for a scheme, or None; `but` names hooks that somebody sees to."""
    for hook in ("branches", "product", "content", "adapt", "normalise", "mix"):
        if hook not in but and composition.uses(hook):
            return f"it has no place for {hook}"
    return None


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors as autocast would hand them to a product, since hooks run without it."""
    kind = tensors[0].device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t if t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def widened(v: Tensor, q: Tensor, composition: Composition) -> Tensor:
    """Values with zeros up to the width of a wider q, where the CPU's fused kernel takes but one width for both."""
    more = q.shape[-1] - v.shape[-1]
    return F.pad(v, (0, more)) if more > 0 and v.device.type == "cpu" and not composition.uses("mix") else v


def typed(bias: Tensor, q: Tensor) -> Tensor:
    """A bias in the dtype that the kernels take: that of q, but on a CPU float32 for a q of less."""
    return bias.to(torch.promote_types(q.dtype, torch.float32) if q.device.type == "cpu" else q.dtype)


def sharpen(q: Tensor, sigma: float | Tensor) -> Tensor:
    """Queries times the factor on their logits."""
    return q if isinstance(sigma, float) and sigma == 1.0 else (q * sigma).to(q.dtype)


def _reduce(operation: Callable[[Tensor, Tensor], Tensor], items: list[Tensor]) -> Tensor | None:
    total = None
    for item in items:
        total = item if total is None else operation(total, item)
    return total


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same ranges, in order, with those put together that touch."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(stop, found[-1][1])
        else:
            found.append((start, stop))
    return found
