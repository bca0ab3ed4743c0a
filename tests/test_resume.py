"""Trainings that are stopped or killed and go on: the same weights, results and curves as without it.

`python tools/faults --only training` kills and stops those of real studies.
"""

import dataclasses
import itertools
import os
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.summary.writer import event_file_writer

from helpers import assert_same_weights, curves, rising_text, write_words
from pezoo.data.material import Questions
from pezoo.errors import UserError
from pezoo.files import seal
from pezoo.model.transformer import Transformer, TransformerConfig
from pezoo.study import make_plan
from pezoo.study.reading import load_recipe
from pezoo.study.store import Store
from pezoo.training import resume
from pezoo.training.config import TrainConfig
from pezoo.training.fit import LanguageModel, fit
from pezoo.training.resume import Saving

VOCAB, LENGTH = 19, 8
SETTINGS = TrainConfig(steps=24, batch_size=4, warmup_steps=3, log_every=5)
OWNER = {"cell": "abc", "torch": torch.__version__}


@pytest.fixture(scope="module")
def text():
    return rising_text(VOCAB)


def make(scheme="rope", **settings):
    size = {"vocab_size": VOCAB, "d_model": 16, "n_heads": 2, "n_layers": 1, "train_length": LENGTH, "dropout": 0.2}
    return Transformer(TransformerConfig(**size | settings, scheme=scheme))


def with_settings(**changes):
    return dataclasses.replace(SETTINGS, **changes)


class Killed(BaseException):
    """Stands for a kill: nothing is saved on its way."""


@pytest.fixture
def kill(monkeypatch):
    """Let the forward of a batch, counted from 0 on, fail once, as a kill would."""

    def at(batch):
        inner, left = LanguageModel.training_step, [batch]

        def step(self, *args):
            if not left[0]:
                monkeypatch.setattr(LanguageModel, "training_step", inner)
                raise Killed
            left[0] -= 1
            return inner(self, *args)

        monkeypatch.setattr(LanguageModel, "training_step", step)

    return at


@pytest.fixture
def saved_every(monkeypatch):
    """Let the clock that savings go by advance so that a state is saved every few steps."""

    def every(steps):
        ticks = iter(range(10**9))
        monkeypatch.setattr(resume.time, "monotonic", lambda: next(ticks))
        return steps / 60

    return every


def train(model, material, settings=SETTINGS, **options):
    return fit(model, material, material, settings, **{"seed": 0, "length": LENGTH} | options)


def measured(result):
    return result.status, result.steps, result.final_loss, result.validation_loss


CASES = {
    "random positions": ({"scheme": "rope+random"}, {}),
    "uniform, accumulated": ({"scheme": "rope+random"}, {"lengths": "uniform", "accumulate": 3}),
    "bf16-mixed": ({}, {"precision": "bf16-mixed"}),
    "curriculum": ({"scheme": "t5", "n_layers": 2}, {"lengths": "curriculum"}),
    "bf16-true": ({}, {"precision": "bf16-true"}),
    "64-true": ({}, {"precision": "64-true"}),
    "tied": ({"tie_embeddings": True, "scheme": "learned"}, {"schedule": "linear"}),
}


@pytest.fixture(scope="module")
def uncut(text, tmp_path_factory):
    """Trainings that nothing happens to, each done once: the model, what was measured, and the curves."""
    done = {}

    def find(options, changes):
        if (name := repr((options, changes))) not in done:
            model, folder = make(**options), tmp_path_factory.mktemp("uncut")
            result = train(model, text, with_settings(**changes), log_dir=folder)
            done[name] = model, measured(result), curves(folder)
        return done[name]

    return find


def many(first, *others):
    """Parameters of a test, all but some of which are for the slow suite."""
    return [*first, *(pytest.param(other, marks=pytest.mark.slow) for other in others)]


@pytest.mark.parametrize("case", many(list(CASES)[:3], *list(CASES)[3:]))
def test_a_killed_training_ends_as_if_nothing_had_happened(case, text, tmp_path, kill, saved_every, uncut):
    """Killed three times: before and after a validation, and in the middle of a step where batches are accumulated."""
    options, changes = CASES[case]
    settings, said = with_settings(**changes), []
    whole, expected, points = uncut(options, changes)
    cut = make(**options)
    saving = Saving(tmp_path / "state.pt", OWNER, saved_every(3), said.append)
    for batch in (11, 7, 4):
        kill(batch * settings.accumulate + settings.accumulate // 2)
        with pytest.raises(Killed):
            train(cut, text, settings, log_dir=tmp_path / "cut", saving=saving)
        cut = make(**options)
    torch.manual_seed(123)
    result = train(cut, text, settings, log_dir=tmp_path / "cut", saving=saving)
    steps = [int(re.fullmatch(r"goes on at step (\d+)", line)[1]) for line in said]
    assert len(steps) == 3
    assert all(0 < a < b for a, b in itertools.pairwise(steps))
    assert measured(result) == expected
    assert_same_weights(cut, whole)
    assert curves(tmp_path / "cut") == points


def test_curves_go_on_in_order_whatever_the_clock_says(text, tmp_path, kill, saved_every, uncut, monkeypatch):
    """Event files are named by the clock, and read in the order of their names. Here it goes backwards."""
    *_, points = uncut({"scheme": "rope+random"}, {})
    saving = Saving(tmp_path / "state.pt", OWNER, saved_every(0))
    times = itertools.count(2e9, -1)
    monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=lambda: next(times)))
    for batch in (12, 6):
        kill(batch)
        with pytest.raises(Killed):
            train(make("rope+random"), text, saving=saving, log_dir=tmp_path / "cut")
    train(make("rope+random"), text, saving=saving, log_dir=tmp_path / "cut")
    assert curves(tmp_path / "cut") == points


@pytest.mark.parametrize("step", many([1, 12, 23], 2, 9, 22))  # every second step ends with a validation
def test_a_state_of_any_step_gives_the_same_end(step, text, tmp_path, kill, saved_every, uncut):
    whole, expected, points = uncut({"scheme": "rope+random"}, {})
    cut, said = make("rope+random"), []
    saving = Saving(tmp_path / "state.pt", OWNER, saved_every(0), said.append)
    kill(step)
    with pytest.raises(Killed):
        train(cut, text, saving=saving, log_dir=tmp_path / "cut")
    cut = make("rope+random")
    result = train(cut, text, saving=saving, log_dir=tmp_path / "cut")
    assert said == [f"goes on at step {step}"]
    assert measured(result) == expected
    assert_same_weights(cut, whole)
    assert curves(tmp_path / "cut") == points


def test_a_tuning_and_a_training_without_validation_go_on(text, tmp_path, kill, saved_every):
    settings = with_settings(warmup_steps=0)
    whole, cut = make("rope+random"), make("rope+random")
    options = {"seed": 0, "length": 32, "phase": "tune"}
    expected = fit(whole, text, None, settings, **options)
    saving = Saving(tmp_path / "state.pt", OWNER, saved_every(2))
    kill(9)
    with pytest.raises(Killed):
        fit(cut, text, None, settings, **options, saving=saving)
    cut = make("rope+random")
    assert measured(fit(cut, text, None, settings, **options, saving=saving)) == measured(expected)
    assert_same_weights(cut, whole)


def test_a_task_goes_on(tmp_path, kill, saved_every):
    drill = Questions("reverse_string", "causal", LENGTH)
    options = {"vocab_size": drill.vocab_size, "train_length": drill.n_tokens(LENGTH)}
    settings = with_settings(lengths="uniform", min_length=2)
    whole, cut = make("rope+random", **options), make("rope+random", **options)
    expected = train(whole, drill.train, settings)
    saving = Saving(tmp_path / "state.pt", OWNER, saved_every(2))
    kill(9)
    with pytest.raises(Killed):
        train(cut, drill.train, settings, saving=saving)
    cut = make("rope+random", **options)
    assert measured(train(cut, drill.train, settings, saving=saving)) == measured(expected)
    assert_same_weights(cut, whole)


def test_saving_changes_no_number(text, tmp_path, saved_every, uncut):
    plain, expected, _ = uncut({}, {})
    saved = make()
    assert measured(train(saved, text, saving=Saving(tmp_path / "state.pt", OWNER, saved_every(1)))) == expected
    assert_same_weights(plain, saved)


def test_a_divergence_after_going_on_is_found_at_the_same_step(text, tmp_path, kill, saved_every):
    settings = with_settings(lr=1e30, warmup_steps=0, grad_clip=0.0)
    whole, cut = make(), make()
    expected = train(whole, text, settings)
    assert expected.status == "diverged"
    saving = Saving(tmp_path / "state.pt", OWNER, saved_every(1))
    kill(3)
    with pytest.raises(Killed):
        train(cut, text, settings, saving=saving)
    result = train(make(), text, settings, saving=saving)
    assert (result.status, result.steps, result.reason) == (expected.status, expected.steps, expected.reason)


def test_seconds_and_tokens_are_those_of_both_runs(text, tmp_path, kill, saved_every, monkeypatch):
    now = 0.0

    def step(self, *args, inner=LanguageModel.training_step):
        nonlocal now
        now += 1.0
        return inner(self, *args)

    monkeypatch.setattr(LanguageModel, "training_step", step)
    monkeypatch.setattr("pezoo.training.fit.time.perf_counter", lambda: now)
    saving = Saving(tmp_path / "state.pt", OWNER, saved_every(1))
    kill(10)
    with pytest.raises(Killed):
        train(make(), text, saving=saving)
    result = train(make(), text, saving=saving)
    assert result.train_seconds == 24
    assert result.tokens_per_second == 4 * LENGTH
    assert result.peak_memory_bytes is None or result.peak_memory_bytes > 0


# ---- what is saved --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved_state(text, tmp_path_factory):
    """The folder of a state of step 10, as a kill left it."""
    folder = tmp_path_factory.mktemp("state")
    inner = LanguageModel.training_step

    def step(self, batch, batch_idx):
        if batch_idx == 10:
            raise Killed
        return inner(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageModel, "training_step", step)
        with pytest.raises(Killed):
            train(make(), text, saving=Saving(folder / "state.pt", OWNER, 1e-9))
    return folder


@pytest.fixture
def state(saved_state, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(saved_state, tmp_path / "state")) / "state.pt"


def test_a_state_is_one_whole_file_that_is_data(state):
    assert os.listdir(state.parent) == ["state.pt"]
    content = torch.load(state, weights_only=True)
    assert content["counted"]["steps"] == 10
    assert content["owner"] == OWNER


@pytest.mark.parametrize("damage", ["empty", "half", "bit", "text", "other"])
def test_a_damaged_state_is_thrown_away_with_one_line(damage, state):
    content = state.read_bytes()
    middle = content.index(torch.load(state, weights_only=True)["state_dict"]["model.head.weight"].numpy().tobytes())
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    damaged = {"empty": b"", "half": content[: len(content) // 2], "bit": flipped, "text": b"no state"}
    state.write_bytes(damaged.get(damage, b""))
    if damage == "other":
        torch.save({"weights": {}}, state)
    said = []
    assert Saving(state, OWNER, note=said.append).read() is None
    assert said == ["starts anew: its saved state is damaged"]
    assert not state.exists()


def test_a_training_with_a_damaged_state_starts_anew(state, text, uncut):
    state.write_bytes(state.read_bytes()[:1000])
    fresh, expected, _ = uncut({}, {})
    model = make()
    assert measured(train(model, text, saving=Saving(state, OWNER))) == expected
    assert_same_weights(model, fresh)


def test_a_state_of_another_training_is_thrown_away_with_one_line(state):
    said = []
    owner = OWNER | {"torch": "1.0", "pezoo": "0.1"}
    assert Saving(state, owner, note=said.append).read() is None
    assert said == ["starts anew: its saved state has another pezoo, torch"]
    assert not state.exists()


def test_no_state_is_no_news(tmp_path):
    said = []
    assert Saving(tmp_path / "state.pt", OWNER, note=said.append).read() is None
    assert said == []


def test_a_full_disk_ends_no_training(text, tmp_path, saved_every, small_files):
    said = []
    result = train(make(), text, saving=Saving(tmp_path / "state.pt", OWNER, saved_every(6), said.append))
    assert (result.status, result.steps) == ("ok", 24)
    assert said[0] == f"cannot save its state to {tmp_path / 'state.pt'}: File too large"
    assert os.listdir(tmp_path) == []


def test_a_full_disk_under_the_curves_names_their_folder(text, tmp_path, small_files, capfd):
    with pytest.raises(OSError, match=f"File too large: '{tmp_path}/curves'"):
        train(make(), text, with_settings(log_every=1, steps=60), log_dir=tmp_path / "curves")
    assert "Traceback" not in capfd.readouterr().err


# ---- signals --------------------------------------------------------------------------------------


@pytest.fixture
def interruptible():
    """A process that Ctrl-C interrupts; those that a shell began in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("accumulate", many([3], 1))
def test_ctrl_c_saves_the_state_of_a_whole_step(accumulate, text, tmp_path, monkeypatch, uncut):
    settings = with_settings(accumulate=accumulate)
    whole, expected, _ = uncut({}, {"accumulate": accumulate})
    cut, said = make(), []
    saving = Saving(tmp_path / "state.pt", OWNER, 5.0, said.append)
    inner, handler = LanguageModel.training_step, signal.getsignal(signal.SIGINT)

    def step(self, batch, batch_idx):
        if batch_idx == 7 * accumulate and not said:
            signal.raise_signal(signal.SIGINT)
        return inner(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModel, "training_step", step)
    with pytest.raises(KeyboardInterrupt):
        train(cut, text, settings, saving=saving)
    assert signal.getsignal(signal.SIGINT) is handler
    cut = make()
    assert measured(train(cut, text, settings, saving=saving)) == expected
    assert said == ["goes on at step 8"]
    assert_same_weights(cut, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_handler_is_called_when_the_state_is_saved(number, text, tmp_path, monkeypatch):
    """Called, not signalled: a process may block the signal that another way has brought it."""
    path, seen = tmp_path / "state.pt", []
    inner, usual = LanguageModel.training_step, signal.getsignal(number)

    def step(self, batch, batch_idx):
        if batch_idx == 5:
            signal.raise_signal(number)
            signal.pthread_sigmask(signal.SIG_BLOCK, [number])
        return inner(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModel, "training_step", step)
    signal.signal(number, lambda *_: seen.append(torch.load(path, weights_only=True)["counted"]["steps"]))
    try:
        with pytest.raises(SystemExit):
            train(make(), text, saving=Saving(path, OWNER))
        assert seen == [6]
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        signal.signal(number, usual)


# ---- studies --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A training and its test."""
    return {
        "schemes": ["rope"],
        "data": write_words(tmp_path_factory.mktemp("text"), 400),
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2},
        "train": {"length": 16, "steps": 2, "warmup_steps": 1},
        "tune": {"warmup_steps": 1},
        "test": {"lengths": ["1x"], "windows": 4},
    }


def test_how_often_a_state_is_saved_renames_no_cell(recipe):
    keys = [list(make_plan(load_recipe(recipe, [f"save_minutes={m}"])).cells) for m in (0.5, 7, ".inf")]
    assert keys[0] == keys[1] == keys[2]


@pytest.mark.parametrize("value", ["0", "-1", ".nan"])
def test_minutes_between_savings_are_above_0(recipe, value):
    with pytest.raises(UserError, match="save_minutes must be above 0"):
        load_recipe(recipe, [f"save_minutes={value}"])


def test_states_are_swept_when_their_cells_are_done(tmp_path):
    store = Store(tmp_path)
    for key in ("done", "begun", "damaged"):
        store.state(key).parent.mkdir(exist_ok=True)
        store.state(key).write_bytes(b"")
    for key in ("done", "damaged"):
        store.path(key).mkdir()
        seal(store.path(key) / "done.json", {})
    (store.path("damaged") / "done.json").write_text("{}")
    (store.folder / ".begun.state.pt.123.tmp").write_bytes(b"")
    store.clean()
    assert sorted(os.listdir(store.folder)) == ["begun.state.pt", "damaged", "damaged.state.pt", "done"]
