"""What members plug into: encodings, extensions, and the positions both of them read.

Legend: B batch, R rows (1 when all rows of the batch agree, else B), H heads, Lq queries, Lk keys, L length, D
d_model, d head_dim, n frequencies, s numbers that a member keeps of a token. Every hook has an identity default, so a
member overrides only what its paper changes. No member remembers a length: what it needs arrives in `Positions`.

Precision: hooks run under `in_float32`. Tensors made in them, from integers too, are float32, and so are a scheme's
parameters, whatever the model's precision. q, k, v and x come in the model's dtype, and go back in it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pezoo.positions import PHASES, Positions, to_device

__all__ = [
    "PHASES",
    "Branch",
    "Encoding",
    "Extension",
    "Member",
    "NoSettings",
    "Positions",
    "Registered",
    "Schedule",
    "Shape",
    "Traits",
    "Undefined",
    "in_float32",
    "overrides",
    "settle",
    "to_device",
]


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
    head_dim: int = 0
    """Width of one head (0: d_model / n_heads)."""
    input_width: int = 0
    """Width of the layer's input, which `read` sees (0: d_model). In a mixture of heads d_model is less: its heads'."""

    def __post_init__(self) -> None:
        if not self.input_width:
            object.__setattr__(self, "input_width", self.d_model)
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.d_model // self.n_heads)


@dataclass(frozen=True)
class Traits:
    """Properties that cannot be read from the class; the conformance kit tests them."""

    shift_invariant: bool = False
    """Adding a constant to all coordinates leaves the logits as they are (extension: in an encoding that is so)."""
    prefix_stable: bool = True
    """Logits of a prefix do not depend on how long the sequence is declared to be."""
    bidirectional: bool = True
    """Whether an encoder with it can tell left from right; if not, it is symmetric in an encoder, or refused."""
    random: bool = False
    """Draws differ from sequence to sequence."""
    contextual: bool = False
    """Counts positions by content: reads the order of tokens, but none of their coordinates."""
    turns_last: bool = False
    """Its q and k have a meaning in their product alone, so no other encoding may change them after it."""
    turns_once: bool = False
    """Turns a key, alike in all heads, by its own coordinate and its frequencies alone: a cache may keep it turned."""
    tokens: bool = False
    """Makes coordinates of the ids of tokens, `positions.tokens`; several tokens may have one."""
    parameters: Callable[[Shape, Any], int] = lambda shape, config: 0
    """How many parameters a copy of the member has."""
    neutral: Mapping[str, Any] | None = None
    """Settings at which an extension changes nothing; None if there are none."""
    deviations: Mapping[str, str] = field(default_factory=dict)
    """Conformance checks that the member is known to fail, each with the reason."""


@dataclass(frozen=True)
class NoSettings:
    """The Config of what has no settings."""


class Registered:
    """What `register` puts into the zoo: encodings, extensions, layer schedules and tasks."""

    name: ClassVar[str]
    """What it is registered as, and what messages call it; until then, its class's name."""
    Config: ClassVar[type[Any]] = NoSettings
    """A dataclass of its settings."""

    def __init_subclass__(cls, **facts: Any) -> None:
        super().__init_subclass__(**facts)
        cls.name = cls.__name__


class Schedule(Registered):
    """A name for schemes that take turns layer by layer, such as those of a published model.

    It is written wherever a scheme is, with its own settings; extensions may follow, and join each layer that they fit.
    """

    @classmethod
    def layers(cls, config: Any) -> list[str]:
        """The schemes of the layers, which repeat until the model has no more layers."""
        raise NotImplementedError


class Member(Registered, nn.Module):
    """What encodings and extensions have in common."""

    traits: ClassVar[Traits] = Traits()

    def __init__(self, shape: Shape, config: Any) -> None:
        super().__init__()
        self.shape, self.config = shape, config

    @property
    def prefix_stable(self) -> bool:
        """Whether this instance, with its settings, is prefix-stable."""
        return self.traits.prefix_stable

    @classmethod
    def per_layer(cls, config: Any) -> bool:
        """Whether each layer gets an instance, with parameters, of its own.

        Of an encoding, `embed` and `prepare` are asked of the first. Of an extension, `scale`, `sink`, `mask` and
        `adapt` are asked of each, the other hooks of the first.
        """
        return False

    def check(self, positions: Positions) -> None:
        """Raise `Undefined` where the member has no value for a position."""

    def pair_logits(self, product: Tensor, q: Tensor, bias: Tensor | None, seen: Tensor | None) -> tuple[Tensor, Any]:
        """What `content` or `adapt` makes of a block of pairs of one row of the batch, where these read q k^T alone.

        Stated beside them, with `pair_gradients`, by members that are slow otherwise: attention on a CPU then goes
        through the pairs block by block. Keys come in reverse order, the last that any query of the block sees first.

        Args:
            product: scaled q k^T of n queries and m keys, (H, n, m); may be changed in place.
            q: the queries, (H, n, d).
            bias: of the encodings, (H, n, m), to be added, not changed; None is none.
            seen: of the first columns, whether causality and documents show them, (n, columns), 1 or 0; None: all are.

        Returns:
            The logits, (H, n, m), finite where keys are not seen; and what `pair_gradients` needs.
        """
        raise NotImplementedError

    def pair_gradients(
        self, gradient: Tensor, kept: Any, q: Tensor, of_bias: bool
    ) -> tuple[Tensor, Tensor | None, Tensor, tuple[Tensor, ...]]:
        """Gradients to what `pair_logits` reads, given that of its logits, (H, n, m), which may be changed in place.

        Returns:
            Gradients to the product; to q beside it, or None; to the bias, if `of_bias`, else anything; and to the
            member's parameters, in their order.
        """
        raise NotImplementedError

    def refuses_task(self, task: Any) -> str | None:
        """Why, with these settings, it cannot serve a task (`pezoo.Task`), whose tokens it reads; None if it can.

        Studies ask before they train.
        """
        return None


class Encoding(Member):
    """How positions enter the model. Subclasses keep `__init__(shape, config)` and override what their paper changes.

    Attention may ask for some queries at a time: `embed`, `read`, `rotate` and `change_values` see a whole call always;
    `bias`, `product`, `content`, `normalise` and `mix` may see a slice of its queries and a prefix of its keys. Then
    `positions.prepared` is unchanged, and `positions.read` is that of the keys: a prefix, begun at the first token.
    """

    def inv_freq(self) -> Tensor | None:
        """Frequencies in radians per position, (n,), fastest first, for extensions to change; None if it has none."""
        return None

    def prepare(self, positions: Positions) -> Any:
        """Tables that all layers share, made once a forward and handed back as `positions.prepared`."""
        return None

    def embed(self, x: Tensor, positions: Positions) -> Tensor:
        """Token embeddings (B, Lq, D) with positions; owns the token scale."""
        return x

    def read(self, x: Tensor, positions: Positions) -> Tensor | tuple[Tensor, ...] | None:
        """What the member needs of a layer's input, (B, L, s) or a tuple of such tensors, for each token by itself.

        Called once per layer and call, with the tokens that are new in it; x is (B, L, D), what q, k and v are made
        of (after the norm), in float32. What it returns is kept beside k and v while decoding, and comes back for all
        keys, (B, Lk, s), as `positions.read`. So what reaches over tokens is made there, in `bias`, `content` and the
        others: `positions.sums` and `positions.earlier` stop at documents, `positions.of_queries` picks the queries'
        part. Here `positions` has the new tokens as queries, nothing prepared.
        """
        return None

    def rotate(self, q: Tensor, k: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
        """Queries (B, H, Lq, d) and keys (B, H, Lk, d), each changed by its own position.

        Both may come back in another width than d, that of the values. Then no other encoding may rotate them further.
        """
        return q, k

    def change_values(self, v: Tensor, positions: Positions) -> Tensor:
        """Values (B, H, Lk, d), each changed by its own position. Pairs of a far region see the same ones."""
        return v

    def scale(self) -> float:
        """What q k^T is multiplied by."""
        return float(self.shape.head_dim**-0.5)

    def distance_bias(self, distance: Tensor) -> Tensor:
        """Bias of each head for real distances (query minus key) of any shape (...): (H, ...), float32."""
        raise NotImplementedError

    def bias(self, positions: Positions) -> Tensor | None:
        """Added to the scaled logits, (R, H, Lq, Lk), float32; from `distance_bias` where that is all there is."""
        if not overrides(self, "distance_bias"):
            return None
        return self.distance_bias(positions.distance()).movedim(0, 1)

    def key_bias(self, positions: Positions) -> Tensor | None:
        """`bias` without what all keys of a query share, which softmax ignores, (R, H, Lk); None if it is of pairs.

        Stated beside `bias`, so that fused attention needs no tensor of pairs.
        """
        return None

    def product(self, q: Tensor, k: Tensor, positions: Positions) -> Tensor:
        """What stands for q k^T of rotated queries and keys, before it is scaled, (B, H, Lq, Lk)."""
        return q @ k.transpose(-1, -2)

    def content(self, q: Tensor, k: Tensor, positions: Positions) -> Tensor | None:
        """Logits that need q or k (unrotated) beside the position, added to scaled q k^T, (B, H, Lq, Lk)."""
        return None

    def normalise(self, logits: Tensor, positions: Positions) -> Tensor:
        """Logits (B, H, Lq, Lk), float32, -inf where a query does not see a key: the weights, 0 there; softmax."""
        return torch.softmax(logits, dim=-1)

    def mix(self, weights: Tensor, v: Tensor, positions: Positions) -> Tensor:
        """Attention weights (B, H, Lq, Lk) applied to the values (B, H, Lk, d), where `change_values` is not enough."""
        return weights @ v

    def near_values(self, positions: Positions) -> Tensor | None:
        """What `mix` adds to each v_j, (m, d): for a key 0, 1, ..., m - 1 places back, the last for all further.

        Stated beside `mix` by members that do nothing else, for decoders with regular coordinates, so that fused
        attention can add it. No rows: `mix` adds nothing. None: it does something else.
        """
        return None


@dataclass(frozen=True)
class Branch:
    """A far region: pairs for which attention uses other positions."""

    positions: Positions
    region: Callable[[Positions], Tensor]
    """Given (a slice of) the scheme's own positions: True where this branch counts, (R, Lq, Lk)."""
    by_distance: bool = False
    """Whether the distance alone decides that, where coordinates are regular."""


class Extension(Member):
    """What carries an encoding past its training length. Acts in the phases named by its setting `at`.

    `scale`, `mask`, `adapt` and regions of `branches` may see a slice of queries, and of keys, which may begin later.
    """

    default_at: ClassVar[tuple[str, ...]] = ("tune", "test")

    def __init__(self, shape: Shape, config: Any, at: tuple[str, ...] | None = None) -> None:
        super().__init__(shape, config)
        self.at = at or self.default_at

    def same_in(self, phases: Sequence[str]) -> bool:
        """Whether it acts alike in these phases, all of which it acts in."""
        return True

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

    def refuses_beside(self, other: "Extension") -> str | None:
        """Why it cannot act together with another extension of the scheme, in some phase of both; None if it can."""
        return None

    def refuses_after(self, earlier: "Extension") -> str | None:
        """Why it cannot act after another one that the scheme names earlier, in some phase of both; None if it can."""
        return None

    def coordinates(self, positions: Positions) -> Positions:
        """Other coordinates. If prefix-stable, that of a token stays as it is while others come after it."""
        return positions

    def frequencies(self, inv_freq: Tensor, positions: Positions) -> Tensor:
        """Other frequencies, (R, n), of whatever encoding has frequencies."""
        return inv_freq

    def branches(self, positions: Positions) -> tuple[Branch, ...]:
        """Far regions; where they overlap, the later one counts."""
        return ()

    def scale(self, positions: Positions) -> float | Tensor | None:
        """Factor on the content logits, not on a bias: a number, (R, Lq), or (R, H, Lq); None is 1."""
        return None

    def sink(self) -> Tensor | None:
        """One more logit for each head, (H,), float32: it counts in the softmax's denominator and has no value.

        Several sinks of a scheme all count.
        """
        return None

    def mask(self, positions: Positions) -> Tensor | None:
        """What a query may see, (R, Lq, Lk), and-ed with causality, documents and the other masks; None is all."""
        return None

    def distance_mask(self, steps: Tensor) -> Tensor | None:
        """`mask` for places that lie so many steps apart (query minus key), any shape: bool; None is no such mask.

        Stated beside `mask` by members that look at nothing else, so that fused attention holds it in one row.
        """
        return None

    def reach(self, first: int, last: int) -> tuple[tuple[int, int], ...] | None:
        """Where the keys lie that `mask` lets the queries first ... last see: ranges [start, stop); None is all.

        Queries and keys are meant by their place in the document. A range may be larger than what is seen, begin below
        0 and end after the last key. It holds in every phase, in decoders and encoders.
        """
        return None

    def adapt(self, logits: Tensor, bias: Tensor | None, positions: Positions) -> Tensor:
        """Logits (B, H, Lq, Lk) without and with the bias (R, H, Lq, Lk) still to add: the sum, changed."""
        return logits if bias is None else logits + bias


@contextmanager
def in_float32(device: torch.device) -> Iterator[None]:
    """Hooks run in here: without autocast, and with float32 for what is made of integers or plain numbers."""
    before = torch.get_default_dtype()
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        with torch.autocast(device.type, enabled=False), in_float32(device):
            yield
    elif before == torch.float32:
        yield
    else:
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def settle(distance: Tensor) -> Tensor:
    """Distances snapped to 1/64, so that float error never decides a row of a table, for members that round them."""
    return (distance * 64).round() / 64


def overrides(member: Member | type[Member], hook: str) -> bool:
    """Whether a member (or its class) has its own version of a hook."""
    cls = member if isinstance(member, type) else type(member)
    base = Encoding if issubclass(cls, Encoding) else Extension
    return getattr(cls, hook) is not getattr(base, hook)
