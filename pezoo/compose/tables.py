"""Cosines and sines of a rotary scheme, for attention that is not pezoo's.

Legend: H heads, L length, d head_dim, n pairs of channels that turn.
"""

import math

import torch
from torch import Tensor

from pezoo.composition import Composition, Part
from pezoo.contract import Encoding, Extension, in_float32, overrides
from pezoo.errors import UserError

_NONE = "no tables of cosines and sines"
_BESIDE = {
    "embed": "changes the token embeddings",
    "read": "reads the layer's input",
    "product": "replaces q k^T",
    "scale": "sets the scale of the logits",
    "content": "adds logits that read q or k",
    "bias": "adds a bias",
    "distance_bias": "adds a bias",
    "normalise": "replaces the softmax",
    "change_values": "changes the values",
    "mix": "changes the values",
    "branches": "has a far region",
    "sink": "has a sink",
    "mask": "masks keys",
    "adapt": "changes the logits as a whole",
}
"""What members do, by hook, beside turning queries and keys."""


def beside(composition: Composition, *allowed: str) -> str | None:
    """What the members of a layer do beside turning queries and keys and what is allowed, in words; None if nothing."""
    for member in (*(p.encoding for p in composition.base), *composition.extensions):
        kind = Extension if isinstance(member, Extension) else Encoding
        for hook, does in _BESIDE.items():
            # An extension's `scale` is a temperature, which is looked at by its value.
            known = hasattr(kind, hook) and not (kind is Extension and hook == "scale")
            if known and hook not in allowed and overrides(member, hook):
                return f"{member.name} {does}"
    return None


def rope_tables(composition: Composition, beside_mods: bool) -> tuple[Tensor, Tensor]:
    """What `Scheme.rope_tables` returns, for one group of heads."""
    allowed = ("scale", "bias", "distance_bias", "mask") if beside_mods else ()
    reason = beside(composition, *allowed)
    turning = [p for p in composition.base if overrides(p.encoding, "rotate")]
    if reason is None and len(turning) != 1:
        names = " and ".join(p.encoding.name for p in turning)
        reason = f"{names} turn one after the other" if turning else "nothing turns"
    if reason is not None:
        raise UserError(f"{_NONE}: {reason}")
    with in_float32(composition.positions.query.device):
        found = _turned(turning[0])
        magnitude = 1.0 if beside_mods else _magnitude(composition)
    name, d = turning[0].encoding.name, turning[0].encoding.shape.head_dim
    if found is None:
        raise UserError(f"{_NONE}: {name} does not just turn pairs of channels, queries and keys alike")
    cos, sin = found
    if magnitude != 1 and cos.shape[-1] < d:
        raise UserError(
            f"{_NONE}: the temperature, {magnitude**2:g}, acts on the whole head, and only {cos.shape[-1]} of its {d} "
            "channels turn"
        )
    return cos * magnitude, sin * magnitude


def _magnitude(composition: Composition) -> float:
    """The square root of the temperature, which q and k both get.

    Raises:
        UserError: if queries or heads have different ones.
    """
    sigma = composition.sigma()
    if isinstance(sigma, Tensor):
        if not bool((sigma == sigma.flatten()[0]).all()):
            names = [e.name for e in composition.extensions if overrides(e, "scale")]
            raise UserError(f"{_NONE}: {', '.join(names)} scales queries or heads apart")
        sigma = float(sigma.flatten()[0])
    return math.sqrt(sigma)


def _turned(part: Part) -> tuple[Tensor, Tensor] | None:
    """Cosines and sines by which an encoding turns pairs, (L, 2n), read from what it does; None if it does more."""
    positions, d = part.positions, part.encoding.shape.head_dim
    if positions.inv_freq is None:
        return None
    n, length, device = positions.inv_freq.shape[-1], positions.query.shape[1], positions.query.device
    if 2 * n > d:
        return None
    channels = torch.arange(2 * n, device=device)
    layouts = {"half": channels.view(2, n), "interleaved": channels.view(n, 2).T}

    def turn(ones: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.zeros(1, 1, length, d, device=device)
        x[..., ones] = 1.0
        q, k = part.encoding.rotate(x, x, positions)
        return q[0, 0], k[0, 0]

    for layout, (first, second) in layouts.items():
        (q, k), (back, _) = turn(first), turn(second)
        if q.shape != (length, d) or not torch.equal(q, k):
            return None
        cos, sin = q[:, first], q[:, second]
        circle = torch.allclose(cos**2 + sin**2, torch.ones_like(cos), atol=1e-5)
        if circle and torch.equal(back[:, first], -sin) and torch.equal(back[:, second], cos):
            if layout == "half":
                return torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
            return cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)
    return None
