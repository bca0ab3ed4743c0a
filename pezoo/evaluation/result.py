"""What one protocol finds at one test length."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pezoo.results import BITS_PER_BYTE, Status


@dataclass(frozen=True)
class Bins:
    """Summed loss by document and position: what intervals and curves by position are made of."""

    edges: NDArray[np.int64]
    """(n_bins + 1,) bin k holds the positions edges[k] ... edges[k + 1] - 1 of the contexts."""
    documents: NDArray[np.int64]
    """(n_docs,) each row's document, as an index into the corpus."""
    loss_sum: NDArray[np.float64]
    """(n_docs, n_bins) nats."""
    tokens: NDArray[np.int64]
    """(n_docs, n_bins) scored tokens."""


@dataclass(frozen=True)
class LengthResult:
    """One test length under one protocol."""

    test_length: int
    protocol: str = ""
    """As `evaluate` was told, in canonical form."""
    stride: int | None = None
    """Tokens between the starts of a window's contexts; None where a window is one context."""
    depth: float | None = None
    """Where what is asked for stands, from 0 (first) to 1 (last); None where that has no meaning, or is averaged."""
    bos: bool = False
    """Whether contexts begin with a beginning-of-sequence token."""
    status: Status = "ok"
    reason: str = ""
    """Why `status` is not ok."""
    values: dict[str, float] = field(default_factory=dict)
    """The protocol's metrics: finite; empty unless `status` is ok. Loss is in nats a token."""
    n_tokens: int = 0
    """Scored tokens."""
    n_documents: int = 0
    """Documents that the scored tokens come from."""
    seconds: float = 0.0
    """Time of the pass that gave the value; a pass that serves several lengths counts in each."""
    peak_memory_bytes: int | None = None
    """Peak of that pass; see `pezoo.outcome`."""
    bins: Bins | None = None
    """None unless `status` is ok."""


def with_bits_per_byte(result: LengthResult, bytes_per_token: float) -> LengthResult:
    """The result with `bits_per_byte` beside its loss, if it has one: loss / ln 2 / bytes per token.

    Other than perplexity, it compares models that read the same text through different tokenizers.

    Args:
        result: of text.
        bytes_per_token: bytes of the text's UTF-8 over its tokens.
    """
    if "loss" not in result.values:
        return result
    bits = result.values["loss"] / math.log(2) / bytes_per_token
    return replace(result, values=result.values | {BITS_PER_BYTE: bits})


def bin_edges(length: int) -> NDArray[np.int64]:
    """Edges of position bins: single positions up to 8, then four bins an octave, then `length`.

    >>> bin_edges(20).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20]
    """
    octaves = range(3, length.bit_length())
    grid = [*range(8), *(quarter << k - 2 for k in octaves for quarter in (4, 5, 6, 7))]
    return np.array([edge for edge in grid if edge < length] + [length])


def bin_losses(
    losses: Sequence[NDArray[np.floating]],
    documents: Sequence[NDArray[np.int64]],
    firsts: Sequence[int],
    length: int,
) -> Bins:
    """Sum losses in float64 by document and position bin.

    Args:
        losses: groups of contexts, (n, k): the losses of k tokens of each.
        documents: for each group, the documents of its contexts, (n,).
        firsts: for each group, the position of the first of the k tokens; the last is at `length` - 1 at most.
        length: the test length.
    """
    edges = bin_edges(length)
    names, rows = np.unique(np.concatenate(documents), return_inverse=True)
    loss_sum = np.zeros((len(names), len(edges) - 1))
    tokens = np.zeros(loss_sum.shape, dtype=np.int64)
    for group, first in zip(losses, firsts, strict=True):
        of_group, rows = rows[: len(group)], rows[len(group) :]
        stop = first + group.shape[1]
        starts = edges[(edges > first) & (edges < stop)]
        starts = np.concatenate([[first], starts])  # the outer bins may be covered in part
        column = np.searchsorted(edges, first, side="right") - 1
        bins = of_group, slice(column, column + len(starts))
        np.add.at(loss_sum, bins, np.add.reduceat(group, starts - first, axis=1, dtype=np.float64))
        np.add.at(tokens, bins, np.diff(starts, append=stop))
    return Bins(edges, names, loss_sum, tokens)
