"""Forward passes over many contexts, and what can go wrong in them.

Legend: N windows, n contexts, b contexts in a batch, T tokens in a context, k scored tokens in a context.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pezoo.data import Windows
from pezoo.evaluation.result import LengthResult, bin_losses
from pezoo.model.transformer import Transformer
from pezoo.outcome import halving, outcome, peak_memory, reset_peak_memory
from pezoo.results import Status

# Logits that are computed at once, and the tokens that this is at least: on a CPU they stay in a core's cache, on a
# GPU they keep it busy, and with a large vocabulary the output layer is not read anew for each few tokens.
CPU_LOGITS, GPU_LOGITS, TOKENS = 2**20, 2**26, 128
LOSS_METRICS = ("loss", "perplexity", "last_perplexity")


@dataclass(frozen=True, eq=False)
class Contexts:
    """Contexts of one length, cut from every window at the same places when they are read."""

    windows: Windows
    starts: Sequence[int]
    """Places in the windows, at least one."""
    length: int
    """Tokens read in each (T)."""
    scored: int
    """The last so many tokens that follow one of these count (k)."""

    def __len__(self) -> int:
        return len(self.windows.ids) * len(self.starts)

    @property
    def n_tokens(self) -> int:
        """Tokens that are read, in all contexts."""
        return len(self) * self.length

    @property
    def first(self) -> int:
        """The position, from 0, of the first scored token."""
        return self.length - self.scored

    @property
    def documents(self) -> NDArray[np.int64]:
        """(n,) the document of each."""
        return np.asarray(self.windows.document).repeat(len(self.starts))

    def ids(self, numbers: Sequence[int]) -> Tensor:
        """Contexts by number, (b, T + 1); they are counted window by window."""
        window, place = np.divmod(numbers, len(self.starts))
        start = torch.tensor(self.starts)[place]
        return self.windows.ids[window[:, None], start[:, None] + torch.arange(self.length + 1)]


@dataclass(frozen=True)
class Pass:
    """The losses of one pass, or why there are none."""

    status: Status
    reason: str
    contexts: Sequence[Contexts]
    losses: list[NDArray[np.float32]]
    """For each of `contexts`, (n, k): the losses of its scored tokens in nats."""
    seconds: float
    peak_memory_bytes: int | None

    def result(self, length: int, *, last: int, stride: int | None = None) -> LengthResult:
        """What this pass says of one length: means over tokens in float64, exponentiated once.

        Args:
            length: the test length T; positions from T on do not count.
            last: of the scored tokens, those at T - last ... T - 1 count for `last_perplexity`.
            stride: for the record.
        """

        def found(status: Status, reason: str = "", **facts: Any) -> LengthResult:
            cost = {"seconds": self.seconds, "peak_memory_bytes": self.peak_memory_bytes}
            return LengthResult(length, stride=stride, status=status, reason=reason, **cost, **facts)

        if self.status != "ok":
            return found(self.status, self.reason)
        firsts = [group.first for group in self.contexts]
        losses = [group[:, : length - first] for first, group in zip(firsts, self.losses, strict=True)]
        bad = [
            first + np.flatnonzero(~np.isfinite(group).all(axis=0)) for first, group in zip(firsts, losses, strict=True)
        ]
        if position := [places[0] for places in bad if places.size]:
            return found("diverged", f"the loss at position {min(position)} is not finite")
        bins = bin_losses(losses, [group.documents for group in self.contexts], firsts, length)
        n_tokens = int(bins.tokens.sum())
        loss = float(bins.loss_sum.sum()) / n_tokens
        ends = zip(firsts, losses, strict=True)
        end = np.concatenate([group[:, max(0, length - last - first) :].ravel() for first, group in ends])
        try:
            perplexity = math.exp(loss)
            last_perplexity = math.exp(end.mean(dtype=np.float64))
        except OverflowError:
            return found("diverged", f"the mean loss of {loss:.0f} nats has no finite perplexity")
        return found(
            "ok",
            values={"loss": loss, "perplexity": perplexity, "last_perplexity": last_perplexity},
            n_tokens=n_tokens,
            n_documents=len(bins.documents),
            bins=bins,
        )


class Passes:
    """Runs the passes of one model, and tells how far they are.

    Args:
        model: in evaluation mode, on `device`.
        batch_tokens: most tokens in one forward pass (but at least one context).
        device: where the model is.
        progress: called with (tokens done, tokens in all).
    """

    def __init__(
        self,
        model: Transformer,
        batch_tokens: int,
        device: torch.device,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.model, self.batch_tokens, self.device = model, batch_tokens, device
        self.progress = progress
        self.done, self.total = 0, 0

    def expect(self, tokens: int) -> None:
        """Announce how many tokens the passes to come will read."""
        self.total = tokens

    def run(self, declared: int, contexts: Sequence[Contexts], restart: Callable[[], None] | None = None) -> Pass:
        """Read contexts at a declared length.

        Where memory runs out, it reads fewer at a time. That one context alone is too much for it, and that the scheme
        is undefined, is in the result.

        Args:
            declared: length that schemes which depend on the total length are told.
            contexts: what is read; a batch holds contexts of one group alone.
            restart: called before each try, of which there may be several.

        Raises:
            Exception: whatever else goes wrong.
        """
        begin = self.done
        n_tokens = sum(group.n_tokens for group in contexts)
        self.total = max(self.total, begin + n_tokens)

        def attempt(batch_tokens: int) -> list[NDArray[np.float32]]:
            self.done, row, losses = begin, 0, []
            if restart is not None:
                restart()
            for group in contexts:
                losses.append(self._losses(declared, group, row, batch_tokens))
                row += len(group)
            return losses

        losses: list[NDArray[np.float32]] = []
        status, reason = "ok", ""
        most = min(self.batch_tokens, max(group.n_tokens for group in contexts))
        reset_peak_memory(self.device)
        start = time.perf_counter()
        try:
            losses = halving(attempt, most, min(group.length for group in contexts), self.device)
        except Exception as error:
            status, reason = outcome(error)
            if status == "failed":
                raise
            self._advance(begin + n_tokens - self.done)
        seconds = time.perf_counter() - start
        return Pass(status, reason, contexts, losses, seconds, peak_memory(self.device))

    @torch.inference_mode()
    def _losses(self, declared: int, contexts: Contexts, first_row: int, batch_tokens: int) -> NDArray[np.float32]:
        losses, length, scored = [], contexts.length, contexts.scored
        size = max(1, batch_tokens // length)
        for start in range(0, len(contexts), size):
            numbers = range(start, min(start + size, len(contexts)))
            batch = contexts.ids(numbers).to(self.device)
            # Random draws are keyed by the place in the pass: the batch size does not matter.
            rows = tuple(first_row + number for number in numbers)
            positions = self.model.positions(len(batch), length, declared=declared, phase="test", rows=rows)
            hidden = self.model.hidden(batch[:, :-1], positions)[:, -scored:]
            losses.append(token_losses(self.model, hidden, batch[:, -scored:]).cpu())
            self._advance(len(batch) * length)
        return torch.cat(losses).numpy()

    def _advance(self, tokens: int) -> None:
        self.done += tokens
        if self.progress is not None:
            self.progress(self.done, self.total)


def token_losses(model: Transformer, hidden: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each token in nats, float32, without the logits of all tokens at once.

    Args:
        model: whose output layer reads `hidden`.
        hidden: (B, L, D), of `Transformer.hidden`.
        targets: (B, L).

    Returns:
        (B, L).
    """
    hidden, asked = hidden.flatten(0, 1), targets.flatten()
    losses = torch.empty(len(asked), device=hidden.device)
    for some, logits in read_out(model, hidden):
        losses[some] = F.cross_entropy(logits, asked[some], reduction="none")
    return losses.view_as(targets)


def read_out(model: Transformer, hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Logits of tokens, a chunk at a time.

    Write what is made of them into a tensor that is there already: on a CPU, small ones that stay, made between large
    ones that go, leave holes that no large one fits into.

    Args:
        model: whose output layer reads `hidden`.
        hidden: (n, D), of `Transformer.hidden`.

    Yields:
        Which tokens, and their logits, (some, V) float32, in order.
    """
    at_once = CPU_LOGITS if hidden.device.type == "cpu" else GPU_LOGITS
    size = max(TOKENS, at_once // model.config.vocab_size)
    for start in range(0, len(hidden), size):
        some = slice(start, start + size)
        yield some, model.head(hidden[some]).float()
