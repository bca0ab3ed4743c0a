"""gpt-oss's schedule against the layers of transformers."""

import pytest
import torch

import pezoo
from helpers import member, same_attention, transformers_layers

L, T = 32, 44
SIZES = {"d_model": 24, "n_heads": 3, "train_length": L}
IDS = torch.randint(16, (2, T), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("factor", [None, 4.0])
def test_attention_is_that_of_the_released_model(factor):
    rope = {"rope_type": "yarn", "factor": factor or T / L, "truncate": False, "original_max_position_embeddings": L}
    sizes = {"num_hidden_layers": 4, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 8}
    layers = transformers_layers("gpt_oss.GptOssModel", sizes | {"rope_parameters": rope}, IDS)
    scheme = pezoo.create(f"gpt_oss:window=0.25{f':factor={factor}' if factor else ''}", n_layers=4, **SIZES)
    for i, (module, *_) in enumerate(layers):
        member(scheme, "sink_logits", layer=i // 2, part=i % 2).s.data = module.sinks.data
    same_attention(scheme, layers)


def test_yarn_rests_in_training():
    assert [m.name for m in pezoo.parse("gpt_oss").at("train").all_members()] == ["rope", "sink_logits", "window"]
