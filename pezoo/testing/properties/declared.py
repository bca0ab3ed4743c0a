"""Behaviour against what traits declare."""

from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from pezoo import attention
from pezoo.contract import PHASES, Positions, Undefined
from pezoo.errors import UserError
from pezoo.model.transformer import Transformer
from pezoo.registry import Entry, entry
from pezoo.testing.subject import (
    LENGTH,
    CheckFailed,
    NotApplicable,
    Subject,
    as_declared,
    check,
    differs,
    equal,
    numbers,
    of_encodings,
    of_extensions,
    positions_of,
    read,
    reads_none,
    tokens,
)


@check(unless=of_encodings)
def tells_order_in_an_encoder_as_declared(s: Subject) -> None:
    """If `bidirectional`, one layer of an encoder tells order on both sides, and the sides apart; else no direction."""
    bidirectional = s.cls.traits.bidirectional
    try:
        model = s.model(causal=False, n_layers=1)
    except UserError as reason:
        if bidirectional:
            raise CheckFailed("an encoder, for bidirectional is True", str(reason)) from None
        return
    ids = torch.arange(LENGTH)[None]
    there, reversed_ = read(model, ids), read(model, ids.flip(1)).flip(1)
    if not bidirectional:
        equal(there, reversed_, "logits of the reversed sequence (bidirectional is False)")
        return
    differs(there, reversed_, "logits of the reversed sequence (bidirectional is True)")
    swapped = ids.clone()
    swapped[:, [6, 10]] = ids[:, [10, 6]]
    back = read(model, swapped)
    for side, at in (("ahead of the first token", 0), ("behind the last", -1)):
        differs(there[:, at], back[:, at], f"logits when two tokens {side} change places (bidirectional is True)")


@check()
def shift_invariant_as_declared(s: Subject) -> None:
    """Adding a constant to all coordinates leaves the logits if, and only if, `shift_invariant` is declared."""
    invariant = [entry(m.name).cls.traits.shift_invariant for m in s.host.members]
    if not all(invariant):
        raise NotApplicable("the host is not shift-invariant")
    model, holds, pairs = s.model(), s.cls.traits.shift_invariant, []
    for phase, length in s.cases(3 * LENGTH, LENGTH // 2):
        ids = tokens(length)
        positions = positions_of(model, 2, length, phase=phase)
        try:
            moved = model(ids, positions.map(lambda p, index: p + 5.0, (5.0, 1.0)))
        except Undefined:
            continue
        pairs.append((model(ids, positions), moved))
    as_declared(holds, f"shift_invariant is {holds}", pairs, "logits at coordinates moved by 5")


@check()
def rounding_decides_nothing(s: Subject) -> None:
    """At coordinates between whole numbers logits are the same by whatever way their distances are computed."""
    kept, attention.CHUNK = attention.CHUNK, 40
    invariant = all(entry(m.name).cls.traits.shift_invariant for m in s.spec.members)
    try:
        for causal in s.modes:
            models = {backend: s.model(backend=backend, causal=causal) for backend in attention.BACKENDS}
            for phase in s.phases:
                (length, *_) = s.lengths(6 * LENGTH, LENGTH, phase=phase)
                for step in (0.1, 1 / 7):  # many distances lie where float32 puts them on either side of a number
                    _same_by_any_way(models, length, step, phase, invariant)
    finally:
        attention.CHUNK = kept


def _same_by_any_way(models: dict[str, Transformer], length: int, step: float, phase: str, invariant: bool) -> None:
    model, ids = models["eager"], tokens(length)
    steps = positions_of(model, 2, length, phase=phase).scaled(step)
    expected, ways = model(ids, steps), {"steps": steps, "subtraction": steps.replace(spacing=None)}
    if invariant:
        ways["subtraction of coordinates that lie 1/7 higher"] = steps.map(lambda p, index: p + 1 / 7)
    for way, positions in ways.items():
        what = f"logits with distances by {way} at coordinates {step:.3g} apart"
        for name, other in models.items():
            with suppress(Undefined, UserError):
                equal(expected, other(ids, positions), f"{what} ({name})")


@check(unless=reads_none)
def contextual_as_declared(s: Subject) -> None:
    """Other coordinates leave the logits alone if, and only if, `contextual` is declared."""
    model, ids, holds = s.model(), tokens(LENGTH), s.cls.traits.contextual
    positions = positions_of(model, 2, LENGTH)
    bent = positions.map(lambda p, index: p**2 / LENGTH)
    pairs = [(model(ids, positions), model(ids, bent))]
    as_declared(holds, f"contextual is {holds}", pairs, "logits at bent coordinates")


@check()
def random_as_declared(s: Subject) -> None:
    """Another seed gives other coordinates in some phase if, and only if, `random` is declared."""
    pairs = []
    for phase in [p for p in ("train", "tune", "test") if p in s.member.at]:
        for length in s.lengths(LENGTH, phase=phase):
            model, ids = s.model(), tokens(length, 3)
            first = read(model, ids, phase=phase)
            model.config = replace(model.config, seed=1)
            pairs.append((first, read(model, ids, phase=phase)))
    holds = not s.cls.traits.random
    as_declared(holds, f"random is {not holds}", pairs, "logits of another seed")


@check()
def draws_by_seed_and_sequence_alone(s: Subject) -> None:
    """A seed draws the same for a sequence, whatever torch's global generator does and what else is in the batch."""
    ids = tokens(LENGTH, 3)
    for phase, _ in s.cases(LENGTH):

        def logits(rows: tuple[int, ...], around: int, phase: str = phase) -> Tensor:
            torch.manual_seed(around)
            return read(s.model(), ids[rows[0] - 4 :], phase=phase, rows=rows)

        first = logits((4, 5, 6), 0)
        equal(first, logits((4, 5, 6), 1), f"logits of the same seed in phase {phase}", 0.0)
        equal(first[1:], logits((5, 6), 0), f"logits in a smaller batch in phase {phase}")


def no_training(found: Entry) -> str | None:
    """Reason for what does not act in training."""
    return of_extensions(found) or (None if "train" in found.cls.default_at else "does not act in training")


@check(once=True, unless=no_training)
def training_stays_in_its_extent(s: Subject) -> None:
    """No coordinate and no distance of training reaches the extent that encodings are told, to size tables by."""
    scheme = s.model().scheme
    (plain,) = scheme.parts
    extent = plain.encodings[0][0].shape.extent
    positions = Positions.build(LENGTH, 64, phase="train", rows=range(64), tokens=tokens(LENGTH, 64))
    for layer in range(2):
        here = plain.positions_at(positions, layer)
        largest = max(float(t.max()) for t in (here.query, here.key, here.ruler) if t is not None)
        if largest >= extent:
            raise CheckFailed(f"coordinates of training below the extent {extent}", f"{largest:g}")


@check(unless=of_extensions)
def phases_alike_as_declared(s: Subject) -> None:
    """An extension for which nobody has to say the phase gives the same logits in training, tuning and testing."""
    model = s.model()
    if model.scheme.differs_by_phase(PHASES):
        raise NotApplicable("its phase must be said")
    if s.cls.traits.random:
        raise NotApplicable("each phase draws anew")
    for length in s.lengths(LENGTH, 3 * LENGTH):
        there, *others = (read(model, tokens(length), phase=phase) for phase in PHASES)
        for phase, here in zip(PHASES[1:], others, strict=True):
            equal(there, here, f"logits in phase {phase}, which {s.entry.name}.same_in says are those of training", 0.0)


@check()
def tokens_as_declared(s: Subject) -> None:
    """Other ids of the tokens change what is made of positions if, and only if, the trait `tokens` is declared."""
    pairs, holds = [], not any(entry(m.name).cls.traits.tokens for m in s.spec.members)
    for phase, length in s.cases(LENGTH, 3 * LENGTH):
        model = s.model()
        here, there = (numbers(model, phase, length, tokens(length, 2, seed)) for seed in (0, 1))
        pairs += [(here[name], there[name]) for name in here if here[name].shape == there[name].shape]
    as_declared(holds, f"tokens is {not holds}", pairs, "numbers for other tokens")
