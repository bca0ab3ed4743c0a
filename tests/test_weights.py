"""Which weights a tuning moves: the scheme's alone, or adapters beside frozen ones, merged in the end."""

import dataclasses
import importlib.util
import itertools

import pytest
import torch
from torch.nn import functional as F

from helpers import assert_same_weights, rising_text, run_cells
from pezoo.data import crops
from pezoo.errors import UserError
from pezoo.model.transformer import Transformer
from pezoo.study import Study, make_plan
from pezoo.study.reading import load_recipe
from pezoo.training.checkpoint import load, save
from pezoo.training.config import TrainConfig
from pezoo.training.fit import LanguageModel, fit
from pezoo.training.resume import Saving
from pezoo.training.weights import from_stored_weights, parse_weights, stored_weights, tuned

VOCAB, LENGTH = 19, 16
SETTINGS = TrainConfig(steps=6, batch_size=4, warmup_steps=1, lr=1e-2, log_every=5)


@pytest.fixture(scope="module")
def text():
    return rising_text(VOCAB)


def make(scheme="fire", **settings):
    size = {"vocab_size": VOCAB, "d_model": 16, "n_heads": 2, "n_layers": 2, "train_length": 8}
    return Transformer(size | settings | {"scheme": scheme})


def tune(model, text, weights, settings=SETTINGS, **options):
    return fit(
        model, text, None, settings, seed=0, length=LENGTH, phase="tune", weights=parse_weights(weights), **options
    )


def moved(model, before):
    """Names of the weights that are other ones."""
    return {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}


def state(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def test_head_scale_is_fitted_alone(text):
    """The protocol of its paper: 200 steps at a rate of 0.1, cut short."""
    model = make("nope+head_scale")
    before = state(model)
    result = tune(model, text, "scheme", dataclasses.replace(SETTINGS, lr=0.1, weight_decay=1.0))
    assert moved(model, before) == {name for name in before if name.startswith("scheme.")}
    assert result.trained_params == 2 * 2  # layers and heads
    assert all(p.requires_grad for p in model.parameters())


def test_a_scheme_without_parameters_cannot_be_tuned_alone(text):
    with pytest.raises(UserError, match=r"rope has no parameters of its own to tune; type tune.weights=all"):
        tune(make("rope"), text, "scheme")


def test_adapters_move_attention_and_the_scheme(text):
    model = make()
    before = state(model)
    result = tune(model, text, "lora:rank=4")
    expected = {f"blocks.{i}.attention.{name}.weight" for i in range(2) for name in ("qkv", "out")}
    scheme = {name for name in before if name.startswith("scheme.")}
    assert moved(model, before) == expected | scheme
    change = model.blocks[1].attention.qkv.weight - before["blocks.1.attention.qkv.weight"]
    assert torch.linalg.matrix_rank(change.double(), rtol=1e-4) == 4
    adapters = 2 * (4 * (16 + 48) + 4 * (16 + 16))
    assert result.trained_params == adapters + sum(p.numel() for p in model.scheme.parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        ("all", {"attention.qkv", "attention.out", "feed_forward.up", "feed_forward.out"}),
        ("qkv", {"attention.qkv"}),
        ("qkv,feed_forward.out", {"attention.qkv", "feed_forward.out"}),
    ],
)
def test_which_layers_get_adapters_is_said_in_words_or_by_name(layers, names, text):
    model = make("rope")
    before = state(model)
    tune(model, text, f"lora:layers={layers}")
    assert moved(model, before) == {f"blocks.{i}.{name}.weight" for i in range(2) for name in names}


def test_longlora_trains_embeddings_and_norms_too(text):
    model = make("rope", qk_norm=True)
    before = state(model)
    tune(model, text, "lora:embeddings_and_norms=true")
    left = before.keys() - moved(model, before)
    assert left == {
        "head.weight",
        *(f"blocks.{i}.feed_forward.{name}.weight" for i in range(2) for name in ("up", "out")),
    }


def test_adapters_are_what_the_paper_says(text):
    """One step, by hand in float64: W + (alpha / rank) B A, with B zero at first, so that A has no gradient yet."""
    model, plain = make("rope").double(), make("rope").double()
    settings = dataclasses.replace(SETTINGS, steps=1, warmup_steps=0, weight_decay=0.0, precision="64-true")
    with tuned(plain, parse_weights("lora:rank=2:alpha=6:layers=qkv"), seed=0):
        first = {n: m.lora_A["default"].weight.clone() for n, m in plain.named_modules() if hasattr(m, "lora_A")}
    tune(model, text, "lora:rank=2:alpha=6:layers=qkv", settings)
    ids = crops(text, LENGTH, 4, 0, 0)
    loss = F.cross_entropy(
        plain(ids[:, :-1], plain.positions(4, LENGTH, phase="tune")).flatten(0, 1), ids[:, 1:].flatten()
    )
    loss.backward()
    for name, a in first.items():
        weight = plain.get_submodule(name).weight
        slope = 3.0 * weight.grad @ a.double().T  # of B
        b = -1e-2 * slope / (slope.abs() + 1e-8)  # AdamW's first step; no clipping below a norm of 1
        torch.testing.assert_close(
            model.get_submodule(name).weight, weight + 3.0 * b @ a.double(), rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("weights", ["scheme", "lora:dropout=0.1:embeddings_and_norms=true"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_a_killed_tuning_goes_on_as_if_nothing_had_happened(weights, precision, text, tmp_path, monkeypatch):
    """Its saved state holds the adapters. Checkpointed blocks, whose random numbers come from the saved state too."""
    settings = dataclasses.replace(SETTINGS, precision=precision, checkpointing=True)
    whole, cut = make("fire+random", dropout=0.2), make("fire+random", dropout=0.2)
    expected = tune(whole, text, weights, settings)
    saving, step = Saving(tmp_path / "state.pt", {"cell": "abc"}, 0.0), LanguageModel.training_step

    def killed(self, batch, batch_idx):
        if batch_idx == 4:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModel, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        tune(cut, text, weights, settings, saving=saving)
    monkeypatch.setattr(LanguageModel, "training_step", step)
    assert ("lora_A" in str(saving.read()["state_dict"].keys())) == weights.startswith("lora")
    cut, said = make("fire+random", dropout=0.2), []
    result = tune(cut, text, weights, settings, saving=dataclasses.replace(saving, note=said.append))
    assert said == ["goes on at step 4"]
    assert result.final_loss == expected.final_loss
    assert_same_weights(cut, whole)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_adapters_and_the_scheme_are_exact_in_any_precision(precision, text, monkeypatch):
    kinds, step = {}, LanguageModel.training_step

    def spy(self, *args):
        for name, parameter in self.model.named_parameters():
            kind = "adapter" if "lora_" in name else "scheme" if name.startswith("scheme.") else "frozen"
            kinds.setdefault(kind, set()).add(parameter.dtype)
        return step(self, *args)

    monkeypatch.setattr(LanguageModel, "training_step", spy)
    model = make()
    assert tune(model, text, "lora", dataclasses.replace(SETTINGS, precision=precision)).status == "ok"
    frozen = {"bf16-mixed": torch.float32, "bf16-true": torch.bfloat16, "64-true": torch.float64}[precision]
    exact = torch.promote_types(frozen, torch.float32)
    assert kinds == {"adapter": {exact}, "scheme": {torch.float32}, "frozen": {frozen}}
    assert model.blocks[0].attention.qkv.weight.dtype == exact


def test_a_merged_model_computes_what_was_tuned(text, tmp_path, monkeypatch):
    """Also in a process that has no peft."""
    seen, step = [], LanguageModel.on_train_batch_end
    ids = crops(text, LENGTH, 4, 0, 0)[:, :-1]

    def spy(self, *args):
        step(self, *args)
        with torch.no_grad():
            seen.append(self.model(ids))

    monkeypatch.setattr(LanguageModel, "on_train_batch_end", spy)
    model = make("rope")
    tune(model, text, "lora:layers=all")
    save(tmp_path / "model.pt", model, {})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    again, _ = load(tmp_path / "model.pt")
    torch.testing.assert_close(again(ids), seen[-1], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(again(ids), seen[0], rtol=1e-2)
    with pytest.raises(UserError, match=r"need the package peft: type `pip install 'pezoo\[lora\]'`"):
        tune(model, text, "lora")


def test_an_end_in_between_leaves_a_plain_model(text, monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(LanguageModel, "training_step", fail)
    model = make()
    before = state(model)
    with pytest.raises(RuntimeError, match="a bug"):
        tune(model, text, "lora")
    assert_same_weights(state(model), before)
    assert all(p.requires_grad for p in model.parameters())
    assert not model.checkpointing


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("adapters", "no weights are called 'adapters'. Choose from: all, scheme, lora"),
        ("lore", "no weights are called 'lore'. Did you mean 'lora'?"),
        ("lora:rank=0", "lora:rank must be at least 1, got 0"),
        ("lora:ranks=4", "lora has no setting 'ranks'. Did you mean 'rank'?"),
        ("scheme:rank=4", "scheme has no setting 'rank'. Its settings: none"),
        ("lora+all", "cannot read 'lora+all' as weights to tune; write it like lora:rank=16"),
        ("lora:", "cannot read 'lora:' as weights to tune"),
        (
            "lora:layers=q_proj",
            "lora:layers: no linear layer is called 'q_proj'. Choose from: attention, all, qkv, out",
        ),
    ],
)
def test_what_cannot_be_tuned_is_one_clear_message(wrong, message, text):
    with pytest.raises(UserError) as caught:
        tune(make(), text, wrong)
    assert message in str(caught.value)


def test_weights_are_stored_in_full():
    for given in ("all", "scheme", "lora", "lora:rank=2:layers=all,x:dropout=0.5:embeddings_and_norms=true"):
        weights = parse_weights(given)
        assert from_stored_weights(stored_weights(weights)) == weights
    assert stored_weights(parse_weights("lora")) == {
        "weights": "lora",
        "rank": 8,
        "alpha": 16.0,
        "dropout": 0.0,
        "layers": ["attention"],
        "embeddings_and_norms": False,
    }


# ---- in a study ---------------------------------------------------------------------------------

RECIPE = {
    "study": "tuned",
    "schemes": [{"scheme": "nope+head_scale", "tune": [0, 2]}],
    "tasks": ["reverse_string"],
    "model": {"d_model": 8, "n_layers": 1, "n_heads": 1},
    "train": {"length": 4, "steps": 4, "batch_size": 2, "warmup_steps": 1, "precision": "bf16-mixed"},
    "tune": {"length": "2x", "warmup_steps": 1, "lr": 0.1},
    "test": {"lengths": ["1x"], "windows": 2},
    "parts": {name: {"tune": {"weights": name}} for name in ("all", "scheme", "lora:rank=2")},
}


def test_a_study_tunes_what_the_recipe_says(tmp_path):
    study = Study.prepare(RECIPE, ["tune.precision=32-true", "tune.checkpointing=true"], out=tmp_path)
    run_cells(study)
    (trained,) = (key for key, cell in study.plan.cells.items() if cell.kind == "train")
    before, found = load(study.store.path(trained) / "model.pt")[0].state_dict(), {}
    for key, cell in study.plan.cells.items():
        if cell.kind == "tune":
            assert (cell.settings().precision, cell.settings().checkpointing) == ("32-true", True)
            after = load(study.store.path(key) / "model.pt")[0].state_dict()
            names = {name for name, weight in after.items() if name in before and not torch.equal(weight, before[name])}
            facts = study.store.facts(key)["fit"]
            found[cell.inputs.get("weights", {}).get("weights", "all")] = names, facts["trained_params"]
    attention = {"blocks.0.attention.qkv.weight", "blocks.0.attention.out.weight"}
    assert found["scheme"] == (set(), 1)
    assert found["lora"] == (attention, 1 + 2 * (8 + 24) + 2 * (8 + 8))
    assert found["all"][0] > attention
    assert {r.status for r in study.results()} == {"ok"}
    told = {(r.part, r.trained_params) for r in study.results() if r.finetune_steps}
    assert {("scheme", 1), ("lora:rank=2", 97)} < told


def test_tuning_all_weights_names_cells_as_before():
    """And settings of adapters name those of adapters alone."""
    one = RECIPE | {"parts": {}}
    plain = make_plan(load_recipe(one)).cells
    for same in ("tune.weights=all", "tune.precision=bf16-mixed", "tune.checkpointing=false"):
        assert make_plan(load_recipe(one, [same])).cells.keys() == plain.keys()
    assert not any("weights" in cell.inputs for cell in plain.values())
    keys = [plain.keys()]
    for other in ("tune.weights=scheme", "tune.weights=lora", "tune.weights=lora:rank=2", "tune.precision=32-true"):
        keys.append(make_plan(load_recipe(one, [other])).cells.keys())
    assert [len(a & b) for a, b in itertools.combinations(keys, 2)] == [2] * 10  # trained, and tested untuned
    assert make_plan(load_recipe(one, ["tune.weights=lora:rank=8"])).cells.keys() == keys[2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tune={weights: 'lora:rank=x', steps: [0]}", "tune.weights: lora:rank"),
        ("schemes.0.scheme=rope", "rope has no parameters of its own to tune; type tune.weights=all"),
        ("tune.precision=16-mixed", "tune.precision=16-mixed needs a GPU; type tune.precision=bf16-mixed"),
    ],
)
def test_what_a_recipe_cannot_tune_is_said_before_anything_is_trained(override, message):
    recipe = RECIPE | {"parts": {}, "tune": RECIPE["tune"] | {"weights": "scheme"}, "device": "cpu"}
    with pytest.raises(UserError, match=message):
        make_plan(load_recipe(recipe, [override]))


def test_weights_that_a_scheme_sets_itself_are_named_where_it_sets_them():
    recipe = RECIPE | {
        "parts": {},
        "schemes": ["alibi", {"scheme": "rope", "tune": {"steps": [2], "weights": "scheme"}}],
    }
    with pytest.raises(UserError, match=r"rope has no parameters .* type schemes\.1\.tune\.weights=all"):
        make_plan(load_recipe(recipe, ["tune.precision=32-true"]))
    with pytest.raises(UserError, match=r"schemes\.1\.tune\.weights: lora:rank"):
        make_plan(load_recipe(recipe, ["tune.precision=32-true", "schemes.1.tune.weights='lora:rank=x'"]))
