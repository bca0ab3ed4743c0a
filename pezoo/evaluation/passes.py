"""Forward passes over many contexts of one length, and what can go wrong in them."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pezoo.contract import Undefined
from pezoo.evaluation.memory import peak_memory, reset_peak_memory
from pezoo.evaluation.result import LengthResult, bin_losses
from pezoo.results import Status
from pezoo.transformer import Transformer

# Logits whose losses are computed at once: on a CPU few enough to stay in a core's cache, on a GPU
# enough to keep it busy.
CPU_LOGITS, GPU_LOGITS = 2**20, 2**26
OUT_OF_MEMORY = ("not enough memory", "out of memory", "allocate memory")


@dataclass(frozen=True)
class Pass:
    """The losses of one pass, or why there are none."""

    status: Status
    reason: str
    losses: list[NDArray[np.float32]]
    """For each group of contexts, (n, T): the loss of each token in nats."""
    seconds: float
    peak_memory_bytes: int | None

    def result(
        self,
        length: int,
        losses: Sequence[NDArray[np.float32]],
        documents: Sequence[NDArray[np.int64]],
        *,
        last: int,
        protocol: str,
        stride: int | None,
    ) -> LengthResult:
        """What this pass says of one length: means over tokens in float64, exponentiated once.

        Args:
            length: the test length T.
            losses: this pass's, cut to T: (n, at most T) for each group.
            documents: for each group, the documents of its contexts, (n,).
            last: the positions T - last ... T - 1 count for `last_perplexity`.
            protocol: for the record.
            stride: for the record.
        """

        def found(status: Status, reason: str = "", **facts: Any) -> LengthResult:
            cost = {"seconds": self.seconds, "peak_memory_bytes": self.peak_memory_bytes}
            return LengthResult(length, protocol, stride, status=status, reason=reason, **cost, **facts)

        if self.status != "ok":
            return found(self.status, self.reason)
        bad = [np.flatnonzero(~np.isfinite(group).all(axis=0)) for group in losses]
        if first := [positions[0] for positions in bad if positions.size]:
            return found("diverged", f"the loss at position {min(first)} is not finite")
        bins = bin_losses(losses, documents, length)
        n_tokens = int(bins.tokens.sum())
        loss = float(bins.loss_sum.sum()) / n_tokens
        end = np.concatenate([group[:, max(0, length - last) :].ravel() for group in losses])
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

    def run(self, declared: int, groups: Sequence[Tensor]) -> Pass:
        """Read `groups` at a declared length; what goes wrong is in the result, not raised.

        Args:
            declared: length that schemes which depend on the total length are told.
            groups: ids, (n, T + 1) each.
        """
        end = self.done + sum(ids[:, 1:].numel() for ids in groups)
        self.total = max(self.total, end)
        losses: list[NDArray[np.float32]] = []
        status, reason, row = "ok", "", 0
        reset_peak_memory(self.device)
        start = time.perf_counter()
        try:
            for ids in groups:
                losses.append(self._losses(ids, declared, row))
                row += len(ids)
        except Exception as error:
            status, reason = outcome(error)
            losses.clear()
            self._advance(end - self.done)
        seconds = time.perf_counter() - start
        return Pass(status, reason, losses, seconds, peak_memory(self.device))

    @torch.inference_mode()
    def _losses(self, ids: Tensor, declared: int, first_row: int) -> NDArray[np.float32]:
        n, length = ids.shape[0], ids.shape[1] - 1
        losses = torch.empty(n, length)
        size = max(1, self.batch_tokens // length)
        for start in range(0, n, size):
            batch = ids[start : start + size].to(self.device)
            # Random draws are keyed by the place in the pass: the batch size does not matter.
            rows = tuple(range(first_row + start, first_row + start + len(batch)))
            positions = self.model.positions(len(batch), length, declared=declared, phase="test", rows=rows)
            logits = self.model(batch[:, :-1], positions)
            losses[start : start + size] = token_losses(logits, batch[:, 1:])
            self._advance(len(batch) * length)
        return losses.numpy()

    def _advance(self, tokens: int) -> None:
        self.done += tokens
        if self.progress is not None:
            self.progress(self.done, self.total)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each token in nats, float32, in little more memory than the logits.

    Args:
        logits: (B, L, V).
        targets: (B, L).

    Returns:
        (B, L).
    """
    at_once = CPU_LOGITS if logits.device.type == "cpu" else GPU_LOGITS
    size = max(1, at_once // logits.shape[-1])
    chunks = zip(logits.flatten(0, 1).split(size), targets.flatten().split(size), strict=True)
    losses = [F.cross_entropy(x.float(), y, reduction="none") for x, y in chunks]
    return torch.cat(losses).view_as(targets)


def outcome(error: Exception) -> tuple[Status, str]:
    """The status and the reason that an exception stands for."""
    reason = str(error).strip().partition("\n")[0]
    if isinstance(error, Undefined):
        return "undefined", reason
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
    ):
        return "out_of_memory", reason or "not enough memory"
    return "failed", f"{type(error).__name__}: {reason}"
