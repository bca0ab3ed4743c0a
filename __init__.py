"""Stands in for the package where a checkout in a folder named `pezoo` is found before it.

That is so in the folder that holds the checkout: Python then takes `pezoo/` for the package, and all that is
missing there for a part of it. So this module hands on to the package inside.
"""

import importlib.util
import sys
from pathlib import Path

if __name__ == "pezoo":
    _init = Path(__file__).parent / "pezoo" / "__init__.py"
    _spec = importlib.util.spec_from_file_location("pezoo", _init, submodule_search_locations=[str(_init.parent)])
    sys.modules["pezoo"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["pezoo"])
