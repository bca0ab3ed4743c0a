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
        if _stored(key) in stored:
            found[key.name] = stored[_stored(key)]
        elif "before" in key.metadata:
            found[key.name] = key.metadata["before"]
    return found


def hashed(cls: type, stored: Mapping[str, Any]) -> dict[str, Any]:
    """What of a stored group names a cell."""
    unnamed = {_stored(key) for key in dataclasses.fields(cls) if not key.metadata.get("hashed", True)}
    before = {_stored(key): key.metadata["before"] for key in dataclasses.fields(cls) if "before" in key.metadata}
    return {
        name: value
        for name, value in stored.items()
        if name not in unnamed and not (name in before and value == before[name])
    }


def _stored(key: dataclasses.Field[Any]) -> str:
    return str(key.metadata.get("stored_as", key.name))
