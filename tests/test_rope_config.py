"""Rope settings of transformers configs, read as schemes."""

import ast
import inspect
import json
import math
import re
from pathlib import Path

import pytest
import torch

import pezoo
from pezoo.errors import UserError
from pezoo.pretrained.rope_config import (
    BASES,
    INTERLEAVED,
    PATTERNS,
    SHARES,
    SKIPPING,
    WINDOWS_ON_DEMAND,
    read_config,
    scheme_of,
)
from pezoo.pretrained.rope_parameters import told
from pezoo.pretrained.rope_rules import TYPES

LENGTH = 64
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": LENGTH,
    "rope_theta": 10000.0,
}
LONG = {"max_position_embeddings": 4 * LENGTH}


def scaled(kind, **settings):
    """A config with a rope type; four times the length where the type states the length before."""
    stated = kind in ("yarn", "longrope", "llama3")
    settings = {"original_max_position_embeddings": LENGTH} | settings if stated else settings
    parameters = {"rope_type": kind, "rope_theta": 500.0} | settings
    return LLAMA | (LONG if stated else {}) | {"rope_theta": None, "rope_parameters": parameters}


LISTS = {"short_factor": [1.0 + k / 8 for k in range(8)], "long_factor": [1.5 + k * k / 8 for k in range(8)]}
PARITY = {
    "default": scaled("default"),
    "partial": scaled("default", partial_rotary_factor=0.5),
    "linear": scaled("linear", factor=4.0),
    "partial linear": scaled("linear", factor=4.0, partial_rotary_factor=0.25),
    "dynamic": scaled("dynamic", factor=2.0),
    "yarn": scaled("yarn", factor=4.0),
    "yarn untruncated": scaled("yarn", factor=4.0, truncate=False, beta_fast=8.0, beta_slow=0.5),
    "yarn null": scaled("yarn", factor=4.0, truncate=None),
    "yarn mscale": scaled("yarn", factor=4.0, mscale=1.0, mscale_all_dim=0.5),
    "yarn stated": scaled("yarn", factor=4.0, attention_factor=1.25),
    "yarn without factor": scaled("yarn", factor=None),
    "longrope": scaled("longrope", **LISTS),
    "longrope stated": scaled("longrope", **LISTS, factor=2.0, attention_factor=1.125),
    "llama3": scaled("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0),
    "proportional": scaled("proportional", partial_rotary_factor=0.5),
    "proportional slowed": scaled("proportional", partial_rotary_factor=0.3, factor=2.0),
}


def tables_of_transformers(config, length):
    """Cosines and sines of transformers' own rotary module for a text of this length."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    facts = {k: v for k, v in config.items() if v is not None and k != "model_type"}
    rotary = LlamaRotaryEmbedding(LlamaConfig(**json.loads(json.dumps(facts))))
    cos, sin = rotary(torch.zeros(1), torch.arange(length)[None])
    return cos[0], sin[0]


@pytest.mark.parametrize("name", PARITY)
def test_the_scheme_turns_as_transformers_does(name):
    config = PARITY[name]
    read = read_config(config)
    scheme = pezoo.create(read.scheme, **read.sizes)
    assert read.train_length == LENGTH
    for length in (LENGTH, LENGTH + 1, 4 * LENGTH):
        if name.startswith("partial"):
            expected = tables_of_a_part(config["rope_parameters"], length)
        else:
            expected = tables_of_transformers(config, length)
        for ours, theirs in zip(scheme.rope_tables(length), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=1e-5)


def tables_of_a_part(parameters, length):
    """Where a part of the head turns, by the formula: transformers' Llama always turns the whole."""
    width = int(16 * parameters["partial_rotary_factor"])
    slowed = 500.0 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width) / parameters.get("factor", 1.0)
    angles = (torch.arange(length, dtype=torch.float64)[:, None] * slowed).repeat(1, 2)
    return angles.cos().float(), angles.sin().float()


def test_every_rope_type_of_transformers_is_known_or_refused():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    assert {*ROPE_INIT_FUNCTIONS, "default"} == TYPES.keys()
    with pytest.raises(UserError, match=r"no rope_type 'axial'. Those that can be read: default, linear"):
        read_config(scaled("axial"))


def test_old_and_new_names_say_the_same():
    old = LLAMA | LONG | {"rope_theta": 500.0, "rope_scaling": {"type": "yarn", "factor": 4}}
    old["rope_scaling"]["original_max_position_embeddings"] = LENGTH
    assert read_config(old) == read_config(scaled("yarn", factor=4.0))
    neox = {"model_type": "gpt_neox", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    neox |= {"max_position_embeddings": LENGTH, "rotary_pct": 0.25, "rotary_emb_base": 10000}
    assert scheme_of(neox) == "rope:fraction=0.25:pairing=half"
    gptj = {"model_type": "gptj", "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": LENGTH, "rotary_dim": 8}
    assert scheme_of(gptj | {"rope_theta": 10000.0}) == "rope:fraction=0.5"


def test_layers_may_differ():
    gemma = LLAMA | {"model_type": "gemma3_text", "num_hidden_layers": 6, "sliding_window": 8, "rope_theta": 1e6}
    gemma |= {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window_pattern": 3}
    near, far = "rope:pairing=half+window:size=8", "rope:base=1000000:pairing=half+pi:factor=8"
    assert scheme_of(gemma) == str(pezoo.parse({"layers": [near, near, far]}))
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    nested = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}}
    nested |= {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    new = LLAMA | {"model_type": "gemma3_text", "num_hidden_layers": 6, "sliding_window": 8, "rope_theta": None}
    assert read_config(new | {"layer_types": kinds, "rope_parameters": nested}) == read_config(gemma)
    skipping = LLAMA | {"model_type": "smollm3", "num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0]}
    assert scheme_of(skipping) == str(pezoo.parse({"layers": ["rope:pairing=half"] * 3 + ["nope"]}))
    skipping["rope_parameters"] = {"full_attention": {"rope_theta": 10000.0}, "sliding_attention": None}
    skipping |= {"layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": 8}
    del skipping["no_rope_layers"]
    assert scheme_of(skipping | {"model_type": "llama"}) == str(
        pezoo.parse({"layers": ["rope:pairing=half", "nope+window:size=8"]})
    )


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": LENGTH, "truncate": False}
FLAT = {
    "olmo3": [{"rope_theta": 7e5}, {"rope_theta": 7e5, "rope_scaling": YARN}, {"rope_scaling": YARN}, {}],
    "gemma3n_text": [{}, {"rope_theta": 7e5, "rope_local_base_freq": 300.0}, {"rope_scaling": YARN}],
    "gemma3_text": [{}, {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}}],
    "modernbert-decoder": [
        {"global_rope_theta": 7e5, "local_rope_theta": 300.0, "local_attention": 24},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "global_attn_every_n_layers": 2},
    ],
}
"""Configs of families whose kinds of layers have bases of their own, in the words of transformers 4."""


@pytest.mark.parametrize(("family", "stated"), [(f, stated) for f, several in FLAT.items() for stated in several])
def test_kinds_of_layers_with_bases_of_their_own(family, stated):
    from transformers import AutoConfig

    config = LLAMA | LONG | {"model_type": family, "num_hidden_layers": 10, "sliding_window": 8, **stated}
    del config["rope_theta"]
    config |= {"rope_theta": stated["rope_theta"]} if "rope_theta" in stated else {}
    given = json.loads(json.dumps(config))
    theirs = AutoConfig.for_model(given.pop("model_type"), **given).to_dict()
    assert theirs["rope_parameters"]["full_attention"]["rope_theta"]
    read, expected = read_config(config), read_config(theirs | {"rope_scaling": None})
    assert (read.scheme, read.rotations) == (expected.scheme, expected.rotations)
    assert len(set(read.rotations)) > 1 or not stated


@pytest.mark.parametrize("family", ["hunyuan_v1_dense", "hunyuan_v1_moe", "llama"])
def test_alpha_stretches_the_base_of_hunyuan_alone(family):
    from transformers import HunYuanDenseV1Config
    from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import HunYuanDenseV1RotaryEmbedding

    parameters = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 1.0, "alpha": 100.0}
    config = LLAMA | {"model_type": family, "rope_theta": None, "rope_parameters": parameters, "head_dim": 16}
    read = read_config(config)
    if family == "llama":
        assert "dynamic_ntk" in read.scheme
        assert "alpha is read by nothing" in read.remarks[0]
        return
    assert not read.remarks
    facts = {k: v for k, v in config.items() if v is not None and k != "model_type"}
    rotary = HunYuanDenseV1RotaryEmbedding(HunYuanDenseV1Config(**json.loads(json.dumps(facts))))
    scheme = pezoo.create(read.scheme, **read.sizes)
    for length in (LENGTH, 4 * LENGTH):
        theirs = rotary(torch.zeros(1), torch.arange(length)[None])
        for ours, table in zip(scheme.rope_tables(length), theirs, strict=True):
            torch.testing.assert_close(ours, table[0], atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "cohere2", "gpt_oss"])
def test_families_differ_in_what_their_configs_leave_out(family):
    from transformers import AutoConfig

    complete = AutoConfig.for_model(family).to_dict()
    read = read_config(complete)
    pezoo.create(read.scheme, **read.sizes)
    assert ("pairing=half" in read.scheme) == (family not in INTERLEAVED)
    assert scheme_of(without_defaults(complete)) == read.scheme


def without_defaults(config):
    """A config as before transformers 5, which leaves out what its family has by default; an extension it states."""
    left_out = ("rope_parameters", "layer_types", "no_rope_layers")
    bare = {key: value for key, value in config.items() if key not in left_out}
    if config["rope_parameters"].get("rope_type", "default") != "default":
        beside = ("rope_theta", "partial_rotary_factor")
        bare["rope_scaling"] = {k: v for k, v in config["rope_parameters"].items() if k not in beside}
    return bare


@pytest.mark.slow
def test_families_in_transformers_are_as_they_are_here():
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    seen = {}
    for family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = AutoConfig.for_model(family)
        except Exception:  # parts of larger models, which have no config of their own
            continue
        facts = config.to_dict()
        turns = facts.get("rope_parameters") or family in ("gptj", "codegen")
        if not turns or "kv_lora_rank" in facts:  # the latter say it in rope_interleave
            continue
        path = Path(inspect.getfile(type(config)).replace("configuration_", "modeling_"))
        if not path.exists():
            continue
        functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
        turning = "".join(ast.unparse(f) for f in functions if re.match(r"apply_rotary|rotate_", f.name))
        seen[family] = "::2" in turning or "view_as_complex" in turning
    assert len(seen) > 80
    assert {f for f, interleaved in seen.items() if interleaved} <= INTERLEAVED
    assert all(seen[family] for family in INTERLEAVED & seen.keys())
    unfit = {"cwm", "glm4_moe", "phimoe"}  # a pattern of its own; sizes that do not go together
    unfit |= {"bamba", "blt", "minimax", "recurrent_gemma"}  # other sizes, or layers that are no attention
    for family in {*BASES, *SHARES, *PATTERNS, *SKIPPING} - unfit:
        complete = AutoConfig.for_model(family).to_dict()
        assert scheme_of(without_defaults(complete)) == scheme_of(complete), family


ALWAYS_STATED = {"beam", "gemma4_text", "gemma4_unified_text", "laguna", "mellum", "mimo_v2_flash", "ministral3"}
"""Families as young as transformers 5, whose configs all state their parameters, by kind of layer or of yarn."""


@pytest.mark.slow
def test_what_a_config_leaves_out_is_what_transformers_puts_in():
    """Of every family that can be read: the rotation of a config without its bases, shares and kinds of layers."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    left_out = ("rope_parameters", "rope_theta", "partial_rotary_factor", "rotary_pct", "rotary_emb_base")
    fitting = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": LENGTH}
    compared, different = [], {}
    for family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            facts = AutoConfig.for_model(family).to_dict()
            expected = read_config(facts | fitting)
        except Exception:  # no config of its own, no rotation, or layers that are no attention
            continue
        bare = {k: v for k, v in (facts | fitting).items() if k not in left_out}
        scaling = without_defaults({"rope_parameters": {}} | facts).get("rope_scaling")
        bare |= {} if scaling is None else {"rope_scaling": scaling}
        if family not in ALWAYS_STATED and facts.get("rope_parameters"):
            found = read_config(bare).rotations
            compared.append(family)
            if found != expected.rotations:
                different[family] = found, expected.rotations
    assert not different
    assert len(compared) > 70


REMARKS = {
    "factor is 4, but max_position_embeddings is 64, the length before the extension": scaled("yarn", factor=4.0)
    | {"max_position_embeddings": LENGTH},
    "factor is 4, but max_position_embeddings / original_max_position_embeddings = 128 / 64 = 2": scaled(
        "yarn", factor=4.0
    )
    | {"max_position_embeddings": 128},
    "factor is 4, but max_position_embeddings / original": scaled("longrope", factor=4.0, **LISTS)
    | {"max_position_embeddings": 128},
    "original_max_position_embeddings is missing, the length before": scaled(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=None
    ),
    "max_position_embeddings = 64 is not above original_max_position_embeddings = 64": scaled(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0
    )
    | {"max_position_embeddings": LENGTH},
    "rope_type dynamic does not read": scaled("dynamic", factor=2.0, original_max_position_embeddings=32),
    "mscale does nothing without mscale_all_dim": scaled("yarn", factor=4.0, mscale=1.0),
    "beta_fast does nothing for rope_type linear": scaled("linear", factor=4.0, beta_fast=32.0),
    "beta_fats is read by nothing. Did you mean 'beta_fast'": scaled("yarn", factor=4.0, beta_fats=32.0),
    "rope_theta is 500.0, and 10000.0 beside it": scaled("default") | {"rope_theta": 10000.0},
    "rope_theta is missing; 10000 is taken": LLAMA | {"rope_theta": None},
    "truncate is null, which transformers takes for false": scaled("yarn", factor=4.0, truncate=None),
    "rope_parameters has no kinds of layers, which olmo3 has": scaled("default") | {"model_type": "olmo3"},
    "layer_types has chunked_attention, where tokens see their own chunk of 8 alone": LLAMA
    | {"layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": 8},
    "rope_scaling and rope_parameters differ": scaled("linear", factor=4.0)
    | {"rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 500.0}},
}


@pytest.mark.parametrize("said", REMARKS)
def test_what_contradicts_itself_is_named_once(said):
    remarks = read_config(REMARKS[said]).remarks
    assert len(remarks) == 1, remarks
    assert said in remarks[0]


@pytest.mark.parametrize("name", PARITY)
def test_a_config_without_fault_has_no_remark(name):
    expected = name in ("longrope stated", "yarn null")  # a factor that is not the ratio of its lengths, and a null
    assert bool(read_config(PARITY[name]).remarks) == expected


def test_published_configs_have_no_remark():
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    qwen = LLAMA | {"model_type": "qwen2", "max_position_embeddings": 131072, "rope_scaling": yarn}
    assert not read_config(qwen | {"sliding_window": 131072, "use_sliding_window": False}).remarks
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    assert not read_config(LLAMA | {"max_position_embeddings": 131072, "rope_scaling": scaling}).remarks
    scaling = {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}
    scaling["original_max_position_embeddings"] = 4096
    deepseek = LLAMA | {"model_type": "deepseek_v3", "qk_rope_head_dim": 8, "qk_nope_head_dim": 16}
    read = read_config(deepseek | {"max_position_embeddings": 163840, "rope_scaling": scaling})
    assert not read.remarks
    assert read.scheme == "rope+yarn:factor=40"  # the tables' factor of 1, and the logits' 0.1 ln 40 + 1 squared
    assert read.head_dim == 8


REFUSED = {
    "no rope_type 'yran'. Did you mean 'yarn'": scaled("yran", factor=4.0),
    "rope_type is 'yarn' and type is 'linear'": scaled("yarn", factor=4.0, type="linear"),
    "factor is missing, which rope_type linear needs": scaled("linear"),
    "factor must be a number of at least 1, not 0.5": scaled("linear", factor=0.5),
    "factor must be a number of at least 1, not 'four'": scaled("yarn", factor="four"),
    "factor must be a number of at least 1, not True": scaled("linear", factor=True),
    "beta_fast = 1 must exceed beta_slow = 32": scaled("yarn", factor=4.0, beta_fast=1.0, beta_slow=32.0),
    "high_freq_factor = 1 must exceed low_freq_factor = 4": scaled(
        "llama3", factor=8.0, low_freq_factor=4.0, high_freq_factor=1.0
    ),
    "short_factor has 7 numbers, but 8 pairs": scaled("longrope", **LISTS | {"short_factor": [1.0] * 7}),
    "long_factor must be a list of 8 numbers": scaled("longrope", **LISTS | {"long_factor": None}),
    "rope_parameters must be a mapping, not 'yarn'": LLAMA | {"rope_parameters": "yarn"},
    "max_position_embeddings must be a whole number": LLAMA | {"max_position_embeddings": None},
    "num_hidden_layers must be a whole number above 0, not None": LLAMA | {"num_hidden_layers": None},
    "layer_types must name 2 layers": LLAMA | {"layer_types": ["full_attention"]},
    "layer_types has 'linear_attention'": LLAMA | {"layer_types": ["linear_attention", "full_attention"]},
    "no_rope_layers must have 2 entries": LLAMA | {"no_rope_layers": [1]},
    "sliding_window is missing": LLAMA | {"layer_types": ["sliding_attention", "full_attention"]},
    "its tables are multiplied by 1.13863, which acts on 8 of 16 channels": scaled(
        "yarn", factor=4.0, partial_rotary_factor=0.5
    ),
    "5 of 16 channels of a head would turn": scaled("default", partial_rotary_factor=0.35),
    "gpt2 has no rotary positions: it has learned positions": LLAMA | {"model_type": "gpt2"},
    "head_dim is missing": LLAMA | {"num_attention_heads": 5},
    "a config is a mapping": 3,
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_has_no_meaning_is_refused_in_one_message(said):
    with pytest.raises(UserError) as error:
        read_config(REFUSED[said])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_text_part_of_a_config_is_read():
    assert read_config({"model_type": "some_vlm", "text_config": LLAMA}) == read_config(LLAMA)


def test_numbers_survive_as_text():
    factors = {"short_factor": [1 / 3 + k for k in range(8)], "long_factor": [math.pi + k for k in range(8)]}
    read = read_config(scaled("longrope", **factors))
    spec = pezoo.parse(read.scheme)
    assert dict(spec.members[1].settings)["long"] == tuple(factors["long_factor"])


# And back


TOLD = {
    "rope:base=500:pairing=half": "default",
    "rope:base=500:pairing=half+pi:factor=4": "linear",
    "rope:base=500:pairing=half+ntk:factor=4": "default",
    "rope:base=500:pairing=half+dynamic_ntk:strength=2": "dynamic",
    "rope:base=500:pairing=half+yarn:factor=4:truncate=false": "yarn",
    "rope:base=500:pairing=half+yarn:factor=4:ramp=turns": "longrope",
    "rope:base=500:pairing=half+llama3:factor=4": "llama3",
    "rope:base=500:pairing=half+longrope:factor=4": "longrope",
    "rope:base=500:pairing=half:kept=0.5+pi:factor=2": "proportional",
    "rope:base=500:pairing=half+mixed_ntk:factor=4": "longrope",
}


@pytest.mark.parametrize("scheme", TOLD)
def test_transformers_turns_as_the_scheme_that_it_is_told(scheme):
    built = pezoo.create(scheme, d_model=64, n_heads=4, n_layers=2, train_length=LENGTH)
    settings = told(built, LLAMA | {"rope_theta": 500.0}).settings
    assert settings["rope_parameters"]["rope_type"] == TOLD[scheme]
    config = json.loads(json.dumps(LLAMA | settings, allow_nan=False))
    for length in (LENGTH, 4 * LENGTH):
        theirs = tables_of_transformers(config | {"rope_theta": None}, length)
        for ours, table in zip(built.rope_tables(length), theirs, strict=True):
            torch.testing.assert_close(ours, table, atol=5e-5, rtol=1e-5)
    assert not read_config(config | {"rope_theta": None}).remarks


@pytest.mark.parametrize("name", [n for n in PARITY if n != "yarn without factor"])
def test_a_config_that_is_read_and_told_is_the_same_scheme(name):
    read = read_config(PARITY[name])
    built = pezoo.create(read.scheme, **read.sizes)
    again = read_config(PARITY[name] | told(built, PARITY[name]).settings)
    other = pezoo.create(again.scheme, **again.sizes)
    for length in (LENGTH, 4 * LENGTH):
        for ours, theirs in zip(built.rope_tables(length), other.rope_tables(length), strict=True):
            torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        ("rope:base=500", "it turns 16 channels of a head, paired as interleaved; the model turns 16, paired as half"),
        ("rope:base=500:pairing=half+yarn", "it turns otherwise at every length; pass length="),
        ("xpos", "xpos does not just turn pairs of channels"),
    ],
)
def test_what_cannot_be_told_is_refused_with_the_reason(scheme, reason):
    built = pezoo.create(scheme, d_model=64, n_heads=4, n_layers=2, train_length=LENGTH)
    with pytest.raises(UserError, match=reason):
        told(built, LLAMA | {"rope_theta": 500.0})


def test_what_transformers_does_not_read_by_kind_of_layer_is_told_otherwise():
    config = LLAMA | LONG | {"layer_types": ["full_attention"] * 2, "rope_theta": None}
    yarn = scaled("yarn", factor=4.0, truncate=False)["rope_parameters"]
    read = read_config(config | {"rope_parameters": {"full_attention": yarn}})
    assert read.scheme == "rope:base=500:pairing=half+yarn:factor=4"
    assert "truncate is read by nothing here" in read.remarks[0]
    built = pezoo.create(read.scheme + ":truncate=false", **read.sizes)
    settings = told(built, config | {"rope_parameters": {"full_attention": yarn}}).settings
    assert settings["rope_parameters"]["full_attention"]["rope_type"] == "longrope"


@pytest.mark.parametrize("module", ["rope_config", "rope_rules", "rope_parameters", "with_own"])
def test_configs_are_read_without_transformers(module):
    path = Path(inspect.getfile(read_config)).with_name(f"{module}.py")
    nodes = list(ast.walk(ast.parse(path.read_text())))
    found = {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
    found |= {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    assert not any(name.startswith("transformers") for name in found)
    inside = {name.rpartition(".")[2] for name in found if name.startswith("pezoo.pretrained")}
    assert inside <= {"rope_config", "rope_rules", "rope_parameters", "with_own"}


def test_kinds_of_layers_are_told_apart():
    kinds = ["sliding_attention", "full_attention"]
    nested = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}
    nested["sliding_attention"] = {"rope_type": "default", "rope_theta": 500.0}
    config = LLAMA | {"layer_types": kinds, "sliding_window": 8, "rope_theta": None, "rope_parameters": nested}
    near, far = "rope:base=500:pairing=half", "rope:base=1000000:pairing=half+pi:factor=4"
    built = pezoo.create({"layers": [near, far]}, d_model=64, n_heads=4, n_layers=2, train_length=LENGTH)
    settings = told(built, config).settings
    assert settings["max_position_embeddings"] == 4 * LENGTH  # of the layers that go farthest
    turned = pezoo.create({"layers": [far, near]}, d_model=64, n_heads=4, n_layers=2, train_length=LENGTH)
    assert told(turned, config | {"layer_types": kinds[::-1]}).settings == settings
    assert settings["rope_parameters"]["full_attention"] == {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0}
    assert settings["rope_parameters"]["sliding_attention"] == nested["sliding_attention"]


# Whatever a file holds

JUNK = [None, [], {}, "x", -1, 0, 1.5, True, 10**400, math.nan, math.inf, [[]], {"a": {}}, ["full_attention"] * 2]
BESIDE = (
    *("head_dim", "rope_scaling", "partial_rotary_factor", "sliding_window_pattern", "max_window_layers", "rotary_dim"),
    *("no_rope_layer_interval", "original_max_position_embeddings", "qk_rope_head_dim", "text_config", "alibi"),
)


@pytest.mark.slow
@pytest.mark.ci
def test_no_content_of_a_config_ends_in_a_traceback():
    layers = {"layer_types": ["full_attention"] * 2, "no_rope_layers": [1, 1]}
    windows = {"model_type": "smollm3", "sliding_window": 8, "use_sliding_window": True}
    said = []
    for config in (PARITY["yarn"] | layers, PARITY["longrope"], PARITY["yarn"] | windows):
        inside = config["rope_parameters"]
        for junk in JUNK:
            changed = [config | {key: junk} for key in {*config, *BESIDE}]
            changed += [config | {"rope_parameters": inside | {key: junk}} for key in {*inside, "type", "truncate"}]
            changed.append(config | {"rope_parameters": {"full_attention": junk}})
            for one in changed:
                try:
                    read_config(one)
                except UserError as error:
                    said.append(str(error))
    assert len(said) > 100
    assert not any("\n" in message for message in said)


ASKED = [{"use_sliding_window": True}, {"use_sliding_window": True, "max_window_layers": 1}]


@pytest.mark.parametrize(
    ("family", "stated"),
    [(family, {}) for family in sorted(WINDOWS_ON_DEMAND)]
    + [(family, stated) for family in sorted(WINDOWS_ON_DEMAND) for stated in ASKED],
)
def test_windows_that_must_be_asked_for(family, stated):
    """What configs say that name no `layer_types`, as transformers reads them."""
    stated = {"num_hidden_layers": 32, "sliding_window": 8, **stated}
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.for_model(family, **stated)
    kinds = getattr(theirs, "layer_types", ["sliding_attention"] * 32)  # Qwen3-MoE has one mask for all layers
    kinds = kinds if theirs.use_sliding_window else ["full_attention"] * 32
    rest = {k: v for k, v in LLAMA.items() if k != "model_type"}
    read = read_config(rest | stated | {"model_type": family}).scheme
    assert read == read_config(rest | stated | {"model_type": family, "layer_types": kinds}).scheme
    assert ("window" in read) == ("sliding_attention" in kinds)
