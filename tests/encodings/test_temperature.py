"""The temperature by position against the attention of transformers' Llama 4 and Ministral 3."""

import importlib
import math

import pytest
import torch
from torch import nn

import pezoo
from helpers import vectors
from pezoo import attention

H, D, L, TRAINED = 3, 4, 29, 5
SIZES = {"d_model": H * D, "n_heads": H, "n_layers": 1, "train_length": TRAINED}
FACTS = {"hidden_size": H * D, "num_attention_heads": H, "num_key_value_heads": H, "head_dim": D}
FACTS |= {"num_hidden_layers": 4, "attn_implementation": "eager"}
AHEAD = torch.full((L, L), -torch.inf).triu(1)


def llama4():
    """A layer of Llama 4 without rotation, and what its attention gives for an input."""
    theirs = importlib.import_module("transformers.models.llama4.modeling_llama4")
    config = theirs.Llama4TextConfig(**FACTS, floor_scale=TRAINED, attn_scale=0.7)
    layer = theirs.Llama4TextAttention(config, config.no_rope_layers.index(0))
    return layer, lambda x: layer(x, None, AHEAD)


def ministral3():
    """The same of Ministral 3, whose layers all rotate."""
    theirs = importlib.import_module("transformers.models.ministral3.modeling_ministral3")
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    rope |= {"llama_4_scaling_beta": 0.7, "original_max_position_embeddings": TRAINED}
    layer = theirs.Ministral3Attention(theirs.Ministral3Config(**FACTS, rope_parameters=rope), 0)
    place = torch.arange(L)[None]
    angles = place[..., None] * 10000.0 ** -(torch.arange(0, D, 2) / D)
    turns = torch.cat([angles, angles], -1)
    return layer, lambda x: layer(x, (turns.cos(), turns.sin()), AHEAD, position_ids=place)


@pytest.mark.parametrize(
    ("model", "scheme"),
    [
        (llama4, "nope+temperature:beta=0.7:first=1"),
        (ministral3, "rope:pairing=half+temperature:beta=0.7"),
    ],
)
def test_attention_is_that_of_transformers(model, scheme, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(attention, "CHUNK", 8)
    (layer, attend), x = model(), vectors(2, L, H * D)
    for i, part in enumerate((layer.q_proj, layer.k_proj, layer.v_proj)):
        part.weight.data = 0.7 * vectors(H * D, H * D, seed=i + 1)
    layer.o_proj = nn.Identity()
    expected, _ = attend(x)
    q, k, v = (part(x).unflatten(-1, (H, D)).transpose(1, 2) for part in (layer.q_proj, layer.k_proj, layer.v_proj))
    built = pezoo.create(scheme, **SIZES)
    for backend in ("eager", "sdpa", "chunked"):
        came = pezoo.attend(built, q, k, v, phase="test", backend=backend).transpose(1, 2).flatten(2)
        torch.testing.assert_close(came, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("settings", "step", "first"), [("", 512, 0), (":first=1:step=100:beta=0.1", 100, 1)])
def test_factors_are_the_formula(settings, step, first):
    built = pezoo.create(f"alibi+temperature{settings}", **SIZES | {"train_length": 512})
    expected = [1 + 0.1 * math.log(1 + (i + first) // step) for i in range(2000)]
    assert built.temperature(2000).tolist() == pytest.approx(expected, rel=1e-6)


def test_the_training_length_is_spared():
    built = pezoo.create("rope+temperature", **SIZES)
    assert built.temperature(TRAINED).tolist() == [1.0] * TRAINED
    assert built.temperature(3 * TRAINED, phase="train").tolist() == [1.0] * 3 * TRAINED
    assert built.temperature(TRAINED + 1)[-1].item() == pytest.approx(1 + 0.1 * math.log(2))


def test_places_are_those_in_the_document():
    built = pezoo.create("nope+temperature", **SIZES)
    documents = torch.tensor([[0] * 7 + [1] * 8])
    came = built.temperature(15, positions=built.positions(1, 15, documents=documents, phase="test"))
    torch.testing.assert_close(came, torch.cat([built.temperature(7), built.temperature(8)]))


def test_the_layers_of_llama4():
    layers = ["rope", "rope", "rope", "nope+temperature:first=1"]
    built = pezoo.create({"layers": layers}, **SIZES | {"n_layers": 4})
    assert [built.temperature(9, layer=i)[-1].item() for i in range(3)] == [1.0] * 3
    assert built.temperature(9, layer=3)[-1].item() == pytest.approx(1 + 0.1 * math.log(2))
