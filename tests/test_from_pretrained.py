"""Weights of others in pezoo's own Transformer: the same logits as in transformers, or one message."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from pretrained import LENGTH, VOCABULARY, tiny, words
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoConfig

import pezoo
from pezoo import UserError
from pezoo.data.tokens import Windows
from pezoo.evaluation import evaluate
from pezoo.model.config import TransformerConfig
from pezoo.model.decode import stream
from pezoo.pretrained import weights
from pezoo.pretrained.families import DEFAULTS, body, settle
from pezoo.pretrained.rope_config import read_config
from pezoo.training import checkpoint

CLOSE = 1e-4
FAMILIES = list(DEFAULTS)
ROPES = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": LENGTH // 4},
    "longrope": {
        "factor": 4.0,
        "original_max_position_embeddings": LENGTH // 4,
        "short_factor": [1.0 + i / 8 for i in range(8)],
        "long_factor": [2.0 + i for i in range(8)],
    },
    "llama3": {
        "factor": 4.0,
        "original_max_position_embeddings": LENGTH // 4,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
}
SHAPES = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "llama (biases of attention alone)": {"attention_bias": True},
    "llama (wide heads, one for keys)": {"head_dim": 24, "num_key_value_heads": 1, "rms_norm_eps": 0.1},
    "llama (gelu)": {"hidden_act": "gelu"},
    "mistral (wide heads)": {"head_dim": 32, "sliding_window": None},
    "qwen2 (windows)": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "qwen3 (wide heads)": {"head_dim": 32, "attention_bias": True},
    "qwen3 (tied)": {"tie_word_embeddings": True},
    "smollm3 (windows)": {"use_sliding_window": True, "tie_word_embeddings": False, "mlp_bias": True},
    "smollm3 (other layers)": {"no_rope_layers": [0, 1, 0, 1]},
    "gpt_neox (one after the other)": {"use_parallel_residual": False, "layer_norm_eps": 0.1},
    "gpt_neox (no biases)": {"attention_bias": False, "hidden_act": "relu"},
    "gpt_neox (tied)": {"tie_word_embeddings": True},
}


def lively(model):
    """Move biases and norms away from where they start, where mistakes do not show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def compare(theirs, folder, close=CLOSE, **given):
    """Import a model of transformers; logits are the same at L and 4L. Returns the imported one."""
    theirs.save_pretrained(folder)
    ours = pezoo.from_pretrained(folder, **given)
    for length in (LENGTH, 4 * LENGTH):
        tokens = words(2, length)
        assert (ours(tokens) - theirs(tokens).logits).abs().max() < close, length
    assert not ours.training
    return ours


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint, and the model that it is of."""
    folder = tmp_path_factory.mktemp("llama")
    model = lively(tiny("llama", num_hidden_layers=2))
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture
def folder(saved, tmp_path):
    """A copy, to be damaged."""
    shutil.copytree(saved[0], tmp_path / "model")
    return tmp_path / "model"


# ---- the same logits ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family, tmp_path):
    model = compare(lively(tiny(family)), tmp_path)
    assert model.scheme.shape.train_length == LENGTH


@pytest.mark.parametrize("case", SHAPES)
def test_options_of_the_families(case, tmp_path):
    compare(lively(tiny(case.split()[0], num_hidden_layers=4, **SHAPES[case])), tmp_path)


def slow_but(fast, families, types):
    marks = [pytest.mark.slow, pytest.mark.ci(one_in=4)]
    return [
        pytest.param(family, kind, marks=[] if (family, kind) in fast else marks)
        for family in families
        for kind in types
    ]


@pytest.mark.parametrize(
    ("family", "kind"),
    slow_but([("llama", kind) for kind in ROPES] + [("gpt_neox", "yarn"), ("smollm3", "longrope")], FAMILIES, ROPES),
)
def test_rope_types(family, kind, tmp_path):
    parameters = {"rope_type": kind, "rope_theta": 10000.0, **ROPES[kind]}
    if family == "gpt_neox":
        parameters |= {"partial_rotary_factor": 0.5, "attention_factor": 1.0}  # what acts on part of a head is refused
        parameters |= {name: parameters[name][:4] for name in ("short_factor", "long_factor") if name in parameters}
    compare(tiny(family, num_hidden_layers=2, rope_parameters=parameters), tmp_path)


def test_shards_and_half_precision(saved, tmp_path):
    model = tiny("qwen3", tie_word_embeddings=True)
    model.bfloat16().save_pretrained(tmp_path, max_shard_size="50KB")
    model = type(model).from_pretrained(tmp_path, dtype=torch.float32)  # whose tables are exact
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ours = pezoo.from_pretrained(tmp_path)
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    assert ours.head.weight is ours.embedding.weight
    wide, tokens = pezoo.from_pretrained(tmp_path, dtype="float32"), words(1, LENGTH)
    with torch.no_grad():
        assert (wide(tokens) - model(tokens).logits).abs().max() < CLOSE
    assert pezoo.from_pretrained(saved[0], dtype=torch.float16).head.weight.dtype == torch.float16
    with pytest.raises(UserError, match=r"dtype must be one of float64, float32, float16, bfloat16, not 'int8'"):
        pezoo.from_pretrained(saved[0], dtype="int8")


@pytest.mark.parametrize("family", ["mistral", "smollm3", "gpt_neox"])
@torch.no_grad()
def test_cached_decoding_is_the_full_pass(family, tmp_path):
    parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    settings = {"head_dim": 32} if family == "mistral" else {}
    lively(tiny(family, num_hidden_layers=4, rope_parameters=parameters, **settings)).save_pretrained(tmp_path)
    model, tokens = pezoo.from_pretrained(tmp_path), words(2, 80)
    cache = model.cache(2, 80)
    pieces = [model(piece, cache=cache) for piece in tokens.split([60, 1, 1, 18], dim=1)]
    assert (torch.cat(pieces, 1) - model(tokens)).abs().max() < CLOSE
    written = torch.stack([token for token, _ in stream(model, tokens[:, :60], 8)], 1)
    again = tokens[:, :60]
    for _ in range(8):
        positions = model.positions(2, again.shape[1], declared=68)
        again = torch.cat([again, model(again, positions)[:, -1:].argmax(-1)], 1)
    assert torch.equal(written, again[:, 60:])


@torch.no_grad()
def test_a_scheme_is_given_as_to_attach(tmp_path):
    """`rope` is the model's own, layers that do not turn stay so, and its windows go on."""
    for family, scheme in [("gpt_neox", "rope+yarn:factor=4"), ("smollm3", "rope+pi:factor=4"), ("mistral", "alibi")]:
        model, tokens = tiny(family, num_hidden_layers=4), words(2, 4 * LENGTH)
        model.save_pretrained(tmp_path / family)
        ours = pezoo.from_pretrained(tmp_path / family, scheme=scheme)
        plain = model(tokens).logits
        pezoo.attach(model, scheme)
        assert (ours(tokens) - model(tokens).logits).abs().max() < CLOSE
        assert (ours(tokens) - plain).abs().max() > 100 * CLOSE
    wider = pezoo.from_pretrained(tmp_path / "mistral", scheme="rope+window:size=20")
    assert str(wider.scheme.spec) == "rope:pairing=half+window:size=20"
    with pytest.raises(UserError, match="Did you mean 'rope'"):
        pezoo.from_pretrained(tmp_path / "mistral", scheme="rop")


def test_the_training_length_and_the_seed(saved):
    model = pezoo.from_pretrained(saved[0], scheme="rope+learned", train_length=16, seed=3)
    assert model.scheme.shape.train_length == model.config.train_length == 16
    same = pezoo.create("rope:pairing=half+learned", d_model=64, n_heads=4, n_layers=2, train_length=16, seed=3)
    for ours, theirs in zip(model.scheme.parameters(), same.parameters(), strict=True):
        assert torch.equal(ours, theirs)


# ---- used as any model of pezoo -----------------------------------------------------------------


@torch.no_grad()
def test_it_is_saved_and_loaded(saved, tmp_path):
    model = pezoo.from_pretrained(saved[0], scheme="rope+yarn:factor=4")
    checkpoint.save(tmp_path / "model.pt", model, {})
    loaded, _ = checkpoint.load(tmp_path / "model.pt")
    tokens = words(1, 4 * LENGTH)
    assert torch.equal(loaded(tokens), model(tokens))
    assert loaded.config == model.config


def test_it_is_evaluated_and_trained(saved):
    model, ids = pezoo.from_pretrained(saved[0]), words(2, 2 * LENGTH + 1)
    windows = Windows(ids, np.arange(2), np.zeros(2, dtype=np.int64))
    found = evaluate(model, windows, [LENGTH, 2 * LENGTH], protocol="non_overlapping", last=8)
    for result, length in zip(found, (LENGTH, 2 * LENGTH), strict=True):
        contexts = [ids[:, i : i + length + 1] for i in range(0, 2 * LENGTH, length)]
        with torch.no_grad():
            losses = [cross_entropy(saved[1](c[:, :-1]).logits.transpose(1, 2), c[:, 1:]) for c in contexts]
        assert result.values["loss"] == pytest.approx(float(torch.stack(losses).mean()), abs=CLOSE)
    tokens = ids[:, :LENGTH]
    cross_entropy(model.train()(tokens)[:, :-1].transpose(1, 2), tokens[:, 1:]).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


# ---- configs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_config_leaves_out_is_what_transformers_takes(family):
    """Whatever key is left out of a config, the model is that of transformers' config class."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 512, "intermediate_size": 48, "num_hidden_layers": 4}
    stated = sizes | {"model_type": family, "num_attention_heads": 32, "max_position_embeddings": LENGTH}
    for more in ({}, {"sliding_window": 8}, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}):
        facts = settle(stated | more)
        theirs = settle(AutoConfig.for_model(**stated | more).to_dict())
        ours, other = (TransformerConfig(**body(found)) for found in (facts, theirs))
        assert dataclasses.replace(ours, head_dim=ours.head_width) == dataclasses.replace(
            other, head_dim=other.head_width
        )
        assert read_config(facts).scheme == read_config(theirs).scheme


def fails(folder, *parts):
    with pytest.raises(UserError) as error:
        pezoo.from_pretrained(folder)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


CONTRADICTIONS = {
    "another family": ({"model_type": "gemma2"}, "model_type is 'gemma2'", "use pezoo.attach"),
    "experts": ({"model_type": "mixtral"}, "model_type is 'mixtral'", "mistral", "use pezoo.attach"),
    "no family": ({"model_type": None}, "model_type is None"),
    "another activation": ({"hidden_act": "relu2"}, "hidden_act is 'relu2'", "use pezoo.attach"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantised", "use pezoo.attach"),
    "no width": ({"hidden_size": None}, "hidden_size must be a whole number above 0, not None"),
    "no vocabulary": ({"vocab_size": "97"}, "vocab_size must be a whole number above 0, not '97'"),
    "heads": ({"num_attention_heads": 5, "head_dim": None}, "hidden_size = 64 is not divisible", "5"),
    "key heads": ({"num_key_value_heads": 3}, "n_kv_heads = 3 does not divide n_heads = 4"),
    "eps": ({"rms_norm_eps": 0}, "must be a number above 0, not 0"),
    "a flag": ({"attention_bias": "no"}, "attention_bias must be true or false, not 'no'"),
    "a rope type": ({"rope_parameters": {"rope_type": "yarm"}}, "no rope_type 'yarm'", "Did you mean 'yarn'"),
    "another vocabulary": ({"vocab_size": 98}, "model.embed_tokens.weight has the shape (97, 64)", "(98, 64)"),
    "another width of heads": ({"head_dim": 8}, "q_proj.weight has the shape (64, 64)", "(32, 64)"),
    "more layers": ({"num_hidden_layers": 3}, "lacks 9 of the 30 tensors", "model.layers.2."),
    "fewer layers": ({"num_hidden_layers": 1}, "has 9 tensors that config.json does not ask for", "model.layers.1."),
    "biases": ({"mlp_bias": True}, "lacks 6 of the 27 tensors", "model.layers.0.mlp.gate_proj.bias"),
    "tied": ({"tie_word_embeddings": True}, "lm_head.weight differs from model.embed_tokens.weight"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_config_that_contradicts_itself_or_the_weights(case, folder):
    change, *parts = CONTRADICTIONS[case]
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    fails(folder, str(folder), *parts)


def test_a_temperature_on_a_part_of_each_head_is_refused(tmp_path):
    parameters = {"rope_type": "yarn", "rope_theta": 10000.0, **ROPES["yarn"], "partial_rotary_factor": 0.5}
    tiny("gpt_neox", rope_parameters=parameters).save_pretrained(tmp_path)
    fails(tmp_path, "acts on 8 of 16 channels")


@pytest.mark.parametrize("text", ["{", "[1]", "\x00", "[" * 100_000, '"a"'])
def test_a_config_that_is_no_json(text, folder):
    (folder / "config.json").write_text(text)
    fails(folder, str(folder / "config.json"), "download or save it again")


# ---- files --------------------------------------------------------------------------------------


def rewrite(folder, **changes):
    """Other tensors in the file; None takes one away."""
    path = folder / "model.safetensors"
    tensors = {k: v for k, v in (load_file(path) | changes).items() if v is not None}
    save_file(tensors, path)


def test_a_missing_and_a_surplus_tensor(folder):
    weight = load_file(folder / "model.safetensors")["model.norm.weight"]
    rewrite(folder, **{"model.norm.weight": None, "model.norn.weight": weight})
    fails(folder, "lacks 1 of the 21 tensors", "model.norm.weight", "Did you mean 'model.norn.weight'?")
    rewrite(folder, **{"model.norm.weight": weight})
    fails(folder, "has 1 tensors that config.json does not ask for", "model.norn.weight")


def test_tensors_of_older_checkpoints_that_are_no_weights(saved, folder):
    rewrite(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    with torch.no_grad():
        assert (pezoo.from_pretrained(folder)(words(1, 9)) - saved[1](words(1, 9)).logits).abs().max() < CLOSE


def test_tensors_are_read_in_pieces(saved, tmp_path, monkeypatch):
    for family in ("llama", "gpt_neox"):
        lively(tiny(family, num_hidden_layers=1)).save_pretrained(tmp_path / family)
        whole = pezoo.from_pretrained(tmp_path / family).state_dict()
        for piece in (1, 3000, 9000):
            monkeypatch.setattr(weights, "PIECE", piece)
            found = pezoo.from_pretrained(tmp_path / family).state_dict()
            assert all(torch.equal(found[name], whole[name]) for name in whole)
        monkeypatch.undo()


def test_a_tied_model_whose_file_has_the_head_too(tmp_path):
    model = tiny("qwen2", tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, **{"lm_head.weight": model.lm_head.weight.detach().clone()})
    assert pezoo.from_pretrained(tmp_path).config.tie_embeddings


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_precision_that_is_not_read(dtype, folder):
    rewrite(folder, **{"model.norm.weight": torch.ones(64).to(dtype)})
    name = {torch.int8: "I8", torch.float8_e4m3fn: "F8_E4M3"}[dtype]
    fails(folder, f"model.norm.weight has the precision {name}", "not quantised")


def test_a_precision_that_nobody_knows(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F99"'))
    fails(folder, "model.safetensors is damaged", "F99")


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_a_file_cut_short(kept, folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    fails(folder, "model.safetensors is damaged, cut short or no safetensors", "download or save it again")


def test_pickles_are_not_read(folder):
    (folder / "model.safetensors").unlink()
    fails(folder, "has neither model.safetensors nor model.safetensors.index.json")
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    fails(folder, "as pickles alone (pytorch_model.bin)", "save_pretrained")


def test_missing_shards(saved, tmp_path):
    saved[1].save_pretrained(tmp_path, max_shard_size="50KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shards[1].rename(tmp_path / "elsewhere")
    fails(tmp_path, f"lacks {shards[1].name}, 1 of the {len(shards)} files")
    (tmp_path / "elsewhere").rename(shards[1])
    index.write_text(json.dumps(content | {"weight_map": {"model.norm.weight": "../other.safetensors"}}))
    fails(tmp_path, "must have a weight_map")
    index.write_text("{")
    fails(tmp_path, "cannot be read as JSON")


def test_no_folder(folder, monkeypatch):
    (folder / "config.json").unlink()
    fails(folder, "has no config.json")
    fails(folder / "model.safetensors", "is a file")
    fails(folder / "nothing", "is not there")
    fails("nothing", "is not there", "OWNER/NAME")


def test_a_name_on_the_hub(saved, monkeypatch):
    import huggingface_hub

    asked = {}

    def download(name, allow_patterns):
        asked[name] = allow_patterns
        if name == "nobody/nothing":
            raise OSError("no network")
        return str(saved[0])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert pezoo.from_pretrained("somebody/llama").config.vocab_size == VOCABULARY
    assert all(name.endswith((".json", ".safetensors")) for name in asked["somebody/llama"])
    fails("nobody/nothing", "cannot be had from the Hugging Face hub: no network")


@pytest.mark.slow
@pytest.mark.ci
def test_transformers_is_not_needed(saved):
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        f"import pezoo; assert isinstance(pezoo.from_pretrained({str(saved[0])!r}), pezoo.Transformer)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


# ---- memory -------------------------------------------------------------------------------------

MEASURE = """
import sys, pathlib, pezoo, torch
small, large = sys.argv[1:]
pezoo.from_pretrained(small)
def memory(key):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
model = pezoo.from_pretrained(large)
size = sum(path.stat().st_size for path in pathlib.Path(large).glob("*.safetensors"))
print(size, (memory("VmHWM") - before) / size)
"""


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
@pytest.mark.parametrize("shard", ["5GB", "50MB"])
def test_memory_while_importing(family, shard, saved, tmp_path):
    """At most 1.2 times the checkpoint's size, even where one tensor is a third of it."""
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 4, "vocab_size": 20000}
    tiny(family, **sizes, head_dim=192).save_pretrained(tmp_path, max_shard_size=shard)
    given = [sys.executable, "-c", MEASURE, saved[0], tmp_path]
    found = subprocess.run(given, check=True, timeout=300, capture_output=True, text=True).stdout.split()
    assert int(found[0]) > 1e8
    assert float(found[1]) < 1.2
