"""A look at what a model does to its queries and keys, since configs do not state it.

The model reads a few tokens, as it is and without its rotation, and what its attention gets is written down. The
attention gives zeros meanwhile, so that each layer's input is the same both times, and the two differ by the rotation
alone.

Legend: B batch, H heads, L tokens, d head_dim.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from pezoo.errors import UserError
from pezoo.pretrained.seam import bring_back, decoder_of, put_aside, rotary_modules

NAME = "pezoo_probe"
"""What the attention that writes down is registered as, and a keyword that no model knows."""
LENGTH = 12
"""Tokens that are read."""
KNOWN = {"s_aux", "position_ids", "cache_position", "position_embeddings", "hidden_states"}
"""Tensors that a model may hand to its attention beside queries, keys, values and the mask."""


@dataclass
class Heads:
    """What the attention of one layer got: queries (B, H, L, d) and keys (B, Hkv, L, d), float32, on the host."""

    module: nn.Module
    q: Tensor
    k: Tensor
    width: int  # of the values
    half: bool  # whether they came in half precision
    carries: bool  # whether a keyword that the model does not know came through
    unknown: list[str]  # tensors for which a scheme has no place

    def logits(self) -> Tensor:
        """Products of queries and keys, (B, H, L, L)."""
        return self.q @ self.k.repeat_interleave(self.q.shape[1] // self.k.shape[1], dim=1).mT


@dataclass
class Look:
    """What was seen: layers with the model's rotation and without, and at which positions."""

    turned: list[Heads]
    plain: list[Heads]
    position_ids: Tensor
    tables: list[str]  # names of embeddings that positions are looked up in
    absolute: bool  # whether the input of the layers knows positions

    def turns(self) -> list[bool]:
        """Which layers turn their queries."""
        return [not torch.equal(a.q, b.q) for a, b in zip(self.turned, self.plain, strict=True)]


@torch.no_grad()
def look(model: Any, largest: int) -> Look:
    """Let the model read a few tokens at positions up to `largest`.

    Raises:
        UserError: if its rotation does not go through the interface of transformers.
    """
    decoder, words = decoder_of(model), model.get_input_embeddings()
    names, device = rotary_modules(decoder), words.weight.device
    takes_positions = "position_ids" in inspect.signature(decoder.forward).parameters
    steps = torch.linspace(0, max(LENGTH - 1, largest), LENGTH, dtype=torch.float64).long()
    ids = steps[None] if takes_positions else torch.arange(LENGTH)[None]
    found: list[Heads] = []
    tables: set[str] = set()

    def record(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *mask: Any, **kwargs: Any) -> Any:
        if all(module is not heads.module for heads in found):  # some call it twice
            unknown = [n for n, given in kwargs.items() if isinstance(given, Tensor) and n not in KNOWN]
            seen = kwargs.get("attention_mask", mask[0] if mask else None)
            unknown = [n for n in unknown if n != "attention_mask"]
            if seen is not None and (seen.dtype != torch.bool or seen.shape[1] != 1):
                unknown.append("numbers for each pair")
            both, half = (q.float().cpu(), k.float().cpu()), q.dtype in (torch.float16, torch.bfloat16)
            found.append(Heads(module, *both, v.shape[-1], half, NAME in kwargs, unknown))
        return v.new_zeros(len(q), q.shape[2], q.shape[1], v.shape[-1]), None

    def read(tokens: Tensor, weights: dict[str, Tensor]) -> list[Heads]:
        found.clear()
        given = {"input_ids": tokens.to(device), "use_cache": False, NAME: True}
        given |= {"position_ids": ids.to(device)} if takes_positions else {}
        functional_call(decoder, weights, (), given)
        return list(found)

    def lookup(name: str) -> Any:
        return lambda module, args, output: tables.add(name)

    AttentionInterface.register(NAME, record)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    tokens = (torch.arange(LENGTH)[None] * 7 + 1) % words.weight.shape[0]
    before, training = model.config._attn_implementation, model.training
    states = {name: _state(decoder.get_submodule(name)) for name in names}
    others = {n: m for n, m in decoder.named_modules() if isinstance(m, nn.Embedding) and m is not words}
    hooks = [m.register_forward_hook(lookup(n)) for n, m in others.items()]
    model.eval().set_attn_implementation(NAME)
    try:
        # Norms with weights of their own, so that one which stands after the rotation shows.
        weights = _uneven(decoder, [heads.module for heads in read(tokens, {})])
        turned = read(tokens, weights)
        put_aside(decoder, names)
        try:
            plain = read(tokens, weights)
            same = read(torch.ones_like(tokens), weights)
        finally:
            bring_back(decoder, names)
    finally:
        model.train(training).set_attn_implementation(before)
        for name, state in states.items():
            vars(decoder.get_submodule(name)).update(state)
        for hook in hooks:
            hook.remove()
    absolute = any(not torch.allclose(h.k, h.k[:, :, :1], rtol=1e-3, atol=1e-5) for h in same[:1])
    return Look(turned, plain, ids, sorted(tables), absolute)


def _state(module: nn.Module) -> dict[str, Any]:
    """All that a rotary module may change while it runs."""
    kept = dict(vars(module))
    kept["_buffers"] = {name: None if b is None else b.clone() for name, b in module._buffers.items()}
    return kept


def _uneven(decoder: nn.Module, modules: list[nn.Module]) -> dict[str, Tensor]:
    """The weights of norms within attention, made to differ from channel to channel."""
    inside = {id(p) for m in modules for n, p in m.named_parameters() if "norm" in n and p.ndim == 1}
    return {
        name: p * torch.linspace(0.5, 1.5, len(p), device=p.device, dtype=p.dtype)
        for name, p in decoder.named_parameters()
        if id(p) in inside
    }


def check(look: Look, n_layers: int) -> None:
    """Refuse what no scheme can do.

    Raises:
        UserError: with the reason, which follows "cannot take a scheme:".
    """
    layers = [getattr(heads.module, "layer_idx", None) for heads in look.turned]
    missing = [i for i in range(n_layers) if i not in layers]
    if missing:
        which = ", ".join(map(str, missing))
        raise UserError(f"of its layers, {which} have no attention of queries and keys (linear or recurrent ones)")
    if layers != list(range(n_layers)):
        raise UserError(f"its attention runs in layers {layers}, where its config states {n_layers}")
    for heads in look.turned:
        if not getattr(heads.module, "is_causal", True):
            raise UserError("its attention looks ahead, as an encoder's does")
        if heads.unknown:
            raise UserError(
                f"it hands its attention {heads.unknown[0]} beside queries and keys, which a scheme has no place for"
            )
        if heads.k.shape[2] != heads.q.shape[2]:
            raise UserError("its keys are not one for each token")
    sizes = {(heads.q.shape[1], heads.q.shape[3], heads.k.shape[3], heads.width) for heads in look.turned}
    if len(sizes) > 1 or len(set(next(iter(sizes))[1:])) > 1:
        found = "; ".join(f"{n} heads of width {q} (q), {k} (k), {v} (v)" for n, q, k, v in sorted(sizes))
        raise UserError(f"its heads differ in width, or from layer to layer: {found}")
