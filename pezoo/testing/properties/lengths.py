"""Lengths: short, odd, long, growing, and declared by row."""

from collections.abc import Iterator
from contextlib import suppress

import torch

from pezoo.contract import Undefined, overrides
from pezoo.errors import UserError
from pezoo.model.transformer import Transformer
from pezoo.registry import Entry
from pezoo.scheme import Spec
from pezoo.testing.subject import (
    LENGTH,
    CheckFailed,
    Subject,
    as_declared,
    check,
    equal,
    finite,
    of_extensions,
    positions_of,
    read,
    tokens,
)


@check(schedules=True)
def any_length(s: Subject) -> None:
    """Length 1, odd lengths and 16 training lengths give finite logits, or are said to be undefined beforehand."""
    model = s.model()
    for phase in s.phases:
        for length in (1, 3, LENGTH - 1, LENGTH, LENGTH + 1, 63, 16 * LENGTH):
            reason = model.scheme.undefined(length, phase)
            try:
                came = read(model, tokens(length, 1), phase=phase)
            except Undefined as error:
                if reason is None:
                    raise CheckFailed(f"length {length} to be defined, as scheme.undefined says", str(error)) from None
                continue
            if reason is not None:
                raise CheckFailed(f"Undefined at length {length} ({reason})", "logits")
            finite(came, f"logits at length {length} in phase {phase}")


@check(schedules=True)
def length_order_does_not_matter(s: Subject) -> None:
    """The same lengths visited in another order give the same logits: nothing is remembered."""
    for phase in s.phases:
        lengths = s.lengths(LENGTH // 2, LENGTH, LENGTH + 1, 3 * LENGTH, 4 * LENGTH, phase=phase)
        model, again = s.model(), s.model()
        up = {n: read(model, tokens(n), phase=phase) for n in lengths}
        for n in reversed(lengths):
            equal(up[n], read(model, tokens(n), phase=phase), f"logits at {n} tokens after longer ones", 0.0)
            equal(up[n], read(again, tokens(n), phase=phase), f"logits at {n} tokens, the longest visited first,", 0.0)


@check()
def prefix_stable_as_declared(s: Subject) -> None:
    """Logits of a prefix are the same in a longer sequence if, and only if, `prefix_stable` says so."""
    for spec in (s.spec, *_fixed(s)):
        for phase in s.phases:
            model, pairs = s.model(spec), []
            holds = _stable(model, phase)
            lengths = [n for n in (3 * LENGTH, LENGTH) if model.scheme.undefined(n, phase) is None][:1]
            for length in lengths if holds or spec == s.spec else ():  # other settings may leave it nothing to do
                ids = tokens(length)
                full = read(model, ids, phase=phase)
                cuts = (length // 2 + 1, LENGTH - 1)
                pairs += [(full[:, :cut], read(model, ids[:, :cut], phase=phase)) for cut in cuts]
                if model.scheme.undefined(length + 5, phase) is None:
                    pairs.append((full, read(model, ids, phase=phase, declared=length + 5)))
            if pairs:
                trait = f"prefix_stable is {holds} for {spec}"
                as_declared(holds, trait, pairs, f"logits of a prefix in phase {phase}")


def _fixed(s: Subject) -> Iterator[Spec]:
    """The scheme with a number for a setting of an extension that is unset: often it fixes what followed the length."""
    for name in [n for n, value in s.member.full.items() if s.is_extension and value is None]:
        with suppress(UserError):
            spec = s.variant({name: 2})
            s.model(spec)
            yield spec


@check()
def growing_generation_as_declared(s: Subject) -> None:
    """With a declared length that grows by each token, logits are those of the full pass where prefix-stable alone."""
    (length, *_) = s.lengths(3 * LENGTH, LENGTH)
    model, ids = s.model(), tokens(length)
    start = length // 2
    cache = model.cache(2, length)
    model(ids[:, :start], positions_of(model, 2, length, declared=start), cache)
    grown = [
        model(ids[:, t : t + 1], positions_of(model, 2, length, declared=t + 1), cache) for t in range(start, length)
    ]
    pairs = [(read(model, ids)[:, start:], torch.cat(grown, dim=1))]
    holds = model.scheme.prefix_stable
    as_declared(holds, f"prefix_stable is {holds}", pairs, "logits of growing generation")


def moves_nothing(found: Entry) -> str | None:
    """Reason for what leaves coordinates and frequencies as they are."""
    moving = any(overrides(found.cls, hook) for hook in ("coordinates", "frequencies") if hasattr(found.cls, hook))
    return of_extensions(found) or (None if moving else "changes no coordinates and no frequencies")


@check(unless=moves_nothing)
def settles_keys_as_they_come(s: Subject) -> None:
    """Where prefix-stable, coordinates and frequencies of keys stay as they are while other keys come after them."""
    for phase, length in s.cases(LENGTH, 2 * LENGTH + 1):
        model = s.model()
        if not _stable(model, phase):
            continue
        positions = positions_of(model, 2, length, phase=phase)
        whole = model.scheme.prepare(positions).layers
        for t in (1, length // 2):
            early = model.scheme.prepare(positions.slice(t - 1, t, t)).layers
            for (now, *_), (then, *_) in zip(whole, early, strict=True):
                for a, b in zip(now.composition.base, then.composition.base, strict=True):
                    equal(a.positions.key[:, :t], b.positions.key, f"coordinates when {t} tokens were there", 0.0)
                    equal(a.positions.query[:, t - 1 : t], b.positions.query, "coordinate of a query, alone,", 0.0)
                    if a.positions.inv_freq is not None:
                        equal(a.positions.inv_freq, b.positions.inv_freq, f"frequencies when {t} were there", 0.0)


@check(schedules=True)
def declared_lengths_by_row(s: Subject) -> None:
    """Rows of a batch with declared lengths of their own have the logits that they have alone."""
    for phase, longest in s.cases(3 * LENGTH, LENGTH):
        model, ids = s.model(), tokens(LENGTH // 2)
        lengths = (LENGTH - 1, longest)
        together = read(model, ids, phase=phase, declared=torch.tensor(lengths))
        for row, declared in enumerate(lengths):
            alone = read(model, ids[row : row + 1], phase=phase, declared=declared, rows=(row,))
            equal(alone, together[row : row + 1], f"logits of a row declared {declared} tokens long")


def _stable(model: Transformer, phase: str) -> bool:
    return all(m.prefix_stable for m in model.scheme.members if phase in getattr(m, "at", (phase,)))
