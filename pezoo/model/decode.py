"""Text from a model, token by token, through its key/value cache."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pezoo.errors import UserError
from pezoo.model.transformer import Transformer


def stream(
    model: Transformer,
    prompt: Tensor,
    n_new: int,
    *,
    length: int | None = None,
    rows: tuple[int, ...] | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Continue a prompt, token by token.

    The model is in evaluation mode until the iterator ends or is closed, and then in the mode it was in.

    Args:
        model: a decoder.
        prompt: (B, n) int64, n at least 1.
        n_new: tokens to add.
        length: total length that length-dependent schemes are told; default: n + n_new. The last new token is not read,
            so that n + n_new - 1 is enough.
        rows: names of the sequences, the keys of random positions; default: 0 ... B - 1.
        temperature: what logits are divided by before a token is drawn; 0: the likeliest token, nothing is drawn.
        top_k: draw among so many likeliest tokens; default: all.
        top_p: draw among the fewest likeliest tokens that have this much probability together (nucleus sampling;
            Holtzman et al. 2019, arXiv 1904.09751).
        generator: of the draws; default: torch's global one.

    Returns:
        An iterator over n_new steps: the next token of each row, (B,) int64, and its log-probability under the model,
        in nats, (B,) float32. It raises `Undefined` at the first token for which the scheme has no value.

    Raises:
        UserError: if an argument is out of its range, or the model is an encoder.
    """
    n = prompt.shape[1]
    length = n + n_new if length is None else length
    if not model.config.causal:
        raise UserError("an encoder cannot continue a text: it was trained to see what comes after a token")
    if n < 1:
        raise UserError("the prompt is empty; a model predicts a token from those before it, so give at least one")
    if n_new < 0:
        raise UserError(f"the number of new tokens must be at least 0, got {n_new}")
    if length < n + n_new - 1:
        raise UserError(f"length = {length}, but {n} tokens of a prompt and {n_new} new ones need {n + n_new - 1}")
    if not temperature >= 0:
        raise UserError(f"temperature must be at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k must be at least 1, got {top_k}")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p must be above 0 and at most 1, got {top_p}")

    def choose(logits: Tensor) -> Tensor:
        return _choose(logits, temperature, top_k, top_p, generator)

    return _steps(model, prompt, n_new, length, rows, choose)


@torch.inference_mode()
def _steps(
    model: Transformer,
    prompt: Tensor,
    n_new: int,
    length: int,
    rows: tuple[int, ...] | None,
    choose: Callable[[Tensor], Tensor],
) -> Iterator[tuple[Tensor, Tensor]]:
    """The steps of `stream`; `choose` takes logits (B, V) to tokens (B,)."""
    batch, n = prompt.shape
    training = model.training
    model.eval()
    try:
        positions = model.positions(batch, length, rows=rows or range(batch))
        cache = model.cache(batch, n + n_new)
        unread = prompt.to(positions.query.device)
        for _ in range(n_new):
            logits = model.head(model.hidden(unread, positions, cache)[:, -1]).float()
            ids = choose(logits)
            yield ids, logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
            unread = ids[:, None]
    finally:
        model.train(training)


def decode(model: Transformer, prompt: Tensor, n_new: int, **how: Any) -> Tensor:
    """The continuation of a prompt, (B, n) -> (B, n_new) int64: what `stream` yields, with its arguments `how`.

    Raises:
        UserError: if an argument is out of its range, or the model is an encoder.
        Undefined: if the scheme has no value for one of the tokens.
    """
    tokens = [ids for ids, _ in stream(model, prompt, n_new, **how)]
    return torch.stack(tokens, dim=1) if tokens else prompt[:, :0]


def _choose(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float, generator: torch.Generator | None
) -> Tensor:
    """One token a row, (B, V) -> (B,)."""
    if temperature == 0:
        return logits.argmax(-1)
    device = generator.device if generator is not None else logits.device
    ordered, ids = logits.sort(dim=-1, descending=True, stable=True)
    p = (ordered[:, :top_k] / temperature).softmax(-1)
    p = p.where(p.cumsum(-1) - p < top_p, 0)  # the likeliest always stays
    place = torch.multinomial(p.to(device), 1, generator=generator).to(ids.device)
    return ids.gather(-1, place)[:, 0]
