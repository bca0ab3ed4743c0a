"""Corpora: text, tokenised once and cached memory-mapped, and the two ways of cutting it.

`load` gives a corpus in three splits, `crops` its training batches, `windows` its test sequences.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pezoo.data.config import DataConfig
    from pezoo.data.corpus import Corpus, load
    from pezoo.data.tokens import Tokens, Windows, crops, windows

__all__ = ["Corpus", "DataConfig", "Tokens", "Windows", "crops", "load", "windows"]

_HOMES = {"config": "DataConfig", "corpus": "Corpus load", "tokens": "Tokens Windows crops windows"}


def __getattr__(name: str) -> Any:
    """Import what reads text when it is asked for: the tasks beside it need none of it."""
    for home, names in _HOMES.items():
        if name in names.split():
            return getattr(importlib.import_module(f"pezoo.data.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
