"""Models under a scheme, saved for transformers alone."""

import json
import subprocess
import sys

import pytest
import torch
from pretrained import tiny, words
from transformers import AutoModelForCausalLM

import pezoo
from pezoo.errors import UserError
from pezoo.pretrained.rope_parameters import NORMED

LENGTH = 32
FAMILIES = [
    *("apertus", "arcee", "bitnet", "cohere", "cwm", "diffllama", "ernie4_5", "exaone4", "gemma", "gemma2", "glm"),
    *("glm4", "gpt_oss", "granite", "helium", "laguna", "llama4_text", "minimax_m2", "ministral3", "mistral"),
    *("mixtral", "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "persimmon", "phi", "qwen2", "qwen3"),
    *("qwen3_moe", "seed_oss", "stablelm", "starcoder2"),
]
SMALL = {"num_hidden_layers": 2, "max_position_embeddings": LENGTH}


@pytest.fixture(scope="module")
def llama():
    return tiny("llama", rope_parameters={"rope_type": "default", "rope_theta": 500.0}, **SMALL)


@pytest.fixture(autouse=True)
def bare(llama):
    yield
    pezoo.detach(llama)


def logits(model, length=4 * LENGTH):
    with torch.no_grad():
        return model(words(2, length), use_cache=False).logits


def written(folder):
    return json.loads((folder / "config.json").read_text())


def some(cases, *quick):
    """Cases by name, of which a few run by default and the others in CI."""
    marks = [pytest.mark.slow, pytest.mark.ci(one_in=4)]
    return [pytest.param(case, marks=[] if case in quick else marks) for case in cases]


SCHEMES = {
    "rope": "default",
    "rope+pi:factor=4": "linear",
    "rope+ntk:factor=4": "default",
    "rope+abf:base=100000": "default",
    "rope+yarn:factor=4": "yarn",
    "rope+yarn:factor=4:beta_fast=8:truncate=false:attention_factor=1.25": "yarn",
    "rope+yarn:factor=4:ramp=turns": "longrope",
    "rope+llama3:factor=4": "llama3",
    "rope+dynamic_ntk:strength=2": "dynamic",
    "rope+longrope:factor=4": "longrope",
    "rope+giraffe": "longrope",
    "rope+resonance": "longrope",
    "rope+floor": "proportional",
    "rope+drope:sharpen=0": "longrope",
    "nope": "longrope",
}


@pytest.mark.parametrize("scheme", some(SCHEMES, "rope+yarn:factor=4", "rope+dynamic_ntk:strength=2", "rope+giraffe"))
def test_an_exported_model_gives_the_same_logits_without_pezoo(llama, scheme, tmp_path):
    pezoo.attach(llama, scheme)
    folder = pezoo.export(llama, tmp_path / "model")
    assert written(folder)["rope_parameters"]["rope_type"] == SCHEMES[scheme]
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    for length in (LENGTH, 4 * LENGTH):
        torch.testing.assert_close(logits(loaded, length), logits(llama, length), atol=1e-4, rtol=0)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize(
    "scheme", ["rope+yarn", "rope+dynamic_yarn", "rope+qwen_dynamic_ntk", "rope+drope", "rope+clex"]
)
def test_rules_that_follow_the_length_are_written_as_they_are_at_one(llama, scheme, tmp_path):
    attached = pezoo.attach(llama, scheme)
    with pytest.raises(UserError, match="it turns otherwise at every length; pass length="):
        pezoo.export(llama, tmp_path / "model")
    folder = pezoo.export(llama, tmp_path / "model", length=4 * LENGTH)
    assert written(folder)["max_position_embeddings"] == 4 * LENGTH
    attached.length = 4 * LENGTH
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.testing.assert_close(logits(loaded), logits(llama), atol=1e-4, rtol=0)


def test_a_model_that_is_not_attached_is_not_changed(llama, tmp_path):
    before, config = logits(llama), llama.config.to_dict()
    folder = pezoo.export(llama, tmp_path / "model", "rope+yarn:factor=4")
    assert llama.config.to_dict()["rope_parameters"] == config["rope_parameters"]
    torch.testing.assert_close(logits(llama), before, atol=0, rtol=0)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert (logits(loaded) - before).abs().max() > 0.1
    read = pezoo.pretrained.rope_config.read_config(written(folder))
    assert read.scheme == "rope:base=500:pairing=half+yarn:factor=4"
    assert read.train_length == LENGTH
    assert not read.remarks


@pytest.mark.slow
@pytest.mark.ci
def test_nothing_of_pezoo_is_needed_to_load(llama, tmp_path):
    pezoo.attach(llama, "rope+giraffe")
    folder = pezoo.export(llama, tmp_path / "model")
    assert "pezoo" not in (folder / "config.json").read_text()
    torch.save(logits(llama), tmp_path / "logits.pt")
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM; "
        f"model = AutoModelForCausalLM.from_pretrained({str(folder)!r}).eval(); "
        f"tokens = torch.tensor({words(2, 4 * LENGTH).tolist()}); "
        "found = model(tokens, use_cache=False).logits; "
        f"print(float((found - torch.load({str(tmp_path / 'logits.pt')!r})).abs().max())); "
        "assert 'pezoo' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 1e-4


@pytest.mark.parametrize(
    ("family", "scheme", "settings"),
    [
        ("smollm3", "rope+yarn:factor=4", {}),
        ("gpt_neox", "rope+pi:factor=4", {}),
        ("cohere2", "rope+giraffe", {}),
        ("gemma3_text", "rope+pi:factor=4", {}),
        ("phi3", "rope+longrope:factor=4", {}),
        ("ministral3", "rope+giraffe", {}),
        ("nanochat", "rope+pi:factor=4", {}),
    ],
)
def test_families_keep_what_is_their_own(family, scheme, settings, tmp_path):
    model = tiny(family, **{"max_position_embeddings": LENGTH} | settings)
    pezoo.attach(model, scheme)
    folder = pezoo.export(model, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-4, rtol=0)


def test_a_norm_after_the_rotation_takes_the_temperature_away(tmp_path):
    with pytest.raises(UserError, match="the model norms queries and keys after they turn"):
        pezoo.export(tiny("nanochat", **SMALL), tmp_path / "model", "rope+yarn:factor=4")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["rope+giraffe", "rope+yarn:factor=4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_more_families_give_the_same_logits_or_are_refused(family, scheme, tmp_path):
    model = tiny(family, max_position_embeddings=LENGTH)
    pezoo.attach(model, scheme)
    partial = family in ("glm", "glm4", "laguna", "nemotron", "persimmon", "phi", "stablelm")
    if "yarn" in scheme and (partial or family in NORMED):
        with pytest.raises(UserError, match=r"its temperature acts on|norms queries and keys after they turn"):
            pezoo.export(model, tmp_path / "model")
        return
    loaded = AutoModelForCausalLM.from_pretrained(pezoo.export(model, tmp_path / "model")).eval()
    torch.testing.assert_close(logits(loaded), logits(model), atol=3e-4 if family == "granite" else 1e-4, rtol=0)


def test_a_tuned_model_is_saved_with_its_weights(llama, tmp_path):
    model = tiny("llama", tie_word_embeddings=True, **SMALL)
    pezoo.attach(model, "rope+yarn:factor=4")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.train()(words(2, 16), labels=words(2, 16)).loss.backward()
    optimizer.step()
    model.eval()
    loaded = AutoModelForCausalLM.from_pretrained(pezoo.export(model, tmp_path / "model")).eval()
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-4, rtol=0)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        ("alibi", "alibi adds a bias"),
        ("rope+rerope", "rerope has a far region"),
        ("rope+window:size=8", "window masks keys"),
        ("rope+logn", "logn scales queries or heads apart"),
        ("rope+random", "random draws from 512 positions; 1024 tokens need more"),
        ("rope:fraction=0.5", "it turns 8 channels of a head"),
        ("{heads: {rope: 2, nope: 2}}", "its heads differ"),
        ("{layers: [rope, rope+pi:factor=2]}", "its layers turn differently, and the config has one place for them"),
        ("xpos", "xpos"),
    ],
)
def test_what_transformers_cannot_be_told_is_refused_with_the_reason(llama, scheme, reason, tmp_path):
    with pytest.raises(UserError, match=reason):
        pezoo.export(llama, tmp_path / "model", scheme)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_taken_is_left_alone(llama, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already; name a folder that is empty or not there"):
        pezoo.export(llama, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_only_one_scheme_can_be_meant(llama, tmp_path):
    pezoo.attach(llama, "rope+pi:factor=4")
    with pytest.raises(UserError, match=r"\+pi:factor=4 is attached to the model; leave scheme= out"):
        pezoo.export(llama, tmp_path / "model", "rope")
    with pytest.raises(UserError, match="export takes a model of the library transformers, not Linear"):
        pezoo.export(torch.nn.Linear(2, 2), tmp_path / "model")
