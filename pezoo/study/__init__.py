"""Studies: recipe, plan, cells, results."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pezoo.study.plan import Cell, Plan, make_plan
    from pezoo.study.study import Study

__all__ = ["Cell", "Plan", "Study", "make_plan"]


def __getattr__(name: str) -> Any:
    """Import what runs studies when it is asked for: it takes seconds, and reading a recipe needs none of it."""
    if name == "Study":
        from pezoo.study.study import Study

        return Study
    if name in __all__:
        from pezoo.study import plan

        return getattr(plan, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
