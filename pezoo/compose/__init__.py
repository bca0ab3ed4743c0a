"""Schemes as modules: built for a model, made ready for each forward, and composed layer by layer.

`Scheme` holds the parameters. `Scheme.prepare(positions)` runs the extensions' maps and the encodings' tables once, and
gives each layer the `Composition` that attention works from.
"""

from pezoo.compose.attend import attend_with
from pezoo.compose.building import build, create
from pezoo.compose.prepared import Group, Prepared
from pezoo.compose.scheme import Scheme

__all__ = ["Group", "Prepared", "Scheme", "attend_with", "build", "create"]
