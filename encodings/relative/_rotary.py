"""Turning pairs of channels by an angle: what RoPE and its relatives share."""

import torch
from torch import Tensor


def rotary_frequencies(width: int, base: float) -> Tensor:
    """base^(-2k/width) for k = 0 ... width/2 - 1, float32."""
    return (base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)).float()


def turns(angles: Tensor) -> Tensor:
    """exp(i p w_k), complex64: angles p w_k (R, L, n) -> (R, 1, L, n), one axis for the heads."""
    return torch.polar(torch.ones_like(angles), angles)[:, None]


def turn(x: Tensor, by: Tensor, pairing: str) -> Tensor:
    """Multiply pairs of the first 2n channels of x (B, H, L, d) by complex numbers (R, 1, L, n); the rest pass through.

    Pairs are channels (2k, 2k+1) if interleaved, (k, k+n) if half. Computed in float32, returned in the dtype of x.
    """
    n = by.shape[-1]
    head, rest = x[..., : 2 * n].float(), x[..., 2 * n :]
    pairs = head.unflatten(-1, (n, 2)) if pairing == "interleaved" else head.unflatten(-1, (2, n)).transpose(-1, -2)
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * by)
    turned = turned if pairing == "interleaved" else turned.transpose(-1, -2)
    turned = turned.flatten(-2).to(x.dtype)
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned
