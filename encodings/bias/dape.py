"""DAPE: a small network corrects the logits of all heads of a pair, bias and content together.

    l_ij = A_ij + B_ij + f([A_ij ; B_ij]),   A_ij = q_i . k_j / sqrt(d),   B_ij: the base encoding's bias

A and B hold all heads of a pair (i, j). f: 2H -> width -> H with one leaky ReLU mixes them; pairs do not see each
other. Each layer has a network of its own. `reads=sum`: f(A + B) for f([A ; B]), f: H -> width -> H, which needs no
bias: over RoPE, A is the product of turned q and k, over NoPE the plain one.

Shapes: logits (B, H, Lq, Lk), bias (R, H, Lq, Lk) -> (B, H, Lq, Lk). Training and testing: the same. No fused
attention: the logits must be built.

Source: Zheng et al. 2024 (arXiv 2405.14722), over ALiBi, KERPLE and FIRE; first released as "CAPE", which is not the
CAPE of 2021. Width 32. The authors' code has it over RoPE and over no encoding too. Its FIRE has a leaky ReLU:
`fire:activation=leaky_relu+dape`.
Departures: the last layer starts at zero, so that training starts from the base encoding (the authors' code keeps the
usual initial values), and has no offset, which softmax would ignore.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pezoo.contract import Encoding, Extension, Positions, Shape, Traits, overrides
from pezoo.registry import register, setting

PAIRS = 2**19
"""Pairs (i, j) that the network takes at a time, to bound the memory of its hidden units."""
TILE = 2**14
"""The same in blocks with gradients by hand, whose hidden units should stay in a cache."""
KEPT = 2**15
"""Pairs of a block whose hidden units are kept for their gradients, at most; those of more are made again."""


def _inputs(shape: Shape, config: "DAPE.Config") -> int:
    return shape.n_heads * (1 if config.reads == "sum" else 2)


@register(
    "dape",
    title="Data-adaptive positional encoding (DAPE)",
    year=2024,
    authors="Zheng, Gao, Shi, Huang, Li, Xiong, Ren, Ng, Jiang, Li, Li",
    arxiv="2405.14722",
    equation="l = A + B + f([A ; B]),  A = q.k / sqrt(d),  B: the base encoding's bias",
)
class DAPE(Extension):
    """A correction to the logits by a small network over those of all heads."""

    traits = Traits(
        shift_invariant=True,
        parameters=lambda shape, c: (_inputs(shape, c) + 1 + shape.n_heads) * c.width,
        neutral={},
    )
    default_at = ("train", "tune", "test")

    @dataclass
    class Config:
        """Settings of the network."""

        width: int = setting(32, "hidden units", at_least=1)
        reads: Literal["both", "sum"] = setting("both", "q.k and bias apart, or their sum, which needs no bias")

    def __init__(self, shape: Shape, config: Config, at: tuple[str, ...] | None = None) -> None:
        super().__init__(shape, config, at)
        self.first = self.layer(_inputs(shape, config), config.width, bias=True)
        self.last = self.layer(config.width, shape.n_heads, bias=False)
        nn.init.zeros_(self.last.weight)

    def layer(self, inputs: int, outputs: int, bias: bool) -> nn.Linear | nn.Conv2d:
        """One layer of the network."""
        return nn.Linear(inputs, outputs, bias=bias)

    @classmethod
    def per_layer(cls, config: Config) -> bool:
        """Each layer has a network of its own."""
        return True

    def refuses(self, encoding: Encoding) -> str | None:
        """Encodings without a bias, unless the network reads sums."""
        if self.config.reads == "sum" or overrides(encoding, "bias") or overrides(encoding, "distance_bias"):
            return None
        name = encoding.name
        return f"{name} has no bias for the network to read beside q.k; add the setting reads=sum, which needs none"

    def refuses_after(self, earlier: Extension) -> str | None:
        """What has joined the bias to q.k, if the network reads both apart: it would change nothing."""
        if self.config.reads == "sum" or not overrides(earlier, "adapt"):
            return None
        return f"{self.name} finds no bias apart from q.k to read; give {self.name} the setting reads=sum"

    @property
    def offsets(self) -> Tensor:
        """What the first layer adds to each hidden unit, (width,)."""
        bias = self.first.bias
        assert bias is not None
        return bias

    def correction(self, inputs: list[Tensor], positions: Positions) -> Tensor:
        """What the network makes of tensors (B or R, H, Lq, Lk) side by side, (B, H, Lq, Lk)."""
        weights = self.first.weight.float().split(self.shape.n_heads, dim=1)
        hidden = F.linear(inputs[0].movedim(1, -1), weights[0], self.offsets.float())
        for tensor, weight in zip(inputs[1:], weights[1:], strict=True):
            hidden = hidden + F.linear(tensor.movedim(1, -1), weight)  # (B, Lq, Lk, width)
        hidden = F.leaky_relu(hidden, inplace=True)
        return F.linear(hidden, self.last.weight.float()).movedim(-1, 1)

    def adapt(self, logits: Tensor, bias: Tensor | None, positions: Positions) -> Tensor:
        """A + B + f([A ; B]), or A + B + f(A + B)."""
        total = super().adapt(logits, bias, positions)
        if self.config.reads == "sum":
            inputs = [total]
        elif bias is None:
            return total
        else:
            inputs = [logits, bias]
        rows, n_queries, n_keys = max(1, PAIRS // (logits.shape[0] * logits.shape[-1])), *logits.shape[2:]
        changed = []
        for start in range(0, n_queries, rows):
            stop = min(start + rows, n_queries)
            here = positions.slice(start, stop, n_keys)
            changed.append(total[:, :, start:stop] + self.correction([t[:, :, start:stop] for t in inputs], here))
        return torch.cat(changed, dim=2)

    def pair_logits(
        self, product: Tensor, q: Tensor, bias: Tensor | None, seen: Tensor | None
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """The same for a block."""
        if bias is None and self.config.reads == "both":
            return product, ()
        logits, n_heads = torch.empty_like(product), len(product)
        keeps, kept = product[0].numel() <= KEPT, []
        for part, inputs, hidden in self.parts(product, bias):
            here = logits[..., part]
            total = inputs[:n_heads]
            if self.config.reads == "both":
                total = total + inputs[n_heads:-1]
            here.copy_(torch.addmm(total, self.last.weight.to(q.dtype), hidden.T).view(here.shape))
            if keeps:
                kept.append((part, inputs, hidden))
        return logits, (product, bias, kept)

    def parts(self, product: Tensor, bias: Tensor | None) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Some keys of a block, what the network reads of them and its hidden units, a column and a row per pair."""
        dtype = product.dtype
        first = torch.cat([self.first.weight, self.offsets[:, None]], dim=1).to(dtype)
        size = max(1, TILE // product.shape[1])
        ones = product.new_ones(1, product.shape[1], size)
        for start in range(0, product.shape[-1], size):
            part = slice(start, start + size)
            read = [product[..., part]] if bias is None else [product[..., part], bias[..., part]]
            if self.config.reads == "sum" and bias is not None:
                read = [read[0] + read[1]]
            inputs = torch.cat([*read, ones[..., : read[0].shape[-1]]]).flatten(1)
            yield part, inputs, F.leaky_relu(inputs.T @ first.T, inplace=True)

    def pair_gradients(
        self, gradient: Tensor, kept: tuple[Any, ...], q: Tensor, of_bias: bool
    ) -> tuple[Tensor, None, Tensor, tuple[Tensor, ...]]:
        """Gradients to the product, none to q beside it, to the bias, and to the weights."""
        if not kept:
            return gradient, None, gradient, tuple(torch.zeros_like(p) for p in self.parameters())
        n_heads, last = len(gradient), self.last.weight.to(q.dtype)
        twice = self.config.reads == "both" and of_bias
        to_first, to_last = q.new_zeros(_inputs(self.shape, self.config) + 1, last.shape[1]), torch.zeros_like(last)
        changed = gradient.new_empty(2 if twice else 1, *gradient.shape)
        for part, inputs, hidden in kept[2] or self.parts(*kept[:2]):
            here = gradient[..., part]
            flat = here.flatten(1)  # (H, pairs)
            to_hidden = flat.T @ last
            torch.ops.aten.leaky_relu_backward.grad_input(to_hidden, hidden, 0.01, True, grad_input=to_hidden)
            to_first += inputs @ to_hidden
            to_last += flat @ hidden
            read = self.first.weight.to(q.dtype)[:, : len(changed) * n_heads].T @ to_hidden.T
            torch.add(here, read.view(len(changed), *here.shape), out=changed[..., part])
        return changed[0], None, changed[-1], (to_first[:-1].T, to_first[-1], to_last)
