"""Documents as tokens, and the two ways of cutting them.

B batch, N windows, L length. Both functions are pure: they draw from counter-based Philox streams
keyed by their arguments (raw bits, which NumPy keeps stable between versions), so that every scheme
sees the same tokens, in every process, and a resumed training goes on where it stopped.
"""

import logging
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import LongTensor

from pezoo.errors import UserError
from pezoo.task import Example

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Tokens:
    """The documents of one split, end to end.

    Attributes:
        ids: (n_tokens,) uint8, uint16 or uint32, usually memory-mapped.
        offsets: (n_documents + 1,) int64; document i is `ids[offsets[i]:offsets[i + 1]]`.
        names: of the documents.
        n_bytes: bytes of UTF-8 that the ids stand for; None: unknown.
        split: which one it is, for messages; None: unknown.
    """

    ids: np.ndarray
    offsets: np.ndarray
    names: list[str]
    n_bytes: int | None = None
    split: str | None = None

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.names)

    @property
    def lengths(self) -> np.ndarray:
        """(n_documents,) int64: tokens in each document."""
        return np.diff(self.offsets)

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes of text over tokens, None where unknown: a loss in nats is loss / ln 2 / this in bits per byte."""
        return self.n_bytes / len(self.ids) if self.n_bytes and len(self.ids) else None

    def batch(self, step: int, batch_size: int, length: int, seed: int, longest: int | None = None) -> Example:
        """A batch of `crops`, each token's target being the next one."""
        ids = crops(self, length, batch_size, step, seed, longest)
        return Example(ids[:, :-1], ids[:, 1:])

    def rows(self, batch_size: int, longest: int, length: int) -> int:
        """More of shorter crops, so that the tokens of a batch stay as many."""
        return batch_size * longest // length


@dataclass(frozen=True, eq=False)
class Windows:
    """Fixed sequences to test on.

    Attributes:
        ids: (N, L + 1) int64; the last L are the targets of the first L.
        document: (N,) int64, which of the tokens' documents each was cut from.
        offset: (N,) int64, where in that document it starts.
    """

    ids: LongTensor
    document: np.ndarray
    offset: np.ndarray

    @property
    def overlap(self) -> float:
        """Tokens of all windows over different tokens of the text: 1 where none is read twice."""
        order = np.lexsort((self.offset, self.document))
        document, offset, width = self.document[order], self.offset[order], self.ids.shape[1]
        alike = document[1:] == document[:-1]
        new = np.where(alike, np.minimum(np.diff(offset), width), width).sum() + width * min(1, len(offset))
        return len(offset) * width / max(1, int(new))


def crops(tokens: Tokens, length: int, batch_size: int, step: int, seed: int, longest: int | None = None) -> LongTensor:
    """Cut a training batch.

    Every place where `length + 1` tokens fit inside a document is equally likely. Documents shorter than
    `longest + 1` are passed over, so that batches of other lengths are cut from the same ones; if all are shorter,
    crops are cut from the documents laid end to end.

    Args:
        tokens: what is cropped.
        length: tokens read in a sequence.
        batch_size: sequences.
        step: number of the batch.
        seed: of the draws.
        longest: length of the longest batches of a training; None: `length`.

    Returns:
        (B, L + 1) int64, for one `seed` and `step` always the same; a smaller batch is the
        beginning of a larger one.

    Raises:
        UserError: if the whole split is shorter than `longest + 1` tokens.
    """
    longest = longest or length
    first, upto = _starts(tokens, longest)
    more = longest - length  # places in each document, beside those of the longest
    draw = philox(seed, step).random_raw(batch_size) % np.uint64(upto[-1] + more * len(upto))
    draw = draw.astype(np.int64)
    # The number of documents all of whose places are below the draw, by bisection: `upto + more * (1, 2, ...)` would
    # be as long as the corpus has documents.
    document, end = np.zeros_like(draw), np.full_like(draw, len(upto) - 1)
    while (document < end).any():
        middle = (document + end) // 2
        below = upto[middle] + more * (middle + 1) <= draw
        document, end = np.where(below, middle + 1, document), np.where(below, end, middle)
    return _cut(tokens, length, first[document] + draw - more * document)


def windows(tokens: Tokens, length: int, count: int, seed: int) -> Windows:
    """Cut the test sequences.

    They lie inside documents longer than `length`, each document giving as many as the next (give
    or take one, and as far as it is long enough). Within a document they are placed at random
    without overlap; they overlap only where `count` leaves no other way. No two are the same: a
    split that has fewer than `count` places gives fewer.

    Args:
        tokens: what is cut.
        length: tokens read in a sequence.
        count: how many sequences.
        seed: of the draws.

    Returns:
        The windows, N <= `count`, in the order of their documents.

    Raises:
        UserError: if no document is longer than `length` tokens.
    """
    lengths = tokens.lengths
    places = np.maximum(lengths - length, 0)
    if not places.any():
        longest = int(lengths.argmax())
        raise UserError(
            f"no test document is longer than {length} tokens: the longest, "
            f"{tokens.names[longest]}, has {lengths[longest]}. Keep test.lengths below "
            "that, or choose a corpus with longer documents (data.corpus, data.path)."
        )
    random = philox(seed, 0)
    counts = _share(count, places, lengths // (length + 1), random)
    if counts.sum() < count:
        _log.warning("only %d test windows of %d tokens exist, not %d", counts.sum(), length, count)
    document = np.repeat(np.arange(len(tokens)), counts)
    offset = np.concatenate([_place(n, int(lengths[i]), length + 1, random) for i, n in enumerate(counts) if n])
    return Windows(_cut(tokens, length, tokens.offsets[document] + offset), document, offset)


def philox(seed: int, stream: int) -> np.random.Philox:
    """A stream of random bits of its own for each pair of numbers."""
    return np.random.Philox(key=np.array([seed % 2**64, stream % 2**64], np.uint64))


@lru_cache(maxsize=16)
def _starts(tokens: Tokens, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Where crops may start.

    The places are numbered through all documents that are long enough; number i of them has those below `upto[i]`, and
    adding `first[i]` to the number of a place gives its index in `tokens.ids`.
    """
    lengths, starts = tokens.lengths, tokens.offsets[:-1]
    which = "" if tokens.split in (None, "train") else f"{tokens.split} split: "
    read = lengths > length
    inside = lengths[read].sum() / max(1, len(tokens.ids))
    if inside > 0:
        places = lengths[read] - length
        upto = np.cumsum(places)
        if inside < 0.5:
            _log.warning(
                "%sonly %.0f%% of the text is in documents longer than %d tokens; no other is read",
                which,
                100 * inside,
                length,
            )
        return starts[read] - (upto - places), upto
    if len(tokens.ids) <= length:
        what = "the corpus" if tokens.split is None else f"the {tokens.split} split of the corpus"
        more = " raise data.validation_fraction (unless the corpus has a validation split of its own),"
        raise UserError(
            f"{what} has {len(tokens.ids)} tokens to crop, too few for sequences of {length}:"
            f"{more if tokens.split == 'validation' else ''} shorten train.length or tune.length, or choose a larger "
            "corpus (data.corpus, data.path)."
        )
    _log.warning("%sno document is longer than %d tokens: crops run across documents", which, length)
    return np.zeros(1, np.int64), np.array([len(tokens.ids) - length])


def _cut(tokens: Tokens, length: int, starts: np.ndarray) -> LongTensor:
    view = np.lib.stride_tricks.sliding_window_view(tokens.ids, length + 1)
    return torch.from_numpy(view[starts].astype(np.int64))


def _share(count: int, places: np.ndarray, disjoint: np.ndarray, random: np.random.Philox) -> np.ndarray:
    """How many windows each document gives: round after round, one each, in a random order."""
    order = np.argsort(random.random_raw(len(places)), kind="stable")
    counts = np.zeros_like(places)
    for most in (disjoint, places):
        while count and (open_ := order[counts[order] < most[order]]).size:
            counts[open_[:count]] += 1
            count -= min(count, open_.size)
    return counts


def _place(n: int, size: int, width: int, random: np.random.Philox) -> np.ndarray:
    """`n` distinct sorted offsets of windows of `width` in a document, disjoint if they can be."""
    slack = size - n * width
    if slack < 0:
        return np.sort(np.argsort(random.random_raw(size - width + 1), kind="stable")[:n])
    gaps = np.sort(random.random_raw(n) % np.uint64(slack + 1)).astype(np.int64)
    return gaps + width * np.arange(n)
