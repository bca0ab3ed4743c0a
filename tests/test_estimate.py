"""How long the rest of a study takes, on invented cells and an invented clock, and what is said of it."""

import dataclasses
import io

import pytest
from rich.console import Console

from pezoo.registry import _entries, load_plugin
from pezoo.study import trials
from pezoo.study.collect import Failure
from pezoo.study.estimate import Estimate, amount, levels_of, operations, units
from pezoo.study.plan import make_plan
from pezoo.study.progress import make_progress
from pezoo.study.reading import load_recipe
from pezoo.study.schedule import simulate
from pezoo.study.trials import attempt, try_some
from pezoo.training import loss

RECIPE = {
    "schemes": ["rope", "alibi", {"scheme": "rope+pi", "tune": [0, 40]}],
    "seeds": [0, 1],
    "workers": 2,
    "data": {"max_bytes": 300_000},
    "model": {"d_model": 16, "n_layers": 2, "n_heads": 2},
    "train": {"length": 16, "steps": 100, "batch_size": 8, "warmup_steps": 2},
    "tune": {"length": 32, "batch_size": 4, "warmup_steps": 1},
    "test": {"lengths": [16, 32], "windows": 4},
}


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def plan():
    return make_plan(load_recipe(RECIPE))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def estimate(plan, clock):
    return Estimate(plan.cells, plan.cells, 2, clock)


def named(plan, title):
    (key,) = [key for key, cell in plan.cells.items() if cell.title == title]
    return key


def of_kind(plan, kind):
    return [key for key, cell in plan.cells.items() if cell.kind == kind]


def end_all(estimate, plan, seconds, but=()):
    for key, cell in plan.cells.items():
        if key not in but:
            estimate.finish(key, seconds[cell.kind])


def test_work_is_counted_in_rows_and_tokens(plan, estimate):
    train, tune = named(plan, "train rope, seed 0"), of_kind(plan, "tune")[0]
    assert units(plan.cells[train]) == 100 * 8
    assert units(plan.cells[tune]) == 40 * 4
    assert units(plan.cells[of_kind(plan, "evaluate")[0]]) == 4
    assert estimate.tokens == 4 * 100 * 8 * 16 + 2 * 40 * 4 * 32
    vocabulary = plan.cells[train].inputs["data"]["vocab_size"]
    assert operations(plan.cells[train]) == 6 * 16 * (12 * 2 * 16**2 + vocabulary * 16)


def test_frozen_weights_are_less_work_and_checkpointing_is_more(plan):
    def tuning(*overrides):
        cells = make_plan(load_recipe(RECIPE, overrides)).cells.values()
        return next(cell for cell in cells if cell.kind == "tune")

    vocabulary = tuning().inputs["data"]["vocab_size"]
    blocks, head = 12 * 2 * 16**2, vocabulary * 16
    assert operations(tuning()) == 6 * 32 * (blocks + head)
    assert operations(tuning("tune.weights=lora")) == 4 * 32 * (blocks + head)
    assert operations(tuning("tune.checkpointing=true")) == 32 * (8 * blocks + 6 * head)
    kinds = [levels_of(tuning(*o))[1] for o in ((), ("tune.weights=lora",), ("tune.checkpointing=true",))]
    assert len(set(kinds)) == 3


@pytest.mark.parametrize(
    ("overrides", "trained", "each"),
    [
        ([], None, 12),
        (["tune.weights=lora"], 2 * (8 * (16 + 48) + 8 * (16 + 16)), 12),
        (["tune.precision=bf16-true"], None, 6),
    ],
)
def test_what_does_not_grow_with_the_rows_is_counted_once(overrides, trained, each, monkeypatch):
    """Gradients and moments of what is trained, and the logits of a chunk; a trial of one row tells the rest."""
    made = make_plan(load_recipe(RECIPE, overrides))
    cell = next(cell for cell in made.cells.values() if cell.kind == "tune")
    vocabulary, before = cell.inputs["data"]["vocab_size"], 10**8
    monkeypatch.setattr(loss, "at_once", lambda device, vocabulary: 40)  # of the 32 tokens of a row, and 128 of four
    monkeypatch.setattr(trials, "OPERATIONS", operations(cell) * 3)
    monkeypatch.setattr(trials, "peak_memory", lambda device: before)

    def usual(model, *args, inner=trials.fit, **options):
        found = inner(model, *args, **options)
        assert found.trained_params == (trained or sum(p.numel() for p in model.parameters()))
        peak = before + each * found.trained_params + 4 * 3 * vocabulary * 32 + 1000
        return dataclasses.replace(found, peak_memory_bytes=peak)

    monkeypatch.setattr(trials, "fit", usual)
    _, memory = attempt(cell, made.corpora)
    params = trained or sum(p.numel() for p in cell.model().parameters())
    assert memory == before + each * params + 4 * 3 * vocabulary * 40 + 4 * 1000


def test_nothing_is_known_at_first(estimate):
    assert estimate.left() is None
    assert estimate.say() == "time unknown; 61.4 k tokens to train on"


def test_what_was_tried_is_added_up_over_workers(plan, estimate):
    for key in plan.cells:
        estimate.expect(key, 0.5 if plan.cells[key].kind == "evaluate" else 0.01, memory=3 * 10**8)
    trained, tuned, tested = 4 * 800 * 0.01, 2 * 160 * 0.01, 8 * 4 * 0.5
    assert len(of_kind(plan, "evaluate")) == 8
    assert estimate.left() == pytest.approx((trained + tuned + tested) / 2)
    assert estimate.say() == "less than a minute; 61.4 k tokens to train on; 600 MB of memory for 2 workers"


def test_hours_of_all_workers_and_room_on_the_disk_are_told(plan, clock):
    estimate = Estimate(plan.cells, plan.cells, 2, clock)
    assert estimate.hours() is None
    for key in plan.cells:
        estimate.expect(key, 36.0)
    every = sum(36.0 * units(cell) for cell in plan.cells.values())
    assert estimate.hours() == pytest.approx(every / 3600)
    assert estimate.left() >= every / 2
    assert f"{every / 3600:.3g} CPU hours in all" in estimate.say()
    makers = of_kind(plan, "train") + of_kind(plan, "tune")
    size = sum(p.numel() for p in plan.cells[makers[0]].outline().parameters())
    assert estimate.disk() == pytest.approx(4 * len(makers) * size, rel=0.5)
    assert "B on disk" not in estimate.say()  # less than a MiB
    for key in plan.cells:
        estimate.finish(key, 1.0)
    assert (estimate.hours(), estimate.disk()) == (0, 0)


def test_gpu_hours_are_those_of_the_gpus_that_cells_share(plan):
    whole, quarter = (Estimate(plan.cells, plan.cells, 2, share=share) for share in (1.0, 0.25))
    for estimate in (whole, quarter):
        for key in plan.cells:
            estimate.expect(key, 36.0)
    assert quarter.hours() == pytest.approx(whole.hours() / 4)
    assert quarter.left() == whole.left()


def test_it_is_said_where_the_time_comes_from(plan, estimate):
    work = sum(units(cell) * operations(cell) for cell in plan.cells.values() if units(cell))
    assert f"too large to be tried here, or a plug-in's. It is {amount(work)} operations" in estimate.basis()
    for key in plan.cells:
        estimate.expect(key, 0.01)
    kinds = len({levels[0] for levels in estimate.levels.values()})
    tried = f"{kinds} kinds of cells, of which a little was tried on this machine"
    assert estimate.basis() == f"the time comes from {tried}"
    estimate.finish(named(plan, "train rope, seed 0"), 5.0)
    assert estimate.basis() == f"the time comes from 1 finished cell, and from {tried}"


def test_what_wants_a_gpu_is_tried_on_the_cpu_where_there_is_none(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    made = make_plan(load_recipe(RECIPE, ["launcher=slurm", "slurm.gpus=1"]))
    assert {cell.inputs["device"] for cell in made.cells.values()} == {"cuda"}
    estimate = Estimate(made.cells, made.cells, 2)
    try_some(estimate, made.corpora, threads=1, seconds=30.0)
    assert estimate.left() > 0
    assert "was tried on this machine's CPU, for want of a GPU; once a few cells are done on one" in estimate.basis()
    weights = max(sum(p.numel() for p in cell.outline().parameters()) for cell in made.cells.values() if units(cell))
    assert estimate.memory >= 4 * 4 * weights, "weights, gradients and two moments"
    assert estimate.memory < 10**8, "nothing of what this process has beside them"
    assert "GPU memory for 2 workers" in estimate.say()


def test_a_long_chain_of_cells_is_not_shared_among_workers(plan):
    estimate = Estimate(plan.cells, plan.cells, 100)
    for key in plan.cells:
        estimate.expect(key, 1.0)
    assert estimate.left() == pytest.approx(800 + 160 + 4)  # train, tune, evaluate


def test_another_seed_of_a_finished_cell_takes_as_long(plan, estimate):
    others = [named(plan, "train rope, seed 1"), named(plan, "train alibi, seed 1")]
    ended = {named(plan, "train rope, seed 0"): 60.0, named(plan, "train alibi, seed 0"): 20.0}
    for key, seconds in ended.items():
        estimate.finish(key, seconds)
    for key in [key for key in estimate.todo if key not in others]:
        del estimate.todo[key]
    assert estimate.left() == pytest.approx(60.0)  # each on a worker of its own
    estimate.finish(others[0], 60.0)
    assert estimate.left() == pytest.approx(20.0)


def test_a_trial_is_corrected_by_what_came_of_others(plan, estimate):
    rope, alibi = named(plan, "train rope, seed 0"), named(plan, "train alibi, seed 0")
    estimate.expect(rope, 0.01)
    estimate.expect(alibi, 0.02)
    estimate.finish(rope, 3 * 800 * 0.01)  # three times as long as was expected
    for key in [key for key in estimate.todo if key != alibi]:
        del estimate.todo[key]
    assert estimate.left() == pytest.approx(3 * 800 * 0.02)


def test_a_running_cell_is_estimated_by_its_pace_once_it_has_one(plan, estimate, clock):
    key = named(plan, "train rope, seed 0")
    for other in [other for other in estimate.todo if other != key]:
        del estimate.todo[other]
    estimate.expect(key, 0.1)
    estimate.start(key)
    clock.now = 30.0
    assert estimate.left() == pytest.approx(80.0 - 30.0)
    estimate.update(key, 0.5)  # an earlier run did that much
    assert estimate.left() == pytest.approx(40.0)
    clock.now = 50.0
    estimate.update(key, 0.6)
    assert estimate.left() == pytest.approx(80.0)  # a tenth took 20 seconds, four are left


def test_what_builds_on_a_failure_is_not_waited_for(plan, estimate):
    for key in plan.cells:
        estimate.expect(key, 1.0)
    estimate.finish(named(plan, "train rope, seed 0"), 5.0, failed=True)
    left = {plan.cells[key].title for key in estimate.todo}
    assert not any("rope" in title and "seed 0" in title for title in left)
    assert {"train alibi, seed 0", "train rope, seed 1", "evaluate rope+pi, seed 1"} <= left


def test_finished_cells_of_an_earlier_run_tell(plan):
    train, test = named(plan, "train rope, seed 0"), named(plan, "evaluate rope, seed 0")
    estimate = Estimate(plan.cells, [named(plan, "train rope, seed 1"), named(plan, "evaluate rope, seed 1")], 1)
    fit = {"status": "ok", "train_seconds": 90.0, "peak_memory_bytes": 10**9}
    estimate.recall(train, {"fit": fit})
    one_pass = {"seconds": 30.0, "peak_memory_bytes": 2 * 10**9}
    estimate.recall(test, {"lengths": [one_pass, one_pass]})
    assert estimate.left() == pytest.approx(120.0)
    assert estimate.say() == "about 2 min; 12.8 k tokens to train on; 2 GB of memory"


def test_all_done_is_no_time(plan, estimate):
    end_all(estimate, plan, {"train": 2.0, "tune": 2.0, "evaluate": 1.0})
    assert estimate.left() == 0


def test_real_steps_are_tried_and_leave_nothing_unknown(plan, estimate):
    corpora = plan.corpora
    try_some(estimate, corpora, threads=1, seconds=0.0)
    assert estimate.left() is None
    try_some(estimate, corpora, threads=1, seconds=1e-6)
    first = len(estimate.tried)
    assert first in (0, 1)
    try_some(estimate, corpora, threads=1, seconds=30.0)
    assert len(estimate.tried) == len({levels[0] for levels in estimate.levels.values()})
    assert 0 < estimate.left() < 600
    assert 10**7 < estimate.memory < 10**11


def test_work_too_large_to_be_tried_stays_unknown():
    large = RECIPE | {"model": {"d_model": 1024, "n_layers": 12, "n_heads": 16}}
    plan = make_plan(
        load_recipe(
            large | {"train": RECIPE["train"] | {"length": 512}, "test": {"lengths": ["16x"]}, "tune": {"length": "2x"}}
        )
    )
    estimate = Estimate(plan.cells, plan.cells, 2)
    try_some(estimate, plan.corpora, threads=1)
    assert estimate.say().startswith("time unknown; ")


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_shown(plan, clock, terminal):
    estimate = Estimate(plan.cells, plan.cells, 2, clock)
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    first, second = (named(plan, f"train {name}, seed 0") for name in ("rope", "alibi"))
    good = {"status": "ok", "final_loss": 1.125, "reason": ""}
    with make_progress(0, len(plan.cells), console, estimate) as progress:
        progress.start(plan.cells[first])
        progress.update(plan.cells[first], 50, 100, 1.5)
        progress.finish(plan.cells[first], 600.0, None, good)
        progress.start(plan.cells[second])
        if terminal:
            progress.bars.refresh()
        progress.finish(plan.cells[second], 600.0, Failure("failed", "on purpose"), None)
    shown = console.file.getvalue()
    assert ("begins: train rope, seed 0\n" in shown) != terminal
    assert "begins: train alibi" not in shown
    left = estimate.left()
    assert left > 600
    assert f"failed: on purpose, after 600 s; about {round(left / 60)} min left" in shown
    assert "min left" in shown.split("train alibi, seed 0")[0]


def test_what_a_plug_in_brings_is_not_tried(tmp_path):
    """A trial runs in the study's own process, which a plug-in that crashes would take along."""
    file = tmp_path / "plugin.py"
    file.write_text(
        "import pezoo\n\n@pezoo.register('untried', title='t')\nclass Untried(pezoo.Encoding):\n"
        "    def embed(self, x, positions):\n        if x.shape[1] >= 16:\n"
        f"            open({str(tmp_path / 'tried')!r}, 'w').close()\n        return x\n"
    )
    load_plugin(file)
    try:
        plan = make_plan(load_recipe(RECIPE | {"schemes": ["untried", "nope"]}))
        estimate = Estimate(plan.cells, plan.cells, 2)
        try_some(estimate, plan.corpora, threads=1, seconds=30.0)
        assert estimate.tried
        assert estimate.left() > 0
        assert not (tmp_path / "tried").exists()
    finally:
        del _entries["untried"]


def test_a_choice_takes_no_time_and_says_nothing_of_other_cells(clock):
    plan = make_plan(load_recipe(RECIPE | {"schemes": ["rope", "alibi"]}, ["train.lrs=[0.001, 0.002]"]))
    estimate = Estimate(plan.cells, plan.cells, 2, clock)
    chosen, *_ = of_kind(plan, "choose")
    estimate.finish(chosen, 0.1)
    assert estimate.left() is None
    for kind, seconds in (("train", 10.0), ("evaluate", 1.0)):
        estimate.finish(of_kind(plan, kind)[0], seconds)
    rests = estimate.rests()
    assert rests.keys() == estimate.todo.keys()
    assert {rests[key] for key in of_kind(plan, "choose")[1:]} == {0.0}
    assert simulate(plan.cells, rests, 100) == pytest.approx(11), "tests wait for trainings, by way of choices"
