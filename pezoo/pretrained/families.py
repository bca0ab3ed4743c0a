"""Families of decoders that pezoo's own Transformer can be: what their configs mean, and whose weights are whose.

What a config may leave out stands here with its value, as in transformers 5.23.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pezoo.errors import UserError, brief, suggest
from pezoo.model.config import ModelConfig
from pezoo.pretrained.rope_config import whole

LLAMA = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "attention_bias": False}
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": LLAMA | {"num_key_value_heads": None, "mlp_bias": False},
    "mistral": LLAMA | {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": LLAMA | {"num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3": LLAMA | {"num_key_value_heads": 32, "sliding_window": 4096, "head_dim": 128},
    "smollm3": LLAMA | {"num_key_value_heads": 4, "mlp_bias": False, "tie_word_embeddings": True},
    "gpt_neox": {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "tie_word_embeddings": False, "attention_bias": True}
    | {"use_parallel_residual": True},
}
"""By family, what its config may leave out."""
GATED = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu"}
PLAIN = {"gelu": "gelu", "relu": "relu", "silu": "silu", "swish": "silu"}
IGNORED = r"\.rotary_emb\.inv_freq$|\.attention\.(masked_)?bias$"
"""Names of tensors of older checkpoints that are no weights: frequencies, and masks of GPT-NeoX."""
ATTACH = "use pezoo.attach, which leaves the model in transformers"


@dataclass(frozen=True)
class Part:
    """A weight of pezoo's Transformer, and the tensors of a checkpoint that it is made of, one below the other."""

    target: str
    sources: tuple[tuple[str, int], ...]
    """Names, and how many rows each has."""
    by_head: int | None = None
    """For rows that are sorted by head, and within each by queries, keys and values: the number of heads."""


def settle(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config of one of the families with all that it leaves out, and without what its family does not look at.

    Raises:
        UserError: if it is of another family, or its weights are quantised.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in DEFAULTS:
        raise UserError(
            f"model_type is {brief(family)}, and pezoo's own Transformer can be {', '.join(DEFAULTS)}."
            f"{suggest(str(family), DEFAULTS)} For other families {ATTACH}"
        )
    if config.get("quantization_config") is not None:
        raise UserError(f"the weights are quantised (quantization_config); {ATTACH}")
    facts = DEFAULTS[family] | dict(config)
    if family in ("llama", "gpt_neox"):
        return facts | {"sliding_window": None, "layer_types": None}
    if family == "mistral":
        return facts | {"layer_types": None}
    if not facts.get("use_sliding_window"):
        return facts | {"sliding_window": None, "layer_types": None}
    return facts


def body(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a model for a config that is settled, but for the scheme.

    Raises:
        UserError: if it asks for what pezoo's Transformer has not, or its sizes are no sizes.
    """
    family = facts["model_type"]
    neox, act = family == "gpt_neox", facts["hidden_act"]
    activations = PLAIN if neox else GATED
    if not isinstance(act, str) or act not in activations:
        raise UserError(
            f"hidden_act is {brief(act)}, and pezoo's own Transformer has {', '.join(activations)} there; {ATTACH}"
        )
    eps = facts["layer_norm_eps" if neox else "rms_norm_eps"]
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < math.inf:
        raise UserError(f"the eps of its norms must be a number above 0, not {brief(eps)}")
    flags = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_parallel_residual")
    wrong = next((key for key in flags if key in facts and type(facts[key]) is not bool), None)
    if wrong is not None:
        raise UserError(f"{wrong} must be true or false, not {brief(facts[wrong])}")
    biases = {"mistral": "none", "qwen2": "qkv"}.get(family, "all" if facts["attention_bias"] else "none")
    heads, kv = whole(facts, "num_attention_heads"), None if neox else facts["num_key_value_heads"]
    return {
        "vocab_size": whole(facts, "vocab_size"),
        "d_model": whole(facts, "hidden_size"),
        "n_layers": whole(facts, "num_hidden_layers"),
        "n_heads": heads,
        "n_kv_heads": heads if kv is None else whole(facts, "num_key_value_heads"),
        "head_dim": None if facts.get("head_dim") is None else whole(facts, "head_dim"),
        "d_ff": whole(facts, "intermediate_size"),
        "activation": activations[act],
        "norm": "layernorm" if neox else "rmsnorm",
        "norm_eps": float(eps),
        "parallel_residual": neox and facts["use_parallel_residual"],
        "attention_bias": biases,
        "feed_forward_bias": neox or facts.get("mlp_bias", False),
        "qk_norm": family == "qwen3",
        "tie_embeddings": facts["tie_word_embeddings"],
    }


def parts(family: str, config: ModelConfig, vocabulary: int) -> Iterator[Part]:
    """All weights of a model of a family, in order."""
    neox, width = family == "gpt_neox", config.d_model
    kinds = ("weight", "bias") if config.norm == "layernorm" else ("weight",)
    stem = "gpt_neox" if neox else "model"

    def linear(target: str, *sources: tuple[str, int], bias: bool, by_head: int | None = None) -> Iterator[Part]:
        for kind in ("weight", "bias") if bias else ("weight",):
            yield Part(f"{target}.{kind}", tuple((f"{name}.{kind}", rows) for name, rows in sources), by_head)

    def norm(target: str, source: str, rows: int = width) -> Iterator[Part]:
        for kind in kinds:
            yield Part(f"{target}.{kind}", ((f"{source}.{kind}", rows),))

    yield from linear("embedding", (f"{stem}.embed_in" if neox else f"{stem}.embed_tokens", vocabulary), bias=False)
    qkv_bias, out_bias = config.attention_bias != "none", config.attention_bias == "all"
    queries, keys = (n * config.head_width for n in (config.n_heads, config.n_kv_heads or config.n_heads))
    hidden, more = config.d_ff or 4 * width, config.feed_forward_bias
    for i in range(config.n_layers):
        ours, theirs = f"blocks.{i}", f"{stem}.layers.{i}"
        yield from norm(f"{ours}.attention_norm", f"{theirs}.input_layernorm")
        yield from norm(f"{ours}.feed_forward_norm", f"{theirs}.post_attention_layernorm")
        attention, mlp = f"{theirs}.{'attention' if neox else 'self_attn'}", f"{theirs}.mlp"
        if neox:
            fused = (f"{attention}.query_key_value", queries + 2 * keys)
            yield from linear(f"{ours}.attention.qkv", fused, bias=qkv_bias, by_head=config.n_heads)
            yield from linear(f"{ours}.attention.out", (f"{attention}.dense", width), bias=out_bias)
            yield from linear(f"{ours}.feed_forward.up", (f"{mlp}.dense_h_to_4h", hidden), bias=more)
            yield from linear(f"{ours}.feed_forward.out", (f"{mlp}.dense_4h_to_h", width), bias=more)
            continue
        split = tuple((f"{attention}.{x}_proj", rows) for x, rows in (("q", queries), ("k", keys), ("v", keys)))
        yield from linear(f"{ours}.attention.qkv", *split, bias=qkv_bias)
        yield from linear(f"{ours}.attention.out", (f"{attention}.o_proj", width), bias=out_bias)
        for x in ("q", "k") if config.qk_norm else ():
            yield from norm(f"{ours}.attention.{x}_norm", f"{attention}.{x}_norm", config.head_width)
        gated = tuple((f"{mlp}.{x}_proj", hidden) for x in ("gate", "up"))
        yield from linear(f"{ours}.feed_forward.up", *gated, bias=more)
        yield from linear(f"{ours}.feed_forward.out", (f"{mlp}.down_proj", width), bias=more)
    yield from norm("norm", f"{stem}.final_layer_norm" if neox else f"{stem}.norm")
    if not config.tie_embeddings:
        yield from linear("head", ("embed_out" if neox else "lm_head", vocabulary), bias=False)
