"""The numbers of a scheme: biases, frequencies, and tables for attention that is not pezoo's."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pezoo.compose.flex import MaskMod, ScoreMod, mask_mod, score_mod
from pezoo.compose.prepared import Group, Prepared
from pezoo.compose.tables import rope_tables
from pezoo.contract import Encoding, Member, Positions, Shape, in_float32, overrides
from pezoo.errors import UserError
from pezoo.scheme import Spec


class Numbers(nn.Module):
    """What can be read from a scheme; `Scheme` says what it is made of."""

    spec: Spec
    shape: Shape

    @property
    def members(self) -> list[Member]:
        """Every member once, in order."""
        raise NotImplementedError

    def positions(
        self, batch: int, length: int, *, phase: str | None = None, rows: Sequence[int] | None = None, **facts: Any
    ) -> Positions:
        """Positions for some rows."""
        raise NotImplementedError

    def prepare(self, positions: Positions) -> Prepared:
        """Make ready for one forward."""
        raise NotImplementedError

    def bias(
        self, length: int, *, layer: int = 0, phase: str = "test", row: int = 0, positions: Positions | None = None
    ) -> Tensor:
        """What the encodings add to the logits of a layer whatever the tokens say; zero where they add nothing.

        Args:
            length: tokens of the sequence (L).
            layer: whose part of the scheme.
            phase: "train", "tune" or "test".
            row: number of the sequence, where positions are random.
            positions: of one row, instead of length, phase and row.

        Returns:
            (H, L, L) for queries and keys, float32; causality and masks are not in it.

        Raises:
            UserError: if a bias is made of the layer's input; `logits` shows it.
        """
        reader = next((m.name for m in self.members if isinstance(m, Encoding) and overrides(m, "read")), None)
        if reader is not None:
            raise UserError(f"what {reader} adds depends on the layer's input; scheme.logits(q, k, x=x) shows it")
        groups = self._layer(length, layer, phase, row, positions)
        with in_float32(groups[0].composition.positions.query.device):
            return torch.cat([g.bias() for g in groups])

    def frequencies(
        self,
        length: int,
        *,
        layer: int = 0,
        head: int = 0,
        phase: str = "test",
        row: int = 0,
        positions: Positions | None = None,
    ) -> Tensor:
        """Frequencies in radians per position, as the extensions leave them at a declared length of `length` tokens.

        Args:
            length: tokens of the sequence.
            layer: whose part of the scheme.
            head: whose part of a mixture of heads.
            phase: "train", "tune" or "test".
            row: number of the sequence, where they are random.
            positions: of one row, instead of length, phase and row.

        Returns:
            (n,), float32, in the encoding's order, fastest first. Of several encodings the first that has frequencies.

        Raises:
            UserError: if the scheme has none.
        """
        parts = self._group(length, layer, head, phase, row, positions).composition.base
        found = next((p.positions.inv_freq for p in parts if p.positions.inv_freq is not None), None)
        if found is None:
            raise UserError(f"{self.spec} has no frequencies")
        return found[0]

    def temperature(
        self,
        length: int,
        *,
        layer: int = 0,
        head: int = 0,
        phase: str = "test",
        row: int = 0,
        positions: Positions | None = None,
    ) -> Tensor:
        """The factor that extensions put on each query's products with keys, beside the encoding's own scale.

        Arguments as in `frequencies`. Returns (L,), float32, 1 where no extension changes it.
        """
        group = self._group(length, layer, head, phase, row, positions)
        composition = group.composition
        query = composition.positions.query
        with in_float32(query.device):
            sigma = torch.as_tensor(composition.sigma(), device=query.device)
            if sigma.ndim:  # (1, 1 or H, Lq, 1)
                sigma = sigma[0, (head - group.heads.start) % sigma.shape[1], :, 0]
            return sigma.expand(query.shape[1]).clone()

    def rope_tables(
        self,
        length: int,
        *,
        layer: int = 0,
        head: int = 0,
        phase: str = "test",
        row: int = 0,
        positions: Positions | None = None,
        beside_mods: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines for attention that is not pezoo's: q is to become q cos + turned(q) sin, and k likewise.

        `turned` is the usual function of the scheme's pairing: with `rope:pairing=half` it puts (-b, a) for the halves
        (a, b) of the channels, else (-b, a) for each two neighbours. A temperature that all queries share is in the
        tables: q and k both get its root, as in transformers.

        Args:
            length: as all up to positions in `frequencies`.
            layer: as there.
            head: as there.
            phase: as there.
            row: as there.
            positions: as there.
            beside_mods: True where `score_mod(turned=True)` and `mask_mod` do the rest. Then the tables hold the
                rotation alone, and the scheme may have biases, masks and any temperature too.

        Returns:
            (L, r) each, float32, for the first r channels of a head, those that turn.

        Raises:
            UserError: if they do not say all that the scheme does to attention, with the reason.
        """
        return rope_tables(self._group(length, layer, head, phase, row, positions).composition, beside_mods)

    def score_mod(
        self,
        length: int,
        *,
        layer: int = 0,
        phase: str = "test",
        row: int = 0,
        positions: Positions | None = None,
        turned: bool = False,
    ) -> ScoreMod:
        """A `score_mod` for PyTorch's flex_attention, with its own default scale: biases, and factors on logits.

        A bias of distance alone is read from one row per head, any other from a table (H, L, L). Both are made here, as
        constants: what is learned gets no gradient through them. To train a scheme's parameters use `pezoo.attend`.

        Args:
            length: as all up to positions in `bias`.
            layer: as there.
            phase: as there.
            row: as there.
            positions: as there.
            turned: say True once q and k are turned by `rope_tables(beside_mods=True)`.

        Raises:
            UserError: if a score and its place do not determine what the scheme makes of it, with the reason.
        """
        return score_mod(self._layer(length, layer, phase, row, positions), turned)

    def mask_mod(
        self,
        length: int,
        *,
        layer: int = 0,
        phase: str = "test",
        positions: Positions | None = None,
    ) -> MaskMod:
        """A `mask_mod` for PyTorch's create_block_mask: what a query sees, causality and documents included.

        Arguments as in `positions_of`; positions may have several rows here, as many as the batch.
        """
        if positions is None:
            positions = self.positions(1, length, phase=phase, rows=(0,))
        return mask_mod(self.prepare(positions).at(layer))

    def _layer(self, length: int, layer: int, phase: str, row: int, positions: Positions | None) -> tuple[Group, ...]:
        if positions is None:
            device = next((p.device for p in self.parameters()), None)
            positions = self.positions(1, length, phase=phase, rows=(row,), device=device)
        if len(positions.key) > 1:
            raise UserError(f"one row is looked at, not {len(positions.key)}")
        return self.prepare(positions).at(layer)

    def _group(self, length: int, layer: int, head: int, phase: str, row: int, positions: Positions | None) -> Group:
        if not 0 <= head < self.shape.n_heads:
            raise UserError(f"head = {head}, but the scheme has heads 0 ... {self.shape.n_heads - 1}")
        groups = self._layer(length, layer, phase, row, positions)
        return next(g for g in groups if g.heads.start <= head < g.heads.stop)
