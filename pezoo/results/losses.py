"""The losses of evaluations, summed per document and position bin.

Each evaluation of a study keeps its own, an npz file beside the cell's facts. Reports need less: sums by document, for
intervals, and sums by position, for curves. A published study holds these of all its cells in one file.
"""

import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np

from pezoo.errors import UserError
from pezoo.files import replacing


@dataclass(frozen=True, eq=False, kw_only=True)
class Losses:
    """The losses of one evaluation, summed per document and position bin.

    Raises:
        ValueError: if shapes do not fit each other, or edges do not ascend.
    """

    loss_sum: np.ndarray
    """(documents, bins) float64: summed loss in nats."""
    tokens: np.ndarray
    """(documents, bins) int64: scored tokens."""
    edges: np.ndarray
    """(bins + 1,) int64: bin i covers the positions edges[i] <= p < edges[i + 1], from 0."""
    documents: Sequence[str]
    """A name per row."""
    test_length: int
    """T, in tokens."""
    protocol: str
    """How it was tested."""

    def __post_init__(self) -> None:
        """Bring the arrays to their types and check their shapes."""
        kinds = {"loss_sum": np.float64, "tokens": np.int64, "edges": np.int64}
        for name, kind in kinds.items():
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=kind))
        object.__setattr__(self, "documents", tuple(str(name) for name in self.documents))
        object.__setattr__(self, "test_length", int(self.test_length))
        shape = (len(self.documents), len(self.edges) - 1)
        if self.loss_sum.shape != shape or self.tokens.shape != shape:
            raise ValueError(
                f"loss_sum {self.loss_sum.shape} and tokens {self.tokens.shape} must both be "
                f"(documents, bins) = {shape}"
            )
        if np.any(np.diff(self.edges) < 1):
            raise ValueError("edges must ascend")

    def marginals(self) -> "Marginals":
        """Return the sums by document and by position."""
        return Marginals(
            document_loss=self.loss_sum.sum(axis=1),
            document_tokens=self.tokens.sum(axis=1),
            position_loss=self.loss_sum.sum(axis=0),
            position_tokens=self.tokens.sum(axis=0),
            edges=self.edges,
            documents=tuple(self.documents),
            test_length=self.test_length,
            protocol=self.protocol,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Marginals:
    """The losses of one evaluation, summed by document and by position bin."""

    document_loss: np.ndarray
    """(documents,): summed loss in nats."""
    document_tokens: np.ndarray
    """(documents,): scored tokens."""
    position_loss: np.ndarray
    """(bins,): summed loss in nats."""
    position_tokens: np.ndarray
    """(bins,): scored tokens."""
    edges: np.ndarray
    """(bins + 1,): bin i covers the positions edges[i] <= p < edges[i + 1], from 0."""
    documents: tuple[str, ...]
    """Their names."""
    test_length: int
    """T, in tokens."""
    protocol: str
    """How it was tested."""

    def by_position(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean loss by position.

        Returns:
            Positions counted from 1, each the middle of its bin, and the mean loss in nats there;
            both (bins,), leaving out bins in which nothing was scored.
        """
        kept = self.position_tokens > 0
        middle = (self.edges[:-1] + 1 + self.edges[1:]) / 2
        return middle[kept], self.position_loss[kept] / self.position_tokens[kept]


_LOSSES = tuple(field.name for field in fields(Losses))


def write_losses(path: str | Path, losses: Losses) -> None:
    """Write losses as an npz file, replacing it at once.

    Args:
        path: the file; its folder is made if it is missing.
        losses: what to write.

    Raises:
        OSError: if the file cannot be written; what was there before is then unchanged.
    """
    with replacing(path) as file:
        np.savez_compressed(file, allow_pickle=False, **{name: np.asarray(getattr(losses, name)) for name in _LOSSES})


def read_losses(path: str | Path) -> Losses:
    """Read what `write_losses` wrote.

    Args:
        path: an npz file.

    Returns:
        The losses.

    Raises:
        UserError: if there is no such file, or it does not hold exactly what losses are made of.
    """
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if set(arrays.files) != set(_LOSSES):
                raise ValueError(f"it must hold {', '.join(_LOSSES)}")
            found = {name: arrays[name] for name in _LOSSES}
        found["protocol"] = str(found["protocol"])
        return Losses(**found)
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"cannot read losses from {path}: {error}. Run the study again to have it written anew."
        ) from error


def pack_losses(path: str | Path, losses: Mapping[str, Sequence[Marginals]]) -> None:
    """Write the sums of many cells as one npz file; the same sums always give the same bytes.

    Losses are kept in float32, so their means are exact to 7 digits.

    Args:
        path: the file to replace or to make.
        losses: by cell.
    """
    found = [(cell, one) for cell, each in losses.items() for one in each]
    names = list(dict.fromkeys(name for _, one in found for name in one.documents))
    place = {name: i for i, name in enumerate(names)}
    arrays = {
        "cells": [cell for cell, _ in found],
        "protocols": [one.protocol for _, one in found],
        "test_lengths": np.array([one.test_length for _, one in found], dtype=np.int64),
        "shapes": np.array([(len(one.documents), len(one.edges) - 1) for _, one in found], np.int64).reshape(-1, 2),
        "names": names,
        "documents": np.array([place[name] for _, one in found for name in one.documents], dtype=np.int32),
        "edges": _flat([one.edges for _, one in found], np.int32),
        **{name: _flat([getattr(one, name) for _, one in found], kind) for name, kind in _SUMS.items()},
    }
    with replacing(path) as file:
        np.savez_compressed(file, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})


_SUMS = {
    "document_loss": np.float32,
    "document_tokens": np.int32,
    "position_loss": np.float32,
    "position_tokens": np.int32,
}


def _flat(arrays: Sequence[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays] or [np.empty(0)]).astype(kind)


Sources = str | Path | tuple["str | Path", ...]
"""Where losses are: the folder `cells/` of a study, a file of `pack_losses`, or several of these."""


def losses_of(source: Sources, cells: Iterable[str]) -> dict[str, list[Marginals]]:
    """The losses of some cells, summed, by cell; a cell that has none is left out.

    Args:
        source: the folder `cells/` of a study, with `losses_*.npz` in a folder per cell, or a file of `pack_losses`; of
            several, the first that has a cell counts.
        cells: their names.

    Raises:
        UserError: if a file is not whole.
    """
    cells = list(cells)
    if isinstance(source, tuple):
        return {cell: losses for one in reversed(source) for cell, losses in losses_of(one, cells).items()}
    source = Path(source)
    if source.is_file():
        packed = _unpack(source, source.stat().st_mtime_ns)
        return {cell: packed[cell] for cell in dict.fromkeys(cells) if cell in packed}
    files = {cell: sorted((source / cell).glob("losses_*.npz")) for cell in dict.fromkeys(cells)}
    return {cell: [_read(path, path.stat().st_mtime_ns) for path in paths] for cell, paths in files.items() if paths}


@lru_cache(maxsize=2000)
def _read(path: Path, changed: int) -> Marginals:
    """The sums of what `write_losses` wrote; a report asks for the same file a dozen times."""
    return read_losses(path).marginals()


@lru_cache(maxsize=1)
def _unpack(path: Path, changed: int) -> dict[str, list[Marginals]]:
    """What `pack_losses` wrote; read once for each time that the file has changed."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        losses: dict[str, list[Marginals]] = {}
        document = place = 0
        facts = (found[name].tolist() for name in ("cells", "protocols", "test_lengths", "shapes"))
        for number, (cell, protocol, test_length, (rows, bins)) in enumerate(zip(*facts, strict=True)):
            sizes = {"document": slice(document, document + rows), "position": slice(place, place + bins)}
            one = Marginals(
                **{name: found[name][sizes[name.partition("_")[0]]] for name in _SUMS},
                edges=found["edges"][place + number : place + number + bins + 1],
                documents=tuple(found["names"][found["documents"][sizes["document"]]].tolist()),
                test_length=test_length,
                protocol=protocol,
            )
            losses.setdefault(cell, []).append(one)
            document, place = document + rows, place + bins
        return losses
    except (OSError, EOFError, LookupError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"cannot read the losses of a published study from {path}: {error}") from error
