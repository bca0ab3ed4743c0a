"""Tiny random decoders of the library transformers, one for each family."""

from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 97
LENGTH = 64
"""Tokens that the models count as their training length."""
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
    "head_dim": 16,
    "n_embd": 64,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": LENGTH,
    "n_inner": 48,
    "ffn_dim": 48,
    "word_embed_proj_dim": 64,
    "sliding_window": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}
"""Of each, where its config has such a setting."""


def tiny(family: str, seed: int = 0, **settings: Any) -> Any:
    """A model in evaluation mode; weights of deviation 0.2, since with less its logits hardly depend on positions."""
    known = AutoConfig.for_model(family)
    names = known.to_dict().keys() | getattr(known, "attribute_map", {}).keys()
    config = AutoConfig.for_model(family, **{k: v for k, v in SIZES.items() if k in names} | settings)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    model.generation_config.eos_token_id = None  # so that all rows go on to the end
    return model


def words(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random tokens, (B, L), none of them special."""
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


transformers.logging.set_verbosity_error()
