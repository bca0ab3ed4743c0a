"""Recipe to plan, plan to cells, cells to results; safe to stop at any moment and run again."""

from pezoo.study.plan import Cell, Plan, make_plan
from pezoo.study.study import Study

__all__ = ["Cell", "Plan", "Study", "make_plan"]
