"""What one protocol finds at one test length."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pezoo.results import Status


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
    protocol: str
    stride: int | None
    """Tokens between the starts of a window's contexts; None where a window is one context."""
    bos: bool = False
    """Whether contexts begin with a beginning-of-sequence token."""
    status: Status = "ok"
    reason: str = ""
    """Why `status` is not ok."""
    values: dict[str, float] = field(default_factory=dict)
    """loss (nats a token), perplexity, last_perplexity: finite; empty unless `status` is ok."""
    n_tokens: int = 0
    """Scored tokens."""
    n_documents: int = 0
    """Documents that the scored tokens come from."""
    seconds: float = 0.0
    """Time of the pass that gave the value; a pass that serves several lengths counts in each."""
    peak_memory_bytes: int | None = None
    """Peak of that pass; see `pezoo.evaluation.memory`."""
    bins: Bins | None = None
    """None unless `status` is ok."""


def bin_edges(length: int) -> NDArray[np.int64]:
    """Edges of position bins: single positions up to 8, then four bins an octave, then `length`.

    >>> bin_edges(20).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20]
    """
    octaves = range(3, length.bit_length())
    grid = [*range(8), *(quarter << k - 2 for k in octaves for quarter in (4, 5, 6, 7))]
    return np.array([edge for edge in grid if edge < length] + [length])


def bin_losses(losses: Sequence[NDArray[np.floating]], documents: Sequence[NDArray[np.int64]], length: int) -> Bins:
    """Sum losses in float64 by document and position bin.

    Args:
        losses: groups of contexts, (n, at most `length`): the loss of each token.
        documents: for each group, the documents of its contexts, (n,).
        length: the test length.
    """
    edges = bin_edges(length)
    names, rows = np.unique(np.concatenate(documents), return_inverse=True)
    loss_sum = np.zeros((len(names), len(edges) - 1))
    tokens = np.zeros(loss_sum.shape, dtype=np.int64)
    for group in losses:
        of_group, rows = rows[: len(group)], rows[len(group) :]
        starts = edges[edges < group.shape[1]]  # the last bin of a short context ends with it
        bins = of_group, slice(len(starts))
        np.add.at(loss_sum, bins, np.add.reduceat(group, starts, axis=1, dtype=np.float64))
        np.add.at(tokens, bins, np.diff(starts, append=group.shape[1]))
    return Bins(edges, names, loss_sum, tokens)
