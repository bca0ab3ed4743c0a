"""NoPE: no positional encoding; in a decoder the causal mask alone tells order.

    l_ij = q_i . k_j / sqrt(d)        q_i, k_j: query and key of head_dim d

Shapes: nothing is added anywhere. Training and testing: the same.

Source: Haviv et al. 2022 (arXiv 2203.16634); Kazemnejad et al. 2023 (arXiv 2305.19466). In an encoder it cannot tell
order (permutation-equivariant).
"""

from pezoo.contract import Encoding, Traits
from pezoo.registry import register


@register(
    "nope",
    title="No positional encoding",
    year=2022,
    authors="Haviv, Ram, Press, Izsak, Levy",
    arxiv="2203.16634",
    equation="l_ij = q_i.k_j / sqrt(d)",
)
class NoPE(Encoding):
    """No positional encoding: order comes from the causal mask."""

    traits = Traits(shift_invariant=True, bidirectional=False)
