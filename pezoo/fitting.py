"""Which extension fits which encoding, read from the hooks that both override."""

from pezoo.contract import Encoding, Extension, overrides

LACKS = {
    "coordinates": "coordinates (nothing in it reads a position)",
    "frequencies": "frequencies",
    "distances": "a shift-invariant term of pairs of positions in attention",
}
"""What an encoding lacks, in words."""
_NEEDS = {"coordinates": "coordinates", "frequencies": "frequencies", "branches": "distances"}
"""What an extension that overrides a hook needs of an encoding."""


def offers(encoding: type[Encoding]) -> dict[str, bool]:
    """What an encoding has for extensions to work on, read from the hooks it overrides and its traits."""
    hooks = ("rotate", "bias", "distance_bias", "product", "content", "normalise", "change_values", "mix")
    reads = [] if encoding.traits.contextual else [h for h in ("embed", *hooks) if overrides(encoding, h)]
    in_attention = any(h in hooks for h in reads)
    return {
        "coordinates": bool(reads),
        "frequencies": overrides(encoding, "inv_freq"),
        "distances": in_attention and encoding.traits.shift_invariant,
    }


def fits(extension: type[Extension], encoding: type[Encoding]) -> str | None:
    """None if an extension has something to act on in an encoding, else what the encoding lacks."""
    offered = offers(encoding)
    needs = [need for hook, need in _NEEDS.items() if overrides(extension, hook)]
    if overrides(extension, "mask") and not offered["coordinates"]:  # nothing to move, so the mask is all of it
        return None
    lacking = [need for need in needs if not offered[need]]
    return lacking[0] if needs and len(lacking) == len(needs) else None
