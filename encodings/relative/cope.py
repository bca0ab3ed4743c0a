"""CoPE: positions count content: gates decide which keys a query counts, and the count picks a learned vector.

    p_ij = min(sum over m = j ... i of sigmoid(q_i . k_m / sqrt(d)), P - 1)
    l_ij = q_i . k_j / sqrt(d) + q_i . e(p_ij)

e: table of P vectors of each layer, shared by heads; between two whole counts it is linear. The query's own gate
counts, so p_ii lies between 0 and 1. Counts stop at the query's document.

Shapes: content (B, H, Lq, Lk) from products of q with the (P, d) table, gathered.
Training and testing: the same. It reads no coordinates, so extensions of these do not fit; masks leave the counts as
they are. An encoder is refused.

Source: Golovneva, Wang, Weston, Sukhbaatar 2024 (arXiv 2405.18719). P = 64 for language models of length 1024; table
zero at first.
Departures: none from its listing, where gates read q.k / sqrt(d) (its equation has no division). The authors'
repository divides the term of positions by sqrt(d) too, `divide=true`. P defaults to half the training length where
that is less than 64, so that all of e is trained.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pezoo.contract import Encoding, Positions, Shape, Traits
from pezoo.errors import UserError
from pezoo.registry import register, setting


def _rows(shape: Shape, config: "CoPE.Config") -> int:
    return config.max_position or max(2, min(64, shape.train_length // 2))


@register(
    "cope",
    title="Contextual position encoding (CoPE)",
    year=2024,
    authors="Golovneva, Wang, Weston, Sukhbaatar",
    arxiv="2405.18719",
    equation="l_ij = q_i.k_j / sqrt(d) + q_i.e(p_ij),  p_ij = sum_{m=j..i} sigmoid(q_i.k_m / sqrt(d))",
)
class CoPE(Encoding):
    """Learned vectors for how many tokens, of those that a query chooses to count, lie between it and a key."""

    traits = Traits(
        shift_invariant=True,
        bidirectional=False,
        contextual=True,
        parameters=lambda shape, c: _rows(shape, c) * shape.head_dim,
    )

    @dataclass
    class Config:
        """Settings of the table."""

        max_position: int | None = setting(
            None, "rows of the table (P); unset: 64, or half the training length", at_least=2
        )
        divide: bool = setting(False, "divide q.e by sqrt(d) too")

    def __init__(self, shape: Shape, config: Config) -> None:
        super().__init__(shape, config)
        if not shape.causal:
            raise UserError("cope is for decoders only: its counts run from a key to a later query")
        self.table = nn.Parameter(torch.zeros(_rows(shape, config), shape.head_dim))

    @classmethod
    def per_layer(cls, config: Config) -> bool:
        """Each layer has a table of its own."""
        return True

    def content(self, q: Tensor, k: Tensor, positions: Positions) -> Tensor:
        """q_i . e(p_ij)."""
        gates = torch.sigmoid((q @ k.transpose(-1, -2)).float() * self.scale())
        gates = gates * positions.visible()[:, None]
        counts = gates.flip(-1).cumsum(-1).flip(-1).clamp(max=len(self.table) - 1)
        products = (q @ self.table.T.to(q.dtype)).float()  # (B, H, Lq, P)
        rises = torch.diff(products, append=products[..., -1:])
        low = counts.floor()
        share, low = counts - low, low.long()
        logits = products.gather(-1, low) + share * rises.gather(-1, low)
        return logits * self.scale() if self.config.divide else logits

    def pair_logits(
        self, product: Tensor, q: Tensor, bias: Tensor | None, seen: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The same for a block. Where all counts of a row have come to P - 1, keys further back need no counting."""
        cap, n_queries = len(self.table) - 1, q.shape[-2]
        factor = self.scale() if self.config.divide else 1.0
        table = self.table.to(q.dtype) * factor
        table = torch.cat([table, torch.diff(table, dim=0, append=table[-1:])])
        products, rises = torch.bmm(q, table.T.expand(len(q), -1, -1)).chunk(2, dim=-1)
        near = n_queries + 2 * cap + cap // 4
        while True:
            gates = torch.sigmoid(product[..., :near])
            if seen is not None:
                gates[..., : seen.shape[-1]] *= seen[..., :near]
            counts = gates.cumsum(-1)
            if near >= product.shape[-1] or float(counts[..., -1].min()) >= cap:
                break
            near *= 2
        low = counts.clamp_(max=cap).long()
        share, rise = counts.frac_(), rises.gather(-1, low)
        product[..., :near] += products.gather(-1, low).addcmul_(share, rise)
        product[..., near:] += products[..., -1:]
        if bias is not None:
            product += bias
        return product, (gates, low, share, rise)

    def pair_gradients(
        self, gradient: Tensor, kept: tuple[Tensor, ...], q: Tensor, of_bias: bool
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """Gradients to the product, to q beside it, to the bias, and to the table."""
        gates, low, share, rise = kept
        factor = self.scale() if self.config.divide else 1.0
        near = gradient[..., : gates.shape[-1]]
        both = torch.complex(near, near * share)  # of what is at each count, and how much of it belongs to the next
        sums = torch.zeros(*q.shape[:-1], len(self.table), dtype=both.dtype).scatter_add_(-1, low, both)
        whole, moved = sums.real, sums.imag
        to_products = whole - moved
        to_products[..., 1:] += moved[..., :-1]
        to_products[..., -1] += gradient[..., gates.shape[-1] :].sum(-1)
        to_products *= factor
        to_gates = (near * rise).flip(-1).cumsum(-1).flip(-1)
        product = gradient.clone() if of_bias else gradient
        product[..., : gates.shape[-1]] += torch.ops.aten.sigmoid_backward(to_gates, gates)
        table = self.table.to(q.dtype)
        return product, to_products @ table, gradient, (to_products.flatten(0, 1).T @ q.flatten(0, 1),)
