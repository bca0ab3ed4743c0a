"""What each pair reads and sees, against per-pair definitions and simulated caches."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pezoo
from pezoo.contract import Positions

SHAPE = {"d_model": 32, "n_heads": 2, "n_layers": 1, "train_length": 16}


def compose(text, length, train_length=16, **facts):
    scheme = pezoo.create(text, **SHAPE | {"train_length": train_length, "causal": facts.get("causal", True)})
    return (
        scheme.prepare(Positions.build(length, **{"phase": "test", "rows": range(facts.get("batch", 1))} | facts))
        .layers[0][0]
        .composition
    )


def effective(composition, row=0):
    """The distance at which each pair is read, (Lq, Lk), NaN where it is not seen."""
    distance = composition.base[0].positions.distance()
    distance = distance[row if len(distance) > 1 else 0]
    for region in composition.regions[1:]:
        inside = region.branch.region(composition.positions)
        inside = inside[row if len(inside) > 1 else 0]
        far = region.parts[0].positions.distance()
        distance = torch.where(inside, far[row if len(far) > 1 else 0], distance)
    visible = composition.visible()
    return distance.masked_fill(~visible[row if len(visible) > 1 else 0], math.nan)


def table(length, read, sees=lambda i, j: True):
    """A per-pair definition as a matrix, causal."""
    rows = [[read(i, j) if j <= i and sees(i, j) else math.nan for j in range(length)] for i in range(length)]
    return torch.tensor(rows, dtype=torch.float32)


def same(ours, expected):
    torch.testing.assert_close(ours, expected, equal_nan=True, atol=1e-5, rtol=0)


# Definitions


@pytest.mark.parametrize("base", ["rope", "alibi"])
def test_rerope_golden_row(base):
    assert effective(compose(f"{base}+rerope:window=4", 8))[7].flip(0).tolist() == [0, 1, 2, 3, 4, 4, 4, 4]


def test_leaky_rerope_golden_row():
    row = effective(compose("rope+leaky_rerope:window=4:shrink=2", 10))[9].flip(0)
    assert row.tolist() == [0, 1, 2, 3, 4, 4.5, 5, 5.5, 6, 6.5]


def test_self_extend_golden_row():
    row = effective(compose("rope+self_extend:window=4:group=2", 10))[9]
    assert row.tolist() == [6, 6, 5, 5, 4, 4, 3, 2, 1, 0]


@given(st.integers(1, 12), st.floats(1, 8), st.integers(1, 40))
@settings(deadline=None, max_examples=25)
def test_leaky_rerope_by_pairs(window, shrink, length):
    ours = effective(compose({"alibi": None, "leaky_rerope": {"window": window, "shrink": shrink}}, length))

    def read(i, j):
        n = i - j
        return n if n < window else window + (n - window) / shrink

    same(ours, table(length, read))


@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 40), st.sampled_from(["floor", "exact"]))
@settings(deadline=None, max_examples=25)
def test_self_extend_by_pairs(window, group, length, shift):
    text = f"kerple+self_extend:window={window}:group={group}:shift={shift}"
    back = window / group if shift == "exact" else window // group

    def read(i, j):
        grouped = i // group - j // group + window - back if group > 1 else i - j
        return i - j if i - j < window else grouped

    same(effective(compose(text, length)), table(length, read))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 60))
@settings(deadline=None, max_examples=25)
def test_self_extend_has_no_seam_where_the_group_divides_the_window(group, times, length):
    rows = effective(compose(f"rope+self_extend:window={group * times}:group={group}", length))
    steps = rows[:, :-1] - rows[:, 1:]  # from a key to the next one
    assert set(steps[~steps.isnan()].tolist()) <= {0.0, 1.0}


@given(st.integers(2, 40), st.integers(1, 300))
@settings(deadline=None, max_examples=25)
def test_defaults_keep_every_distance_within_training(train_length, length):
    for name in ("leaky_rerope", "self_extend", "sinks:sinks=1", "lm_infinite", "rerope"):
        rows = effective(compose(f"rope+{name}", length, train_length))
        limit = train_length - 1 if name.startswith(("self", "sinks")) else train_length
        assert rows[~rows.isnan()].max() <= limit + 1e-4, name


@pytest.mark.parametrize("name", ["leaky_rerope", "self_extend"])
def test_unset_sizes_change_nothing_within_training(name):
    positions = Positions.build(16, phase="test")
    same(effective(compose(f"rope+{name}", 16)), table(16, lambda i, j: i - j))
    assert not pezoo.create(f"rope+{name}", **SHAPE).prefix_stable
    fixed = {"leaky_rerope": "shrink", "self_extend": "group"}[name]
    assert pezoo.create(f"rope+{name}:{fixed}=4", **SHAPE).prefix_stable
    assert positions.length == 16


@pytest.mark.parametrize("name", ["leaky_rerope", "self_extend"])
def test_rows_of_different_lengths_read_their_own_distances(name):
    lengths = torch.tensor([16, 40, 100])
    composition = compose(f"rope+{name}", 40, batch=3, declared=lengths)
    for row, length in enumerate(lengths.tolist()):
        same(effective(composition, row), effective(compose(f"rope+{name}", 40, declared=length)))


@pytest.mark.parametrize("text", ["rerope:window=4", "leaky_rerope:window=4:shrink=3", "lm_infinite:first=2:size=8"])
def test_an_encoder_reads_both_sides_alike(text):
    rows = effective(compose(f"rope+{text}", 20, causal=False))
    ahead = rows.isnan() | rows.T.isnan()
    torch.testing.assert_close(rows[~ahead], -rows.T[~ahead])


def test_self_extend_groups_both_sides_of_an_encoder():
    rows = effective(compose("rope+self_extend:window=4:group=2", 20, causal=False))
    for i, j in ((0, 19), (3, 12), (9, 4), (5, 9)):
        n, w, g = i - j, 4, 2
        far = i // g - j // g + (w - w // g) * (1 if n > 0 else -1)
        assert rows[i, j] == (n if abs(n) < w else far)


def test_grouping_reads_interpolated_coordinates():
    """kerple+pi+self_extend: a window and groups of interpolated positions."""
    rows = effective(compose("kerple+pi:factor=2+self_extend:window=4:group=2", 30))

    def read(i, j):
        n = (i - j) / 2
        return n if n < 4 else i / 2 // 2 - j / 2 // 2 + 2

    same(rows, table(30, read))


# Sinks, against a cache that is simulated token by token


def simulate(n_sinks, size, length, evict):
    """{query: {key: distance}} of a StreamingLLM cache."""
    cache, seen = [], {}
    for token in range(length):
        if evict == "before" and len(cache) == n_sinks + size:
            del cache[n_sinks]
        cache.append(token)
        place = len(cache) - 1
        seen[token] = {key: place - p for p, key in enumerate(cache)}
        if evict == "after" and len(cache) > n_sinks + size:
            del cache[n_sinks]
    return seen


@given(st.integers(1, 5), st.integers(1, 12), st.integers(1, 40), st.sampled_from(["before", "after"]))
@settings(deadline=None, max_examples=40)
def test_sinks_are_a_streaming_cache(n_sinks, size, length, evict):
    ours = effective(compose(f"rope+sinks:sinks={n_sinks}:size={size}:evict={evict}", length))
    seen = simulate(n_sinks, size, length, evict)
    same(ours, table(length, lambda i, j: seen[i][j], lambda i, j: j in seen[i]))


def test_sinks_restart_with_each_document():
    documents = torch.tensor([[0] * 9 + [1] * 14])
    rows = effective(compose("alibi+sinks:sinks=2:size=3", 23, documents=documents))
    alone = [effective(compose("alibi+sinks:sinks=2:size=3", n)) for n in (9, 14)]
    same(rows[:9, :9], alone[0])
    same(rows[9:, 9:], alone[1])
    assert rows[9:, :9].isnan().all()


def test_sinks_stand_at_interpolated_and_random_coordinates():
    rows = effective(compose("rope+pi:factor=2+sinks:sinks=2:size=3", 20))
    seen = simulate(2, 3, 20, "before")
    same(rows, table(20, lambda i, j: seen[i][j] / 2, lambda i, j: j in seen[i]))
    composition = compose("alibi+random+sinks:sinks=2:size=3", 20)
    p = composition.positions.key[0]
    expected = table(20, lambda i, j: p[min(i, 4)] - p[j] if i - j >= 3 else p[i] - p[j], lambda i, j: j in seen[i])
    same(effective(composition), expected)


@given(st.integers(0, 4), st.integers(1, 12), st.integers(1, 12), st.integers(1, 30))
@settings(deadline=None, max_examples=25)
def test_lm_infinite_by_pairs(first, size, limit, length):
    ours = effective(compose(f"rope+lm_infinite:first={first}:size={size}:limit={limit}", length))
    same(ours, table(length, lambda i, j: min(i - j, limit), lambda i, j: i - j < size or j < first))


# Attention itself


FAR = (
    "leaky_rerope:window=4:shrink=2.5",
    "self_extend:window=4:group=2",
    "self_extend",
    "sinks:sinks=2:size=5",
    "lm_infinite:first=2:size=6:limit=5",
)


@pytest.mark.parametrize("text", FAR)
def test_rope_turns_each_pair_by_its_distance(text):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 37, 16).unbind()
    scheme = pezoo.create(f"rope+{text}", **SHAPE).eval()
    n = effective(scheme.prepare(Positions.build(37, phase="test")).layers[0][0].composition).double()
    pairs_q, pairs_k = (torch.view_as_complex(x[0].double().unflatten(-1, (8, 2))) for x in (q, k))
    w = 10000 ** (-torch.arange(8, dtype=torch.float64) / 8)
    turns = torch.polar(torch.ones(37, 37, 8, dtype=torch.float64), n.nan_to_num()[..., None] * w)
    logits = torch.einsum("hik,hjk,ijk->hij", pairs_q, pairs_k.conj(), turns).real / 4
    weights = logits.masked_fill(n.isnan(), -torch.inf).softmax(-1)
    ours = pezoo.attend(scheme, q, k, v, phase="test")[0]
    torch.testing.assert_close(ours.double(), weights @ v[0].double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("text", FAR)
def test_alibi_penalises_each_pair_by_its_distance(text):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 37, 16).unbind()
    scheme = pezoo.create(f"alibi+{text}", **SHAPE).eval()
    n = effective(scheme.prepare(Positions.build(37, phase="test")).layers[0][0].composition).double()
    slopes = torch.tensor([0.0625, 0.00390625], dtype=torch.float64)[:, None, None]
    logits = (q[0] @ k[0].transpose(-1, -2)).double() / 4 - slopes * n
    weights = logits.masked_fill(n.isnan(), -torch.inf).softmax(-1)
    ours = pezoo.attend(scheme, q, k, v, phase="test")[0]
    torch.testing.assert_close(ours.double(), weights @ v[0].double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["leaky_rerope", "self_extend", "sinks", "lm_infinite"])
@pytest.mark.parametrize("base", ["sinusoidal", "learned"])
def test_far_regions_need_pairs_of_positions(name, base):
    with pytest.raises(pezoo.UserError, match="term of pairs of positions"):
        pezoo.create(f"{base}+{name}", **SHAPE)


@pytest.mark.parametrize("name", ["sinks", "lm_infinite"])
def test_without_positions_the_mask_is_all_of_it(name):
    scheme = pezoo.create(f"nope+{name}", **SHAPE).eval()
    x = torch.randn(1, 2, 40, 16)
    bare = pezoo.create("nope", **SHAPE)
    assert not torch.equal(pezoo.attend(scheme, x, x, x, phase="test"), pezoo.attend(bare, x, x, x, phase="test"))
