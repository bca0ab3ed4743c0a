"""Schemes in decoders of transformers: the model's own gives the same logits, however the model is used."""

import copy
import re
from pathlib import Path

import pytest
import torch
from pretrained import LENGTH, tiny, words
from safetensors.torch import load_file
from transformers import StaticCache

import pezoo
from pezoo import UserError
from pezoo.attention import observing
from pezoo.encodings.bias.alibi import slopes

ROOT = Path(__file__).parents[1]
CLOSE = 1e-4
SEVERAL = ["rope+yarn:factor=4", "alibi", "kerple+rerope", "fox", "rope+fox", "sinusoidal", "bipe"]
"""One of each kind: frequencies, bias, far region, read of the input, the embedding, read of the tokens."""


def slow(*values):
    """Parameters that CI alone tries, beside one or two that stand for them."""
    return [pytest.param(value, marks=[pytest.mark.slow, pytest.mark.ci(one_in=4)]) for value in values]


@pytest.fixture(scope="module")
def shared():
    return tiny("llama", num_hidden_layers=2)


@pytest.fixture
def llama(shared):
    yield shared
    pezoo.detach(shared.eval())


def differ(a, b):
    return float((a - b).detach().abs().max())


@torch.no_grad()
def logits(model, tokens, **given):
    return model(tokens, **given).logits


def lively(attached):
    """Move the scheme's parameters away from where they start, where some do nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in attached.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


# ---- its own scheme -----------------------------------------------------------------------------

FAST = ["llama", "gpt_neox", "smollm3"]
FAMILIES = [
    "afmoe", "apertus", "arcee", "aria_text", "biogpt", "bitnet", "cohere", "cohere2", "cohere2_moe", "ctrl",
    "cwm", "diffllama", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "flex_olmo", "flint",
    "gemma", "gemma2", "gemma3_text", "gemma3n_text", "glm", "glm4", "glm4_moe", "gpt2", "gpt-sw3",
    "gpt_bigcode", "gpt_oss", "granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoeshared",
    "helium", "hy_v3", "hyperclovax", "internlm3", "iquestcoder", "jais2", "jetmoe", "kolibri1", "laguna",
    "llama4_text", "mellum", "minimax_m2", "ministral", "ministral3", "mistral", "mixtral",
    "modernbert-decoder", "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "opt", "persimmon", "phi",
    "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "solar_open", "stablelm",
    "starcoder2", "vaultgemma",
]  # fmt: skip
GENTLE = {"attention_multiplier": 0.3}
"""With the default of 1 logits are so large that sdpa and eager of transformers differ by more than the bar."""
SETTINGS = {family: GENTLE for family in FAMILIES if family.startswith("granite")} | {
    "gemma2": {"attn_logit_softcapping": 1.0},
    "llama4_text": {"attention_chunk_size": 8},
    "dots1": {"n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    "gemma3n_text": {
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 97,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
}


@pytest.mark.parametrize("family", [*FAST, *(pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES)])
def test_its_own_scheme_gives_the_same_logits(family):
    model, tokens = tiny(family, **SETTINGS.get(family, {})), words(2, 40)
    mask = torch.ones_like(tokens)
    mask[0, :9] = 0
    before, padded = logits(model, tokens), logits(model, tokens, **_by_mask(model, mask))
    reached = model.generate(tokens[:, :30], attention_mask=mask[:, :30], max_new_tokens=8, do_sample=False)
    pezoo.attach(model)
    assert before.abs().max() > 0.3
    assert differ(logits(model, tokens), before) < CLOSE
    again = logits(model, tokens, **_by_mask(model, mask))
    assert differ(again[mask.bool()], padded[mask.bool()]) < CLOSE
    assert torch.equal(
        model.generate(tokens[:, :30], attention_mask=mask[:, :30], max_new_tokens=8, do_sample=False), reached
    )


def _by_mask(model, mask):
    """Positions as the mask says, which transformers leaves to the caller and pezoo finds by itself."""
    return {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


LATENT = {"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "kv_lora_rank": 8, "q_lora_rank": 8}
LATENT |= {"head_dim": 8, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4}
REFUSED = {
    "bloom": ({}, "does not go through the interface"),
    "mpt": ({}, "does not go through the interface"),
    "falcon": ({}, "does not go through the interface"),
    "gptj": ({"rotary_dim": 8}, "does not go through the interface"),
    "codegen": ({"rotary_dim": 8}, "does not go through the interface"),
    "xglm": ({}, "does not go through the interface"),
    "gpt_neo": ({"attention_types": [[["global", "local"], 2]], "num_layers": 4, "num_heads": 4}, "the interface"),
    **dict.fromkeys(["deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu"], (LATENT, "latent")),
    "hunyuan_v1_dense": ({}, "a norm with weights after the rotation"),
    "mimo_v2_flash": ({}, "differ in width"),
    "gemma4_text": (
        {"vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 8, "global_head_dim": 32}, "differ in width",
    ),
    "mamba": ({}, "no attention"),
    "jamba": ({"mamba_dt_rank": 4, "attn_layer_offset": 1, "attn_layer_period": 2}, "layers, 0, 2 have no attention"),
    "bamba": ({"mamba_n_heads": 8, "mamba_d_head": 16, "attn_layer_indices": [1]}, "layers, 0, 2, 3 have no attention"),
    "qwen3_next": ({}, "layers, 0, 1, 2 have no attention"),
    "qwen3_5_text": ({}, "one line of cosines and sines"),
    "minimax": ({}, "layers, 1, 3 have no attention"),
    "nemotron_h": ({}, "no attention"),
    "olmo_hybrid": ({}, "no attention"),
    "lfm2": ({"layer_types": ["conv", "conv", "full_attention", "conv"]}, "layers, 0, 1, 3 have no attention"),
    "inkling_text": ({}, "position_bias"),
    "doge": ({}, "numbers for each pair"),
    "bert": ({}, "looks ahead"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", REFUSED)
def test_families_that_cannot_are_refused_with_the_reason(family):
    settings, reason = REFUSED[family]
    model = tiny(family, **settings)
    implementation = model.config._attn_implementation
    for scheme in (None, "alibi"):
        with pytest.raises(UserError, match=rf"{type(model).__name__} cannot take a scheme: .*{reason}"):
            pezoo.attach(model, scheme)
    assert model.config._attn_implementation == implementation
    assert not hasattr(model, "pezoo")


def test_a_norm_with_weights_after_the_rotation_is_refused_even_while_its_weights_are_ones():
    model = tiny("hunyuan_v1_dense")
    with pytest.raises(UserError, match="after the rotation"):
        pezoo.attach(model)


def test_the_page_names_the_families_that_are_tested():
    _, text = (ROOT / "docs/attach.md").read_text().split("## Families")
    same, refused = text.split("Refused, with the reason")
    assert sorted(re.findall(r"`([\w-]+)`", same.split("Same logits:")[1])) == sorted([*FAST, *FAMILIES])
    assert sorted(re.findall(r"`(\w+)`", refused.split("\n\n")[1])) == sorted(REFUSED)


QUARTER = 16
ROPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": QUARTER},
    "longrope": {
        "factor": 4.0,
        "original_max_position_embeddings": QUARTER,
        "short_factor": [1.0 + 0.1 * i for i in range(8)],
        "long_factor": [1.0 + 0.5 * i for i in range(8)],
    },
    "llama3": {
        "factor": 4.0,
        "original_max_position_embeddings": QUARTER,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    },
    "proportional": {"partial_rotary_factor": 0.5},
}


@pytest.mark.parametrize("kind", ["yarn", "dynamic", *slow(*sorted(ROPES.keys() - {"yarn", "dynamic"}))])
def test_each_kind_of_rotation_of_transformers_within_the_length_and_far_beyond(kind):
    reach = QUARTER if kind in ("default", "linear", "dynamic", "proportional") else 4 * QUARTER
    settings = {"rope_type": kind, "rope_theta": 1000.0} | ROPES[kind]
    model = tiny("llama", rope_parameters=settings, max_position_embeddings=reach, num_hidden_layers=2)
    for length in (QUARTER - 1, QUARTER, QUARTER + 1, 4 * QUARTER):
        tokens = words(1, length)
        pezoo.detach(model)
        before = logits(model, tokens)
        attached = pezoo.attach(model)
        assert attached.scheme.shape.train_length == QUARTER
        assert differ(logits(model, tokens), before) < CLOSE, length
    attached.length = 4 * QUARTER  # else it follows the tokens so far
    assert differ(decoded(model, tokens), before) < CLOSE
    plain = tiny("llama", max_position_embeddings=QUARTER, num_hidden_layers=2)
    assert kind == "default" or differ(logits(plain, tokens), before) > 0.1


def decoded(model, tokens, first=5, cache=None, mask=None):
    """Logits of a pass token by token, after `first` at once."""
    outputs, length = [], tokens.shape[1]
    for start, stop in [(0, first), *((i, i + 1) for i in range(first, length))]:
        given = {} if mask is None else {"attention_mask": mask[:, :stop]}
        with torch.no_grad():
            found = model(tokens[:, start:stop], past_key_values=cache, use_cache=True, **given)
        cache = found.past_key_values
        outputs.append(found.logits)
    return torch.cat(outputs, dim=1)


# ---- any scheme ---------------------------------------------------------------------------------


def test_alibi_in_a_model_is_the_naive_bias_on_unrotated_heads(llama):
    tokens = words(2, 20)
    pezoo.attach(llama, "alibi")
    found = logits(llama, tokens)
    pezoo.detach(llama)
    place = torch.arange(20)
    bias = -torch.tensor(slopes(4))[:, None, None] * (place[:, None] - place).abs()
    bias = bias.masked_fill(place[:, None] < place, -torch.inf)[None].expand(2, -1, -1, -1)
    turn = llama.model.rotary_emb.forward
    llama.set_attn_implementation("eager")
    try:
        llama.model.rotary_emb.forward = lambda x, position_ids: tuple(
            torch.full((1, 20, 16), one) for one in (1.0, 0.0)
        )
        expected = logits(llama, tokens, attention_mask=bias)
    finally:
        llama.model.rotary_emb.forward = turn
        llama.set_attn_implementation("sdpa")
    assert differ(found, expected) < CLOSE


@pytest.mark.parametrize("scheme", ["rope+fox", *slow(*(s for s in SEVERAL if s != "rope+fox"))])
def test_padding_and_caches_change_nothing(llama, scheme):
    attached = pezoo.attach(llama, scheme)
    lively(attached)
    attached.length = 24
    tokens, short = words(2, 24), 17
    whole = logits(llama, tokens)
    alone = logits(llama, tokens[1:, :short])
    mask = torch.ones(2, 24, dtype=torch.int64)
    mask[1, short:] = 0
    right = logits(llama, tokens, attention_mask=mask)
    assert differ(right[0], whole[0]) < CLOSE
    assert differ(right[1, :short], alone[0]) < CLOSE
    moved = torch.stack([tokens[0], tokens[1].roll(24 - short)])
    left = logits(llama, moved, attention_mask=mask.flip(1))
    assert differ(left[0], whole[0]) < CLOSE
    assert differ(left[1, 24 - short :], alone[0]) < CLOSE
    steps = decoded(llama, moved, first=10, mask=mask.flip(1))
    assert differ(steps[1, 24 - short :], alone[0]) < CLOSE
    fixed = StaticCache(config=llama.config, max_cache_len=30)
    steps = decoded(llama, moved, first=10, mask=mask.flip(1), cache=fixed)
    assert differ(steps[0], whole[0]) < CLOSE
    assert differ(steps[1, 24 - short :], alone[0]) < CLOSE


@pytest.mark.parametrize("scheme", [None, "rope+fox", *slow(*(s for s in SEVERAL if s != "rope+fox"))])
def test_packed_rows_are_as_if_alone(llama, scheme):
    tokens, position_ids = words(1, 20), torch.cat([torch.arange(8), torch.arange(12)])[None]
    before = logits(llama, tokens, position_ids=position_ids, use_cache=False)
    attached = pezoo.attach(llama, scheme)
    lively(attached)
    attached.length = 20
    packed = logits(llama, tokens, position_ids=position_ids, use_cache=False)
    assert differ(packed[:, :8], logits(llama, tokens[:, :8])) < CLOSE
    assert differ(packed[:, 8:], logits(llama, tokens[:, 8:])) < CLOSE
    assert scheme is not None or differ(packed, before) < CLOSE
    for beside in ({}, {"use_cache": False, "attention_mask": torch.ones_like(tokens)}):
        with pytest.raises(UserError, match="use_cache=False and no attention_mask"):
            llama(tokens, position_ids=position_ids, **beside)


LENGTHS = {
    "phi3": {"rope_type": "longrope", "factor": 4.0, "rope_theta": 1000.0, "original_max_position_embeddings": QUARTER}
    | {name: ROPES["longrope"][name] for name in ("short_factor", "long_factor")},
    "llama": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1000.0},
}


@pytest.mark.parametrize("family", LENGTHS)
def test_rotations_that_follow_the_length_follow_position_ids_where_they_are_given(family):
    """Documents shorter than L in a row longer than L, and padding of all rows, as transformers reads them."""
    sizes = {"max_position_embeddings": QUARTER, "num_hidden_layers": 2}
    if family == "phi3":  # which has the length before the extension beside its parameters
        sizes |= {"max_position_embeddings": 4 * QUARTER, "original_max_position_embeddings": QUARTER}
    model = tiny(family, rope_parameters=LENGTHS[family], **sizes)
    tokens = words(2, 24)
    mask = torch.ones_like(tokens)
    mask[:, :10] = 0
    packed = {"position_ids": torch.arange(12).repeat(2)[None].expand(2, -1), "use_cache": False}
    given = [packed, _by_mask(model, mask), {}]
    before = [logits(model, tokens, **one) for one in given]
    longer = {"max_new_tokens": 6, "do_sample": False, "attention_mask": mask, "use_cache": False}
    written = model.generate(tokens, **longer)
    pezoo.attach(model)
    for one, expected in zip(given, before, strict=True):
        counted = one.get("attention_mask", torch.ones_like(tokens)).bool()
        assert differ(logits(model, tokens, **one)[counted], expected[counted]) < CLOSE
    assert torch.equal(model.generate(tokens, **longer), written)


@pytest.mark.parametrize("scheme", ["rope+fox", *slow(None, "rope+yarn:factor=4", "bipe")])
def test_generation_greedy_by_beams_and_in_a_static_cache(llama, scheme):
    tokens = words(2, 12)
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    given = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    beams = given | {"num_beams": 3}
    before = [llama.generate(tokens, **how) for how in (given, beams)]
    attached = pezoo.attach(llama, scheme)
    lively(attached)
    greedy, best = (llama.generate(tokens, **how) for how in (given, beams))
    if scheme is None:
        assert torch.equal(greedy, before[0])
        assert torch.equal(best, before[1])
    assert torch.equal(llama.generate(tokens, **given, use_cache=False), greedy)
    assert torch.equal(llama.generate(tokens, **beams, use_cache=False), best)
    assert torch.equal(llama.generate(tokens, **given, cache_implementation="static"), greedy)


@pytest.mark.parametrize("family", ["mistral", *slow("gemma3_text")])
@pytest.mark.parametrize("scheme", ["fire", *slow(None, "rope+fox", "bipe")])
def test_windows_of_the_model_stay_beyond_their_size_in_all_caches(family, scheme):
    model, tokens = tiny(family, num_hidden_layers=2), words(2, 24)
    before = logits(model, tokens)
    attached = pezoo.attach(model, scheme)
    lively(attached)
    attached.length = 24
    full = logits(model, tokens)
    assert scheme is not None or differ(full, before) < CLOSE
    changed = tokens.clone()
    changed[:, 0] = 50
    assert differ(logits(model, changed)[:, -1], full[:, -1]) < CLOSE or family != "mistral"
    assert differ(decoded(model, tokens), full) < CLOSE
    assert differ(decoded(model, tokens, cache=StaticCache(config=model.config, max_cache_len=26)), full) < CLOSE


@pytest.mark.parametrize("scheme", ["rope", "sinusoidal"])
def test_embeddings_instead_of_tokens_and_a_mask_of_pairs(llama, scheme):
    tokens = words(2, 12)
    pezoo.attach(llama, scheme)
    before = logits(llama, tokens)
    with torch.no_grad():
        found = llama(inputs_embeds=llama.get_input_embeddings()(tokens)).logits
    assert differ(found, before) < CLOSE
    place = torch.arange(12)
    pairs = (place[:, None] - place).ge(0) & (place[:, None] - place < 4)
    seen = logits(llama, tokens, attention_mask=pairs.expand(2, 1, -1, -1))
    pezoo.attach(llama, f"{scheme}+window:size=4")
    assert differ(logits(llama, tokens), seen) < CLOSE


def test_the_scheme_is_filled_in_with_what_the_model_does():
    model = tiny("smollm3", rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
    found = str(pezoo.attach(model, "rope+yarn:factor=4").scheme.spec)
    turning = "rope:base=5000:pairing=half+yarn:factor=4"
    assert found == f'{{layers: ["{turning}", "{turning}", "{turning}", nope]}}'
    assert str(pezoo.attach(model, "rope:base=70").own).count("base=5000") == 3
    for given in ("rope:base=10000", {"rope": {"base": 10000}}):  # the zoo's default, written down
        assert "base" not in str(pezoo.attach(model, given).scheme.spec)


@pytest.mark.parametrize(
    ("scheme", "unturned"),
    [
        ("rope+window:size=8", "nope+window:size=8"),
        ("rope+yarn:factor=4+sink_logits", "nope+sink_logits"),
        ("rope+alibi", "alibi"),
        ("rope+fox+window:size=8", "fox+window:size=8"),
    ],
)
def test_in_layers_that_do_not_turn_all_but_the_rotation_stays(scheme, unturned):
    model = tiny("smollm3")
    found = pezoo.attach(model, scheme).scheme.spec
    assert [str(layer) for layer in found.layers][3] == str(pezoo.parse(unturned))
    assert logits(model, words(1, 20)).isfinite().all()


def test_a_window_reaches_every_layer():
    """With windows of 4 in 4 layers, what is 13 tokens back is out of reach."""
    model, tokens = tiny("smollm3"), words(1, 30)
    pezoo.attach(model, "rope+window:size=4")
    other = tokens.clone()
    other[0, 0] = 50
    assert differ(logits(model, other)[:, 13:], logits(model, tokens)[:, 13:]) < CLOSE


def test_learned_positions_of_a_model_give_way_to_the_scheme_and_can_be_interpolated():
    model, tokens = tiny("gpt2"), words(1, 40)
    before = logits(model, tokens)
    attached = pezoo.attach(model)
    assert str(attached.own) == "learned"
    assert differ(logits(model, tokens), before) < CLOSE
    pezoo.attach(model, "learned+pi:factor=2")
    assert logits(model, words(1, 2 * LENGTH)).isfinite().all()
    pezoo.attach(model, "nope")
    same = logits(model, torch.full((1, 6), 5))
    assert differ(same[:, :1], same) < CLOSE  # nothing tells equal tokens apart
    pezoo.detach(model)
    assert torch.equal(logits(model, tokens), before)


@pytest.mark.parametrize("family", ["gpt2", "opt", *slow("biogpt")])
def test_a_table_of_positions_that_gives_way_has_the_models_precision_and_is_not_trained(family):
    model, tokens = tiny(family).bfloat16(), words(1, 20)
    before = logits(model, tokens)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    pezoo.attach(model, "rope")
    assert logits(model, tokens).dtype == torch.bfloat16
    frozen = [name for name in trained if not model.get_parameter(name).requires_grad]
    assert len(frozen) == 1
    model(tokens, labels=tokens).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    pezoo.detach(model)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trained
    assert torch.equal(logits(model, tokens), before)
    model.get_parameter(frozen[0]).requires_grad_(False)
    pezoo.attach(model)
    pezoo.detach(model)
    assert not model.get_parameter(frozen[0]).requires_grad


# ---- training -----------------------------------------------------------------------------------


def gradients(model, tokens, **given):
    """Gradients of the losses of two batches, read one after the other before the backward pass."""
    model.zero_grad()
    losses = [model(tokens[i], labels=tokens[i], use_cache=False, **given).loss for i in (0, 1)]
    sum(losses).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["llama", "stablelm"])
@pytest.mark.parametrize("scheme", [None, "rope+fox"])
def test_gradients_with_and_without_checkpointing(family, scheme):
    model, tokens = tiny(family, num_hidden_layers=2).train(), words(4, 20).view(2, 2, 20)
    before = gradients(model, tokens)
    attached = pezoo.attach(model, scheme)
    plain = gradients(model, tokens)
    if scheme is None:
        assert plain.keys() == before.keys()
        assert max(differ(plain[n], before[n]) for n in before) < CLOSE
    else:
        assert {f"pezoo.{n}" for n, _ in attached.named_parameters()} <= plain.keys()
    model.activation_checkpointing_enable()
    if family == "stablelm":  # hands on no keyword
        with pytest.raises(UserError, match="checkpointing"):
            gradients(model, tokens)
    else:
        again = gradients(model, tokens)
        assert max(differ(plain[n], again[n]) for n in plain) < CLOSE


def test_parameters_of_the_scheme_are_found_and_saved(llama, tmp_path):
    attached = pezoo.attach(llama, "kerple")
    assert [n for n, _ in llama.named_parameters() if n.startswith("pezoo.")]
    lively(attached)
    found, tokens = {n: t.clone() for n, t in llama.state_dict().items()}, words(1, 12)
    before = logits(llama, tokens)
    pezoo.attach(llama, "kerple")
    assert differ(logits(llama, tokens), before) > CLOSE
    llama.load_state_dict(found)
    assert differ(logits(llama, tokens), before) < CLOSE
    llama.save_pretrained(tmp_path)
    assert {n for n in load_file(tmp_path / "model.safetensors") if n.startswith("pezoo.")}


def test_phases_and_rows():
    model, tokens = tiny("llama", num_hidden_layers=1), words(2, 12)
    attached = pezoo.attach(model.eval(), "rope+shift")
    still = logits(model, tokens)
    assert differ(logits(model, tokens), still) == 0
    attached.phase = "train"
    first = [logits(model, tokens) for _ in range(2)]
    assert differ(*first) == 0
    attached.train()
    second = [logits(model, tokens) for _ in range(2)]
    attached.rows = [2, 3]
    assert differ(logits(model, tokens), second[1]) == 0


def test_half_precision():
    model, tokens = tiny("llama").bfloat16(), words(2, 40)
    before = logits(model, tokens)
    attached = pezoo.attach(model, "rope+kerple")
    assert all(p.dtype == torch.float32 for p in attached.parameters())
    assert logits(model, tokens).dtype == torch.bfloat16
    pezoo.attach(model)
    exact = logits(tiny("llama"), tokens)
    assert differ(logits(model, tokens).float(), exact) < 1.5 * differ(before.float(), exact) < 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch about itself
@pytest.mark.parametrize("scheme", [None, "rope+fox"])
def test_compiled(scheme):
    model, tokens = tiny("llama", num_hidden_layers=2), words(2, 20)
    pezoo.attach(model, scheme)
    before = logits(model, tokens)
    compiled = torch.compile(model)
    assert differ(logits(compiled, tokens), before) < CLOSE
    assert differ(logits(compiled, tokens[:, :13]), before[:, :13]) < CLOSE
    assert differ(decoded(compiled, tokens), before) < CLOSE


# ---- attach and detach --------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_detach_restores_the_model(family):
    model, tokens = tiny(family), words(2, 20)
    before, config = logits(model, tokens), model.config.to_dict()
    names, modules, keys = list(model.state_dict()), [n for n, _ in model.named_modules()], set(vars(model))
    pezoo.attach(model, "sinusoidal+fox")
    logits(model, tokens)
    assert model.config.to_dict() == config
    pezoo.detach(model)
    pezoo.detach(model)
    assert list(model.state_dict()) == names
    assert [n for n, _ in model.named_modules()] == modules
    assert set(vars(model)) == keys
    assert model.config.to_dict() == config
    assert all(not m._forward_pre_hooks and not m._forward_hooks for m in model.modules())
    assert all("pezoo" not in key for m in model.modules() for key in vars(m))
    assert torch.equal(logits(model, tokens), before)


def test_a_rotation_with_a_memory_does_not_remember_what_was_read_while_attached():
    settings = {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 2.0}
    model = tiny("llama", rope_parameters=settings, num_hidden_layers=1)
    for read in (None, words(1, 2 * LENGTH)):  # new, and after a long text
        read is None or logits(model, read)
        before = {n: b.clone() for n, b in model.model.rotary_emb.named_buffers()}
        pezoo.attach(model)
        logits(model, words(1, 3 * LENGTH))
        pezoo.detach(model)
        after = dict(model.model.rotary_emb.named_buffers())
        assert all(torch.equal(after[n], before[n]) for n in before)


def test_weights_of_attention_can_be_looked_at(llama):
    tokens, shown = words(1, 12), []
    pezoo.attach(llama)
    before = logits(llama, tokens)
    with observing(lambda values, weights, composition: shown.append(weights)):
        assert differ(logits(llama, tokens), before) < CLOSE
    assert len(shown) == 2
    assert all(differ(weights.sum(-1), torch.ones(1, 4, 12)) < CLOSE for weights in shown)


def test_a_copy_has_a_scheme_of_its_own(llama):
    tokens = words(1, 12)
    lively(pezoo.attach(llama, "rope+fox"))
    before = logits(llama, tokens)
    other = copy.deepcopy(llama)
    pezoo.detach(llama)
    assert torch.equal(logits(other, tokens), before)
    pezoo.attach(llama, "alibi")
    assert torch.equal(logits(other, tokens), before)
    for model in (llama, other):
        pezoo.detach(model)
    assert torch.equal(logits(other, tokens), logits(llama, tokens))
    assert all(not m._forward_pre_hooks and not m._forward_hooks for m in other.modules())


def test_attaching_again_replaces_and_a_failure_leaves_the_model_as_it_was(llama):
    tokens = words(1, 12)
    before = logits(llama, tokens)
    for scheme in ("alibi", None):
        pezoo.attach(llama, scheme)
    assert differ(logits(llama, tokens), before) < CLOSE
    with pytest.raises(UserError, match="no member"):
        pezoo.attach(llama, "rope+nonsense")
    assert torch.equal(logits(llama, tokens), before)


def test_mistakes_get_one_message_each(llama):
    tokens = words(2, 12)
    with pytest.raises(UserError, match="a model of the library transformers, not Linear"):
        pezoo.attach(torch.nn.Linear(2, 2))
    pezoo.attach(llama)
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    with pytest.raises(UserError, match="position_ids do not count"):
        llama(tokens, attention_mask=mask, position_ids=2 * torch.arange(12)[None])
    with pytest.raises(UserError, match="attention_mask is of the shape"):
        llama(tokens, attention_mask=mask[:, :7])
    with pytest.raises(UserError, match="leave output_attentions out"):
        llama(tokens, output_attentions=True)
    with pytest.raises(UserError, match="padding between"):
        llama(tokens, attention_mask=mask.roll(4))
    with pytest.raises(UserError, match=re.escape("bool (B, 1, Lq, Lk), not float32 (2, 1, 12, 12)")):
        llama(tokens, attention_mask=torch.zeros(2, 1, 12, 12))
    pezoo.attach(model := tiny("gpt_oss", num_hidden_layers=1), "stick_breaking")
    with pytest.raises(UserError, match="the model has sinks"):
        model(tokens)
    model = tiny("llama", attention_dropout=0.1).train()
    pezoo.attach(model)
    with pytest.raises(UserError, match="attention_dropout=0"):
        model(tokens)
    with pytest.raises(UserError, match="keeps its own scheme"):
        pezoo.attach(tiny("ctrl"), "alibi")
    with torch.device("meta"):
        empty = type(llama)(llama.config)
    with pytest.raises(UserError, match="not loaded"):
        pezoo.attach(empty)


def test_without_transformers_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr("pezoo.pretrained.find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape("pip install 'pezoo[hf]'")):
        pezoo.attach(None)
