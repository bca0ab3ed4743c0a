"""Gemma 3's schedule against the layers of transformers."""

import pytest
import torch

import pezoo
from helpers import same_attention, transformers_layers

L, T = 32, 44
SIZES = {"d_model": 24, "n_heads": 3, "train_length": L}
IDS = torch.randint(16, (2, T), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("factor", [1, 8])
def test_attention_is_that_of_the_released_model(factor):
    rope = {"full_attention": {"rope_type": "linear", "factor": float(factor)}}
    sizes = {"num_hidden_layers": 12, "sliding_window": 8, "rope_parameters": rope}
    layers = transformers_layers("gemma3.Gemma3TextModel", sizes, IDS)
    same_attention(pezoo.create(f"gemma3:window=0.25:factor={factor}", n_layers=12, **SIZES), layers)


def test_settings():
    local = "rope:base=500+window:share=0.25:at=train,tune,test"
    assert pezoo.parse("gemma3:window=0.25:local_base=500:base=7000:factor=2") == pezoo.parse(
        {"layers": [local] * 5 + ["rope:base=7000+pi:factor=2"]}
    )
