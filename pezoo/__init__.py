"""pezoo: the positional-encoding zoo with comparative training."""

from typing import Any

from pezoo.contract import Branch, Encoding, Extension, Positions, Shape, Traits, Undefined
from pezoo.errors import UserError
from pezoo.registry import describe, list_encodings, list_extensions, list_tasks, load_plugin, register, setting
from pezoo.scheme import Scheme, create, parse
from pezoo.scheme import attend_with as attend
from pezoo.transformer import Transformer, TransformerConfig

__version__ = "0.1.0"

__all__ = [
    "Branch",
    "Encoding",
    "Extension",
    "Positions",
    "Scheme",
    "Shape",
    "Traits",
    "Transformer",
    "TransformerConfig",
    "Undefined",
    "UserError",
    "attend",
    "create",
    "describe",
    "list_encodings",
    "list_extensions",
    "list_tasks",
    "load_plugin",
    "parse",
    "register",
    "run",
    "setting",
]


def run(recipe: str, *args: Any, **kwargs: Any) -> Any:
    """Run a recipe, as the command `pezoo run` does; see `pezoo.study.run`."""
    from pezoo.study import run

    return run(recipe, *args, **kwargs)
