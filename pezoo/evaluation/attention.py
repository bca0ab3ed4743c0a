"""`attention`: how large logits become, and how far back attention reaches, as the context grows.

Every length T reads the beginning of the same windows, as in `prefix`, and is told T likewise. What is measured are the
logits z and weights w of the eager definition, so that all schemes are read alike: z holds all that the scheme adds,
biases and factors included. A row is one query in one context, layer and head; i is the query's place, from 0, j that
of a key it sees, and i - j their distance in tokens, whatever coordinates the scheme gives them.

    max_logit          the largest z of all rows
    mean_max_logit     mean over rows of the largest z in the row
    attention_entropy  mean of -sum_j w_j ln w_j, in nats, over the rows of the last `last` queries
    mass_beyond        mean of sum_{i - j >= L} w_j over the rows with i >= L, which alone have such keys; training, at
                       length L, never showed these distances. Absent at T <= L

Softmax ignores what is added to a whole row, and logits do not: compare them between lengths of one scheme; entropy and
mass compare between schemes as well. With `octaves=true` there is also what curves are drawn from:

    mass_at_D          mean of sum_{D <= i - j < 2D} w_j over the rows of the last `last` queries, for D = 1, 2, 4 ...;
                       mass_at_0 is what falls on the query's own token. They sum to 1, less
                       what a sink takes
    entropy_at_P       mean entropy of the rows with P <= i < 2P, for P = 1, 2, 4 ...

A scheme whose prefixes are stable is read once for all lengths. Memory grows with T, not with its square. No
beginning-of-sequence token is added.

High logits at unseen distances are what Chen et al. (2023, arXiv 2306.15595) hold responsible for RoPE's failure there;
entropy that grows with T is what LogN and YaRN (Peng et al., 2023, arXiv 2309.00071) set out to correct.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pezoo.attention import observing
from pezoo.composition import Composition
from pezoo.data import Windows
from pezoo.evaluation.passes import Contexts, Passes
from pezoo.evaluation.result import LengthResult
from pezoo.registry import setting

OCTAVES = [2**k for k in range(21)]
METRICS = (
    *("max_logit", "mean_max_logit", "attention_entropy", "mass_beyond"),
    *("mass_at_0", *(f"mass_at_{n}" for n in OCTAVES)),
    *(f"entropy_at_{n}" for n in OCTAVES),
)


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    octaves: bool = setting(False, "also the mass by distance and the entropy by position, an octave at a time")


class Rows:
    """Sums over rows for each place of a query, in float64: the observer of one pass.

    Args:
        length: tokens of a context (T).
        edges: distances at which the bins of mass begin, ascending from 0.
        device: where the model is.
    """

    def __init__(self, length: int, edges: Sequence[int], device: torch.device) -> None:
        self.edges, self.length = torch.tensor(edges, device=device), length
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        zeros = partial(torch.zeros, dtype=torch.float64, device=self.edges.device)
        self.count, self.largest_sum, self.entropy = zeros(3, self.length)
        self.mass = zeros(self.length, len(self.edges))
        self.largest = zeros(self.length) - torch.inf

    def __call__(self, logits: Tensor, weights: Tensor, composition: Composition) -> None:
        """Add a chunk of queries: logits and weights (B, H, Lq, Lk)."""
        start = composition.positions.offset
        here = slice(start, start + logits.shape[2])
        largest = logits.amax(-1).double()
        self.count[here] += largest[..., 0].numel()
        self.largest[here] = self.largest[here].maximum(largest.amax((0, 1)))
        self.largest_sum[here] += largest.sum((0, 1))
        self.entropy[here] += torch.special.entr(weights).sum(-1).double().sum((0, 1))
        distance = composition.positions.steps()[0].abs()  # contexts are not packed: the same in each
        bins = torch.bucketize(distance, self.edges, right=True) - 1
        self.mass[here] = self.mass[here].scatter_add(1, bins, weights.sum((0, 1), dtype=torch.float64))

    def values(self, length: int, last: int, train_length: int, octaves: bool) -> dict[str, float]:
        """The metrics of contexts cut to their first `length` tokens."""
        count, largest, entropy, mass = (
            sums[:length].cpu().numpy() for sums in (self.count, self.largest_sum, self.entropy, self.mass)
        )
        edges, end = self.edges.cpu().numpy(), slice(max(0, length - last), None)
        found = {
            "max_logit": self.largest[:length].max().item(),
            "mean_max_logit": largest.sum() / count.sum(),
            "attention_entropy": entropy[end].sum() / count[end].sum(),
        }
        if length > train_length:
            found["mass_beyond"] = mass[train_length:, edges >= train_length].sum() / count[train_length:].sum()
        for n in [0, *OCTAVES] if octaves else []:
            if n < length:
                found[f"mass_at_{n}"] = mass[end, (edges >= n) & (edges < max(1, 2 * n))].sum() / count[end].sum()
            if 0 < n < length:
                found[f"entropy_at_{n}"] = entropy[n : 2 * n].sum() / count[n : 2 * n].sum()
        return {name: float(value) for name, value in found.items()}


def run(passes: Passes, windows: Windows, lengths: Sequence[int], last: int, settings: Settings) -> list[LengthResult]:
    """Results at `lengths`; see this module and `pezoo.evaluation.evaluate`."""
    train_length, stable = passes.model.config.train_length, passes.model.scheme.prefix_stable
    waiting = sorted(set(lengths), reverse=True)
    passes.expect(len(windows.ids) * (waiting[0] if stable else sum(waiting)))
    results = {}
    while waiting:
        longest = waiting[0]
        rows = Rows(longest, sorted({0, train_length, *(n for n in OCTAVES if n < longest)}), passes.device)
        with observing(rows):
            read = passes.run(longest, [Contexts(windows, [0], longest, 1)], rows.clear)
        served = waiting if stable and read.status == "ok" else waiting[:1]
        for length in served:
            values = rows.values(length, last, train_length, settings.octaves) if read.status == "ok" else {}
            status, reason = read.status, read.reason
            if not np.isfinite(list(values.values())).all():
                status, reason, values = "diverged", "an attention logit is not finite", {}
            results[length] = LengthResult(
                length,
                status=status,
                reason=reason,
                values=values,
                n_tokens=len(windows.ids) * length if values else 0,
                n_documents=len(np.unique(windows.document)) if values else 0,
                seconds=read.seconds,
                peak_memory_bytes=read.peak_memory_bytes,
            )
        waiting = waiting[len(served) :]
    return [results[length] for length in lengths]
