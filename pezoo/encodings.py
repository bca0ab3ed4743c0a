"""Gives the top-level folder `encodings/` its import name, `pezoo.encodings`.

Python's own library has a package named `encodings`, which the interpreter needs to start. An
`__init__.py` directly in our folder would hide it from any program with the checkout on its
`PYTHONPATH`, so the folder has none and this module stands in for it: its `__path__` is
`pezoo/encodings/` in an installed wheel and `../encodings/` in a checkout. Members are imported as
`pezoo.encodings.<family>.<name>`, never as `encodings...`.
"""

from pathlib import Path

_installed = Path(__file__).parent / "encodings"
__path__ = [str(_installed if _installed.is_dir() else _installed.parents[1] / "encodings")]
