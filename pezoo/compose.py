"""Schemes as modules: built for a model, made ready for each forward, and composed layer by layer.

`Scheme` holds the parameters. `Scheme.prepare(positions)` runs the extensions' maps and the encodings' tables once, and
gives each layer the `Composition` that attention works from.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pezoo.attention import Composition, Part, Region, attend
from pezoo.contract import Encoding, Extension, Positions, Shape, Undefined, overrides, to_device
from pezoo.errors import UserError
from pezoo.registry import entry, make_config
from pezoo.scheme import Spec, fits, offers, parse


class Plain(nn.Module):
    """Encodings and extensions of one plain scheme, built for a model."""

    def __init__(self, spec: Spec, shape: Shape) -> None:
        super().__init__()
        self.spec = spec
        extent = shape.train_length
        members = [(m, entry(m.name).cls, make_config(m.name, dict(m.settings))) for m in spec.members]
        # A list of copies a member: one, or one a layer.
        self.encodings, self.extensions = nn.ModuleList(), nn.ModuleList()
        for _, cls, (config, at) in members:
            if issubclass(cls, Extension):
                copies = shape.n_layers if cls.per_layer(config) else 1
                self.extensions.append(nn.ModuleList(cls(shape, config, at) for _ in range(copies)))
                extent = self.extensions[-1][0].extent(extent) if "train" in at else extent
        shape = replace(shape, extent=extent)
        for _, cls, (config, _) in members:
            if issubclass(cls, Encoding):
                copies = shape.n_layers if cls.per_layer(config) else 1
                self.encodings.append(nn.ModuleList(cls(shape, config) for _ in range(copies)))
        self._refuse(spec)

    def _refuse(self, spec: Spec) -> None:
        """Refuse an extension that suits none of the encodings it fits, or not each whose frequencies it changes."""
        for extension, *_ in self.extensions:
            fitting = [e for e, *_ in self.encodings if not fits(type(extension), type(e))]
            reasons = [extension.refuses(e) for e in fitting]
            if any(reasons) if overrides(extension, "frequencies") else all(reasons):
                raise UserError(f"{spec} cannot work: {next(filter(None, reasons))}")

    def copies(self) -> dict[str, nn.ModuleList]:
        """The copies of each member, by name."""
        encodings, extensions = iter(self.encodings), iter(self.extensions)
        names = [m.name for m in self.spec.members]
        return {n: next(encodings if entry(n).kind == "encoding" else extensions) for n in names}

    def acting(self, positions: Positions, layer: int = 0) -> list[Extension]:
        """The extensions that act in this phase, in order."""
        copies = [c for c in self.extensions if positions.phase in c[0].at]
        return [c[layer % len(c)] for c in copies]

    def positions_at(self, positions: Positions, layer: int) -> Positions:
        """The coordinates that encodings read at a layer."""
        positions = positions.replace(layer=layer)
        for extension in self.acting(positions):
            positions = extension.coordinates(positions)
        return positions

    def parts(self, here: Positions, far: Positions | None = None) -> tuple[Part, ...]:
        """Each encoding with the frequencies and tables that it reads; of a far region, if it reads distances."""
        parts = []
        for encoding, *_ in self.encodings:
            positions = far if far is not None and offers(type(encoding))["distances"] else here
            inv_freq = encoding.inv_freq()
            if inv_freq is not None:
                inv_freq = to_device(inv_freq, positions.query.device)[None]
                for extension in self.acting(positions):
                    inv_freq = extension.frequencies(inv_freq, positions)
            own = positions.replace(inv_freq=inv_freq)
            encoding.check(own)
            parts.append(Part(encoding, own.replace(prepared=encoding.prepare(own))))
        return tuple(parts)

    def compose(self, positions: Positions, n_layers: int) -> tuple[tuple[Part, ...], list[Composition]]:
        """What the input embedding reads, and what each layer adds to attention."""
        acting = self.acting(positions)
        for extension in acting:
            extension.check(positions)
        made: list[tuple[Positions, tuple[Region, ...]]] = []
        for layer in range(n_layers if any(e.draws_per_layer for e in acting) else 1):
            here = self.positions_at(positions, layer)
            far = [branch for e in acting for branch in e.branches(here)]
            regions = [Region(self.parts(here)), *(Region(self.parts(here, b.positions), b) for b in far)]
            made.append((here, tuple(regions)))

        def at_layer(i: int) -> Composition:
            here, regions = made[i % len(made)]
            own = [c[i % len(c)] for c in self.encodings]
            regions = tuple(
                Region(
                    tuple(Part(e, p.positions.replace(layer=i)) for e, p in zip(own, r.parts, strict=True)),
                    r.branch,
                )
                for r in regions
            )
            return Composition(here, regions, tuple(self.acting(positions, i)))

        return made[0][1][0].parts, [at_layer(i) for i in range(n_layers)]


@dataclass(frozen=True)
class Group:
    """Some heads of one layer, and what the scheme adds to their attention."""

    heads: slice
    composition: Composition


@dataclass(frozen=True)
class Prepared:
    """A scheme made ready for one forward."""

    input: tuple[Part, ...]
    layers: tuple[tuple[Group, ...], ...]

    def embed(self, x: Tensor) -> Tensor:
        """Token embeddings (B, Lq, D) with positions."""
        for part in self.input:
            x = part.encoding.embed(x, part.positions)
        return x

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, backend: str = "auto") -> Tensor:
        """Attention of one layer: q (B, H, Lq, d), k and v (B, Hkv, Lk, d) -> (B, H, Lq, d)."""
        groups = self.layers[layer]
        if len(groups) == 1:
            return attend(q, k, v, groups[0].composition, backend)
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        outputs = [attend(q[:, g.heads], k[:, g.heads], v[:, g.heads], g.composition, backend) for g in groups]
        return torch.cat(outputs, dim=1)


class Scheme(nn.Module):
    """A scheme built for a model: the module that holds its parameters and composes it for each forward.

    Raises:
        UserError: if a mixture does not match the model's layers or heads.
    """

    def __init__(self, spec: Spec, shape: Shape) -> None:
        super().__init__()
        self.spec, self.shape = spec, shape
        layers = spec.layers or (spec,)
        if shape.n_layers % len(layers):
            raise UserError(f"layers lists {len(layers)} schemes, which does not divide n_layers = {shape.n_layers}")
        per_layer = [layer.heads or ((layer, shape.n_heads),) for layer in layers * (shape.n_layers // len(layers))]
        for groups in per_layer:
            total = sum(n for _, n in groups)
            if total != shape.n_heads:
                raise UserError(f"heads names {total} heads in all, but n_heads = {shape.n_heads}")
        # One module a (scheme, number of heads), shared by the layers that use it; `self.plan` says which, as
        # (key, heads, place among its layers).
        counts: dict[tuple[Spec, int], int] = {}
        self.plan: list[list[tuple[int, slice, int]]] = []
        for groups in per_layer:
            start, row = 0, []
            for group in groups:
                place = counts.get(group, 0)
                counts[group] = place + 1
                row.append((list(counts).index(group), slice(start, start + group[1]), place))
                start += group[1]
            self.plan.append(row)
        self.parts = nn.ModuleList(
            Plain(part, replace(shape, n_heads=n, d_model=n * shape.head_dim, n_layers=count))
            for (part, n), count in counts.items()
        )
        self.layer_counts = list(counts.values())

    def prepare(self, positions: Positions) -> Prepared:
        """Make ready for one forward over these positions.

        Raises:
            Undefined: if a member has no value for a position.
        """
        made = [p.compose(positions, n) for p, n in zip(self.parts, self.layer_counts, strict=True)]
        layers = tuple(tuple(Group(heads, made[part][1][place]) for part, heads, place in row) for row in self.plan)
        return Prepared(made[0][0], layers)

    def load_from(self, trained: "Scheme") -> None:
        """Take over the parameters of a scheme with the same encodings and perhaps other extensions, layer by layer.

        Layers that shared a module there may have one each here: those that differ by an extension only act alike in
        training.
        """
        for row, their_row in zip(self.plan, trained.plan, strict=True):
            for (part, _, place), (their_part, _, their_place) in zip(row, their_row, strict=True):
                found = trained.parts[their_part].copies()
                for name, copies in self.parts[part].copies().items():
                    if name in found:
                        source = found[name][their_place % len(found[name])]
                        copies[place % len(copies)].load_state_dict(source.state_dict())

    @property
    def members(self) -> list[Encoding | Extension]:
        """Every member once, in order."""
        return [copies[0] for p in self.parts for copies in (*p.encodings, *p.extensions)]

    @property
    def prefix_stable(self) -> bool:
        """Whether the logits of a prefix are, in testing, independent of the declared length."""
        return all(m.prefix_stable for m in self.members if "test" in getattr(m, "at", ("test",)))

    def undefined(self, length: int, phase: str = "test") -> str | None:
        """Why the scheme has no value at a length, or None if it has."""
        device = next((p.device for p in self.parameters()), None)
        try:
            self.prepare(Positions.build(length, causal=self.shape.causal, phase=phase, device=device))
        except Undefined as reason:
            return str(reason)
        return None

    def scale_factor(self, length: int) -> float | None:
        """The factor in force at a test length, for the record; None if no member has one."""
        positions = Positions.build(1, declared=length)
        extensions = [m for m in self.members if isinstance(m, Extension) and "test" in m.at]
        factors = [
            positions.factor(self.shape.train_length, e.config.factor)
            for e in extensions
            if hasattr(e.config, "factor")
        ]
        return max(factors, default=None)


def build(spec: Spec, shape: Shape, seed: int = 0) -> Scheme:
    """Build a scheme; its own parameters are drawn from `seed`, apart from torch's global generator."""
    # Not by `seed` itself: a body drawn from that begins with the same numbers.
    own = random.Random(f"scheme {seed}").getrandbits(32)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(own)
        return Scheme(spec, shape)


def create(
    scheme: str | Mapping[str, Any],
    *,
    d_model: int,
    n_heads: int,
    n_layers: int,
    train_length: int,
    causal: bool = True,
    seed: int = 0,
) -> Scheme:
    """Build a scheme for a model of one's own.

    Args:
        scheme: such as "rope+pi:factor=4", or a mapping.
        d_model: model width.
        n_heads: heads of each layer; must divide d_model.
        n_layers: layers.
        train_length: tokens of a training sequence (L).
        causal: decoder (True) or encoder.
        seed: of the scheme's own parameters.

    Raises:
        UserError: if the scheme is malformed or cannot work.
    """
    if d_model < 1 or n_heads < 1 or d_model % n_heads:
        raise UserError(f"d_model = {d_model} is not divisible by n_heads = {n_heads}")
    if n_layers < 1 or train_length < 1:
        raise UserError(f"n_layers and train_length must be positive, got {n_layers} and {train_length}")
    shape = Shape(d_model, n_heads, n_layers, train_length, causal=causal)
    return build(parse(scheme), shape, seed)


def attend_with(
    scheme: Scheme,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Positions | None = None,
    layer: int = 0,
    backend: str = "auto",
) -> Tensor:
    """Attention under a scheme, for people's own models (`pezoo.attend`).

    Args:
        scheme: from `pezoo.create`.
        q: queries, (B, H, Lq, d), not rotated.
        k: keys, (B, Hkv, Lk, d), not rotated.
        v: values, (B, Hkv, Lk, d).
        positions: default: one document a row, the queries being the last Lq of Lk tokens.
        layer: which layer's part of the scheme to use.
        backend: "auto", "eager", "sdpa" or "chunked".

    Returns:
        (B, H, Lq, d).
    """
    if positions is None:
        n_queries, n_keys = q.shape[-2], k.shape[-2]
        phase = "train" if scheme.training else "test"
        positions = Positions.build(n_keys, q.shape[0], causal=scheme.shape.causal, phase=phase, device=q.device).slice(
            n_keys - n_queries, n_keys
        )
    return scheme.prepare(positions).attend(layer, q, k, v, backend)
