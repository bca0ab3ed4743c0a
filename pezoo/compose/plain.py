"""One plain scheme as a module: its encodings and extensions, built for a model and composed for each forward."""

from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from pezoo.composition import Composition, Part, Region
from pezoo.contract import PHASES, Encoding, Extension, Member, Positions, Shape, overrides, to_device
from pezoo.errors import UserError
from pezoo.fitting import fits, offers
from pezoo.registry import entry, make_config
from pezoo.scheme import Spec

OF_ALL_KEYS = ("read", "product", "content", "bias", "distance_bias", "normalise", "mix")
"""Hooks of attention that see more than the tokens which are new in a cache."""

_WHEN = {"train": "training", "tune": "tuning", "test": "testing"}


class Plain(nn.Module):
    """Encodings and extensions of one plain scheme, built for a model: a list of copies of each member, by its name."""

    def __init__(self, spec: Spec, shape: Shape) -> None:
        super().__init__()
        self.spec = spec
        members = {m.name: (entry(m.name).member, *make_config(m.name, dict(m.settings))) for m in spec.members}
        made: dict[str, nn.ModuleList] = {}
        extent = shape.train_length
        for name, (cls, config, at) in members.items():
            if issubclass(cls, Extension):
                extensions = [cls(shape, config, at) for _ in range(shape.n_layers if cls.per_layer(config) else 1)]
                extent = extensions[0].extent(extent) if "train" in extensions[0].at else extent
                made[name] = nn.ModuleList(extensions)
        shape = replace(shape, extent=extent)
        for name, (cls, config, _) in members.items():
            if issubclass(cls, Encoding):
                encodings = [cls(shape, config) for _ in range(shape.n_layers if cls.per_layer(config) else 1)]
                made[name] = nn.ModuleList(encodings)
        # Not `add_module`, which refuses a member named like an attribute, such as `half`.
        self._modules.update({name: made[name] for name in members})
        self._refuse(spec)

    @property
    def encodings(self) -> list[list[Encoding]]:
        """The copies of each encoding: one, or one per layer."""
        return [found for copies in self.children() if (found := _all(Encoding, copies))]

    @property
    def extensions(self) -> list[list[Extension]]:
        """The copies of each extension: one, or one per layer."""
        return [found for copies in self.children() if (found := _all(Extension, copies))]

    def _refuse(self, spec: Spec) -> None:
        """Refuse an extension that suits none of the encodings it fits, or not each whose frequencies it changes.

        Nor may it be one that does not work beside another, or after it, or that undoes what it has done.
        """
        extensions = [extension for extension, *_ in self.extensions]
        for place, extension in enumerate(extensions):
            fitting = [e for e, *_ in self.encodings if not fits(type(extension), type(e))]
            reasons = [extension.refuses(e) for e in fitting]
            if any(reasons) if overrides(extension, "frequencies") else all(reasons):
                raise UserError(f"{spec} cannot work: {next(filter(None, reasons))}")
            for i, other in enumerate(extensions):
                if i == place or not set(other.at) & set(extension.at):
                    continue
                if reason := extension.refuses_beside(other):
                    raise UserError(f"{spec} cannot work: beside {other.name}, {reason}")
                if i < place and (reason := extension.refuses_after(other) or self._undone(other, extension)):
                    raise UserError(f"{spec} cannot work: after {other.name}, {reason}")

    def _undone(self, earlier: Extension, later: Extension) -> str | None:
        """Why coordinates are refused which a later extension makes anew, whatever they were; None if it uses them."""
        if not (overrides(earlier, "coordinates") and overrides(later, "coordinates")):
            return None
        for phase in (phase for phase in PHASES if phase in earlier.at and phase in later.at):
            with torch.device("cpu"):  # wherever the scheme is built
                tokens = torch.zeros(1, 2, dtype=torch.int64)
                plain = Positions.build(2, rows=(0,), tokens=tokens, phase=phase, causal=later.shape.causal)
                ours, others = (later.coordinates(given) for given in (plain, plain.scaled(0.5)))
            if torch.equal(ours.key, others.key):
                name = later.name
                return (
                    f"{name} makes all coordinates anew in {_WHEN[phase]}, so that those would be lost; name {name} "
                    "first, or let the two act in different phases (at=)"
                )
        return None

    def copies(self) -> dict[str, list[Member]]:
        """The copies of each member, by name."""
        return {name: _all(Member, copies) for name, copies in self.named_children()}

    def acting(self, positions: Positions) -> list[list[Extension]]:
        """The copies of the extensions that act in this phase, in order."""
        return [copies for copies in self.extensions if positions.phase in copies[0].at]

    def positions_at(self, positions: Positions, layer: int) -> Positions:
        """The coordinates that encodings read at a layer."""
        positions = positions.replace(layer=layer)
        for extension, *_ in self.acting(positions):
            positions = extension.coordinates(positions)
        return positions

    def parts(self, here: Positions, far: Positions | None = None, turned: bool = False) -> tuple[Part, ...]:
        """Each encoding with the frequencies and tables that it reads; of a far region, if it reads distances.

        With `turned`, those that rotate are given the queries' tokens alone, as keys too.
        """
        parts = []
        for encoding, *_ in self.encodings:
            positions = far if far is not None and offers(type(encoding))["distances"] else here
            if turned and overrides(encoding, "rotate"):
                positions = positions.of_new()
            inv_freq = encoding.inv_freq()
            if inv_freq is not None:
                inv_freq = to_device(inv_freq, positions.query.device)[None]
                for extension, *_ in self.acting(positions):
                    inv_freq = extension.frequencies(inv_freq, positions)
            own = positions.replace(inv_freq=inv_freq)
            encoding.check(own)
            parts.append(Part(encoding, own.replace(prepared=encoding.prepare(own))))
        return tuple(parts)

    def keeps_turned(self, positions: Positions) -> bool:
        """Whether a cache may keep keys turned: nothing that acts needs them as they were, or turns them anew later."""
        encodings, acting = [e for e, *_ in self.encodings], [e for e, *_ in self.acting(positions)]
        turning = [e for e in encodings if overrides(e, "rotate")]
        if any(overrides(e, "content") for e in encodings) or any(e.traits.tokens for e in acting):
            return False
        if any(overrides(e, hook) for e in acting for hook in ("branches", "adapt")):  # the latter sees all keys
            return False
        if any(overrides(e, hook) for e in turning for hook in OF_ALL_KEYS):
            return False
        stable = all(m.prefix_stable for m in (*encodings, *acting))
        return bool(turning) and stable and all(e.traits.turns_once for e in turning)

    def compose(
        self, positions: Positions, n_layers: int, turned: bool = False
    ) -> tuple[tuple[Part, ...], list[Composition]]:
        """What the input embedding reads, and what each layer adds to attention; `turned`: to q and k that are so."""
        encodings, extensions = self.encodings, self.acting(positions)
        acting = [extension for extension, *_ in extensions]
        for extension in acting:
            extension.check(positions)
        made: list[tuple[Positions, tuple[Region, ...]]] = []
        for layer in range(n_layers if any(e.draws_per_layer for e in acting) else 1):
            here = self.positions_at(positions, layer)
            far = [branch for e in acting for branch in e.branches(here)]
            regions = [
                Region(self.parts(here, turned=turned)),
                *(Region(self.parts(here, b.positions), b) for b in far),
            ]
            made.append((here, tuple(regions)))

        found: dict[tuple[int, ...], dict[str, Any]] = {}
        shared: dict[tuple[int, ...], dict[str, Any]] = {}

        def at_layer(i: int) -> Composition:
            here, regions = made[i % len(made)]
            own, beside = [c[i % len(c)] for c in encodings], [c[i % len(c)] for c in extensions]
            masks = [id(e) for e in beside if overrides(e, "mask")]
            seen = shared.setdefault((i % len(made), *masks), {})
            same = found.setdefault((i % len(made), *map(id, (*own, *beside))), {"shared": seen})
            regions = tuple(
                Region(
                    tuple(Part(e, p.positions.replace(layer=i)) for e, p in zip(own, r.parts, strict=True)),
                    r.branch,
                )
                for r in regions
            )
            return Composition(here.replace(layer=i), regions, tuple(beside), turned, same)

        return made[0][1][0].parts, [at_layer(i) for i in range(n_layers)]


M = TypeVar("M", bound=Member)


def _all(kind: type[M], copies: nn.Module) -> list[M]:
    return [copy for copy in copies.children() if isinstance(copy, kind)]
