"""Selective RoPE against its sums of angles in float64, token by token, and against RoPE as one of its cases."""

import cmath
import math

import pytest
import torch

import pezoo
from helpers import member, vectors
from pezoo import UserError

H, D, L = 3, 6, 12
WIDTH = H * D


def created(text="selective_rope", **sizes):
    built = pezoo.create(text, **{"d_model": WIDTH, "n_heads": H, "n_layers": 2, "train_length": 8} | sizes).eval()
    for i, parameter in enumerate(built.parameters()):
        parameter.data += 0.7 * vectors(*parameter.shape, seed=i)
    return built


def inputs():
    q, k, v = vectors(3, 1, H, L, D).unbind()
    return q, k, v, vectors(1, L, WIDTH, seed=5)


def angles(own, x, starts):
    """What each token adds to each pair of each head, (L, H, D / 2): by lists, from the input of one row (L, WIDTH)."""
    config, found = own.config, torch.zeros(L, H, D // 2, dtype=torch.float64)
    down, up, taps = (t.detach().double() for t in (own.down.weight, own.up.weight, own.taps))
    unit = []
    for row in x.double():
        parts = [row[h * D : (h + 1) * D] for h in range(H)]
        unit.append(torch.cat([p / math.sqrt(sum(float(n) ** 2 for n in p)) for p in parts]))
    for t, h, c in ((t, h, c) for t in range(L) for h in range(H) for c in range(D // 2)):
        place = h * (D // 2) + c
        a = sum(
            float(taps[s, place] * (up[place] @ (down @ unit[t - s])))
            for s in range(config.tokens)
            if t - s >= starts[t]
        )
        if config.bias:
            a += math.exp(own.bias_log[place].item())
        if config.gate:
            a /= 1 + math.exp(-float(own.gate.weight[h].detach().double() @ unit[t]) - own.gate.bias[h].item())
        found[t, h, c] = a * config.base ** (-2 * c / D)
    return found


def by_pairs(own, q, k, x, starts):
    """Logits of one row: pairs of channels as complex numbers, turned by what lies between key and query."""
    added = angles(own, x[0], starts)
    logits = torch.full((1, H, L, L), -torch.inf, dtype=torch.float64)
    for h, i in ((h, i) for h in range(H) for i in range(L)):
        for j in range(starts[i], i + 1):
            turned = 0.0
            for c in range(D // 2):
                a, b = (complex(*t[0, h, p, 2 * c : 2 * c + 2].tolist()) for t, p in ((q, i), (k, j)))
                between = sum(float(added[t, h, c]) for t in range(j + 1, i + 1))
                turned += (a * b.conjugate() * cmath.exp(1j * between)).real
            logits[0, h, i, j] = turned / math.sqrt(D)
    return logits


@pytest.mark.parametrize("settings", ["", ":gate=true", ":bias=true", ":gate=true:bias=true:tokens=1:rank=2:base=10"])
def test_a_pair_turns_by_what_the_tokens_between_add(settings):
    scheme, (q, k, v, x) = created(f"selective_rope{settings}"), inputs()
    expected = by_pairs(member(scheme, "selective_rope", 1), q, k, x, [0] * L)
    torch.testing.assert_close(scheme.logits(q, k, layer=1, x=x).double(), expected, atol=2e-5, rtol=1e-5)
    out = expected.softmax(-1) @ v.double()
    for backend in ("eager", "sdpa", "chunked"):
        came = pezoo.attend(scheme, q, k, v, layer=1, x=x, backend=backend)
        torch.testing.assert_close(came.double(), out, atol=2e-5, rtol=1e-5)


def test_angles_and_what_they_see_stop_at_documents():
    scheme, (q, k, _, x) = created("selective_rope:gate=true"), inputs()
    positions = scheme.positions(1, L, documents=torch.tensor([[0] * 2 + [1] * 7 + [2] * 3]))
    expected = by_pairs(member(scheme, "selective_rope"), q, k, x, [0] * 2 + [2] * 7 + [9] * 3)
    torch.testing.assert_close(scheme.logits(q, k, x=x, positions=positions).double(), expected, atol=2e-5, rtol=1e-5)


def test_with_a_bias_and_nothing_read_it_is_rope():
    q, k, _, x = inputs()
    sizes = {"d_model": WIDTH, "n_heads": H, "n_layers": 2, "train_length": 8}
    expected = pezoo.create("rope:base=500000", **sizes).logits(q, k)
    came = pezoo.create("selective_rope:bias=true", **sizes)
    torch.testing.assert_close(
        came.logits(q, k, x=x), expected, atol=1e-2, rtol=0
    )  # weights of 0.02 read next to nothing
    member(came, "selective_rope").up.weight.data[:] = 0
    torch.testing.assert_close(came.logits(q, k, x=x), expected, atol=1e-5, rtol=1e-5)


def test_half_turns_count_parity():
    """A token that turns a pair by pi flips the sign of all that lies before it, however far."""
    n = 500
    scheme = pezoo.create("selective_rope:tokens=1:rank=1", d_model=2, n_heads=1, n_layers=1, train_length=8)
    own = member(scheme, "selective_rope")
    own.down.weight.data, own.up.weight.data = torch.tensor([[0.0, 1.0]]), torch.tensor([[math.pi]])
    own.taps.data[:] = 1
    flips = torch.randint(2, (n,), generator=torch.Generator().manual_seed(0))
    x = torch.stack([1.0 - flips, flips.float()], -1)[None]
    q = k = torch.tensor([1.0, 0.0]).expand(1, 1, n, 2)
    after = flips.flip(0).cumsum(0).flip(0) - flips
    came = scheme.logits(q, k, x=x)[0, 0, -1] * math.sqrt(2)
    torch.testing.assert_close(came, 1.0 - 2 * (after % 2), atol=1e-3, rtol=0)


def test_in_an_encoder_it_turns_back_for_keys_ahead():
    scheme, (q, k, _, x) = created(causal=False), inputs()
    added = angles(member(scheme, "selective_rope"), x[0], [0] * L)
    i, j, h = 3, 9, 1
    expected = 0.0
    for c in range(D // 2):
        a, b = (complex(*t[0, h, p, 2 * c : 2 * c + 2].tolist()) for t, p in ((q, i), (k, j)))
        expected += (a * b.conjugate() * cmath.exp(-1j * float(added[i + 1 : j + 1, h, c].sum()))).real
    assert scheme.logits(q, k, x=x)[0, h, i, j].item() == pytest.approx(expected / math.sqrt(D), abs=1e-4)


def test_it_starts_as_the_authors_do():
    sizes = {"d_model": 64, "n_heads": 4, "n_layers": 1, "train_length": 8}
    own = member(pezoo.create("selective_rope:gate=true:bias=true", **sizes), "selective_rope")
    assert not own.gate.bias.any()
    assert not own.bias_log.any()
    for weight in (own.down.weight, own.up.weight, own.taps, own.gate.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.2)


def test_what_cannot_work_is_refused():
    with pytest.raises(UserError, match="head_dim = 1 leaves none to turn"):
        created(d_model=H, head_dim=1)
    with pytest.raises(UserError, match=r"pi does not fit selective_rope: it needs coordinates"):
        created("selective_rope+pi")
