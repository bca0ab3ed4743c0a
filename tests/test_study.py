"""Studies end to end: plan, cells, resume, workers, and what a crash leaves behind."""

import dataclasses
import io
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from helpers import run_cells, values, write_words
from pezoo.data import windows
from pezoo.errors import UserError
from pezoo.registry import entry
from pezoo.results import read
from pezoo.results.losses import read_losses
from pezoo.study import Study, make_plan
from pezoo.study.reading import load_recipe
from pezoo.study.resolve import resolve_device

ROOT = Path(__file__).parents[1]

PLUGIN = '''
"""Members that fail in their own ways."""

import os
import signal

from pezoo import Encoding, register


@register("broken", title="Raises in a forward")
class Broken(Encoding):
    def bias(self, positions):
        if positions.query.shape[1] > 2:
            raise RuntimeError("broken on purpose")


@register("explosive", title="Makes the loss infinite")
class Explosive(Encoding):
    def embed(self, x, positions):
        return x * float("inf")


@register("deadly", title="Kills its process")
class Deadly(Encoding):
    def embed(self, x, positions):
        os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder of twelve documents of some 1,200 bytes."""
    return Path(write_words(tmp_path_factory.mktemp("text"))["path"])


@pytest.fixture(scope="module")
def recipe(text):
    """A study of seconds: an undefined scheme, shared trainings, a tuning, a random scheme."""
    return {
        "study": "tiny",
        "schemes": ["learned", "rope", "rope+ntk", {"scheme": "rope+pi", "tune": [0, 3]}, "shape"],
        "seeds": [0, 1],
        "workers": 2,
        "data": {"corpus": "text", "path": str(text)},
        "model": {"d_model": 16, "n_layers": 2, "n_heads": 2, "dropout": 0.1},
        "train": {"length": 16, "steps": 6, "batch_size": 4, "warmup_steps": 2, "log_every": 1},
        "tune": {"length": "4x", "warmup_steps": 1},
        "test": {"lengths": ["1x", "4x"], "windows": 4},
    }


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """The study, run once without interruption."""
    study = Study.prepare(recipe, out=tmp_path_factory.mktemp("finished"))
    study.run()
    return study


def plan(recipe, *overrides):
    made = load_recipe(recipe, overrides)
    return make_plan(made)


def kinds(cells):
    return [sum(cell.kind == kind for cell in cells) for kind in ("train", "tune", "evaluate")]


# ---- plan ---------------------------------------------------------------------------------------


def test_schemes_that_train_alike_share_a_training(recipe):
    made = plan(recipe)
    assert kinds(made.cells.values()) == [2 * 3, 2 * 1, 2 * 6]
    assert len(made.evaluations) == 12


def test_schemes_that_tune_alike_share_a_tuning(recipe):
    schemes = "schemes=[rope, rope+window:size=8:at=test, rope+pi, rope+pi:factor=4]"
    made = plan(recipe, schemes, "tune.steps=[3]", "seeds=[0]")
    assert kinds(made.cells.values()) == [1, 3, 4]
    titles = [cell.title for cell in made.cells.values() if cell.kind == "tune"]
    assert titles[0] == "tune rope, 3 steps @ 4x, seed 0"


def test_step_counts_share_a_training_and_are_tunings_of_their_own(recipe):
    made = plan(recipe, "schemes=[rope]", "tune.steps=[0, 2, 4]", "seeds=[0]")
    assert kinds(made.cells.values()) == [1, 2, 3]
    parents = {cell.parent for cell in made.cells.values() if cell.kind == "tune"}
    assert len(parents) == 1


def test_a_scheme_can_be_tuned_in_its_own_way(recipe):
    own = "{scheme: rope+pi, tune: {steps: [3], length: 2x, batch_size: 7}}"
    made = plan(recipe, f"schemes=[rope, {{scheme: rope+pi, tune: [0, 3]}}, {own}]", "seeds=[0]")
    assert [e.label for e in made.evaluations] == ["rope", "rope+pi", "rope+pi, 3 steps @ 4x", "rope+pi, 3 steps @ 2x"]
    assert [str(e.spec) for e in made.evaluations[2:]] == ["rope+pi:factor=4", "rope+pi:factor=2"]
    tunings = [cell.settings() for cell in made.cells.values() if cell.kind == "tune"]
    assert [(t.steps, t.length, t.batch_size, t.warmup_steps) for t in tunings] == [(3, 64, 4, 1), (3, 32, 7, 1)]
    for one, other in (("rope", "rope+sinks"), ("rope+sinks", "rope")):  # sinks do not act in tuning
        each = [f"{{scheme: {s}, tune: {{steps: [3], batch_size: {n}}}}}" for s, n in ((one, 4), (other, 8))]
        cells = plan(recipe, f"schemes=[{', '.join(each)}]", "seeds=[0]").cells.values()
        logs = [cell.log for cell in cells if cell.log]
        assert len(set(logs)) == len(logs) == 3
        assert len({cell.title for cell in cells}) == len(cells)
    listed, written = (plan(recipe, f"schemes=[{{scheme: rope, tune: {t}}}]") for t in ("[3]", "{steps: [3]}"))
    assert listed.cells == written.cells


def test_after_tuning_the_factor_stays_at_the_tuned_length(recipe):
    made = plan(recipe, "schemes=[rope+pi]", "tune.steps=[0, 3]", "seeds=[0]")
    assert [str(e.spec) for e in made.evaluations] == ["rope+pi", "rope+pi:factor=4"]


def test_parents_come_before_children(recipe):
    seen = set()
    for key, cell in plan(recipe).cells.items():
        assert cell.parent is None or cell.parent in seen
        seen.add(key)


def test_a_mixture_whose_modules_would_merge_is_trained_as_it_is(recipe):
    scheme = "{layers: [t5, t5+window:size=8:at=test]}"
    made = plan(recipe, f"schemes=[{scheme}]", "seeds=[0]")
    train = next(iter(made.cells.values()))
    assert "window" in train.inputs["scheme"]


CHANGES = {
    "train.lr=0.5": (True, True),
    "model.qk_norm=true": (True, True),
    "model.token_shift=true": (True, True),
    "model.head_dim=4": (True, True),
    "model.norm_eps=1e-3": (True, True),
    "model.attention_bias=all": (True, True),
    "model.feed_forward_bias=true": (True, True),
    "model.parallel_residual=true": (True, True),
    "threads=2": (True, True),
    "seeds=[2]": (True, True),
    "test.windows=3": (False, True),
    "test.seed=5": (False, True),
    "test.lengths=[1x]": (False, True),
    "test.precision=bf16": (False, True),
    "test.protocols=[non_overlapping]": (False, True),
    "schemes=[shaw]": (True, True),
    "schemes=[rope+ntk]": (False, True),
    "schemes=[{scheme: rope, label: RoPE}]": (False, False),
    "workers=1": (False, False),
    "description=other": (False, False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_cell_is_named_by_what_determines_it(recipe, change):
    base = plan(recipe, "schemes=[rope]", "seeds=[0]").cells
    other = plan(recipe, "schemes=[rope]", "seeds=[0]", change).cells
    new = [any(c.kind == kind for key, c in other.items() if key not in base) for kind in ("train", "evaluate")]
    assert tuple(new) == CHANGES[change]


def test_editing_the_source_of_a_member_renames_its_cells(recipe, monkeypatch):
    from pezoo.registry import Entry

    before = plan(recipe, "schemes=[rope]", "seeds=[0]").cells
    monkeypatch.setattr(Entry, "source_hash", property(lambda entry: "edited"))
    assert not before.keys() & plan(recipe, "schemes=[rope]", "seeds=[0]").cells.keys()


def test_the_scheme_is_all_that_differs_between_two_runs(recipe, tmp_path, monkeypatch):
    """Same initial shared weights, same training batches, same test windows."""
    import pezoo.data.tokens
    import pezoo.study.cells as cells
    from pezoo.study.store import Store

    made = plan(recipe, "schemes=[nope, alibi, rope+random]", "seeds=[0]")
    corpora, store = made.corpora, Store(tmp_path)
    seen = []

    def watch(module, name, keep):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: seen.append(keep(x := original(*a, **k))) or x)

    watch(pezoo.data.tokens, "crops", lambda batch: batch.clone())
    watch(cells, "windows", lambda windows: windows.ids.clone())
    records = []
    for train in [cell for cell in made.cells.values() if cell.kind == "train"]:
        test = next(cell for cell in made.cells.values() if cell.parent == train.key)
        weights = {k: v for k, v in train.model().state_dict().items() if "scheme" not in k}
        seen.clear()
        for cell in (train, test):
            cells.run_cell(cell, store, corpora, lambda *_: None)
        other = {k: v for k, v in train.inputs.items() if k not in ("scheme", "scheme_settings", "sources")}
        records.append((weights, list(seen), other))
    first = records[0]
    assert len(first[1]) > 6
    for weights, batches, inputs in records[1:]:
        assert weights.keys() == first[0].keys()
        assert all(torch.equal(weights[k], first[0][k]) for k in weights)
        assert len(batches) == len(first[1])
        assert all(map(torch.equal, batches, first[1]))
        assert inputs == first[2]


def test_weights_are_carried_over_by_what_they_belong_to():
    from pezoo.model.transformer import Transformer, TransformerConfig
    from pezoo.training.checkpoint import carry_over

    facts = {"d_model": 8, "n_layers": 2, "n_heads": 2, "train_length": 8, "vocab_size": 11}
    trained = Transformer(TransformerConfig(scheme="t5+random", seed=1, **facts)).eval()
    tested = Transformer(TransformerConfig(scheme="t5+window:size=64+random", seed=2, **facts)).eval()
    tokens = torch.arange(8)[None]
    positions = trained.positions(1, 8, rows=(0,))
    assert not torch.equal(trained(tokens, positions), tested(tokens, positions))
    carry_over(trained, tested)
    assert torch.equal(trained(tokens, positions), tested(tokens, positions))


# ---- running ------------------------------------------------------------------------------------


def test_results_hold_every_scheme_seed_length_and_metric(finished):
    results = finished.results()
    assert results == read(finished.results_path)
    labels = list(dict.fromkeys(r.label for r in results))
    assert labels == ["learned", "rope", "rope+ntk", "rope+pi", "rope+pi, 3 steps @ 4x", "shape"]
    assert len(results) == 6 * 2 * 2 * 4
    by = {(r.label, r.seed, r.test_length, r.metric): r for r in results}
    assert len(by) == len(results)
    assert by["learned", 0, 64, "loss"].status == "undefined"
    assert by["learned", 0, 16, "loss"].status == "ok"
    assert by["rope+pi", 0, 64, "loss"].scale_factor == 4
    assert by["rope+pi, 3 steps @ 4x", 0, 16, "loss"].scale_factor == 4
    tuned = by["rope+pi, 3 steps @ 4x", 1, 64, "loss"]
    assert (tuned.finetune_steps, tuned.finetune_length, tuned.steps) == (3, 64, 6)
    assert tuned.value != by["rope+pi", 1, 64, "loss"].value
    zero_shot = [by[label, 0, 16, "loss"].value for label in ("rope", "rope+ntk", "rope+pi")]
    assert zero_shot[0] == pytest.approx(zero_shot[1], abs=1e-6) == pytest.approx(zero_shot[2], abs=1e-6)
    assert by["rope", 0, 16, "loss"].value != by["rope", 1, 16, "loss"].value
    assert by["shape", 0, 16, "loss"].scheme == "sinusoidal+shift"


def test_results_have_bits_per_byte_and_what_the_text_was(finished):
    [corpus] = finished.plan.corpora.values()
    by = {(r.label, r.seed, r.test_length, r.metric): r for r in finished.results()}
    for (*row, metric), r in by.items():
        if metric == "loss" and r.status == "ok":
            assert by[*row, "bits_per_byte"].value == pytest.approx(r.value / math.log(2))
    assert by["learned", 0, 64, "bits_per_byte"].status == "undefined"
    results = finished.results()
    assert {(r.corpus_digest, r.tokenizer) for r in results} == {(corpus.digest, "bytes")}
    assert {(r.test_precision, r.window_overlap) for r in results} == {("float32", 1.0)}


def test_bits_are_per_byte_whatever_a_token_is(recipe, tmp_path):
    from pezoo.study.cells import run_cell

    study = Study.prepare(recipe, ["schemes=[nope]", "seeds=[0]"], tmp_path)
    [(key, corpus)] = study.plan.corpora.items()
    for bytes_per_token, metrics in ((4.0, {"loss", "bits_per_byte"}), (None, {"loss"})):
        n_bytes = bytes_per_token and int(bytes_per_token * len(corpus.test.ids))
        test = dataclasses.replace(corpus.test, n_bytes=n_bytes)
        corpora = {key: dataclasses.replace(corpus, test=test)}
        for cell in study.plan.cells.values():
            shutil.rmtree(study.store.path(cell.key), ignore_errors=True)
            run_cell(cell, study.store, corpora, lambda *_: None)
        study.store._facts.clear()
        values = {r.metric: r.value for r in study.results() if r.test_length == 16}
        assert values.keys() - {"perplexity", "last_perplexity"} == metrics
        if bytes_per_token:
            assert values["bits_per_byte"] == pytest.approx(values["loss"] / math.log(2) / 4)


def test_results_say_how_much_their_windows_overlap(recipe, tmp_path):
    study = Study.prepare(recipe, ["schemes=[nope]", "seeds=[0]", "test.windows=200", "train.steps=3"], tmp_path)
    run_cells(study)
    [corpus] = study.plan.corpora.values()
    [overlap] = {r.window_overlap for r in study.results()}
    cut = windows(corpus.test, 64, 200, 0)
    read = [(d, o + i) for d, o in zip(cut.document, cut.offset, strict=True) for i in range(65)]
    assert overlap > 2
    assert overlap == pytest.approx(len(read) / len(set(read)))


def test_testing_in_bf16_is_another_number_and_says_so(recipe, tmp_path):
    changes = (recipe, ["schemes=[rope]", "seeds=[0]"])
    exact, rounded = (
        Study.prepare(changes[0], [*changes[1], f"test.precision={p}"], tmp_path) for p in ("float32", "bf16")
    )
    for study in (exact, rounded):
        run_cells(study)
    for a, b in zip(exact.results(), rounded.results(), strict=True):
        assert (a.test_precision, b.test_precision) == ("float32", "bf16")
        assert a.value != b.value
        assert a.value == pytest.approx(b.value, rel=0.01)


def test_losses_of_a_cell_add_up_to_its_result(finished):
    for result in (r for r in finished.results() if r.metric == "loss" and r.status == "ok"):
        path = finished.store.path(result.cell) / f"losses_{result.test_length}.npz"
        losses = read_losses(path)
        assert losses.loss_sum.sum() / losses.tokens.sum() == pytest.approx(result.value, rel=1e-9)
        assert losses.tokens.sum() == result.n_tokens


def test_the_recipe_beside_the_results_gives_the_same_study(finished):
    again = Study.prepare(finished.out / "recipe.yaml", out=finished.out)
    assert again.plan.cells == finished.plan.cells
    assert all(map(again.store.done, again.plan.cells))


def test_training_curves_stand_per_scheme_and_seed(finished):
    curves = finished.out / "tensorboard" / "train"
    found = {str(p.parent.relative_to(curves)) for p in curves.rglob("events.out.tfevents.*")}
    names = ("learned", "rope", "shape", "rope+pi, 3 steps @ 4x")
    assert found == {f"{name}/seed{seed}" for name in names for seed in (0, 1)}


def test_running_again_does_nothing_and_changes_nothing(finished, monkeypatch):
    import pezoo.study.engines.local

    def no_worker(*_):
        raise AssertionError("a worker was started")

    monkeypatch.setattr(pezoo.study.engines.local, "Worker", no_worker)
    before = finished.results_path.read_bytes()
    again = Study(finished.plan, finished.out)
    again.run()
    assert finished.results_path.read_bytes() == before


@pytest.mark.slow
@pytest.mark.ci
def test_one_worker_gives_the_numbers_of_two_and_finished_cells_are_kept(finished, recipe, tmp_path):
    """In a study that began with one scheme, to which the full recipe adds the others."""
    part = Study.prepare(recipe, ["schemes=[rope]", "seeds=[1]"], tmp_path)
    run_cells(part)
    first = {key: (part.store.path(key) / "done.json").read_bytes() for key in part.plan.cells}
    assert kinds(part.plan.cells.values()) == [1, 0, 1]

    whole = Study.prepare(recipe, ["workers=1"], tmp_path)
    results = whole.run()
    assert {key: (part.store.path(key) / "done.json").read_bytes() for key in first} == first
    assert values(results) == values(finished.results())


def test_a_scheme_that_is_left_out_leaves_the_results_but_not_the_store(finished, recipe):
    part = Study.prepare(recipe, ["schemes=[rope]"], finished.out)
    assert {r.label for r in part.results()} == {"rope"}
    assert all(map(finished.store.done, finished.plan.cells))


@pytest.mark.slow
@pytest.mark.ci
def test_a_cell_that_fails_does_not_stop_the_others(recipe, tmp_path, capsys):
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN)
    schemes = "schemes=[broken, explosive, {scheme: deadly, tune: [0, 2]}, nope]"
    arguments = (recipe, [schemes, "seeds=[0]"], tmp_path / "out", [plugin])
    study = Study.prepare(*arguments)
    by = {(r.label, r.test_length, r.metric): r for r in study.run()}
    assert by["nope", 16, "loss"].status == "ok"
    explosive = by["explosive", 16, "loss"]
    assert (explosive.status, explosive.value) == ("diverged", None)
    assert "not finite" in explosive.reason
    broken = by["broken", 64, "perplexity"]
    assert broken.status == "failed"
    assert broken.reason == "train broken, seed 0: RuntimeError: broken on purpose"
    assert "killed by signal 9" in by["deadly", 16, "loss"].reason
    assert "killed by signal 9" in by["deadly, 2 steps @ 4x", 16, "loss"].reason
    assert {study.plan.cells[key].title for key in study.failures} == {
        "train broken, seed 0",
        "train deadly, seed 0",
    }
    logs = "".join(path.read_text() for path in (study.out / "logs").iterdir())
    assert "Traceback" in logs
    assert "broken on purpose" in logs
    lines = capsys.readouterr().err
    assert "train broken, seed 0: failed: RuntimeError: broken on purpose" in lines
    assert not list(study.store.folder.glob(".unfinished-*"))
    assert read(study.results_path) == study.results()

    again = Study.prepare(*arguments)
    left = [c.title for key, c in again.plan.cells.items() if not again.store.done(key)]
    assert [title for title in left if title.startswith("train")] == [
        "train broken, seed 0",
        "train deadly, seed 0",
    ]


HALF_LIFE = """
from pezoo import Encoding, Traits, register


@register("half_life", title="A constant penalty per token", family="bias")
class HalfLife(Encoding):
    traits = Traits(shift_invariant=True, bidirectional=False)

    def distance_bias(self, distance):
        return (-0.02 * distance.abs()).expand(self.shape.n_heads, *distance.shape)
"""
RUN = """
import sys
import pezoo

try:
    pezoo.run({recipe!r}, ["schemes=[{{layers: [rope, half_life]}}]"], out=sys.argv[1])
except pezoo.UserError as error:
    sys.exit(str(error))
"""


SLOW = (pytest.mark.slow, pytest.mark.ci)


@pytest.mark.parametrize(
    "where", [pytest.param(name, marks=SLOW) for name in ("console", "script", "module", "loaded")]
)
def test_a_member_that_workers_would_not_have_is_refused_with_what_to_type(where, recipe, tmp_path):
    code, file = RUN.format(recipe=recipe), tmp_path / "mine.py"
    if where in ("console", "script"):
        code = HALF_LIFE + code
    else:
        file.write_text(HALF_LIFE)
        code = ("import mine\n" if where == "module" else f"import pezoo\npezoo.load_plugin({str(file)!r})\n") + code
    command = [sys.executable, "-c", code]
    if where == "script":
        file.write_text(code)
        command = [sys.executable, str(file)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    done = subprocess.run([*command, str(tmp_path / "out")], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    [message] = done.stderr.splitlines()
    if where in ("console", "script"):
        assert message.startswith("schemes.0: half_life was defined in a notebook, a console or the running script")
        assert message.endswith('put it in a file of its own and pass plugins=["FILE.py"], or --plugin FILE.py')
    else:
        assert message == (
            f"half_life was registered by {file}, which the processes of a study do not load; "
            f'pass plugins=["{file}"], or --plugin {file}'
        )


def test_a_task_of_the_running_program_is_refused_too(recipe, monkeypatch):
    monkeypatch.setattr(entry("parity").cls, "__module__", "__main__")
    with pytest.raises(UserError, match="parity was defined in a notebook"):
        plan(recipe, "schemes=[rope]", "tasks=[parity]", "test.protocols=[]")


# ---- devices ------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    """Pretend that there are so many CUDA GPUs, or a Metal one."""

    def pretend(cuda=0, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("there", "asked", "found"),
    [
        ({}, "auto", "cpu"),
        ({"cuda": 2}, "auto", "cuda"),
        ({"cuda": 2}, "cuda", "cuda"),
        ({"cuda": 2}, "cuda:1", "cuda"),
        ({"cuda": 2}, "cpu", "cpu"),
        ({"mps": True}, "auto", "cpu"),
        ({"mps": True}, "mps", "mps"),
    ],
)
def test_a_device_is_found_by_name_and_its_number_renames_no_cell(there, asked, found, recipe, machine):
    machine(**there)
    made = load_recipe(recipe, [f"device={asked}"])
    assert resolve_device(made) == found


@pytest.mark.parametrize(
    ("there", "overrides", "message"),
    [
        ({}, ["device=cuda"], "device=cuda, but PyTorch finds no CUDA GPU here; type device=cpu"),
        ({}, ["device=mps"], "device=mps, but PyTorch finds no Metal GPU here; type device=cpu"),
        (
            {"cuda": 2},
            ["device=cuda:2"],
            "device=cuda:2 is not among the GPUs here: cuda:0, cuda:1; type device=cuda:1",
        ),
        (
            {},
            ["device=cpu", "train.precision=16-mixed"],
            "train.precision=16-mixed needs a GPU; type train.precision=bf1",
        ),
        ({}, ["device=cpu", "test.precision=tf32"], "test.precision=tf32 needs a CUDA GPU, and this is device=cpu"),
        (
            {"mps": True},
            ["device=mps", "test.precision=tf32"],
            "test.precision=tf32 needs a CUDA GPU, and this is device=mps",
        ),
        (
            {"mps": True},
            ["device=mps", "train.precision=64-true"],
            "train.precision=64-true computes in float64, which d",
        ),
        (
            {"mps": True},
            ["device=mps", "train.precision=16-mixed"],
            "train.precision=16-mixed computes in float64, which",
        ),
        ({"mps": True}, ["device=mps", "test.protocols=[prefix, attention:octaves=true]"], "attention sums in float64"),
    ],
)
def test_what_a_device_cannot_do_is_refused_by_name(there, overrides, message, recipe, machine):
    machine(**there)
    with pytest.raises(UserError, match=re.escape(message)):
        make_plan(load_recipe(recipe, overrides))


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "mps:1", "cpu:0", "CUDA", ""])
def test_a_device_that_has_no_such_name_is_one_clear_message(name, recipe):
    with pytest.raises(UserError, match="device must be auto, cpu, cuda, cuda:N"):
        load_recipe(recipe | {"device": name})


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_each_cell(recipe, terminal):
    from rich.console import Console

    from pezoo.study.collect import Failure
    from pezoo.study.progress import make_progress

    cells = list(plan(recipe).cells.values())
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with make_progress(0, len(cells), console) as progress:
        progress.start(cells[0])
        progress.start(cells[1])
        progress.update(cells[0], 3, 6, 1.25)
        if terminal:
            progress.bars.refresh()
        progress.finish(cells[0], 2.0, None, {"status": "ok", "final_loss": 1.125, "reason": ""})
        progress.finish(cells[1], 2.0, Failure("failed", "on purpose"), None)
    shown = console.file.getvalue()
    assert f"[2/{len(cells)}] {cells[1].title}: failed: on purpose" in shown
    assert ("3/6" in shown and "loss 1.250" in shown) == terminal
    assert (f"[1/{len(cells)}] {cells[0].title}: loss 1.125, 2 s" in shown) != terminal


# ---- interruptions ------------------------------------------------------------------------------


def processes(out):
    """Ids of the processes that have the study's folder on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(out).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            pass
    return found


def start(recipe_path, out):
    command = [sys.executable, "-m", "pezoo", "run", str(recipe_path), "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, text=True)


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def interrupt(recipe_path, out, sign, n_cells, delay):
    """Run up to `n_cells` finished cells, and send a signal; return exit code and errors."""
    process = start(recipe_path, out)
    wait_for(lambda: process.poll() is not None or len(list(out.glob("cells/*/done.json"))) >= n_cells)
    time.sleep(delay)
    process.send_signal(sign)
    _, errors = process.communicate(timeout=60)
    wait_for(lambda: not processes(out), 10)
    return process.returncode, errors


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
@pytest.mark.slow
@pytest.mark.ci
def test_stopped_and_killed_a_study_ends_as_if_nothing_had_happened(finished, recipe, tmp_path):
    path, out = tmp_path / "tiny.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(recipe))
    code, errors = interrupt(path, out, signal.SIGINT, n_cells=1, delay=0)
    assert code == 130
    assert errors.splitlines()[-1] == f"stopped; to go on: pezoo run {path} --out {out}"
    assert "Traceback" not in errors
    done = len(list(out.glob("cells/*/done.json")))
    code, _ = interrupt(path, out, signal.SIGKILL, n_cells=done + 2, delay=0.02)
    assert code == -signal.SIGKILL
    assert len(read(out / "results.jsonl")) < len(finished.results())

    (out / "cells" / ".unfinished-0123").mkdir()  # what a kill at a worse moment leaves
    study = Study.prepare(path, out=out)
    assert values(study.run()) == values(finished.results())
    assert not list(out.glob("cells/.unfinished-*"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_killed_at_random_moments(finished, recipe, tmp_path, seed):
    path, out, draw = tmp_path / "tiny.yaml", tmp_path / "out", random.Random(seed)
    path.write_text(yaml.safe_dump(recipe))
    for _ in range(3):
        done = len(list(out.glob("cells/*/done.json")))
        interrupt(path, out, signal.SIGKILL, done + draw.randrange(4), draw.random() * 0.3)
    assert values(Study.prepare(path, out=out).run()) == values(finished.results())
