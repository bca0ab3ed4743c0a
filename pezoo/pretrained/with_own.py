"""A scheme for a model that has a rotation already: `rope` in it is the model's own, layer by layer."""

from collections.abc import Mapping, Sequence
from typing import Any

from pezoo.contract import Encoding, Extension
from pezoo.errors import UserError
from pezoo.fitting import fits
from pezoo.registry import entry
from pezoo.scheme import MemberSpec, Spec, parse


def mixed(layers: Sequence[Spec]) -> Spec:
    """One scheme of a scheme for each layer."""
    return layers[0] if len(set(layers)) == 1 else Spec(layers=tuple(layers))


def with_own(spec: Spec, layers: Sequence[Spec], beside: Sequence[Sequence[MemberSpec]] = ()) -> Spec:
    """A scheme in which `rope` has the settings of each layer's own.

    In layers that do not turn `rope` gives way, to `nope` where no other encoding is there, and so does what works on
    `rope` alone, such as `yarn`. All else stays: windows, sinks, biases.

    Args:
        spec: the scheme.
        layers: the model's own rotation, layer by layer.
        beside: what joins the scheme in each layer, such as the model's own window, unless it has a member of the name.

    Raises:
        UserError: if it is a list of layers of another length.
    """
    given = spec.layers or (spec,)
    if len(layers) % len(given):
        raise UserError(
            f"the scheme repeats {len(given)} layers, and the model has {len(layers)}, which is no multiple"
        )
    filled = [_filled(part, own) for part, own in zip(given * (len(layers) // len(given)), layers, strict=True)]
    return mixed([_joined(part, more) for part, more in zip(filled, beside or [()] * len(filled), strict=True)])


def _joined(spec: Spec, more: Sequence[MemberSpec]) -> Spec:
    return spec._map(lambda p: Spec((*p.members, *(m for m in more if m.name not in {o.name for o in p.members}))))


def _filled(spec: Spec, own: Spec) -> Spec:
    rope = next((m for m in own.members if m.name == "rope"), None)

    def fill(plain: Spec) -> Spec:
        if all(m.name != "rope" for m in plain.members):
            return plain
        if rope is None:
            return _without(plain)
        return Spec(tuple(_given(m, dict(rope.settings)) if m.name == "rope" else m for m in plain.members))

    return spec._map(fill)


def _without(plain: Spec) -> Spec:
    """A plain scheme without its `rope`, and without the extensions that then have nothing to work on."""
    classes = {m: entry(m.name).member for m in plain.members}
    encodings = [m for m, cls in classes.items() if issubclass(cls, Encoding) and m.name != "rope"]
    encodings = encodings or list(parse("nope").members)
    there = [entry(m.name).member for m in encodings]
    kept = [
        m
        for m, cls in classes.items()
        if issubclass(cls, Extension) and any(issubclass(e, Encoding) and fits(cls, e) is None for e in there)
    ]
    return Spec((*encodings, *kept))


def _given(member: MemberSpec, settings: Mapping[str, Any]) -> MemberSpec:
    """A member with settings where none was written down for it."""
    return MemberSpec.make(member.name, dict(settings) | {k: v for k, v in member.full.items() if k in member.typed})
