"""The cross-entropy of a training or a validation, without the logits of a long text times a large vocabulary.

Legend: B batch, L length, D width, V vocabulary.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pezoo.task import IGNORE

Head = Callable[[Tensor], Tensor]
"""An output layer: (..., D) to (..., V)."""
CPU_LOGITS, GPU_LOGITS = 2**24, 2**26
"""Most logits at once: 64 and 256 MiB of float32. Fewer are computed as a whole."""
FEWEST = 64
"""Least tokens at once, so that the output layer is not read anew for each few."""
COPIES = 3
"""Tensors of that size in the backward pass: probabilities, their gradient and that of the logits."""


def at_once(device: torch.device, vocabulary: int) -> int:
    """Most tokens whose logits are computed at once.

    Args:
        device: where.
        vocabulary: V.
    """
    return max(FEWEST, (CPU_LOGITS if device.type == "cpu" else GPU_LOGITS) // vocabulary)


def loss_bytes(device: torch.device, vocabulary: int, tokens: int) -> int:
    """Bytes that the loss of so many tokens takes at its peak, in float32."""
    return 4 * COPIES * vocabulary * min(tokens, at_once(device, vocabulary))


def cross_entropy(
    head: Head, hidden: Tensor, targets: Tensor, vocabulary: int, divisor: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy of what is asked, in nats: float32, or float64 where the model is.

    While gradients are kept, the logits of each chunk of tokens are computed again in the backward pass.

    Args:
        head: the output layer.
        hidden: what it reads, (B, L, D).
        targets: (B, L); those that are `IGNORE` are not asked.
        vocabulary: V.
        divisor: what the sum of the losses is divided by; None: the number of targets that are asked.
    """
    if len(pieces := _pieces(hidden, targets, vocabulary)) == 1 and divisor is None:
        return F.cross_entropy(_exact(head(hidden)).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)

    def total(some: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(_exact(head(some)), wanted, ignore_index=IGNORE, reduction="sum")

    if len(pieces) == 1:
        return total(hidden.flatten(0, 1), targets.flatten()) / divisor
    totals = [checkpoint(total, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    return torch.stack(totals).sum() / ((targets != IGNORE).sum() if divisor is None else divisor)


def losses_and_hits(head: Head, hidden: Tensor, targets: Tensor, vocabulary: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each asked token its loss in nats, and whether the likeliest token is right: (n,) twice, chunk by chunk.

    Args:
        head: the output layer.
        hidden: what it reads, (B, L, D).
        targets: (B, L).
        vocabulary: V.
    """
    for some, wanted in _pieces(hidden, targets, vocabulary):
        logits, asked = _exact(head(some)), wanted != IGNORE
        losses = F.cross_entropy(logits.movedim(-1, 1), wanted, ignore_index=IGNORE, reduction="none")
        yield losses[asked], (logits.argmax(-1) == wanted)[asked].float()


def _pieces(hidden: Tensor, targets: Tensor, vocabulary: int) -> list[tuple[Tensor, Tensor]]:
    """Both as they are, or where they have too many tokens, chunks of them: (n, D) and (n,)."""
    size = at_once(hidden.device, vocabulary)
    if targets.numel() <= size:
        return [(hidden, targets)]
    return list(zip(hidden.flatten(0, 1).split(size), targets.flatten().split(size), strict=True))


def _exact(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
