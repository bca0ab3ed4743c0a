"""Whether a model can take a scheme, its own among them, and the scheme built for it.

What the config says of the model's rotation is held against what the model does (see `probe`): the pairing of channels
is found there, and a model that does something else is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pezoo.compose import Scheme, build
from pezoo.contract import Shape
from pezoo.errors import UserError
from pezoo.pretrained import probe, where
from pezoo.pretrained.rope_config import read_config
from pezoo.pretrained.seam import decoder_of
from pezoo.pretrained.with_own import mixed, with_own
from pezoo.scheme import MemberSpec, Spec, parse

NOPE, LEARNED = parse("nope"), parse("learned")


@dataclass(frozen=True)
class Fit:
    """What attaching a scheme to a model needs to know."""

    scheme: Scheme
    own: Spec
    modules: list[nn.Module]  # the attention of each layer
    table: str | None  # name of the embedding that the model looks positions up in
    signs: Tensor | None  # (d,) what channels are multiplied by, so that those of a model turn the usual way
    carries: bool  # whether an unknown keyword reaches the attention of each layer


@dataclass(frozen=True)
class Rotation:
    """A way in which models turn their heads: the pairing, and whether the angles count the other way."""

    pairing: str
    backwards: bool = False

    def spec(self, spec: Spec) -> Spec:
        """A scheme with this pairing."""
        pairing = {"pairing": self.pairing}
        return Spec(
            tuple(MemberSpec.make(m.name, dict(m.settings) | pairing) if m.name == "rope" else m for m in spec.members)
        )

    def signs(self, width: int) -> Tensor | None:
        """What the channels of a head are multiplied by, (d,), or None."""
        return torch.ones(width).index_fill(0, torch.arange(width // 2, width), -1.0) if self.backwards else None


ROTATIONS = (Rotation("half"), Rotation("interleaved"), Rotation("half", backwards=True))


def fit(model: Any, scheme: str | Mapping[str, Any] | Spec | None, train_length: int | None, seed: int) -> Fit:
    """Build a scheme, or the model's own, for a model; a `Spec` as it is.

    Raises:
        UserError: if the model cannot take one, with the reason.
    """
    try:
        refuse(model)
        length, texts, problem = stated(model.config)
        length = train_length or length
        # Below L, where a dynamic rotation forgets what it read before.
        look = probe.look(model, min(length or 1, 4096) - 2)
        probe.check(look, model.config.num_hidden_layers)
        turns = look.turns()
        if problem is not None and any(turns):
            raise problem
        if length is None:
            raise UserError("its config states no max_position_embeddings; pass train_length=")
        first = look.turned[0].q
        sizes = {"n_heads": first.shape[1], "n_layers": len(look.turned), "head_dim": first.shape[3]}
        shape = Shape(model.config.hidden_size, train_length=length, **sizes)
        specs = [parse(text) if turn else NOPE for text, turn in zip(texts, turns, strict=True)]
        layers, rotation = _own_layers(look, specs, shape)
        table = _table(model, look, length)
    except UserError as error:
        raise UserError(f"{type(model).__name__} cannot take a scheme: {error}") from None
    spec = mixed(layers) if table is None else LEARNED
    wanted = scheme if isinstance(scheme, Spec) else spec if scheme is None else with_own(parse(scheme), layers)
    if look.absolute and table is None and scheme is not None:
        raise UserError(
            f"{type(model).__name__} keeps its own scheme: it adds positions to its embeddings by a way that cannot be "
            "put aside"
        )
    built = build(wanted, shape, seed)
    carries = all(heads.carries for heads in look.turned)
    modules = [heads.module for heads in look.turned]
    return Fit(built, spec, modules, table, rotation.signs(shape.head_dim), carries)


def refuse(model: Any) -> None:
    """Refuse a model by its kind.

    Raises:
        UserError: with the reason, which follows "cannot take a scheme:".
    """
    config = model.config
    if not model._can_set_attn_implementation():
        raise UserError("its attention does not go through the interface of transformers, where schemes are put in")
    if config.is_encoder_decoder:
        raise UserError("it is an encoder with a decoder, and schemes go into decoders alone")
    if any(getattr(config, name, None) is not None for name in ("vision_config", "audio_config")):
        raise UserError("it reads more than text; pass the part that reads text, such as model.language_model")
    if getattr(config, "kv_lora_rank", None):
        raise UserError("its attention is latent (MLA): what turns of a head is made apart from the rest")
    if any(p.is_meta for p in model.parameters()):
        raise UserError("its weights are not loaded (device meta)")
    if len(devices := {str(p.device) for p in model.parameters()}) > 1:
        raise UserError(f"it is spread over several devices, {', '.join(sorted(devices))}")


def stated(config: Any) -> tuple[int | None, Sequence[str], UserError | None]:
    """What a config states: the training length, each layer's rotation, and why that cannot be read."""
    facts, chunked = config.to_dict(), "chunked_attention"  # what layers see is the model's own affair
    facts["layer_types"] = ["full_attention" if t == chunked else t for t in facts.get("layer_types") or ()] or None
    try:
        found = read_config(facts)
    except UserError as problem:
        return getattr(config, "max_position_embeddings", None), ["nope"] * config.num_hidden_layers, problem
    return found.train_length, found.rotations, None


def _own_layers(look: probe.Look, specs: list[Spec], shape: Shape) -> tuple[list[Spec], Rotation]:
    """The model's own scheme, layer by layer, as it was seen to act, and the way in which it turns heads.

    Raises:
        UserError: if the model does something else with queries and keys than its config says.
    """
    tried = []
    for rotation in ROTATIONS:
        layers = [rotation.spec(spec) for spec in specs]
        errors = _errors(build(mixed(layers), shape), look, rotation.signs(shape.head_dim))
        tried.append((max(errors), errors.index(max(errors)), rotation, layers))
    error, layer, rotation, layers = min(tried, key=lambda t: t[0])
    if not error < (0.05 if look.turned[0].half else 0.005):
        raise UserError(
            f"layer {layer} does something else with queries and keys than its config says ({specs[layer]}), such as "
            f"a norm with weights after the rotation; logits differ by {error:.0%}"
        )
    return layers, rotation


def _errors(scheme: Scheme, look: probe.Look, signs: Tensor | None) -> list[float]:
    """How far a scheme is from what each layer of the model does, as a share of the largest logit."""
    told = look.position_ids.float()
    positions = where.positions(1, told.shape[1], phase="test", declared=1)
    prepared = scheme.prepare(positions.replace(query=told, key=told, spacing=None))
    found = []
    for layer, (turned, plain) in enumerate(zip(look.turned, look.plain, strict=True)):
        q, k = (plain.q, plain.k) if signs is None else (plain.q * signs, plain.k * signs)
        logits, expected = prepared.logits(layer, q, k), turned.logits() * scheme.shape.head_dim**-0.5
        wrong = (logits - expected).where(logits > -torch.inf, 0).abs().max()
        found.append(float(wrong / expected.abs().max().clamp(min=1e-30)))
    return found


def _table(model: Any, look: probe.Look, length: int) -> str | None:
    """The name of the embedding that the model looks positions up in."""
    if not look.absolute or len(look.tables) != 1:
        return None
    rows = len(decoder_of(model).get_submodule(look.tables[0]).weight)
    return look.tables[0] if rows >= length else None
