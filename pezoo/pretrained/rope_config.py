"""What a transformers config says of positions, as a scheme; what contradicts itself in it is named.

A config is a plain mapping, such as the content of a `config.json`, of transformers 5 (`rope_parameters`) or earlier
(`rope_theta`, `rope_scaling`), or a config object. transformers itself is not needed.

What a config leaves to the code of its family stands here, as in transformers 5.23: which channels are a pair, which
layers turn, and a base that is not stated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pezoo.errors import UserError, brief
from pezoo.pretrained.rope_rules import BASE, Members, Rule
from pezoo.scheme import Spec, parse

INTERLEAVED = {
    *("blt", "codegen", "cohere", "cohere2", "cohere2_moe", "deepseek_v4", "ernie4_5", "ernie4_5_moe"),
    *("glm", "glm4", "gptj", "helium", "llama4", "llama4_text"),
}
"""Families whose pairs are channels (2k, 2k+1); all others turn (k, k + r/2)."""
TURN_IN_WINDOWS = {"afmoe", "cohere2", "exaone4", "exaone_moe", "flint"}
"""Families whose layers turn only where they have a sliding window."""
BASES = {
    "apertus": 12e6,
    "bitnet": 5e5,
    "blt": 5e5,
    "cohere": 5e5,
    "cwm": 1e6,
    "ernie4_5": 5e5,
    "ernie4_5_moe": 5e5,
    "flex_olmo": 5e5,
    "gpt_oss": 15e4,
    "helium": 1e5,
    "hy_v3": 11158840.0,
    "lfm2": 1e6,
    "lfm2_moe": 1e6,
    "llama4_text": 5e5,
    "minimax": 1e6,
    "minimax_m2": 5e6,
    "minimax_m3_vl_text": 5e6,
    "mixtral": 1e6,
    "phimoe": 1e6,
    "smollm3": 2e6,
    "solar_open": 1e6,
}
"""Bases that a config of the family may leave out, where they are not 10 000."""
_GEMMA = {"full_attention": ("rope_theta", 1e6), "sliding_attention": ("rope_local_base_freq", 1e4)}
KINDS: dict[str, dict[str, tuple[str | None, float]]] = {
    "gemma3_text": _GEMMA,
    "gemma3n_text": _GEMMA,
    "modernbert-decoder": {
        "full_attention": ("global_rope_theta", 16e4),
        "sliding_attention": ("local_rope_theta", 1e4),
    },
    "olmo3": {"full_attention": ("rope_theta", 5e5), "sliding_attention": (None, 5e5)},
}
"""Families whose kinds of layers have a base each: the key for it before transformers 5, and the base without."""
ALL_SCALED = ("modernbert-decoder",)
"""Of `KINDS`, those whose `rope_scaling` is that of all layers; in others it is that of full_attention alone."""
SHARES = {
    **{"bamba": 0.5, "glm": 0.5, "glm4": 0.5, "glm4_moe": 0.5, "gpt_neox": 0.25, "nemotron": 0.5},
    **{"persimmon": 0.5, "phi": 0.5, "recurrent_gemma": 0.5, "stablelm": 0.25},
}
"""Shares of a head that turn, where a config of the family may leave them out."""
PATTERNS = {"cohere2": 4, "gemma2": 2, "gemma3_text": 6, "gemma3n_text": 5, "gpt_oss": 2, "olmo3": 4}
"""Every which layer has no window, where a config of the family may leave it out."""
WINDOWS_ON_DEMAND = {"qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3"}
"""Families that have no windows, whatever `sliding_window` says, unless `use_sliding_window` is true."""
FIRST_WINDOW = 28
"""`max_window_layers`, where they leave it out."""
SKIPPING = {"llama4_text": 4, "smollm3": 4}
"""Every which layer does not turn, where a config of the family may leave it out."""
UNTURNED = {
    "bloom": "it has ALiBi",
    "mpt": "it has ALiBi",
    "gpt2": "it has learned positions",
    "gpt_bigcode": "it has learned positions",
    "gpt_neo": "it has learned positions",
    "opt": "it has learned positions",
    "biogpt": "it has learned positions",
    "xglm": "it has sinusoids",
    "mamba": "it has no attention",
}
"""Families without rotation, and what they have instead."""
MOST, MOST_LAYERS = 2**40, 10_000
"""Sizes of a config, and its layers."""
CHUNKED = "chunked_attention"
ATTENTION = ("full_attention", "sliding_attention", "attention", CHUNKED)


@dataclass(frozen=True)
class RopeConfig:
    """What a config says of positions."""

    scheme: str
    """The scheme, as text, with windows and sinks."""
    rotations: tuple[str, ...]
    """The rotation of each layer alone, as text; `nope` where a layer does not turn."""
    d_model: int
    n_heads: int
    n_layers: int
    head_dim: int
    train_length: int
    remarks: tuple[str, ...] = ()
    """What contradicts itself in the config, is missing or does nothing, and how it is read; one sentence each."""

    @property
    def sizes(self) -> dict[str, int]:
        """What `pezoo.create` needs beside the scheme."""
        return {k: getattr(self, k) for k in ("d_model", "n_heads", "n_layers", "head_dim", "train_length")}


def scheme_of(config: Any) -> str:
    """The scheme of a config, as text, remarks or not; see `read_config`."""
    return read_config(config).scheme


def read_config(config: Any) -> RopeConfig:
    """Read what a config says of positions.

    Args:
        config: a mapping such as the content of a config.json, or a config object of transformers.

    Raises:
        UserError: if it has no rotation, or what it says has no meaning or no scheme.
    """
    facts = _plain(config)
    family = str(facts.get("model_type", ""))
    if family in UNTURNED or facts.get("alibi"):
        raise UserError(f"{family or 'this model'} has no rotary positions: {UNTURNED.get(family, 'it has ALiBi')}")
    sizes = _sizes(facts)
    found: list[str] = []
    shared = _shared_parameters(facts, family, found)
    layers = _layers(facts, family, sizes["n_layers"])
    if any(layer.kind == CHUNKED for layer in layers):
        chunk = facts.get("attention_chunk_size")
        found.append(
            f"layer_types has {CHUNKED}, where tokens see their own chunk of {chunk} alone; no scheme says so, and "
            "these layers are read as full_attention"
        )
    read: dict[str | None, tuple[Members, int | None]] = {}
    for layer in layers:
        if layer.turns and layer.kind not in read:
            rule = _rule(facts, family, shared, layer.kind, sizes["head_dim"])
            if rule is not None:
                read[layer.kind] = rule.read()
                found += rule.remarks
    before = {length for _, length in read.values() if length is not None}
    if len(before) > 1:
        lengths = " and ".join(map(str, sorted(before)))
        raise UserError(f"layers of this config were trained at different lengths, {lengths}; a scheme has one")
    length = next(iter(before), None) or _original(facts) or whole(facts, "max_position_embeddings")
    turning = [dict(read[layer.kind][0]) if layer.turns and layer.kind in read else {"nope": {}} for layer in layers]
    specs = [
        parse(members | _beside_rotation(layer, "nope" not in members, facts, family))
        for layer, members in zip(layers, turning, strict=True)
    ]
    return RopeConfig(
        scheme=str(_together(specs)),
        rotations=tuple(str(parse(members)) for members in turning),
        **sizes,
        train_length=length,
        remarks=tuple(dict.fromkeys(found)),
    )


# ---- a config as one flat mapping ---------------------------------------------------------------


def _plain(config: Any) -> dict[str, Any]:
    """The part of a config that speaks of the text model, under the names of transformers 5."""
    facts = config if isinstance(config, Mapping) else getattr(config, "to_dict", lambda: None)()
    if not isinstance(facts, Mapping):
        raise UserError(f"a config is a mapping, as in config.json, or an object of transformers, not {brief(config)}")
    if isinstance(facts.get("text_config"), Mapping) and "num_hidden_layers" not in facts:
        facts = facts["text_config"]
    renamed = {
        "n_embd": "hidden_size",
        "n_head": "num_attention_heads",
        "n_layer": "num_hidden_layers",
        "n_positions": "max_position_embeddings",
        "rotary_pct": "partial_rotary_factor",
        "rotary_emb_base": "rope_theta",
        "_sliding_window_pattern": "sliding_window_pattern",
    }
    facts = {new: facts[old] for old, new in renamed.items() if old in facts} | dict(facts)
    if facts.get("model_type") == "modernbert-decoder" and type(both := facts.get("local_attention", 128)) is int:
        facts["sliding_window"] = both // 2  # of a window to both sides
    return facts


def whole(facts: Mapping[str, Any], key: str) -> int:
    """The size under a key of a config.

    Raises:
        UserError: if it is missing, or no whole number above 0.
    """
    value = facts.get(key)
    if type(value) is not int or not 0 < value <= MOST:
        raise UserError(f"{key} must be a whole number above 0, not {brief(value)}")
    return value


def _sizes(facts: Mapping[str, Any]) -> dict[str, int]:
    width, heads = whole(facts, "hidden_size"), whole(facts, "num_attention_heads")
    key = "qk_rope_head_dim" if facts.get("qk_rope_head_dim") else "head_dim"
    if facts.get(key) is None and width % heads:
        raise UserError(
            f"hidden_size = {width} is not divisible by num_attention_heads = {heads}, and head_dim is missing"
        )
    n_layers = whole(facts, "num_hidden_layers")
    if n_layers > MOST_LAYERS:
        raise UserError(f"num_hidden_layers must be at most {MOST_LAYERS}, not {n_layers}")
    head_dim = width // heads if facts.get(key) is None else whole(facts, key)
    return {
        "d_model": width,
        "n_heads": heads,
        "n_layers": n_layers,
        "head_dim": head_dim,
    }


def _original(facts: Mapping[str, Any]) -> int | None:
    key = "original_max_position_embeddings"
    return None if facts.get(key) is None else whole(facts, key)


# ---- parameters ---------------------------------------------------------------------------------


def _shared_parameters(facts: Mapping[str, Any], family: str, found: list[str]) -> Mapping[str, Any]:
    """`rope_parameters`, or what stood for it before transformers 5; flat, or by kind of layer."""
    new, old = facts.get("rope_parameters"), facts.get("rope_scaling")
    for name, given in (("rope_parameters", new), ("rope_scaling", old)):
        if given is not None and not isinstance(given, Mapping):
            raise UserError(f"{name} must be a mapping, not {brief(given)}")
    if new and old and any(old.get(k) != new.get(k) for k in {*old, *new} - {"type", "rope_type", "rope_theta"}):
        found.append("rope_scaling and rope_parameters differ; transformers takes rope_scaling")
    if new and not old and family in KINDS and not _nested(new):
        found.append(f"rope_parameters has no kinds of layers, which {family} has; transformers reads nothing there")
        return {}
    return old or new or {}


def _nested(shared: Mapping[str, Any]) -> bool:
    """Whether parameters are those of each kind of layer."""
    return any(isinstance(value, Mapping) or key in ATTENTION for key, value in shared.items())


def _rule(
    facts: Mapping[str, Any], family: str, shared: Mapping[str, Any], kind: str | None, head_dim: int
) -> Rule | None:
    """What is stated for one kind of layer; None if it says that they do not turn."""
    nested, has_kinds = _nested(shared), family in KINDS
    where = f"rope_parameters of {kind}" if nested else "rope_parameters"
    stated, base = KINDS.get(family, {}).get(str(kind), ("rope_theta", BASES.get(family)))
    if nested and kind not in shared and not has_kinds:
        raise UserError(f"rope_parameters has {', '.join(map(str, shared))}, but layer_types has {brief(kind)}")
    own = shared.get(str(kind)) if nested else shared
    if has_kinds and (own is None or (not nested and kind != "full_attention" and family not in ALL_SCALED)):
        own = {}
    if own is None:
        return None
    nested = nested or has_kinds  # as transformers makes it
    if not isinstance(own, Mapping):
        raise UserError(f"{where} must be a mapping, not {brief(own)}")
    own = dict(own)
    latent = bool(facts.get("qk_rope_head_dim"))
    rule = Rule(
        parameters=own,
        where=where,
        head_dim=head_dim,
        longest=_longest(facts),
        original=None if nested else facts.get("original_max_position_embeddings"),
        pairing="interleaved" if family in INTERLEAVED or facts.get("rope_interleave", latent) else "half",
        nested=nested,
        latent=latent,
        stretched=family.startswith("hunyuan"),
    )
    share = ("partial_rotary_factor", "partial_rotary_factor", SHARES.get(family))
    for key, name, default in (("rope_theta", stated, base), share):
        beside = None if name is None else facts.get(name)
        inside = own.get(key)
        if beside is not None and inside is not None and beside != inside:
            rule.remark(f"{key} is {brief(inside)}, and {brief(beside)} beside it; transformers takes {brief(inside)}")
        if inside is None:
            own[key] = default if beside is None else beside
    if own["rope_theta"] is None:
        rule.remark(f"rope_theta is missing; {BASE:g} is taken")
    if latent:
        own.pop("partial_rotary_factor")
    elif facts.get("rotary_dim") is not None and facts.get("partial_rotary_factor") is None:
        own["partial_rotary_factor"] = whole(facts, "rotary_dim") / head_dim
    return rule


def _longest(facts: Mapping[str, Any]) -> int | None:
    return None if facts.get("max_position_embeddings") is None else whole(facts, "max_position_embeddings")


# ---- layers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """What a layer is, before its parameters are read."""

    kind: str | None
    window: int | None
    turns: bool


def _layers(facts: Mapping[str, Any], family: str, n_layers: int) -> list[_Layer]:
    kinds = _kinds(facts, family, n_layers)
    other = next((kind for kind in kinds if kind not in (None, *ATTENTION)), None)
    if other is not None:
        raise UserError(f"layer_types has {brief(other)}; a scheme is for {' and '.join(ATTENTION[:2])}")
    size = facts.get("sliding_window")
    turning = _turning(facts, family, n_layers)
    layers = []
    for kind, turns in zip(kinds, turning, strict=True):
        in_window = kind == "sliding_attention" and size is not None
        if kind == "sliding_attention" and size is None and family not in TURN_IN_WINDOWS:
            raise UserError("layer_types has sliding_attention, but sliding_window is missing")
        stays = family in TURN_IN_WINDOWS and not in_window and (size is not None or family not in _TURN_WITHOUT_ANY)
        layers.append(_Layer(kind, whole(facts, "sliding_window") if in_window else None, turns and not stays))
    return layers


_TURN_WITHOUT_ANY = ("exaone4", "exaone_moe")
"""Of `TURN_IN_WINDOWS`, those all of whose layers turn where no layer has a window."""


def _kinds(facts: Mapping[str, Any], family: str, n_layers: int) -> list[str | None]:
    """`layer_types`, or what stands for it."""
    stated = facts.get("layer_types")
    if stated is not None:
        if not isinstance(stated, Sequence) or isinstance(stated, str) or len(stated) != n_layers:
            raise UserError(f"layer_types must name {n_layers} layers, not {brief(stated)}")
        return list(stated)
    size, pattern = facts.get("sliding_window"), facts.get("sliding_window_pattern", PATTERNS.get(family))
    asked = facts.get("use_sliding_window", family not in WINDOWS_ON_DEMAND)
    if size is None or not asked:
        return ["full_attention"] * n_layers
    if family == "smollm3":  # where layers do not turn
        return ["full_attention" if turns else "sliding_attention" for turns in _turning(facts, family, n_layers)]
    if family == "qwen3_moe":  # which reads no max_window_layers
        return ["sliding_attention"] * n_layers
    if family in WINDOWS_ON_DEMAND or (facts.get("use_sliding_window") and facts.get("max_window_layers")):
        full = FIRST_WINDOW if facts.get("max_window_layers") is None else facts["max_window_layers"]
        if type(full) is not int or full < 0:
            raise UserError(f"max_window_layers must be a whole number from 0 on, not {brief(full)}")
        if family == "qwen2_moe":  # every other layer, and before that number
            return ["full_attention" if i % 2 or i >= full else "sliding_attention" for i in range(n_layers)]
        return ["full_attention" if i < full else "sliding_attention" for i in range(n_layers)]
    if family == "modernbert-decoder":
        every = 3 if facts.get("global_attn_every_n_layers") is None else whole(facts, "global_attn_every_n_layers")
        return ["sliding_attention" if i % every else "full_attention" for i in range(n_layers)]
    if type(pattern) is int and pattern > 0:
        return ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(n_layers)]
    return ["sliding_attention"] * n_layers


def _turning(facts: Mapping[str, Any], family: str, n_layers: int) -> list[bool]:
    """Which layers turn queries and keys: 1 in `no_rope_layers`, whose name says the opposite."""
    stated = facts.get("no_rope_layers")
    if stated:
        if not isinstance(stated, Sequence) or len(stated) != n_layers:
            raise UserError(f"no_rope_layers must have {n_layers} entries, one for each layer, not {brief(stated)}")
        return [bool(turns) for turns in stated]
    every = whole(facts, "no_rope_layer_interval") if facts.get("no_rope_layer_interval") else SKIPPING.get(family)
    return [not every or (i + 1) % every != 0 for i in range(n_layers)]


def _beside_rotation(layer: _Layer, turns: bool, facts: Mapping[str, Any], family: str) -> Members:
    """What attention of a layer has beside its rotation: temperature, window, sinks."""
    members: Members = {}
    beta = (facts.get("rope_scaling") or facts.get("rope_parameters") or {}).get("llama_4_scaling_beta")
    if beta is not None:
        members["temperature"] = {"beta": beta}
    elif family == "llama4_text" and not turns and facts.get("attn_temperature_tuning", True):
        step, beta = facts.get("floor_scale", 8192), facts.get("attn_scale", 0.1)
        members["temperature"] = {"beta": beta, "step": int(step) if isinstance(step, float) else step, "first": 1}
    if layer.window is not None:
        members["window"] = {"size": layer.window}
    if family == "gpt_oss":
        members["sink_logits"] = {}
    return members


def _together(specs: list[Spec]) -> Spec:
    """One scheme of those of all layers: a list that repeats, as short as it can be."""
    n = len(specs)
    period = next(p for p in range(1, n + 1) if n % p == 0 and specs == specs[:p] * (n // p))
    return specs[0] if period == 1 else parse({"layers": specs[:period]})
