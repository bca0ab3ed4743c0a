"""Where tokens stand: what members read of it, and how it is made, cut and changed.

Legend: B batch, R rows (1 when all rows of the batch agree, else B), Lq queries, Lk keys, L length, n frequencies.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pezoo.errors import UserError
from pezoo.philox import words

PHASES = ("train", "tune", "test")


def to_device(tensor: Tensor, device: torch.device | str | None) -> Tensor:
    """A tensor made on the host, on a device (None: where it is), without waiting for what the device is doing.

    For ordinary memory, which is read before the call returns (on Apple's devices only if it waits).
    """
    return tensor if device is None else tensor.to(device, non_blocking=torch.device(device).type != "mps")


def on_tensors(function: Callable[..., Tensor], *trees: Any) -> Any:
    """What a function makes of tensors in the same places of nested tuples; None stays None."""
    if trees[0] is None:
        return None
    if isinstance(trees[0], Tensor):
        return function(*trees)
    return tuple(on_tensors(function, *places) for places in zip(*trees, strict=True))


def leaves(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif tree is not None:
        for place in tree:
            yield from leaves(place)


@dataclass(frozen=True)
class Positions:
    """Where the queries and keys of one forward stand: made by `build`, handed to every hook. Immutable.

    Queries are the tokens offset ... offset + Lq - 1 of the keys' rows.
    """

    query: Tensor  # (R, Lq) coordinates, float32: what encodings read
    key: Tensor  # (R, Lk)
    query_index: Tensor  # (R, Lq) place in the document, int64: what windows and logn read
    key_index: Tensor  # (R, Lk)
    query_document: Tensor | None  # (R, Lq) document id; None: one document a row, no padding
    key_document: Tensor | None  # (R, Lk)
    length: int | Tensor  # declared total length; (B,) where rows differ
    lengths: tuple[int, ...] = ()  # the same as the host knows it: one number, or one for each row
    offset: int = 0
    causal: bool = True
    spacing: tuple[float, float] | None = (0.0, 1.0)  # (start, step) of the coordinates by index, None if irregular
    phase: str | None = None  # "train", "tune" or "test"; None: not said, which is enough where all act alike
    seed: int = 0
    rows: tuple[int, ...] | None = None  # numbers of the sequences: what random draws are keyed by
    first_row: int | None = None  # number of the batch's first row, where these are a share of it; None: rows[0]
    draws: Mapping[str, Tensor] | None = None  # random draws that were handed in, by member
    layer: int = 0  # which layer, of those that have this scheme; where layers draw apart, and in hooks of attention
    ruler: Tensor | None = None  # (R, M) distance of two tokens m places apart; None: difference of coordinates
    inv_freq: Tensor | None = None  # (R, n) the encoding's frequencies as extensions left them
    prepared: Any = None  # what the encoding's `prepare` returned
    tokens: Tensor | None = None  # (B, Lk) ids of the keys' tokens, for members whose trait `tokens` says so
    read: Any = None  # what the encoding's `read` returned for the keys: (B, Lk, ...), or a tuple of such tensors
    bounds: tuple[float, float] | None = None  # all coordinates lie in [low, high], as the host knows; None: unknown
    n_keys: int | None = None  # how many keys there are, where attention has taken some of them; None: these

    def replace(self, **changes: Any) -> "Positions":
        """Return a copy with some fields changed; bounds that are not given anew do not hold for new coordinates."""
        if "query" in changes or "key" in changes:
            changes.setdefault("bounds", None)
        if torch.compiler.is_compiling() or not changes.keys() <= vars(self).keys():
            return dataclasses.replace(self, **changes)
        # The same, several times as fast: a decoding step makes a dozen copies.
        new = object.__new__(type(self))
        vars(new).update(vars(self), **changes)
        return new

    # ---- reading --------------------------------------------------------------------------------

    def distance(self) -> Tensor:
        """Query coordinate minus key coordinate, (R, Lq, Lk); exactly a multiple of the step where spacing is known."""
        if self.ruler is not None:
            steps = self.steps()
            rows = max(len(self.ruler), len(steps))
            read = self.ruler.expand(rows, -1).gather(1, steps.abs().expand(rows, -1, -1).flatten(1))
            return read.view(rows, *steps.shape[1:]) * steps.sign()
        if self.spacing is not None:
            return self.steps().to(torch.float32) * self.spacing[1]
        return self.query[:, :, None] - self.key[:, None, :]

    @property
    def by_step(self) -> bool:
        """Whether the distance of two tokens follows from how many places apart they stand, alike in all rows."""
        return self.spacing is not None if self.ruler is None else len(self.ruler) == 1

    def distance_of(self, steps: Tensor) -> Tensor:
        """The distance of tokens so many places apart (query minus key), any shape, where `by_step` holds; float32."""
        if self.ruler is not None:
            return self.ruler[0][steps.abs()] * steps.sign()
        assert self.spacing is not None
        return steps.to(torch.float32) * self.spacing[1]

    def angles(self, coordinates: Tensor) -> Tensor:
        """Coordinates (R, L) times the encoding's frequencies, as extensions left them: radians, (R, L, n)."""
        if self.inv_freq is None:
            raise TypeError("these positions have no frequencies: the encoding does not override inv_freq")
        return coordinates[..., None] * self.inv_freq[:, None]

    def steps(self) -> Tensor:
        """Query index minus key index within the document, (R, Lq, Lk), int64."""
        return self.query_index[:, :, None] - self.key_index[:, None, :]

    def visible(self) -> Tensor:
        """What causality and documents let a query see, (R, Lq, Lk), bool."""
        visible = self.steps() >= 0 if self.causal else torch.ones_like(self.steps(), dtype=torch.bool)
        if self.query_document is not None and self.key_document is not None:
            visible = visible & (self.query_document[:, :, None] == self.key_document[:, None, :])
        return visible

    def origin(self) -> Tensor:
        """Coordinate of the first token of each query's document, (R, Lq)."""
        place = self.offset + torch.arange(self.query.shape[1], device=self.query.device)
        first = place - self.query_index
        rows = max(len(first), len(self.key))
        return self.key.expand(rows, -1).gather(1, first.expand(rows, -1))

    def largest(self) -> float:
        """The largest coordinate of these queries; no device synchronisation where spacing is known."""
        if self.spacing is None:
            return float(self.query.max())
        start, step = self.spacing
        return start + step * (self.offset + self.query.shape[1] - 1)

    def smallest(self) -> float:
        """The smallest coordinate of these queries; no device synchronisation where spacing is known."""
        if self.spacing is None:
            return float(self.query.min())
        start, step = self.spacing
        return start + step * self.offset

    def within(self, low: float, high: float) -> bool:
        """Whether low <= coordinate < high for these queries; reads the device only where the host cannot tell."""
        if self.spacing is None and self.bounds is not None and low <= self.bounds[0] and self.bounds[1] < high:
            return True
        return low <= self.smallest() and self.largest() < high

    def seen(self) -> Tensor:
        """How many keys causality and documents show to each query, (R, Lq), those that attention left out too."""
        if self.causal:
            return self.query_index + 1
        if self.query_document is None or self.key_document is None:
            return torch.full_like(self.query_index, self.n_keys or self.key_index.shape[1])
        return (self.query_document[:, :, None] == self.key_document[:, None]).sum(-1)

    def of_queries(self, of_keys: Tensor, dim: int = 1) -> Tensor:
        """The queries' part of a tensor that has the keys' tokens at `dim`, as `tokens` and `read` have."""
        return of_keys.narrow(dim, self.offset, self.query.shape[1])

    def earlier(self, of_keys: Tensor, n: int) -> Tensor:
        """A tensor of the keys' tokens (B, Lk, ...), each moved to the token n places later in its document; else 0."""
        moved = F.pad(of_keys, (0, 0) * (of_keys.ndim - 2) + (n, 0))[:, : of_keys.shape[1]]
        first = (self.key_index < n).view(*self.key_index.shape, *[1] * (of_keys.ndim - 2))
        return moved.masked_fill(first, 0)

    def sums(self, of_keys: Tensor) -> Tensor:
        """Sums of a tensor of the keys' tokens (B, Lk, ...) over each token and those before it in its document.

        By doubling, so that no bit of one document reaches another, as it would by differences of sums over the row.
        """
        step = 1
        while step < of_keys.shape[1]:
            of_keys = of_keys + self.earlier(of_keys, step)
            step *= 2
        return of_keys

    def factor(self, train_length: int, fixed: float | None = None) -> float | Tensor:
        """How far the declared length goes beyond training: `fixed`, else max(1, T / L); (R, 1) where rows differ."""
        if fixed is not None:
            return fixed
        if isinstance(self.length, Tensor):
            return (self.length[:, None] / train_length).clamp(min=1.0)
        return max(1.0, self.length / train_length)

    @property
    def longest(self) -> int:
        """The largest declared length."""
        return max(self.lengths)

    def total(self) -> Tensor:
        """Declared lengths, (R, 1), int64."""
        if isinstance(self.length, Tensor):
            return self.length[:, None]
        return torch.full((1, 1), self.length, device=self.query.device)

    def draw(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """A random draw: the one that was handed in under this name, else what `make` gives."""
        handed = (self.draws or {}).get(name)
        return make() if handed is None else to_device(handed, self.query.device)

    def bits(self, name: str, n: int, scope: str = "sequence") -> Tensor:
        """Random bits, (R, n) words of 32, int64: a function of (seed, name, phase, row, layer, place) alone.

        Args:
            name: of the draw, so that two members draw apart; a member's own name, and what tells its draws apart.
            n: words for each row.
            scope: "sequence" (rows apart), "layer" (rows and layers apart) or "batch" (all rows together, in testing
                those of all batches: how many rows a forward has then moves nothing).

        Raises:
            UserError: if nothing says which sequences these are.
        """
        if self.rows is None:
            raise UserError(
                f"{name.split()[0]} draws for each sequence anew: pass rows=, the numbers of these sequences. In "
                "training count on from step to step: rows=range(step * B, (step + 1) * B)"
            )
        first = 0 if self.phase == "test" else self.rows[0] if self.first_row is None else self.first_row
        rows = torch.tensor([first] if scope == "batch" else self.rows)
        return words(
            n,
            to_device(rows, self.query.device),
            self.layer if scope == "layer" else 0,
            f"{self.seed} {name} {self.phase}",
        )

    # ---- making ---------------------------------------------------------------------------------

    @classmethod
    def build(
        cls,
        length: int,
        batch: int = 1,
        *,
        declared: int | Tensor | None = None,
        documents: Tensor | None = None,
        valid: Tensor | None = None,
        rows: Sequence[int] | None = None,
        tokens: Tensor | None = None,
        device: torch.device | str | None = None,
        **facts: Any,
    ) -> "Positions":
        """Positions of `batch` rows of `length` tokens.

        Args:
            length: tokens in a row (L).
            batch: rows (B).
            declared: total length that length-dependent members see, if not `length`; (B,) where rows differ, best on
                the host, which has to know them.
            documents: (B, L) ids of packed rows; where the id changes, positions restart and attention stops.
            valid: (B, L) False for padding, which is then seen by nothing but itself.
            rows: numbers of the sequences, the keys of random draws; schemes that draw demand them.
            tokens: (B, L) ids; schemes that make coordinates of tokens demand them.
            device: where the tensors live; tensors that are given move there.
            facts: `causal`, `phase`, `seed`, `first_row` and `draws`, stored as they are.

        Raises:
            UserError: if sizes do not agree.
        """
        for name, given in (("documents", documents), ("valid", valid), ("tokens", tokens)):
            if given is not None and given.shape[1] != length:
                raise UserError(f"{name} has {given.shape[1]} tokens a row, not {length}")
        if facts.get("phase") not in (None, *PHASES):
            raise UserError(f"phase is one of {', '.join(PHASES)}, not {facts['phase']!r}")
        if rows is not None and len(rows) != batch:
            raise UserError(f"rows numbers {len(rows)} sequences, but the batch has {batch}")
        place = torch.arange(length, device=device)[None]  # (1, L)
        documents, valid, tokens = (t if t is None else to_device(t, place.device) for t in (documents, valid, tokens))
        index, document = place, None
        if valid is not None:  # a padding token is a document of its own, with an id that no other has
            filled = torch.zeros_like(valid, dtype=torch.int64) if documents is None else documents
            documents = torch.where(valid, filled, filled.amin().clamp(max=0) - 1 - place)
        if documents is not None:
            document = documents.to(torch.int64)
            starts = torch.ones_like(document, dtype=torch.bool)
            starts[:, 1:] = document[:, 1:] != document[:, :-1]
            index = place - torch.where(starts, place, 0).cummax(dim=1).values
            document = starts.cumsum(dim=1)  # an id that comes back later is another document
        spacing = (0.0, 1.0) if document is None else None
        declared = length if declared is None else declared
        lengths = tuple(declared.tolist()) if isinstance(declared, Tensor) else (declared,)
        declared = to_device(declared, place.device) if isinstance(declared, Tensor) else declared
        coordinate = index.to(torch.float32)
        return cls(
            coordinate, coordinate, index, index, document, document, declared, lengths,
            spacing=spacing, bounds=(0.0, length - 1.0), rows=None if rows is None else tuple(rows), tokens=tokens,
            **facts,
        )  # fmt: skip

    def slice(self, start: int, stop: int, n_keys: int | None = None, first_key: int = 0) -> "Positions":
        """Queries start ... stop - 1 of these, seeing the keys first_key ... n_keys - 1 (default: all).

        Where first keys are left out, what looks for them, such as `origin`, cannot be asked for.
        """
        q, k = slice(start, stop), slice(first_key, n_keys)
        begins = self.spacing and (self.spacing[0] + self.spacing[1] * first_key, self.spacing[1])
        return self.replace(
            query=self.query[:, q],
            query_index=self.query_index[:, q],
            query_document=None if self.query_document is None else self.query_document[:, q],
            key=self.key[:, k],
            key_index=self.key_index[:, k],
            key_document=None if self.key_document is None else self.key_document[:, k],
            offset=self.offset + start - first_key,
            spacing=begins,
            bounds=self.bounds,
            tokens=None if self.tokens is None else self.tokens[:, k],
            read=on_tensors(lambda t: t[:, k], self.read),
        )

    def of_keys(self) -> "Positions":
        """All keys as queries too, without what `prepare` made of other queries."""
        return self.replace(
            query=self.key,
            query_index=self.key_index,
            query_document=self.key_document,
            offset=0,
            bounds=self.bounds,
            prepared=None,
        )

    def of_new(self) -> "Positions":
        """The queries' tokens alone, as keys too."""
        return self.replace(
            key=self.query,
            key_index=self.query_index,
            key_document=self.query_document,
            offset=0,
            spacing=self.spacing and (self.spacing[0] + self.spacing[1] * self.offset, self.spacing[1]),
            bounds=self.bounds,
            tokens=None if self.tokens is None else self.of_queries(self.tokens),
        )

    def map(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        spacing: tuple[float, float] | None = None,
        bounds: tuple[float, float] | None = None,
    ) -> "Positions":
        """New coordinates function(coordinate, index), for queries and keys alike; `spacing`, `bounds`: if known."""
        query = function(self.query, self.query_index)
        same = self.query is self.key
        key = query if same else function(self.key, self.key_index)
        return self.replace(query=query, key=key, spacing=spacing, bounds=bounds)

    def scaled(self, factor: float | Tensor) -> "Positions":
        """Coordinates, and a ruler if there is one, times `factor`, a number or (R, 1)."""

        def known(facts: tuple[float, float] | None) -> tuple[float, float] | None:
            return None if facts is None or isinstance(factor, Tensor) else (facts[0] * factor, facts[1] * factor)

        ruler = None if self.ruler is None else self.ruler * factor
        return self.map(lambda p, index: p * factor, known(self.spacing), known(self.bounds)).replace(ruler=ruler)
