"""FIRE: a small network maps the distance, relative to how far the query stands from the start, to a bias.

    l_ij^h = q_i . k_j / sqrt(d) + MLP( psi(p_i - p_j) / (psi(max(p_i - p_0, T)) + eps) )_h
    psi(x) = ln(|c| x + 1),   T = |m T_0|

p_0 is the coordinate of the document's first token, MLP: 1 -> width -> H with one ReLU; c and m are learned. In a
decoder the argument stays in [0, 1]. The released DAPE has a leaky ReLU (slope 0.01) in its FIRE:
`activation=leaky_relu`.

Shapes: bias (R, H, Lq, Lk), of position pairs: of distance alone only while p_i - p_0 <= T. Each layer has a network
of its own; `shared` is FIRE-S.
Training and testing: the same.

Source: Li et al. 2023 (arXiv 2310.04418). c = 0.1, m = 1, eps = 1e-6, width 32.
Departures: p_i - p_0 for p_i, so that shifted, packed and random positions keep the argument in [0, 1]; T_0 defaults
to the training length (512 in the paper). In an encoder the distance is taken without its sign, and divided by what
the query's place gives: beyond T the argument passes 1 for keys far ahead, and the bias of a pair is not that of the
pair with query and key exchanged. Where a far region sets coordinates of its own, as that of `rerope`, the query is at
the region's coordinate in the divisor too, at w there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pezoo.contract import Encoding, Positions, Shape, Traits
from pezoo.registry import register, setting

SHORT, FEW = 256, 2**12
"""Tokens of a text, and pairs of a slice of it, up to which the network is asked for each pair."""


@register(
    "fire",
    title="Functional interpolation for relative positions (FIRE)",
    year=2023,
    authors="Li, You, Guruganesh, Ainslie, Ontanon, Zaheer, Sanghai, Yang, Kumar, Bhojanapalli",
    arxiv="2310.04418",
    equation="l_ij = q_i.k_j / sqrt(d) + MLP(psi(i - j) / psi(max(i, T)))_h,  psi(x) = ln(|c| x + 1)",
    aliases={"fire_shared": ("fire:shared=true", "FIRE-S")},
)
class FIRE(Encoding):
    """A small network from the relative distance to a bias for each head."""

    # Coordinates enter as differences only, to each other and to the document's start: a constant changes nothing.
    traits = Traits(
        shift_invariant=True,
        bidirectional=False,
        parameters=lambda shape, c: 2 * c.width + (c.width + 1) * shape.n_heads + 2,
        deviations={
            "every_row_learns": "a ReLU may be off at every distance",
            "every_parameter_learns": "softmax ignores the offset of the last layer, which is the paper's",
        },
    )

    @dataclass
    class Config:
        """Settings of the network."""

        width: int = setting(32, "hidden units", at_least=1)
        threshold: float | None = setting(None, "T_0; unset: the training length", above=0)
        shared: bool = setting(False, "one network for all layers")
        activation: Literal["relu", "leaky_relu"] = setting("relu", "leaky_relu: as in the released DAPE")

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        act = nn.ReLU() if config.activation == "relu" else nn.LeakyReLU(0.01)
        self.network = nn.Sequential(nn.Linear(1, config.width), act, nn.Linear(config.width, shape.n_heads))
        self.c = nn.Parameter(torch.tensor([0.1]))
        self.m = nn.Parameter(torch.tensor([1.0]))

    @classmethod
    def per_layer(cls, config: Config) -> bool:
        """Each layer has a network of its own, unless shared."""
        return not config.shared

    def psi(self, x: Tensor) -> Tensor:
        """ln(|c| x + 1)."""
        return torch.log1p(self.c.abs() * x)

    def bias(self, positions: Positions) -> Tensor:
        """The network's output for every pair, (R, H, Lq, Lk)."""
        threshold = (self.m * (self.config.threshold or self.shape.train_length)).abs()
        reach = self.psi(torch.maximum(positions.query - positions.origin(), threshold)) + 1e-6  # (R, Lq)
        if _regular(positions):
            return self._in_pieces(reach[0], positions)
        distance = positions.distance()
        distance = distance.clamp(min=0) if positions.causal else distance.abs()
        argument = self.psi(distance) / reach[..., None]
        # In float32: near distances far from the start are a small part of the argument.
        a, b, c, d = self._weights()
        return F.linear(self.network[1](F.linear(argument[..., None], a, b)), c, d).movedim(-1, 1)

    def _weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weight and bias of both layers, float32."""
        first, _, last = self.network
        a, b, c, d = (getattr(layer, name).float() for layer in (first, last) for name in ("weight", "bias"))
        return a, b, c, d

    def _in_pieces(self, reach: Tensor, positions: Positions) -> Tensor:
        """The same of many regular pairs, (1, H, Lq, Lk): the network, of one number, is linear between its bends.

        A bend in the argument at t is one of distance, at psi(distance) = t psi(reach), and little different from query
        to query. Nearer than for each of them its hidden unit is off, and farther it is on: there the bias is

            constant(distance) + slope(distance) / psi(reach)

        with two rows of numbers per head. Between, where some are on, the unit is added for each pair.
        """
        n_queries, n_keys = positions.query.shape[1], positions.key.shape[1]
        assert positions.spacing is not None
        steps = positions.offset + n_queries - 1 - torch.arange(n_queries + n_keys - 1)  # the largest first
        psi = self.psi((steps * positions.spacing[1]).clamp(min=0))
        a, b, c, d = self._weights()
        # relu(z) = relu(-z) + z: all units are turned so that they go on as the argument grows.
        leak = 0.0 if self.config.activation == "relu" else 0.01
        turned = torch.where(a[:, 0] < 0, -1.0, 1.0)
        weight, bias, hinge = turned * a[:, 0], turned * b, c * (1 - leak)
        always = torch.where(turned < 0, c, c * leak)
        with torch.no_grad():
            bends = -bias / weight.clamp(min=1e-30)
            on, some = (
                torch.searchsorted(-psi, -bends * edge, right=right)
                for edge, right in ((reach.max(), True), (reach.min(), False))
            )  # columns where each unit is on for all queries; with those where it is for some
            near = (torch.arange(len(psi)) < on[:, None]).float()
            spans = [(unit, *ends) for unit, ends in enumerate(zip(on.tolist(), some.tolist(), strict=True))]
        constant = d[:, None] + (always @ (turned * bias))[:, None] + (hinge * bias) @ near
        slope = ((always @ (turned * weight))[:, None] + (hinge * weight) @ near) * psi
        inputs = (1 / reach, psi, constant, slope, weight, bias, hinge)
        pairs: Tensor = _Pairs.apply([s for s in spans if s[1] < s[2]], *inputs)  # type: ignore[no-untyped-call]
        return pairs[None]


Span = tuple[int, int, int]
"""A unit, and the columns [start, stop) where it is on for some queries."""


class _Pairs(torch.autograd.Function):
    """constant + share slope of queries and distances, and units where they are on for some queries: (H, Lq, Lk).

    Inputs: spans; share (Lq); psi (E), E = Lq + Lk - 1 distances, the largest first; constant and slope (H, E); weight
    and bias (W) of each unit, and what it adds to each head (H, W).
    """

    @staticmethod
    def forward(spans: Sequence[Span], *inputs: Tensor) -> Tensor:
        share, psi, constant, slope, weight, bias, hinge = inputs
        pairs = torch.addcmul(constant[:, None], share[:, None], slope[:, None])
        for unit, start, stop in spans:
            value = torch.relu(share[:, None] * (weight[unit] * psi[start:stop]) + bias[unit])
            pairs[..., start:stop] += hinge[:, unit, None, None] * value
        return _by_key(pairs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.spans = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        inputs, gradient = ctx.saved_tensors, upstream[0]
        if torch.is_grad_enabled():  # a graph of the gradients is wanted
            found = torch.autograd.grad(_Pairs.forward(ctx.spans, *inputs), inputs, gradient, create_graph=True)
            return None, *found
        share, psi, constant, slope, weight, bias, hinge = inputs
        pairs = gradient.new_zeros(len(constant), len(share), len(psi))
        _by_key(pairs).copy_(gradient)
        to_constant, to_slope = (torch.stack((torch.ones_like(share), share)) @ pairs).unbind(1)
        to_share = (pairs @ slope[..., None]).sum(0)[:, 0]
        to_psi, to_weight, to_bias, to_hinge = map(torch.zeros_like, (psi, weight, bias, hinge))
        for unit, start, stop in ctx.spans:
            some, near = pairs[..., start:stop], weight[unit] * psi[start:stop]
            value = torch.relu(share[:, None] * near + bias[unit])
            to_hinge[:, unit] = (some * value).sum((1, 2))
            change = torch.einsum("h,hqe->qe", hinge[:, unit], some) * (value > 0)
            of_share, of_distance = change @ near, share @ change
            to_share += of_share
            to_psi[start:stop] += weight[unit] * of_distance
            to_weight[unit] = of_distance @ psi[start:stop]
            to_bias[unit] = change.sum()
        return None, to_share, to_psi, to_constant, to_slope, to_weight, to_bias, to_hinge


def _by_key(pairs: Tensor) -> Tensor:
    """(H, Lq, Lq + Lk - 1) by distance, the largest first, as a view by key: (H, Lq, Lk).

    Query i and key j are at Lq - 1 - i + j, so rows that begin one place earlier each show keys.
    """
    n_heads, n_queries, width = pairs.shape
    size, strides = (n_heads, n_queries, width + 1 - n_queries), (n_queries * width, width - 1, 1)
    return pairs.as_strided(size, strides, n_queries - 1)


def _regular(positions: Positions) -> bool:
    """Whether there are many pairs, at regular coordinates, of one document, on a CPU, where bends can be looked at."""
    on_host = positions.query.device.type == "cpu" and not torch.compiler.is_compiling()
    many = max(positions.lengths, default=0) > SHORT and positions.query.shape[1] * positions.key.shape[1] > FEW
    ahead = positions.causal and positions.spacing is not None and positions.spacing[1] > 0
    return on_host and many and ahead and positions.ruler is None
