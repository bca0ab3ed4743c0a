"""FoPE against its formula in complex float64, against the paper's listing, and as the RoPE that it is without gain."""

import math

import pytest
import torch

import pezoo
from helpers import member, vectors
from pezoo import UserError

H, D, L, TRAINED = 3, 16, 40, 100
TURNING = 4  # of the 8 frequencies: at base 300 four are at least 2 pi / 100


def created(text="fope:base=300", **sizes):
    return pezoo.create(text, **{"d_model": H * D, "n_heads": H, "n_layers": 2, "train_length": TRAINED} | sizes)


def frequencies(base=300.0):
    return [w for c in range(D // 2) if (w := base ** (-2 * c / D)) >= 2 * math.pi / TRAINED]


def by_pairs(own, q, k, at_rest=1, causal=True):
    """Logits of row 0: each pair of channels as a complex number, times its sum over frequencies."""
    cosines, sines = own.mixtures.detach().double()
    w = frequencies()

    def turned(x, h, p):
        x = x[0, h, p].double().tolist()
        found = []
        for c in range(D // 2):
            by = complex(math.sqrt(at_rest))
            if c < len(w):
                real = sum(float(cosines[h, m, c]) * math.cos(p * w[m]) for m in range(len(w)))
                by = complex(real, sum(float(sines[h, m, c]) * math.sin(p * w[m]) for m in range(len(w))))
            found.append(complex(x[2 * c], x[2 * c + 1]) * by)
        return found

    logits = torch.full((1, H, L, L), -torch.inf, dtype=torch.float64)
    for h in range(H):
        queries, keys = ([turned(x, h, p) for p in range(L)] for x in (q, k))
        for i in range(L):
            for j in range(i + 1 if causal else L):
                pairs = zip(queries[i], keys[j], strict=True)
                logits[0, h, i, j] = sum((a * b.conjugate()).real for a, b in pairs) / math.sqrt(D)
    return logits


@pytest.mark.parametrize("settings", ["", ":learned=true", ":at_rest=twice", ":gain=3"])
def test_it_is_its_sum_over_frequencies(settings):
    scheme, (q, k) = created(f"fope:base=300{settings}"), vectors(2, 1, H, L, D)
    assert len(frequencies()) == TURNING
    for layer in range(2):
        expected = by_pairs(member(scheme, "fope", layer), q, k, 2 if "twice" in settings else 1)
        torch.testing.assert_close(scheme.logits(q, k, layer=layer).double(), expected, atol=2e-5, rtol=1e-5)


def test_in_an_encoder():
    scheme, (q, k) = created(causal=False), vectors(2, 1, H, L, D)
    expected = by_pairs(member(scheme, "fope"), q, k, causal=False)
    torch.testing.assert_close(scheme.logits(q, k).double(), expected, atol=2e-5, rtol=1e-5)


def test_the_papers_listing_gives_the_same():
    """It has halves of channels, turns the other way, puts sin = cos = 1 at rest, and columns that sum to 1."""
    scheme, (q, k) = created("fope:base=300:at_rest=twice"), vectors(2, 1, H, L, D)
    own = member(scheme, "fope")
    own.mixtures /= own.mixtures.sum(-2, keepdim=True)
    cosines, sines = own.mixtures.double()
    place = torch.arange(L, dtype=torch.float64)[:, None] * torch.tensor(frequencies(), dtype=torch.float64)

    def listed(x):
        x = torch.cat([x[..., 0::2], -x[..., 1::2]], -1).double()  # pairs (2k, 2k+1) become (k, k + d/2), mirrored
        both = [torch.einsum("tm,hmk->htk", f, a) for f, a in ((place.sin(), sines), (place.cos(), cosines))]
        sin, cos = (torch.cat([t, torch.ones(H, L, D // 2 - TURNING, dtype=t.dtype)], -1).repeat(1, 1, 2) for t in both)
        return x * cos - torch.cat([-x[..., D // 2 :], x[..., : D // 2]], -1) * sin

    expected = (listed(q) @ listed(k).mT) / math.sqrt(D)
    seen = torch.ones(L, L, dtype=torch.bool).tril()
    torch.testing.assert_close(scheme.logits(q, k)[..., seen].double(), expected[..., seen], atol=2e-5, rtol=1e-5)


def test_without_gain_it_is_rope_with_a_floor():
    q, k = vectors(2, 1, H, L, D)
    expected = created("rope:base=300+floor").logits(q, k)
    torch.testing.assert_close(created("fope:base=300:gain=0").logits(q, k), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 6, 7, 63, 64])
def test_what_makes_no_full_turn_in_training_rests(length):
    own = member(created("fope", train_length=length), "fope")
    expected = [w if w >= 2 * math.pi / length else 0.0 for w in (10000 ** (-2 * c / D) for c in range(D // 2))]
    torch.testing.assert_close(own.inv_freq().tolist(), expected, rtol=1e-6, atol=0)
    assert own.mixtures.shape == (2, H, *[sum(w > 0 for w in expected)] * 2)


def test_mixtures_are_drawn_apart_by_the_rule_of_xavier():
    scheme = created("fope", d_model=40 * 64, n_heads=40, train_length=4000)
    own, other = member(scheme, "fope"), member(scheme, "fope", 1)
    n = own.mixtures.shape[-1]
    noise = own.mixtures - torch.eye(n)
    made = torch.empty(40, n, n)
    torch.nn.init.xavier_normal_(made, gain=0.3)
    assert noise.std().item() == pytest.approx(made.std().item(), rel=0.05)
    assert abs(noise.mean().item()) < 1e-3
    for a, b in ((own.mixtures, other.mixtures), own.mixtures, own.mixtures[0, :2]):
        assert (a - b).abs().mean() > noise.std() / 2


def test_drawn_mixtures_come_from_the_seed_and_stay_with_the_weights():
    one, two, other = created(seed=1), created(seed=1), created(seed=2)
    mixtures = [member(s, "fope").mixtures for s in (one, two, other)]
    assert not list(one.parameters())
    assert torch.equal(mixtures[0], mixtures[1])
    assert not torch.equal(mixtures[0], mixtures[2])
    other.load_state_dict(one.state_dict())
    assert torch.equal(member(other, "fope").mixtures, mixtures[0])


def test_frequencies_can_be_changed_and_those_at_rest_stay_there():
    scheme, (q, k) = created("fope:base=300+pi:factor=3"), vectors(2, 1, H, L, D)
    plain = created("fope:base=300")
    positions = plain.positions(1, L).scaled(1 / 3)
    expected = plain.logits(q, k, positions=positions)
    torch.testing.assert_close(scheme.logits(q, k, phase="test"), expected, atol=1e-5, rtol=1e-5)


def test_distance_alone_does_not_settle_a_logit():
    q = k = torch.ones(1, H, L, D)
    one = created("fope:base=300:gain=1").logits(q, k)[0, 0]
    assert (one[5, 2] - one[25, 22]).abs() > 1e-3
    two = created("fope:base=300:gain=0").logits(q, k)[0, 0]
    assert two[5, 2].item() == pytest.approx(two[25, 22].item(), abs=1e-4)


@pytest.mark.parametrize(("at_rest", "times"), [("once", 1), ("twice", 2)])
def test_where_nothing_turns_content_is_left(at_rest, times):
    q, k = vectors(2, 1, H, L, D)
    expected = times * created("nope").logits(q, k)
    torch.testing.assert_close(created(f"fope:at_rest={at_rest}", train_length=6).logits(q, k), expected)


def test_one_channel_is_refused():
    with pytest.raises(UserError, match="head_dim = 1 leaves none to turn"):
        created("fope", d_model=H, head_dim=1)
