"""Gemma 4's schedule against the layers of transformers, with heads of one width."""

import torch

import pezoo
from helpers import same_attention, transformers_layers

L, T = 32, 44
SIZES = {"d_model": 24, "n_heads": 3, "train_length": L}
IDS = torch.randint(16, (2, T), generator=torch.Generator().manual_seed(0))


def test_attention_is_that_of_the_released_model():
    sizes = {"num_hidden_layers": 12, "sliding_window": 8, "head_dim": 16, "global_head_dim": 16}
    sizes |= {"vocab_size_per_layer_input": 16, "hidden_size_per_layer_input": 4}
    layers = transformers_layers("gemma4.Gemma4TextModel", sizes, IDS)
    same_attention(pezoo.create("gemma4:window=0.25", n_layers=12, head_dim=16, **SIZES), layers)


def test_a_quarter_of_the_pairs_turns():
    scheme = pezoo.create("gemma4", n_layers=6, d_model=32, n_heads=2, train_length=L)
    turning = [int((scheme.frequencies(L, layer=layer) > 0).sum()) for layer in range(6)]
    assert turning == [8, 8, 8, 8, 8, 2]
