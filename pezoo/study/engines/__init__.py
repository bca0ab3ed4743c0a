"""Where cells run: a file for each value of the recipe's `launcher`."""

from pezoo.study.launcher import Engine
from pezoo.study.plan import Plan
from pezoo.study.store import Store


def make_engine(plan: Plan, store: Store, plugins: list[str]) -> Engine:
    """The engine that a recipe asks for; what it needs is imported here.

    Args:
        plan: the study's.
        store: where cells are kept.
        plugins: files that register members.

    Raises:
        UserError: if the package that it needs is not installed, with what to type.
    """
    match plan.recipe.launcher:
        case "ray":
            from pezoo.study.engines.ray import OnRay

            return OnRay(plan, store, plugins)
        case "slurm":
            from pezoo.study.engines.slurm import OnSlurm

            return OnSlurm(plan, store, plugins)
    from pezoo.study.engines.local import Pool

    return Pool(plan, store.study, plugins)
