"""Ways of computing against each other: back-ends, memory, compiling."""

import warnings
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from pezoo import attention
from pezoo.errors import UserError
from pezoo.model.transformer import Transformer
from pezoo.testing.subject import (
    LENGTH,
    CheckFailed,
    NotApplicable,
    Subject,
    check,
    equal,
    logits_and_gradients,
    read,
    tokens,
)


@check(schedules=True)
def back_ends_equal_eager(s: Subject) -> None:
    """Every back-end that accepts the scheme gives eager's logits and gradients, in small chunks, in an encoder too."""
    chunk, attention.CHUNK = attention.CHUNK, 7
    try:
        for causal in s.modes:
            for phase, length in s.cases(2 * LENGTH + 1, LENGTH)[:: 2 if causal else 1][:2]:
                ids = tokens(length)
                expected = logits_and_gradients(s.model(backend="eager", causal=causal), ids, phase)
                for backend in [b for b in attention.BACKENDS if b != "eager"]:
                    try:
                        came = logits_and_gradients(s.model(backend=backend, causal=causal), ids, phase)
                    except UserError:
                        continue  # refused
                    for name, tensor in expected.items():
                        equal(tensor, came[name], f"{backend}'s {name} at {length} tokens (causal={causal})", 1e-3)
    finally:
        attention.CHUNK = chunk


class _Largest(TorchDispatchMode):
    """Remembers the largest memory that one tensor takes, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.shape = 0, ()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().nbytes() > self.bytes:
                self.bytes, self.shape = tensor.untyped_storage().nbytes(), tuple(tensor.shape)
        return result


@check(schedules=True)
def memory_is_linear(s: Subject) -> None:
    """No long forward holds a tensor of all pairs of tokens, by the chunked back-end or by the one that is chosen."""
    length, kept = 512, (attention.CHUNK, attention.PAIRS)
    attention.CHUNK, attention.PAIRS = 8, 8 * length
    try:
        for phase, backend in product(s.phases, ("chunked", "auto")):
            lengths = (length // 16, length // 8, 2 * length)
            models = (s.model(train_length=n, n_layers=1, backend=backend) for n in lengths)
            model = next((m for m in models if m.scheme.undefined(2 * length, phase) is None), None)
            if model is None:
                raise NotApplicable(f"undefined at {2 * length} tokens")
            size, shape = _largest(model, length, phase)
            if size >= 4 * length**2 and _largest(model, 2 * length, phase)[0] > 3 * size:  # else it is only wide
                raise CheckFailed(f"no tensor of {length} x {length} numbers or more", f"one of shape {shape}")
    finally:
        attention.CHUNK, attention.PAIRS = kept


def _largest(model: Transformer, length: int, phase: str) -> tuple[int, tuple[int, ...]]:
    """Bytes and shape of the largest tensor of a forward."""
    with _Largest() as largest:
        read(model, tokens(length, 1), phase=phase)
    return largest.bytes, largest.shape


@check(slow=True, once=True)
def compiles(s: Subject) -> None:
    """torch.compile leaves the logits unchanged."""
    model, ids = s.model(), tokens(LENGTH)
    expected = read(model, ids)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about itself
        came = torch.compile(model)(ids)
    equal(expected, came, "compiled logits", 1e-3)
