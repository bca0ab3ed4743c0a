"""`pezoo bench`: what it measures runs, what it says of back-ends is true, and what it is asked wrongly is refused."""

import json
import shutil
import statistics
import sys

import numpy as np
import pytest
import torch
from rich.console import Console

import pezoo
from pezoo import attention
from pezoo.cli import main
from pezoo.cli.bench import goals, measuring, models, options, sampler, seeds, show
from pezoo.cli.bench.explain import explain
from pezoo.cli.bench.measuring import QUICK, Spread
from pezoo.cli.bench.sections import SECTIONS
from pezoo.data import Tokens
from pezoo.training.config import TrainConfig

PROCESSES = {"table-memory", "start", "worker", "quickstart"}
"""Rows that start processes, which takes a while, as does the import of other libraries."""
ROWS = [
    pytest.param(row, id=row.name, marks=[pytest.mark.slow] * (row.name in PROCESSES or bool(row.needs)))
    for row in goals.ROWS
]


@pytest.fixture
def quick():
    """The quick form, with one thread as the command has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield QUICK
    torch.set_num_threads(threads)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_runs_in_its_quick_form(row, quick):
    if row.needs:
        pytest.importorskip(row.needs.replace("-", "_"))
    (found,) = goals.measure([row.name], quick)
    assert found["row"] == row.name
    assert len(found["figures"]) == len(row.figures)
    assert all(isinstance(figure["median"], float) for figure in found["figures"])
    if row.name not in PROCESSES:
        assert all(figure["median"] > 0 for figure in found["figures"])
    if row.name == "quickstart":
        assert 0 < found["figures"][0]["median"] < 1
    judged = [figure["holds"] for figure in found["figures"] if figure["goal"] is not None]
    assert found["holds"] == (all(judged) if len(judged) == len(row.figures) else None)


def test_a_row_holds_when_all_its_figures_do():
    def of(length, subjects, extent):
        return {"good": Spread.of([1.054, 1.0541, 1.9]), "bad": Spread.of([1.056])}

    figures = {name: goals.Figure(of, name, goal=1.05) for name in ("good", "bad", "absent")}
    holds = lambda *names: goals.Row("r", "w", [figures[n] for n in names]).measure(QUICK)["holds"]  # noqa: E731
    assert holds("good") is True
    assert holds("good", "bad") is False
    assert holds("good", "absent") is None
    least = goals.Figure(of, "good", goal=1.06, at_least=True)
    assert least.holds(of(0, (), QUICK)["good"]) is False


def test_every_row_of_the_goals_is_there_once():
    names = [row.name for row in goals.ROWS]
    assert len(set(names)) == len(names)
    assert not set(names) & {*SECTIONS, "goals"}
    assert sum(all(f.goal is not None for f in row.figures) for row in goals.ROWS) == 18


def test_a_ratio_is_taken_within_a_round():
    """Whatever slows a whole round does not move the ratio."""
    found = measuring.over("base", {"base": [1.0, 10.0, 3.0], "twice": [2.0, 20.0, 6.6]})["twice"]
    assert (found.median, found.least) == (2.0, 2.0)
    assert found.most == pytest.approx(2.2)
    assert str(found) == "2.00 (2.00-2.20)"


def test_time_is_that_of_the_process_and_candidates_take_turns():
    import time

    turns = []
    runs = {"sleeps": lambda: (turns.append("s"), time.sleep(0.05)), "works": lambda: turns.append("w")}
    times = measuring.rounds(runs, 2)
    assert turns == ["s", "w"] * 3
    assert [len(seconds) for seconds in times.values()] == [2, 2]
    assert max(times["sleeps"]) < 0.03


def test_the_time_of_a_command_has_that_of_what_it_leaves_behind():
    """A process that outlives the command, as one of its workers may, and that nobody there waits for."""
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    line = f"import subprocess, sys; subprocess.Popen([sys.executable, '-S', '-c', {busy!r}])"
    expected = 0.25 if sys.platform == "linux" else 0
    assert expected < measuring.child_seconds([sys.executable, "-S", "-c", line]) < 3
    with pytest.raises(RuntimeError, match="wrong"):
        measuring.child_seconds([sys.executable, "-S", "-c", "raise SystemExit('wrong')"])


def test_the_plain_model_is_nope():
    """The floor computes what nope computes, with the same weights."""
    plain, model = models.Plain().eval(), models.build("nope", **models.SIZES).eval()
    with torch.no_grad():
        for mine, own in zip(plain.blocks, model.blocks, strict=True):
            mine["qkv"].weight.copy_(own.attention.qkv.weight)
            mine["out"].weight.copy_(own.attention.out.weight)
            mine["feed_forward"][1].weight.copy_(own.feed_forward.up.weight)
            mine["feed_forward"][3].weight.copy_(own.feed_forward.out.weight)
        plain.embedding.weight.copy_(model.embedding.weight)
        plain.head.weight.copy_(model.head.weight)
        tokens = models.ids(2, 33)
        torch.testing.assert_close(plain(tokens), model(tokens))


def test_the_operations_of_a_step_are_those_that_pytorch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    plain, length, rows = models.Plain(), 64, 2
    with FlopCounterMode(display=False) as counter:
        plain(models.ids(rows, length)).sum().backward()
    width, layers = models.SIZES["d_model"], models.SIZES["n_layers"]
    # Of fused attention on a CPU PyTorch counts nothing, or from 2.15 on other things. These are two products
    # forward and four backward, of half of all pairs.
    pairs = (2 + 4) * 2 * layers * rows * length**2 * width / 2
    counts = counter.get_flop_counts()["Global"]
    products = sum(count for operation, count in counts.items() if "attention" not in str(operation))
    assert models.operations(length, rows * length) == products + pairs


class Frame:
    """A stack, innermost first, as the sampler looks at it."""

    def __init__(self, *stack):
        (file, name), *rest = stack
        self.f_code = type("Code", (), {"co_filename": file, "co_name": name})
        self.f_back = Frame(*rest) if rest else None


def test_the_sampler_tells_training_from_validation_and_testing():
    advance = ("x/pytorch_lightning/loops/training_epoch_loop.py", "advance")
    validation = ("x/pytorch_lightning/loops/evaluation_loop.py", "run")
    step = ("x/pezoo/model/transformer.py", "forward")
    assert sampler.kind(Frame(step, advance)) == "train"
    assert sampler.kind(Frame(step, validation, advance)) == "else"
    assert sampler.kind(Frame(step, ("x/pezoo/evaluation/passes.py", "f"))) == "test"
    assert sampler.kind(Frame(step, ("x/pezoo/study/trials.py", "f"))) == "else"
    from pytorch_lightning.loops import evaluation_loop, training_epoch_loop

    assert hasattr(training_epoch_loop._TrainingEpochLoop, "advance")
    assert evaluation_loop.__file__.endswith("evaluation_loop.py")


EXPLAINED = {
    "nope": ("sdpa", "no bias", "sdpa", "no bias"),
    "rope": ("sdpa", "no bias", "sdpa", "no bias"),
    "alibi": ("chunked", "one row of numbers", "chunked", "one row of numbers"),
    "t5": ("chunked", "a bias of distance", "chunked", "one row of numbers"),
    "rope+window": ("sdpa", "no bias", "chunked", "out of reach are left out"),
    "rope+rerope": ("sdpa", "no bias", "chunked", "merged by log-sum-exps"),
    "shaw": ("chunked", "content and bias as one", "chunked", "content and bias as one"),
    "alibi+dape": ("chunked", "no place for adapt", "chunked", "blocks that fit a cache"),
    "fire": ("chunked", "a bias of pairs", "chunked", "dense bias or mask per chunk"),
}


@pytest.mark.parametrize("scheme", EXPLAINED)
def test_explained(scheme):
    found = {(row["phase"], row["length"]): row for row in explain(scheme)}
    assert {length for _, length in found} == {256, 512, 1024, 8192}
    backend, why, tested, why_tested = EXPLAINED[scheme]
    for length in (512, 8192):
        assert found["train", length]["backend"] == backend
        assert why in found["train", length]["why"]
        assert found["test", length]["backend"] == tested
        assert why_tested in found["test", length]["why"]
    assert found["train", 256]["backend"] == ("eager" if scheme in ("shaw", "alibi+dape") else "sdpa")


@pytest.mark.parametrize("phase", ["train", "test"])
@pytest.mark.parametrize("scheme", [*EXPLAINED, "rope+sink_logits", "alibi+window", "fox", "kerple", "alibi+dape_v2"])
def test_what_is_said_of_chunks_is_what_is_done(scheme, phase, monkeypatch):
    """`chunks` names the function that `chunked` calls, and says which keys and chunks are left out and made anew."""
    called = set()

    def spy(name, own):
        def instead(*args, **options):
            called.add(name)
            return own(*args, **options)

        return instead

    for name in ("_sdpa", "_eager", "checkpoint"):
        monkeypatch.setattr(attention, name, spy(name, getattr(attention, name)))
    for name in ("merged", "strided", "learned_table", "key_bias", "pairwise"):
        module = getattr(attention, name)
        monkeypatch.setattr(module, "attend", spy(f"{name}.attend", module.attend))
    length = 600
    built = pezoo.create(scheme, d_model=16, n_heads=2, n_layers=1, train_length=64)
    q = torch.randn(1, 2, length, 8, requires_grad=phase == "train")
    with torch.set_grad_enabled(phase == "train"):
        prepared = built.prepare(built.positions(1, length, phase=phase, rows=(0,)))
        (group,) = prepared.groups(0, q, q, q, torch.zeros(1, length, 16), None)
        name, words = attention.chunks(q, q, group.composition)
        attention.chunked(q, q, q, group.composition)
    assert called - {"checkpoint"} == {name}
    assert ("computed again" in words) == ("checkpoint" in called)


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        ("alibi+window", "backend=flex runs it too"),
        ("rope+rerope", "backend=flex does not run all of it: it has no place for branches."),
        ("cope", "backend=flex does not run it: it has no place for content."),
    ],
)
def test_it_says_whether_flex_attention_runs_a_scheme(scheme, said, capsys, monkeypatch):
    monkeypatch.setattr("pezoo.cli.bench.explain.LENGTHS", (32,))
    monkeypatch.setattr("pezoo.cli.bench.explain.TRAINED", 16)
    assert main(["bench", "--explain", scheme]) == 0
    assert said in " ".join(capsys.readouterr().out.split())


def test_layers_that_differ_are_explained_apart(capsys):
    assert main(["bench", "--explain", "gemma3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["layers"] for row in rows if row["length"] == 8192} == {"0, 1, 2, 3, 4", "5"}
    assert main(["bench", "--explain", "learned"]) == 0
    assert "undefined" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--only", "windw"],
            r"--only knows no 'windw'. Did you mean 'window'\? There is: goals, fixed-biases, .*draws",
        ),
        (["--only", "window", "--device", "cuda"], "window is measured on a CPU; on cuda there is: training_step"),
        (["--device", "gpu"], "--device is cpu, cuda or cuda:1, not 'gpu'"),
        (["--explain", "ropee"], "Did you mean 'rope'"),
    ],
)
def test_a_wrong_question_is_answered_with_what_there_is(argv, message, capsys):
    import re

    assert main(["bench", *argv]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_what_was_measured_is_printed_beside_its_goal_and_saved(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "150")
    argv = ["bench", "--quick", "--only", "window-attention,draws", "--save", str(tmp_path / "b.json")]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "window-attention: attention alone over full causal" in shown
    assert "of 1 goals hold" in shown
    saved = json.loads((tmp_path / "b.json").read_text())
    assert list(saved) == ["facts", "goals", "draws"]
    (row,) = saved["goals"]
    assert [figure["goal"] for figure in row["figures"]] == [0.07, 0.07]


def test_help_names_everything_that_only_takes(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert all(name in shown for name in (*SECTIONS, *(row.name for row in goals.ROWS)))
    assert "pezoo bench --only window,decoding" in shown


# ---- options of a training ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # compiling warns of its own insides
def test_options_are_held_against_float32(quick, monkeypatch, capsys):
    monkeypatch.setattr(options, "SCHEMES", ("rope",))
    rows = SECTIONS["options"]("cpu", quick)
    assert [row["option"] for row in rows] == [o for o in options.OPTIONS if o != "compile" or shutil.which("c++")]
    for row in rows:
        assert row["step"]["median"] > 0
    for row in rows[:2]:
        assert len(row["losses"]) == quick.losses
        assert row["losses"] != row["losses_in_float32"]
        assert abs(row["loss"]["mean"]) < 0.1
        assert row["loss"]["low"] < row["loss"]["mean"] < row["loss"]["high"]
    show.show_options(rows, Console(width=120))
    assert "bf16-true" in capsys.readouterr().out


def test_a_difference_of_losses_is_taken_within_each_seed(capsys):
    found = options.difference([2.1, 3.1, 4.4], [2.0, 3.0, 4.0])
    half = 4.302652729911275 * statistics.stdev([0.1, 0.1, 0.4]) / 3**0.5  # 4.30: Student's t, 2 degrees, 97.5 %
    assert found == pytest.approx({"mean": 0.2, "low": 0.2 - half, "high": 0.2 + half})
    assert options.difference([2.5], [2.0]) == {"mean": 0.5, "low": None, "high": None}
    assert options.difference([2.5, None], [2.0, 2.0])["mean"] is None
    step = {"median": 5.0, "least": 4.0, "most": 6.0}
    rows = [
        {"scheme": "rope", "option": "bf16-true", "step": step, "steps": 60, "losses": [2.1, 3.1, 4.4], "loss": found}
    ]
    rows += [{"scheme": "rope", "option": "compile", "step": step}]
    show.show_options(rows, Console(width=120))
    shown = capsys.readouterr().out
    assert "+0.2000 (-0.2303 to +0.6303)" in shown
    assert "after 60 steps" in shown


# ---- several seeds on one device ----------------------------------------------------------------

STACKED = ("rope", "alibi", "learned", "rope+random", "sinusoidal+random")
PATTERN = Tokens((np.arange(4000) % 97 % 13).astype(np.uint8), np.array([0, 4000]), ["pattern"])
"""A text that is learned within a few steps."""
BRIEF = {"length": 16, "batch_size": 4, "log_every": 1}


def models_of(scheme, **config):
    """Two models that differ by their seeds, made anew with each call."""
    return [models.build(scheme, train_length=16, d_model=16, n_layers=2, seed=seed, **config) for seed in (3, 5)]


@pytest.mark.parametrize("scheme", STACKED)
def test_seeds_that_are_stacked_train_as_apart(scheme):
    """With settings so strong that losses would tell, were they left out or applied to all seeds together."""
    settings = TrainConfig(steps=6, warmup_steps=0, lr=3e-2, grad_clip=0.05, weight_decay=1.0, **BRIEF)
    apart = torch.tensor(seeds.apart(models_of(scheme), PATTERN, settings))
    stacked = torch.tensor(seeds.stacked(models_of(scheme), PATTERN, settings))
    assert apart.shape == (2, 6)
    assert ((apart[0] - apart[1]).abs() > 1e-3).all()
    torch.testing.assert_close(stacked, apart, rtol=1e-5, atol=0)


def test_a_learned_bias_is_stacked_under_the_eager_back_end():
    settings = TrainConfig(steps=2, warmup_steps=0, length=16, batch_size=4, log_every=1)
    apart, stacked = (
        f(models_of("t5", backend="eager"), models.noise(), settings) for f in (seeds.apart, seeds.stacked)
    )
    torch.testing.assert_close(torch.tensor(stacked), torch.tensor(apart), rtol=1e-5, atol=0)


def test_what_cannot_be_stacked_is_refused():
    settings = TrainConfig(steps=2, warmup_steps=0, **BRIEF)
    mixed = {"layers": ["rope+random", "rope+random:max_length=99"]}
    cases = [("rope+random:draw=layer", {}, "layers draw"), (mixed, {}, "heads draw")]
    for scheme, config, words in [*cases, ("rope", {"dropout": 0.1}, "dropout")]:
        with pytest.raises(pezoo.UserError, match=words):
            seeds.stacked(models_of(scheme, **config), PATTERN, settings)


def test_gradients_are_clipped_in_each_seed_as_pytorch_clips_them():
    drawn = torch.Generator().manual_seed(0)
    shapes, scales = [(3, 2), (4,)], torch.tensor([5.0, 0.01, 1.0])  # the second is short enough
    grads = [torch.randn(3, *shape, generator=drawn) * scales.view(3, *[1] * len(shape)) for shape in shapes]
    expected = []
    for seed in range(3):
        own = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
        for parameter, grad in zip(own, grads, strict=True):
            parameter.grad = grad[seed].clone()
        torch.nn.utils.clip_grad_norm_(own, 0.7)
        expected.append([parameter.grad for parameter in own])
    together = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]
    for parameter, grad in zip(together, grads, strict=True):
        parameter.grad = grad.clone()
    seeds.clip(together, 0.7)
    for i, parameter in enumerate(together):
        torch.testing.assert_close(parameter.grad, torch.stack([own[i] for own in expected]))


def test_each_way_trains_each_seed_once():
    job = seeds.Job("rope", tuple(range(8)), 5, "cpu")
    plans = seeds.ways(job)
    assert [len(jobs) for jobs in plans.values()] == [1, 1, 2, 4, 8]
    for jobs in plans.values():
        assert sorted(seed for one in jobs for seed in one.seeds) == list(job.seeds)
    assert [any(one.stacked for one in jobs) for jobs in plans.values()] == [False, True, False, False, False]


@pytest.mark.slow
def test_seeds_are_trained_in_every_way(quick, monkeypatch, capsys):
    monkeypatch.setattr(seeds, "SCHEMES", ("rope",))
    (row,) = SECTIONS["seeds"]("cpu", quick)
    assert row["parameters"] == 230_528
    apart, stacked, processes = row["ways"]
    assert (apart["way"], stacked["way"], processes["way"]) == ("one after another", "stacked", "2 processes")
    assert apart["over"]["median"] == 1
    assert processes["loss_differs_by"] == 0
    assert 0 <= stacked["loss_differs_by"] < 1e-5
    assert all(way["seconds"]["median"] > 0 and way["cpu_seconds"]["median"] > 0 for way in row["ways"])
    show.show_seeds([row], Console(width=120))
    assert "2 seeds of 230,528 parameters" in capsys.readouterr().out
