"""Somebody's model as the body of a study: numbers as transformers alone gives them, cells, errors, the command."""

import json
import math
import shutil

import pytest
import torch
from pretrained import tiny

import pezoo
from helpers import run_cells, write_words
from pezoo import UserError
from pezoo.cli import main
from pezoo.data import DataConfig, load, windows
from pezoo.pretrained import source as sources
from pezoo.pretrained.body import Body, make_body, read, save
from pezoo.pretrained.source import Source
from pezoo.scheme import parse
from pezoo.study import Study
from pezoo.study.plan import make_plan
from pezoo.study.reading import load_recipe
from pezoo.study.store import Store
from pezoo.training.config import TrainConfig
from pezoo.training.fit import LanguageModel, fit
from pezoo.training.resume import Saving
from pezoo.training.weights import parse_weights, tuned

L = 32
SIZES = {"vocab_size": 256, "num_hidden_layers": 2, "max_position_embeddings": L}
CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with two models and a text."""
    folder = tmp_path_factory.mktemp("body")
    tiny("llama", **SIZES).save_pretrained(folder / "llama")
    tiny("gpt_neox", **SIZES).save_pretrained(folder / "gpt_neox")
    write_words(folder / "text")
    return folder


def recipe(home, model="llama", **keys):
    given = str(home / model) if isinstance(model, str) else model
    return {
        "study": "body",
        "device": "cpu",
        "schemes": ["own"],
        "data": {"corpus": "text", "path": str(home / "text")},
        "model": {"from": given},
        "train": {},
        "tune": {"length": "2x", "batch_size": 2, "warmup_steps": 1, "lr": 3e-3},
        "test": {"lengths": ["1x", "4x"], "windows": 3},
    } | keys


def run(home, out, *args, **keys):
    study = Study.prepare(recipe(home, *args, **keys), out=out)
    run_cells(study)
    return study.results()


def found(results, label, length, metric="loss"):
    (value,) = (r.value for r in results if (r.label, r.test_length, r.metric) == (label, length, metric))
    return value


@torch.no_grad()
def naive(model, home, length):
    """The mean loss of transformers' own model on the windows that a study reads, one after the other."""
    text = load(DataConfig(corpus="text", path=str(home / "text"))).test
    ids = windows(text, 4 * L, 3, 0).ids[:, : length + 1]
    losses = []
    for row in ids.long():
        logits = model(input_ids=row[None, :-1]).logits[0].double()
        losses.append(torch.nn.functional.cross_entropy(logits, row[1:]))
    return float(torch.stack(losses).mean())


# ---- the module ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2", "cohere", "gemma2", "llama4_text"])
def test_hidden_states_and_the_head_make_the_logits_of_the_whole_model(family):
    """GPT-2 asks its decoder for more, Cohere scales logits, Gemma 2 caps them, Llama 4 names its decoder anew."""
    settings = {"final_logit_softcapping": 2.0} if family == "gemma2" else {}
    settings |= {"attention_chunk_size": 8} if family == "llama4_text" else {}
    model = tiny(family, **SIZES | settings)
    tokens = torch.arange(2 * 24).view(2, 24) % 256
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits
        pezoo.attach(model)
        body = Body(model, L, 0).eval()
        torch.testing.assert_close(body(tokens), expected, atol=1e-4, rtol=1e-4)
        cache, positions = body.cache(2, 24), body.positions(2, 24)
        parts = [body(tokens[:, a:b], positions, cache) for a, b in ((0, 10), (10, 11), (11, 24))]
        torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_frequencies_stay_exact_when_the_model_is_cast(family):
    """Training in bf16-true would turn by rounded frequencies, which no test does."""
    config = {"model_type": family, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
    config["num_key_value_heads"] = 2
    body = make_body(Source(config=sources.as_config(config, 256, L)), None, train_length=L, seed=0)
    before = {name: b.clone() for name, b in body.named_buffers() if "inv_freq" in name}
    rounded = {name: b.bfloat16().float() for name, b in before.items()}
    assert not all(torch.equal(before[name], rounded[name]) for name in before)
    body.to(torch.bfloat16)
    assert body.model.lm_head.weight.dtype == torch.bfloat16
    found = {name: b for name, b in body.named_buffers() if "inv_freq" in name}
    assert found.keys() == before.keys()
    assert all(b.dtype == torch.float32 and torch.equal(b, before[name]) for name, b in found.items())
    assert body.to("meta").model.get_buffer(next(iter(found)).removeprefix("model.")).is_meta


def test_adapters_leave_a_table_of_positions_that_gives_way_frozen():
    pytest.importorskip("peft")
    model = tiny("gpt2", **SIZES)
    pezoo.attach(model, "rope")
    with tuned(Body(model, L, 0), parse_weights("lora:embeddings_and_norms=true"), 0):
        assert model.transformer.wte.weight.requires_grad
        assert not model.transformer.wpe.weight.requires_grad


def test_positions_say_length_and_rows():
    model = tiny("llama", **SIZES)
    pezoo.attach(model, "rope+random:at=test+pi")
    body = Body(model, L, 0).eval()
    tokens = torch.arange(40)[None].expand(2, -1) % 256
    with torch.no_grad():
        plain, long = (body(tokens, body.positions(2, 40, rows=(0, 1), declared=n)) for n in (40, 160))
        rows = body(tokens, body.positions(2, 40, rows=(1, 0), declared=40))
    assert (plain - long).abs().max() > 0.01
    torch.testing.assert_close(rows, plain.flip(0), atol=1e-4, rtol=1e-4)
    assert body.model.pezoo.told is None


def test_a_packed_row_is_as_its_documents_alone():
    model = tiny("llama", **SIZES)
    pezoo.attach(model)
    body = Body(model, L, 0).eval()
    tokens = torch.arange(30)[None] % 256
    with torch.no_grad():
        packed = body(tokens, body.positions(1, 30, documents=(torch.arange(30) // 10)[None]))
        alone = torch.cat([body(tokens[:, i : i + 10]) for i in (0, 10, 20)], 1)
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-4)
    pezoo.detach(model)
    with pytest.raises(UserError, match="packed or padded rows need a scheme"):
        body(tokens, body.positions(1, 30, documents=(torch.arange(30) // 10)[None]))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_is_saved_comes_back_under_another_scheme(home, tmp_path, family):
    """GPT-2's table of positions too, which the scheme takes over."""
    config = {"model_type": family, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = Source(config=sources.as_config(config, 256, L))
    plain = make_body(made, None, train_length=L, seed=3)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.normal_(std=0.2)
    save(tmp_path / "a.pt", plain, {})
    scheme = "learned+pi" if family == "gpt2" else "rope:pairing=half+kerple"
    again = make_body(made, parse(scheme), train_length=L, seed=3, state=read(tmp_path / "a.pt"))
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        if family == "gpt2":
            torch.testing.assert_close(again(tokens), plain(tokens), atol=1e-4, rtol=1e-4)
        for parameter in again.scheme.parameters():
            parameter.add_(0.5)
        save(tmp_path / "b.pt", again, {})
        third = make_body(made, parse(scheme), train_length=L, seed=4, state=read(tmp_path / "b.pt"))
        torch.testing.assert_close(third(tokens), again(tokens))


# ---- studies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_perplexity_is_that_of_transformers(home, tmp_path, family):
    """Own at L and 4L; and `rope+pi` at 4L is the type `linear` with the factor 4 there."""
    results = run(home, tmp_path / "out", family, schemes=["own", "rope+pi", "nope"])
    model = tiny(family, **SIZES)
    assert found(results, "own", L) == pytest.approx(naive(model, home, L), abs=1e-4)
    assert found(results, "own", 4 * L) == pytest.approx(naive(model, home, 4 * L), abs=1e-4)
    parameters = {k: v for k, v in model.config.rope_parameters.items() if k != "rope_type"}
    linear = tiny(family, **SIZES, rope_parameters=parameters | {"rope_type": "linear", "factor": 4.0})
    assert found(results, "rope+pi", 4 * L) == pytest.approx(naive(linear, home, 4 * L), abs=1e-4)
    assert abs(found(results, "nope", L) - found(results, "own", L)) > 1e-3
    one = results[0]
    assert (one.train_length, one.steps, one.finetune_steps, one.train_seconds) == (L, 0, 0, None)
    assert one.params == sum(p.numel() for p in model.parameters())
    assert found(results, "own", L, "bits_per_byte") == pytest.approx(found(results, "own", L) / math.log(2))


@pytest.mark.slow
@pytest.mark.ci
def test_protocols_tasks_and_companions_work_as_for_any_model(home, tmp_path):
    test = {"lengths": ["1x", "8x"], "windows": 1, "companion": True, "tasks": ["passkey_text"]}
    test["protocols"] = ["sliding:stride=16", "last", "non_overlapping", "attention"]
    results = run(home, tmp_path / "out", schemes=["rope+yarn"], test=test)
    assert {r.status for r in results if r.test_length == 8 * L} == {"ok"}
    assert {r.label for r in results} == {"rope+yarn", "rope+yarn | windowed"}
    assert {"max_logit", "last_perplexity", "exact_match"} <= {r.metric for r in results}


def test_tuning_changes_all_weights_and_lowers_the_loss(home, tmp_path):
    keys = {"schemes": [{"scheme": "rope+pi", "tune": [0, 4]}], "seeds": [0]}
    results = run(home, tmp_path / "one", **keys)
    label = "rope+pi, 4 steps @ 2x"
    assert found(results, label, L) < found(results, "rope+pi", L) - 0.05
    plan = make_plan(load_recipe(recipe(home, **keys)))
    kinds = [cell.kind for cell in plan.cells.values()]
    assert sorted(kinds) == ["evaluate", "evaluate", "tune"], "a model that is trained has no training"
    key = next(key for key, cell in plan.cells.items() if cell.kind == "tune")
    state = read(Store(tmp_path / "one").weights(key))
    before = tiny("llama", **SIZES).state_dict()
    moved = [name for name, weight in state["model"].items() if not torch.equal(weight, before[name])]
    assert moved == list(state["model"]), "all weights are tuned"


def test_a_config_is_trained_by_transformers_once_for_all_schemes(home, tmp_path):
    train = {"length": L, "steps": 3, "warmup_steps": 1, "batch_size": 4}
    schemes = ["own", "rope+pi", "kerple", {"scheme": "rope+yarn", "tune": [2]}]
    keys = {"schemes": schemes, "train": train, "seeds": [0, 1]}
    plan = make_plan(load_recipe(recipe(home, CONFIG, **keys)))
    kinds = [cell.kind for cell in plan.cells.values()]
    assert {kind: kinds.count(kind) for kind in kinds} == {"train": 2, "evaluate": 8, "tune": 2}
    results = run(home, tmp_path / "out", CONFIG, **keys | {"seeds": [0]})
    key = next(key for key, cell in plan.cells.items() if cell.kind == "train")
    body = make_body(Source(**plan.cells[key].inputs["body"]), None, train_length=L, seed=0)
    body.model.load_state_dict(read(Store(tmp_path / "out").weights(key))["model"])
    own = next(r for r in results if r.label == "own" and r.metric == "loss" and r.test_length == 4 * L)
    assert own.value == pytest.approx(naive(body.model, home, 4 * L), abs=1e-4)
    assert own.steps == 3
    assert {r.status for r in results} == {"ok"}


def test_other_weights_are_other_cells_and_another_folder_is_not(home, tmp_path):
    shutil.copytree(home / "llama", tmp_path / "llama")
    shutil.copytree(home / "text", tmp_path / "text")
    there, here = (make_plan(load_recipe(recipe(place))).cells for place in (home, tmp_path))
    assert there.keys() == here.keys()
    tiny("llama", seed=1, **SIZES).save_pretrained(tmp_path / "llama")
    assert make_plan(load_recipe(recipe(tmp_path))).cells.keys().isdisjoint(there)


def test_a_recipe_in_full_is_the_same_recipe(home):
    one = load_recipe(recipe(home))
    assert one.train.length == L
    again = load_recipe(one.to_dict())
    assert again.to_dict() == one.to_dict()
    assert one.to_dict()["model"]["from"] == str(home / "llama")
    parts = {"a": {"model": {"from": str(home / "gpt_neox")}}, "b": {"model": {"from": CONFIG}, "train": {"length": 8}}}
    split = dict(load_recipe(recipe(home, parts=parts)).split())
    assert split["a"].train.length == L
    assert (split["b"].train.length, split["b"].model.from_) == (8, CONFIG)


class KilledError(BaseException):
    """Stands for a kill."""


def test_a_killed_tuning_goes_on_where_it_stopped(home, tmp_path, monkeypatch):
    """Tied embeddings and dropout, as GPT-2 has them, and positions that are drawn for each row."""

    def made():
        config = {"model_type": "gpt2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        made = Source(config=sources.as_config(config, 256, L))
        return make_body(made, parse("rope+random"), train_length=L, seed=0)

    text = load(DataConfig(corpus="text", path=str(home / "text"))).train
    settings = TrainConfig(steps=6, batch_size=2, warmup_steps=1, lr=1e-2)

    def tune(body, saving=None):
        return fit(body, text, None, settings, seed=0, length=L, phase="tune", saving=saving)

    whole, cut, step = made(), made(), LanguageModel.training_step
    result = tune(whole)
    said = []
    saving = Saving(tmp_path / "state.pt", {"cell": "abc"}, 1e-9, said.append)

    def killed_at_the_fifth(module, batch, number):
        if number == 4:
            raise KilledError
        return step(module, batch, number)

    monkeypatch.setattr(LanguageModel, "training_step", killed_at_the_fifth)
    with pytest.raises(KilledError):
        tune(cut, saving)
    monkeypatch.setattr(LanguageModel, "training_step", step)
    again = made()
    assert tune(again, saving).final_loss == result.final_loss
    assert said == ["goes on at step 4"]
    pairs = zip(whole.state_dict().items(), again.state_dict().values(), strict=True)
    assert [name for (name, a), b in pairs if not torch.equal(a, b)] == []


# ---- mistakes -----------------------------------------------------------------------------------


def refused(home, *args, **keys):
    with pytest.raises(UserError) as error:
        make_plan(load_recipe(recipe(home, *args, **keys)))
    return str(error.value)


def test_mistakes_are_said_before_anything_runs(home):
    said = refused(home, "lama")
    assert "there is no folder" in said
    assert "lama" in said
    said = refused(home, train={"length": 2 * L})
    assert f"train.length={2 * L}" in said
    assert f"type train.length={L}" in said
    with pytest.raises(UserError, match=r"model\.d_model=128 has no effect beside model\.from"):
        load_recipe(recipe(home), ["model.d_model=128"])
    assert "schemes.0" in refused(home, schemes=["rope+p1"])
    assert "schemes.0" in refused(home, schemes=["alibi+yarn"])
    assert "the same scheme" in refused(home, schemes=["own", "rope"])
    assert "trained already" in refused(home, tasks=["reverse_string"])
    assert "type form=causal" in refused(home, form="encoder")
    assert "vocab_size=100" in refused(home, CONFIG | {"vocab_size": 100}, train={"length": L})
    assert "model_type" in refused(home, {"hidden_size": 3}, train={"length": L})
    assert "Did you mean 'llama'" in refused(home, CONFIG | {"model_type": "lama"}, train={"length": L})
    assert "Did you mean 'hidden_size'" in refused(home, CONFIG | {"hiden_size": 3}, train={"length": L})
    assert "interface" in refused(
        home, {"model_type": "mpt", "d_model": 16, "n_layers": 1, "n_heads": 2}, train={"length": L}
    )


def damaged(home, tmp_path, name="llama"):
    return shutil.copytree(home / name, tmp_path / name)


def test_bad_checkpoints_are_said_in_one_message(home, tmp_path):
    shutil.copytree(home / "text", tmp_path / "text")
    from safetensors.torch import load_file, save_file

    folder = damaged(home, tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    cases = {
        f"lacks the weight {name}": lambda: save_file(
            {k: v for k, v in weights.items() if k != name}, folder / "model.safetensors", {"format": "pt"}
        ),
        "shape": lambda: save_file(
            weights | {name: weights[name][:3].clone()}, folder / "model.safetensors", {"format": "pt"}
        ),
        "cannot be loaded": lambda: (folder / "model.safetensors").write_bytes(b"\x10\0\0"),
        "config.json cannot be read": lambda: (folder / "config.json").write_text("{"),
    }
    for message, spoil in cases.items():
        spoil()
        assert message in refused(tmp_path), message


def test_pickles_are_not_read(home, tmp_path):
    shutil.copytree(home / "text", tmp_path / "text")
    folder = damaged(home, tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    said = refused(tmp_path)
    assert "pytorch_model.bin" in said
    assert "may run code" in said


def test_a_vocabulary_that_is_no_bytes_needs_a_tokenizer(home, tmp_path):
    shutil.copytree(home / "text", tmp_path / "text")
    tiny("llama", **SIZES | {"vocab_size": 1000}).save_pretrained(tmp_path / "llama")
    assert "type data.tokenizer=" in refused(tmp_path)


def test_the_tokenizer_of_a_model_is_the_studys(home, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    shutil.copytree(home / "text", tmp_path / "text")
    words = (home / "text").rglob("*")
    known = sorted({word for path in words if path.is_file() for word in path.read_text().split()})
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["?", *known])}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tiny("llama", **SIZES | {"vocab_size": len(known) + 1}).save_pretrained(tmp_path / "llama")
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="?").save_pretrained(tmp_path / "llama")
    plan = make_plan(load_recipe(recipe(tmp_path)))
    assert plan.recipe.data.tokenizer == str(tmp_path / "llama")
    assert next(iter(plan.cells.values())).inputs["data"]["vocab_size"] <= len(known) + 1


def test_without_transformers_it_says_what_to_install(home, monkeypatch):
    monkeypatch.setattr("pezoo.pretrained.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'pezoo\[hf\]'"):
        load_recipe(recipe(home))


# ---- the command --------------------------------------------------------------------------------


def asked(home, *more):
    given = ["evaluate", str(home / "llama"), "--data", str(home / "text"), "--windows", "2", "--device", "cpu"]
    return [*given, "--schemes", "rope, rope+pi", "--lengths", "1x,2x", *more]


def test_evaluate_says_beforehand_what_it_would_do(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(asked(home, "--tune", "2,12", "--dry-run")) == 0
    out = capsys.readouterr().out
    for title in (
        "evaluate rope+pi, seed 0",
        "tune rope, 2 steps @ 2x, seed 0",
        "evaluate rope, 12 steps @ 2x, seed 0",
    ):
        assert title in out
    assert "of memory" in out
    assert not (tmp_path / "runs").exists()


def test_evaluate_takes_keys_of_a_recipe(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr("pezoo.cli.evaluate.carry_out", lambda study, dry_run: seen.append(study.recipe.tune) or 0)
    given = asked(home, "--tune", "2")
    assert main([*given, "tune.weights=lora:rank=2", "tune.batch_size=1"]) == 0
    assert [(tune.weights, tune.batch_size, tune.steps) for tune in seen] == [("lora:rank=2", 1, [0, 2])]
    assert main([*given, "--tune.weights=lora"]) == 2
    assert "keys of the recipe have no dashes; type tune.weights=lora" in capsys.readouterr().err
    assert main([*given, "--what"]) == 2
    assert "--data is no option" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "key", "value"),
    [
        (["--tune", "0,200"], "warmup_steps", 10),
        (["--tune", "0,9"], "warmup_steps", 0),
        (["--tune", "10,20"], "warmup_steps", 1),
        (["--tune", "20", "--lengths", "2x,1x"], "length", "2x"),
        (["--tune", "20", "--lengths", "64,32"], "length", 64),
        (["--tune", "20", "--lengths", "64,1x", "--tune-length", "1x"], "length", "1x"),
        (["--tune", "0", "--lengths", "64,1x"], "steps", [0]),
    ],
)
def test_evaluate_tunes_as_its_help_says(home, tmp_path, monkeypatch, more, key, value):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr("pezoo.cli.evaluate.carry_out", lambda study, dry_run: seen.append(study.recipe.tune) or 0)
    assert main(asked(home, *more)) == 0
    assert getattr(seen[0], key) == value


@pytest.mark.slow
@pytest.mark.ci
def test_evaluate_is_a_study_without_a_recipe(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = asked(home)
    assert main([*given, "--tune", "2"]) == 0
    out = capsys.readouterr().out
    assert "rope+pi, 2 steps @ 2x" in out
    assert "At the training length, L = 32" in out
    folder = tmp_path / "runs" / "evaluate-llama"
    assert (folder / "report" / "report.html").is_file()
    assert main(["report", str(folder)]) == 0
    capsys.readouterr()
    assert main(["generate", str(folder), "rope+pi, 2 steps @ 2x", "--tokens", "3", "--prompt", "one two"]) == 0
    assert capsys.readouterr().out.startswith("one two")
    assert json.loads((folder / "results.jsonl").read_text().splitlines()[0])["corpus"] == "text"


def test_mistakes_of_the_command(home, tmp_path, capsys):
    given = ["evaluate", str(home / "llama"), "--data", str(home / "text"), "--out", str(tmp_path / "out")]
    for more, message in (
        [["tune.batch=1"], "tune.batch"],
        [["--tune", "x"], "--tune takes whole numbers"],
        [["--lengths", "4y"], "test.lengths.0"],
        [["--tune", "9", "--lengths", "64,1x"], "say how long tuning is: --tune-length N"],
    ):
        assert main([*given, *more]) == 2
        assert message in capsys.readouterr().err
    assert main(["evaluate", "PATH"]) == 2
    assert "--data" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
