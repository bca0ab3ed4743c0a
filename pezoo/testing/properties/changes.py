"""What a member changes: an extension little where it says so, and every member something."""

import torch

from pezoo.contract import Positions, Shape, overrides
from pezoo.model.transformer import Transformer
from pezoo.registry import Entry, make_config
from pezoo.testing.subject import (
    LENGTH,
    CheckFailed,
    NotApplicable,
    Subject,
    acts,
    check,
    composition_of,
    differs,
    equal,
    of_encodings,
    of_extensions,
    positions_of,
    read,
    reads_none,
    tokens,
)


def no_neutral(found: Entry) -> str | None:
    """Reason for extensions that cannot be set to change nothing."""
    return of_extensions(found) or ("no neutral settings are declared" if found.cls.traits.neutral is None else None)


@check(unless=no_neutral)
def neutral_settings_change_nothing(s: Subject) -> None:
    """With the settings that `traits.neutral` names, the scheme without the member is reproduced bit for bit."""
    neutral = s.cls.traits.neutral
    model, host = (s.model(spec, randomise=False, backend="eager") for spec in (s.variant(dict(neutral)), s.host))
    _same(model, host, s.phases, (LENGTH, 3 * LENGTH), f"logits with {dict(neutral) or 'initial parameters'}")


def no_factor(found: Entry) -> str | None:
    """Reason for what has no factor that follows the length."""
    factor = found.parameters.get("factor", {"default": 1.0})["default"]
    return of_extensions(found) or ("no factor that is unset" if factor is not None else None)


@check(unless=no_factor)
def unset_factor_spares_training_lengths(s: Subject) -> None:
    """A factor that is left unset changes nothing, bit for bit, up to the training length itself."""
    if s.member.full["factor"] is not None:
        raise NotApplicable("the factor is set")
    model, host = (s.model(spec, backend="eager") for spec in (s.spec, s.host))
    _same(model, host, s.phases, (LENGTH - 1, LENGTH), "logits with an unset factor")


def _same(model: Transformer, host: Transformer, phases: tuple[str, ...], lengths: tuple[int, ...], what: str) -> None:
    for phase in phases:
        within = [n for n in lengths if phase == "test" or n <= LENGTH]
        for length in [n for n in within if host.scheme.undefined(n, phase) is None]:
            expected, came = (read(m, tokens(length), phase=phase) for m in (host, model))
            equal(expected, came, f"{what} at {length} tokens in phase {phase}", 0.0)


def no_frequencies(found: Entry) -> str | None:
    """Reason for what leaves frequencies alone."""
    return of_extensions(found) or (None if overrides(found.cls, "frequencies") else "changes no frequencies")


@check(once=True, unless=no_frequencies)
def slows_the_slow_frequencies_most(s: Subject) -> None:
    """A rule that changes frequencies slows a slower one at least as much as a faster one."""
    config, at = make_config(s.entry.name, dict(s.member.settings))
    extension = s.cls(Shape(64, 1, 1, 512), config, at)
    before = 10000.0 ** -(torch.arange(32) / 32)[None]
    ratio = (extension.frequencies(before, Positions.build(1, declared=4096, phase="test")) / before)[0]
    rises = ratio[1:] - ratio[:-1]
    if (rises > 1e-5).any():
        k = int(rises.argmax())
        came = f"{ratio[k]:.3g}, then {ratio[k + 1]:.3g}"
        raise CheckFailed("new over old frequency never to rise from fast to slow", came)


@check(unless=lambda found: None if of_encodings(found) else reads_none(found))
def positions_matter(s: Subject) -> None:
    """An encoding tells order to a single query of one layer; an extension changes the logits of its host."""
    if s.is_extension:
        changes = acts(s)
        if changes is None:
            raise NotApplicable("the host has tables of another size without it")
        if not changes:
            raise CheckFailed(f"{s.entry.name} to change the logits in some phase", "the same")
        return
    model, ids = s.model(n_layers=1), torch.arange(LENGTH)[None]
    swapped = ids.clone()
    swapped[:, [2, 9]] = ids[:, [9, 2]]
    differs(read(model, ids)[:, -1], read(model, swapped)[:, -1], "the last logits after two tokens change places")


def no_bias(found: Entry) -> str | None:
    """Reason for encodings without a bias."""
    some = any(overrides(found.cls, hook) for hook in ("bias", "distance_bias") if hasattr(found.cls, hook))
    return of_encodings(found) or (None if some else "no bias")


@check(unless=no_bias)
def bias_is_not_constant(s: Subject) -> None:
    """A bias differs from pair to pair, in every head."""
    model = s.model()
    composition = composition_of(model, positions_of(model, 1, LENGTH))
    bias, visible = composition.bias(), composition.positions.visible()
    spread = bias.masked_select(visible[:, None]).view(*bias.shape[:2], -1).std(dim=-1)
    if (spread < 1e-6).any():
        head = int(spread[0].argmin())
        raise CheckFailed("a bias that depends on the pair, in every head", f"a constant in head {head}")
