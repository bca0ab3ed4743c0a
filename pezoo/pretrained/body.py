"""A decoder of transformers with a scheme attached, answering as pezoo's own Transformer does.

So whatever trains and tests the Transformer trains and tests this. Without a scheme it is the model as transformers
made it, which is how one is trained before schemes are attached.

Legend: B batch, L length, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.modeling_outputs import MoeModelOutputWithPast

from pezoo.compose import Scheme, build
from pezoo.contract import Positions, Shape
from pezoo.errors import UserError
from pezoo.files import replacing
from pezoo.pretrained.attach import CHILD, Attached, attach
from pezoo.pretrained.seam import decoder_of
from pezoo.pretrained.source import Source, config_of, load
from pezoo.scheme import Spec, parse

DROPPED = ("attention_dropout", "attn_pdrop")
"""Settings of configs that drop weights of attention, which no scheme does."""
CLOSE = 1e-4
"""Logits from parts and from the whole model differ by no more than this share."""


@dataclass(frozen=True)
class BodyConfig:
    """What others ask of the Transformer's config."""

    vocab_size: int
    train_length: int
    seed: int
    causal: bool = True


class Kept:
    """What was seen so far, for decoding up to a declared length."""

    def __init__(self, config: Any, batch: int, length: int, device: torch.device) -> None:
        self.of_model = DynamicCache(config=config)
        self.tokens = torch.zeros(batch, length, dtype=torch.int64, device=device)
        self.length, self.filled = length, 0


class Body(nn.Module):
    """A model of transformers in the Transformer's place.

    Args:
        model: the decoder, with `pezoo` attached or not.
        train_length: L.
        seed: of random positions.

    Raises:
        UserError: if its logits do not come from its decoder's output alone.
    """

    def __init__(self, model: Any, train_length: int, seed: int) -> None:
        super().__init__()
        self.model = model
        self.config = BodyConfig(model.config.vocab_size, train_length, seed)
        decoder = decoder_of(model)
        self.place = next(name for name, module in model.named_modules() if module is decoder)
        self.__dict__["no_scheme"] = build(parse("nope"), _shape(model.config, train_length))
        self._check()

    @torch.no_grad()
    def _check(self) -> None:
        tokens = torch.arange(4)[None] % self.config.vocab_size
        training = self.training
        self.eval()
        parts, whole = self(tokens), self.model(input_ids=tokens, use_cache=False).logits
        self.train(training)
        if parts.shape != whole.shape or (parts - whole).abs().max() > CLOSE * whole.abs().max():
            raise UserError(f"{type(self.model).__name__} makes its logits of more than its decoder gives")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Body":
        """Let casts leave the model's frequencies as they are: rounded, it would turn otherwise than in its test."""
        rotary = [module for module in self.modules() if type(module).__name__.endswith("RotaryEmbedding")]
        exact = [(module, name, buffer) for module in rotary for name, buffer in module.named_buffers(recurse=False)]
        super()._apply(fn, recurse)
        for module, name, buffer in exact:
            moved = getattr(module, name)
            if moved.dtype != buffer.dtype:
                setattr(module, name, buffer.to(moved.device))
        return self

    @property
    def attached(self) -> Attached | None:
        """What holds the scheme."""
        return getattr(self.model, CHILD, None)

    @property
    def scheme(self) -> Scheme:
        """The scheme; one that does nothing where none is attached."""
        return self.__dict__["no_scheme"] if self.attached is None else self.attached.scheme

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.get_input_embeddings().weight.device

    def checkpoint_blocks(self, on: bool) -> None:
        """Whether training computes a layer's activations again in the backward pass instead of keeping them."""
        if on:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self.model.gradient_checkpointing_disable()

    def positions(self, batch: int, length: int, *, phase: str | None = None, **facts: Any) -> Positions:
        """Positions for `batch` rows of `length` tokens, as in `Transformer.positions`; a model is tuned here."""
        phase = phase or ("tune" if self.training else "test")
        defaults: dict[str, Any] = {"device": self.device, "seed": self.config.seed}
        return self.scheme.positions(batch, length, phase=phase, **defaults | facts)

    def cache(self, batch: int, length: int) -> Kept:
        """An empty cache for `batch` rows, whose sequences will be `length` tokens long."""
        return Kept(self.model.config, batch, length, self.device)

    def forward(self, tokens: Tensor, positions: Positions | None = None, cache: Kept | None = None) -> Tensor:
        """Logits of the next token, (B, L, V)."""
        return self.head(self.hidden(tokens, positions, cache))

    def hidden(self, tokens: Tensor, positions: Positions | None = None, cache: Kept | None = None) -> Tensor:
        """What the model's decoder gives, (B, L, D); arguments and errors as in `Transformer.hidden`."""
        batch, length = tokens.shape
        start = cache.filled if cache else 0
        if positions is None:
            positions = self.positions(batch, cache.length if cache else length, rows=range(batch))
        if cache is not None:
            if start + length > cache.length:
                raise UserError(f"the cache was made for {cache.length} tokens, not {start + length}")
            positions = positions.slice(start, start + length, start + length)
            cache.tokens[:, start : start + length] = tokens
        given: dict[str, Any] = {"use_cache": False}
        if cache is not None:
            given = {"use_cache": True, "past_key_values": cache.of_model}
        attached = self.attached
        if attached is None and positions.query_document is not None:
            raise UserError("packed or padded rows need a scheme; attach one, such as the model's own")
        if attached is not None:
            attached.told = positions.replace(tokens=tokens if cache is None else cache.tokens[:, : start + length])
        try:
            hidden: Tensor = decoder_of(self.model)(input_ids=tokens, **given).last_hidden_state
        finally:
            if attached is not None:
                attached.told = None
        if cache is not None:
            cache.filled += length
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of what `hidden` gave, (..., D), by all that the model does then, scales and caps too."""
        flat = hidden.reshape(1, -1, hidden.shape[-1])
        decoder = self.model.get_submodule(self.place)
        self.model.set_submodule(self.place, _Given(flat))
        try:
            tokens = torch.zeros(flat.shape[:2], dtype=torch.int64, device=flat.device)
            logits: Tensor = self.model(input_ids=tokens, use_cache=False).logits
        finally:
            self.model.set_submodule(self.place, decoder)
        return logits.view(*hidden.shape[:-1], -1)


def _shape(config: Any, train_length: int) -> Shape:
    config = config.get_text_config()
    return Shape(config.hidden_size, config.num_attention_heads, config.num_hidden_layers, train_length)


def outline(source: Source, scheme: Spec, train_length: int) -> nn.Module:
    """The modules of a model and of a scheme beside it, made on the device that holds: on "meta" without memory."""
    found = nn.Module()
    config = config_of(source)
    found.model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    found.scheme = build(scheme, _shape(config, train_length))
    return found


class _Given(nn.Module):
    """Stands for a decoder that has given something already."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.kept = [hidden]

    def forward(self, *args: Any, **kwargs: Any) -> MoeModelOutputWithPast:
        """What was given."""
        return _Output(last_hidden_state=self.kept[0])


class _Output(MoeModelOutputWithPast):
    """With all that some model asks of its decoder."""

    cross_attentions = None


def make_body(
    source: Source,
    scheme: Spec | None,
    *,
    train_length: int,
    seed: int,
    state: Mapping[str, Any] | None = None,
) -> Body:
    """Make a model with a scheme.

    Args:
        source: where the model comes from.
        scheme: what is attached; None: nothing.
        train_length: L.
        seed: of random weights and of the scheme.
        state: what `save` kept of such a model, which is taken over.

    Raises:
        UserError: if the model cannot be read, or cannot take the scheme.
    """
    model = load(source, seed)
    if state is not None:
        model.load_state_dict(state["model"])
    if scheme is not None:
        for name in DROPPED:
            if getattr(model.config, name, 0):
                setattr(model.config, name, 0.0)
        _drop_nothing(model)
        attach(model, scheme, train_length=train_length, seed=seed)
    body = Body(model, train_length, seed).eval()
    if state is not None and scheme is not None:
        trained = build(parse(state["scheme"]), body.scheme.shape, seed)
        trained.load_state_dict(state["members"])
        body.scheme.load_from(trained)
    return body


def _drop_nothing(model: Any) -> None:
    """Turn off dropout within attention, where modules have taken it from the config."""
    for module in model.modules():
        if hasattr(module, "layer_idx"):
            for name in ("attention_dropout", "dropout_p"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
            if isinstance(drop := getattr(module, "attn_dropout", None), nn.Dropout):
                drop.p = 0.0


def save(path: str | Path, body: Body, extra: dict[str, Any]) -> None:
    """Write what a training or tuning has made of a model, whole or not at all."""
    weights = {name: w for name, w in body.model.state_dict().items() if not name.startswith(f"{CHILD}.")}
    state = {"model": weights, "scheme": body.scheme.spec.data, "members": body.scheme.state_dict(), "extra": extra}
    with replacing(path) as file:
        torch.save(state, file)


def read(path: str | Path) -> dict[str, Any]:
    """What `save` wrote.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except Exception as error:  # damage can look like anything
        raise UserError(f"cannot read the model in {path}: {error}") from error


@dataclass(frozen=True)
class Look:
    """What planning knows of a model."""

    own: Spec
    """Its own scheme."""
    shape: Shape
    vocab_size: int
    parameters: int

    @property
    def layers(self) -> tuple[Spec, ...]:
        """The own scheme of each layer."""
        own = self.own.layers or (self.own,)
        return tuple(own) * (self.shape.n_layers // len(own))


def look(source: Source, train_length: int) -> Look:
    """See what a model is like.

    Raises:
        UserError: if it cannot be read, or cannot take schemes.
    """
    model = load(source)
    attached = attach(model, None, train_length=train_length)
    if not any(member.name == "rope" for member in attached.own.all_members()):
        attached = attach(model, attached.own, train_length=train_length)  # what keeps its own scheme is refused
    Body(model, train_length, 0)
    parameters = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(f"{CHILD}."))
    return Look(attached.own, attached.scheme.shape, model.config.vocab_size, parameters)
