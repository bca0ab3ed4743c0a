"""Trees of keys as OmegaConf holds them: checked beside the dataclasses that declare them, and joined."""

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pezoo.errors import UserError, brief, cut, of_a_key, suggest
from pezoo.typed import check_items


def check_keys(given: Mapping[str, Any], cls: type, root: type, prefix: str = "") -> None:
    """Refuse unknown keys, one value where a group or a list belongs, and items of a list that are of another type."""
    types = {typed_name(name): hint for name, hint in typing.get_type_hints(cls).items()}
    examples = {typed_name(f.name): _example(f) for f in dataclasses.fields(cls)}
    for name, value in given.items():
        key = f"{prefix}{name}"
        if name not in types:
            hint = _meant(str(name), types, root, prefix)
            raise UserError(f"unknown key {brief(key)}.{hint} Known here: {', '.join(types)}")
        if dataclasses.is_dataclass(types[name]):
            keys = ", ".join(typed_name(f.name) for f in dataclasses.fields(types[name]))
            require(isinstance(value, Mapping), key, value, f"a group of keys ({keys})")
            check_keys(value, types[name], root, f"{key}.")
        elif typing.get_origin(types[name]) is list:
            require(isinstance(value, list), key, value, f"a list such as {examples[str(name)]}")
            check_items(key, value, types[name])
        elif typing.get_origin(types[name]) is dict:
            require(isinstance(value, Mapping), key, value, "a group of keys")


def _example(field: "dataclasses.Field[Any]") -> str:
    """A list that a key takes: the one it declares as an example, or its default."""
    default = field.default_factory() if callable(field.default_factory) else []
    items = field.metadata.get("example", default if isinstance(default, list) else [])
    return f"[{', '.join(map(str, items))}]"


def _meant(name: str, here: Iterable[str], root: type, prefix: str) -> str:
    """Return " Did you mean ...?": keys of that very name, wherever they are, or else those that are near."""
    groups = {
        f.name: f.default_factory for f in dataclasses.fields(root) if dataclasses.is_dataclass(f.default_factory)
    }
    every = [
        (typed_name(f.name), f"{group}.{typed_name(f.name)}")
        for group, cls in groups.items()
        for f in dataclasses.fields(cls)
    ]
    same = [key for leaf, key in every if leaf == name.casefold()]
    if not same and (near := suggest(name, here, prefix)):
        return near
    same = same or [key for leaf, key in every if suggest(name, [leaf])]
    return f" Did you mean {' or '.join(map(repr, same[:3]))}?" if same else ""


def typed_name(field_name: str) -> str:
    """The key of a field, as people type it: a word of Python has a `_` behind it in the code."""
    return field_name.removesuffix("_")


def join_trees(*trees: Any) -> DictConfig:
    """One tree of several; the later ones win."""
    try:
        return OmegaConf.merge(*trees)
    except TypeError:
        raise UserError("a key is a list in one place of the recipe, and a group of keys in another") from None
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(problem_of(error)) from None


def problem_of(error: Exception) -> str:
    """What OmegaConf says on its first line, with the key."""
    key, problem = getattr(error, "full_key", None), (str(error).splitlines() or [""])[0]
    return of_a_key(cut(str(key)), problem) if key else cut(problem, 200)


def require(condition: bool, key: str, value: Any, allowed: str, hint: str = "") -> None:
    """Refuse the value of a key unless the condition holds; `hint` is what was meant."""
    if not condition:
        raise UserError(f"{cut(key)} must be {allowed}, got {brief(value)}{'.' * bool(hint)}{hint}")
