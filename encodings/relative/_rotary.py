"""Turning pairs of channels by an angle: what RoPE and its relatives share."""

from typing import Any

import torch
from torch import Tensor

from pezoo.contract import in_float32


def rotary_frequencies(width: int, base: float) -> Tensor:
    """base^(-2k/width) for k = 0 ... width/2 - 1, float32."""
    return (base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)).float()


def turns(angles: Tensor) -> Tensor:
    """exp(i p w_k), complex64: angles p w_k (R, L, n) -> (R, 1, L, n), one axis for the heads."""
    return torch.polar(torch.ones_like(angles), angles)[:, None]


def turn(x: Tensor, by: Tensor) -> Tensor:
    """Multiply pairs (2k, 2k+1) of the first 2n channels of x (B, H, L, d) by complex numbers (R, 1, L, n).

    The rest pass through. Computed in float32, returned in the dtype of x.
    """
    n = by.shape[-1]
    if 2 * n < x.shape[-1]:
        return torch.cat((turn(x[..., : 2 * n], by), x[..., 2 * n :]), dim=-1)
    pairs = x.float().unflatten(-1, (n, 2)).contiguous()
    return torch.view_as_real(torch.view_as_complex(pairs) * by).flatten(-2).to(x.dtype)


def half_turns(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines, twice, and sines of angles (R, L, n): (R, 1, L, 2n) and (R, 1, L, n)."""
    cos = angles.cos()[:, None]
    return torch.cat((cos, cos), dim=-1), angles.sin()[:, None]


def turn_halves(x: Tensor, by: tuple[Tensor, Tensor]) -> Tensor:
    """Turn pairs (k, k + n) of the first 2n channels of x (B, H, L, d) by the angles of `half_turns`.

    The rest pass through. Computed in float32, returned in the dtype of x.
    """
    cos, sin = by
    width = cos.shape[-1]
    if width < x.shape[-1]:
        return torch.cat((turn_halves(x[..., :width], by), x[..., width:]), dim=-1)
    head = x.float()
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and (cos.requires_grad or sin.requires_grad)):
        turned = _by_formula(head, cos, sin)
    elif torch.is_grad_enabled() and x.requires_grad:
        turned = _TurnHalves.apply(head, cos, sin)  # type: ignore[no-untyped-call]
    else:
        turned = _turned(head, cos, sin)
    return turned.to(x.dtype)


def _by_formula(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b * sin, a * sin), dim=-1)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    if torch._C._functorch.is_batchedtensor(x):  # `vmap` has no place for what follows
        return _by_formula(x, cos, sin)
    n = sin.shape[-1]
    turned = torch.mul(x, cos, out=x.new_empty(x.shape))
    turned[..., :n].addcmul_(x[..., n:], sin, value=-1)
    turned[..., n:].addcmul_(x[..., :n], sin)
    return turned


class _TurnHalves(torch.autograd.Function):
    """The same without a copy of the halves; its gradient is turned back."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return _turned(x, cos, sin)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        with in_float32(cos.device):
            return _TurnHalves.apply(gradients[0], cos, -sin), None, None  # type: ignore[no-untyped-call]
