"""What people typed, read as data: YAML, and plain values of the types that they must have.

Schemes, tasks, recipes and overrides all pass here, so that none of them ends in a traceback.
"""

import types
import typing
from collections.abc import Mapping
from typing import Any

from pezoo.errors import UserError, brief, cut

DEEPEST = 20
"""Lists and groups inside one another; a mixture in a part of a size of a recipe has 15."""
LARGEST = 2**63
"""Whole numbers are smaller than this, as PyTorch's are."""
_TYPES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def check_yaml(text: str, *, aliases: bool = False, loader: Any = None) -> None:
    """Refuse YAML that is nested deeper than `DEEPEST`, before anything is made of it.

    Args:
        text: the YAML.
        aliases: whether a part of it may stand for another (`*name`).
        loader: PyYAML's class that reads it; None: the one in Python.

    Raises:
        UserError: if it is too deep, or has aliases that it may not have.
        yaml.YAMLError: if it is no YAML.
    """
    import yaml  # late: names need none

    depth = 0
    for event in yaml.parse(text, Loader=loader or yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise UserError(_TOO_DEEP)
        if isinstance(event, yaml.AliasEvent) and not aliases:
            raise UserError(f"*{event.anchor} stands for another place of the text; write out what is meant")


def read_yaml(text: str, *, long: bool = False) -> Any:
    """Read YAML, as plain data.

    Args:
        text: the YAML.
        long: whether it is a long file, which LibYAML reads ten times as fast, where PyYAML has it.

    Raises:
        UserError: if it is none, nested too deeply, or has aliases.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader) if long else yaml.SafeLoader
    try:
        check_yaml(text, loader=loader)
        return yaml.load(text, Loader=loader)
    except UserError:
        raise
    except Exception as error:  # PyYAML passes on whatever Python says of a date, a number, a tag
        raise UserError(f"it is no YAML: {said(error)}") from None


def said(error: BaseException) -> str:
    """Return an error of another library on one line."""
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    import yaml

    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {cut(_YAML.get(error.problem, error.problem), 200)}"
    return cut(" ".join(str(error).split()) or type(error).__name__, 300)


_YAML = {
    "found character '\\t' that cannot start any token": "it begins with a tab; indent with spaces",
    "expected <block end>, but found '<block mapping start>'": "it is indented otherwise than the keys above it",
    "mapping values are not allowed here": "a second ': ' in one line; quote the text that holds it",
}
"""What PyYAML says most often, in plain words."""
_TOO_DEEP = f"lists and groups are nested more than {DEEPEST} deep"


def check_plain(value: Any, key: str = "", depth: int = 0) -> None:
    """Refuse what is no plain data, or would be more than data to a library that reads it.

    OmegaConf's `${...}` could read the environment, and its `???` stands for a value that is missing.

    Args:
        value: text, numbers, lists and mappings.
        key: where it stands, for messages.
        depth: of the lists and mappings around it.

    Raises:
        UserError: naming the key.
    """
    where = f"{cut(key)}: " if key else ""
    if depth > DEEPEST:
        raise UserError(where + _TOO_DEEP)
    if isinstance(value, str):
        if "${" in value:
            raise UserError(f"{where}a recipe cannot hold ${{...}}, got {brief(value)}; write the value itself")
        if value == "???":
            raise UserError(f"{where}a recipe cannot hold ???; write the value itself")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"{where}{brief(value)} holds characters that no text in UTF-8 can hold") from None
    elif isinstance(value, int) and abs(value) >= LARGEST:
        raise UserError(f"{where}{brief(value)} is too large; whole numbers have at most 63 bits")
    elif isinstance(value, Mapping):
        for name, child in value.items():
            inside = f"{key}.{name}" if key else str(name) if not isinstance(name, int) else brief(name)
            check_plain(name, cut(inside), depth + 1)
            check_plain(child, cut(inside), depth + 1)
    elif isinstance(value, list | tuple):
        for i, child in enumerate(value):
            check_plain(child, f"{cut(key)}.{i}" if key else str(i), depth + 1)


def check_items(key: str, items: Any, hint: Any) -> None:
    """Refuse items of a list that are not what the list is declared to hold.

    Args:
        key: of the list.
        items: what was given; only lists are looked at.
        hint: the declared type, such as `list[int]` or `list[float] | None`.

    Raises:
        UserError: naming the item, what was given and what is allowed.
    """
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    lists = [h for h in (typing.get_args(hint) if union else (hint,)) if typing.get_origin(h) is list]
    kind = typing.get_args(lists[0])[0] if lists else None
    if kind not in _TYPES or not isinstance(items, list | tuple):
        return
    for i, item in enumerate(items):
        if not _reads_as(item, kind):
            raise UserError(f"{key}.{i} must be {_TYPES[kind]}, got {brief(item)}")


def _reads_as(item: Any, kind: type) -> bool:
    """Whether a single value is of a type, or a text that says one."""
    if kind in (str, bool) or isinstance(item, bool):
        return type(item) is kind
    if not isinstance(item, str):
        return isinstance(item, int) or (kind is float and isinstance(item, float))
    try:
        kind(item)
    except ValueError:
        return False
    return True
