"""A scheme's rotation told to transformers: `rope_parameters` under which its models turn as the scheme does.

Most rules for frequencies come to one number for each pair of channels, and one for the temperature. transformers has a
place for any such numbers: `longrope`, with two lists that are equal. So no code of pezoo is needed where the model is
loaded. What has a plainer name there (`default`, `linear`, `dynamic`, `yarn`, `llama3`, `proportional`) is told by it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pezoo.compose import Scheme, build
from pezoo.compose.tables import beside
from pezoo.composition import Composition
from pezoo.contract import Undefined, overrides
from pezoo.errors import UserError
from pezoo.pretrained.rope_config import read_config
from pezoo.scheme import parse

STILL = 1e29
"""A divisor for frequencies of zero; infinity has no place in a config.json."""
FEW_TYPES = ("phi3", "phi4_multimodal")
"""Families whose configs take no rope type but `default` and `longrope`."""
NORMED = ("llama4_text", "nanochat")
"""Families that norm queries and keys after they turn, which takes a factor on the tables away again."""
KEPT = ("llama_4_scaling_beta", "original_max_position_embeddings")
"""What Ministral 3 keeps among its rope parameters, for a temperature of its own."""
CLOSE = 1e-6
"""Relative difference of frequencies that are the same."""


@dataclass(frozen=True)
class Turn:
    """How a layer turns at one declared length."""

    frequencies: Tensor
    """Radians per token, (n,), float64."""
    temperature: float
    """Factor on q.k."""

    def like(self, other: "Turn") -> bool:
        """Whether both are the same but for rounding."""
        ours, theirs = self.frequencies, other.frequencies
        same = torch.allclose(ours, theirs, rtol=CLOSE, atol=1e-12)
        return same and math.isclose(self.temperature, other.temperature, rel_tol=CLOSE)


@dataclass(frozen=True)
class Layer:
    """How a layer of a scheme turns."""

    composition: Composition
    width: int
    """Channels of a head that turn."""
    short: Turn
    """Up to the training length."""
    long: Turn
    """Beyond it, where that is the same at every length; else at the first such length."""
    turns: Mapping[int, Turn]
    """By declared length."""


@dataclass(frozen=True)
class Told:
    """What a config must say, and how its layers then turn."""

    settings: dict[str, Any]
    """`rope_parameters`, `max_position_embeddings` and the like: what changes in the config."""
    turns: Mapping[str | None, Mapping[int, Turn]]
    """How layers of a kind turn, by total length; one kind, None, where all turn alike."""


def told(scheme: Scheme, config: Any, length: int | None = None) -> Told:
    """What a config must say so that transformers turns queries and keys as a scheme does in testing.

    Args:
        scheme: built for the model. `rope` must turn the channels that the model turns, and no layer may turn that does
            not in the model. Windows, sinks and the like stay the model's, and are no part of the scheme.
        config: the model's own, a mapping or an object.
        length: rules that follow the length are told as they are at this length.

    Raises:
        UserError: with the reason, if the scheme does more than transformers can be told.
    """
    own = read_config(config)
    facts = config if isinstance(config, Mapping) else config.to_dict()
    before = build(parse({"layers": list(own.rotations)}), scheme.shape)
    stated = facts.get("rope_parameters") or {}
    nested = any(isinstance(value, Mapping) for value in stated.values())
    kinds = facts["layer_types"] if nested else [None] * own.n_layers
    layers: dict[str | None, tuple[Layer, Layer]] = {}
    for i, kind in enumerate(kinds):
        theirs = None if own.rotations[i] == "nope" else _layer(before, i, None)
        ours = _layer(scheme, i, length, theirs)
        if theirs is None:
            if ours is not None:
                raise UserError(f"layer {i} of the model does not turn queries and keys, and cannot be told to")
            continue
        assert ours is not None
        first, _ = layers.setdefault(kind, (ours, theirs))
        if not all(turn.like(ours.turns[n]) for n, turn in first.turns.items()):
            where = "its layers" if kind is None else f"its layers of the kind {kind}"
            raise _no(scheme, f"{where} turn differently, and the config has one place for them")
    if not layers:
        raise UserError("no layer of this model turns queries and keys")
    family = str(facts.get("model_type"))
    if family in NORMED and any(ours.long.temperature != 1 for ours, _ in layers.values()):
        raise _no(scheme, "the model norms queries and keys after they turn, so that no table carries a temperature")
    told_of = {kind: _parameters(scheme, *both, length, family, nested) for kind, both in layers.items()}
    longest = max(n for n, _ in told_of.values())
    found = {kind: parameters for kind, (_, parameters) in told_of.items()}
    if "llama_4_scaling_beta" in stated:
        found = {kind: parameters | {key: stated.get(key) for key in KEPT} for kind, parameters in found.items()}
    follows = any(parameters["rope_type"] == "dynamic" for parameters in found.values())
    if follows and longest > scheme.shape.train_length:
        raise _no(scheme, "rope_type dynamic grows from the length that other layers extend; pass length=")
    settings: dict[str, Any] = {"max_position_embeddings": longest}
    settings["rope_parameters"] = {**stated, **found} if nested else found[None]
    if "original_max_position_embeddings" in facts:  # beside the parameters it counts more than inside
        settings["original_max_position_embeddings"] = scheme.shape.train_length
    return Told(settings, {kind: ours.turns for kind, (ours, _) in layers.items()})


# ---- how a scheme turns -------------------------------------------------------------------------


def _layer(scheme: Scheme, i: int, length: int | None, model: Layer | None = None) -> Layer | None:
    """How a layer turns; None if it does not, and need not (without `model`)."""
    before = scheme.shape.train_length
    lengths = [2, before, before + 1, 2 * before, 3 * before, 4 * before, 32 * before]
    compositions = {n: _composition(scheme, i, length or n) for n in lengths}
    reason = beside(compositions[before])
    if reason is not None:
        raise _no(scheme, reason)
    turns = {n: _turn(scheme, c) for n, c in compositions.items()}
    known = {n: turn for n, turn in turns.items() if turn is not None}
    if not known:
        if model is None:
            return None
        still = torch.zeros_like(model.short.frequencies)
        known = {n: Turn(still, _temperature(scheme, c)) for n, c in compositions.items()}
    else:
        cos, _ = scheme.rope_tables(2, layer=i, positions=_positions(scheme, 2), beside_mods=True)
        if model is not None and (cos.shape[-1], _pairing(compositions[before])) != (
            model.width,
            _pairing(model.composition),
        ):
            raise _no(
                scheme,
                f"it turns {cos.shape[-1]} channels of a head, paired as {_pairing(compositions[before])}; "
                f"the model turns {model.width}, paired as {_pairing(model.composition)}",
            )
    width = 2 * len(known[before].frequencies)
    if known[before + 1].temperature != 1 and width < scheme.shape.head_dim:
        raise _no(
            scheme, f"its temperature acts on the whole head, and {width} of {scheme.shape.head_dim} channels turn"
        )
    return Layer(compositions[before], width, known[before], known[before + 1], known)


def _no(scheme: Scheme, reason: str) -> UserError:
    return UserError(f"transformers cannot be told {scheme.spec}: {reason}")


def _positions(scheme: Scheme, declared: int) -> Any:
    return scheme.positions(1, 2, declared=declared, phase="test", rows=(0,))


def _composition(scheme: Scheme, i: int, declared: int) -> Composition:
    try:
        groups = scheme.prepare(_positions(scheme, declared)).at(i)
    except Undefined as reason:
        raise _no(scheme, str(reason)) from None
    if len(groups) > 1:
        raise _no(scheme, "its heads differ, and the model turns all alike")
    return groups[0].composition


def _turn(scheme: Scheme, composition: Composition) -> Turn | None:
    turning = [p for p in composition.base if overrides(p.encoding, "rotate")]
    if not turning:
        return None
    positions = turning[0].positions
    if len(turning) > 1 or positions.inv_freq is None:
        raise _no(scheme, f"{turning[-1].encoding.name} does not just turn pairs of channels")
    if positions.spacing is None:
        raise _no(scheme, "its coordinates are not evenly spaced")
    return Turn(positions.inv_freq[0].detach().double() * positions.spacing[1], _temperature(scheme, composition))


def _temperature(scheme: Scheme, composition: Composition) -> float:
    """The factor on q.k, which all queries must share: the first, and the last of the declared length."""
    far = torch.tensor([[0, composition.positions.longest - 1]])
    ends = composition.positions.replace(query_index=far, query=far.float(), spacing=None)
    sigma = replace(composition, positions=ends).sigma()
    if isinstance(sigma, Tensor):
        if not bool((sigma == sigma.flatten()[0]).all()):
            names = ", ".join(e.name for e in composition.extensions if overrides(e, "scale"))
            raise _no(scheme, f"{names} scales queries or heads apart")
        sigma = float(sigma.flatten()[0])
    return sigma


def _pairing(composition: Composition) -> str:
    turning = next(p.encoding for p in composition.base if overrides(p.encoding, "rotate"))
    return str(getattr(turning.config, "pairing", turning.name))


# ---- as parameters ------------------------------------------------------------------------------


def _parameters(
    scheme: Scheme, ours: Layer, theirs: Layer, length: int | None, family: str, nested: bool
) -> tuple[int, dict[str, Any]]:
    """`max_position_embeddings` and the parameters of one layer: the plainest that do what the scheme does."""
    before = scheme.shape.train_length
    for parameters in _candidates(scheme, ours, theirs, length):
        kind = parameters["rope_type"]
        if family in FEW_TYPES and kind not in ("default", "longrope"):
            continue
        if nested and not parameters.get("truncate", True):  # which transformers does not look for there
            continue
        stretched = max(parameters.get("factor", 1.0), scheme.scale_factor(before) or 1.0)
        longest = before if kind == "dynamic" else max(round(before * stretched), length or 0)
        if ours.width < scheme.shape.head_dim or family in FEW_TYPES:  # whose code asks for it always
            parameters = parameters | {"partial_rotary_factor": _share(ours.width, scheme.shape.head_dim)}
        if _does(parameters, longest, ours, scheme):
            return longest, parameters
    raise _no(scheme, "it turns otherwise at every length; pass length=, and it is told as it is at that length")


def _share(width: int, head_dim: int) -> float:
    share = width / head_dim
    return share if int(share * head_dim) == width else math.nextafter(share, 2)


def _candidates(scheme: Scheme, ours: Layer, theirs: Layer, length: int | None) -> Iterator[dict[str, Any]]:
    """Parameters that might do it."""
    w, n, before = ours.long.frequencies, ours.width // 2, scheme.shape.train_length
    bases = [base for layer in (ours, theirs) if (base := _base(layer)) is not None]
    if n > 1 and w[1] > 0:
        bases += [_rounded(float(w[0] / w[1]) ** n, digits) for digits in (5, 7, 9)]
    slowed = _rounded(1 / float(w[0])) if w[0] > 0 else 1.0
    stretched = {"factor": slowed} if slowed > 1 else {}
    turning = int((w > 0).sum())
    for base in dict.fromkeys(bases):
        plain = base ** -(torch.arange(n, dtype=torch.float64) / n)
        if not torch.allclose(w[:turning] * slowed, plain[:turning], rtol=CLOSE, atol=0):
            continue
        if turning == n:
            yield {"rope_type": "linear" if stretched else "default", "rope_theta": base, **stretched}
        elif turning and ours.width == scheme.shape.head_dim:
            yield {"rope_type": "proportional", "rope_theta": base, "partial_rotary_factor": turning / n, **stretched}
    base = bases[0] if bases else 10000.0
    factor = max(1.0, length / before) if length else scheme.scale_factor(before) or 1.0
    magnitude = math.sqrt(ours.long.temperature)
    for extension in ours.composition.extensions:
        c, shared = extension.config, {"rope_theta": base, "factor": factor}
        if extension.name == "yarn":
            ramp = {"beta_fast": c.beta_fast, "beta_slow": c.beta_slow, "truncate": c.truncate}
            stated = {"attention_factor": magnitude, "original_max_position_embeddings": before}
            yield {"rope_type": "yarn", **shared, **ramp, **stated}
        if extension.name == "llama3":
            ramp = {"low_freq_factor": c.low, "high_freq_factor": c.high, "original_max_position_embeddings": before}
            yield {"rope_type": "llama3", **shared, **ramp}
        if extension.name == "dynamic_ntk" and length is None:
            yield {"rope_type": "dynamic", "rope_theta": base, "factor": c.strength}
    plain = [base ** (-k / n) for k in range(n)]
    lists = {
        f"{name}_factor": [
            STILL if w == 0 else _rounded(p / w) for p, w in zip(plain, turn.frequencies.tolist(), strict=True)
        ]
        for name, turn in (("short", ours.short), ("long", ours.long))
    }

    def divisors(turn: Turn) -> list[float]:
        found = [base ** (-k / n) / w if w > 0 else STILL for k, w in enumerate(turn.frequencies.tolist())]
        return [_rounded(divisor) for divisor in found]

    yield {
        "rope_type": "longrope",
        "rope_theta": base,
        "factor": factor,
        **lists,
        "attention_factor": magnitude,
        "original_max_position_embeddings": before,
    }


def _rounded(x: float, digits: int = 8) -> float:
    """As many digits as float32 can tell apart."""
    return float(f"{x:.{digits}g}")


def _base(layer: Layer) -> float | None:
    turning = next((p.encoding for p in layer.composition.base if overrides(p.encoding, "rotate")), None)
    base = getattr(turning.config, "base", None) if turning is not None else None
    return None if base is None else float(base)


def _does(parameters: Mapping[str, Any], longest: int, ours: Layer, scheme: Scheme) -> bool:
    """Whether parameters, read as transformers reads them, turn a layer as the scheme does, at every length."""
    shape = scheme.shape
    config = {
        "hidden_size": shape.d_model,
        "num_attention_heads": shape.n_heads,
        "num_hidden_layers": 1,
        "head_dim": shape.head_dim,
        "max_position_embeddings": longest,
        "rope_parameters": dict(parameters),
    }
    try:
        read = read_config(config)
    except UserError:
        return False
    made = build(parse(read.scheme), replace(shape, n_layers=1, train_length=read.train_length))
    for n, turn in ours.turns.items():
        found = _turn(made, _composition(made, 0, n))
        if found is None or not found.like(turn):
            return False
    return True
