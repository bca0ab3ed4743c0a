"""What determines a model: the keys of its body, which studies set, and the rest."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin

from pezoo.errors import UserError, suggest


@dataclass
class ModelConfig:
    """The body of the Transformer, the same for every scheme."""

    d_model: int = 64
    """Width (D); a multiple of `n_heads`, unless `head_dim` is set."""
    n_layers: int = 4
    """Depth."""
    n_heads: int = 4
    """Query heads."""
    n_kv_heads: int | None = None
    """Key/value heads, a divisor of `n_heads`; null: as many as query heads."""
    head_dim: int | None = field(default=None, metadata={"before": None})
    """Width of one head; null: d_model / n_heads."""
    d_ff: int | None = None
    """Hidden width of the feed-forward part; null: 4 d_model, or 8/3 of it for gated activations."""
    activation: Literal["gelu", "relu", "silu", "swiglu", "geglu"] = "gelu"
    """Activation of the feed-forward part."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation, before each sub-layer."""
    norm_eps: float | None = field(default=None, metadata={"before": None})
    """What norms add to the mean square; null: 1e-5 for layernorm, the precision's smallest step for rmsnorm."""
    parallel_residual: bool = field(default=False, metadata={"before": False})
    """Attention and the feed-forward part read the same input, each after a norm of its own, and are added together."""
    attention_bias: Literal["none", "qkv", "all"] = field(default="none", metadata={"before": "none"})
    """Biases in attention: none, those of queries, keys and values, or that of its output as well."""
    feed_forward_bias: bool = field(default=False, metadata={"before": False})
    """Biases in the feed-forward part."""
    dropout: float = 0.0
    """Probability of dropping an activation in training."""
    qk_norm: bool = False
    """Normalise queries and keys before they are rotated (RMSNorm)."""
    qk_norm_scope: Literal["head", "all"] = field(default="head", metadata={"before": "head"})
    """What `qk_norm` takes together: the channels of each head, or those of all heads."""
    token_shift: bool = field(default=False, metadata={"before": False})
    """Mix keys and values with those of the token before, each head by gates of its own that read the layer's input."""
    tie_embeddings: bool = False
    """Share the input embedding with the output layer."""


@dataclass
class TransformerConfig(ModelConfig):
    """Everything that determines a model."""

    vocab_size: int = 256
    causal: bool = True
    """Decoder (True) or encoder."""
    scheme: Any = "nope"
    """A scheme as text or mapping."""
    train_length: int = 64
    seed: int = 0
    """Of the weights and of random positions."""
    backend: str = "auto"
    """Attention back-end: auto, or one of `pezoo.attention.BACKENDS`."""

    def __post_init__(self) -> None:
        for option in fields(self):
            value, allowed = getattr(self, option.name), get_args(option.type)
            if get_origin(option.type) is Literal and value not in allowed:
                near = suggest(str(value), allowed)
                raise UserError(f"model.{option.name} is one of {', '.join(allowed)}, not {value!r}.{near}")
        sizes = ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff", "train_length")
        positive = {name: getattr(self, name) for name in sizes}
        for name, value in positive.items():
            if value is not None and value < 1:
                raise UserError(f"model.{name} must be positive, got {value}")
        if self.norm_eps is not None and not 0 < self.norm_eps < math.inf:
            raise UserError(f"model.norm_eps must be positive, got {self.norm_eps}")
        if self.head_dim is None and self.d_model % self.n_heads:
            raise UserError(
                f"model.d_model = {self.d_model} is not divisible by n_heads = {self.n_heads}; or set model.head_dim"
            )
        if self.qk_norm_scope != "head" and not self.qk_norm:
            raise UserError(f"model.qk_norm_scope = {self.qk_norm_scope} does nothing without qk_norm")
        if self.n_kv_heads and self.n_heads % self.n_kv_heads:
            raise UserError(f"model.n_kv_heads = {self.n_kv_heads} does not divide n_heads = {self.n_heads}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout must lie in [0, 1), got {self.dropout}")

    @property
    def head_width(self) -> int:
        """Width of one head (d)."""
        return self.head_dim or self.d_model // self.n_heads


def to_config(given: Mapping[str, Any]) -> TransformerConfig:
    """The config of a model from its keys.

    Raises:
        UserError: if a key is unknown or out of its range.
    """
    known = [option.name for option in fields(TransformerConfig)]
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        near = suggest(str(unknown), known)
        raise UserError(f"a Transformer has no setting {unknown!r}.{near} It has: {', '.join(known)}")
    return TransformerConfig(**given)
