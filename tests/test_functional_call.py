"""Schemes with other parameters than their own: what the backward pass computes again is computed with those."""

import pytest
import torch
from test_learned_table import assert_close, make
from torch.autograd import grad

from pezoo import attention
from pezoo.contract import Positions


class Attention(torch.nn.Module):
    def __init__(self, scheme, *given):
        super().__init__()
        self.scheme, self.given = scheme, given

    def forward(self, backend):
        positions, *tensors = self.given
        return self.scheme.prepare(positions).attend(0, *tensors, backend)


@pytest.mark.parametrize(
    ("text", "packed", "learned"),
    [
        ("cope", False, ""),  # blocks with gradients by hand
        ("kerple+dape", False, ""),
        ("kerple+dape", True, "dape"),  # a bias that does not learn is made block by block
        ("t5+dape:reads=sum", True, "dape"),
        ("shaw", True, ""),  # chunks that are computed again
        ("rope+alibi+dape_v2", False, ""),
        ("t5+stick_breaking", True, ""),
    ],
)
def test_gradients_are_those_of_the_parameters_of_the_call(text, packed, learned, monkeypatch):
    """Not of those that the scheme has by the time of the backward pass: against `eager` of a scheme that has them."""
    monkeypatch.setattr(attention, "CHUNK", 64)
    own, other = make(text, 300), make(text, 300)
    before = [p.clone() for p in own.parameters()]
    for name, parameter in other.named_parameters():
        parameter.data.add_(0.5 * torch.rand_like(parameter))
        parameter.requires_grad_(learned in name)
    q, k, v, upstream = torch.randn(4, 1, 3, 300, 8)
    facts = {"documents": (torch.arange(300) // 170)[None]} if packed else {}
    given = Positions.build(300, phase="train", **facts), q, k, v
    theirs = {
        f"scheme.{name}": p.detach().clone().requires_grad_(learned in name) for name, p in other.named_parameters()
    }
    out = torch.func.functional_call(Attention(own, *given), theirs, ("chunked",))
    found = grad(out, [p for p in theirs.values() if p.requires_grad], upstream)
    wanted = Attention(other, *given)("eager")
    expected = grad(wanted, [p for p in other.parameters() if p.requires_grad], upstream)
    assert_close([out, *found], [wanted, *expected], 1e-4)
    assert all(map(torch.equal, own.parameters(), before))
