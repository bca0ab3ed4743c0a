"""What bfloat16, float32 and float64 do to a member's numbers."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from pezoo.compose import create
from pezoo.composition import Composition
from pezoo.contract import Undefined, overrides
from pezoo.model.transformer import Transformer
from pezoo.registry import entry
from pezoo.testing.subject import (
    FAR,
    LENGTH,
    CheckFailed,
    NotApplicable,
    Subject,
    check,
    composition_of,
    encodings,
    equal,
    numbers,
    positions_of,
    read,
    tokens,
)


@check(schedules=True)
def shapes_and_dtypes(s: Subject) -> None:
    """bfloat16, float32 and float64 models give logits of the right shape and dtype, close to each other."""
    for phase, length in s.cases(LENGTH, 3 * LENGTH):
        half, ids = s.model().bfloat16(), tokens(length, 3)
        full, double = copy.deepcopy(half).float(), copy.deepcopy(half).double()
        models = {torch.bfloat16: half, torch.float32: full, torch.float64: double}
        found = {dtype: read(model, ids, phase=phase) for dtype, model in models.items()}
        for dtype, came in found.items():
            if came.shape != (3, length, 16) or came.dtype != dtype:
                raise CheckFailed(f"logits (3, {length}, 16) {dtype}", f"{tuple(came.shape)} {came.dtype}")
        equal(found[torch.float32], found[torch.bfloat16], "logits in bfloat16", 0.25)
        equal(found[torch.float32], found[torch.float64], "logits in float64")


@check()
def heads_of_any_width(s: Subject) -> None:
    """With heads of a given width, attention is as in a model that has this width from d_model / n_heads."""
    phase, length = s.cases(3 * LENGTH, LENGTH)[0]
    sizes = {"n_heads": 3, "n_layers": 2, "train_length": LENGTH}
    usual, given = create(s.spec, d_model=60, **sizes), create(s.spec, d_model=48, head_dim=20, **sizes)
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, length, 20, generator=generator)
    x = torch.randn(2, length, 60, generator=generator)
    shapes = [{name: p.shape for name, p in scheme.state_dict().items()} for scheme in (usual, given)]
    if shapes[0] == shapes[1]:  # else a parameter has the width of the model, and the numbers differ
        given.load_state_dict(usual.state_dict())
    for layer in range(2):
        facts = {"phase": phase, "rows": range(2), "tokens": tokens(length)}
        came, expected = (scheme.prepare(scheme.positions(2, length, **facts)) for scheme in (given, usual))
        came = came.attend(layer, q, k, v, "eager", x=x[..., :48])
        expected = expected.attend(layer, q, k, v, "eager", x=x)
        if came.shape != v.shape:
            raise CheckFailed(f"a result of shape {tuple(v.shape)}", str(tuple(came.shape)))
        equal(expected if shapes[0] == shapes[1] else came, came, "attention with head_dim=20")


@check()
def low_precision_leaves_no_trace(s: Subject) -> None:
    """A model that first ran in bfloat16 and then got its parameters in float32 is as a new one: nothing was kept."""
    sizes = {"n_heads": 12, "d_model": 192}  # ALiBi's slopes for 3 heads are exact in any dtype
    model, again = s.model(**sizes), s.model(**sizes)
    (length, *_) = s.lengths(3 * LENGTH, LENGTH)
    ids = tokens(length)
    read(model.bfloat16(), ids)
    model.float().load_state_dict(again.state_dict())
    equal(read(again, ids), read(model, ids), "logits after a call in bfloat16", 0.0)


@check()
def same_numbers_in_any_precision(s: Subject) -> None:
    """Coordinates, frequencies, biases, embeddings and draws are float32's under autocast and any default dtype."""
    for phase, length in s.cases(3 * LENGTH, LENGTH):
        model = s.model()
        expected = numbers(model, phase, length)
        for what, precision in PRECISIONS.items():
            with precision():
                came = numbers(model, phase, length)
            for name, tensor in came.items():
                if tensor.dtype != torch.float32:
                    raise CheckFailed(f"{name} in float32 under {what}, at {length} tokens", str(tensor.dtype))
                # What is added to q and k has their dtype, as their product has.
                exact = not (name.startswith("logits") and any(overrides(e, "rotate") for e in encodings(model)))
                equal(expected[name], tensor, f"{name} under {what}, at {length} tokens", 0.0 if exact else 0.01)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Let new tensors have this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


PRECISIONS: dict[str, Callable[[], Any]] = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "a default dtype of bfloat16": lambda: default_dtype(torch.bfloat16),
    "a default dtype of float64": lambda: default_dtype(torch.float64),
}


@check()
def distinct_far_positions(s: Subject) -> None:
    """Up to 65,536 tokens coordinates stay apart, and so do the vectors that are embedded and rotated at the ends."""
    if any(entry(m.name).cls.traits.tokens for m in s.spec.members):
        raise NotApplicable("several tokens may have one coordinate")
    model = s.model()
    length, composition = _far(s, model, FAR, FAR // 16, 16 * LENGTH, LENGTH)
    coordinates = composition.base[0].positions.query
    if coordinates.dtype != torch.float32:
        raise CheckFailed("coordinates in float32", str(coordinates.dtype))
    if (apart := len(coordinates[0].unique())) < length:
        raise CheckFailed(f"{length} distinct coordinates", f"{apart}")
    ends = torch.arange(length)
    ends = torch.cat((ends[:64], ends[64:][-64:]))
    for hook, vectors in _vectors(model, composition.base[0]).items():
        same = (vectors[ends][:, None] == vectors[ends][None]).all(dim=-1).sum() - len(ends)
        if 0 < same < len(ends) ** 2 - len(ends):  # else it reads no positions
            raise CheckFailed(f"{hook} to give different vectors at different positions", f"{same // 2} equal pairs")


@check()
def positions_survive_low_precision(s: Subject) -> None:
    """Far from the start, what a bfloat16 model embeds, rotates and adds to logits is that of float32, rounded."""
    half, seen = s.model().bfloat16(), []
    for model in (copy.deepcopy(half).float(), half):
        length, composition = _far(s, model, 4096, 16 * LENGTH, LENGTH)
        seen.append(_vectors(model, composition.base[0]) | _pairs(model, composition))
    for hook, expected in seen[0].items():
        equal(expected, seen[1][hook], f"{hook} in bfloat16 at {length} tokens", 0.05)
    for head in range(len(seen[0].get("bias", ()))):  # of the last query, for the nearest keys
        apart, came = (len(v["bias"][head, -32:].unique()) for v in seen)
        if came < 0.9 * apart:
            raise CheckFailed(f"{apart} different biases among the 32 nearest keys, as in float32", f"{came}")


def _far(s: Subject, model: Transformer, *wanted: int) -> tuple[int, Composition]:
    """The first of the wanted lengths at which the scheme is defined, and its first layer there."""
    for length in wanted:
        with suppress(Undefined):
            return length, composition_of(model, positions_of(model, 1, length))
    raise NotApplicable(f"undefined at {', '.join(map(str, wanted))} tokens")


def _vectors(model: Transformer, part: Any) -> dict[str, Tensor]:
    """One vector at every position, (L, d) each, as an encoding embeds and rotates it."""
    encoding, positions, dtype = part.encoding, part.positions, model.head.weight.dtype
    length, found = positions.query.shape[1], {}
    generator = torch.Generator().manual_seed(0)
    if overrides(encoding, "embed"):
        x = torch.randn(model.config.d_model, generator=generator).to(dtype) / model.config.d_model**0.5
        found["embed"] = encoding.embed(x.expand(1, length, -1), positions)[0].float()
    if overrides(encoding, "rotate"):
        heads = model.config.n_heads
        x = torch.randn(model.config.d_model // heads, generator=generator).to(dtype).expand(1, heads, length, -1)
        q, k = encoding.rotate(x, x, positions)
        found["rotate"], found["rotate of keys"] = q[0, 0].float(), k[0, 0].float()
    return found


def _pairs(model: Transformer, composition: Composition) -> dict[str, Tensor]:
    """Bias and content logits of the last query, (H, L) each."""
    length = composition.positions.query.shape[1]
    last = composition.slice(length - 1, length, length)
    size = (1, model.config.n_heads, length, model.config.d_model // model.config.n_heads)
    generator, dtype = torch.Generator().manual_seed(0), model.head.weight.dtype
    k = torch.randn(size, generator=generator).bfloat16().to(dtype)
    part = last.base[0]
    found = {"bias": last.bias(), "content": part.encoding.content(k[:, :, -1:], k, part.positions)}
    return {hook: t[0, :, 0].float() for hook, t in found.items() if t is not None}
