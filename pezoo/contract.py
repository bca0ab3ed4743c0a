"""What members plug into: encodings, extensions, and the positions both of them read.

Legend: B batch, R rows (1 when all rows of the batch agree, else B), H heads, Lq queries, Lk keys, L length, D
d_model, d head_dim, n frequencies. Every hook has an identity default, so a member overrides only what its paper
changes. No member remembers a length: what it needs arrives in `Positions`.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

PHASES = ("train", "tune", "test")


class Undefined(ValueError):
    """A scheme has no value for a position that it was asked for: a result to report, not a crash."""


@dataclass(frozen=True)
class Shape:
    """The model that a member is built for."""

    d_model: int
    n_heads: int
    n_layers: int
    train_length: int
    extent: int = 0
    """Training shows coordinates in [0, extent); filled in by the scheme (0: train_length)."""
    causal: bool = True

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.d_model // self.n_heads


@dataclass(frozen=True)
class Traits:
    """Declared facts that code cannot show by itself; the conformance kit holds them against behaviour."""

    shift_invariant: bool = False
    """Adding a constant to all coordinates leaves the logits as they are (extension: in an encoding that is so)."""
    prefix_stable: bool = True
    """Logits of a prefix do not depend on how long the sequence is declared to be."""
    bidirectional: bool = True
    """Tells direction in an encoder; False: it is symmetric there, or refused."""
    random: bool = False
    """Draws differ from sequence to sequence."""
    contextual: bool = False
    """Counts positions by content: reads the order of tokens, but none of their coordinates."""
    parameters: Callable[[Shape, Any], int] = lambda shape, config: 0
    """How many parameters a copy of the member has."""
    neutral: Mapping[str, Any] | None = None
    """Settings at which an extension changes nothing; None if there are none."""
    deviations: Mapping[str, str] = field(default_factory=dict)
    """Conformance checks that the member is known to fail, each with the reason."""


@dataclass(frozen=True)
class Positions:
    """Where the queries and keys of one forward stand. Immutable.

    Queries are the tokens offset ... offset + Lq - 1 of the keys' rows.
    """

    query: Tensor  # (R, Lq) coordinates, float32: what encodings read
    key: Tensor  # (R, Lk)
    query_index: Tensor  # (R, Lq) place in the document, int64: what windows and logn read
    key_index: Tensor  # (R, Lk)
    query_document: Tensor | None  # (R, Lq) document id; None: one document a row, no padding
    key_document: Tensor | None  # (R, Lk)
    length: int | Tensor  # declared total length; (B,) where rows differ
    offset: int = 0
    causal: bool = True
    spacing: tuple[float, float] | None = (0.0, 1.0)  # (start, step) of the coordinates by index, None if irregular
    phase: str = "test"
    seed: int = 0
    rows: tuple[int, ...] = (0,)  # names of the sequences: what random draws are keyed by
    layer: int = 0
    ruler: Tensor | None = None  # (R, M) distance of tokens m = 0 ... M - 1 apart, where it is not that of coordinates
    inv_freq: Tensor | None = None  # (R, n) the encoding's frequencies as extensions left them
    prepared: Any = None  # what the encoding's `prepare` returned

    @classmethod
    def build(
        cls,
        length: int,
        batch: int = 1,
        *,
        declared: int | Tensor | None = None,
        documents: Tensor | None = None,
        valid: Tensor | None = None,
        rows: tuple[int, ...] | None = None,
        device: torch.device | str | None = None,
        **facts: Any,
    ) -> "Positions":
        """Positions of `batch` rows of `length` tokens.

        Args:
            length: tokens in a row (L).
            batch: rows (B).
            declared: total length that length-dependent members see, if not `length`; (B,) where rows differ.
            documents: (B, L) ids of packed rows; where the id changes, positions restart and attention stops.
            valid: (B, L) False for padding, which is then seen by nothing but itself.
            rows: names of the sequences, the keys of random draws; default 0 ... B - 1.
            device: where the tensors live.
            facts: `causal`, `phase` and `seed`, stored as they are.
        """
        place = torch.arange(length, device=device)[None]  # (1, L)
        index, document = place, None
        if valid is not None:  # a padding token is a document of its own
            filled = torch.zeros_like(valid, dtype=torch.int64) if documents is None else documents
            documents = torch.where(valid, filled, -1 - place)
        if documents is not None:
            document = documents.to(torch.int64)
            starts = torch.ones_like(document, dtype=torch.bool)
            starts[:, 1:] = document[:, 1:] != document[:, :-1]
            index = place - torch.where(starts, place, 0).cummax(dim=1).values
            document = starts.cumsum(dim=1)  # an id that comes back later is another document
        spacing = (0.0, 1.0) if document is None else None
        rows = tuple(range(batch)) if rows is None else rows
        declared = length if declared is None else declared
        coordinate = index.to(torch.float32)
        return cls(
            coordinate, coordinate, index, index, document, document, declared,
            spacing=spacing, rows=rows, **facts,
        )  # fmt: skip

    def replace(self, **changes: Any) -> "Positions":
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def slice(self, start: int, stop: int, n_keys: int | None = None) -> "Positions":
        """Queries start ... stop - 1 of these, seeing the first `n_keys` keys (default: all)."""
        q, k = slice(start, stop), slice(n_keys)
        documents = self.key_document is not None
        return self.replace(
            query=self.query[:, q],
            query_index=self.query_index[:, q],
            query_document=self.query_document[:, q] if documents else None,
            key=self.key[:, k],
            key_index=self.key_index[:, k],
            key_document=self.key_document[:, k] if documents else None,
            offset=self.offset + start,
        )

    def map(
        self, function: Callable[[Tensor, Tensor], Tensor], spacing: tuple[float, float] | None = None
    ) -> "Positions":
        """New coordinates function(coordinate, index), for queries and keys alike."""
        query = function(self.query, self.query_index)
        same = self.query is self.key
        key = query if same else function(self.key, self.key_index)
        return self.replace(query=query, key=key, spacing=spacing)

    def scaled(self, factor: float | Tensor) -> "Positions":
        """Coordinates, and a ruler if there is one, times `factor`, a number or (R, 1)."""
        regular = self.spacing is not None and not isinstance(factor, Tensor)
        spacing = (self.spacing[0] * factor, self.spacing[1] * factor) if regular else None
        ruler = None if self.ruler is None else self.ruler * factor
        return self.map(lambda p, index: p * factor, spacing).replace(ruler=ruler)

    def distance(self) -> Tensor:
        """Query coordinate minus key coordinate, (R, Lq, Lk); exactly a multiple of the step where spacing is known."""
        if self.ruler is not None:
            steps = self.steps()
            rows = max(len(self.ruler), len(steps))
            read = self.ruler.expand(rows, -1).gather(1, steps.abs().expand(rows, -1, -1).flatten(1))
            return read.view(rows, *steps.shape[1:]) * steps.sign()
        if self.spacing is not None:
            return self.steps() * self.spacing[1]
        return self.query[:, :, None] - self.key[:, None, :]

    def steps(self) -> Tensor:
        """Query index minus key index within the document, (R, Lq, Lk), int64."""
        return self.query_index[:, :, None] - self.key_index[:, None, :]

    def visible(self) -> Tensor:
        """What causality and documents let a query see, (R, Lq, Lk), bool."""
        visible = self.steps() >= 0 if self.causal else torch.ones_like(self.steps(), dtype=torch.bool)
        if self.key_document is not None:
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

    def factor(self, train_length: int, fixed: float | None = None) -> float | Tensor:
        """How far the declared length goes beyond training: `fixed`, else max(1, T / L); (R, 1) where rows differ."""
        if fixed is not None:
            return fixed
        if isinstance(self.length, Tensor):
            return (self.length[:, None] / train_length).clamp(min=1.0)
        return max(1.0, self.length / train_length)

    def draw(self, salt: str, sample: Callable[[torch.Generator], Tensor], scope: str = "sequence") -> Tensor:
        """One sample a row, (R, ...), from (seed, salt, row, layer): the same again for the same sequence.

        Args:
            salt: name of the draw, so that two members draw apart.
            sample: makes one row's tensor from a generator.
            scope: "sequence" (rows apart), "layer" (rows and layers apart) or "batch" (all rows together).
        """
        rows = self.rows[:1] if scope == "batch" else self.rows
        layer = self.layer if scope == "layer" else 0

        generator = torch.Generator()

        def one(row: int) -> Tensor:
            key = hashlib.sha256(f"{self.seed} {salt} {row} {layer} {self.phase}".encode()).digest()
            return sample(generator.manual_seed(int.from_bytes(key[:7], "big")))

        return torch.stack([one(row) for row in rows]).to(self.query.device)


class Encoding(nn.Module):
    """How positions enter the model. Subclasses keep `__init__(shape, config)` and override what their paper changes.

    Attention may ask for some queries at a time: `embed` and `rotate` always see a whole call, `bias`, `content` and
    `mix` may see a slice of its queries and a prefix of its keys, with `positions.prepared` unchanged.
    """

    traits: ClassVar[Traits] = Traits()

    @dataclass
    class Config:
        """Settings: none."""

    def __init__(self, shape: Shape, config: Any) -> None:
        super().__init__()
        self.shape, self.config = shape, config

    @property
    def prefix_stable(self) -> bool:
        """Whether this instance, with its settings, is prefix-stable."""
        return self.traits.prefix_stable

    @classmethod
    def per_layer(cls, config: Any) -> bool:
        """Whether each layer gets an instance of its own; `embed` and `prepare` are asked of the first."""
        return False

    def inv_freq(self) -> Tensor | None:
        """Frequencies in radians a position, (n,), fastest first, for extensions to change; None if it has none."""
        return None

    def check(self, positions: Positions) -> None:
        """Raise `Undefined` where the encoding has no value for a coordinate."""

    def prepare(self, positions: Positions) -> Any:
        """Tables that all layers share, made once a forward and handed back as `positions.prepared`."""
        return None

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        """Token embeddings (B, Lq, D) with positions; owns the token scale."""
        return x

    def rotate(self, q: Tensor, k: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
        """Queries (B, H, Lq, d) and keys (B, H, Lk, d), each changed by its own position."""
        return q, k

    def scale(self) -> float:
        """What q k^T is multiplied by."""
        return self.shape.head_dim**-0.5

    def distance_bias(self, distance: Tensor) -> Tensor:
        """Bias of each head for real distances (query minus key) of any shape (...): (H, ...), float32."""
        raise NotImplementedError

    def bias(self, positions: Positions) -> Tensor | None:
        """Added to the scaled logits, (R, H, Lq, Lk), float32; from `distance_bias` where that is all there is."""
        if not overrides(self, "distance_bias"):
            return None
        return self.distance_bias(positions.distance()).movedim(0, 1)

    def content(self, q: Tensor, k: Tensor, positions: Positions) -> Tensor | None:
        """Logits that need q or k (unrotated) beside the position, added to scaled q k^T, (B, H, Lq, Lk)."""
        return None

    def mix(self, weights: Tensor, v: Tensor, positions: Positions) -> Tensor:
        """Attention weights (B, H, Lq, Lk) applied to the values (B, H, Lk, d)."""
        return weights @ v


@dataclass(frozen=True)
class Branch:
    """A far region: pairs for which attention uses other positions."""

    positions: Positions
    region: Callable[[Positions], Tensor]
    """Given (a slice of) the scheme's own positions: True where this branch counts, (R, Lq, Lk)."""


class Extension(nn.Module):
    """What carries an encoding past its training length. Acts in the phases named by its setting `at`."""

    traits: ClassVar[Traits] = Traits()
    default_at: ClassVar[tuple[str, ...]] = ("tune", "test")

    @dataclass
    class Config:
        """Settings: none beside `at`."""

    def __init__(self, shape: Shape, config: Any, at: tuple[str, ...] | None = None) -> None:
        super().__init__()
        self.shape, self.config, self.at = shape, config, at or self.default_at

    @property
    def prefix_stable(self) -> bool:
        """Whether this instance, with its settings, is prefix-stable."""
        return self.traits.prefix_stable

    @classmethod
    def per_layer(cls, config: Any) -> bool:
        """Whether each layer gets an instance, with parameters, of its own; only `adapt` is asked of each."""
        return False

    @property
    def draws_per_layer(self) -> bool:
        """Whether coordinates differ from layer to layer."""
        return False

    def extent(self, extent: int) -> int:
        """Where training shows coordinates in [0, extent) without this extension: the same with it."""
        return extent

    def refuses(self, encoding: Encoding) -> str | None:
        """Why, with these settings, it cannot act on an encoding that has what its hooks need; None if it can."""
        return None

    def check(self, positions: Positions) -> None:
        """Raise `Undefined` where the extension has no value for a position."""

    def coordinates(self, positions: Positions) -> Positions:
        """Other coordinates."""
        return positions

    def frequencies(self, inv_freq: Tensor, positions: Positions) -> Tensor:
        """Other frequencies, (R, n), of whatever encoding has frequencies."""
        return inv_freq

    def branches(self, positions: Positions) -> tuple[Branch, ...]:
        """Far regions; where they overlap, the later one counts."""
        return ()

    def scale(self, positions: Positions) -> float | Tensor | None:
        """Factor on the content logits: a number or one a query, (R, Lq); None is 1."""
        return None

    def mask(self, positions: Positions) -> Tensor | None:
        """What a query may see, (R, Lq, Lk), and-ed with causality, documents and the other masks; None is all."""
        return None

    def adapt(self, logits: Tensor, bias: Tensor | None, positions: Positions) -> Tensor:
        """Logits (B, H, Lq, Lk) without and with the bias (R, H, Lq, Lk) still to add: the sum, changed."""
        return logits if bias is None else logits + bias


def settle(distance: Tensor) -> Tensor:
    """Distances snapped to 1/64, so that float error never decides a row of a table, for members that round them."""
    return (distance * 64).round() / 64


def overrides(member: Encoding | Extension | type, hook: str) -> bool:
    """Whether a member (or its class) has its own version of a hook."""
    cls = member if isinstance(member, type) else type(member)
    base = Encoding if issubclass(cls, Encoding) else Extension
    return getattr(cls, hook) is not getattr(base, hook)
