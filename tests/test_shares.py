"""One training over several processes: the same gradients, losses and weights as one, whoever computes which rows."""

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helpers import assert_same_weights, curves, rising_text
from pezoo.errors import UserError
from pezoo.model.transformer import Transformer, TransformerConfig
from pezoo.results import read
from pezoo.study import Study
from pezoo.task import IGNORE, Example
from pezoo.training import peers
from pezoo.training.config import TrainConfig
from pezoo.training.fit import LanguageModel, fit
from pezoo.training.peers import PeerFailed
from pezoo.training.resume import Saving
from pezoo.training.shares import seed_of, share

VOCAB, LENGTH = 19, 12
SETTINGS = TrainConfig(steps=8, batch_size=5, warmup_steps=2, log_every=2)
SCHEMES = ["alibi:slopes=learned", "t5", "rope", "rope+random"]


def make(scheme, **settings):
    size = {"vocab_size": VOCAB, "d_model": 16, "n_heads": 2, "n_layers": 2, "train_length": LENGTH}
    return Transformer(TransformerConfig(**size | settings, scheme=scheme))


class Uneven:
    """Text of which each row asks for another number of tokens, the first for none."""

    def __init__(self):
        self.text = rising_text(VOCAB)

    def batch(self, step, batch_size, length, seed, longest=None):
        tokens, targets = self.text.batch(step, batch_size, length, seed, longest)
        asked = torch.arange(length) < (torch.arange(batch_size)[:, None] * 3 + step) % (length + 1)
        return Example(tokens, targets.where(asked, IGNORE))

    def rows(self, batch_size, longest, length):
        return batch_size


# ---- without processes --------------------------------------------------------------------------


@pytest.mark.parametrize("rows", range(1, 12))
def test_each_row_has_one_process_and_none_has_many_more_than_others(rows):
    for world in range(1, rows + 1):
        shares = [range(rows)[share(rows, rank, world)] for rank in range(world)]
        assert [row for one in shares for row in one] == list(range(rows))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert min(map(len, shares)) >= 1


def test_each_process_has_dropout_of_its_own_and_the_first_that_of_one_process():
    assert seed_of(7, 0) == 7
    assert len({seed_of(seed, rank) for seed in range(10) for rank in range(10)}) == 100


def gradients(model, batch, rank, world, first_row):
    """Loss and gradients of a process's share."""
    module = LanguageModel(model, SETTINGS, "train")
    module.trainer = SimpleNamespace(global_rank=rank, world_size=world)
    module.n_rows = first_row
    model.train()
    model.zero_grad()
    loss = module.training_step(batch, 0)
    loss.backward()
    return [loss.detach()] + [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("world", [2, 5])
def test_the_mean_of_the_gradients_of_shares_is_that_of_the_batch(scheme, world):
    model = make(scheme).double()
    batch = Uneven().batch(1, 5, LENGTH, 0)
    whole = gradients(model, batch, 0, 1, 40)
    shares = [gradients(model, batch, rank, world, 40) for rank in range(world)]
    for expected, *found in zip(whole, *shares, strict=True):
        torch.testing.assert_close(torch.stack(found).mean(0), expected, rtol=1e-6, atol=1e-9)  # hooks are float32


def test_a_batch_with_fewer_rows_than_processes_is_refused():
    with pytest.raises(UserError, match=r"train.batch_size=5 is fewer than the 6 processes .* type train.batch_size=6"):
        fit(make("rope"), Uneven(), None, dataclasses.replace(SETTINGS, devices=6), seed=0, length=LENGTH)


@pytest.mark.parametrize(
    ("start", "why"),
    [
        ("raise SystemExit(3)", "could not start: it ended with exit code 3"),
        ("print('\"no such module\"')", "could not start: no such module"),
    ],
)
def test_a_process_that_cannot_start_is_told(start, why, monkeypatch, capfd):
    monkeypatch.setattr(peers, "START", start)
    with pytest.raises(PeerFailed) as error:
        fit(make("rope"), Uneven(), None, dataclasses.replace(SETTINGS, devices=2), seed=0, length=LENGTH)
    assert str(error.value) == f"process 1 of the training {why}"
    assert not torch.distributed.is_initialized()


def test_a_mapped_corpus_is_handed_on_as_the_name_of_its_file(tmp_path):
    import pickle

    import numpy as np

    (tmp_path / "ids").write_bytes(bytes(range(200)) * 50)
    mapped = np.memmap(tmp_path / "ids", np.uint16, "r", offset=100)
    told = peers._dump([mapped, mapped[7:19]])
    assert len(told) < 2000
    whole, part = pickle.loads(told)
    assert np.array_equal(whole, mapped)
    assert np.array_equal(part, mapped[7:19])
    with pytest.raises(ValueError, match="read-only"):
        whole[0] = 1


# ---- with two processes -------------------------------------------------------------------------


def train(model, devices, settings=SETTINGS, material=None, **options):
    settings, material = dataclasses.replace(settings, devices=devices), material or Uneven()
    return fit(model, material, material, settings, seed=0, length=LENGTH, **options)


@pytest.fixture
def seen(monkeypatch):
    """The gradients of each step of this process, before they are clipped."""
    found = []
    hook = lambda self, _: found.append([p.grad.clone() for p in self.model.parameters()])  # noqa: E731
    monkeypatch.setattr(LanguageModel, "on_before_optimizer_step", hook)
    return found


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("scheme", SCHEMES[1:])
def test_two_processes_have_the_gradients_of_one(scheme, seen):
    """In float32, over all parameters of a step: those of the first step, and of later ones as weights come apart."""
    one, two = make(scheme), make(scheme)
    alone, shared = train(one, 1), train(two, 2)
    half = len(seen) // 2
    assert half == SETTINGS.steps
    for step, (expected, found) in enumerate(zip(seen[:half], seen[half:], strict=True)):
        expected, found = (torch.cat([g.flatten() for g in grads]) for grads in (expected, found))
        assert (found - expected).norm() <= (1e-6 if step == 0 else 1e-4) * expected.norm()
    assert shared.final_loss == pytest.approx(alone.final_loss, abs=1e-5)
    assert shared.validation_loss == pytest.approx(alone.validation_loss, abs=1e-5)
    assert (shared.status, shared.steps) == ("ok", SETTINGS.steps)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "scheme"), [("llama", "rope+kerple"), ("gpt2", "rope"), ("opt", "learned")])
def test_two_processes_tune_a_model_of_transformers(family, scheme):
    """The other process has never called attach; a table of positions that gives way has no gradient."""
    pytest.importorskip("transformers")
    from pretrained import tiny

    import pezoo
    from pezoo.pretrained.body import Body

    results = []
    for devices in (1, 2):
        drops = {"dropout": 0.0} if family == "opt" else {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
        sizes = {"vocab_size": VOCAB, "num_hidden_layers": 1, "max_position_embeddings": LENGTH}
        model = tiny(family, **sizes, **(drops if family != "llama" else {}))
        pezoo.attach(model, scheme)
        settings = dataclasses.replace(SETTINGS, steps=2, warmup_steps=0, lr=1e-2, log_every=1)
        results.append(train(Body(model, LENGTH, 0), devices, settings, phase="tune"))
    one, two = results
    assert two.status == "ok"
    assert two.final_loss == pytest.approx(one.final_loss, abs=1e-4)
    assert two.validation_loss == pytest.approx(one.validation_loss, abs=1e-4)
    assert two.trained_params == one.trained_params


@pytest.mark.slow
def test_accumulated_and_of_several_lengths_the_weights_are_those_of_one(tmp_path):
    settings = dataclasses.replace(SETTINGS, accumulate=2, lengths="uniform", grad_clip=0.1, schedule="linear")
    text = rising_text(VOCAB)
    one, two = make("rope+random"), make("rope+random")
    train(one, 1, settings, text, log_dir=tmp_path / "one")
    train(two, 2, settings, text, log_dir=tmp_path / "two")
    for expected, found in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    expected, found = curves(tmp_path / "one"), curves(tmp_path / "two")
    assert expected.keys() == found.keys()
    for tag, points in expected.items():
        assert found[tag] == [(step, pytest.approx(value, rel=1e-4)) for step, value in points]


@pytest.mark.slow
def test_two_processes_that_are_stopped_go_on_with_the_dropout_of_each(tmp_path, monkeypatch):
    uncut = make("rope+random", dropout=0.2)
    expected = train(uncut, 2, log_dir=tmp_path / "uncut")
    said, inner = [], LanguageModel.training_step
    saving = Saving(tmp_path / "state.pt", {"cell": "abc"}, 5.0, said.append)

    def step(self, batch, batch_idx):
        if batch_idx == 3 and not said:
            signal.raise_signal(signal.SIGTERM)
        return inner(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModel, "training_step", step)
    usual = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(SystemExit):
            train(make("rope+random", dropout=0.2), 2, log_dir=tmp_path / "cut", saving=saving)
    finally:
        signal.signal(signal.SIGTERM, usual)
    one, other = torch.load(tmp_path / "state.pt", weights_only=True)["random"]
    assert not torch.equal(one["cpu"], other["cpu"])
    cut = make("rope+random", dropout=0.2)
    found = train(cut, 2, log_dir=tmp_path / "cut", saving=saving)
    assert said == ["goes on at step 4"]
    assert (found.final_loss, found.validation_loss) == (expected.final_loss, expected.validation_loss)
    assert_same_weights(cut, uncut)
    assert curves(tmp_path / "cut") == curves(tmp_path / "uncut")


ON_A_CPU = """
import torch
from pytorch_lightning.strategies import FSDPStrategy
from torch.distributed.fsdp import FullyShardedDataParallel
from pezoo.training import fit

class OnACPU(FSDPStrategy):
    def _setup_model(self, model):
        return FullyShardedDataParallel(
            model, sharding_strategy=self.sharding_strategy, device_id=torch.device("cpu"), **self.kwargs
        )

usual = fit.placed
fit.placed = lambda *given: usual(*given) | {"strategy": OnACPU()}
"""
"""Lightning does not let FSDP run on a CPU, and PyTorch does so only where it is told the device."""


@pytest.mark.slow
def test_with_a_part_of_the_weights_in_each_process_the_whole_comes_back(monkeypatch):
    settings = dataclasses.replace(SETTINGS, strategy="fsdp", grad_clip=0.1)
    one, two = make("t5"), make("t5")
    alone = train(one, 1, dataclasses.replace(settings, strategy="auto"))
    start = "import sys; sys.path[:] = {path!r}; exec(%r); from pezoo.training.peers import main; main()"
    monkeypatch.setattr(peers, "START", start % ON_A_CPU.replace("{", "{{").replace("}", "}}"))
    monkeypatch.setattr("pezoo.training.fit.placed", fit.__globals__["placed"])  # what follows changes it
    exec(ON_A_CPU, {})
    shared = train(two, 2, settings)
    for expected, found in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert shared.final_loss == pytest.approx(alone.final_loss, abs=1e-5)
    assert shared.validation_loss == pytest.approx(alone.validation_loss, abs=1e-5)


FAILING = """
import sys
sys.path[:] = {path!r}
from pezoo.training import fit, peers
def fail(self, batch, batch_idx):
    if batch_idx == 2:
        {what}
    return inner(self, batch, batch_idx)
inner, fit.LanguageModel.training_step = fit.LanguageModel.training_step, fail
peers.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("raise MemoryError('not enough memory there')", "not enough memory there"),
        ("raise ValueError('a bug')", "ValueError: a bug"),
        ("import os; os.kill(os.getpid(), 9)", "it was killed by signal 9 (SIGKILL), as happens when memory runs out"),
    ],
)
def test_why_another_process_failed_is_told_at_once(what, why, monkeypatch):
    monkeypatch.setattr(peers, "START", FAILING.replace("{what}", what))
    began = time.monotonic()
    with pytest.raises(PeerFailed) as error:
        train(make("rope"), 2)
    assert str(error.value) == f"process 1 of the training failed: {why}"
    assert time.monotonic() - began < 600  # PyTorch itself would wait for half an hour
    assert not torch.distributed.is_initialized()
    train(make("rope"), 1)


FIRST = """
import sys
sys.path[:] = {path!r}
from test_shares import LanguageModel, SETTINGS, dataclasses, make, train
def tell(self, *args):
    print("trains", flush=True)
LanguageModel.on_train_batch_start = tell
train(make("rope"), 2, dataclasses.replace(SETTINGS, steps=10**6))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs to know the children of a process")
def test_no_process_outlives_the_first_one_when_it_is_killed():
    code = FIRST.format(path=[*sys.path, str(Path(__file__).parent)])
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"trains\n"
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
        assert children
        first.kill()
    until = time.monotonic() + 60
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.ci
def test_a_study_with_two_processes_for_each_training(tmp_path):
    recipe = {
        "study": "mine",
        "tasks": ["reverse_string"],
        "schemes": [{"scheme": "rope+random", "tune": [2]}],
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2},
        "train": {"length": 8, "steps": 4, "batch_size": 3, "warmup_steps": 1},
        "tune": {"length": "2x", "batch_size": 3, "warmup_steps": 0},
        "test": {"lengths": ["1x", "2x"], "windows": 4},
        "device": "cpu",
    }
    found = []
    for devices in (1, 2):
        study = Study.prepare(recipe, [f"train.devices={devices}"], tmp_path / str(devices))
        study.run()
        assert not study.failures
        trained = [study.store.facts(key)["fit"] for key, cell in study.plan.cells.items() if cell.kind != "evaluate"]
        results = [(r.test_length, r.metric, r.value) for r in read(study.results_path)]
        found.append(([fit["validation_loss"] for fit in trained], results, set(study.plan.cells)))
    (losses, results, names), (shared_losses, shared_results, shared_names) = found
    assert shared_losses == pytest.approx(losses, abs=1e-5)
    assert shared_results == [(*what, pytest.approx(value, abs=1e-4)) for *what, value in results]
    assert not names & shared_names, "another rounding, so another name"
