"""What a token sees: no later token, no other document, no padding, with a cache or without."""

from contextlib import suppress

import torch

from pezoo.contract import overrides
from pezoo.errors import UserError
from pezoo.registry import Entry, entries
from pezoo.scheme import parse
from pezoo.testing.subject import (
    LENGTH,
    TOLERANCE,
    CheckFailed,
    Subject,
    check,
    differs,
    equal,
    of_encodings,
    of_extensions,
    positions_of,
    read,
    tokens,
)


@check(schedules=True)
def causal(s: Subject) -> None:
    """Changing a token leaves the logits before it alone."""
    for phase, length in s.cases(LENGTH, 2 * LENGTH + 1):
        model, ids = s.model(), tokens(length)
        other, at = ids.clone(), 2 * length // 3
        other[:, at] = (other[:, at] + 1) % 16
        before, after = read(model, ids, phase=phase), read(model, other, phase=phase)
        equal(before[:, :at], after[:, :at], "logits before the changed token", 0.0)
        differs(before[:, at:], after[:, at:], "logits from the changed token on")


@check(schedules=True)
def packed_documents_do_not_leak(s: Subject) -> None:
    """Each of two documents in one row has the logits that it has alone, in a decoder and in an encoder."""
    for causal in s.modes:
        for phase, n in s.cases(3 * LENGTH, LENGTH):
            model = s.model(causal=causal)
            a, b = tokens(n // 2 + 1, 1), tokens(n - n // 2 - 1, 1, seed=1)
            documents = torch.cat((torch.zeros_like(a), torch.ones_like(b)), dim=1)
            together = read(model, torch.cat((a, b), dim=1), documents=documents, phase=phase)
            for ids, came in ((a, together[:, : a.shape[1]]), (b, together[:, a.shape[1] :])):
                equal(read(model, ids, declared=n, phase=phase), came, f"logits of a packed document (causal={causal})")


@check(schedules=True)
def padding_does_not_leak(s: Subject) -> None:
    """Padding on either side leaves the logits of the tokens as they are without it, in a decoder and in an encoder."""
    for causal in s.modes:
        for phase, n in s.cases(3 * LENGTH, LENGTH):
            model, ids, filler = s.model(causal=causal), tokens(n - 3), tokens(3, seed=2)
            alone = read(model, ids, declared=n, phase=phase)
            for side, parts in (("left", (filler, ids)), ("right", (ids, filler))):
                valid = torch.cat([torch.full_like(p, p is ids) for p in parts], dim=1).bool()
                came = read(model, torch.cat(parts, dim=1), valid=valid, phase=phase)[valid].view_as(alone)
                equal(alone, came, f"logits with padding on the {side} (causal={causal})")


@check(schedules=True)
def decodes_like_the_full_pass(s: Subject) -> None:
    """Through the cache, token by token and in uneven pieces: the logits of a full pass at that declared length."""
    for phase, length in s.cases(LENGTH, 2 * LENGTH + 1):
        model, ids = s.model(), tokens(length)
        full, positions = read(model, ids, phase=phase), positions_of(model, 2, length, phase=phase)
        for pieces in ([1] * length, [length // 3, 1, length - length // 3 - 1]):
            cache = model.cache(2, length)
            came = torch.cat([model(piece, positions, cache) for piece in ids.split(pieces, dim=1)], dim=1)
            equal(full, came, f"logits decoded in pieces of {pieces[0]}")


@check(schedules=True)
def decodes_padded_and_packed_rows(s: Subject) -> None:
    """A batch with a row padded on the left and a packed row decodes through the cache as in a full pass."""
    for phase in s.phases:
        length = s.lengths(2 * LENGTH + 1, LENGTH, phase=phase)[0]
        model, ids = s.model(), tokens(length)
        place = torch.arange(length)
        valid = torch.stack((place >= 3, place >= 0))
        documents = torch.stack((torch.zeros_like(place), (place > length // 2).long()))
        positions = positions_of(model, 2, length, valid=valid, documents=documents, phase=phase)
        cache = model.cache(2, length)
        came = torch.cat([model(piece, positions, cache) for piece in ids.split(1, dim=1)], dim=1)
        equal(model(ids, positions)[valid], came[valid], "logits of padded and packed rows, decoded,")


@check(unless=of_encodings, once=True)
def stands_beside_any_encoding(s: Subject) -> None:
    """Beside each encoding of the zoo it decodes like the full pass, or is refused with a reason."""
    ids, sizes = tokens(LENGTH), [1, LENGTH // 2, LENGTH // 2 - 1]
    zoo = [e for e in entries().values() if e.kind == "encoding" and e.cls.__module__.startswith("pezoo.encodings.")]
    for other in (e for e in zoo if e.cls is not s.cls):
        with suppress(UserError):  # when it is built, or when it meets what the other has made of q and k
            model = s.model(parse(f"{s.spec}+{other.name}"))
            positions, cache = positions_of(model, 2, LENGTH, phase="test"), model.cache(2, LENGTH)
            came = torch.cat([model(piece, positions, cache) for piece in ids.split(sizes, dim=1)], dim=1)
            # Two of them make the model's numbers larger on the way than one does.
            equal(model(ids, positions), came, f"logits beside {other.name}, decoded,", 10 * TOLERANCE)


def no_reach(found: Entry) -> str | None:
    """Reason for what does not say where the keys lie that it shows."""
    return of_extensions(found) or (None if overrides(found.cls, "reach") else "states no reach")


@check(unless=no_reach)
def reach_holds_what_is_seen(s: Subject) -> None:
    """Every key that the mask shows to some queries lies in the ranges that `reach` states for them."""
    for causal in s.modes:
        for phase, length in s.cases(5 * LENGTH, LENGTH):
            model = s.model(causal=causal)
            composition = model.scheme.prepare(positions_of(model, 1, length, phase=phase)).layers[0][0].composition
            visible, key = composition.visible()[0], torch.arange(length)
            for width in (1, LENGTH // 2 + 1, length):
                for first in range(0, length, width):
                    last = min(first + width, length) - 1
                    ranges = composition.reach(first, last, length)
                    inside = torch.stack([(a <= key) & (key < b) for a, b in ranges] or [key < 0]).any(0)
                    outside = (visible[first : last + 1].any(0) & ~inside).nonzero().flatten().tolist()
                    where = f"(causal={causal}, phase {phase})"
                    if outside:
                        seen = f"keys seen by queries {first} ... {last} in {ranges} {where}"
                        raise CheckFailed(seen, f"key {outside[0]}")
                    start, stop = max(0, ranges[0][0]), ranges[-1][1]
                    part, expected = composition.slice(first, last + 1, stop, start), visible[first : last + 1]
                    equal(expected[:, start:stop], part.visible()[0], f"mask of keys {start} ... {stop - 1} {where}", 0)


def no_distance_mask(found: Entry) -> str | None:
    """Reason for what does not state its mask by distance."""
    return of_extensions(found) or (None if overrides(found.cls, "distance_mask") else "states no mask by distance")


@check(unless=no_distance_mask)
def mask_by_distance_is_the_mask(s: Subject) -> None:
    """What `distance_mask` says of distances is what `mask` says of pairs."""
    for causal in s.modes:
        for phase, length in s.cases(5 * LENGTH, LENGTH):
            model = s.model(causal=causal)
            composition = model.scheme.prepare(positions_of(model, 1, length, phase=phase)).layers[0][0].composition
            for extension in composition.extensions:
                stated = extension.distance_mask(composition.positions.steps())
                if stated is not None:
                    mask = extension.mask(composition.positions)
                    equal(mask, stated, f"mask by distance (causal={causal}, phase {phase})", 0)
