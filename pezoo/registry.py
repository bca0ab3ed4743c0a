"""Names of the zoo: `@register` puts a member in, `entry` finds it, plug-ins add their own."""

import dataclasses
import fnmatch
import importlib
import importlib.metadata
import importlib.util
import inspect
import math
import operator
import pkgutil
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from pezoo.contract import PHASES, Encoding, Extension, Member, Registered, Schedule, Traits
from pezoo.errors import UserError, brief, failed, of_a_key, suggest
from pezoo.sources import PLUGIN, plugin_module, source_hash
from pezoo.typed import check_items, check_plain

ENTRY_POINTS = "pezoo.members"
FAMILIES = (
    *("absolute", "relative", "bias", "interpolation", "randomized", "context", "models"),
    *("regular", "deterministic context-free", "context-sensitive", "length generalisation", "recall"),
)
"""Families of members, in the order of the survey, those of models, then those of tasks."""
LARGEST = 2**31 - 1
"""Largest whole number of a setting."""
LIMITS = ("above", "at_least", "at_most")
"""Limits of a setting that is a number."""
R = TypeVar("R", bound=type[Registered])
_entries: dict[str, "Entry"] = {}


def setting(
    default: Any,
    help: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A field of a member's Config: its default, what it means, and its range."""
    metadata = {"help": help, "above": above, "at_least": at_least, "at_most": at_most}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Entry:
    """The facts of one member, or of a literature name that stands for a scheme."""

    name: str
    kind: str
    """encoding, extension, alias, schedule or task."""
    family: str
    title: str
    year: int | None = None
    authors: str = ""
    arxiv: str = ""
    equation: str = ""
    summary: str = ""
    cls: type[Registered] | None = field(default=None, repr=False)
    scheme: str = ""
    """What an alias stands for."""

    @property
    def member(self) -> type[Member]:
        """The class of an encoding or an extension.

        Raises:
            UserError: for a task, a schedule or an alias.
        """
        if self.cls is None or not issubclass(self.cls, Member):
            kind = f"a {self.kind}" if self.cls else f"an alias of {self.scheme}"
            raise UserError(f"{self.name} is {kind}, not an encoding or an extension")
        return self.cls

    @property
    def traits(self) -> Traits | None:
        """Declared facts; None for aliases, schedules and tasks."""
        return getattr(self.cls, "traits", None)

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """Settings by name: type, default, choices, range, help."""
        if self.cls is None:
            return {}
        result = {}
        for f in dataclasses.fields(self.cls.Config):
            default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
            kind = f.type if isinstance(f.type, str) else getattr(f.type, "__name__", None)
            kind = (str(f.type) if kind in (None, "Literal", "Optional", "Union") else kind).replace("typing.", "")
            choices = list(typing.get_args(f.type)) if typing.get_origin(f.type) is typing.Literal else []
            limits = {name: f.metadata[name] for name in LIMITS if f.metadata.get(name) is not None}
            facts = {"type": kind, "default": default, "choices": choices, "range": limits}
            result[f.name] = facts | {"help": f.metadata.get("help", "")}
        if issubclass(self.cls, Extension):
            facts = {"type": "phases", "default": list(self.cls.default_at), "choices": [], "range": {}}
            result["at"] = facts | {"help": "phases in which it acts"}
        return result

    @property
    def source_hash(self) -> str:
        """SHA-256 of the code that the member's numbers depend on, as `pezoo.sources` says; empty for an alias."""
        return source_hash(self.cls.__module__) if self.cls else ""


def register(
    name: str,
    *,
    title: str,
    year: int | None = None,
    authors: str = "",
    arxiv: str = "",
    equation: str = "",
    family: str | None = None,
    aliases: Mapping[str, tuple[str, str] | tuple[str, str, Mapping[str, Any]]] | None = None,
) -> Callable[[R], R]:
    """Class decorator that adds an encoding, an extension, a layer schedule or a task to the zoo.

    Args:
        name: lower case, letters, digits and underscores.
        title: what papers call it.
        year: of the source.
        authors: of the source.
        arxiv: arXiv id of the source.
        equation: the formula in one line of plain text.
        family: place in the taxonomy; default: the folder of the member's file.
        aliases: literature names of schemes around it, {name: (scheme, title)}; a third item states another paper.

    Raises:
        UserError: if a name is malformed or taken, or the class is none of these.
    """

    def add(cls: R) -> R:
        if not issubclass(cls, Registered):
            raise UserError(f"the class of {name} extends neither Encoding, nor Extension, nor Schedule, nor Task")
        kinds = ((Encoding, "encoding"), (Extension, "extension"), (Schedule, "schedule"))
        kind = next((k for base, k in kinds if issubclass(cls, base)), "task")
        folders = ["custom", *(name for name in cls.__module__.split(".")[:-1] if not name.startswith(PLUGIN))]
        summary = (inspect.getdoc(cls) or "").split("\n")[0]
        made = partial(Entry, family=family or folders[-1], year=year, authors=authors, arxiv=arxiv)
        _add(made(name, kind, title=title, equation=equation, summary=summary, cls=cls))
        for alias, (scheme, alias_title, *source) in (aliases or {}).items():
            stands = partial(made, title=alias_title, summary=f"stands for {scheme}", scheme=scheme)
            _add(stands(alias, "alias", **dict(*source)))
        cls.name = name
        return cls

    return add


def _add(new: Entry) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", new.name):
        raise UserError(f"{new.name!r} is no name for a member: use a-z, 0-9 and _, such as 'my_rope'")
    if (old := _entries.get(new.name)) is not None:
        where = inspect.getfile(old.cls) if old.cls else f"alias of {old.scheme}"
        raise UserError(f"the name {new.name!r} is taken ({where}); choose another")
    _entries[new.name] = new


@cache
def _load_zoo() -> None:
    """Import every member once, then the plug-ins that installed packages offer."""
    import pezoo.data.tasks
    import pezoo.encodings

    for package in (pezoo.encodings, pezoo.data.tasks):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise UserError(f"installed plug-in {point.name} ({point.value}): {why}") from error


def load_plugin(path: str | Path) -> list[str]:
    """Run a Python file that registers members, named by the user, and return the names it added.

    It may import the files beside it (`from helper import X` finds `helper.py`). Loading the same file again does
    nothing.

    Raises:
        UserError: if there is no such file, or it fails, or it registers nothing.
    """
    _load_zoo()
    path = Path(path).resolve()
    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"plug-in {path}: no such Python file")
    loaded, before = set(sys.modules), dict(_entries)
    module = plugin_module(path)
    spec = module.__spec__
    if spec is None or spec.loader is None:
        raise UserError(f"plug-in {path} has been run already, and has taken away its __spec__")
    if added := spec.loader_state or _defined_in(path):
        return list(added)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        _forget(before, loaded)
        raise UserError(f"plug-in {path}: {failed(error, path)}") from error
    if not (added := [name for name in _entries if name not in before]):
        _forget(before, loaded)
        raise UserError(f"plug-in {path} registers nothing: decorate a class with @pezoo.register(...)")
    spec.loader_state = added
    return list(added)


def _forget(entries: dict[str, Entry], modules: set[str]) -> None:
    """Go back to these entries, and to these modules of plug-ins."""
    _entries.clear()
    _entries.update(entries)
    for name in set(sys.modules) - modules:
        if name.startswith(PLUGIN):
            del sys.modules[name]


def _defined_in(path: Path) -> list[str]:
    """Names of the members that a file defines, if it has been run already, by whatever way."""
    members = {name: sys.modules.get(e.cls.__module__) for name, e in _entries.items() if e.cls is not None}
    files = {name: getattr(module, "__file__", None) for name, module in members.items()}
    return [name for name, file in files.items() if file is not None and Path(file).resolve() == path]


def entries() -> dict[str, Entry]:
    """Every entry by name, in natural order."""
    _load_zoo()
    return {name: _entries[name] for name in sorted(_entries, key=_natural)}


def entry(name: str) -> Entry:
    """The entry of a name.

    Raises:
        UserError: with near matches, if there is none.
    """
    _load_zoo()
    if name not in _entries:
        raise UserError(f"no member is called {brief(name)}.{_meant(str(name))} All: pezoo list")
    return _entries[name]


def _meant(name: str) -> str:
    """Return " Did you mean ...?": members with the word in what papers call them, or else of a near name."""
    word = re.compile(rf"\b{re.escape(name)}", re.IGNORECASE)
    places = {n: match.start() for n, e in entries().items() if len(name) > 3 and (match := word.search(e.title))}
    called = sorted(places, key=lambda n: places[n])
    said = suggest(name, _entries)
    return said if said or not called else f" Did you mean {' or '.join(map(repr, called[:2]))}?"


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _names(kinds: tuple[str, ...], pattern: str) -> list[str]:
    return [n for n, e in entries().items() if e.kind in kinds and fnmatch.fnmatchcase(n, pattern)]


def list_encodings(pattern: str = "*") -> list[str]:
    """Names of encodings, and of schemes with a literature name, in natural order; `pattern` as in a shell."""
    return _names(("encoding", "alias"), pattern)


def list_extensions(pattern: str = "*") -> list[str]:
    """Names of extensions, in natural order."""
    return _names(("extension",), pattern)


def list_schedules(pattern: str = "*") -> list[str]:
    """Names of layer schedules, in natural order."""
    return _names(("schedule",), pattern)


def list_tasks(pattern: str = "*") -> list[str]:
    """Names of tasks, in natural order."""
    return _names(("task",), pattern)


def describe(name: str) -> dict[str, Any]:
    """The facts of a member as plain data: title, family, year, authors, arXiv id, equation, parameters, traits."""
    found = entry(name)
    facts = {f.name: getattr(found, f.name) for f in dataclasses.fields(found) if f.name != "cls"}
    traits = dataclasses.asdict(found.traits) if found.traits else {}
    traits.pop("parameters", None)  # a function; what it gives depends on the model
    return facts | {"parameters": found.parameters, "traits": traits}


def make_config(name: str, settings: Mapping[str, Any]) -> tuple[Any, tuple[str, ...] | None]:
    """Check a member's settings and return its Config, and `at` for an extension (None for others).

    Raises:
        UserError: for an unknown setting, a wrong type or a value out of range.
    """
    found = entry(name)
    if found.cls is None:
        raise UserError(f"{name} stands for {found.scheme}: its settings are those of the members")
    if not issubclass(found.cls, Extension):
        return checked_settings(name, found.cls.Config, settings), None
    others = {key: value for key, value in settings.items() if key != "at"}
    config = checked_settings(name, found.cls.Config, others, also=("at",))
    return config, _phases(name, plain(settings.get("at", found.cls.default_at)))


def plain(value: Any) -> Any:
    """The same value without NumPy and PyTorch: their numbers become Python's, arrays and tensors become lists.

    A number of less than 64 bits becomes the shortest decimal one that it stands for, so that `np.float32(0.1)` is 0.1.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, np.ndarray):
        value = list(value) if value.ndim else value[()]
    if isinstance(value, np.generic):
        return float(str(value)) if isinstance(value, np.floating) else value.item()
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def checked_settings(name: str, cls: type, settings: Mapping[str, Any], also: Sequence[str] = ()) -> Any:
    """An instance of the dataclass `cls`, whose fields are made by `setting`, after a check of what is set.

    Args:
        name: whose settings they are, for messages.
        cls: the dataclass.
        settings: what differs from the defaults; numbers and lists may be NumPy's or PyTorch's.
        also: names of settings that are checked elsewhere, for messages.

    Raises:
        UserError: for an unknown setting, a wrong type or a value out of range.
    """
    allowed = [f.name for f in dataclasses.fields(cls)]
    for key in settings:
        if key not in allowed:
            known = [*allowed, *also]
            near, names = suggest(str(key), known), ", ".join(known) or "none"
            raise UserError(f"{name} has no setting {brief(key)}.{near} Its settings: {names}")
    if not settings:
        return cls()
    from omegaconf import OmegaConf, errors  # late, as names need none of it

    settings = {key: plain(value) for key, value in settings.items()}
    for f in dataclasses.fields(cls):  # as text, a list of one number is that number
        if f.default_factory is not dataclasses.MISSING and not isinstance(settings.get(f.name, []), list):
            settings[f.name] = [settings[f.name]]
    hints = _hints(cls)
    for key, value in settings.items():
        check_plain(value, f"{name}:{key}")
        check_items(f"{name}:{key}", value, hints.get(key))
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), settings))
    except (errors.OmegaConfBaseException, TypeError, ValueError) as error:
        key = getattr(error, "full_key", "") or ""
        raise UserError(of_a_key(f"{name}:{key}", str(error).splitlines()[0])) from None
    for f in dataclasses.fields(cls):
        value, limits = getattr(config, f.name), f.metadata
        for number in value if isinstance(value, list) else [value]:
            _check_range(f"{name}:{f.name}", number, limits)
    return config


def _hints(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields; none where they are names that only its own module knows."""
    try:
        return typing.get_type_hints(cls)
    except NameError:
        return {}


def _check_range(key: str, value: Any, limits: Mapping[str, Any]) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key} must be a finite number, got {value}")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise UserError(f"{key} must be at most {LARGEST}, got {value}")
    for name, holds in zip(LIMITS, (operator.gt, operator.ge, operator.le), strict=True):
        if (limit := limits.get(name)) is not None and not holds(value, limit):
            raise UserError(f"{key} must be {name.replace('_', ' ')} {limit:g}, got {value:g}")


def _phases(name: str, value: Any) -> tuple[str, ...]:
    phases = value.split(",") if isinstance(value, str) else value
    if not (isinstance(phases, list | tuple) and phases and all(p in PHASES for p in phases)):
        raise UserError(
            f"{name}:at must name some of {', '.join(PHASES)}, got {brief(value)}; type {name}:at=train,test"
        )
    return tuple(p for p in PHASES if p in phases)
