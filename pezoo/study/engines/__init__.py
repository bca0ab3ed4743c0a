"""Where cells run: a file for each value of the recipe's `launcher`."""

from collections.abc import Callable

from pezoo.study.launcher import Engine
from pezoo.study.recipe import Recipe


def find_engine(launcher: str) -> Callable[..., Engine]:
    """The engine that a recipe's `launcher` names; what it needs is imported here.

    Returns:
        What makes it: of the study's plan, store and plug-ins, and an estimate that may learn first, or None.

    Raises:
        UserError: if the package that it needs is not installed, with what to type.
    """
    match launcher:
        case "ray":
            from pezoo.study.engines.ray import OnRay

            return OnRay
        case "slurm":
            from pezoo.study.engines.slurm import OnSlurm

            return OnSlurm
    from pezoo.study.engines.local import Pool

    return Pool


def require_launcher(recipe: Recipe) -> None:
    """Refuse a launcher that is not here, before anything is written.

    Raises:
        UserError: with what to type.
    """
    find_engine(recipe.launcher)
    if recipe.launcher == "slurm":
        from pezoo.study.engines.commands import require_slurm

        require_slurm(recipe.slurm)
