"""What all launchers share: which cells are handed out, in which order, and what becomes of them."""

import os
import signal
import sys

import pytest

from helpers import run_cells
from pezoo.cli import main
from pezoo.errors import UserError
from pezoo.files import Damaged
from pezoo.model import devices
from pezoo.study import Study, make_plan
from pezoo.study.collect import config_hash
from pezoo.study.engines import find_engine
from pezoo.study.launcher import Launcher
from pezoo.study.process import Process, Stopped, stopped_by
from pezoo.study.reading import load_recipe
from pezoo.study.store import Store

DONE = {"event": "done", "fit": None}
FAILED = {"event": "failed", "status": "failed", "reason": "a bug"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    text = tmp_path_factory.mktemp("text") / "words.txt"
    text.write_text("one two three four five six seven eight nine ten\n" * 60)
    return {
        "study": "mine",
        "schemes": ["nope", "alibi", {"scheme": "rope", "tune": [0, 1]}],
        "data": {"corpus": "text", "path": str(text)},
        "model": {"d_model": 8, "n_layers": 1, "n_heads": 2},
        "train": {"length": 8, "steps": 2, "batch_size": 2, "warmup_steps": 1},
        "tune": {"length": "2x", "warmup_steps": 0},
        "test": {"lengths": ["1x", "2x"], "windows": 2},
    }


@pytest.fixture(scope="module")
def plan(recipe):
    return make_plan(load_recipe(recipe))


class Fake:
    """An engine with room for some cells, which says of each what it is told to."""

    def __init__(self, room=2, says=None):
        self.room, self.says = room, says or {}
        self.cells, self.taken, self.cancelled, self.events = [], [], [], []

    def __enter__(self):
        self.events.append("begins")
        return self

    def __exit__(self, *_):
        self.events.append("ends")

    def take(self, ready):
        new = list(ready[: self.room - len(self.cells)])
        self.cells += new
        self.taken += new
        return new

    def hear(self, seconds):
        for cell in list(self.cells):
            for message in self.says.get(cell.title, [DONE]):
                if message is signal.SIGINT:
                    os.kill(os.getpid(), signal.SIGINT)
                    continue
                if message["event"] in ("done", "failed"):
                    self.cells.remove(cell)
                yield cell, message

    def cancel(self, cell):
        self.cancelled.append(cell)
        self.cells.remove(cell)

    def stop(self):
        self.events.append("stops")


class Told:
    """Progress that writes down what it is told."""

    def __init__(self):
        self.lines = []

    def start(self, cell):
        self.lines.append(f"start {cell.title}")

    def update(self, cell, done, total, loss):
        self.lines.append(f"{cell.title} {done}/{total}")

    def note(self, line):
        self.lines.append(line)

    def finish(self, cell, seconds, failure, fit):
        assert 0 <= seconds < 60
        self.lines.append(f"finish {cell.title}{'' if failure is None else ': ' + failure.reason}")


def launch(plan, folder, engine):
    told, ended = Told(), []
    launcher = Launcher(plan, Store(folder), engine, told, ended.append)
    return launcher, told, ended


@pytest.mark.parametrize("room", [1, 2, 100])
def test_a_cell_is_handed_out_when_its_parents_are_done_and_what_gives_results_first(room, plan, tmp_path):
    engine = Fake(room)
    launcher, told, ended = launch(plan, tmp_path, engine)
    launcher.run()
    assert sorted(cell.key for cell in ended) == sorted(plan.cells)
    assert not launcher.failures
    assert engine.events == ["begins", "ends"]
    done = []
    for line in told.lines:
        what, _, title = line.partition(" ")
        (cell,) = [cell for cell in plan.cells.values() if cell.title == title]
        if what == "finish":
            done.append(cell.key)
        else:
            assert set(done).issuperset(cell.parents)
    if room == 1:
        kinds = [cell.kind for cell in engine.taken]
        assert kinds == ["train", "evaluate", "train", "evaluate", "train", "evaluate", "tune", "evaluate"]


def test_what_builds_on_a_failed_cell_is_not_run_and_the_rest_is(plan, tmp_path):
    engine = Fake(says={"train rope, seed 0": [{"event": "begun"}, FAILED]})
    launcher, told, ended = launch(plan, tmp_path, engine)
    launcher.run()
    assert [plan.cells[key].title for key in launcher.failures] == ["train rope, seed 0"]
    assert "finish train rope, seed 0: a bug" in told.lines
    assert len(ended) == 5
    assert not any("rope" in cell.title for cell in engine.taken if cell.kind != "train")


def test_a_cell_that_begins_again_is_one_cell_and_late_words_are_not_heard(plan, tmp_path):
    progress = {"event": "progress", "done": 1, "total": 2, "loss": 3.0}
    says = [{"event": "taken"}, {"event": "begun"}, progress, {"event": "begun"}, progress, DONE, progress]
    engine = Fake(says={"train nope, seed 0": says})
    launcher, told, _ = launch(plan, tmp_path, engine)
    launcher.run()
    assert told.lines.count("start train nope, seed 0") == 1
    assert told.lines.count("train nope, seed 0 1/2") == 2
    assert not launcher.failures


def test_a_cell_that_takes_too_long_is_ended_but_not_while_its_process_gets_ready(recipe, tmp_path):
    plan = make_plan(load_recipe(recipe, ["schemes=[nope, alibi]", "cell_minutes=1e-9"]))
    waits = iter([[{"event": "taken"}], [], [DONE]])

    class Slow(Fake):
        def hear(self, seconds):
            self.says["train alibi, seed 0"] = next(waits, [DONE])
            yield from super().hear(seconds)

    engine = Slow(says={"train nope, seed 0": [{"event": "begun"}]})
    launcher, _, _ = launch(plan, tmp_path, engine)
    launcher.run()
    assert [cell.title for cell in engine.cancelled] == ["train nope, seed 0"]
    (failure,) = launcher.failures.values()
    assert failure.reason == "it took longer than cell_minutes=1e-09"


def test_ctrl_c_lets_trainings_save_and_ends_the_engine(plan, tmp_path):
    engine = Fake(says={"train nope, seed 0": [{"event": "begun"}, signal.SIGINT]})
    launcher, told, _ = launch(plan, tmp_path, engine)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as stopped:
        launcher.run()
    assert stopped.value.args == (signal.SIGINT,)
    assert engine.events == ["begins", "stops", "ends"]
    assert told.lines[-1] == "stopping; trainings save their state first (Ctrl-C again: at once)"
    assert signal.getsignal(signal.SIGINT) is before


def test_where_nothing_is_left_no_engine_begins(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "done", lambda *_: True)
    engine = Fake()
    launch(plan, tmp_path, engine)[0].run()
    assert not engine.events


# ---- the recipe ---------------------------------------------------------------------------------


def test_where_cells_run_renames_no_cell_and_no_result(recipe, plan):
    other = load_recipe(
        recipe, ["launcher=slurm", "slurm={partition: long, minutes: 5}", "ray.num_cpus=2", "workers=9"]
    )
    assert make_plan(other).cells == plan.cells
    assert config_hash(other) == config_hash(plan.recipe)
    assert config_hash(load_recipe(recipe, ["train.steps=3"])) != config_hash(plan.recipe)


def test_the_option_sets_the_key(recipe, tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("pezoo.cli.run.carry_out", lambda study, _: seen.append(study.recipe.launcher) or 0)
    arguments = ["quickstart", "size=test", "--out", str(tmp_path)]
    for more in ([], ["--launcher", "slurm"], ["--launcher=ray"], ["launcher=ray"]):
        assert main(["run", *arguments, *more]) == 0
    assert seen == ["local", "slurm", "ray", "ray"]
    assert main(["run", *arguments, "--launcher", "k8s"]) == 2
    assert "invalid choice: 'k8s'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("launcher=k8s", "launcher"),
        ("ray.num_cpus=0.5", None),
        ("ray.num_gpus=1.5", "ray.num_gpus must be a share of 1, or a number"),
        ("ray.address=head", "ray.address must be auto, HOST:PORT, or null"),
        ("ray.address=head:6379", None),
        ("ray.max_retries=-1", "ray.max_retries must be at least 0"),
        ("slurm.minutes=0", "slurm.minutes must be above 0"),
        ("slurm.minutes=1", "slurm.signal_seconds must be less than the time limit, slurm.minutes=1"),
        ('slurm.partition="a\\nrm"', "slurm.partition must be a name as Slurm has them"),
        ('slurm.account="a b"', "slurm.account must be a name as Slurm has them"),
        ("slurm.partition=gpu,gpu-long", None),
    ],
)
def test_what_is_asked_of_an_engine_is_checked(override, message, recipe):
    if message is None:
        load_recipe(recipe, [override])
        return
    with pytest.raises(UserError) as error:
        load_recipe(recipe, [override])
    assert message in str(error.value)


def test_a_file_cannot_make_a_run_connect_to_somebodys_cluster(tmp_path):
    path = tmp_path / "theirs.yaml"
    path.write_text("schemes: [nope]\nlauncher: ray\nray: {address: 'far.example:6379'}\n")
    with pytest.raises(UserError) as error:
        load_recipe(path)
    assert "type ray.address=far.example:6379, or ray.address=null" in str(error.value)
    assert load_recipe(path, ["ray.address=far.example:6379"]).ray.address == "far.example:6379"
    assert load_recipe(path, ["launcher=local"]).launcher == "local"


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (["launcher=ray"], "cpu"),
        (["launcher=ray", "ray.num_gpus=0.25"], "cuda"),
        (["launcher=slurm", "slurm.gpus=1"], "cuda"),
        (["launcher=slurm", "slurm.gpus=1", "device=cpu"], "cpu"),
        (["launcher=slurm", "ray.num_gpus=1"], "cpu"),
        (["launcher=ray", "device=cuda"], "device=cuda needs a GPU for each cell; type ray.num_gpus=1"),
        (["launcher=slurm", "device=cuda"], "device=cuda needs a GPU for each cell; type slurm.gpus=1"),
        (["launcher=ray", "device=cuda:1"], "device must be auto, cpu or cuda with launcher=ray"),
        (["launcher=slurm", "device=mps"], "device must be auto, cpu or cuda with launcher=slurm"),
    ],
)
def test_the_device_is_that_of_the_cluster_not_of_this_machine(overrides, found, recipe, monkeypatch):
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: False)
    if " " in found:
        with pytest.raises(UserError, match=found.split(";")[0]):
            make_plan(load_recipe(recipe, overrides))
        return
    assert {cell.inputs["device"] for cell in make_plan(load_recipe(recipe, overrides)).cells.values()} == {found}
    assert devices.device_name(found) == found


@pytest.mark.parametrize(("launcher", "package", "name"), [("ray", "ray", "Ray"), ("slurm", "submitit", "submitit")])
def test_without_its_package_a_launcher_says_what_to_type(launcher, package, name, recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"pezoo.study.engines.{launcher}", raising=False)
    with pytest.raises(UserError) as error:
        Study.prepare(recipe, [f"launcher={launcher}"], tmp_path / "out").run()
    assert str(error.value) == f"launcher={launcher} needs {name}; type: pip install 'pezoo[{launcher}]'"
    assert not (tmp_path / "out").exists()
    find_engine("local")


# ---- a process ----------------------------------------------------------------------------------


def test_a_signal_is_raised_where_it_comes_and_handled_as_usual_afterwards():
    before = signal.getsignal(signal.SIGUSR2)
    with pytest.raises(Stopped) as stopped, stopped_by(signal.SIGUSR2):
        signal.raise_signal(signal.SIGUSR2)
    assert stopped.value.args == (signal.SIGUSR2,)
    assert signal.getsignal(signal.SIGUSR2) is before


@pytest.mark.parametrize(
    ("name", "title", "path"),
    [
        ("alibi", "train alibi, seed 0", ("sources", "alibi")),
        ("copy", "train alibi on copy, seed 0", ("data", "source")),
        ("passkey_text", "evaluate alibi (passkey_text, answers), seed 0", ("tested", "source")),
    ],
)
def test_a_cell_is_not_run_by_other_code_than_its_name_says(recipe, tmp_path, name, title, path):
    setup = {"plugins": [], "threads": 1, "device": "cpu", "save_minutes": 5.0, "texts": []}
    more = {"passkey_text": ["test.tasks=[passkey_text]", "test.lengths=[128]"], "copy": ["tasks=[copy]"]}.get(name, [])
    plan = make_plan(load_recipe(recipe, ["schemes=[alibi]", *more]))
    cell = next(cell for cell in plan.cells.values() if cell.title == title)
    cell.inputs[path[0]][path[1]] = "other"
    lines = []
    message = Process(setup).run(cell, Store(tmp_path), lambda _: None, lines.append, 1.0)
    assert message["event"] == "failed"
    assert f"the code of {name} is not what the study was planned with" in message["reason"]
    assert "Traceback" in lines[0]


# ---- files that travel --------------------------------------------------------------------------


def test_files_of_cells_and_their_states_travel_whole(recipe, tmp_path):
    study = Study.prepare(recipe, ["schemes=[nope]"], tmp_path / "here")
    run_cells(study)
    train = next(cell for cell in study.plan.cells.values() if cell.kind == "train")
    study.store.state("later").write_bytes(b"state")
    files = study.store.pack([train.key, "later"], train.log)
    away = Store(tmp_path / "away")
    away.unpack(files)
    assert away.done(train.key)
    assert away.facts(train.key) == study.store.facts(train.key)
    assert away.state("later").read_bytes() == b"state"
    assert list((tmp_path / "away" / train.log).iterdir())

    files[f"cells/{train.key}/model.pt"] += b"!"
    broken = Store(tmp_path / "broken")
    with pytest.raises(Damaged):
        broken.unpack(files)
    assert not broken.path(train.key).exists()
    assert not list(broken.folder.glob(".unfinished*"))
