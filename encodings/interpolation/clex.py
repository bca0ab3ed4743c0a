"""CLEX: frequencies follow a learned differential equation in the length factor, from those of training at factor 1.

    d ln w / dt = x(t) + Down act(Up (ln w + ln v(t))) from t = 1
    v_k(t) = w_k(1) (2t - 1)^(-k/(n-1)),   x = d ln v / dt

n frequencies, k = 0 ... n - 1. Down starts at zero, and then w(t) = v(t), NTK-aware scaling by 2t - 1. One network
for all layers and heads.

Shapes: frequencies (R, n) -> the same; coordinates (R, L) -> (B, L) outside testing. Not in training; in tuning and
testing.
Tuning: t ~ U{1 ... t_max} for each sequence, which reads a sorted random subset of {0 ... T t - 1}, both ends
included, divided by max(1, floor(T / L)).
Testing: t = ceil(T / L), at most t_max, with plain coordinates. Depends on T, hence not prefix-stable; identical to
the base up to T = L.

Source: Chen, Li, Meng, Liang, Bing 2023 (arXiv 2310.16450) and the authors' code. RK4 with fixed steps, as there; x
is integrated exactly.
Departures: v is made from the encoding's own frequencies (the code's network always reads base 10 000); draws are per
sequence (the code: per batch); no factor on the logits (add `logn`); the last position of tuning is (T t - 1) / m, m =
max(1, floor(T / L)) (the code: floor(T t / m) - 1, less from T = 2 L on). t_max defaults to 16. Set `n_frequencies` for
encodings with other than head_dim / 2 frequencies. The network's first layer starts as PyTorch's linear layers do,
U(-1/sqrt(n), 1/sqrt(n)); the authors' starts smaller, within 1/sqrt(2 n width).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pezoo.contract import Encoding, Extension, Positions, Shape, Traits, to_device
from pezoo.encodings.randomized._draws import by_index, places
from pezoo.philox import subset, whole
from pezoo.registry import register, setting


@register(
    "clex",
    title="Continuous length extrapolation (CLEX)",
    year=2023,
    authors="Chen, Li, Meng, Liang, Bing",
    arxiv="2310.16450",
    equation="d ln w / dt = d ln v / dt + Down act(Up (ln w + ln v(t))),  v_k(t) = w_k (2t - 1)^(-k/(n-1))",
)
class CLEX(Extension):
    """Frequencies along a learned path in the length factor."""

    traits = Traits(
        shift_invariant=True,
        prefix_stable=False,
        random=True,
        parameters=lambda shape, c: 4 * c.width * (c.n_frequencies or max(2, shape.head_dim // 2)) ** 2,
        neutral={"max_factor": 1},
    )

    @dataclass
    class Config:
        """Settings of the equation."""

        max_factor: int = setting(16, "t_max", at_least=1)
        width: int = setting(1, "hidden units, in multiples of twice the frequencies", at_least=1)
        activation: Literal["silu", "tanh"] = setting("silu", "act")
        step: float = setting(0.1, "step of the solver", above=0, at_most=1)
        n_frequencies: int | None = setting(None, "n; unset: head_dim / 2", at_least=2)

    def __init__(self, shape: Shape, config: Config, at: tuple[str, ...] | None = None) -> None:
        super().__init__(shape, config, at)
        self.n = config.n_frequencies or max(2, shape.head_dim // 2)
        self.up = nn.Linear(self.n, config.width * 2 * self.n, bias=False)
        self.down = nn.Linear(config.width * 2 * self.n, self.n, bias=False)
        self.activation: Callable[[Tensor], Tensor] = F.silu if config.activation == "silu" else torch.tanh
        nn.init.zeros_(self.down.weight)

    def extent(self, extent: int) -> int:
        """t_max times what training would show."""
        return extent * self.config.max_factor

    def refuses(self, encoding: Encoding) -> str | None:
        """Encodings with no frequencies, or with another number of them."""
        inv_freq, name = encoding.inv_freq(), encoding.name
        if inv_freq is None:
            return f"clex changes frequencies, and {name} has none; it works with rope"
        n = len(inv_freq)
        if n == self.n:
            return None
        return f"clex is built for {self.n} frequencies and {name} has {n}; type clex:n_frequencies={n}"

    def times(self, positions: Positions) -> Tensor:
        """t, int64, (R,)."""
        top = self.config.max_factor
        if positions.phase != "test":
            return positions.draw("clex", lambda: whole(positions.bits("clex", 1), 1, top))[:, 0]
        return to_device(torch.tensor(self.tested(positions)), positions.query.device)

    def tested(self, positions: Positions) -> list[int]:
        """The factor t in testing, for each row."""
        factors = (math.ceil(length / self.shape.train_length) for length in positions.lengths)
        return [min(max(1, t), self.config.max_factor) for t in factors]

    def same_in(self, phases: Sequence[str]) -> bool:
        """Draws outside testing only."""
        return "test" not in phases or len(phases) == 1

    def coordinates(self, positions: Positions) -> Positions:
        """Outside testing, a random subset of t times as many positions."""
        if positions.phase == "test":
            return positions
        total, place = positions.total(), places(positions)
        last = total * self.times(positions)[:, None] - 1
        bits = positions.bits("clex inner", max(1, positions.longest - 2))
        inner = F.pad(subset(bits, (total - 2).clamp(min=1), (last - 1).clamp(min=1)) + 1, (1, 1))[:, : place.shape[1]]
        drawn = torch.where(place == 0, 0, torch.where(place == total - 1, last, inner))
        drawn = torch.where(total < 3, place, drawn)
        extent = self.config.max_factor * positions.longest
        return by_index(positions, drawn / (total // self.shape.train_length).clamp(min=1), extent)

    def velocity(self, t: float, correction: Tensor, log: Tensor, exponents: Tensor) -> Tensor:
        """The network's part of d ln w / dt, where ln w = ln v(t) + correction."""
        seen = 2 * (log - exponents * math.log(2 * t - 1)) + correction
        up, down = self.up.weight.float(), self.down.weight.float()  # an error of bfloat16's size would turn far angles
        return F.linear(self.activation(F.linear(seen, up)), down)

    def path(self, log: Tensor, exponents: Tensor, last: int) -> Tensor:
        """What the network adds to ln v at t = 1 ... last, (last, R, n)."""
        correction = torch.zeros_like(log)
        path, steps = [correction], math.ceil(1 / self.config.step)
        h = 1 / steps
        for i in range((last - 1) * steps):
            t = 1 + i * h
            a = self.velocity(t, correction, log, exponents)
            b = self.velocity(t + h / 2, correction + h / 2 * a, log, exponents)
            c = self.velocity(t + h / 2, correction + h / 2 * b, log, exponents)
            d = self.velocity(t + h, correction + h * c, log, exponents)
            correction = correction + h / 6 * (a + 2 * b + 2 * c + d)
            if (i + 1) % steps == 0:
                path.append(correction)
        return torch.stack(path)

    def frequencies(self, inv_freq: Tensor, positions: Positions) -> Tensor:
        """w(t)."""
        times = self.times(positions)  # (R,)
        log = torch.where(inv_freq > 0, inv_freq, 1.0).log()  # a frequency of zero stays zero
        exponents = torch.arange(self.n, device=inv_freq.device) / (self.n - 1)
        last = max(self.tested(positions)) if positions.phase == "test" else self.config.max_factor
        path = self.path(log, exponents, last)  # (last, R', n)
        rows = torch.arange(len(times), device=times.device) % path.shape[1]
        correction = path[times - 1, rows] if len(times) >= path.shape[1] else path[times - 1][0]
        scaled = -exponents * (2 * times[:, None] - 1).float().log()
        return inv_freq * (scaled + correction).exp()
