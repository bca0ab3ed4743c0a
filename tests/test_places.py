"""Workers on the GPUs of this machine: which has which, and what is said and refused. The GPUs are faked."""

from types import SimpleNamespace

import pytest
import torch

from pezoo.errors import UserError
from pezoo.study import Study, make_plan
from pezoo.study.collect import Failure, collect
from pezoo.study.engines import local
from pezoo.study.estimate import Estimate
from pezoo.study.launcher import setup_of
from pezoo.study.places import places, seated
from pezoo.study.reading import load_recipe
from pezoo.study.store import Store

RECIPE = {
    "study": "mine",
    "tasks": ["reverse_string"],
    "schemes": ["rope", "alibi"],
    "seeds": [0, 1, 2],
    "model": {"d_model": 8, "n_layers": 1, "n_heads": 2},
    "train": {"length": 12, "steps": 4, "batch_size": 4, "warmup_steps": 1},
    "test": {"lengths": ["1x"], "windows": 2},
}


@pytest.fixture(autouse=True)
def gpus(monkeypatch):
    """Let PyTorch see three GPUs of 1 GB; the second is of another make."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: {None: "A", 1: "B"}[torch.device(device).index])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=10**9))


def recipe(*overrides):
    return load_recipe(RECIPE, overrides)


def first_of(*overrides):
    return [place[0] for place in places(recipe(*overrides))]


def test_workers_take_one_gpu_after_the_other():
    assert first_of("workers=2") == ["cuda:0", "cuda:1"]
    assert first_of("workers=5") == first_of("workers=5", "device=cuda") == [f"cuda:{i}" for i in (0, 1, 2, 0, 1)]
    assert first_of("workers=2", "device=cuda:1") == ["cuda:1", "cuda:1"]
    assert first_of("workers=2", "device=cpu") == ["cpu", "cpu"]
    assert places(recipe("workers=2", "launcher=ray", "ray.num_gpus=1")) == []


def test_a_worker_has_as_many_gpus_as_a_training_has_processes():
    assert places(recipe("workers=2", "train.devices=2")) == [("cuda:0", "cuda:1"), ("cuda:2", "cuda:0")]
    assert places(recipe("workers=1", "train.devices=2", "device=cuda:2")) == [("cuda:2", "cuda:0")]
    one_part = {"parts": {"wide": {"train": {"devices": 3}}, "narrow": {"form": "encoder"}}}
    assert places(load_recipe(RECIPE | one_part)) == [("cuda:0", "cuda:1", "cuda:2")]


def test_where_workers_sit_is_said():
    assert seated(places(recipe("workers=5"))) == "2 workers on cuda:0, 2 on cuda:1, 1 on cuda:2"
    assert seated(places(recipe())) == "1 worker on cuda:0"
    assert seated(places(recipe("train.devices=2"))) == "1 worker on cuda:0 and cuda:1"
    assert not seated(places(recipe("workers=5", "device=cpu")))


@pytest.fixture
def pool(monkeypatch, tmp_path):
    """A pool of four workers, each of which says what it was told and waits."""
    monkeypatch.setattr(
        local, "START", "import sys; sys.stdout.write(sys.stdin.readline()); sys.stdout.flush(); sys.stdin.read()"
    )
    plan = make_plan(recipe("workers=4"))
    with local.Pool(plan, Store(tmp_path), []) as made:
        yield made


def told(worker):
    while not (messages := worker.receive()):
        pass
    return messages[0]


def test_each_worker_is_told_its_gpu_and_one_that_replaces_another_takes_its_place(pool):
    ready = list(pool.plan.cells.values())
    assert len(pool.take(ready)) == 4
    assert [told(worker)["device"] for worker in pool.workers] == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]
    second = pool.workers[1]
    second.ready = True
    second.process.kill()
    list(pool.hear(10))
    assert second not in pool.workers
    assert len(pool.take(ready)) == 1
    assert told(pool.workers[-1]) == setup_of(pool.plan, []) | {"device": "cuda:1"}


def test_the_memory_of_each_gpu_is_told_and_what_it_lacks():
    plan = make_plan(recipe())

    def say(*overrides, peak):
        asked = recipe(*overrides)
        estimate = Estimate(plan.cells, plan.cells, asked.workers, places=places(asked))
        estimate.memory = peak
        return estimate.say()

    lacks = "that is more than cuda:0 has: set smaller batches (train, tune, test.batch_tokens), or fewer workers"
    assert "; 400 MB of GPU memory" in (text := say(peak=4 * 10**8))
    assert lacks not in text
    assert "; 800 MB of GPU memory on each of 3 GPUs" in (text := say("workers=6", peak=4 * 10**8))
    assert lacks not in text
    assert "; 1.2 GB of GPU memory on each of 3 GPUs; " + lacks in say("workers=7", peak=4 * 10**8)
    assert "; 800 MB of GPU memory for 2 workers" in say("workers=2", "device=cuda:1", peak=4 * 10**8)


def test_a_training_with_more_processes_than_gpus_is_refused_unless_it_is_done(tmp_path):
    study = Study.prepare(RECIPE, ["train.devices=4"], tmp_path / "out")
    with pytest.raises(
        UserError, match=r"train.devices=4 needs so many GPUs here, and there are 3; type train.devices=3"
    ):
        study.run()
    tests = [key for key, cell in study.plan.cells.items() if cell.kind == "evaluate"]
    assert study.seats(tests) == "1 worker on cuda:0 and cuda:1 and cuda:2 and cuda:0"


def test_a_failed_cell_names_the_device_that_it_was_on(tmp_path):
    plan = make_plan(recipe())
    key = next(key for key, cell in plan.cells.items() if cell.kind == "evaluate")
    by = {"device": "B", "machine": "theirs", "versions": {}}
    (result, *_) = collect(plan, Store(tmp_path), {key: Failure("failed", "a bug", by=by)})
    assert (result.device, result.machine) == ("B", "theirs")
    (result, *_) = collect(plan, Store(tmp_path), {key: Failure("failed", "a bug")})
    assert result.device == "A"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.devices=0"], "train.devices must be at least 1, got 0"),
        (["train.devices=5"], "train.batch_size=4 is fewer than the 5 processes of a training"),
        (["train.devices=2", "train.strategy=ddp_spawn"], "train.strategy"),
        (["train.num_nodes=2"], "train.num_nodes=2 needs jobs on several machines"),
        (
            ["train.num_nodes=2", "launcher=slurm", "slurm.local=true"],
            "train.num_nodes=2 needs jobs on several machines",
        ),
        (["train.num_nodes=2", "launcher=slurm"], None),
        (["train.devices=2", "device=mps"], "train.devices=2, but device=mps is one GPU; type train.devices=1"),
        (["train.devices=2", "launcher=ray", "ray.num_gpus=1"], "more than ray.num_gpus=1; type ray.num_gpus=2"),
        (["train.devices=2", "launcher=ray"], None),
        (["train.devices=3", "launcher=slurm", "slurm.gpus=2"], "more than slurm.gpus=2; type slurm.gpus=3"),
        (
            ["train.devices=3", "tune={steps: [2], batch_size: 2, warmup_steps: 0, length: 2x}"],
            "tune.batch_size=2 is fewer",
        ),
    ],
)
def test_what_cannot_be_shared_out_is_refused_with_the_key(overrides, message):
    if message is None:
        recipe(*overrides)
        return
    with pytest.raises(UserError) as error:
        recipe(*overrides)
    assert message in str(error.value)


def test_fsdp_is_refused_on_a_cpu_and_with_adapters():
    with pytest.raises(UserError, match=r"tune.weights=lora and train.strategy=fsdp do not go together"):
        make_plan(recipe("train.strategy=fsdp", "tune.weights=lora"))
    with pytest.raises(UserError, match=r"train.strategy=fsdp needs CUDA GPUs, and this is device=cpu; type ddp"):
        make_plan(recipe("train.strategy=fsdp", "device=cpu"))
