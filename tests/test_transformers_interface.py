"""What `pezoo.pretrained` relies on in transformers. If one of these fails after an upgrade, look there first."""

import configparser
import inspect
from pathlib import Path

import pytest
import torch
import transformers
from packaging.requirements import Requirement
from pretrained import tiny, words
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer, StaticLayer
from transformers.masking_utils import sdpa_mask

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def calls():
    """What a model hands to its attention function, its mask function and its rotary module."""
    model, found = tiny("llama", num_hidden_layers=2), {"attention": [], "mask": [], "rotary": []}

    def attention(*args, **kwargs):
        found["attention"].append((args, kwargs))
        q, v = args[1], args[3]
        return v.new_zeros(len(q), q.shape[2], q.shape[1], v.shape[3]), None

    def mask(*args, **kwargs):
        found["mask"].append((args, kwargs))
        return sdpa_mask(*args, **kwargs)

    AttentionInterface.register("canary", attention)
    AttentionMaskInterface.register("canary", mask)
    model.set_attn_implementation("canary")
    rotary = model.model.rotary_emb
    hook = rotary.register_forward_hook(
        lambda module, args, kwargs, out: found["rotary"].append((args, kwargs, out)), with_kwargs=True
    )
    tokens, valid = words(2, 6), torch.ones(2, 6, dtype=torch.int64)
    valid[0, :2] = 0
    with torch.no_grad():
        model(tokens, attention_mask=valid, unknown_keyword="goes on to the attention")
    hook.remove()
    return found


def test_the_version_is_one_that_was_tested():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    assert extras["hf"] == extras["hub"]
    wanted = {need.name: need for need in map(Requirement, extras["hf"].split())}
    needed = wanted["transformers"]
    assert needed.specifier.contains(transformers.__version__)
    assert {s.operator for s in needed.specifier} == {">=", "<"}  # minor versions from ... to ...


def test_what_attention_gets(calls):
    assert len(calls["attention"]) == 2
    (module, q, k, v, mask), kwargs = calls["attention"][1]
    assert module.layer_idx == 1
    assert module.is_causal
    assert q.shape == (2, 4, 6, 16)
    assert k.shape == v.shape == (2, 2, 6, 16)  # one for each group of heads
    assert mask.shape == (2, 1, 6, 6)
    assert mask.dtype == torch.bool
    assert kwargs["scaling"] == 0.25
    assert kwargs["dropout"] == 0.0
    assert kwargs["unknown_keyword"] == "goes on to the attention"


def test_what_the_mask_function_gets(calls):
    (call,) = calls["mask"]
    assert call[0] == ()
    assert call[1]["attention_mask"].tolist() == [[False, False, True, True, True, True], [True] * 6]
    assert {"batch_size", "q_length", "kv_length", "q_offset", "kv_offset", "mask_function"} <= call[1].keys()
    assert "attention_mask" in inspect.signature(sdpa_mask).parameters


def test_what_the_rotary_module_gets_and_gives(calls):
    ((args, kwargs, (cos, sin)),) = calls["rotary"]
    assert len(args) == 1
    assert kwargs["position_ids"].shape == (1, 6)
    assert cos.shape == sin.shape == (1, 6, 16)


def test_without_a_mask_function_of_that_name_there_is_no_mask():
    model, masks = tiny("llama", num_hidden_layers=1), []

    def attention(module, q, k, v, mask, **kwargs):
        masks.append(mask)
        return v.new_zeros(len(q), q.shape[2], q.shape[1], v.shape[3]), None

    AttentionInterface.register("canary_alone", attention)
    model.set_attn_implementation("canary_alone")
    with torch.no_grad():
        model(words(1, 6), attention_mask=torch.tensor([[0, 0, 1, 1, 1, 1]]))
    assert masks == [None]


def test_caches():
    model = tiny("mistral", num_hidden_layers=2)  # windows of 8
    fixed = StaticCache(config=model.config, max_cache_len=20)
    for cache, n_keys in ((DynamicCache(config=model.config), 7 + 5), (fixed, 8 + 4)):
        assert cache.get_mask_sizes(12, 1) == (12, 0)
        with torch.no_grad():
            model(words(2, 12), past_key_values=cache)
        assert int(cache.get_seq_length()) == 12
        assert cache.get_mask_sizes(5, 0) == (n_keys, 12 - 7)  # how many keys, and the place of the first
    for layer in (DynamicLayer(), StaticLayer(max_cache_len=20)):
        kept, _ = layer.update(torch.ones(2, 1, 3, 5), torch.ones(2, 1, 3, 1))
        assert kept[:, :, :3].sum() == 30
        layer.reorder_cache(torch.tensor([1, 1]))


def test_tokens_are_embedded_by_the_input_embeddings_and_read_by_the_decoder():
    for family in ("llama", "gpt2", "opt"):
        model = tiny(family)
        assert "input_ids" in inspect.signature(model.get_decoder().forward).parameters
        assert isinstance(model.get_input_embeddings(), torch.nn.Embedding)
        assert type(model)._can_set_attn_implementation()
    assert not type(tiny("bloom"))._can_set_attn_implementation()
