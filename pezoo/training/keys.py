"""Keys of a recipe that change, without new names for cells whose numbers stay.

The keys of `model` and `train` stand in the inputs of cells, whose hash is their name, and in checkpoints. So that both
outlive a change of keys, a field of these dataclasses may have metadata, `field(default=..., metadata={...})`:

- `stored_as`: the name that the key had, for one that is renamed.
- `before`: for a new key, the value with which all is as it was before. With it, the key names no cell.
- `hashed`: False for a key that moves no number.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


def to_stored(group: Any) -> dict[str, Any]:
    """A group of keys as plain data, under the names by which they are stored."""
    values = dataclasses.asdict(group)
    return {_stored(key): values[key.name] for key in dataclasses.fields(group)}


def from_stored(cls: type, stored: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a group by their names of today. What was stored may be older than some of them."""
    found = {}
    for key in dataclasses.fields(cls):
        if (name := _stored(key)) in stored:
            found[key.name] = stored[name]
        elif "before" in key.metadata:
            found[key.name] = key.metadata["before"]
    return found


def hashed(cls: type, stored: Mapping[str, Any]) -> dict[str, Any]:
    """What of a stored group names a cell."""
    named = dict(stored)
    for key in (key for key in dataclasses.fields(cls) if key.metadata):
        name, facts = _stored(key), key.metadata
        if not facts.get("hashed", True) or ("before" in facts and named.get(name) == facts["before"]):
            named.pop(name, None)
    return named


def _stored(key: dataclasses.Field[Any]) -> str:
    return str(key.metadata.get("stored_as", key.name))
