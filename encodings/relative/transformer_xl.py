"""Transformer-XL: queries meet a projected sinusoid of the distance; learned vectors replace their positions.

    l_ij = ((q_i + u) . k_j + (q_i + v) . W R(p_i - p_j)) / sqrt(d)
    R(n) = [sin(n w_0) ... sin(n w_(D/2-1)), cos(n w_0) ... cos(n w_(D/2-1))],   w_k = base^(-2k/D)

W: projection of each layer from the sinusoid to a head, without bias; u, v: learned for each head.

Shapes: content (B, H, Lq, Lk). With (a, b) = W^T (q_i + v), of sines and of cosines, the position term is sum_k a_k
sin(n w_k) + b_k cos(n w_k), n = p_i - p_j. By the angle sum formulas that is a product of (a, b), turned by p_i, with
the sinusoid of p_j: any real coordinates, and no table of distances. Where coordinates are regular and many, W R(n) is
made once of each distance, and products with it are sheared (`_shear`).
Training and testing: the same; nothing is clipped. Segment recurrence is a matter of its own.

Source: Dai, Yang, Yang, Carbonell, Le, Salakhutdinov 2019 (arXiv 1901.02860), section 3.3. All start from N(0,
0.02^2).
Departures: none. u and v are shared by all layers as in the paper; `untie=true` gives each layer its own, an option
of the authors' TensorFlow code. Frequencies are open to extensions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pezoo.contract import Encoding, Positions, Shape, Traits
from pezoo.encodings.absolute.sinusoidal import sinusoid_frequencies
from pezoo.encodings.relative._shear import by_query, counted, fits
from pezoo.registry import register, setting


def _count(shape: Shape, config: "TransformerXL.Config") -> int:
    width, sines = shape.n_heads * shape.head_dim, 2 * -(-shape.d_model // 2)
    return shape.n_layers * width * sines + 2 * (shape.n_layers if config.untie else 1) * width


@register(
    "transformer_xl",
    title="Transformer-XL relative encoding",
    year=2019,
    authors="Dai, Yang, Yang, Carbonell, Le, Salakhutdinov",
    arxiv="1901.02860",
    equation="l_ij = ((q_i + u).k_j + (q_i + v).W R[i - j]) / sqrt(d),  R: sinusoid",
)
class TransformerXL(Encoding):
    """Products of queries with a projected sinusoid of the distance."""

    traits = Traits(shift_invariant=True, parameters=_count)

    @dataclass
    class Config:
        """Settings of the sinusoid and of sharing."""

        base: float = setting(10000.0, "wavelengths grow from 2 pi to 2 pi base", above=1)
        untie: bool = setting(False, "u and v of its own for each layer")

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        heads = (shape.n_heads, shape.head_dim)
        sines = 2 * len(self.inv_freq())
        self.project = nn.Parameter(torch.randn(shape.n_layers, *heads, sines) * 0.02)  # W
        copies = shape.n_layers if config.untie else 1
        self.u = nn.Parameter(torch.randn(copies, *heads) * 0.02)
        self.v = nn.Parameter(torch.randn(copies, *heads) * 0.02)

    def inv_freq(self) -> Tensor:
        """Frequencies w_k, (ceil(D / 2),)."""
        return sinusoid_frequencies(self.shape, self.config.base)

    def prepare(self, positions: Positions) -> Tensor | tuple[Tensor, int]:
        """Sines and cosines, (R, 1, M, 2n), of the keys' coordinates, or of a ruler's signed distances.

        Where distances follow from places: W R of each layer, (layers, H, m, d), for distances from the largest down,
        and which that is.
        """
        coordinates = positions.key
        if positions.ruler is not None:
            coordinates = torch.cat((-positions.ruler[:, 1:].flip(1), positions.ruler), dim=1)
        elif fits(positions) and len(positions.key) == 1 == len(positions.angles(positions.key[:, :1])):
            distances, most = counted(positions, torch.inf)
            return _sinusoid(positions.angles(distances[None]))[0] @ self.project.float().mT, most
        return _sinusoid(positions.angles(coordinates))

    def content(self, q: Tensor, k: Tensor, positions: Positions) -> Tensor:
        """(u . k_j + (q_i + v) . W R(p_i - p_j)) / sqrt(d)."""
        layer = positions.layer
        u, v = (x[layer % len(x), :, None].float() for x in (self.u, self.v))
        if isinstance(positions.prepared, tuple):
            tables, most = positions.prepared
            position = by_query((q.float() + v) * self.scale(), tables[layer], most, positions)
            of_keys = (u * self.scale()) @ k.float().mT  # one number per key and head
            return position + of_keys if position.requires_grad else position.add_(of_keys)
        a = (q.float() + v) @ self.project[layer].float()  # (B, H, Lq, 2n): of each sine and each cosine
        if positions.ruler is None:
            sine, cosine = _sinusoid(positions.angles(positions.query)).chunk(2, dim=-1)
            a, b = a.chunk(2, dim=-1)
            turned = torch.cat((b * sine - a * cosine, a * sine + b * cosine), dim=-1)
            position = turned @ positions.prepared[..., : k.shape[-2], :].transpose(-1, -2)
        else:
            products = a @ positions.prepared.transpose(-1, -2)  # (B, H, Lq, 2M - 1)
            steps = positions.steps()[:, None] + positions.prepared.shape[-2] // 2
            position = products.gather(-1, steps.expand(*products.shape[:-1], -1))
        return (u @ k.float().transpose(-1, -2) + position) * self.scale()


def _sinusoid(angles: Tensor) -> Tensor:
    """Sines, then cosines, of angles (R, L, n): (R, 1, L, 2n), one axis for the heads."""
    return torch.cat((angles.sin(), angles.cos()), dim=-1)[:, None]
