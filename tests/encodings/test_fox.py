"""FoX: the paper's product of gates by pairs in float64, x-transformers, and ALiBi as what its ablations are."""

import math

import pytest
import torch

import pezoo
from helpers import member, vectors
from pezoo import UserError

H, D, L = 3, 4, 11


def created(scheme="fox", n_heads=H, **facts):
    built = pezoo.create(scheme, d_model=n_heads * D, n_heads=n_heads, n_layers=2, train_length=8, **facts).eval()
    for i, parameter in enumerate(built.parameters()):
        parameter.data += 0.4 * vectors(*parameter.shape, seed=i)
    return built


def inputs(n_heads=H):
    q, k, v = vectors(3, 2, n_heads, L, D).unbind()
    return q, k, v, vectors(2, L, n_heads * D, seed=5)


def test_a_key_is_multiplied_by_the_gates_of_all_later_tokens_up_to_the_query():
    scheme, (q, k, v, x) = created(), inputs()
    gate = member(scheme, "fox", 1).gate
    w, b, x64 = gate.weight.tolist(), gate.bias.tolist(), x.tolist()
    expected = torch.zeros(2, H, L, D, dtype=torch.float64)
    for r, h, i in ((r, h, i) for r in range(2) for h in range(H) for i in range(L)):
        weights = []
        for j in range(i + 1):
            kept = math.prod(
                1 / (1 + math.exp(-b[h] - sum(m * n for m, n in zip(w[h], x64[r][t], strict=True))))
                for t in range(j + 1, i + 1)
            )
            weights.append(kept * math.exp(float(q[r, h, i].double() @ k[r, h, j].double()) / D**0.5))
        expected[r, h, i] = sum(n / sum(weights) * v[r, h, j].double() for j, n in enumerate(weights))
    for backend in ("eager", "sdpa", "chunked"):
        came = pezoo.attend(scheme, q, k, v, layer=1, x=x, backend=backend)
        torch.testing.assert_close(came.double(), expected, atol=2e-6, rtol=1e-5)


def test_x_transformers_adds_the_same():
    theirs = pytest.importorskip("x_transformers.x_transformers").DataDependentAlibi(H * D, H)
    scheme, (q, k, _, x) = created(), inputs()
    linear, gate = theirs.to_forget_gates[0], member(scheme, "fox", 1).gate
    linear.load_state_dict(gate.state_dict())
    seen = torch.ones(L, L, dtype=torch.bool).tril()
    came = scheme.logits(q, k, layer=1, x=x) - created("nope").logits(q, k, layer=1)
    torch.testing.assert_close(came[..., seen], theirs(x)[..., seen], atol=1e-5, rtol=1e-5)


def test_gates_start_near_one_half():
    built = pezoo.create("fox", d_model=64, n_heads=4, n_layers=1, train_length=8)
    gate = member(built, "fox").gate
    assert not gate.bias.any()
    assert gate.weight.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("n_heads", [1, 3, 8])
@pytest.mark.parametrize(("ours", "theirs"), [("fixed", "fixed"), ("bias_only", "learned")])
def test_gates_that_read_nothing_are_alibi(ours, theirs, n_heads):
    """At first, and for other slopes once these are learned."""
    q, k, v, x = inputs(n_heads)
    sizes = {"d_model": n_heads * D, "n_heads": n_heads, "n_layers": 2, "train_length": 8}
    fox, alibi = pezoo.create(f"fox:gate={ours}", **sizes), pezoo.create(f"alibi:slopes={theirs}", **sizes)
    expected = pezoo.attend(alibi, q, k, v)
    torch.testing.assert_close(pezoo.attend(fox, q, k, v, x=x), expected, atol=1e-6, rtol=1e-5)
    assert [p.shape for p in member(fox, "fox").parameters()] == [p.shape for p in alibi.parameters()]
    if theirs == "learned":
        slopes = torch.linspace(0.1, 2, n_heads)
        member(alibi, "alibi").slopes.data = slopes
        member(fox, "fox", 1).b.data = torch.tensor([-math.log(math.expm1(m)) for m in slopes.tolist()])
        expected = pezoo.attend(alibi, q, k, v, layer=1)
        torch.testing.assert_close(pezoo.attend(fox, q, k, v, layer=1, x=x), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("n_heads", [1, 2, 5])
@pytest.mark.parametrize("gate", ["fixed", "bias_only"])
def test_slopes_are_spaced_between_two_times(gate, n_heads):
    built = pezoo.create(
        f"fox:gate={gate}:min_time=2:max_time=200", d_model=4 * n_heads, n_heads=n_heads, n_layers=1, train_length=8
    )
    fox = member(built, "fox")
    taus = torch.linspace(math.log(2), math.log(200), n_heads, dtype=torch.float64).exp()
    expected = -torch.log(torch.expm1(1 / taus))  # b of gates that keep 1/e after tau tokens
    torch.testing.assert_close(torch.tensor(fox.first_slopes()).double(), 1 / taus, atol=0, rtol=1e-6)
    if gate == "bias_only":
        torch.testing.assert_close(fox.b.double(), expected, atol=1e-6, rtol=1e-5)
    came = fox.bias(built.positions(1, 4))[0, :, 3, 0].double()
    torch.testing.assert_close(came, 3 * torch.nn.functional.logsigmoid(expected), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("scheme", "facts", "message"),
    [
        ("fox", {"causal": False}, "fox is for decoders only"),
        ("fox:min_time=2", {}, "min_time and max_time are for gate=bias_only or fixed"),
        ("fox:gate=fixed:max_time=2", {}, "needs both min_time and max_time, or neither"),
        ("fox+pi", {}, r"pi does not fit fox: it needs coordinates"),
    ],
)
def test_what_cannot_work_is_refused(scheme, facts, message):
    with pytest.raises(UserError, match=message):
        created(scheme, **facts)
