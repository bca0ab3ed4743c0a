"""PaTH: the paper's product of Householder matrices, written out in float64, and its steps of a state."""

import math

import pytest
import torch

import pezoo
from helpers import far_from_start, member, vectors
from pezoo import UserError, attention
from pezoo.contract import Positions
from pezoo.encodings.relative import path

H, D, L = 3, 4, 13
WIDTH = H * D


def created(scheme="path", **sizes):
    built = pezoo.create(scheme, **{"d_model": WIDTH, "n_heads": H, "n_layers": 2, "train_length": 8} | sizes).eval()
    for i, parameter in enumerate(built.parameters()):
        parameter.data += 0.7 * vectors(*parameter.shape, seed=i)
    return built


def inputs():
    q, k, v = vectors(3, 2, H, L, D).unbind()
    return q, k, v, vectors(2, L, WIDTH, seed=5)


def matrices(own, x, starts):
    """H_t of one row, (L, H, D, D), from its input (L, WIDTH); starts: where each token's document begins."""
    down, up, taps = (t.double() for t in (own.down.weight, own.up.weight, own.taps))
    u, c = own.strength.weight.double(), own.strength.bias.double()
    found = torch.zeros(len(x), H, D, D, dtype=torch.float64)
    for t in range(len(x)):
        code = sum(taps[s] * (up @ (down @ x[t - s].double())) for s in range(len(taps)) if t - s >= starts[t])
        v = code / (1 + torch.exp(-code))
        for h in range(H):
            w = v[h * D : (h + 1) * D]
            w = w / math.sqrt(sum(float(n) ** 2 for n in w))
            b = 2 / (1 + math.exp(-float(u[h] @ x[t].double() + c[h])))
            found[t, h] = torch.eye(D, dtype=torch.float64) - b * torch.outer(w, w)
    return found


def by_pairs(own, q, k, x, starts):
    """The logits of all pairs of one document, -inf elsewhere."""
    logits = torch.full((len(q), H, L, L), -torch.inf, dtype=torch.float64)
    with torch.no_grad():
        for r in range(len(q)):
            reflections = matrices(own, x[r], starts[r])
            for h, i in ((h, i) for h in range(H) for i in range(L)):
                for j in range(starts[r][i], i + 1):
                    product = torch.eye(D, dtype=torch.float64)
                    for t in range(j + 1, i + 1):
                        product = product @ reflections[t, h]
                    logits[r, h, i, j] = k[r, h, j].double() @ product @ q[r, h, i].double() / D**0.5
    return logits


@pytest.mark.parametrize("block", [1, 5, 64])
@pytest.mark.parametrize("packed", [False, True])
def test_it_is_the_product_of_householder_matrices(monkeypatch, block, packed):
    """In blocks that cut documents, and in chunks of queries that cut blocks."""
    monkeypatch.setattr(path, "BLOCK", block)
    monkeypatch.setattr(attention, "CHUNK", 4)
    scheme, (q, k, v, x) = created(), inputs()
    documents = torch.tensor([[0] * 2 + [1] * 7 + [2] * 4, [0] * 13]) if packed else None
    starts = [[0] * 2 + [2] * 7 + [9] * 4, [0] * 13] if packed else [[0] * 13] * 2
    positions = scheme.positions(2, L, documents=documents)
    expected = by_pairs(member(scheme, "path", 1), q, k, x, starts)
    given = {"layer": 1, "positions": positions, "x": x}
    torch.testing.assert_close(scheme.logits(q, k, **given).double(), expected, atol=2e-5, rtol=1e-5)
    out = expected.softmax(-1) @ v.double()
    for backend in ("eager", "chunked"):
        came = pezoo.attend(scheme, q, k, v, backend=backend, **given)
        torch.testing.assert_close(came.double(), out, atol=2e-5, rtol=1e-5)
    given["positions"] = positions.slice(L - 3, L)
    last = pezoo.attend(scheme, q[:, :, -3:], k, v, **given)
    torch.testing.assert_close(last.double(), out[:, :, -3:], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", ["tokens=1", "tokens=20", "rank=1"])
def test_settings_are_those_of_the_formula(settings):
    scheme, (q, k, _, x) = created(f"path:{settings}"), inputs()
    expected = by_pairs(member(scheme, "path"), q, k, x, [[0] * L] * 2)
    torch.testing.assert_close(scheme.logits(q, k, x=x).double(), expected, atol=2e-5, rtol=1e-5)


def test_gradients_are_those_of_the_matrices():
    """By autograd through the product written out, for one pair far apart."""
    scheme, (q, k, _, x) = created(n_heads=1, head_dim=WIDTH), inputs()
    q, k = q[:1, :1].repeat(1, 1, 1, 3), k[:1, :1].repeat(1, 1, 1, 3)
    own = member(scheme, "path").double()
    r = q[0, 0, -1].double()
    positions = Positions.build(L).replace(read=own.read(x[:1].double(), None))
    w, b = own.directions(positions)[0, 0], positions.read[1][0, :, 0]
    for t in range(L - 1, 2, -1):
        r = r - b[t] * (w[t] @ r) * w[t]
    (k[0, 0, 2].double() @ r / WIDTH**0.5).backward()
    expected = [p.grad.clone() for p in own.parameters()]
    own.zero_grad()
    member(scheme, "path").float()
    scheme.logits(q, k, x=x[:1])[0, 0, -1, 2].backward()
    for parameter, gradient in zip(own.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad.double(), gradient.double(), atol=1e-5, rtol=1e-3)


def test_a_swap_for_each_token_counts_parity():
    """Two directions swapped by every token that says so: the state is their parity, at whatever distance."""
    n, width = 200, 2
    scheme = pezoo.create("path:tokens=1:rank=1", d_model=width, n_heads=1, n_layers=1, train_length=8)
    own = member(scheme, "path")
    own.down.weight.data = torch.tensor([[1.0, 1.0]])
    own.up.weight.data, own.taps.data = torch.tensor([[40.0], [-40.0]]), torch.tensor([[1.0, -1.0]])
    # silu(40) and silu(40): w = (1, 1) / sqrt(2); the reflection of (1, 0) is (0, -1).
    own.strength.weight.data, own.strength.bias.data = torch.tensor([[0.0, 40.0]]), torch.tensor([-20.0])
    swaps = torch.randint(2, (n,), generator=torch.Generator().manual_seed(0))
    x = torch.stack([1.0 - swaps, swaps.float()], -1)[None]
    q = k = torch.tensor([1.0, 0.0]).expand(1, 1, n, 2)
    came = scheme.logits(q, k, x=x)[0, 0, -1] * 2**0.5
    after = swaps.flip(0).cumsum(0).flip(0) - swaps
    torch.testing.assert_close(came, 1.0 - after % 2, atol=1e-3, rtol=0)


def test_far_apart_it_stays_finite_and_exact():
    """Long products neither grow nor drift: float32 agrees with float64 over a thousand reflections near 2."""
    n = 1000
    scheme = created(n_heads=1, head_dim=WIDTH, n_layers=1)
    own, x = member(scheme, "path"), vectors(1, n, WIDTH)
    own.strength.bias.data += 4
    q, k = vectors(2, 1, 1, n, WIDTH).unbind()
    came = scheme.logits(q, k, x=x)[0, 0, -1]
    with torch.no_grad():
        positions = Positions.build(n)
        positions = positions.replace(read=own.read(x, positions))
        w, b = own.directions(positions)[0, 0].double(), positions.read[1][0, :, 0].double()
        r, expected = q[0, 0, -1].double(), []
        for t in range(n - 1, -1, -1):
            expected.append(float(k[0, 0, t].double() @ r) / WIDTH**0.5)
            r = r - b[t] * (w[t] @ r) * w[t]
    torch.testing.assert_close(came.double(), torch.tensor(expected[::-1], dtype=torch.float64), atol=1e-4, rtol=1e-4)


def test_it_starts_as_the_authors_do():
    built = pezoo.create("path", d_model=64, n_heads=4, n_layers=1, train_length=8)
    own = member(built, "path")
    assert not own.strength.bias.any()
    for weight in (own.down.weight, own.up.weight, own.taps, own.strength.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("scheme", ["rope+path", "path+fox", "path+window:size=4"])
def test_token_by_token_is_the_full_pass_beside_others(scheme, monkeypatch):
    monkeypatch.setattr(path, "BLOCK", 4)
    config = {"scheme": scheme, "vocab_size": 9, "d_model": 12, "n_heads": 3, "n_layers": 2, "train_length": 8}
    model = far_from_start(pezoo.model.transformer.TransformerConfig(**config))
    ids = torch.arange(26).view(2, 13) % 9
    cache = model.cache(2, 13)
    with torch.no_grad():
        came = torch.cat([model(piece, cache=cache) for piece in ids.split(1, 1)], 1)
        torch.testing.assert_close(came, model(ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("scheme", "facts", "message"),
    [
        ("path", {"causal": False}, "path is for decoders only"),
        ("path:rank=0", {}, "rank"),
        ("path+pi", {}, r"pi does not fit path: it needs coordinates"),
    ],
)
def test_what_cannot_work_is_refused(scheme, facts, message):
    with pytest.raises(UserError, match=message):
        created(scheme, **facts)


@pytest.mark.parametrize("text", ["pope+path", "path+pope"])
def test_what_is_wider_than_its_directions_is_refused(text):
    q, k, _, x = inputs()
    with pytest.raises(UserError, match="path has a product of its own for q and k that are 4 wide, and pope"):
        created(text).logits(q, k, x=x)
