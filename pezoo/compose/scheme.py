"""Schemes as modules: what holds the parameters of a model's members, layer by layer."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pezoo.compose.numbers import Numbers
from pezoo.compose.plain import Plain
from pezoo.compose.prepared import Group, Prepared
from pezoo.contract import (
    PHASES,
    Extension,
    Member,
    Positions,
    Shape,
    Undefined,
    in_float32,
    to_device,
)
from pezoo.errors import UserError, suggest
from pezoo.registry import entry
from pezoo.scheme import Spec


class Scheme(Numbers):
    """A scheme built for a model: the module that holds its parameters and composes it for each forward.

    In a model of one's own:

        prepared = scheme.prepare(scheme.positions(batch, length, phase="train", rows=rows))
        x = prepared.embed(x)                   # (B, L, D), once
        out = prepared.attend(layer, q, k, v)   # (B, H, L, d), in each layer

    Schemes that read the input of each layer want it too: `prepared.attend(layer, q, k, v, x=x)`.

    Its parameters stay float32 when the model around it is cast to another precision.

    Raises:
        UserError: if a mixture does not match the model's layers or heads.
    """

    def __init__(self, spec: Spec, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        self.spec, self.shape, self.seed = spec, shape, seed
        layers = spec.layers or (spec,)
        if shape.n_layers % len(layers):
            n, have = len(layers), shape.n_layers
            raise UserError(
                f"the scheme repeats {n} layers, and n_layers = {have} is no multiple; set it to {-(-have // n) * n}"
            )
        per_layer = [layer.heads or ((layer, shape.n_heads),) for layer in layers * (shape.n_layers // len(layers))]
        for groups in per_layer:
            total = sum(n for _, n in groups)
            if total != shape.n_heads:
                raise UserError(f"heads names {total} heads in all, but n_heads = {shape.n_heads}")
        # One module a (scheme, number of heads), shared by the layers that use it; `self.plan` says which, as
        # (key, heads, place among its layers).
        counts: dict[tuple[Spec, int], int] = {}
        self.plan: list[list[tuple[int, slice, int]]] = []
        for groups in per_layer:
            start, row = 0, []
            for group in groups:
                place = counts.get(group, 0)
                counts[group] = place + 1
                row.append((list(counts).index(group), slice(start, start + group[1]), place))
                start += group[1]
            self.plan.append(row)
        self.parts = nn.ModuleList()
        for (part, n), count in counts.items():
            width = shape.d_model if n == shape.n_heads else n * shape.head_dim
            self.parts.append(Plain(part, replace(shape, n_heads=n, d_model=width, n_layers=count)))
        self.layer_counts = list(counts.values())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Scheme":
        """Let `model.to(...)`, `.bfloat16()` and `.double()` move the parameters, and not cast them."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        nn.Module._apply(self, move, recurse)
        return self

    def positions(
        self, batch: int, length: int, *, phase: str | None = None, rows: Sequence[int] | None = None, **facts: Any
    ) -> Positions:
        """Positions for `batch` rows of `length` tokens, for `prepare`.

        Args:
            batch: rows (B).
            length: tokens of a row (L).
            phase: "train", "tune" or "test"; may be left out where the scheme acts alike in all of them.
            rows: numbers of these sequences, for schemes that draw random positions. In training count on from step to
                step: range(step * B, (step + 1) * B).
            facts: declared, documents, valid, tokens, device, seed, first_row and draws, as in `Positions.build`.
        """
        facts = {"causal": self.shape.causal, "seed": self.seed} | facts
        return Positions.build(length, batch, phase=phase, rows=rows, **facts)

    def positions_of(
        self,
        q: Tensor,
        k: Tensor,
        *,
        phase: str | None = None,
        rows: Sequence[int] | None = None,
        positions: Positions | None = None,
        tokens: Tensor | None = None,
    ) -> Positions:
        """Positions of q (B, H, Lq, d) and k (B, Hkv, Lk, d): those given, or plain ones, q being of the last tokens.

        Raises:
            UserError: if phase or rows come beside positions, which have them.
        """
        if positions is None:
            n_queries, n_keys = q.shape[-2], k.shape[-2]
            whole = self.positions(len(q), n_keys, phase=phase, rows=rows, tokens=tokens, device=q.device)
            return whole.slice(n_keys - n_queries, n_keys)
        if phase is not None or rows is not None:
            raise UserError("phase and rows are part of positions: pass either these, or positions=")
        return positions if tokens is None else positions.replace(tokens=to_device(tokens, q.device))

    def prepare(self, positions: Positions, cached: bool = False) -> Prepared:
        """Make ready for one forward over these positions.

        Args:
            positions: of its queries and keys.
            cached: whether a cache keeps keys. What comes to it then goes through `Prepared.turn` first: where a
                scheme allows it, keys are kept turned.

        Raises:
            Undefined: if a member has no value for a position.
            UserError: if the positions leave open what the scheme must know: the phase, or which sequences these are.
        """
        positions = self._settled(positions)
        mixed = {key for row in self.plan for key, *_ in row if len(row) > 1}  # its heads may share keys with others
        with in_float32(positions.query.device):
            kept = [cached and key not in mixed and p.keeps_turned(positions) for key, p in enumerate(self.plain)]
            made = [p.compose(positions, n, t) for p, n, t in zip(self.plain, self.layer_counts, kept, strict=True)]
        layers = tuple(tuple(Group(heads, made[part][1][place]) for part, heads, place in row) for row in self.plan)
        return Prepared(self.shape, made[0][0], layers)

    def _settled(self, positions: Positions) -> Positions:
        """The positions with a phase; refused if they do not go with the scheme."""
        if positions.causal != self.shape.causal:
            kinds = {True: "a decoder (causal=True)", False: "an encoder (causal=False)"}
            raise UserError(
                f"these positions are those of {kinds[positions.causal]}, but the scheme was created for "
                f"{kinds[self.shape.causal]}; scheme.positions(...) makes fitting ones"
            )
        names = {m.name for m in self.spec.all_members()}
        unknown = next((name for name in positions.draws or {} if name not in names), None)
        if unknown is not None:
            raise UserError(f"draws are given for {unknown!r}, which {self.spec} has not.{suggest(unknown, names)}")
        if readers := self._reading_tokens():
            n_keys, tokens = positions.key.shape[1], positions.tokens
            if tokens is None:
                raise UserError(f"{', '.join(readers)} reads the tokens: pass tokens=, their ids, (B, {n_keys})")
            if tokens.ndim != 2 or tokens.shape[1] != n_keys:
                raise UserError(f"tokens has the shape {tuple(tokens.shape)}, not (B, {n_keys})")
        if positions.phase is not None:
            return positions
        if differing := self.differs_by_phase(PHASES):
            raise UserError(
                f"{', '.join(differing)} acts differently in training, tuning and testing: "
                "pass phase='train', phase='tune' or phase='test'"
            )
        return positions.replace(phase="test")

    def _reading_tokens(self) -> list[str]:
        """Names of the members that make coordinates of tokens."""
        return [m.name for m in self.spec.all_members() if entry(m.name).member.traits.tokens]

    def differs_by_phase(self, phases: Sequence[str]) -> list[str]:
        """Names of the extensions that do not act alike in all of these phases."""
        found = []
        for extension, *_ in (copies for part in self.plain for copies in part.extensions):
            acting = [phase in extension.at for phase in phases]
            if any(acting) and not (all(acting) and extension.same_in(phases)):
                found.append(extension.name)
        return list(dict.fromkeys(found))

    def logits(
        self,
        q: Tensor,
        k: Tensor,
        *,
        layer: int = 0,
        phase: str | None = None,
        rows: Sequence[int] | None = None,
        positions: Positions | None = None,
        x: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> Tensor:
        """What the softmax of a layer sees: scaled products, biases and all that the scheme adds, but for a sink.

        Args:
            q: queries, (B, H, Lq, d), not rotated; the last Lq of Lk tokens.
            k: keys, (B, Hkv, Lk, d), not rotated.
            layer: whose part of the scheme.
            phase: as in `positions`.
            rows: as in `positions`.
            positions: instead of phase and rows.
            x: what q and k are made of, (B, Lk, D), for schemes that read it.
            tokens: ids of the keys' tokens, (B, Lk), for schemes that read them.

        Returns:
            (B, H, Lq, Lk), float32; -inf where a query does not see a key.

        Raises:
            UserError: if sizes are not those of the scheme, or phase, rows, x or tokens are missing.
        """
        prepared = self.prepare(self.positions_of(q, k, phase=phase, rows=rows, positions=positions, tokens=tokens))
        return prepared.logits(layer, q, k, x=x)

    # ---- its members ----------------------------------------------------------------------------

    def load_from(self, trained: "Scheme") -> None:
        """Take over the parameters of a scheme with the same encodings and perhaps other extensions, layer by layer.

        Layers that shared a module there may have one each here: those that differ by an extension only act alike in
        training.
        """
        for row, their_row in zip(self.plan, trained.plan, strict=True):
            for (part, _, place), (their_part, _, their_place) in zip(row, their_row, strict=True):
                found = trained.plain[their_part].copies()
                for name, copies in self.plain[part].copies().items():
                    if name in found:
                        source = found[name][their_place % len(found[name])]
                        copies[place % len(copies)].load_state_dict(source.state_dict())

    @property
    def plain(self) -> list[Plain]:
        """The plain schemes that it is made of."""
        return [part for part in self.parts if isinstance(part, Plain)]

    @property
    def members(self) -> list[Member]:
        """Every member once, in order."""
        return [copies[0] for part in self.plain for copies in part.copies().values()]

    @property
    def prefix_stable(self) -> bool:
        """Whether the logits of a prefix are, in testing, independent of the declared length."""
        return all(m.prefix_stable for m in self.members if "test" in getattr(m, "at", ("test",)))

    def undefined(self, length: int, phase: str = "test") -> str | None:
        """Why the scheme has no value at a length, or None if it has; where it reads tokens, for a text of zeros."""
        device = next((p.device for p in self.parameters()), None)
        tokens = torch.zeros(1, length, dtype=torch.int64) if self._reading_tokens() else None
        try:
            self.prepare(self.positions(1, length, phase=phase, rows=(0,), tokens=tokens, device=device))
        except Undefined as reason:
            return str(reason)
        return None

    def scale_factor(self, length: int) -> float | None:
        """The factor in force at a test length, for the record; None if no member has one."""
        unset = max(1.0, length / self.shape.train_length)
        configs = [m.config for m in self.members if isinstance(m, Extension) and "test" in m.at]
        factors = [unset if c.factor is None else c.factor for c in configs if hasattr(c, "factor")]
        return max(factors, default=None)
