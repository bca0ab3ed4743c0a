"""CARoPE against its sums of powers in float64, pair by pair, and as the RoPE that it starts as."""

import cmath
import math

import pytest
import torch

import pezoo
from helpers import member, vectors
from pezoo import UserError

H, D, L = 3, 6, 12
WIDTH = H * D
SIZES = {"d_model": WIDTH, "n_heads": H, "n_layers": 2, "train_length": 8}


def created(text="carope", **sizes):
    built = pezoo.create(text, **SIZES | sizes).eval()
    for i, parameter in enumerate(built.parameters()):
        parameter.data += 0.5 * vectors(*parameter.shape, seed=i)
    return built


def inputs():
    q, k, v = vectors(3, 1, H, L, D).unbind()
    return q, k, v, vectors(1, L, WIDTH, seed=5)


def by_pairs(own, q, k, x, starts, ahead=False):
    """Logits of one row: pairs of channels as complex numbers, each turned by its own sum from the document's start."""
    w, b = own.slow.weight.detach().double(), own.slow.bias.tolist()
    z = (x[0].double() @ w.T).tolist()
    f = [[1 / (math.log1p(math.exp(z[t][h] + b[h])) + 1) for h in range(H)] for t in range(L)]
    logits = torch.full((1, H, L, L), -torch.inf, dtype=torch.float64)
    for h, i in ((h, i) for h in range(H) for i in range(L)):
        for j in range(starts[i], L if ahead else i + 1):
            found = 0.0
            for c in range(D // 2):
                turned = []
                for t, p in ((q, i), (k, j)):
                    phase = sum(f[s][h] ** c for s in range(starts[p], p + 1))
                    turned.append(complex(*t[0, h, p, 2 * c : 2 * c + 2].tolist()) * cmath.exp(1j * phase))
                found += (turned[0] * turned[1].conjugate()).real
            logits[0, h, i, j] = found / math.sqrt(D)
    return logits


def test_pairs_turn_by_powers_of_what_tokens_set():
    scheme, (q, k, v, x) = created(), inputs()
    expected = by_pairs(member(scheme, "carope", 1), q, k, x, [0] * L)
    torch.testing.assert_close(scheme.logits(q, k, layer=1, x=x).double(), expected, atol=2e-5, rtol=1e-5)
    out = expected.softmax(-1) @ v.double()
    for backend in ("eager", "sdpa", "chunked"):
        came = pezoo.attend(scheme, q, k, v, layer=1, x=x, backend=backend)
        torch.testing.assert_close(came.double(), out, atol=2e-5, rtol=1e-5)


def test_in_an_encoder():
    scheme, (q, k, _, x) = created(causal=False), inputs()
    expected = by_pairs(member(scheme, "carope"), q, k, x, [0] * L, ahead=True)
    torch.testing.assert_close(scheme.logits(q, k, x=x).double(), expected, atol=2e-5, rtol=1e-5)


def test_sums_stop_at_documents():
    scheme, (q, k, _, x) = created(), inputs()
    positions = scheme.positions(1, L, documents=torch.tensor([[0] * 2 + [1] * 7 + [2] * 3]))
    expected = by_pairs(member(scheme, "carope"), q, k, x, [0] * 2 + [2] * 7 + [9] * 3)
    torch.testing.assert_close(scheme.logits(q, k, x=x, positions=positions).double(), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("base", "head_dim"), [(10000, 6), (500, 4), (10000, 7), (1e9, 4), (1.0001, 6)])
def test_it_starts_as_rope(base, head_dim):
    sizes = SIZES | {"head_dim": head_dim}
    q, k = vectors(2, 1, H, 60, head_dim)
    came = pezoo.create(f"carope:base={base}", **sizes).logits(q, k, x=vectors(1, 60, WIDTH))
    expected = pezoo.create(f"rope:base={base}", **sizes).logits(q, k)
    torch.testing.assert_close(came, expected, atol=1e-4, rtol=1e-4)


def test_it_learns_from_its_start():
    scheme, (q, k, v, x) = pezoo.create("carope", **SIZES), inputs()
    pezoo.attend(scheme, q, k, v, x=x).square().sum().backward()
    for parameter in member(scheme, "carope").parameters():
        assert parameter.grad.all()


def test_what_cannot_work_is_refused():
    with pytest.raises(UserError, match="head_dim = 3 has none"):
        created(head_dim=3)
    with pytest.raises(UserError, match=r"pi does not fit carope: it needs coordinates"):
        created("carope+pi")
