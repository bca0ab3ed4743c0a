"""A model's own scheme: what its config says of the rotation, layer by layer, and the length that it was trained at."""

import math
from collections.abc import Mapping
from typing import Any

from pezoo.errors import UserError


def train_length(config: Any) -> int | None:
    """Tokens of a training text before any extension, as the config states them; None if it does not."""
    found = {
        length for settings in _by_layer(config) if (length := (settings or {}).get("original_max_position_embeddings"))
    }
    length = max(found, default=None) or getattr(config, "original_max_position_embeddings", None)
    length = length or getattr(config, "max_position_embeddings", None)
    return None if length is None else int(length)


def rotations(config: Any) -> list[str]:
    """The rotation of each layer as a scheme, such as "rope:base=500000+llama3:factor=8"; "nope" where there is none.

    Pairing is left out: configs do not state it.

    Raises:
        UserError: if the config has a kind of rotation that is not known here.
    """
    return [_rotation(settings, config) if settings else "nope" for settings in _by_layer(config)]


def _by_layer(config: Any) -> list[Mapping[str, Any] | None]:
    """The rotation's settings of each layer, as the config has them."""
    n_layers = config.num_hidden_layers
    settings = getattr(config, "rope_parameters", None)
    if not settings:
        return [None] * n_layers
    if "rope_theta" in settings or "rope_type" in settings:
        return [settings] * n_layers
    return [settings.get(kind) for kind in config.layer_types]


def _rotation(settings: Mapping[str, Any], config: Any) -> str:
    kind, base = settings.get("rope_type", "default"), settings.get("rope_theta", 10000.0)
    share, factor = settings.get("partial_rotary_factor", 1.0), settings.get("factor")
    rope = f"rope:base={base!r}" + ("" if share == 1 else f":fraction={share!r}")
    match kind:
        case "default":
            return rope
        case "linear":
            return f"{rope}+pi:factor={factor!r}"
        case "proportional":
            rope = f"rope:base={base!r}:kept={share!r}"
            return rope if factor in (None, 1) else f"{rope}+pi:factor={factor!r}"
        case "dynamic":
            return f"{rope}+dynamic_ntk:strength={factor!r}"
        case "llama3":
            low, high = settings["low_freq_factor"], settings["high_freq_factor"]
            return f"{rope}+llama3:factor={factor!r}:low={low!r}:high={high!r}"
    original = settings.get("original_max_position_embeddings") or config.max_position_embeddings
    factor = factor or config.max_position_embeddings / original
    magnitude = settings.get("attention_factor")
    if kind == "yarn":
        fast, slow = settings.get("beta_fast") or 32, settings.get("beta_slow") or 1
        text = f"{rope}+yarn:factor={factor!r}:beta_fast={fast!r}:beta_slow={slow!r}"
        text += "" if settings.get("truncate", True) else ":truncate=false"
        both = settings.get("mscale"), settings.get("mscale_all_dim")
        if magnitude is None and all(both):
            magnitude = _grown(factor, both[0]) / _grown(factor, both[1])
        return text if magnitude is None else f"{text}:attention_factor={magnitude!r}"
    if kind == "longrope":
        short, long = (",".join(map(repr, settings[f"{name}_factor"])) for name in ("short", "long"))
        text = f"{rope}+longrope:factor={max(1.0, factor)!r}:short={short}:long={long}"
        return text if magnitude is None else f"{text}:magnitude={magnitude!r}"
    raise UserError(f"the model's rope_type is {kind!r}, for which pezoo has no scheme")


def _grown(factor: float, mscale: float) -> float:
    """What DeepSeek's tables are multiplied by: 0.1 mscale ln s + 1."""
    return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0
