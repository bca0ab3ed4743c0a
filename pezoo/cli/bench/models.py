"""What is measured: pezoo's Transformer, a plain one without positions, and those of other libraries, of one size.

Legend: B batch, L length, H heads, d head_dim.
"""

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pezoo.model.transformer import Transformer

VOCABULARY = 256
SIZES: dict[str, Any] = {"d_model": 128, "n_layers": 4, "n_heads": 4}
"""Of every model that goals speak of."""
LLAMA: dict[str, Any] = {"activation": "swiglu", "norm": "rmsnorm"}
"""Llama's body in pezoo."""
HIDDEN = 8 * 128 // 3
"""Llama's feed-forward width."""

Run = Callable[[], Any]
Logits = Callable[[Tensor], Tensor]
"""Token ids (B, L) to logits (B, L, V)."""


def installed(library: str) -> bool:
    """Whether a library can be imported."""
    return find_spec(library) is not None


def build(scheme: Any, device: str = "cpu", train_length: int = 64, **config: Any) -> Transformer:
    """A model of the quickstart's size, or of another."""
    facts = {"d_model": 64, "n_layers": 4, "n_heads": 4} | config
    return Transformer({"scheme": scheme, "train_length": train_length, **facts}).to(device)


def long_model(scheme: str, length: int, device: str = "cpu", share: int = 16, **config: Any) -> Transformer:
    """A model in evaluation mode, trained on a share of the length; on all of it where the scheme then ends."""
    model = build(scheme, device, max(1, length // share), **config)
    if model.scheme.undefined(length):  # a table must be as long as what it is asked for
        model = build(scheme, device, length, **config)
    return model.eval()


def ids(rows: int, length: int, device: torch.device | str = "cpu") -> Tensor:
    """Random tokens, the same each time, (B, L)."""
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1)).to(device)


def noise() -> Any:
    """A text of random bytes, the same each time, as a corpus has it."""
    import numpy as np

    from pezoo.data import Tokens

    text = np.random.default_rng(0).integers(0, VOCABULARY, 1 << 18).astype(np.uint8)
    return Tokens(text, np.array([0, len(text)]), ["noise"])


def forward(model: Transformer, length: int, device: str = "cpu") -> Run:
    """One text of so many tokens to logits, without gradients."""
    tokens = ids(1, length, device)
    return torch.inference_mode()(lambda: model(tokens, model.positions(1, length, rows=(0,))))


def of_pezoo(model: Transformer) -> Logits:
    """Logits in training; positions are made anew for each batch, as a training does."""

    def logits(tokens: Tensor) -> Tensor:
        rows = range(len(tokens))
        found: Tensor = model(tokens, model.positions(*tokens.shape, phase="train", rows=rows))
        return found

    return logits


def training(logits: Logits, parameters: Iterable[nn.Parameter], length: int, tokens: int) -> Run:
    """A training step on a batch of so many tokens: forward, loss, backward, clipping, AdamW."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    batch = ids(max(1, tokens // length), length + 1, parameters[0].device)

    def step() -> None:
        loss = F.cross_entropy(logits(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


def pezoo_training(scheme: str, length: int, tokens: int, **config: Any) -> Run:
    """A training step of pezoo's Transformer."""
    model = build(scheme, train_length=length, **SIZES | config).train()
    return training(of_pezoo(model), model.parameters(), length, tokens)


class Plain(nn.Module):
    """The same Transformer without positions, as briefly as PyTorch allows: the floor of what pezoo can take."""

    def __init__(self) -> None:
        super().__init__()
        width, self.n_heads = SIZES["d_model"], SIZES["n_heads"]
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width, bias=False),
                    "out": nn.Linear(width, width, bias=False),
                    "feed_forward": nn.Sequential(
                        nn.LayerNorm(width),
                        nn.Linear(width, 4 * width, bias=False),
                        nn.GELU(),
                        nn.Linear(4 * width, width, bias=False),
                    ),
                }
            )
            for _ in range(SIZES["n_layers"])
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) ids to logits (B, L, V)."""
        x = self.embedding(tokens)
        for block in self.blocks:
            qkv = block["qkv"](block["norm"](x)).unflatten(-1, (3, self.n_heads, -1))
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + block["out"](attended.transpose(1, 2).flatten(2))
            x = x + block["feed_forward"](x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def operations(length: int, tokens: int) -> float:
    """Floating-point operations of a training step of `Plain`: of products of matrices, and half of all pairs."""
    rows = max(1, tokens // length)
    width, layers = SIZES["d_model"], SIZES["n_layers"]
    weights = 12 * layers * width**2 + VOCABULARY * width
    return 6.0 * weights * rows * length + 3.0 * 2 * layers * rows * length**2 * width


def llama(length: int) -> Any:
    """Llama of transformers, with fused attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads, width = SIZES["n_heads"], SIZES["d_model"]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=HIDDEN,
        num_hidden_layers=SIZES["n_layers"],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=length,
    )
    config._attn_implementation = "sdpa"
    return LlamaForCausalLM(config)


def x_transformer(length: int, **options: Any) -> nn.Module:
    """A decoder of x-transformers without absolute positions."""
    from x_transformers import Decoder, TransformerWrapper

    heads, width = SIZES["n_heads"], SIZES["d_model"]
    layers = Decoder(dim=width, depth=SIZES["n_layers"], heads=heads, attn_dim_head=width // heads, **options)
    model: nn.Module = TransformerWrapper(
        num_tokens=VOCABULARY, max_seq_len=length, use_abs_pos_emb=False, attn_layers=layers
    )
    return model
