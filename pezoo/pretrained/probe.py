"""A look at what a model does to its queries and keys, since configs do not state it.

The model reads a few tokens twice, as it is and without its rotation, and what its attention gets is written down. The
attention gives zeros meanwhile, so that each layer's input is the same both times, and the two differ by the rotation
alone.

Legend: B batch, H heads, L tokens, d head_dim.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from pezoo.errors import UserError
from pezoo.pretrained.seam import NoRotation

NAME = "pezoo_probe"
LENGTH = 12
"""Tokens that are read."""


@dataclass
class Heads:
    """What the attention of one layer got: queries and keys, (B, H, L, d) and (B, Hkv, L, d), float32."""

    module: nn.Module
    q: Tensor
    k: Tensor
    width: int  # of the values
    scaling: float
    carries: bool  # whether a keyword that the model does not know came through

    def logits(self) -> Tensor:
        """Scaled products, (B, H, L, L)."""
        k = self.k.repeat_interleave(self.q.shape[1] // self.k.shape[1], dim=1)
        return self.q @ k.transpose(-1, -2)


@dataclass
class Look:
    """What was seen: the same layers with the model's rotation and without, and at which positions."""

    turned: list[Heads]
    plain: list[Heads]
    position_ids: Tensor
    rotary: list[str] = field(default_factory=list)  # names of the rotary modules


@contextmanager
def without_rotation(base: nn.Module, names: list[str]) -> Iterator[None]:
    """Put the rotary modules aside, and bring them back."""
    put_aside(base, names)
    try:
        yield
    finally:
        bring_back(base, names)


def put_aside(base: nn.Module, names: list[str]) -> None:
    """Have modules stand for the rotary ones that do not turn anything."""
    for name in names:
        base.set_submodule(name, NoRotation(base.get_submodule(name)))


def bring_back(base: nn.Module, names: list[str]) -> None:
    """Undo `put_aside`."""
    for name in names:
        stand_in = base.get_submodule(name)
        assert isinstance(stand_in, NoRotation)
        base.set_submodule(name, stand_in.rotary)


def rotary_modules(base: nn.Module) -> list[str]:
    """Names of the modules that make cosines and sines."""
    return [name for name, module in base.named_modules() if type(module).__name__.endswith("RotaryEmbedding")]


@torch.no_grad()
def look(model: Any, largest: int) -> Look:
    """Let the model read a few tokens at positions up to `largest`.

    Raises:
        UserError: if attention or rotation do not go through the interface of transformers.
    """
    base, device = model.base_model, model.get_input_embeddings().weight.device
    takes_positions = "position_ids" in inspect.signature(base.forward).parameters
    steps = torch.linspace(0, max(LENGTH - 1, largest), LENGTH, dtype=torch.float64)
    ids = steps.long() if takes_positions else torch.arange(LENGTH)
    ids = ids[None].to(device)
    tokens = (torch.arange(LENGTH, device=device)[None] * 7 + 1) % model.get_input_embeddings().weight.shape[0]
    reading: dict[str, Any] = {"input_ids": tokens, "use_cache": False, PROBE: True}
    reading |= {"position_ids": ids} if takes_positions else {}
    found: list[Heads] = []

    def record(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        scaling = kwargs.get("scaling") or q.shape[-1] ** -0.5
        heads = q.float().cpu(), k.float().cpu()
        found.append(Heads(module, *heads, v.shape[-1], scaling, PROBE in kwargs))
        return q.new_zeros(len(q), q.shape[2], q.shape[1], v.shape[-1]).to(v.dtype), None

    AttentionInterface.register(NAME, record)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    before, training, names = model.config._attn_implementation, model.training, rotary_modules(base)
    states = {name: _state(base.get_submodule(name)) for name in names}
    model.eval().set_attn_implementation(NAME)
    try:
        base(**reading)
        # Norms with weights of their own, so that one which stands after the rotation shows.
        changed = _uneven(base, [heads.module for heads in found])
        found.clear()
        functional_call(base, changed, (), reading)
        turned, found = found, []
        with without_rotation(base, names):
            functional_call(base, changed, (), reading)
        return Look(turned, found, ids.cpu(), names)
    finally:
        model.train(training).set_attn_implementation(before)
        for name, state in states.items():
            vars(base.get_submodule(name)).update(state)


PROBE = "pezoo_probe_came_through"


def _state(module: nn.Module) -> dict[str, Any]:
    """All that a rotary module may change while it runs."""
    kept = dict(vars(module))
    kept["_buffers"] = {name: None if b is None else b.clone() for name, b in module._buffers.items()}
    return kept


def _uneven(base: nn.Module, modules: list[nn.Module]) -> dict[str, Tensor]:
    """The weights of norms within attention, made to differ from channel to channel."""
    inside = {id(p) for m in modules for n, p in m.named_parameters() if "norm" in n and p.ndim == 1}
    return {
        name: p * torch.linspace(0.5, 1.5, len(p), device=p.device, dtype=p.dtype)
        for name, p in base.named_parameters()
        if id(p) in inside
    }


__all__ = ["Heads", "Look", "UserError", "bring_back", "look", "put_aside", "rotary_modules", "without_rotation"]
