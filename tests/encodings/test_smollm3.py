"""SmolLM3's schedule against the layers of transformers."""

import torch

import pezoo
from helpers import same_attention, transformers_layers

L, T = 32, 44
SIZES = {"d_model": 24, "n_heads": 3, "train_length": L}
IDS = torch.randint(16, (2, T), generator=torch.Generator().manual_seed(0))


def test_attention_is_that_of_the_released_model():
    layers = transformers_layers("smollm3.SmolLM3Model", {"num_hidden_layers": 8}, IDS)
    same_attention(pezoo.create("smollm3", n_layers=8, **SIZES), layers)


def test_settings():
    assert pezoo.parse("smollm3:base=10000") == pezoo.parse({"layers": ["rope", "rope", "rope", "nope"]})
