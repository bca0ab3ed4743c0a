"""The protocols by name, and `name:setting=value` as text."""

import dataclasses
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from pezoo.errors import UserError, suggest
from pezoo.evaluation import attention, last, non_overlapping, prefix, sliding
from pezoo.registry import checked_settings
from pezoo.scheme import MemberSpec, read_members

PROTOCOLS: dict[str, ModuleType] = {
    "prefix": prefix,
    "non_overlapping": non_overlapping,
    "sliding": sliding,
    "last": last,
    "attention": attention,
}
"""Each a module: its docstring is the definition; `run`, `Settings` and METRICS, the names of what it measures."""


@dataclass(frozen=True)
class Protocol:
    """A protocol with its settings; its text is the same however it was written."""

    name: str
    settings: Any
    """All of them, of the protocol's `Settings`; None for a protocol of tasks, which has none."""
    metrics: tuple[str, ...]
    """Names of the metrics it can give."""

    def __str__(self) -> str:
        """As in scheme notation: the name, and the settings that are not default."""
        if self.settings is None:
            return self.name
        default = type(self.settings)()
        fields = [(f.name, getattr(self.settings, f.name)) for f in dataclasses.fields(default)]
        return str(MemberSpec(self.name, tuple((k, v) for k, v in fields if v != getattr(default, k))))


def parse_protocol(text: str | Protocol) -> Protocol:
    """Read a protocol.

    >>> str(parse_protocol("sliding:stride=16"))
    'sliding:stride=16'

    Args:
        text: a name with settings, such as "sliding:stride=16".

    Raises:
        UserError: if it is malformed, or for an unknown name or setting or a value that the setting cannot take.
    """
    if isinstance(text, Protocol):
        return text
    try:
        [(name, settings)] = read_members(text)
    except (AttributeError, ValueError):  # no text, malformed, or several names
        raise UserError(f"cannot read the protocol {text!r}; write it like sliding:stride=16") from None
    if name not in PROTOCOLS:
        near, known = suggest(name, PROTOCOLS), ", ".join(PROTOCOLS)
        raise UserError(f"unknown protocol {name!r}.{near} Choose from: {known}")
    module = PROTOCOLS[name]
    return Protocol(name, checked_settings(name, module.Settings, settings), module.METRICS)
