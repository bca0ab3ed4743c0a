"""The shared Transformer: pre-norm, plain, and the same under every scheme. It never asks which encoding it holds.

Legend: B batch, L length, D d_model, H heads, d head_dim, V vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pezoo.compose import create
from pezoo.compose.prepared import Prepared
from pezoo.contract import Positions
from pezoo.errors import UserError
from pezoo.model.cache import Cache
from pezoo.model.config import TransformerConfig, to_config


class TokenShift(nn.Module):
    """Keys and values of each token mixed with those of the token before, where that is of the same document.

        k_t -> a_t k_{t-1} + (1 - a_t) k_t,  a_t = sigmoid(u_h . x_t);  v_t likewise, with gates of its own

    It is no encoding, and yet tells a model without positions what stood next to what. The first token of a document
    is mixed with zero, as in the authors' code.

    Source: the key and value shift of the Forgetting Transformer (Lin et al. 2025, arXiv 2503.02130), which GRAPE
    (arXiv 2512.07805) crosses with encodings.
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.gates = nn.Linear(d_model, 2 * n_heads, bias=False)

    def forward(
        self, x: Tensor, k: Tensor, v: Tensor, prepared: Prepared, layer: int, cache: Cache | None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (B, Hkv, L, d) as they go to attention; x is the input of the layer, (B, L, D)."""
        now = torch.cat([k, v], dim=1)
        start = None if cache is None else cache.last.get(layer)
        start = torch.zeros_like(now[:, :, :1]) if start is None else start
        if cache is not None:
            cache.last[layer] = now[:, :, -1:]
        before = torch.cat([start, now[:, :, :-1]], dim=2)
        before = before.masked_fill(prepared.begins_document[:, None, :, None], 0.0)
        share = self.gates(x).float().sigmoid().to(now.dtype).transpose(1, 2)[..., None]  # (B, 2 Hkv, L, 1)
        k, v = now.lerp(before, share).chunk(2, dim=1)
        return k, v


class Attention(nn.Module):
    """Projections around the scheme's attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads or config.n_heads
        self.head_dim, self.backend = config.head_width, config.backend
        self.split = [h * self.head_dim for h in (self.n_heads, self.n_kv_heads, self.n_kv_heads)]
        self.qkv = nn.Linear(config.d_model, sum(self.split), bias=config.attention_bias != "none")
        self.out = nn.Linear(self.split[0], config.d_model, bias=config.attention_bias == "all")
        self.norms_heads = config.qk_norm_scope == "head"
        normed = [self.head_dim, self.head_dim] if self.norms_heads else self.split[:2]
        self.q_norm, self.k_norm = (
            nn.RMSNorm(width, config.norm_eps) if config.qk_norm else nn.Identity() for width in normed
        )
        self.shift = TokenShift(config.d_model, self.n_kv_heads) if config.token_shift else None

    def forward(self, x: Tensor, prepared: Prepared, layer: int, cache: Cache | None) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        q, k, v = (self._heads(t) for t in self.qkv(x).split(self.split, -1))  # (B, H, L, d)
        if self.shift is not None:
            k, v = self.shift(x, k, v, prepared, layer, cache)
        if self.norms_heads:
            q, k = self.q_norm(q), self.k_norm(k)
        else:
            q, k = (self._heads(norm(t.transpose(1, 2).flatten(2))) for norm, t in ((self.q_norm, q), (self.k_norm, k)))
        read, first = prepared.read(layer, x), 0
        if cache is not None:
            q, k = prepared.turn(layer, q, k)
            first, later = prepared.seen(layer, cache.length)
            k, v, read = cache.extend(layer, k, v, read, first, later)
        out = prepared.attend(layer, q, k, v, self.backend, read=read, first_key=first)
        x = self.out(out.transpose(1, 2).flatten(2))
        return x

    def _heads(self, x: Tensor) -> Tensor:
        """(B, L, H d) -> (B, H, L, d)."""
        heads: Tensor = x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return heads


class FeedForward(nn.Module):
    """Two linear maps around an activation; three where it is gated."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gated = config.activation in ("swiglu", "geglu")
        width = config.d_ff or (8 * config.d_model // 3 if self.gated else 4 * config.d_model)
        functions: dict[str, Callable[[Tensor], Tensor]]
        functions = {"gelu": F.gelu, "geglu": F.gelu, "relu": F.relu, "silu": F.silu, "swiglu": F.silu}
        self.activation = functions[config.activation]
        bias = config.feed_forward_bias
        self.up = nn.Linear(config.d_model, 2 * width if self.gated else width, bias=bias)
        self.out = nn.Linear(width, config.d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        if self.gated:
            gate, x = self.up(x).chunk(2, -1)
            x = self.out(self.activation(gate) * x)
        else:
            x = self.out(self.activation(self.up(x)))
        return x


def _norm(config: TransformerConfig) -> nn.Module:
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.d_model, config.norm_eps)
    return nn.LayerNorm(config.d_model, 1e-5 if config.norm_eps is None else config.norm_eps)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm, self.attention = _norm(config), Attention(config)
        self.feed_forward_norm, self.feed_forward = _norm(config), FeedForward(config)
        self.parallel = config.parallel_residual
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, prepared: Prepared, layer: int, cache: Cache | None) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        attended = x + self.dropout(self.attention(self.attention_norm(x), prepared, layer, cache))
        read = x if self.parallel else attended
        x = attended + self.dropout(self.feed_forward(self.feed_forward_norm(read)))
        return x


class Transformer(nn.Module):
    """Token ids to logits, under a scheme.

    The body's weights come from a generator of `config.seed` alone, so that models of two schemes start from the same
    shared weights.

    Raises:
        UserError: if sizes do not fit, or the scheme cannot work.
    """

    def __init__(self, config: TransformerConfig | Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config = config if isinstance(config, TransformerConfig) else to_config(config)
        sizes = {name: getattr(config, name) for name in ("d_model", "n_heads", "n_layers", "head_dim", "train_length")}
        self.scheme = create(config.scheme, **sizes, causal=config.causal, seed=config.seed)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = _norm(config)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.checkpointing = False
        self.init_weights()
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def init_weights(self) -> None:
        """Normal 0.02, less by sqrt(2 n_layers) for projections back into the residual stream, as in GPT-2.

        Token embeddings have variance 1 / D instead, so that an absolute encoding, which multiplies them by sqrt(D),
        adds to tokens of its own size. The gates of a token shift are drawn last: all else starts as without them.
        Biases are zero.
        """
        generator = torch.Generator().manual_seed(self.config.seed)
        body = [(n, p) for n, p in self.named_parameters() if not n.startswith("scheme.") and p.ndim > 1]
        body.sort(key=lambda named: named[0].endswith("shift.gates.weight"))
        for name, weight in body:
            std = 0.02 / (2 * self.config.n_layers) ** 0.5 if name.endswith("out.weight") else 0.02
            if name == "embedding.weight":
                std = self.config.d_model**-0.5
            nn.init.normal_(weight, std=std, generator=generator)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def checkpoint_blocks(self, on: bool = True) -> None:
        """While gradients are kept, store what goes into each block alone, and compute the rest again in the backward.

        Gradients are the same, those of dropout too.
        """
        self.checkpointing = on

    def positions(self, batch: int, length: int, *, phase: str | None = None, **facts: Any) -> Positions:
        """Positions for `batch` rows of `length` tokens.

        Args:
            batch: rows (B).
            length: tokens in a row (L).
            phase: "train", "tune" or "test"; default: "test" in evaluation mode. While the module trains it may be
                left out if the scheme acts alike in training and in tuning.
            facts: rows, declared, documents and valid, as in `Scheme.positions`.

        Raises:
            UserError: if the phase must be said.
        """
        if phase is None and self.training and (names := self.scheme.differs_by_phase(("train", "tune"))):
            raise UserError(
                f"{', '.join(names)} acts differently in training and in tuning: pass phase='train' or phase='tune' to "
                "model.positions(batch, length, phase=...), and these positions to the model"
            )
        phase = phase or ("train" if self.training else "test")
        defaults: dict[str, Any] = {"device": self.embedding.weight.device, "seed": self.config.seed}
        return self.scheme.positions(batch, length, phase=phase, **defaults | facts)

    def cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` rows, whose sequences will be `length` tokens long."""
        return Cache(batch, length, self.head.weight.device)

    def forward(self, tokens: Tensor, positions: Positions | None = None, cache: Cache | None = None) -> Tensor:
        """Logits of the next token, (B, L, V): the output layer of what `hidden` gives."""
        logits: Tensor = self.head(self.hidden(tokens, positions, cache))
        return logits

    def hidden(self, tokens: Tensor, positions: Positions | None = None, cache: Cache | None = None) -> Tensor:
        """What the output layer reads, for those who want the logits of some tokens alone.

        Args:
            tokens: (B, L) ids.
            positions: of these tokens, or with a cache of its whole length, from `self.positions`; default: one
                document a row, unpadded. In training, schemes that draw random positions demand them, with rows; in
                evaluation mode rows are 0 ... B - 1.
            cache: continue from it, and add these tokens to it.

        Returns:
            (B, L, D).

        Raises:
            Undefined: if the scheme has no value for a position.
            UserError: if positions are missing, or do not fit.
        """
        batch, length = tokens.shape
        start = cache.filled if cache else 0
        if positions is None:
            rows = None if self.training else range(batch)
            positions = self.positions(batch, cache.length if cache else length, rows=rows)
        if cache is not None:
            if start + length > cache.length:
                raise UserError(f"the cache was made for {cache.length} tokens, not {start + length}")
            positions = positions.slice(start, start + length, start + length)
        seen = tokens if cache is None else cache.see(tokens)
        prepared = self.scheme.prepare(positions.replace(tokens=seen), cached=cache is not None)
        x: Tensor = self.dropout(prepared.embed(self.embedding(tokens)))
        for layer, block in enumerate(self.blocks):
            if self.checkpointing and torch.is_grad_enabled() and cache is None:
                x = checkpoint(block, x, prepared, layer, cache, use_reentrant=False)
            else:
                x = block(x, prepared, layer, cache)
        if cache is not None:
            cache.filled += length
        x = self.norm(x)
        return x
