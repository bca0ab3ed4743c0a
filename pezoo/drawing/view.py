"""What a scheme does to numbers, read from its hooks."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pezoo.compose import Scheme
from pezoo.composition import Composition
from pezoo.contract import Encoding, Extension, overrides

BARE = "bare"  # a phase in which no extension acts


DRAWS = 4


WORDS = {"train": "training", "tune": "tuning", "test": "testing"}


@dataclass
class View:
    """A plain scheme of one layer, and what its picture has to say."""

    scheme: Scheme
    notes: list[str]

    def __post_init__(self) -> None:
        self.length = self.scheme.shape.train_length
        self.encodings: list[Encoding] = [e for e, *_ in self.scheme.parts[0].encodings]
        self.extensions: list[Extension] = [e for e, *_ in self.scheme.parts[0].extensions]
        if any(True for _ in self.scheme.parameters()):
            self.notes.append("Parameters have their initial values.")

    def changes(self, *hooks: str) -> bool:
        """Whether an extension overrides one of these hooks."""
        return any(overrides(e, hook) for e in self.extensions for hook in hooks)

    def longest(self, ratio: int) -> int:
        """`ratio` training lengths, or fewer where the scheme is undefined there."""
        for n in (ratio, 2, 1):
            reason = self.scheme.undefined(n * self.length)
            if reason is None:
                return n * self.length
            self.notes.append(f"Undefined at {n * self.length} tokens: {reason}.")
        return self.length

    @torch.no_grad()
    def at(self, length: int, phase: str = "test", rows: int = 1, last: bool = False) -> Composition:
        """What the scheme adds at a length, to random tokens and inputs; `last`: for the last query only."""
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(16, (rows, length), generator=generator)
        positions = self.scheme.positions(rows, length, rows=range(rows), tokens=tokens).replace(phase=phase)
        positions = positions.slice(length - 1, length) if last else positions
        x = torch.randn(rows, length, self.scheme.shape.d_model, generator=generator)
        return self.scheme.prepare(positions).reading(0, x)[0].composition

    def moves(self, phase: str, length: int) -> bool:
        """Whether coordinates in a phase are other than 0, 1, 2, ..."""
        return bool((self.at(length, phase).positions.query != torch.arange(length)).any())

    def wake(self) -> None:
        """Give parameters that start at zero, and would leave nothing to see, random values."""
        generator = torch.Generator().manual_seed(0)
        asleep = [p for p in self.scheme.parameters() if not p.any()]
        for parameter in asleep:
            steps = torch.randn(parameter.shape, generator=generator)
            parameter.data = steps.cumsum(0) / len(steps) ** 0.5
        if asleep:
            self.notes.append("Those that start at zero are random walks here.")

    def vectors(self, n_keys: int) -> tuple[Tensor, Tensor]:
        """Random queries (DRAWS, H, 1, d), and keys (DRAWS, H, n_keys, d) that are the same everywhere; first k = q."""
        generator = torch.Generator().manual_seed(0)
        shape = (DRAWS, self.scheme.shape.n_heads, 1, self.scheme.shape.head_dim)
        q, k = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
        k[0] = q[0]
        return q, k.expand(-1, -1, n_keys, -1)


def merged(composition: Composition, values: Callable[[int], Tensor]) -> Tensor:
    """What `values(region)` gives, (..., Lq, Lk), each where its region counts."""
    merged = values(0)
    for r, region in enumerate(composition.regions[1:], start=1):
        merged = torch.where(region.branch.region(composition.positions), values(r), merged)
    return merged


def bias_of(composition: Composition) -> Tensor:
    """The bias of all regions, (H, Lq, Lk)."""
    return merged(composition, composition.bias)[0]
