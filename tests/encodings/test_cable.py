"""CABLE against its sums, pair by pair in float64, and as what FoX and ALiBi are cases of."""

import math

import pytest
import torch

import pezoo
from helpers import member, vectors
from pezoo import UserError

H, D, L = 3, 4, 11
WIDTH = H * D


def created(scheme="cable", **facts):
    built = pezoo.create(scheme, d_model=WIDTH, n_heads=H, n_layers=2, train_length=8, **facts).eval()
    for i, parameter in enumerate(built.parameters()):
        parameter.data += 0.4 * vectors(*parameter.shape, seed=i)
    return built


def inputs():
    q, k, v = vectors(3, 2, H, L, D).unbind()
    return q, k, v, vectors(2, L, WIDTH, seed=5)


def softplus(z):
    return math.log1p(math.exp(z))


@pytest.mark.parametrize("gate", ["relu", "softplus"])
@pytest.mark.parametrize("weight", [True, False])
@pytest.mark.parametrize("kernel", ["linear", "log"])
def test_it_is_its_sum_of_gates(gate, weight, kernel):
    scheme, (q, k, v, x) = created(f"cable:gate={gate}:weight={weight}:kernel={kernel}"), inputs()
    own = member(scheme, "cable", 1)
    z = x.double() @ own.added.weight.detach().double().T
    u = x.double() @ own.weight.weight.detach().double().T if weight else None
    logits = torch.full((2, H, L, L), -torch.inf, dtype=torch.float64)
    for r, h, i in ((r, h, i) for r in range(2) for h in range(H) for i in range(L)):
        for j in range(i + 1):
            f = [float(z[r, t, h]) for t in range(j + 1, i + 1)]
            b = sum(max(0.0, n) if gate == "relu" else softplus(n) for n in f)
            b *= softplus(float(u[r, i, h])) if weight else 1
            b = b if kernel == "linear" else math.log(1 + b**2)
            logits[r, h, i, j] = float(q[r, h, i].double() @ k[r, h, j].double()) / D**0.5 - b
    torch.testing.assert_close(scheme.logits(q, k, layer=1, x=x).double(), logits, atol=2e-6, rtol=1e-5)
    for backend in ("eager", "sdpa", "chunked"):
        came = pezoo.attend(scheme, q, k, v, layer=1, x=x, backend=backend)
        torch.testing.assert_close(came.double(), logits.softmax(-1) @ v.double(), atol=2e-6, rtol=1e-5)


def test_sums_stop_at_documents():
    scheme, (q, k, _, x) = created(), inputs()
    positions = scheme.positions(2, L, documents=torch.tensor([[0] * 4 + [1] * 7] * 2))
    packed = scheme.logits(q, k, x=x, positions=positions)[:, :, 4:, 4:]
    alone = scheme.logits(q[:, :, 4:], k[:, :, 4:], x=x[:, 4:])
    torch.testing.assert_close(packed, alone, atol=1e-6, rtol=1e-6)
    x[:, :4] *= 1e4
    assert torch.equal(scheme.logits(q, k, x=x, positions=positions)[:, :, 4:, 4:], packed)


def test_without_weights_softplus_gates_are_those_of_fox():
    cable, fox, (q, k, v, x) = created("cable:gate=softplus:weight=false"), created("fox"), inputs()
    for layer in range(2):
        gate = member(fox, "fox", layer).gate
        gate.weight.data, gate.bias.data = -member(cable, "cable", layer).added.weight.data, torch.zeros(H)
        expected = pezoo.attend(fox, q, k, v, layer=layer, x=x)
        torch.testing.assert_close(pezoo.attend(cable, q, k, v, layer=layer, x=x), expected, atol=1e-6, rtol=1e-5)


def test_gates_of_one_and_weights_of_a_head_are_alibi():
    cable, (q, k, v, _) = created(), inputs()
    alibi = pezoo.create("alibi:slopes=learned", d_model=WIDTH, n_heads=H, n_layers=2, train_length=8)
    own, slopes = member(cable, "cable"), member(alibi, "alibi").slopes.detach()
    own.added.weight.data[:], own.weight.weight.data[:] = 0, 0
    own.added.weight.data[:, 0], own.weight.weight.data[:, 0] = 1, slopes.expm1().log()
    x = torch.zeros(2, L, WIDTH)
    x[..., 0] = 1
    expected = pezoo.attend(alibi, q, k, v)
    torch.testing.assert_close(pezoo.attend(cable, q, k, v, x=x), expected, atol=1e-6, rtol=1e-5)


def test_it_starts_small():
    own = member(pezoo.create("cable", d_model=64, n_heads=8, n_layers=1, train_length=8), "cable")
    for linear in (own.added, own.weight):
        assert linear.bias is None
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize(
    ("scheme", "facts", "message"),
    [
        ("cable", {"causal": False}, "cable is for decoders only"),
        ("cable+pi", {}, r"pi does not fit cable: it needs coordinates"),
    ],
)
def test_what_cannot_work_is_refused(scheme, facts, message):
    with pytest.raises(UserError, match=message):
        created(scheme, **facts)
