"""LongRoPE: each frequency has a divisor of its own, found by search, one list for short texts and one for long.

    w_k -> w_k / a_k,     logits of q.k times m^2,   m = sqrt(1 + ln s / ln L)

a: the list `short` up to the training length L, `long` for declared lengths T > L (`table` fixes one of the two).
Published lists never fall with k.

Shapes: frequencies (R, n) -> the same; a list holds n factors. Not in training; in tuning and testing. s is the
setting `factor`, else max(1, T / L). The switch at L and an unset s make it not prefix-stable.

Source: Ding et al. 2024 (arXiv 2402.13753); lists, switch and m as in the released models. `search_factors` follows
the paper's search.
Departures: no tokens at the start are left unscaled (the paper's n-hat; released models have none). Lists default to
ones for short texts and to YaRN's factors for long, from which a search starts.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pezoo.contract import Encoding, Extension, Positions, Traits, to_device
from pezoo.encodings.interpolation.ntk import slow_base
from pezoo.encodings.interpolation.yarn import blend
from pezoo.registry import register, setting


def seed_factors(inv_freq: Tensor, train_length: int, factor: float) -> list[list[float]]:
    """The factors of PI, NTK and YaRN for frequencies (n,), from which a search starts."""
    row = inv_freq[None]
    slowed = (
        row / factor,
        slow_base(row, factor) if inv_freq.numel() > 1 else row / factor,
        blend(row, factor, train_length, 1.0, 32.0, "index"),
    )
    return [torch.where(new > 0, row / new, 1.0)[0].tolist() for new in slowed]


def search_factors(
    evaluate: Callable[[list[float]], float],
    inv_freq: Tensor,
    train_length: int,
    factor: float,
    *,
    population: int = 16,
    iterations: int = 8,
    parents: int = 4,
    mutation: float = 0.3,
    seed: int = 0,
) -> tuple[list[float], float]:
    """Evolve a list of factors for `longrope:long=...` that never falls, from those of PI, NTK and YaRN.

    Half of each round's candidates are mutations of a parent, half mix two parents. Factors lie in [1, 1.25 factor], in
    steps of 0.01. The paper runs 40 iterations of 64 candidates with 32 parents, by perplexity on five long texts.

    Args:
        evaluate: the loss of a list, such as validation loss at the target length; called once for each list.
        inv_freq: the encoding's frequencies, (n,).
        train_length: L.
        factor: target length over L.
        population: candidates a round.
        iterations: rounds.
        parents: how many of the best live on.
        mutation: chance that a mutation draws a factor anew.
        seed: of the search.

    Returns:
        The best list and its loss, never worse than any of the three seeds.
    """
    chance = random.Random(seed)
    losses: dict[tuple[float, ...], float] = {}

    def score(candidate: list[float]) -> tuple[float, ...]:
        rising = torch.tensor(candidate, dtype=torch.float64).clamp(1, 1.25 * factor).cummax(0).values
        key = tuple(round(value, 2) for value in rising.tolist())
        if key not in losses:
            losses[key] = evaluate(list(key))
        return key

    alive = [score(candidate) for candidate in seed_factors(inv_freq, train_length, factor)]
    for _ in range(iterations):
        alive = sorted(set(alive), key=losses.__getitem__)[:parents]
        children = []
        for i in range(population):
            one, other = chance.choice(alive), chance.choice(alive)
            if i % 2:
                children.append([chance.choice(pair) for pair in zip(one, other, strict=True)])
            else:
                top = 1.25 * factor
                children.append([chance.uniform(1, top) if chance.random() < mutation else a for a in one])
        alive += [score(child) for child in children]
    best = min(alive, key=losses.__getitem__)
    return list(best), losses[best]


@register(
    "longrope",
    title="LongRoPE",
    year=2024,
    authors="Ding, Zhang, Zhang, Xu, Shang, Xu, Yang, Yang",
    arxiv="2402.13753",
    equation="w_k -> w_k / a_k (a: searched),  q.k -> (1 + ln s / ln L) q.k",
)
class LongRoPE(Extension):
    """Frequencies divided by given factors, one list for short texts and one for long."""

    traits = Traits(shift_invariant=True, prefix_stable=False, neutral={"factor": 1})

    @dataclass
    class Config:
        """Settings of the factors."""

        factor: float | None = setting(None, "s, for m and the default of long; unset: max(1, T / L)", at_least=1)
        short: list[float] = setting([], "factors up to the training length; unset: ones", above=0)  # noqa: RUF009
        long: list[float] = setting([], "factors beyond it; unset: YaRN's", above=0)  # noqa: RUF009
        table: Literal["switch", "short", "long"] = setting("switch", "which list: by length, or always one")
        magnitude: float | None = setting(None, "m; unset: sqrt(1 + ln s / ln L)", above=0)

    @property
    def prefix_stable(self) -> bool:
        """Only with one list and a fixed factor."""
        return self.config.table != "switch" and self.config.factor is not None

    def refuses(self, encoding: Encoding) -> str | None:
        """Lists that do not have a factor for each frequency."""
        inv_freq = encoding.inv_freq()
        n = 0 if inv_freq is None else len(inv_freq)
        for name in ("short", "long"):
            given = len(getattr(self.config, name))
            if given not in (0, n):
                return f"longrope:{name} has {given} factors, but the encoding has {n} frequencies"
        return None

    def factor(self, positions: Positions) -> float | Tensor:
        """s, a number or (R, 1)."""
        return positions.factor(self.shape.train_length, self.config.factor)

    def frequencies(self, inv_freq: Tensor, positions: Positions) -> Tensor:
        """Divided frequencies, each row by its own length."""
        c, train_length = self.config, self.shape.train_length
        device = inv_freq.device
        short = inv_freq / to_device(inv_freq.new_tensor(c.short, device="cpu"), device) if c.short else inv_freq
        if c.long:
            long = inv_freq / to_device(inv_freq.new_tensor(c.long, device="cpu"), device)
        else:
            long = blend(inv_freq, self.factor(positions), train_length, 1.0, 32.0, "index")
        if c.table != "switch":
            return short if c.table == "short" else long
        if isinstance(positions.length, Tensor):
            return torch.where((positions.length > train_length)[:, None], long, short)
        return long if positions.length > train_length else short

    def scale(self, positions: Positions) -> float | Tensor:
        """m^2."""
        if self.config.magnitude is not None:
            return self.config.magnitude**2
        factor = self.factor(positions)
        log = factor.log() if isinstance(factor, Tensor) else math.log(factor)
        return 1 + log / math.log(max(2, self.shape.train_length))
