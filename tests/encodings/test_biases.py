"""ALiBi, T5, KERPLE and FIRE against the libraries, the papers' formulas in float64, and golden values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pezoo
from pezoo.contract import Positions
from pezoo.encodings.bias.alibi import slopes
from pezoo.encodings.bias.t5 import bucket, bucket_starts


def build(scheme, n_heads=4, train_length=16, causal=True):
    sizes = {"d_model": 8 * n_heads, "n_heads": n_heads, "n_layers": 1, "train_length": train_length}
    return pezoo.create(scheme, **sizes, causal=causal)


def bias(scheme, length, **facts):
    """The bias of a built scheme, (H, L, L)."""
    positions = Positions.build(length, causal=scheme.shape.causal, **{"phase": "test", "rows": (0,)} | facts)
    return scheme.prepare(positions).layers[0][0].composition.bias()[0].detach()


def member(scheme):
    return scheme.members[0]


def by_pairs(length, n_heads, function):
    """function(head, i, j) for every pair that a decoder sees, float64; nan elsewhere."""
    table = torch.full((n_heads, length, length), math.nan, dtype=torch.float64)
    for h in range(n_heads):
        for i in range(length):
            for j in range(i + 1):
                table[h, i, j] = function(h, i, j)
    return table


def assert_same_where_seen(ours, expected, **tolerance):
    seen = ~expected.isnan()
    torch.testing.assert_close(ours.double()[seen], expected[seen], **({"rtol": 1e-5, "atol": 1e-6} | tolerance))


def theirs(module):
    pytest.importorskip("transformers", reason="parity needs transformers")
    return pytest.importorskip(f"transformers.models.{module}.modeling_{module}")


# ALiBi


@pytest.mark.parametrize(
    ("n_heads", "expected"),
    [
        (1, [0.00390625]),
        (2, [0.0625, 0.00390625]),
        (4, [0.25, 0.0625, 0.015625, 0.00390625]),
        (6, [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]),
        (8, [2.0**-h for h in range(1, 9)]),
        (12, [*(2.0**-h for h in range(1, 9)), 0.70710678, 0.35355339, 0.1767767, 0.08838835]),
    ],
)
def test_alibi_golden_slopes(n_heads, expected):
    assert slopes(n_heads) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n_heads", [1, 3, 4, 6, 12, 16, 25])
def test_alibi_slopes_are_those_of_bloom(n_heads):
    alibi = theirs("bloom").build_alibi_tensor(torch.ones(1, 9), n_heads, torch.float32)  # slope times key index
    torch.testing.assert_close(torch.tensor(slopes(n_heads)), alibi[:, 0, 1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("n_heads", [1, 2, 8, 32])
def test_alibi_is_that_of_mpt(n_heads):
    # Where heads are no power of two, MPT orders slopes otherwise; the authors' code is followed there.
    expected = theirs("mpt").build_mpt_alibi_tensor(n_heads, 20)[:, 0]
    torch.testing.assert_close(bias(build("alibi", n_heads), 20)[:, -1], expected)


@pytest.mark.parametrize("n_heads", [4, 6])
def test_alibi_is_that_of_x_transformers(n_heads):
    library = pytest.importorskip("x_transformers.x_transformers", reason="parity needs x-transformers")
    expected = library.AlibiPositionalBias(n_heads)(11, 11)
    for causal in (True, False):
        torch.testing.assert_close(bias(build("alibi", n_heads, causal=causal), 11), expected)


def test_alibi_is_its_formula():
    ours = bias(build("alibi", 3), 12)
    assert_same_where_seen(ours, by_pairs(12, 3, lambda h, i, j: -slopes(3)[h] * (i - j)))


def test_alibi_learned_slopes_start_from_the_fixed_ones_and_are_learned():
    learned = build("alibi:slopes=learned")
    assert torch.equal(bias(learned, 9), bias(build("alibi"), 9))
    assert [p.tolist() for p in learned.parameters()] == [slopes(4)]
    assert not list(build("alibi").parameters())


def test_alibi_slopes_survive_a_bfloat16_model():
    scheme = build("alibi", 12).bfloat16()
    assert torch.equal(bias(scheme, 9), bias(build("alibi", 12), 9))


def test_interpolation_multiplies_the_slopes():
    assert torch.equal(bias(build("alibi+pi:factor=4"), 12), bias(build("alibi"), 12) / 4)


# T5


def test_t5_golden_bucket_starts():
    tail = [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
    assert bucket_starts(32, 128) == [*range(1, 16), *tail]
    assert bucket_starts(16, 128) == [*range(1, 9), 12, 16, 23, 32, 46, 64, 91]


def exact_bucket(n, n_buckets, max_distance):
    """The paper's formula in float64, and whether rounding could decide it."""
    m = n_buckets // 2
    if n < m:
        return n, False
    real = math.log(n / m) / math.log(max_distance / m) * (n_buckets - m)
    return min(n_buckets - 1, m + math.floor(real)), abs(real - round(real)) < 1e-5


bucket_settings = st.integers(4, 64).flatmap(lambda n: st.tuples(st.just(n), st.integers(n // 2 + 1, 4 * n + 200)))


@settings(deadline=None, max_examples=40)
@given(bucket_settings)
def test_t5_buckets_are_the_formula_and_transformers(sizes):
    n_buckets, max_distance = sizes
    distances = torch.arange(2 * max_distance)
    ours = bucket(distances.float(), n_buckets, max_distance).tolist()
    sizes = {"num_buckets": n_buckets, "max_distance": max_distance}
    theirs_ = theirs("t5").T5Attention._relative_position_bucket(-distances, bidirectional=False, **sizes)
    for n, (mine, their) in enumerate(zip(ours, theirs_.tolist(), strict=True)):
        expected, close = exact_bucket(n, n_buckets, max_distance)
        assert close or mine == expected == their


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 3), st.integers(2, 16).map(lambda n: 4 * n), st.integers(40, 150), st.booleans())
def test_t5_bias_is_that_of_transformers(n_heads, n_buckets, max_distance, causal):
    t5 = theirs("t5")
    from transformers import T5Config

    config = T5Config(
        d_model=8 * n_heads, d_kv=8, num_heads=n_heads, is_decoder=causal,
        relative_attention_num_buckets=n_buckets, relative_attention_max_distance=max_distance,
    )  # fmt: skip
    library = t5.T5Attention(config, has_relative_attention_bias=True)
    ours = build(f"t5:n_buckets={n_buckets}:max_distance={max_distance}", n_heads, causal=causal)
    with torch.no_grad():
        member(ours).table.normal_()
        library.relative_attention_bias.weight.copy_(member(ours).table)
        expected = library.compute_bias(70, 70)[0]
    off = (bias(ours, 70) - expected) != 0
    off &= torch.ones(70, 70).tril().bool() if causal else True
    # Their logarithm is float32: a distance at the very start of a bucket may fall into the one before.
    distances = {int(abs(i - j)) for _, i, j in off.nonzero()}
    here = n_buckets if causal else n_buckets // 2
    assert all(exact_bucket(n, here, max_distance)[1] for n in distances)


@pytest.mark.parametrize("causal", [True, False])
def test_t5_bias_is_that_of_x_transformers(causal):
    library = pytest.importorskip("x_transformers.x_transformers", reason="parity needs x-transformers")
    their = library.RelativePositionBias(1.0, causal=causal, heads=2)
    ours = build("t5", 2, causal=causal)
    with torch.no_grad():
        member(ours).table.normal_()
        their.relative_attention_bias.weight.copy_(member(ours).table)
        expected = their(150, 150)
    seen = torch.ones(150, 150).tril().bool() if causal else torch.ones(150, 150).bool()
    assert torch.equal(bias(ours, 150)[:, seen], expected[:, seen])


def test_t5_starts_as_no_bias_and_has_its_own_scale():
    assert not bias(build("t5"), 9).any()
    q, k, v = torch.randn(3, 1, 4, 9, 8)
    expected = torch.softmax((q @ k.mT).masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf), -1) @ v
    torch.testing.assert_close(pezoo.attend(build("t5"), q, k, v, phase="test"), expected)
    torch.testing.assert_close(
        pezoo.attend(build("t5:scale=sqrt"), q, k, v, phase="test"), pezoo.attend(build("nope"), q, k, v, phase="test")
    )


def test_t5_rounds_interpolated_distances_down():
    ours = build("t5+pi:factor=3", 1)
    with torch.no_grad():
        member(ours).table.copy_(torch.arange(32.0)[:, None])
    expected = by_pairs(40, 1, lambda h, i, j: (i - j) // 3)
    assert_same_where_seen(bias(ours, 40), expected, rtol=0, atol=0)


def test_t5_refuses_buckets_that_end_before_they_widen():
    with pytest.raises(pezoo.UserError, match="t5:max_distance must exceed n_buckets / 2, got 16"):
        build("t5:max_distance=16")


# KERPLE


@pytest.mark.parametrize("kernel", ["log", "power"])
def test_kerple_is_its_formula(kernel):
    scheme = build(f"kerple:kernel={kernel}", 3)
    r1, r2 = (p.detach().double() for p in (member(scheme).r1, member(scheme).r2))
    assert (r1 > 0.01).all()

    def formula(h, i, j):
        n = i - j
        return -r1[h] * (math.log1p(r2[h] * n) if kernel == "log" else n ** r2[h])

    assert_same_where_seen(bias(scheme, 30), by_pairs(30, 3, formula))


def test_kerple_golden_values():
    scheme = build("kerple", 1)
    with torch.no_grad():
        member(scheme).r1.fill_(1), member(scheme).r2.fill_(1)
    assert bias(scheme, 11)[0, -1, [10, 9, 0]].tolist() == pytest.approx([0, -0.693147, -2.397895], rel=1e-6)


def test_kerple_power_of_one_is_alibi():
    scheme = build("kerple_power")
    with torch.no_grad():
        member(scheme).r1.copy_(torch.tensor(slopes(4))), member(scheme).r2.fill_(1)
    expected = by_pairs(20, 4, lambda h, i, j: -max(0.01, slopes(4)[h]) * (i - j))
    assert_same_where_seen(bias(scheme, 20), expected)


@pytest.mark.parametrize(("kernel", "r2"), [("log", 1.0), ("power", 2.0)])
def test_kerple_parameters_start_uniform_and_are_held_in_range(kernel, r2):
    scheme = build(f"kerple:kernel={kernel}", 1000)
    r1_max = {"log": 2.0, "power": 1.0}[kernel]
    for parameter, largest in ((member(scheme).r1, r1_max), (member(scheme).r2, r2)):
        assert 0 <= parameter.min() < 0.02 * largest
        assert 0.98 * largest < parameter.max() <= largest
        assert parameter.mean().item() == pytest.approx(largest / 2, rel=0.1)
    held = build(f"kerple:kernel={kernel}", 1)
    with torch.no_grad():
        member(held).r1.fill_(-3), member(held).r2.fill_(-3)
    assert bias(held, 9)[0, -1, 0] < 0
    with torch.no_grad():
        member(held).r1.fill_(1), member(held).r2.fill_(50)
    if kernel == "power":
        assert bias(held, 9)[0, -1, 0] == -(8.0**2)


@pytest.mark.parametrize(("kernel", "name", "outside"), [("log", "r1", -0.5), ("log", "r2", 0.0), ("power", "r2", 2.5)])
def test_kerple_numbers_outside_their_range_learn_to_come_back(kernel, name, outside):
    """They count as the limit, and have the gradient that there is there: by finite differences in float64."""
    held, limit = build(f"kerple:kernel={kernel}", 1), 2.0 if outside > 2 else 0.01
    others = {"r1": 0.7, "r2": 0.7}
    with torch.no_grad():
        for key, value in (others | {name: outside}).items():
            getattr(member(held), key).fill_(value)

    def total(value):
        r1, r2 = (value if key == name else given for key, given in others.items())
        return sum(-r1 * (math.log1p(r2 * n) if kernel == "log" else n**r2) for n in range(1, 9))

    row = member(held).distance_bias(torch.arange(9.0))
    assert row.sum().item() == pytest.approx(total(limit), rel=1e-6)
    row.sum().backward()
    slope = (total(limit + 1e-6) - total(limit - 1e-6)) / 2e-6
    assert getattr(member(held), name).grad.item() == pytest.approx(slope, rel=1e-4)
    optimiser = torch.optim.SGD(member(held).parameters(), lr=0.3 / abs(slope))
    for _ in range(9):  # towards the range: a lower penalty for a larger exponent, a larger one for a smaller number
        optimiser.zero_grad()
        row = member(held).distance_bias(torch.arange(9.0))
        (row.sum() * (1 if outside < limit else -1)).backward()
        optimiser.step()
    assert (getattr(member(held), name).item() - limit) * (outside - limit) < 0


def test_kerple_power_has_finite_gradients():
    scheme = build("kerple_power", 2)
    q, k, v = torch.randn(3, 1, 2, 9, 8)
    pezoo.attend(scheme, q, k, v, phase="test").sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.all() for p in scheme.parameters())


# FIRE


def fire_by_hand(scheme, length, start=0):
    """The paper's formula, one pair at a time."""
    fire = member(scheme)
    (w1, b1), (w2, b2) = ((m.weight.double(), m.bias.double()) for m in (fire.network[0], fire.network[2]))
    c, threshold = abs(fire.c.item()), abs(fire.m.item()) * (fire.config.threshold or scheme.shape.train_length)

    def psi(x):
        return math.log(c * x + 1)

    def pair(h, i, j):
        argument = psi(i - j) / (psi(max(i - start, threshold)) + 1e-6)
        hidden = w1[:, 0] * argument + b1
        slope = 0.01 if fire.config.activation == "leaky_relu" else 0.0
        return (w2 @ torch.where(hidden > 0, hidden, slope * hidden) + b2)[h].item()

    with torch.no_grad():
        return by_pairs(length, scheme.shape.n_heads, pair)


@pytest.mark.parametrize("text", ["fire", "fire:threshold=5:width=8", "fire_shared", "fire:activation=leaky_relu"])
def test_fire_is_its_formula(text):
    scheme = build(text, 2)
    with torch.no_grad():
        member(scheme).c.fill_(-0.3), member(scheme).m.fill_(1.2)
    assert_same_where_seen(bias(scheme, 24), fire_by_hand(scheme, 24), atol=1e-5)


def test_fire_golden_arguments():
    scheme = build("fire:threshold=512:width=1", 1)
    fire = member(scheme)
    with torch.no_grad():
        for layer in (fire.network[0], fire.network[2]):  # the network as the identity
            layer.weight.fill_(1), layer.bias.zero_()
    ours = bias(scheme, 1024)[0]
    expected = {(10, 0): 0.175255, (511, 0): 0.999515, (511, 500): 0.187591, (1023, 0): 1, (1023, 512): 0.852409}
    for pair, argument in expected.items():
        assert ours[pair].item() == pytest.approx(argument, abs=2e-6)


def test_fire_argument_stays_in_range_wherever_the_document_begins():
    scheme = build("fire", 1)
    moved = Positions.build(40, phase="test").map(lambda p, index: p + 500)
    with torch.no_grad():
        shifted = member(scheme).bias(moved)[0]
    assert_same_where_seen(shifted, fire_by_hand(scheme, 40), atol=1e-5)


def test_fire_has_a_network_for_each_layer_unless_shared():
    def copies(text):
        sizes = {"d_model": 16, "n_heads": 2, "n_layers": 3, "train_length": 8}
        return len(pezoo.create(text, **sizes).parts[0].encodings[0])

    assert (copies("fire"), copies("fire_shared")) == (3, 1)


def test_fire_depends_on_distance_alone_up_to_its_threshold():
    ours = bias(build("fire", 2, train_length=16), 40)
    near, far = ours[:, :16, :16], ours[:, 17:, :]
    torch.testing.assert_close(near[:, 1:, 1:].tril(), near[:, :-1, :-1].tril())
    assert (far[:, 10, 20] - far[:, 20, 30]).abs().max() > 1e-4
