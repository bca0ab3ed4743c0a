"""Finds the recipes: in `experiments/` at the root of a checkout, inside the package in a wheel."""

from pathlib import Path

_installed = Path(__file__).parent / "experiments"


def recipes_dir() -> Path:
    """Return the folder of the recipes that come with pezoo, one `<study>.yaml` each."""
    return _installed if _installed.is_dir() else _installed.parents[1] / "experiments"
