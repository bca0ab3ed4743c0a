"""Documents of a corpus, and how they are split, cut and joined."""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

SPLITS = ("train", "validation", "test")


Named = Iterable[tuple[str, str]]
"""Documents: name and text."""


@dataclass(frozen=True)
class Documents:
    """Documents of one split, read when they are asked for.

    Attributes:
        names: of all documents that `read` knows.
        sizes: (n,) int64, their bytes, about.
        read: numbers of documents -> their texts.
        rows: (m,) int64, which of them these are, in their order.
    """

    names: list[str]
    sizes: np.ndarray
    read: Callable[[list[int]], list[str]]
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def size(self) -> int:
        """Bytes in all, about."""
        return int(self.sizes[self.rows].sum())

    def select(self, which: np.ndarray) -> "Documents":
        """These of them, in this order."""
        return replace(self, rows=self.rows[which])

    def batches(self, size: int) -> Iterator[list[tuple[str, str]]]:
        """Names and texts of a few at a time: of one, or of more that have `size` bytes together."""
        filled = np.cumsum(self.sizes[self.rows]) // size
        for rows in np.split(self.rows, np.flatnonzero(np.diff(filled)) + 1):
            yield [(self.names[i], text) for i, text in zip(rows, self.read(rows.tolist()), strict=True)]


@dataclass(frozen=True)
class Source:
    """A corpus before it is tokenised.

    Attributes:
        name: what results call it.
        fingerprint: changes whenever a document or its split does.
        read: given a scratch folder, reads the documents of each split that the source has.
    """

    name: str
    fingerprint: str
    read: Callable[[Path], dict[str, Documents]]


def split(given: dict[str, Documents], validation: float, test: float) -> dict[str, Documents]:
    """Cut the splits that are missing from `train`.

    Documents are ranked by a hash of their names: the first are the test split, the next validate,
    so that which split a document is in hardly depends on the others. Where there are too few for
    every split to have one, each document is cut into contiguous parts instead.

    Args:
        given: the splits that the source has, `train` among them.
        validation: share of the documents that validates, unless given.
        test: share of the documents that tests, unless given.

    Returns:
        All three splits, their documents in the order of the hashes: any first part is a sample.
    """
    given = {name: documents.select(_rank(documents)) for name, documents in given.items()}
    shares = {"test": test, "validation": validation}
    shares = {name: share for name, share in shares.items() if name not in given}
    train = given["train"]
    total = len(train)
    counts = {name: max(1, int(share * total)) for name, share in shares.items()}
    if sum(counts.values()) >= total:
        return given | _contiguous(train, shares)
    start = 0
    for name, count in counts.items():
        given[name] = train.select(np.arange(start, start + count))
        start += count
    return given | {"train": train.select(np.arange(start, total))}


def _rank(documents: Documents) -> np.ndarray:
    keys = [hashlib.sha256(os.fsencode(documents.names[i])).digest() for i in documents.rows]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


def _contiguous(train: Documents, shares: dict[str, float]) -> dict[str, Documents]:
    """The beginning of each document is for training, its end for testing."""
    parts, start = {}, 0.0
    for name in SPLITS:
        if name in shares or name == "train":
            stop = start + shares.get(name, 1 - sum(shares.values()))
            names = [f"{document} ({name})" for document in train.names]
            sizes = (train.sizes * (stop - start)).astype(np.int64)
            parts[name] = Documents(names, sizes, partial(_parts, train, start, stop), train.rows)
            start = stop
    return parts


def _parts(documents: Documents, start: float, stop: float, rows: list[int]) -> list[str]:
    return [text[round(start * len(text)) : round(stop * len(text))] for text in documents.read(rows)]


def split_name(name: str) -> str:
    """What a split is called here, whatever it is called elsewhere."""
    return _OTHER_NAMES.get(name, name)


def keep(documents: Named, path: Path) -> Documents:
    """Documents that come one after the other, written to a file so that they can be read in any order."""
    names, ends = [], [0]
    with path.open("wb") as file:
        for name, text in documents:
            names.append(name)
            ends.append(ends[-1] + file.write(text.encode()))

    def read(rows: list[int]) -> list[str]:
        texts = []
        with path.open("rb") as file:
            for i in rows:
                file.seek(ends[i])
                texts.append(file.read(ends[i + 1] - ends[i]).decode())
        return texts

    return Documents(names, np.diff(np.array(ends, np.int64)), read, np.arange(len(names)))


def cut_at(documents: Named, delimiter: str) -> Named:
    """The parts of each document between the delimiters that have any text."""
    for name, text in documents:
        parts = (part.strip("\r\n") for part in text.split(delimiter))
        yield from ((f"{name}[{i}]", part) for i, part in enumerate(filter(None, parts)))


def join_rows(rows: Named, start: str) -> Named:
    """Rows as lines of documents; one that matches `start` is the first of a document, named by it."""
    begins, first, lines = re.compile(start).match, "", list[str]()
    for name, text in rows:
        if begins(text) and lines:
            yield first, "".join(lines)
            lines = []
        first = first if lines else name
        lines.append(text if text.endswith("\n") else text + "\n")
    yield first, "".join(lines)


def beginning(documents: Named, size: float) -> Named:
    """As many documents as have `size` bytes; no more are asked for."""
    for name, text in documents:
        yield name, text
        size -= len(text.encode())
        if size <= 0:
            return


_OTHER_NAMES = {"valid": "validation", "val": "validation", "dev": "validation"}
