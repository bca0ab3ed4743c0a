"""`pezoo bench --explain SCHEME`: which back-end a scheme takes at which length, and why."""

import contextlib
from typing import Any

import torch

import pezoo
from pezoo.attention import choice, chunks, refusal
from pezoo.cli.bench.models import SIZES
from pezoo.composition import Composition
from pezoo.contract import Undefined

LENGTHS = (256, 512, 1024, 8192)
TRAINED = 256
"""Tokens that a scheme was trained on which is tested."""
Way = tuple[str, str, str | None]
"""A back-end, why, and why `flex` is none."""


def explain(scheme: str) -> list[dict[str, Any]]:
    """For each length, in training and in testing: the layers that go the same way, their back-end, and why.

    Trained at each length; tested after a training at `TRAINED`. On a CPU, one text, no padding. `flex` is why the
    back-end of that name, which a GPU has if asked for it, cannot run the scheme; None if it can.

    Raises:
        UserError: if the scheme is none.
    """
    rows = []
    for phase in ("train", "test"):
        for length in LENGTHS:
            built = _create(scheme, length if phase == "train" else TRAINED)
            facts = {"phase": phase, "length": length}
            try:
                ways = _ways(built, length, phase)
            except Undefined as error:
                rows.append(facts | {"layers": "all", "backend": None, "why": f"undefined: {error}", "flex": None})
                continue
            for way, layers in ways.items():
                named = "all" if len(ways) == 1 else ", ".join(dict.fromkeys(map(str, layers)))
                rows.append(facts | {"layers": named, "backend": way[0], "why": way[1], "flex": way[2]})
    return rows


def _create(scheme: str, train_length: int) -> pezoo.Scheme:
    """The scheme in as many layers as its schedule has, if it has one; else in those of the other measurements."""
    layers = pezoo.parse(scheme).layers
    sizes = SIZES | ({"n_layers": len(layers)} if layers else {})
    return pezoo.create(scheme, **sizes, train_length=train_length)


def _ways(scheme: pezoo.Scheme, length: int, phase: str) -> dict[Way, list[int]]:
    """Ways, with the layers that go them."""
    found: dict[Way, list[int]] = {}
    heads, width = SIZES["n_heads"], SIZES["d_model"]
    tokens, x = torch.zeros(1, length, dtype=torch.int64), torch.zeros(1, length, width)
    q = torch.zeros(1, heads, length, width // heads)
    with contextlib.ExitStack() as stack:
        if phase == "test":
            stack.enter_context(torch.inference_mode())
        prepared = scheme.prepare(scheme.positions(1, length, phase=phase, rows=(0,)).replace(tokens=tokens))
        for layer in range(len(prepared.layers)):
            for group in prepared.groups(layer, q, q, q, x, None):
                way = *_way(q[:, group.heads], group.composition), refusal("flex", group.composition)
                found.setdefault(way, []).append(layer)
    return found


def _way(q: torch.Tensor, composition: Composition) -> tuple[str, str]:
    backend, why = choice(composition)
    if backend != "chunked":
        return backend, why
    rotated = q
    if any(map(composition.uses, ("branches", "sink"))):  # what may be merged, if its width stays
        rotated, _ = composition.rotate(q, q)
    return backend, f"{why}; {chunks(rotated, q, composition)[1]}"
