"""Schemes as text: an encoding with its extensions, written `rope+pi:factor=4`, parsed and checked.

`+` joins members and `:` gives a setting. A mapping says the same, `{rope: null, pi: {factor: 4}}`, and is the only
form for mixtures: `{layers: [rope, rope, nope]}`, `{heads: {rope: 4, alibi: 4}}`. A layer schedule has a name, to
which extensions can be joined: `gemma3:window=0.1+logn`. All forms collapse to one `Spec`.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pezoo.contract import PHASES, Encoding, Extension, Schedule, overrides
from pezoo.errors import UserError, brief, cut
from pezoo.fitting import LACKS, fits
from pezoo.registry import entries, entry, make_config, plain
from pezoo.typed import read_yaml

FEW = 5
"""Encodings that a message names, the oldest ones, which most people know."""
_JOIN = re.compile(r"\+(?=\s*[A-Za-z_])")  # not the sign in 1e+5


# ---- what a scheme is made of, as text ----------------------------------------------------------


@dataclass(frozen=True)
class MemberSpec:
    """One member and its settings that differ from the defaults, in the order of its Config."""

    name: str
    settings: tuple[tuple[str, Any], ...] = ()
    typed: frozenset[str] = field(default=frozenset(), compare=False)  # settings that were written down, defaults too

    @classmethod
    def make(cls, name: str, settings: Mapping[str, Any]) -> "MemberSpec":
        """Check the settings and keep what is not default."""
        config, at = make_config(name, settings)
        kept = []
        for key, facts in entry(name).parameters.items():
            if (value := list(at or ()) if key == "at" else getattr(config, key)) != facts["default"]:
                kept.append((key, tuple(value) if isinstance(value, list) else value))
        return cls(name, tuple(kept), frozenset(settings))

    @property
    def at(self) -> tuple[str, ...]:
        """Phases in which it acts; every phase for an encoding."""
        cls, set_to = entry(self.name).member, dict(self.settings).get("at")
        return tuple(set_to or (cls.default_at if issubclass(cls, Extension) else PHASES))

    @property
    def full(self) -> dict[str, Any]:
        """All settings, defaults filled in."""
        found = {key: facts["default"] for key, facts in entry(self.name).parameters.items()}
        return found | {k: list(v) if isinstance(v, tuple) else v for k, v in self.settings}

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

    def _map(self, function: "Callable[[Spec], Spec]") -> "Spec":
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
        """The scheme with unset factors as they are at `length`: how it is used after tuning there.

        Those of members that do not act in tuning stay unset.
        """
        factor = max(1.0, length / train_length)

        def fix(member: MemberSpec) -> MemberSpec:
            unset = "factor" in entry(member.name).parameters and member.full["factor"] is None
            if not unset or "tune" not in member.at:
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
    try:
        return _parse(scheme)
    except RecursionError:
        raise UserError("a scheme is nested too deeply; layers and heads are lists of plain schemes") from None


def _parse(scheme: "str | Mapping[str, Any] | Spec") -> Spec:
    if isinstance(scheme, str) and scheme.strip().startswith("{"):
        try:
            scheme = read_yaml(scheme)
        except UserError as error:
            raise UserError(f"cannot read the scheme {brief(scheme)}: {error}") from None
    if isinstance(scheme, str):
        spec = _joined(read_members(scheme))
    elif isinstance(scheme, Mapping):
        spec = _parse_mapping(scheme)
    else:
        raise UserError(f"a scheme is text such as rope+pi, or a mapping, not {brief(scheme)}")
    return _checked(spec) if spec.members else spec


def read_members(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Names and settings in `name:key=value+name`, not yet checked.

    Raises:
        UserError: if it is no text of that form.
    """
    if not isinstance(text, str):
        raise UserError(f"{brief(text)} is no text such as rope+yarn:factor=8")
    members = []
    for part in _JOIN.split(text.strip()):
        name, *settings = part.strip().split(":")
        pairs = [s.partition("=") for s in settings]
        if not re.fullmatch(r"[^\s+=]+", name) or not all(key and value for key, _, value in pairs):
            raise UserError(f"cannot read the scheme {brief(text)}; write it like rope+yarn:factor=8:beta_fast=32")
        keys = [key for key, _, _ in pairs]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise UserError(f"{brief(text)} sets {twice} twice; keep one of them")
        members.append((name, {key: _value(value) for key, _, value in pairs}))
    return members


def _value(text: str) -> Any:
    """A setting's value: a YAML scalar, or a list where it holds commas."""
    if "," in text or text.startswith("["):
        return [_value(part) for part in text.removeprefix("[").removesuffix("]").split(",")]
    try:
        return float(text) if re.fullmatch(r"[-+]?\d+e[-+]?\d+", text) else read_yaml(text)
    except UserError:
        return text


def _parse_mapping(mapping: Mapping[str, Any]) -> Spec:
    if "layers" in mapping or "heads" in mapping:
        if len(mapping) > 1:
            raise UserError(f"a mixture has one key, layers or heads, not {', '.join(map(str, mapping))}")
        if "layers" in mapping:
            layers = mapping["layers"]
            if not isinstance(layers, Sequence) or isinstance(layers, str) or not layers:
                raise UserError("layers takes a list of schemes, such as {layers: [rope, rope, nope]}")
            return _check_mixture(Spec(layers=tuple(parse(part) for part in layers)))
        heads = mapping["heads"]  # {scheme: n}, or [[scheme, n], ...] where the schemes are mappings themselves
        pairs = list(heads.items()) if isinstance(heads, Mapping) else heads
        good = isinstance(pairs, Sequence) and not isinstance(pairs, str)
        good = good and all(isinstance(p, Sequence) and len(p) == 2 for p in pairs)
        pairs = [(part, plain(n)) for part, n in pairs] if good else []
        if not pairs or any(type(n) is not int or n < 1 for _, n in pairs):
            raise UserError("heads takes schemes and their numbers of heads, such as {heads: {rope: 4, alibi: 4}}")
        return _check_mixture(Spec(heads=tuple((parse(part), n) for part, n in pairs)))
    if not mapping:
        raise UserError("a scheme cannot be empty; name an encoding, such as rope")
    for name, settings in mapping.items():
        if settings is not None and not isinstance(settings, Mapping):
            said = f"settings of {cut(str(name))} are no mapping: {brief(settings)}"
            raise UserError(f"{said}. Write rope+yarn:factor=8, or {{rope: {{}}, yarn: {{factor: 8}}}}")
    return _joined([(name, dict(settings or {})) for name, settings in mapping.items()])


def _joined(pairs: list[tuple[str, dict[str, Any]]]) -> Spec:
    """The scheme of these names; a layer schedule gives way to its layers, each with what else fits it."""
    schedules = [(n, settings, cls) for n, settings in pairs if (cls := entry(n).cls) and issubclass(cls, Schedule)]
    if not schedules:
        return Spec(_members(pairs))
    (name, settings, schedule), *more = schedules
    if more:
        raise UserError(f"{name} and {more[0][0]} cannot be joined: each names the schemes of all layers")
    mixture = parse({"layers": schedule.layers(make_config(name, settings)[0])})
    for member in _members([pair for pair in pairs if pair[0] != name]):
        cls = entry(member.name).member
        if not issubclass(cls, Extension):
            raise UserError(f"{member.name} cannot join {name}, which names the encodings of all layers")
        mixture = _extended(mixture, member, cls)
    return mixture


def _extended(mixture: Spec, member: MemberSpec, extension: type[Extension]) -> Spec:
    """A mixture with an extension in each of its schemes that it fits."""
    if lack := _lack(extension, mixture):
        raise UserError(_unfit(extension, mixture, lack))

    def extended(spec: Spec) -> Spec:
        return spec if _lack(extension, spec) else _checked(Spec(_in_order((*spec.members, member))))

    return mixture._map(extended)


def _members(pairs: list[tuple[str, dict[str, Any]]]) -> tuple[MemberSpec, ...]:
    """Members in order; a literature name gives way to the scheme it stands for."""
    members: list[MemberSpec] = []
    for name, settings in pairs:
        found = entry(name)
        if found.kind == "alias":
            parts = read_members(found.scheme)
            for key, value in settings.items():
                owners = [p for p in parts if key in entry(p[0]).parameters]
                if not owners:
                    known = ", ".join(k for p in parts for k in entry(p[0]).parameters)
                    raise UserError(f"{name} ({found.scheme}) has no setting {brief(key)}; its settings: {known}")
                owners[-1][1][key] = value
            members.extend(_members(parts))
        else:
            members.append(MemberSpec.make(name, settings))
    return _in_order(members)


def _in_order(members: Sequence[MemberSpec]) -> tuple[MemberSpec, ...]:
    """Encodings first; extensions keep their order. None may occur twice."""
    names = [m.name for m in members]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise UserError(f"{twice} occurs twice in {'+'.join(names)}; name each member once")
    return tuple(sorted(members, key=lambda m: issubclass(entry(m.name).member, Extension)))


# ---- what can be joined -------------------------------------------------------------------------


_ONE_OF = (
    ("scale", "a logit scale"),
    ("product", "a product of queries and keys"),
    ("normalise", "a normaliser"),
    ("mix", "relative values"),
)


def _checked(spec: Spec) -> Spec:
    """A plain scheme; refused if its parts cannot work together, naming what is missing and what would work."""
    classes = {m.name: entry(m.name).member for m in spec.members}
    encodings = {n: c for n, c in classes.items() if issubclass(c, Encoding)}
    if not encodings:
        names = ", ".join(classes)
        raise UserError(f"{names} alone is no scheme: begin with an encoding, such as rope+{next(iter(classes))}")
    for hook, words in _ONE_OF:
        owners = [n for n, c in encodings.items() if overrides(c, hook)]
        if len(owners) > 1:
            raise UserError(f"{' and '.join(owners)} cannot be joined: each brings {words} of its own")
    own = next((n for n, c in encodings.items() if overrides(c, "normalise")), None)
    sink = next((n for n, c in classes.items() if issubclass(c, Extension) and overrides(c, "sink")), None)
    if own and sink:
        raise UserError(f"{spec} cannot work: a sink ({sink}) counts in a softmax, and {own} has another normaliser")
    for cls in classes.values():
        if issubclass(cls, Extension) and (lack := _lack(cls, spec)):
            raise UserError(_unfit(cls, spec, lack))
    return spec


def _lack(extension: type[Extension], spec: Spec) -> str | None:
    """None if an extension has something to act on in one of a scheme's encodings, else what these lack."""
    classes = (entry(name).cls for name in spec.encodings)
    lacking = [fits(extension, cls) for cls in classes if cls and issubclass(cls, Encoding)]
    return None if None in lacking else lacking[0]


def _unfit(extension: type[Extension], spec: Spec, lack: str) -> str:
    """Why an extension does not fit a scheme, and what it works with."""
    name, known = extension.name, sorted(entries().items(), key=lambda item: item[1].year or 9999)
    zoo = [n for n, e in known if e.cls and issubclass(e.cls, Encoding) and not fits(extension, e.cls)]
    more = f" and {len(zoo) - FEW} more: pezoo list --works-with {name}" if len(zoo) > FEW else ""
    return (
        f"{name} does not fit {'+'.join(spec.encodings)}: it needs {LACKS[lack]}. "
        f"It works with: {', '.join(zoo[:FEW])}{more}"
    )


def _check_mixture(spec: Spec) -> Spec:
    """Refuse mixtures that have no meaning."""
    if any(part.layers for part in spec._parts()):
        raise UserError("layers cannot be nested inside a mixture; list every layer once")
    if spec.heads and any(part.heads for part in spec._parts()):
        raise UserError("heads cannot be nested inside heads; list every group of heads once")
    embedding = [n for n in spec.encodings if overrides(entry(n).member, "embed")]
    if embedding:
        raise UserError(
            f"{', '.join(embedding)} acts on the input embedding, which layers and heads share; "
            f"mix encodings that act in attention"
        )
    return spec
