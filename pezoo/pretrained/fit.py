"""Whether a model can take a scheme, its own among them, and the scheme built for it.

What the config says of the model's rotation is held against what the model does (see `probe`): the pairing of channels
is found there, and a model that does something else is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pezoo.compose import Scheme, build
from pezoo.contract import Shape
from pezoo.errors import UserError
from pezoo.pretrained import own, probe, where
from pezoo.scheme import MemberSpec, Spec, parse

PAIRINGS = ("half", "interleaved")


@dataclass(frozen=True)
class Fit:
    """What attaching a scheme to a model needs to know."""

    scheme: Scheme
    own: Spec
    modules: list[nn.Module]  # the attention of each layer
    rotary: list[str]  # names of the rotary modules
    carries: bool  # whether an unknown keyword reaches the attention of each layer


def fit(model: Any, scheme: str | Mapping[str, Any] | None, train_length: int | None, seed: int) -> Fit:
    """Build a scheme, or the model's own, for a model.

    Raises:
        UserError: if the model cannot take one, with the reason.
    """
    kind = type(model).__name__
    refuse(model)
    length = train_length or own.train_length(model.config)
    texts = own.rotations(model.config)
    try:
        look = probe.look(model, min(length, 4096) - 1)
    except UserError as error:
        raise UserError(f"{kind} cannot take a scheme: {error}") from None
    shape = _shape(model, look, length)
    layers = _own_layers(kind, look, texts, shape)
    spec = _mixed(layers) if scheme is None else _with_own(parse(scheme), layers, shape.n_layers)
    carries = all(heads.carries for heads in look.turned)
    modules = [heads.module for heads in look.turned]
    return Fit(build(spec, shape, seed), _mixed(layers), modules, look.rotary, carries)


def refuse(model: Any) -> None:
    """Refuse a model by its kind.

    Raises:
        UserError: with the reason.
    """
    config, kind = model.config, type(model).__name__

    def no(reason: str) -> UserError:
        return UserError(f"{kind} cannot take a scheme: {reason}")

    if not model._can_set_attn_implementation():
        raise no("its attention does not go through the interface of transformers, where schemes are put in")
    if config.is_encoder_decoder:
        raise no("it is an encoder with a decoder, and schemes go into decoders alone")
    if any(getattr(config, name, None) is not None for name in ("vision_config", "audio_config")):
        raise no("it reads pictures or sound too; pass the part that reads text, such as model.language_model")
    if getattr(config, "kv_lora_rank", None):
        raise no("its attention is latent (MLA): a part of each head turns, made apart from the rest")
    if any(p.is_meta for p in model.parameters()):
        raise no("its weights are not loaded (device meta)")


def _shape(model: Any, look: probe.Look, length: int) -> Shape:
    """The sizes that a scheme is built for, from what attention got."""
    kind, n_layers = type(model).__name__, model.config.num_hidden_layers
    layers = [int(getattr(heads.module, "layer_idx", -1) or 0) for heads in look.turned]
    if layers != list(range(n_layers)):
        missing = [i for i in range(n_layers) if i not in layers]
        which = f"layers {', '.join(map(str, missing))} have" if missing else "not each of its layers has"
        raise UserError(f"{kind} cannot take a scheme: {which} no attention that could (linear or recurrent layers)")
    sizes = {(heads.q.shape[1], heads.q.shape[3], heads.k.shape[3], heads.width) for heads in look.turned}
    n_heads, *widths = next(iter(sizes))
    if len(sizes) > 1 or len(set(widths)) > 1:
        found = ", ".join(f"{n} heads of {q} (q), {k} (k), {v} (v)" for n, q, k, v in sorted(sizes))
        raise UserError(f"{kind} cannot take a scheme: heads differ in width, or from layer to layer ({found})")
    width = model.get_input_embeddings().weight.shape[1]
    return Shape(model.config.hidden_size or width, n_heads, n_layers, length, head_dim=widths[0])


def _own_layers(kind: str, look: probe.Look, texts: list[str], shape: Shape) -> list[Spec]:
    """The model's own scheme, layer by layer, as it was seen to act.

    Raises:
        UserError: if the model does something else with queries and keys.
    """
    turns = [not torch.equal(a.q, b.q) for a, b in zip(look.turned, look.plain, strict=True)]
    best, wrong = [], [(float("inf"), 0)]
    for pairing in PAIRINGS:
        layers = [_paired(parse(text), pairing) if turn else parse("nope") for text, turn in zip(texts, turns, strict=True)]
        try:
            scheme = build(_mixed(layers), shape)
        except UserError as error:
            raise UserError(f"{kind} cannot take a scheme: its config's own is refused: {error}") from None
        errors = _errors(scheme, look)
        if max(errors) < max(wrong)[0]:
            best, wrong = layers, [(error, i) for i, error in enumerate(errors)]
    error, layer = max(wrong)
    if not error < _tolerance(look):
        raise UserError(
            f"{kind} cannot take a scheme: layer {layer} does something else with queries and keys than its config "
            f"says ({best[layer] if best else texts[layer]}); logits differ by {error:.1%}"
        )
    return best


def _tolerance(look: probe.Look) -> float:
    half = next(look.turned[0].module.parameters()).dtype in (torch.float16, torch.bfloat16)
    return 0.05 if half else 0.005


def _errors(scheme: Scheme, look: probe.Look) -> list[float]:
    """How far a scheme is from what each layer of the model does, as a share of the largest logit."""
    new = look.position_ids.shape[1]
    positions = where.positions(1, new, phase="test", declared=1)
    told = look.position_ids.float()
    prepared = scheme.prepare(positions.replace(query=told, key=told, spacing=None))
    found = []
    for layer, (turned, plain) in enumerate(zip(look.turned, look.plain, strict=True)):
        expected = turned.logits() * scheme.shape.head_dim**-0.5
        logits = prepared.logits(layer, plain.q, plain.k)
        seen = logits > -torch.inf
        largest = expected.abs().max().clamp(min=1e-30)
        found.append(float(((logits - expected).where(seen, 0).abs().max() / largest)))
    return found


def _mixed(layers: list[Spec]) -> Spec:
    """One scheme of a scheme for each layer."""
    return layers[0] if len(set(layers)) == 1 else Spec(layers=tuple(layers))


def _paired(spec: Spec, pairing: str) -> Spec:
    return Spec(tuple(_given(m, {"pairing": pairing}) if m.name == "rope" else m for m in spec.members))


def _given(member: MemberSpec, settings: Mapping[str, Any]) -> MemberSpec:
    return MemberSpec.make(member.name, {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()} | dict(member.settings))


def _with_own(spec: Spec, layers: list[Spec], n_layers: int) -> Spec:
    """A scheme in which `rope` has the model's own settings, in each layer its own; `nope` in layers that do not turn."""
    given = spec.layers or (spec,)
    if n_layers % len(given):
        raise UserError(f"layers lists {len(given)} schemes, which does not divide the model's {n_layers} layers")
    return _mixed([_filled(s, layers[i]) for i, s in enumerate(given * (n_layers // len(given)))])


def _filled(spec: Spec, layer: Spec) -> Spec:
    rope = next((m for m in layer.members if m.name == "rope"), None)

    def fill(plain: Spec) -> Spec:
        if not any(m.name == "rope" for m in plain.members):
            return plain
        if rope is None:
            return parse("nope")
        return Spec(tuple(_given(m, dict(rope.settings)) if m.name == "rope" else m for m in plain.members))

    return spec._map(fill)


__all__ = ["Fit", "Tensor", "fit", "refuse"]
