"""The page on a study of 1,000 cells: its recipe is planned, and its schedule simulated, with failures."""

from statistics import fmean

import pytest
import yaml

from pezoo.study import Study
from pezoo.study.estimate import duration
from pezoo.study.schedule import ends
from tools.paths import DOCS

PAGE = (DOCS / "thousand.md").read_text(encoding="utf-8")
RECIPE = yaml.safe_load(PAGE.split("```yaml\n")[1].split("```")[0])
MINUTES = {"train": 20, "choose": 0, "tune": 5, "evaluate": 2}
"""Of a cell on one GPU, as the page assumes."""
DAY = 24 * 3600


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study.prepare(RECIPE, ["launcher=slurm"], tmp_path_factory.mktemp("thousand") / "out")


@pytest.fixture(scope="module")
def seconds(study):
    return {key: 60.0 * MINUTES[cell.kind] for key, cell in study.plan.cells.items()}


def test_its_plan_is_the_page_s(study):
    plan, estimate = study.plan, study.estimate()
    shown = [f"{len(plan.cells):,} cells; left to do: {plan.summary(plan.cells)}", estimate.say(), estimate.basis()]
    assert "```\n" + "\n".join(shown) + "\n```" in PAGE
    assert {cell.inputs["device"] for cell in plan.cells.values()} == {"cuda"}


def test_a_first_part_of_it_is_80_of_its_cells(study, tmp_path):
    part = Study.prepare(RECIPE, ["launcher=slurm", "schemes=[rope, fire]"], tmp_path / "out")
    assert len(part.plan.cells) == 80
    assert set(part.plan.cells) <= set(study.plan.cells)


def test_its_schedule_is_the_page_s(study, seconds):
    """Level by level: when the last cell of each kind is done, without failures and with some."""
    cells, workers = study.plan.cells, study.recipe.workers

    def last(**failures):
        found = ends(cells, seconds, workers, **failures)
        return {kind: max(at for key, at in found.items() if cells[key].kind == kind) for kind in MINUTES}

    smooth, rough = last(), [last(failure_seconds=DAY, seed=seed) for seed in range(20)]
    lines = []
    for kind, minutes in MINUTES.items():
        count = sum(cell.kind == kind for cell in cells.values())
        with_failures = fmean(one[kind] for one in rough)
        facts = (kind, count, minutes, f"{count * minutes / 60:.0f}", *map(_minutes, (smooth[kind], with_failures)))
        lines.append(f"| {' | '.join(map(str, facts))} |")
    assert "\n".join(lines) in PAGE
    every = sum(seconds.values()) / 3600
    assert f"{every:.0f} GPU hours in all" in PAGE
    assert f"{duration(smooth['evaluate'])} without failures" in PAGE
    assert max(smooth.values()) >= 3600 * every / workers


def _minutes(seconds):
    return f"{seconds / 60:.0f} min"
