"""RNoPE-SWA against the layers of transformers' Cohere 2 and EXAONE 4."""

import pytest
import torch

import pezoo
from helpers import same_attention, transformers_layers

L, T = 32, 44
SIZES = {"d_model": 24, "n_heads": 3, "train_length": L}
IDS = torch.randint(16, (2, T), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("model", "half"), [("cohere2.Cohere2Model", False), ("exaone4.Exaone4Model", True)])
def test_attention_is_that_of_released_models(model, half):
    layers = transformers_layers(model, {"num_hidden_layers": 8, "sliding_window": L // 2}, IDS)
    same_attention(pezoo.create("rnope_swa", n_layers=8, **SIZES), layers, half)


def test_settings():
    assert pezoo.parse("rnope_swa:window=0.25:base=500") == pezoo.parse(
        {"layers": ["rope:base=500+window:share=0.25:at=train,tune,test"] * 3 + ["nope"]}
    )
