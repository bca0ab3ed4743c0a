"""Schemes built for a model: of a Spec, or of what a person types."""

import random
from collections.abc import Mapping
from typing import Any

import torch

from pezoo.compose.scheme import Scheme
from pezoo.contract import Shape, in_float32
from pezoo.errors import UserError
from pezoo.scheme import Spec, parse


def build(spec: Spec, shape: Shape, seed: int = 0) -> Scheme:
    """Build a scheme; its own parameters are drawn from `seed`, apart from torch's global generator."""
    # Not by `seed` itself: a body drawn from that begins with the same numbers.
    own = random.Random(f"scheme {seed}").getrandbits(32)
    with torch.random.fork_rng(devices=[]), in_float32(torch.get_default_device()):
        torch.default_generator.manual_seed(own)
        return Scheme(spec, shape, seed)


def create(
    scheme: str | Mapping[str, Any],
    *,
    d_model: int,
    n_heads: int,
    n_layers: int,
    train_length: int,
    head_dim: int | None = None,
    causal: bool = True,
    seed: int = 0,
) -> Scheme:
    """Build a scheme for a model of one's own.

    Args:
        scheme: such as "rope+pi:factor=4", or a mapping.
        d_model: model width.
        n_heads: heads of each layer.
        n_layers: layers.
        train_length: tokens of a training sequence (L).
        head_dim: width of one head; default: d_model / n_heads, which must then be whole.
        causal: decoder (True) or encoder.
        seed: of the scheme's own parameters, and of its random positions.

    Raises:
        UserError: if the scheme is malformed or cannot work.
    """
    sizes = {"d_model": d_model, "n_heads": n_heads, "n_layers": n_layers, "train_length": train_length}
    sizes |= {} if head_dim is None else {"head_dim": head_dim}
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{name} must be positive, got {size}")
    if head_dim is None and d_model % n_heads:
        raise UserError(f"d_model = {d_model} is not divisible by n_heads = {n_heads}; or pass head_dim=")
    return build(parse(scheme), Shape(**sizes, causal=causal), seed)
