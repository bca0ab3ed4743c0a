"""Training against a plain PyTorch loop, its curves and ends, and checkpoints."""

import dataclasses
import logging
import math
import os
import pickle
import signal

import pytest
import torch
from torch.nn import functional as F

from helpers import assert_same_weights, curves, rising_text, watch
from pezoo.data import Tokens, crops
from pezoo.errors import UserError
from pezoo.model.transformer import Transformer, TransformerConfig
from pezoo.training.checkpoint import load, save
from pezoo.training.config import TrainConfig
from pezoo.training.fit import LanguageModel, TrainingData, fit, learning_rate, validated_every

VOCAB, LENGTH = 19, 8
SETTINGS = TrainConfig(steps=12, batch_size=4, warmup_steps=3, log_every=5)


def make(scheme="rope", **settings):
    size = {"vocab_size": VOCAB, "d_model": 16, "n_heads": 2, "n_layers": 2, "train_length": LENGTH}
    return Transformer(TransformerConfig(**size | settings, scheme=scheme))


def with_settings(**changes):
    return dataclasses.replace(SETTINGS, **changes)


@pytest.fixture(scope="module")
def text():
    return rising_text(VOCAB)


def train(model, text, settings=SETTINGS, **options):
    return fit(model, text, None, settings, **{"seed": 0, "length": LENGTH} | options)


def weights(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


@pytest.mark.parametrize("scheme", ["rope", "rope+random"])
def test_the_same_settings_and_seed_give_the_same_weights(scheme, text, tmp_path):
    settings = with_settings(accumulate=2)
    a, b, c = (make(scheme, dropout=0.2) for _ in range(3))
    state = torch.get_rng_state()
    first = train(a, text, settings)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)  # no draw comes from the global generator, no curve changes a weight
    fit(b, text, text, settings, seed=0, length=LENGTH, log_dir=tmp_path)
    assert_same_weights(weights(a), weights(b))
    train(c, text, settings, seed=1)
    assert not torch.equal(a.head.weight, c.head.weight)
    assert (first.status, first.reason, first.steps) == ("ok", "", 12)
    assert first.train_seconds > 0
    assert first.tokens_per_second == pytest.approx(12 * 2 * 4 * LENGTH / first.train_seconds)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_training_is_what_a_plain_loop_does(schedule, accumulate, text):
    settings = with_settings(schedule=schedule, accumulate=accumulate, grad_clip=0.3, lr=1e-2)
    ours, plain = make("t5"), make("t5")
    result = train(ours, text, settings)

    plain.train()
    scheme = {f"scheme.{name}" for name, _ in plain.scheme.named_parameters()}
    named = dict(plain.named_parameters())
    decayed = [p for name, p in named.items() if p.ndim > 1 and name not in scheme]
    rest = [p for name, p in named.items() if p.ndim < 2 or name in scheme]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0}],
        betas=(0.9, 0.95),
        fused=True,
    )
    batch = 0
    for step in range(12):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * learning_rate(step, settings)
        for _ in range(accumulate):
            ids = crops(text, LENGTH, 4, batch, 0)
            loss = F.cross_entropy(plain(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            (loss / accumulate).backward()
            batch += 1
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.3)
        optimizer.step()
        optimizer.zero_grad()
    assert result.final_loss == pytest.approx(loss.item(), rel=1e-4)
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], weight, rtol=1e-3, atol=1e-4)


def test_training_learns(text):
    model = make("rope")
    assert train(model, text, with_settings(steps=80, lr=1e-2)).final_loss < 1.5 < math.log(VOCAB)


def test_two_schemes_see_the_same_batches(text, monkeypatch):
    seen = watch(monkeypatch)
    train(make("rope"), text)
    train(make("learned+shift"), text)
    first, second = seen[:12], seen[12:]
    for step, ((a, at_a), (b, at_b)) in enumerate(zip(first, second, strict=True)):
        assert torch.equal(a, b)
        assert torch.equal(a, crops(text, LENGTH, 4, step, 0)[:, :-1])
        assert at_a.rows == at_b.rows == tuple(range(4 * step, 4 * step + 4))


@pytest.mark.parametrize("lengths", ["fixed", "uniform", "curriculum"])
def test_no_two_training_rows_share_their_random_draws(lengths, text, monkeypatch):
    seen = watch(monkeypatch)
    train(make("rope+random"), text, with_settings(lengths=lengths, accumulate=2))
    keys = [row for _, positions in seen for row in positions.rows]
    assert keys == list(range(len(keys)))
    assert (len({len(tokens) for tokens, _ in seen}) > 1) == (lengths != "fixed")


def test_the_scheme_is_told_the_phase(text, monkeypatch, tmp_path):
    seen = watch(monkeypatch)
    fit(make(), text, text, SETTINGS, seed=0, length=16, phase="tune", log_dir=tmp_path)
    phases = [facts.phase for _, facts in seen]
    assert set(phases) == {"tune", "test"}  # test: the curve of validation perplexity
    assert phases.count("tune") == 12
    assert all(tokens.shape == (4, 16) for tokens, _ in seen)


@pytest.mark.parametrize("scheme", ["nope", "learned", "t5", "kerple", "shaw", "fire"])
def test_weight_decay_is_for_matrices_and_never_for_the_scheme(scheme):
    model = make(scheme)
    decayed, rest = LanguageModel(model, SETTINGS, "train").configure_optimizers()["optimizer"].param_groups
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert {names[p] for p in decayed["params"]} == {
        name for name in names.values() if name.endswith("weight") and "norm" not in name
        and not name.startswith("scheme")
    }  # fmt: skip
    assert len(decayed["params"]) + len(rest["params"]) == len(names)


@pytest.mark.parametrize("scope", ["head", "all"])
def test_with_biases_and_norms_everywhere_all_matrices_of_the_transformer_decay(scope):
    sizes = {"vocab_size": 19, "d_model": 16, "n_heads": 2, "n_layers": 1, "train_length": 16}
    norms = {"qk_norm": True, "qk_norm_scope": scope, "norm": "rmsnorm"}
    model = Transformer(TransformerConfig(**sizes, **norms, attention_bias="all", scheme="rope+fire"))
    expected = {n for n, p in model.named_parameters() if p.ndim > 1 and not n.startswith("scheme")}
    assert LanguageModel(model, SETTINGS, "train").decayed == expected


@pytest.mark.parametrize("family", ["cohere", "gpt_oss", "gpt2"])
def test_weight_decay_is_for_no_norm_and_no_bias_of_a_model_of_transformers_though_they_are_matrices(family):
    pytest.importorskip("transformers")
    from pretrained import tiny

    from pezoo.pretrained.body import Body

    body = Body(tiny(family, **({"use_qk_norm": True} if family == "cohere" else {})), 64, 0)
    module = LanguageModel(body, SETTINGS, "train")
    shapes = {name: p.ndim for name, p in body.named_parameters()}
    matrices = {name for name, ndim in shapes.items() if ndim > 1}
    spared = {name for name in matrices if "norm" in name or name.endswith("bias")}
    assert module.decayed == matrices - spared
    assert bool(spared) == (family != "gpt2")


def test_the_learning_rate_rises_then_falls_to_its_least_at_the_last_step():
    for schedule, middle in (("cosine", 0.55), ("linear", 0.55), ("constant", 1.0)):
        settings = with_settings(steps=25, warmup_steps=4, schedule=schedule, min_lr_ratio=0.1)
        factors = [learning_rate(step, settings) for step in range(25)]
        assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
        assert factors[14] == pytest.approx(middle)
        assert factors[24] == pytest.approx(1.0 if schedule == "constant" else 0.1)
        assert factors[4:] == sorted(factors[4:], reverse=True)
    assert learning_rate(0, with_settings(steps=1, warmup_steps=0)) == 1.0


def test_curves_have_readable_names_and_replace_those_of_an_earlier_attempt(text, tmp_path):
    for _ in range(2):
        fit(make(), text, text, SETTINGS, seed=0, length=LENGTH, log_dir=tmp_path / "seed0")
    assert len(list((tmp_path / "seed0").iterdir())) == 1
    found = curves(tmp_path / "seed0")
    assert set(found) == {
        "train/loss",
        "train/perplexity",
        "train/learning_rate",
        "validation/loss",
        "validation/perplexity",
        "validation/accuracy",
    }
    for tag in ("train/loss", "train/perplexity", "train/learning_rate"):
        assert [step for step, _ in found[tag]] == [5, 10, 12]
    rates = [2e-3 * learning_rate(step, SETTINGS) for step in (4, 9, 11)]
    assert [value for _, value in found["train/learning_rate"]] == pytest.approx(rates)
    for (_, loss), (_, perplexity) in zip(found["train/loss"], found["train/perplexity"], strict=True):
        assert perplexity == pytest.approx(math.exp(loss), rel=1e-5)
    steps, values = zip(*found["validation/perplexity"], strict=True)
    assert steps == (6, 12)
    assert all(1 < value < 2 * VOCAB for value in values)


@pytest.mark.parametrize(
    ("steps", "accumulate", "points"),
    [(800, 1, 10), (8000, 1, 10), (300, 1, 3), (200, 1, 2), (200, 4, 10), (60, 1, 2), (61, 1, 2), (3, 1, 2), (1, 1, 1)],
)
def test_validation_takes_three_percent_of_the_time_or_has_two_points(steps, accumulate, points):
    settings = with_settings(steps=steps, accumulate=accumulate)
    every = validated_every(settings)
    found = sorted({*range(every, steps + 1, every), steps})
    assert len(found) == points
    forwards, all_forwards = 8 * points, 3 * steps * accumulate  # a backward pass is two more
    assert points <= 2 or forwards / all_forwards < 0.034


@pytest.mark.parametrize("steps", [1, 2, 5, 7])
def test_the_last_validation_is_at_the_end_wherever_the_steps_fall(steps, text, tmp_path):
    fit(make(), text, text, with_settings(steps=steps, warmup_steps=0), seed=0, length=LENGTH, log_dir=tmp_path)
    found = sorted(step for step, _ in curves(tmp_path)["validation/loss"])
    assert found == sorted({math.ceil(steps / 2), steps})


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_validation_perplexity_is_of_the_whole_sample(precision, text, tmp_path):
    model = make()
    fit(model, text, text, with_settings(precision=precision), seed=3, length=LENGTH, log_dir=tmp_path)
    model.eval()
    ids = torch.cat([crops(text, LENGTH, 4, i, 0) for i in range(8)])
    with torch.no_grad():
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1).float(), ids[:, 1:].flatten())
    assert curves(tmp_path)["validation/perplexity"][-1][1] == pytest.approx(loss.exp().item(), rel=1e-4)


def test_validation_loss_is_a_mean_of_losses_however_large(text, tmp_path):
    model = make()
    with torch.no_grad():
        model.head.weight.mul_(1e5)  # probabilities of most tokens are 0 in float32, their logarithms are not
    settings = with_settings(lr=1e-9, steps=1, warmup_steps=0)
    result = fit(model, text, text, settings, seed=3, length=LENGTH, log_dir=tmp_path)
    ids = torch.cat([crops(text, LENGTH, 4, i, 0) for i in range(8)])
    with torch.no_grad():
        log_probabilities = model.double().eval()(ids[:, :-1]).log_softmax(-1)
    expected = -log_probabilities.gather(-1, ids[:, 1:, None]).mean().item()
    assert expected > 200
    assert result.validation_loss == pytest.approx(expected, rel=1e-3)
    found = curves(tmp_path)
    assert found["validation/loss"][-1][1] == pytest.approx(result.validation_loss)
    assert found["validation/perplexity"][-1][1] == math.inf  # TensorBoard's numbers end at 1e38


@pytest.mark.parametrize("steps", [20, 25, 29])  # every second step is validated, so that 20 alone ends with one
@pytest.mark.parametrize("accumulate", [1, 2])
def test_train_seconds_are_those_of_training_steps_alone(steps, accumulate, text, monkeypatch):
    now = 0.0

    def slow(cls, name, seconds):
        inner = getattr(cls, name)

        def call(self, *args):
            nonlocal now
            now += seconds
            return inner(self, *args)

        monkeypatch.setattr(cls, name, call)

    slow(LanguageModel, "training_step", 1.0)
    slow(LanguageModel, "validation_step", 100.0)
    slow(Tokens, "batch", 10.0)
    monkeypatch.setattr("pezoo.training.fit.time.perf_counter", lambda: now)
    result = fit(make(), text, text, with_settings(steps=steps, accumulate=accumulate), seed=0, length=LENGTH)
    assert result.train_seconds == steps * accumulate
    assert result.tokens_per_second == 4 * LENGTH
    assert 0 < result.cpu_seconds < 60


@pytest.mark.parametrize("before", [True, False])
def test_subnormal_numbers_are_flushed_in_training_alone(before, text, monkeypatch):
    def flushed():
        return bool(torch.tensor([1e-39]) * 1 == 0)

    seen = []
    inner = LanguageModel.training_step
    monkeypatch.setattr(LanguageModel, "training_step", lambda *args: seen.append(flushed()) or inner(*args))
    torch.set_flush_denormal(before)
    try:
        train(make(), text)
        assert flushed() == before
    finally:
        torch.set_flush_denormal(False)
    assert all(seen)


def test_double_precision_is_double_all_the_way(text):
    model, settings = make(), with_settings(precision="64-true", steps=1, warmup_steps=0, lr=1e-9)
    result = train(model, text, settings)
    ids = crops(text, LENGTH, 4, 0, 0)
    expected = F.cross_entropy(make().double()(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert model.head.weight.dtype == torch.float64
    assert result.final_loss == pytest.approx(expected.item(), rel=1e-12)


def test_progress_is_told_every_few_steps_and_at_the_end(text):
    calls = []
    result = train(make(), text, progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(5, 12), (10, 12), (12, 12)]
    assert calls[-1][2] == result.final_loss


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_divergence_ends_the_training_and_is_a_result(value, text, tmp_path):
    model = make()
    with torch.no_grad():
        model.norm.weight[0] = value
    result = train(model, text, log_dir=tmp_path)
    assert (result.status, result.steps) == ("diverged", 5)
    assert "not finite at step 5" in result.reason
    assert not math.isfinite(result.final_loss)


def test_a_length_beyond_a_scheme_is_a_result(text):
    result = train(make("learned"), text, length=16, phase="tune")
    assert (result.status, result.steps) == ("undefined", 0)
    assert "learned" in result.reason
    assert 0 <= result.train_seconds < 60


def test_a_lack_of_memory_is_a_result_and_other_errors_are_not(text, monkeypatch):
    def hidden(self, tokens, positions=None, cache=None):
        raise error

    monkeypatch.setattr(Transformer, "hidden", hidden)
    error = RuntimeError("DefaultCPUAllocator: not enough memory")
    assert train(make(), text).status == "out_of_memory"
    error = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        train(make(), text)


def test_a_cluster_where_programs_are_started_by_srun_is_no_news(text, tmp_path, monkeypatch):
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert train(make(), text).status == "ok"  # a warning would be an error here


@pytest.mark.parametrize("hook", ["setup", "train_dataloader"])
def test_ctrl_c_comes_through_and_works_again(hook, text, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingData, hook, interrupt)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(make(), text)
    assert signal.getsignal(signal.SIGINT) is handler


def test_nothing_is_printed_or_logged(text, capfd):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    log = logging.getLogger("pytorch_lightning")
    log.addHandler(handler)
    try:
        train(make(), text)
    finally:
        log.removeHandler(handler)
    assert records == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_left_as_it_was(training, text):
    model = make().train(training)
    train(model, text)
    assert model.training is training


def test_bfloat16_trains_weights_of_float32(text):
    model = make()
    result = train(model, text, with_settings(precision="bf16-mixed"))
    assert result.status == "ok"
    assert model.head.weight.dtype == torch.float32
    exact = make()
    train(exact, text)
    assert not torch.equal(model.head.weight, exact.head.weight)


@pytest.mark.parametrize("precision", ["16-mixed", "16-true"])
def test_half_precision_on_a_cpu_is_refused(precision, text):
    with pytest.raises(UserError, match=f"train.precision={precision} needs a GPU"):
        train(make(), text, with_settings(precision=precision))


@pytest.mark.parametrize(
    "scheme",
    [
        "rope+pi:factor=4",
        "t5",
        "alibi+random:max_length=64",
        {"layers": ["rope", "nope"]},
        {"heads": {"rope": 1, "alibi": 1}},
    ],
)
def test_a_checkpoint_gives_back_the_model(scheme, text, tmp_path):
    model = make(scheme, tie_embeddings=True)
    train(model, text)
    save(tmp_path / "cell" / "model.pt", model, {"steps": 12, "loss": [1.5], "note": None})
    again, extra = load(tmp_path / "cell" / "model.pt")
    assert extra == {"steps": 12, "loss": [1.5], "note": None}
    assert again.scheme.spec == model.scheme.spec
    assert_same_weights(weights(again), weights(model))
    assert again.head.weight is again.embedding.weight
    ids = crops(text, LENGTH, 4, 0, 0)[:, :-1]
    assert torch.equal(again(ids), model.eval()(ids))


def test_tuning_goes_on_from_a_checkpoint_as_without_one(text, tmp_path):
    model = make("rope+random", dropout=0.1)
    train(model, text)
    save(tmp_path / "model.pt", model, {})
    again, _ = load(tmp_path / "model.pt")
    settings = with_settings(steps=4, warmup_steps=0)
    for one in (model, again):
        assert train(one, text, settings, length=32, phase="tune").status == "ok"
    assert_same_weights(weights(model), weights(again))


def test_a_checkpoint_keeps_its_precision(text, tmp_path):
    model = make()
    train(model, text, with_settings(precision="bf16-true"))
    save(tmp_path / "model.pt", model, {})
    again, _ = load(tmp_path / "model.pt")
    assert again.head.weight.dtype == torch.bfloat16
    assert_same_weights(weights(again), weights(model))


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "model.pt"
    save(path, make(), {"attempt": 1})
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save(path, make(), {"attempt": lambda: 2})
    assert load(path)[1] == {"attempt": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint", pickle.dumps({}, 2)])
def test_what_is_no_checkpoint_is_one_clear_message(content, tmp_path):
    path = tmp_path / "model.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read a checkpoint from .*model\.pt"):
        load(path)


def test_one_loss_without_a_value_ends_no_training_however_often_it_is_looked_at(text, monkeypatch):
    """As in float16, where such a step is skipped; else how often curves get a point would change the numbers."""
    usual = LanguageModel.training_step

    def once(self, batch, batch_idx):
        loss = usual(self, batch, batch_idx)
        return loss * 0 + math.inf if batch_idx == 4 else loss

    monkeypatch.setattr(LanguageModel, "training_step", once)
    ends = []
    for log_every in (1, 5, 7):
        model = make()
        result = train(model, text, with_settings(log_every=log_every))
        ends.append((result.status, result.steps, result.final_loss, weights(model)))
    assert {end[:3] for end in ends} == {("ok", SETTINGS.steps, ends[0][2])}
    for end in ends:
        assert_same_weights(end[3], ends[0][3])
