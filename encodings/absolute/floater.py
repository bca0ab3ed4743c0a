"""FLOATER: position codes are points of a trajectory driven by a small network; each layer adds its own to q, k and v.

    q_i += c_q(p_i),  k_j += c_k(p_j),  v_j += c_v(p_j),    c(p) = c(0) + integral from 0 to p dt of g(t, c) dt
    g(t, c) = tanh(B [silu(A [c; t] + a); t] + b)

dt is the time between two tokens. Every layer, and q, k and v in it, has a start c(0) of its own; g is shared by all.
The authors' code keeps the sinusoid at the input besides: `sinusoidal+floater`.

Shapes: nodes (M, 2, 3, layers, H d), states and slopes, at fixed times: one Runge-Kutta step of order 4 every 0.1,
which is 10 tokens, and the cubic through states and slopes between them, for any real coordinate.
Training and testing: the same. Fixed steps make it prefix-stable. Sequential in the length.

Source: Liu, Yu, Dhillon, Hsieh 2020 (arXiv 2003.09229). dt = 0.01, Xavier-normal weights and Xavier-uniform starts as
in the authors' code, which takes five Runge-Kutta steps a token and renews its trajectory every 400 updates only.
Departures: the last tanh, which keeps growth linear past the training length, |c| <= |c(0)| + p dt; silu for relu,
smooth as the solver needs it.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pezoo.contract import Encoding, Positions, Shape, Traits, Undefined
from pezoo.registry import register, setting

STEP = 0.1
"""Time that one step of the solver covers, or one token where that is more."""


def _width(shape: Shape) -> int:
    return shape.n_heads * shape.head_dim


@register(
    "floater",
    title="Flow-based position codes (FLOATER)",
    year=2020,
    authors="Liu, Yu, Dhillon, Hsieh",
    arxiv="2003.09229",
    equation="c(p) = c(0) + int_0^{p dt} g(t, c) dt, added to q, k and v of each layer",
)
class Floater(Encoding):
    """Points of a learned trajectory, added to queries, keys and values."""

    traits = Traits(
        parameters=lambda shape, c: 3 * shape.n_layers * _width(shape) + 2 * _width(shape) * (_width(shape) + 2)
    )

    @dataclass
    class Config:
        """Settings of the trajectory."""

        step: float = setting(0.01, "time between two tokens (dt)", above=0)

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        width = _width(shape)
        self.start = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3, shape.n_layers, width)))
        self.hidden, self.out = nn.Linear(width + 1, width), nn.Linear(width + 1, width)
        for linear in (self.hidden, self.out):
            nn.init.xavier_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.span = max(1, round(STEP / config.step))  # tokens between two nodes

    def check(self, positions: Positions) -> None:
        """Raise `Undefined` for coordinates before the start of the trajectory."""
        where = positions if positions.causal else positions.of_keys()  # an encoder sees keys that are no queries
        if not where.within(0, math.inf):
            raise Undefined(f"floater starts at 0; coordinate {where.smallest():g} has no value")

    def prepare(self, positions: Positions) -> Tensor:
        """States and slopes (a node apart) at 0, span, 2 span ... past the largest coordinate, float32."""
        if positions.spacing is None and positions.bounds is not None:
            largest = positions.bounds[1]
        else:  # keys of an encoder, or of other documents, may lie further than queries
            largest = positions.of_keys().largest()
        n_steps, h = max(1, math.ceil(largest / self.span)), self.span * self.config.step
        times = torch.arange(2 * n_steps + 1, device=self.start.device) * (h / 2)
        # What time adds to each layer of the network, at all times at once: the steps are many, and small.
        (a, at), (b, bt) = (
            (m.weight[:, :-1].float().T, (m.bias.float() + times[:, None] * m.weight[:, -1].float()).unbind())
            for m in (self.hidden, self.out)
        )

        def slope(half_steps: int, c: Tensor) -> Tensor:
            return torch.addmm(bt[half_steps], F.silu(torch.addmm(at[half_steps], c, a)), b).tanh()

        states, slopes = [self.start.float().flatten(0, 1)], list[Tensor]()
        for i in range(0, 2 * n_steps, 2):
            c = states[-1]
            one = slope(i, c)
            two = slope(i + 1, torch.add(c, one, alpha=h / 2))
            three = slope(i + 1, torch.add(c, two, alpha=h / 2))
            four = slope(i + 2, torch.add(c, three, alpha=h))
            total = torch.add(one + four, two + three, alpha=2)
            slopes.append(one)
            states.append(torch.add(c, total, alpha=h / 6))
        slopes.append(slope(2 * n_steps, states[-1]))
        return torch.stack((torch.stack(states), torch.stack(slopes) * h), dim=1).unflatten(2, self.start.shape[:2])

    def _code(self, which: int, coordinates: Tensor, positions: Positions) -> Tensor:
        """Codes of this layer for q (0), k (1) or v (2) at coordinates (R, L), (R, H, L, d)."""
        nodes = positions.prepared[:, :, which, positions.layer]
        place = coordinates / self.span
        low = place.floor().clamp(max=len(nodes) - 2)
        x, low = (place - low)[..., None], low.long()
        state, slope = nodes.unbind(1)
        codes = state[low] * (1 + 2 * x) * (1 - x) ** 2 + state[low + 1] * (3 - 2 * x) * x**2
        codes = codes + slope[low] * x * (1 - x) ** 2 - slope[low + 1] * x**2 * (1 - x)
        return codes.unflatten(-1, (self.shape.n_heads, -1)).transpose(1, 2)

    def rotate(self, q: Tensor, k: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
        """Add c_q to q and c_k to k."""
        q = q + self._code(0, positions.query, positions).to(q.dtype)
        return q, k + self._code(1, positions.key, positions).to(k.dtype)

    def change_values(self, v: Tensor, positions: Positions) -> Tensor:
        """Add c_v to v."""
        return v + self._code(2, positions.key, positions).to(v.dtype)
