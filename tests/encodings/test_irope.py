"""iRoPE against the layers of transformers' Llama 4."""

import torch

import pezoo
from helpers import same_attention, transformers_layers

L, T = 32, 44
SIZES = {"d_model": 24, "n_heads": 3, "train_length": L}
IDS = torch.randint(16, (2, T), generator=torch.Generator().manual_seed(0))


def test_attention_is_that_of_llama4():
    sizes = {"attention_chunk_size": 8, "floor_scale": L, "use_qk_norm": False}
    sizes |= {"num_hidden_layers": 8, "num_local_experts": 2, "intermediate_size_mlp": 8}
    layers = transformers_layers("llama4.Llama4TextModel", sizes, IDS)
    same_attention(pezoo.create("irope:chunk=0.25", n_layers=8, **SIZES), layers, half=False)


def test_chunks_are_a_share_of_the_training_length():
    for share, chunk in (("", 1), (":chunk=0.125", 4), (":chunk=1", L)):
        scheme = pezoo.create(f"irope{share}", n_layers=4, **SIZES)
        prepared = scheme.prepare(scheme.positions(1, T, phase="train"))
        place = torch.arange(T)
        alike = (place[:, None] // chunk == place // chunk) & (place[:, None] >= place)
        for layer, sees in enumerate([alike, alike, alike, place[:, None] >= place]):
            assert torch.equal(prepared.at(layer)[0].composition.visible()[0], sees)


def test_the_temperature_rests_in_training():
    assert str(pezoo.parse("irope").at("train").layers[-1]) == "nope"
