"""Testing long, under named protocols: perplexity, that of the last tokens, loss by position."""

import dataclasses
from collections.abc import Callable, Sequence

import torch

from pezoo.data import Windows
from pezoo.errors import UserError
from pezoo.evaluation.passes import Passes
from pezoo.evaluation.protocols import PROTOCOLS, Protocol, parse_protocol
from pezoo.evaluation.result import Bins, LengthResult
from pezoo.model.devices import check_testing, testing_in
from pezoo.model.transformer import Transformer

__all__ = ["PROTOCOLS", "Bins", "LengthResult", "Protocol", "evaluate", "parse_protocol"]


def evaluate(
    model: Transformer,
    windows: Windows,
    lengths: Sequence[int],
    *,
    protocol: str | Protocol = "prefix",
    last: int,
    batch_tokens: int = 16384,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    progress: Callable[[int, int], None] | None = None,
) -> list[LengthResult]:
    """Test `model` at each of `lengths`, in evaluation mode, without gradients.

    A length at which the scheme is undefined, the loss is not finite or memory does not suffice for one context is a
    result with that status; the other lengths have theirs.

    Args:
        model: the trained model; its mode and device are put back afterwards.
        windows: the text, ids (N, longest + 1): the same for all schemes that are compared.
        lengths: test lengths in tokens.
        protocol: how a value is defined: one of `PROTOCOLS` with its settings, such as "sliding:stride=16"; see the
            module of that name.
        last: `last_perplexity` is that of the last `last` tokens of each context.
        batch_tokens: most tokens in one forward pass (but at least one context).
        device: where to compute.
        precision: how exactly, one of `pezoo.model.devices.TestPrecision`.
        progress: called with (tokens done, tokens in all) after each forward pass.

    Returns:
        One result a length, in the order of `lengths`.

    Raises:
        UserError: an unknown protocol or setting, a length beyond the windows', a number below 1, or a precision that
            the device does not have.
        Exception: whatever else the model raises.
    """
    protocol = parse_protocol(protocol)
    longest = windows.ids.shape[1] - 1
    if not all(1 <= length <= longest for length in lengths):
        raise UserError(f"test lengths {list(lengths)} must lie in 1 ... {longest}, the windows'")
    if last < 1 or batch_tokens < 1:
        raise UserError(f"last={last} and batch_tokens={batch_tokens} must be at least 1")
    device = torch.device(device)
    check_testing(device, precision)
    training, home = model.training, next(model.parameters()).device
    passes = Passes(model.eval().to(device), batch_tokens, device, progress)
    try:
        with testing_in(device, precision):
            results = PROTOCOLS[protocol.name].run(passes, windows, lengths, last, protocol.settings)
    finally:
        model.to(home).train(training)
    return [dataclasses.replace(result, protocol=str(protocol)) for result in results]
