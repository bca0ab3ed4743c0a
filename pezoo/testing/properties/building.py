"""How a member is built, described, counted and saved."""

import copy
import dataclasses
import difflib
import pickle
import typing
from collections.abc import Iterator
from typing import Any

import torch
import yaml
from torch import Tensor

from pezoo.contract import Encoding, Extension, Member, Shape
from pezoo.errors import UserError
from pezoo.registry import Entry, make_config
from pezoo.scheme import parse
from pezoo.testing.subject import (
    CHECKS,
    LENGTH,
    CheckFailed,
    Subject,
    check,
    equal,
    finite,
    logits_and_gradients,
    positions_of,
    read,
    tokens,
)


@check(once=True)
def says_what_it_is(s: Subject) -> None:
    """It has a title and a class docstring, every setting has a help text, and deviations name checks."""
    missing = [name for name in ("title", "summary") if not getattr(s.entry, name)]
    missing += [f"help of setting {name}" for name, facts in s.entry.parameters.items() if not facts["help"]]
    if missing:
        raise CheckFailed("title, class docstring and a help text for each setting", f"no {', no '.join(missing)}")
    unknown = [name for name in s.cls.traits.deviations if name not in CHECKS]
    if unknown:
        raise CheckFailed("traits.deviations to name checks", ", ".join(unknown))


@check(once=True)
def hooks_are_spelt_right(s: Subject) -> None:
    """No method has nearly the name of a hook: nothing would call it."""
    contract = next(base for base in (Encoding, Extension) if issubclass(s.cls, base))
    hooks = [name for base in (contract, Member) for name in vars(base) if not name.startswith("_")]
    for name in dir(s.cls):
        meant = difflib.get_close_matches(name, hooks, n=1, cutoff=0.85)
        if meant and not hasattr(contract, name):
            raise CheckFailed(f"the hook {meant[0]}", f"{name}, which nothing calls")


@check(schedules=True)
def builds_from_name_yaml_and_saved_settings(s: Subject) -> None:
    """Built from its name, from YAML, and again from its written-out settings, it is one and the same scheme."""
    text = yaml.safe_dump(s.spec.data, sort_keys=False)
    for form in (str(s.spec), s.spec.data, yaml.safe_load(text)):
        again = parse(form)
        if again != s.spec:
            raise CheckFailed(f"{form!r} to mean {s.spec}", str(again))
    ids = tokens(LENGTH)
    equal(read(s.model(), ids), read(s.model(parse(yaml.safe_load(text))), ids), "logits", 0.0)


@check(schedules=True)
def builds_at_any_size(s: Subject) -> None:
    """One head or many, odd widths, short training lengths: finite logits, or a refusal that says why."""
    built = 0
    for d_model, n_heads, train_length in ((16, 1, 1), (15, 3, 2), (8, 8, 3), (48, 6, 5)):
        sizes = {"d_model": d_model, "n_heads": n_heads, "n_layers": 1, "train_length": train_length}
        try:
            model = s.model(**sizes)
        except UserError:
            continue
        built += 1
        for phase in s.phases:
            for length in (1, train_length, 2 * train_length + 1):
                if model.scheme.undefined(length, phase) is None:
                    where = f"at {length} tokens with {', '.join(f'{k} = {v}' for k, v in sizes.items())}"
                    finite(read(model, tokens(length), phase=phase), f"logits {where}")
    if not built:
        raise CheckFailed("some size at which it can be built", "a refusal of each")


@check(once=True)
def counts_parameters_as_declared(s: Subject) -> None:
    """`traits.parameters` gives the number of parameters of one copy."""
    for settings in ({}, *_choices(s)):
        for shape in (Shape(48, 3, 2, LENGTH), Shape(32, 4, 3, 24, causal=False)):
            try:
                config, at = make_config(s.entry.name, dict(s.member.settings) | settings)
                member = s.cls(shape, config, at) if s.is_extension else s.cls(shape, config)
            except UserError:
                continue
            expected, came = s.cls.traits.parameters(shape, config), sum(p.numel() for p in member.parameters())
            if expected != came:
                raise CheckFailed(f"{expected} parameters with {settings or 'its settings'}", str(came))


def _choices(s: Subject) -> Iterator[dict[str, Any]]:
    """Settings with each boolean turned, and each other choice of a Literal."""
    for name, facts in s.entry.parameters.items():
        now = s.member.full[name]
        if isinstance(now, bool):
            yield {name: not now}
        for choice in facts["choices"]:
            if choice != now:
                yield {name: choice}


def no_choices(found: Entry) -> str | None:
    """Reason for members whose settings are numbers."""
    settings = found.parameters.values()
    some = any(facts["choices"] or isinstance(facts["default"], bool) for facts in settings)
    return None if some else "no setting with choices"


@check(unless=no_choices)
def every_choice_runs(s: Subject) -> None:
    """Each boolean turned and each other choice of a setting builds, and gives finite logits and gradients."""
    for settings in _choices(s):
        try:
            model = s.model(s.variant(settings))
        except UserError:
            if s.is_extension:
                continue  # this host is refused
            raise
        for phase in s.phases:
            for length in (LENGTH, 3 * LENGTH):
                if model.scheme.undefined(length, phase) is None:
                    for name, tensor in logits_and_gradients(model, tokens(length), phase).items():
                        finite(tensor, f"{name} at {length} tokens with {settings}")


@check(once=True, unless=lambda found: None if set(found.parameters) - {"at"} else "no settings")
def every_setting_matters(s: Subject) -> None:
    """Each setting changes logits, parameters or what is accepted, alone or beside some choice of another."""
    unused = [name for name in s.entry.parameters if name != "at" and not _matters(s, name)]
    if unused:
        raise CheckFailed("every setting to change something", f"no change by {', '.join(unused)}")


def _matters(s: Subject, name: str) -> bool:
    """Whether some other value of a setting changes anything, alone or beside some choice of another setting."""
    choices, refused = list(_choices(s)), True
    values = [c[name] for c in choices if name in c] or _other_values(s, name)
    others = [{n: _other_values(s, n)[0]} for n in s.entry.parameters if n not in ("at", name)]
    for beside in ({}, *(c for c in choices if name not in c), *others):
        if (plain := _traces(s, beside)) is None:
            continue
        for traces in (_traces(s, beside | {name: value}) for value in values):
            refused &= traces is None
            pairs = zip(plain, traces or plain, strict=True)
            if any(a.shape != b.shape or not torch.equal(a, b) for a, b in pairs):
                return True
    return refused  # each of its values: it decides what is accepted


def _other_values(s: Subject, name: str) -> list[Any]:
    """Values to try for a number, a list of numbers, or one of them that is unset."""
    now = s.member.full[name]
    if isinstance(now, bool | str):
        return [now]
    if isinstance(now, int | float):
        return [2 * now, now / 2 if isinstance(now, float) else now // 2, now + 1]
    if isinstance(now, list | tuple):
        return [[2.0] * n for n in range(1, 33)]
    hint = next(f.type for f in dataclasses.fields(s.cls.Config) if f.name == name)
    return [3, 2 * LENGTH, 100] if int in typing.get_args(hint) else [2.0, 0.5]


def _traces(s: Subject, settings: dict[str, Any]) -> list[Tensor] | None:
    """Logits in every phase at some lengths, and the number of parameters; None if the settings are refused."""
    try:
        model = s.model(s.variant(settings), train_length=8 * LENGTH)
    except UserError:
        return None
    traces = [torch.tensor(sum(p.numel() for p in model.parameters()))]
    for phase in s.member.at:
        for length in (4 * LENGTH, 8 * LENGTH, 24 * LENGTH):
            undefined = model.scheme.undefined(length, phase) is not None
            traces.append(torch.empty(0) if undefined else read(model, tokens(length, 1), phase=phase))
    return traces


@check(schedules=True)
def saves_and_loads(s: Subject) -> None:
    """State dict (into a model of another seed), pickle and deep copy keep the results."""
    model, ids = s.model(), tokens(LENGTH)
    fresh = s.model(randomise=False, seed=1)
    fresh.load_state_dict(model.state_dict())
    fresh.config = model.config  # the seed of random positions is not a weight
    for copied in (fresh, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        equal(read(model, ids), read(copied, ids), "logits of the copy", 0.0)


@check(schedules=True)
def takes_parameters_from_outside(s: Subject) -> None:
    """With its parameters handed in by torch.func, a model without them gives the logits of one that has them."""
    model, ids = s.model(), tokens(LENGTH)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    empty = copy.deepcopy(model)
    for parameter in empty.parameters():
        parameter.data.fill_(torch.nan)
    came = torch.func.functional_call(empty, parameters, (ids, positions_of(empty, *ids.shape)))
    equal(read(model, ids), came, "logits with parameters handed in", 0.0)
