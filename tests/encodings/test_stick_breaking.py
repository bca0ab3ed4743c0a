"""Stick-breaking attention against a stick broken piece by piece in float64, and golden values."""

import math

import pytest
import torch

import pezoo
from helpers import vectors
from pezoo import attention

H, D, L = 3, 8, 12


def build(text="stick_breaking", **sizes):
    return pezoo.create(text, **{"d_model": H * D, "n_heads": H, "n_layers": 1, "train_length": 6} | sizes)


def broken(row, rest):
    """The pieces for one query: logits of the keys up to its own, float64."""
    pieces, stick = [], 1.0
    for z in reversed(row[:-1]):
        share = 1 / (1 + math.exp(-z))
        pieces.append(share * stick)
        stick *= 1 - share
    return [*reversed(pieces), stick if rest == "own" else 0.0]


def by_hand(logits, v, rest="own"):
    """The output for logits (B, H, L, L) and values, one query after another."""
    out = torch.zeros(v.shape, dtype=torch.float64)
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in logits.shape[:3])).tolist():
        pieces = broken(logits[b, h, i, : i + 1].tolist(), rest)
        out[b, h, i] = sum(piece * v[b, h, j].double() for j, piece in enumerate(pieces))
    return out


@pytest.mark.parametrize("rest", ["own", "none"])
@pytest.mark.parametrize("backend", ["eager", "chunked"])
def test_it_is_a_stick_broken_from_the_nearest_key_on(rest, backend, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 5)
    q, k, v = vectors(3, 2, H, L, D)
    q = 2 * q
    expected = by_hand(q.double() @ k.double().mT / math.sqrt(D), v, rest)
    scheme = build(f"stick_breaking:rest={rest}")
    came = pezoo.attend(scheme, q, k, v, backend=backend)
    torch.testing.assert_close(came.double(), expected, rtol=1e-5, atol=1e-5)
    last = pezoo.attend(scheme, q[:, :, -3:], k, v, backend=backend)
    torch.testing.assert_close(last.double(), expected[:, :, -3:], rtol=1e-5, atol=1e-5)


def test_it_breaks_by_the_logits_of_the_encodings_beside_it():
    q, k, v = vectors(3, 1, H, L, D)
    logits = build("rope+alibi").logits(q, k).double()
    came = pezoo.attend(build("rope+alibi+stick_breaking"), q, k, v)
    torch.testing.assert_close(came.double(), by_hand(logits, v), rtol=1e-5, atol=1e-5)


def test_equal_logits_halve_the_stick_at_each_key():
    q, v = torch.zeros(1, H, L, D), torch.eye(L).expand(1, H, -1, -1)[..., :D]
    for rest, own in (("own", 1 / 16), ("none", 0)):
        out = pezoo.attend(build(f"stick_breaking:rest={rest}"), q, q, v)
        assert out[0, 0, 4].tolist() == pytest.approx([1 / 16, 1 / 8, 1 / 4, 1 / 2, own, 0, 0, 0])


def test_the_first_token_has_its_own_value_or_none():
    q, k, v = vectors(3, 1, H, L, D)
    assert torch.equal(pezoo.attend(build(), q, k, v)[:, :, 0], v[:, :, 0])
    assert not pezoo.attend(build("stick_breaking:rest=none"), q, k, v)[:, :, 0].any()


def test_hidden_keys_take_nothing_of_the_stick():
    q, k, v = vectors(3, 1, H, L, D)
    came = pezoo.attend(build("stick_breaking+window:size=4"), q, k, v, phase="test")
    alone = pezoo.attend(build(), *(t[:, :, -4:] for t in (q, k, v)))
    torch.testing.assert_close(came[:, :, -1], alone[:, :, -1])


def test_sure_keys_leave_finite_numbers():
    q, k, v = vectors(3, 1, H, L, D)
    q, k = (t.mul(60).requires_grad_() for t in (q, k))
    out = pezoo.attend(build(), q, k, v)
    out.square().sum().backward()
    logits = (q.double() @ k.double().mT / math.sqrt(D)).detach()
    assert logits.abs().max() > 1000
    torch.testing.assert_close(out.detach().double(), by_hand(logits.clamp(-600, 600), v), rtol=1e-5, atol=1e-5)
    assert all(t.grad.isfinite().all() for t in (q, k))


def test_what_it_has_no_place_in_is_refused():
    with pytest.raises(pezoo.UserError, match="stick_breaking is for decoders only"):
        build(causal=False)
    with pytest.raises(pezoo.UserError, match="no place for normalise"):
        pezoo.attend(build(), *vectors(3, 1, H, L, D), backend="sdpa")
