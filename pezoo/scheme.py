"""Schemes: an encoding with its extensions, written `rope+pi:factor=4`, parsed, checked and composed.

`+` joins members and `:` gives a setting. A mapping says the same, `{rope: null, pi: {factor: 4}}`, and is the only
form for mixtures: `{layers: [rope, rope, nope]}`, `{heads: {rope: 4, alibi: 4}}`. All forms collapse to one `Spec`.
"""

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from pezoo.attention import Composition, Part, Region, attend
from pezoo.contract import Encoding, Extension, Positions, Shape, Undefined, overrides
from pezoo.errors import UserError
from pezoo.registry import entries, entry, make_config

_JOIN = re.compile(r"\+(?=[A-Za-z_])")  # not the sign in 1e+5


# ---- what a scheme is made of, as text ----------------------------------------------------------


@dataclass(frozen=True)
class MemberSpec:
    """One member and its settings that differ from the defaults, in the order of its Config."""

    name: str
    settings: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def make(cls, name: str, settings: Mapping[str, Any]) -> "MemberSpec":
        """Check the settings and keep what is not default."""
        config, at = make_config(name, settings)
        kept = []
        for key, facts in entry(name).parameters.items():
            value = list(at) if key == "at" else getattr(config, key)
            if value != facts["default"]:
                kept.append((key, tuple(value) if isinstance(value, list) else value))
        return cls(name, tuple(kept))

    @property
    def at(self) -> tuple[str, ...]:
        """Phases in which it acts; every phase for an encoding."""
        found = entry(self.name)
        every = ("train", "tune", "test")
        default = found.cls.default_at if found.kind == "extension" else every
        return dict(self.settings).get("at", default)

    @property
    def full(self) -> dict[str, Any]:
        """All settings, defaults filled in."""
        defaults = {key: facts["default"] for key, facts in entry(self.name).parameters.items()}
        return defaults | {k: list(v) if isinstance(v, tuple) else v for k, v in self.settings}

    def __str__(self) -> str:
        """As in scheme notation."""
        return "".join([self.name, *(f":{key}={_text(value)}" for key, value in self.settings)])


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


@dataclass(frozen=True)
class Spec:
    """A scheme as data: hashable, comparable, and the same whichever way it was written.

    Exactly one of `members`, `layers` and `heads` is filled.
    """

    members: tuple[MemberSpec, ...] = ()
    layers: tuple["Spec", ...] = ()
    heads: tuple[tuple["Spec", int], ...] = ()

    def _parts(self) -> tuple["Spec", ...]:
        return self.layers or tuple(spec for spec, _ in self.heads)

    def _map(self, function: Any) -> "Spec":
        """The same mixture with every plain scheme changed."""
        if self.members:
            return function(self)
        layers = tuple(spec._map(function) for spec in self.layers)
        return Spec((), layers, tuple((spec._map(function), n) for spec, n in self.heads))

    def all_members(self) -> tuple[MemberSpec, ...]:
        """Every member that occurs, once, in order."""
        inside = (m for part in self._parts() for m in part.all_members())
        return tuple(dict.fromkeys((*self.members, *inside)))

    @property
    def encodings(self) -> tuple[str, ...]:
        """Names of its encodings."""
        return tuple(dict.fromkeys(m.name for m in self.all_members() if entry(m.name).kind == "encoding"))

    @property
    def extensions(self) -> tuple[str, ...]:
        """Names of its extensions."""
        return tuple(dict.fromkeys(m.name for m in self.all_members() if entry(m.name).kind == "extension"))

    @property
    def family(self) -> str:
        """Family of its encodings, joined where they differ."""
        return "+".join(dict.fromkeys(entry(name).family for name in self.encodings))

    def sources(self) -> dict[str, str]:
        """SHA-256 of the source file of every member."""
        return {m.name: entry(m.name).source_hash for m in self.all_members()}

    def at(self, phase: str) -> "Spec":
        """The scheme without the extensions that do not act up to a phase: what a training or tuning is keyed by.

        Those of training stay in tuning, even if they rest then: tables are as long as what training shows.
        """
        phases = {"train", phase} if phase == "tune" else {phase}
        return self._map(lambda s: Spec(tuple(m for m in s.members if phases & set(m.at))))

    def fixed(self, length: int, train_length: int) -> "Spec":
        """The scheme with unset factors as they are at `length`: how it is used after tuning there."""
        factor = max(1.0, length / train_length)

        def fix(member: MemberSpec) -> MemberSpec:
            if "factor" not in entry(member.name).parameters or member.full["factor"] is not None:
                return member
            return MemberSpec.make(member.name, dict(member.settings) | {"factor": factor})

        return self._map(lambda s: Spec(tuple(map(fix, s.members))))

    @property
    def data(self) -> Any:
        """All settings filled in, as plain data."""
        if self.members:
            return {m.name: m.full for m in self.members}
        if self.layers:
            return {"layers": [spec.data for spec in self.layers]}
        return {"heads": [[spec.data, n] for spec, n in self.heads]}

    @property
    def canonical(self) -> str:
        """All settings filled in, as text for hashing."""
        return json.dumps(self.data)

    def __str__(self) -> str:
        """Short form, which parses back to the same scheme: only what differs from the defaults."""
        if self.members:
            return "+".join(map(str, self.members))
        if self.layers:
            return "{layers: [" + ", ".join(map(_quoted, self.layers)) + "]}"
        return "{heads: {" + ", ".join(f"{_quoted(spec)}: {n}" for spec, n in self.heads) + "}}"


def _quoted(spec: Spec) -> str:
    """A scheme inside a YAML flow mapping; text with a colon or a comma needs quotes there."""
    text = str(spec)
    return f'"{text}"' if spec.members and re.search("[:,]", text) else text


# ---- parsing ------------------------------------------------------------------------------------


def parse(scheme: "str | Mapping[str, Any] | Spec") -> Spec:
    """Read a scheme from a string or a mapping and check that its parts fit together.

    Raises:
        UserError: if it is malformed, names something unknown, or joins what cannot work.
    """
    if isinstance(scheme, Spec):
        return scheme
    if isinstance(scheme, str) and scheme.strip().startswith("{"):
        try:
            scheme = yaml.safe_load(scheme)
        except yaml.YAMLError as error:
            raise UserError(f"scheme {scheme!r} is no YAML mapping: {str(error).splitlines()[0]}") from None
    if isinstance(scheme, str):
        spec = Spec(_members(_parse_text(scheme)))
    elif isinstance(scheme, Mapping):
        spec = _parse_mapping(scheme)
    else:
        raise UserError(f"a scheme is text such as rope+pi, or a mapping, not {scheme!r}")
    if spec.members:
        _check(spec)
    return spec


def _parse_text(text: str) -> list[tuple[str, dict[str, Any]]]:
    members = []
    for part in _JOIN.split(text.strip()):
        name, *settings = part.split(":")
        pairs = [s.partition("=") for s in settings]
        if not name or not all(key and value for key, _, value in pairs):
            raise UserError(f"cannot read the scheme {text!r}; write it like rope+yarn:factor=8:beta_fast=32")
        members.append((name, {key: _value(value) for key, _, value in pairs}))
    return members


def _value(text: str) -> Any:
    """A setting's value: a YAML scalar, or a list where it holds commas."""
    if "," in text:
        return [_value(part) for part in text.split(",")]
    try:
        return float(text) if re.fullmatch(r"[-+]?\d+e[-+]?\d+", text) else yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _parse_mapping(mapping: Mapping[str, Any]) -> Spec:
    if "layers" in mapping or "heads" in mapping:
        if len(mapping) > 1:
            raise UserError(f"a mixture has one key, layers or heads, not {', '.join(mapping)}")
        if "layers" in mapping:
            layers = mapping["layers"]
            if not isinstance(layers, Sequence) or isinstance(layers, str) or not layers:
                raise UserError("layers takes a list of schemes, such as {layers: [rope, rope, nope]}")
            return _check_mixture(Spec(layers=tuple(parse(part) for part in layers)))
        heads = mapping["heads"]  # {scheme: n}, or [[scheme, n], ...] where the schemes are mappings themselves
        pairs = list(heads.items()) if isinstance(heads, Mapping) else heads
        good = isinstance(pairs, Sequence) and not isinstance(pairs, str) and pairs
        good = good and all(isinstance(p, Sequence) and len(p) == 2 for p in pairs)
        if not good or any(type(n) is not int or n < 1 for _, n in pairs):
            raise UserError("heads takes schemes and their numbers of heads, such as {heads: {rope: 4, alibi: 4}}")
        return _check_mixture(Spec(heads=tuple((parse(part), n) for part, n in pairs)))
    if not mapping:
        raise UserError("a scheme cannot be empty; name an encoding, such as rope")
    for name, settings in mapping.items():
        if settings is not None and not isinstance(settings, Mapping):
            raise UserError(f"settings of {name} are a mapping, such as {{{name}: {{factor: 4}}}}, not {settings!r}")
    return Spec(_members([(name, dict(settings or {})) for name, settings in mapping.items()]))


def _members(pairs: list[tuple[str, dict[str, Any]]]) -> tuple[MemberSpec, ...]:
    """Members in order; a literature name gives way to the scheme it stands for."""
    members: list[MemberSpec] = []
    for name, settings in pairs:
        found = entry(name)
        if found.kind == "task":
            raise UserError(f"{name} is a task, not an encoding or an extension")
        if found.kind == "alias":
            parts = _parse_text(found.scheme)
            for key, value in settings.items():
                owners = [p for p in parts if key in entry(p[0]).parameters]
                if not owners:
                    known = ", ".join(k for p in parts for k in entry(p[0]).parameters)
                    raise UserError(f"{name} ({found.scheme}) has no setting {key!r}; its settings: {known}")
                owners[-1][1][key] = value
            members.extend(_members(parts))
        else:
            members.append(MemberSpec.make(name, settings))
    names = [m.name for m in members]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice:
        raise UserError(f"{twice} occurs twice in {'+'.join(names)}; name each member once")
    kinds = [entry(n).kind for n in names]
    order = {"encoding": 0, "extension": 1}  # encodings first; extensions keep their order
    return tuple(m for _, m in sorted(zip(kinds, members, strict=True), key=lambda km: order[km[0]]))


# ---- what fits what -----------------------------------------------------------------------------


def offers(encoding: type[Encoding]) -> dict[str, bool]:
    """What an encoding has for extensions to work on, read from the hooks it overrides and its traits."""
    traits, hooks = encoding.traits, ("rotate", "bias", "distance_bias", "content", "mix")
    in_attention = not traits.contextual and any(overrides(encoding, h) for h in hooks)
    return {
        "coordinates": in_attention or overrides(encoding, "embed"),
        "frequencies": overrides(encoding, "inv_freq"),
        "distances": in_attention and traits.shift_invariant,
    }


_NEEDS = {"coordinates": "coordinates", "frequencies": "frequencies", "branches": "distances"}


def fits(extension: type[Extension], encoding: type[Encoding]) -> str | None:
    """None if an extension has something to act on in an encoding, else what the encoding lacks."""
    offered = offers(encoding)
    needs = [need for hook, need in _NEEDS.items() if overrides(extension, hook)]
    if overrides(extension, "mask") and not offered["coordinates"]:  # nothing to move, so the mask is all of it
        return None
    lacking = [need for need in needs if not offered[need]]
    return lacking[0] if needs and len(lacking) == len(needs) else None


_LACKS = {
    "coordinates": "coordinates (nothing in it reads a position)",
    "frequencies": "frequencies",
    "distances": "a shift-invariant term of pairs of positions in attention",
}


def _check(spec: Spec) -> None:
    """Refuse a plain scheme whose parts cannot work together, naming what is missing and what would work."""
    classes = {m.name: entry(m.name).cls for m in spec.members}
    encodings = {n: c for n, c in classes.items() if issubclass(c, Encoding)}
    if not encodings:
        names = ", ".join(classes)
        raise UserError(f"{names} alone is no scheme: begin with an encoding, such as rope+{next(iter(classes))}")
    for hook, words in (("scale", "a logit scale"), ("mix", "relative values")):
        owners = [n for n, c in encodings.items() if overrides(c, hook)]
        if len(owners) > 1:
            raise UserError(f"{' and '.join(owners)} cannot be joined: each brings {words} of its own")
    for name, cls in classes.items():
        if not issubclass(cls, Extension):
            continue
        lacking = [fits(cls, e) for e in encodings.values()]
        if all(lacking):
            zoo = [n for n, e in entries().items() if e.kind == "encoding" and not fits(cls, e.cls)]
            raise UserError(
                f"{name} does not fit {'+'.join(encodings)}: it needs {_LACKS[lacking[0]]}. "
                f"It works with: {', '.join(zoo)}"
            )


def _check_mixture(spec: Spec) -> Spec:
    """Refuse mixtures that have no meaning."""
    if any(part.layers for part in spec._parts()):
        raise UserError("layers cannot be nested inside a mixture; list every layer once")
    if spec.heads and any(part.heads for part in spec._parts()):
        raise UserError("heads cannot be nested inside heads; list every group of heads once")
    embedding = [n for n in spec.encodings if overrides(entry(n).cls, "embed")]
    if embedding:
        raise UserError(
            f"{', '.join(embedding)} acts on the input embedding, which layers and heads share; "
            f"mix encodings that act in attention"
        )
    return spec


# ---- building -----------------------------------------------------------------------------------


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
                inv_freq = inv_freq.to(positions.query.device)[None]
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
