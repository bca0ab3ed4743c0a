"""FLOATER: position codes are points of a trajectory driven by a small network; each layer adds its own to q, k and v.

    c(p) = c(0) + integral from 0 to p dt of g(t, c(t)) dt,    q_i += c_q(p_i),  k_j += c_k(p_j),  v_j += c_v(p_j)
    g(t, c) = tanh(B [relu(A [c; t] + a); t] + b)

dt is the time between two tokens. Every layer, and q, k and v in it, has a start c(0) of its own; g is shared by all.
The authors' code keeps the sinusoid at the input besides: `sinusoidal+floater`.

Shapes: trajectory (T + 1, 3, layers, D) on whole coordinates, with one Runge-Kutta step of order 4 between two;
linear for coordinates between them.
Training and testing: the same. Fixed steps make it prefix-stable. Sequential in T.

Source: Liu, Yu, Dhillon, Hsieh 2020 (arXiv 2003.09229). dt = 0.1; the authors' code takes 0.01, in five steps, and
refreshes the trajectory every 400 updates only. Xavier-normal weights, Xavier-uniform starts, as there.
Departures: the last tanh, which keeps growth linear past the training length (|c| <= |c(0)| + p dt).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pezoo.contract import Encoding, Positions, Shape, Traits, Undefined
from pezoo.encodings.absolute.learned import read_rows
from pezoo.registry import register, setting


@register(
    "floater",
    title="Flow-based position codes (FLOATER)",
    year=2020,
    authors="Liu, Yu, Dhillon, Hsieh",
    arxiv="2003.09229",
    equation="c(p) = c(0) + int_0^{p dt} g(t, c(t)) dt, added to q, k and v of each layer",
)
class Floater(Encoding):
    """Points of a learned trajectory, added to queries, keys and values."""

    traits = Traits(
        parameters=lambda shape, c: 3 * shape.n_layers * shape.d_model + 2 * shape.d_model * (shape.d_model + 2)
    )

    @dataclass
    class Config:
        """Settings of the trajectory."""

        step: float = setting(0.1, "time between two tokens (dt)", above=0)

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        width = shape.d_model
        self.start = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3, shape.n_layers, width)))
        self.hidden, self.out = nn.Linear(width + 1, width), nn.Linear(width + 1, width)
        for linear in (self.hidden, self.out):
            nn.init.xavier_normal_(linear.weight)
            nn.init.zeros_(linear.bias)

    def check(self, positions: Positions) -> None:
        """Raise `Undefined` for coordinates before the start of the trajectory."""
        if positions.smallest() < 0:
            raise Undefined(f"floater starts at 0; coordinate {positions.smallest():g} has no value")

    def prepare(self, positions: Positions) -> Tensor:
        """The trajectory at 0, 1, 2 ... up to the largest coordinate, (T + 1, 3, layers, D), float32."""
        largest = positions.largest()
        if positions.spacing is None:  # keys of other documents may lie further
            largest = max(largest, float(positions.key.max()))
        layers = [(m.weight[:, :-1].float(), m.weight[:, -1].float(), m.bias.float()) for m in (self.hidden, self.out)]
        (a, a_time, a_bias), (b, b_time, b_bias) = layers

        def slope(t: float, c: Tensor) -> Tensor:
            return F.linear(F.linear(c, a, a_bias + t * a_time).relu(), b, b_bias + t * b_time).tanh()

        c, dt = self.start.float(), self.config.step
        points = [c]
        for i in range(math.ceil(largest)):
            t = i * dt
            one = slope(t, c)
            two = slope(t + dt / 2, c + dt / 2 * one)
            three = slope(t + dt / 2, c + dt / 2 * two)
            c = c + dt / 6 * (one + 2 * two + 2 * three + slope(t + dt, c + dt * three))
            points.append(c)
        return torch.stack(points)

    def _code(self, which: int, coordinates: Tensor, positions: Positions) -> Tensor:
        """Codes of this layer for q (0), k (1) or v (2) at coordinates (R, L), (R, H, L, d)."""
        codes = read_rows(positions.prepared[:, which, positions.layer], coordinates)
        return codes.unflatten(-1, (self.shape.n_heads, -1)).transpose(1, 2)

    def rotate(self, q: Tensor, k: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
        """Add c_q to q and c_k to k."""
        q = q + self._code(0, positions.query, positions).to(q.dtype)
        return q, k + self._code(1, positions.key, positions).to(k.dtype)

    def mix(self, weights: Tensor, v: Tensor, positions: Positions) -> Tensor:
        """Apply the weights to v + c_v."""
        return weights @ (v + self._code(2, positions.key, positions).to(v.dtype))
