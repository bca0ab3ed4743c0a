"""pezoo: the positional-encoding zoo with comparative training."""

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from pezoo.compose import Scheme, create
    from pezoo.compose import attend_with as attend
    from pezoo.contract import Branch, Encoding, Extension, Positions, Schedule, Shape, Traits, Undefined
    from pezoo.errors import UserError
    from pezoo.model.config import TransformerConfig
    from pezoo.model.transformer import Transformer
    from pezoo.pretrained.attach import Attached
    from pezoo.registry import (
        describe,
        list_encodings,
        list_extensions,
        list_schedules,
        list_tasks,
        load_plugin,
        register,
        setting,
    )
    from pezoo.report.finished import Finished
    from pezoo.results import Result
    from pezoo.scheme import parse
    from pezoo.task import IGNORE, Pairs, Task

__version__ = "0.2.0"

__all__ = [
    "IGNORE",
    "Branch",
    "Encoding",
    "Extension",
    "Pairs",
    "Positions",
    "Schedule",
    "Scheme",
    "Shape",
    "Task",
    "Traits",
    "Transformer",
    "TransformerConfig",
    "Undefined",
    "UserError",
    "attach",
    "attend",
    "create",
    "describe",
    "detach",
    "export",
    "from_pretrained",
    "list_encodings",
    "list_extensions",
    "list_schedules",
    "list_tasks",
    "load",
    "load_plugin",
    "parse",
    "register",
    "run",
    "setting",
]

_HOMES = {
    "pezoo.compose": "Scheme attend_with create",
    "pezoo.contract": "Branch Encoding Extension Positions Schedule Shape Traits Undefined",
    "pezoo.errors": "UserError",
    "pezoo.model.config": "TransformerConfig",
    "pezoo.model.transformer": "Transformer",
    "pezoo.registry": "describe list_encodings list_extensions list_schedules list_tasks load_plugin register setting",
    "pezoo.scheme": "parse",
    "pezoo.task": "IGNORE Pairs Task",
}
"""By module, what is imported when it is asked for: PyTorch takes seconds, and `pezoo --help` needs none of it."""


def __getattr__(name: str) -> Any:
    """A public name, or a module at the top of pezoo."""
    inside = "attend_with" if name == "attend" else name
    for home, names in _HOMES.items():
        if inside in names.split():
            found = globals()[name] = getattr(importlib.import_module(home), inside)
            return found
    try:
        if not name.startswith("_"):
            return importlib.import_module(f"pezoo.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"pezoo.{name}":
            raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """All public names, imported or not."""
    return sorted({*globals(), *__all__})


def run(
    recipe: str | Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    out: str | Path | None = None,
    plugins: Iterable[str | Path] = (),
    replace: bool = False,
) -> "list[Result]":
    """Run a recipe, or go on with it, as the command `pezoo run` does; see `pezoo.cli.run`."""
    from pezoo.cli.run import run

    return run(recipe, overrides, out, plugins, replace)


def load(*folders: str | Path) -> "Finished":
    """Read a finished study, run here or published, or several as one; see `pezoo.report.finished.load`."""
    from pezoo.report.finished import load

    return load(*folders)


def attach(
    model: Any, scheme: str | Mapping[str, Any] | None = None, *, train_length: int | None = None, seed: int = 0
) -> "Attached":
    """Have a decoder of the library transformers attend by a scheme; see `pezoo.pretrained.attach.attach`."""
    from pezoo.pretrained import need_transformers

    need_transformers()
    from pezoo.pretrained.attach import attach

    return attach(model, scheme, train_length=train_length, seed=seed)


def detach(model: Any) -> None:
    """Take away what `attach` added to a model; see `pezoo.pretrained.attach.detach`."""
    from pezoo.pretrained import need_transformers

    need_transformers()
    from pezoo.pretrained.attach import detach

    return detach(model)


def export(
    model: Any,
    folder: str | Path,
    scheme: str | Mapping[str, Any] | None = None,
    *,
    length: int | None = None,
    train_length: int | None = None,
) -> Path:
    """Save a transformers model under a scheme, for use without pezoo; see `pezoo.pretrained.export.export`."""
    from pezoo.pretrained import need_transformers

    need_transformers()
    from pezoo.pretrained.export import export

    return export(model, folder, scheme, length=length, train_length=train_length)


def from_pretrained(
    path: str | Path,
    *,
    scheme: str | Mapping[str, Any] | None = None,
    dtype: "torch.dtype | str | None" = None,
    train_length: int | None = None,
    seed: int = 0,
) -> "Transformer":
    """Read somebody's weights into pezoo's own Transformer; see `pezoo.pretrained.from_pretrained.from_pretrained`."""
    from pezoo.pretrained import need_safetensors

    need_safetensors()
    from pezoo.pretrained.from_pretrained import from_pretrained

    return from_pretrained(path, scheme=scheme, dtype=dtype, train_length=train_length, seed=seed)
