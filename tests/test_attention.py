"""Attention: the eager definition against loops over pairs, and how back-ends are chosen and refused."""

import math

import pytest
import torch

import pezoo
from helpers import member
from pezoo import attention
from pezoo.attention import merged
from pezoo.cli.bench.measuring import Extent
from pezoo.cli.bench.sections import growth
from pezoo.composition import Composition, Part, Region
from pezoo.contract import Branch, Encoding, Extension, Positions, Shape
from pezoo.errors import UserError

B, H, L, D = 2, 2, 11, 4
SHAPE = Shape(H * D, H, 1, 8)


class Everything(Encoding):
    """Overrides every hook of attention."""

    def rotate(self, q, k, positions):
        return q + 0.1 * positions.query[:, None, :, None], k * (1 + 0.05 * positions.key)[:, None, :, None]

    def scale(self):
        return 0.3

    def distance_bias(self, distance):
        return torch.stack([-0.2 * distance, -0.1 * distance])

    def content(self, q, k, positions):
        return 0.05 * (q.sum(-1)[..., None] - k.sum(-1)[..., None, :]) * positions.distance()[:, None]

    def mix(self, weights, v, positions):
        return weights @ v + (weights * positions.distance()[:, None]).sum(-1, keepdim=True)


class FarAway(Extension):
    """A scale for each query, a mask, and a far region."""

    def scale(self, positions):
        return 1 + 0.1 * positions.query_index

    def mask(self, positions):
        return positions.steps() != 2

    def branches(self, positions):
        query, key = torch.full_like(positions.query, 9.0), positions.key / 2
        far = positions.replace(query=query, key=key, spacing=None)
        return (Branch(far, lambda here: here.steps() > 4),)


class Squared(Extension):
    """Logits and bias apart."""

    def adapt(self, logits, bias, positions):
        return logits - bias**2


def compose(encodings, extensions, positions):
    here = Region(tuple(Part(e, positions) for e in encodings))
    far = [Region(tuple(Part(e, b.positions) for e in encodings), b) for x in extensions for b in x.branches(positions)]
    return Composition(positions, (here, *far), tuple(extensions))


def by_pairs(q, k, v, visible):
    """The same for one pair after another, in float64."""
    q, k, v = (t.double() for t in (q, k, v))
    out = torch.zeros_like(q)
    for b in range(B):
        for h in range(H):
            for i in range(L):
                seen = [j for j in range(L) if visible(i, j) and i - j != 2]
                logits, distances = [], []
                for j in seen:
                    p, r = (9.0, j / 2) if i - j > 4 else (float(i), float(j))
                    rotated = (q[b, h, i] + 0.1 * p) @ (k[b, h, j] * (1 + 0.05 * r))
                    content = 0.05 * (q[b, h, i].sum() - k[b, h, j].sum()) * (p - r)
                    logits.append((rotated * 0.3 + content) * (1 + 0.1 * i) - 0.2 / (1 + h) * (p - r))
                    distances.append(p - r)
                weights = torch.softmax(torch.stack(logits), 0)
                values = torch.stack([v[b, h, j] + n for j, n in zip(seen, distances, strict=True)])
                out[b, h, i] = weights @ values
    return out


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("backend", ["eager", "chunked"])
def test_all_hooks_at_once_are_the_formula(causal, backend, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 3)
    q, k, v = torch.randn(3, B, H, L, D)
    composition = compose(
        [Everything(SHAPE, None)], [FarAway(SHAPE, None)], Positions.build(L, B, causal=causal, phase="test")
    )
    ours = attention.attend(q, k, v, composition, backend)
    expected = by_pairs(q, k, v, lambda i, j: j <= i or not causal)
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("backend", ["eager", "chunked"])
def test_adapting_sees_logits_and_bias_apart(backend, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 3)
    q, k, v = torch.randn(3, B, H, L, D)
    encoding = Everything(SHAPE, None)
    positions = Positions.build(L, B, phase="test")
    composition = compose([encoding], [Squared(SHAPE, None)], positions)
    n = positions.distance()[0]
    rotated_q, rotated_k = encoding.rotate(q, k, positions)
    logits = 0.3 * rotated_q @ rotated_k.mT + encoding.content(q, k, positions) - encoding.distance_bias(n) ** 2
    weights = torch.softmax(logits.masked_fill(n < 0, -torch.inf), -1)
    expected = encoding.mix(weights, v, positions)
    torch.testing.assert_close(attention.attend(q, k, v, composition, backend), expected)


def test_two_encodings_add_up():
    q, k = torch.randn(2, B, H, L, D)
    scheme = pezoo.create("alibi+kerple+rope", d_model=8, n_heads=2, n_layers=1, train_length=8)
    composition = scheme.prepare(Positions.build(L, phase="test")).layers[0][0].composition
    alone = [
        pezoo.create(name, d_model=8, n_heads=2, n_layers=1, train_length=8).prepare(Positions.build(L, phase="test"))
        for name in ("alibi", "rope")
    ]
    alibi, rope = (p.layers[0][0].composition for p in alone)
    kerple = member(scheme, "kerple").bias(Positions.build(L, phase="test"))
    assert torch.equal(composition.bias(), alibi.bias() + kerple)
    for ours, theirs in zip(composition.rotate(q, k), rope.rotate(q, k), strict=True):
        assert torch.equal(ours, theirs)


# Back-ends at real sizes


def make(text, train_length=64, n_heads=3, **facts):
    sizes = {"d_model": 8 * n_heads, "n_heads": n_heads, "n_layers": 1, "train_length": train_length} | facts
    scheme = pezoo.create(text, **sizes).eval()
    for parameter in scheme.parameters():
        parameter.data.add_(torch.rand_like(parameter))
    return scheme


def run(scheme, q, k, v, backend, **facts):
    n_keys = k.shape[-2]
    positions = Positions.build(n_keys, q.shape[0], phase="test", rows=range(len(q)), **facts).slice(
        n_keys - q.shape[-2], n_keys
    )
    return scheme.prepare(positions).attend(0, q, k, v, backend)


@pytest.mark.parametrize("text", ["nope", "alibi", "kerple+logn", "t5+pi", "rope+yarn", "fire", "shaw", "alibi+window"])
def test_chunks_of_the_default_size_equal_eager(text):
    scheme = make(text)
    q, k, v = torch.randn(3, 1, 3, 1300, 8)
    with torch.no_grad():
        expected, auto, chunked = (run(scheme, q, k, v, b) for b in ("eager", "auto", "chunked"))
        torch.testing.assert_close(chunked, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(auto, expected, rtol=0, atol=1e-5)
        last = run(scheme, q[:, :, -600:], k, v, "chunked")
        torch.testing.assert_close(last, expected[:, :, -600:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("text", ["alibi:slopes=learned", "kerple", "t5", "rope+logn", "alibi+window:size=9"])
@pytest.mark.parametrize("size", [1, 4, 1000])
def test_any_size_of_chunk_gives_the_same_gradients(text, size, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", size)
    scheme = make(text, 4)

    def gradients(backend):
        generator = torch.Generator().manual_seed(0)
        tensors = [torch.randn(2, 3, 13, 8, generator=generator, requires_grad=True) for _ in range(3)]
        run(scheme, *tensors, backend).square().sum().backward()
        found = [t.grad for t in tensors] + [p.grad for p in scheme.parameters()]
        scheme.zero_grad()
        return found

    for ours, expected in zip(gradients("chunked"), gradients("eager"), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_chunks_of_pairs_are_bounded(monkeypatch):
    monkeypatch.setattr(attention, "PAIRS", 100)
    sizes = []
    scheme = make("fire")
    fire = member(scheme, "fire")
    bias = fire.bias
    monkeypatch.setattr(fire, "bias", lambda p: sizes.append((p.query.shape[1], p.key.shape[1])) or bias(p))
    q, k, v = torch.randn(3, 1, 3, 30, 8)
    chunked = run(scheme, q, k, v, "chunked")
    assert sizes == [(3, n) for n in range(3, 31, 3)]
    torch.testing.assert_close(chunked, run(scheme, q, k, v, "eager"), rtol=0, atol=1e-5)


def test_a_bias_of_distance_is_never_built_for_pairs():
    scheme = make("alibi+kerple")
    composition = scheme.prepare(Positions.build(2000, phase="test")).layers[0][0].composition
    assert composition.distance_table().shape == (3, 3999)
    assert attention.choose(composition) == "chunked"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["sdpa", "chunked"])
def test_biases_are_not_rounded_to_the_dtype_of_the_tokens(dtype, backend, monkeypatch):
    """Distances 1000 and 1001 are one in bfloat16."""
    monkeypatch.setattr(attention, "CHUNK", 64)
    scheme = make("alibi:slopes=learned", n_heads=1)
    member(scheme, "alibi").slopes.data.fill_(-1.0)  # far keys attract
    q, k = torch.zeros(2, 1, 1, 1500, 8, dtype=dtype)
    v = torch.zeros(1, 1, 1500, 8, dtype=dtype)
    v[:, :, 0] = 1
    out = run(scheme, q, k, v, backend)
    assert out.dtype == dtype
    assert out[0, 0, -1, 0].item() == pytest.approx(1 - math.exp(-1), rel=1e-2)


# Queries, keys and positions


@pytest.mark.parametrize(
    ("text", "backend"),
    [
        *((text, backend) for text in ("rope", "alibi") for backend in ("eager", "sdpa", "chunked")),
        *((text, backend) for text in ("rope+rerope", "shaw") for backend in ("eager", "chunked")),
    ],
)
def test_fewer_heads_of_keys(text, backend):
    scheme = make(text, n_heads=4)
    q, (k, v) = torch.randn(2, 4, 20, 8), torch.randn(2, 2, 2, 20, 8)
    repeated = [t.repeat_interleave(2, dim=1) for t in (k, v)]
    torch.testing.assert_close(run(scheme, q, k, v, backend), run(scheme, q, *repeated, backend))


@pytest.mark.parametrize("text", ["nope", "alibi", "t5", "alibi+pi", "rope+random:draw=batch"])
@pytest.mark.parametrize("n_queries", [1, 2, 7, 40])
def test_fewer_queries_than_keys(text, n_queries, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 3)
    monkeypatch.setattr(attention, "DENSE_LIMIT", 5)
    scheme = make(text, 16)
    q, k, v = torch.randn(3, 1, 3, 40, 8)
    expected = run(scheme, q, k, v, "eager")[:, :, -n_queries:]
    for backend in ("eager", "sdpa", "chunked", "auto"):
        ours = run(scheme, q[:, :, -n_queries:], k, v, backend)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


NARROW = ["nope", "rope", "alibi", "kerple", "learned", "rope+random", "alibi+random", "rope+logn", "alibi+pi"]


@pytest.mark.parametrize("mask", ["window:size=7", "blockwise:size=5", "memory:segment=6:memory=9"])
@pytest.mark.parametrize("text", NARROW)
def test_keys_out_of_reach_are_left_out_and_not_missed(text, mask, monkeypatch):
    """Odd lengths, few queries, both directions, gradients; and no tensor holds more keys than are in reach."""
    monkeypatch.setattr(attention, "SMALLEST_CHUNK", 3)
    monkeypatch.setattr(attention, "DENSE_LIMIT", 5)
    widths = []
    fused = attention.F.scaled_dot_product_attention
    spy = lambda q, k, *rest, **facts: widths.append(k.shape[-2]) or fused(q, k, *rest, **facts)  # noqa: E731
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", spy)
    learned = attention.learned_pairs.attend
    monkeypatch.setattr(
        attention.learned_pairs, "attend", lambda q, k, *rest: widths.append(k.shape[-2]) or learned(q, k, *rest)
    )
    for causal in (True, False):
        scheme = make(f"{text}+{mask}", 41, causal=causal)
        q, k, v = (t.requires_grad_() for t in torch.randn(3, 2, 3, 41, 8).unbind())
        for n_queries in (41, 10, 1):
            outs, gradients = [], []
            for backend in ("eager", "auto"):
                out = run(scheme, q[:, :, -n_queries:], k, v, backend, causal=causal)
                gradients.append(torch.autograd.grad(out.square().sum(), (q, k, v)))
                outs.append(out)
            torch.testing.assert_close(outs[1], outs[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-4)
        assert widths
        assert max(widths) <= (22 if causal else 30)


@pytest.mark.parametrize("scale", ["logn", "ssmax"])
@pytest.mark.parametrize("mask", ["window:size=32", "lm_infinite:size=32", "lm_infinite:size=32+window:size=90"])
def test_an_encoder_counts_keys_out_of_reach_too(mask, scale):
    """Sigma is made of the 300 tokens of the text, beyond the training length, however few keys a chunk is given."""
    scheme = make(f"rope+{mask}+{scale}", 32, causal=False)
    q, k, v = torch.randn(3, 1, 3, 300, 8)
    with torch.no_grad():
        expected = run(scheme, q, k, v, "eager", causal=False)
        sigma = math.log(300) / math.log(32)
        if scale == "ssmax":
            sigma = math.log(300) * member(scheme, "ssmax").s[:, None, None]
        bare = make(f"rope+{mask}", 32, causal=False)
        torch.testing.assert_close(run(bare, q * sigma, k, v, "eager", causal=False), expected, rtol=0, atol=1e-5)
        for backend in ("auto", "chunked"):
            torch.testing.assert_close(run(scheme, q, k, v, backend, causal=False), expected, rtol=0, atol=1e-5)


DRAWN = ["alibi+random", "kerple+random+logn", "alibi+t5+random", "alibi+random:relative=toeplitz", "rope+alibi+random"]


@pytest.mark.parametrize("text", DRAWN)
@pytest.mark.parametrize("rows", [1, 2])
def test_biases_at_drawn_coordinates(text, rows, monkeypatch):
    """With gradients and without, few queries, packed rows, encoders; twice, so that nothing shared was overwritten."""
    monkeypatch.setattr(attention, "CHUNK", 7)
    monkeypatch.setattr(attention, "PAIRS", 400)
    monkeypatch.setattr(attention, "DENSE_LIMIT", 5)
    documents = (torch.arange(41) > 17).long().expand(rows, -1)
    for causal in (True, False):
        scheme = make(text.replace("rope", "rope:base=100"), 16, causal=causal)
        q, k, v = (t.requires_grad_() for t in torch.randn(3, rows, 3, 41, 8).unbind())
        learned = [q, k, v, *scheme.parameters()]
        for n_queries in (41, 10):
            for facts in ({}, {"documents": documents}) if causal else ({},):
                outs, gradients = [], []
                for backend in ("eager", "auto"):
                    some = q[:, :, -n_queries:]
                    outs.append(run(scheme, some, k, v, backend, causal=causal, **facts))
                    gradients.append(torch.autograd.grad(outs[-1].square().sum(), learned))
                    with torch.no_grad():
                        outs += [run(scheme, some, k, v, backend, causal=causal, **facts) for _ in range(2)]
                for out in outs[1:]:
                    torch.testing.assert_close(out, outs[0], rtol=0, atol=1e-5)
                for ours in gradients[1:]:
                    torch.testing.assert_close(ours, gradients[0], rtol=1e-4, atol=1e-4)


def test_drawn_distances_of_one_row_need_no_pairs():
    """Those of several rows differ, and need them."""
    scheme = make("alibi+random:relative=toeplitz+window:size=40")
    for rows in (1, 2):
        composition = scheme.prepare(Positions.build(300, rows, phase="test", rows=range(rows))).at(0)[0].composition
        table, positions = composition.distance_table(), composition.positions
        assert (table is None) == (rows == 2)
        if table is not None:
            steps = positions.steps()[0]
            bias = composition.bias()[0].masked_fill(~composition.visible(), -torch.inf)
            assert torch.equal(table[:, 299 - steps], bias)


def test_layers_share_a_table_unless_it_is_being_learned():
    scheme = make("alibi+t5", n_layers=3)
    prepared = scheme.prepare(Positions.build(20, phase="test"))
    of_layers = [prepared.at(layer)[0].composition for layer in range(3)]
    tables = [c.distance_table() for c in of_layers]
    assert len({id(t) for t in tables}) == 3
    assert all(t.requires_grad for t in tables)
    with torch.no_grad():
        assert len({id(c.distance_table()) for c in of_layers}) == 1
        part = of_layers[0].slice(5, 9, 9)
        assert torch.equal(part.distance_table(), tables[0][:, 11:23])
    assert of_layers[1].distance_table().requires_grad


REGIONS = [
    *(
        "rope+rerope",
        "rope+rerope+logn",
        "rope+leaky_rerope:window=9",
        "rope+self_extend",
        "alibi+rerope",
        "t5+self_extend",
    ),
    *(
        "rope+sinks:size=7",
        "alibi+sinks",
        "rope+lm_infinite:size=7",
        "kerple+lm_infinite",
        "rope+dca:size=12",
        "alibi+dca",
    ),
    *(
        "rope+sink_logits",
        "alibi+sink_logits",
        "rope+window:size=7+sink_logits",
        "rope+rerope+window:size=30",
        "fire+rerope",
    ),
]


@pytest.mark.parametrize("text", REGIONS)
def test_far_regions_and_sinks_are_merged_of_fused_passes(text, monkeypatch):
    """Odd lengths, few queries, both directions, rows whose lengths differ, half precision."""
    monkeypatch.setattr(attention, "DENSE_LIMIT", 5)
    monkeypatch.setattr(merged, "CHUNK", 8)
    monkeypatch.setattr(merged, "PAIRS", 300)
    used, own = [], merged.attend
    monkeypatch.setattr(merged, "attend", lambda *given: used.append(given) or own(*given))
    for causal in (True, False):
        scheme = make(text, 16, causal=causal)
        q, k, v = torch.randn(3, 2, 3, 77, 8)
        for n_queries in (77, 20):
            for facts in ({}, {"declared": torch.tensor([77, 90])}):
                with torch.no_grad():
                    some = q[:, :, -n_queries:]
                    expected, ours = (run(scheme, some, k, v, b, causal=causal, **facts) for b in ("eager", "auto"))
                    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5)
                    half = run(scheme, some.bfloat16(), k.bfloat16(), v.bfloat16(), "auto", causal=causal, **facts)
                    torch.testing.assert_close(half.float(), expected, rtol=0, atol=0.2)
        assert len(used) >= 8
        used.clear()


def test_training_with_far_regions_is_not_merged(monkeypatch):
    """The kernel's log-sum-exp has no gradient."""
    monkeypatch.setattr(merged, "attend", None)
    q, k, v = (t.requires_grad_() for t in torch.randn(3, 1, 3, 300, 8).unbind())
    run(make("rope+rerope"), q, k, v, "auto").sum().backward()


@pytest.mark.parametrize("text", ["rope+window:size=7", "alibi+window:size=7", "nope+blockwise:size=5"])
def test_packed_and_padded_rows_see_their_reach(text, monkeypatch):
    monkeypatch.setattr(attention, "SMALLEST_CHUNK", 3)
    monkeypatch.setattr(attention, "DENSE_LIMIT", 5)
    scheme = make(text, 41)
    q, k, v = torch.randn(3, 2, 3, 41, 8)
    place = torch.arange(41)
    for facts in ({"documents": (place // 13).expand(2, -1)}, {"valid": (place >= torch.tensor([[0], [9]]))}):
        outs = [run(scheme, q, k, v, backend, **facts) for backend in ("eager", "auto")]
        torch.testing.assert_close(outs[1], outs[0], rtol=0, atol=1e-5)


def test_a_fixed_bias_of_distance_is_not_computed_again_for_gradients(monkeypatch):
    """The fused kernel keeps no pairs, so nothing is saved by it; and few pairs are kept."""
    monkeypatch.setattr(attention, "CHUNK", 16)
    monkeypatch.setattr(attention, "KEPT", 2 * 300**2)
    again = []
    monkeypatch.setattr(attention, "checkpoint", lambda chunk, start, **_: again.append(start) or chunk(start))
    q, k, v = (t.requires_grad_() for t in torch.randn(3, 1, 3, 300, 8).unbind())
    for text, recomputed in (("alibi", False), ("rope+window:size=9", False), ("kerple", True), ("fire", True)):
        again.clear()
        run(make(text), q, k, v, "auto").sum().backward()
        assert bool(again) == recomputed, text
    monkeypatch.setattr(attention, "KEPT", 3 * 300**2)
    again.clear()
    run(make("fire"), q, k, v, "auto").sum().backward()
    assert not again


def test_the_dtype_of_values_is_kept():
    q, k, v = torch.randn(3, 1, 3, 20, 8).bfloat16()
    for text in ("rope", "alibi", "shaw", "rope+yarn", "fire"):
        scheme = make(text).bfloat16()
        expected = run(scheme.float(), q.float(), k.float(), v.float(), "eager")
        for backend in ("eager", "chunked", "auto"):
            ours = run(scheme.bfloat16(), q, k, v, backend)
            assert ours.dtype == torch.bfloat16
            torch.testing.assert_close(ours.float(), expected, rtol=0, atol=0.1)


# Choice and refusal


def composition(text, n_queries=300, n_keys=300, causal=True, **facts):
    sizes = {"d_model": 8, "n_heads": 1, "n_layers": 1, "train_length": 64}
    positions = Positions.build(n_keys, causal=causal, **{"phase": "test", "rows": (0,)} | facts).slice(
        n_keys - n_queries, n_keys
    )
    return pezoo.create(text, **sizes, causal=causal).eval().prepare(positions).layers[0][0].composition


@pytest.mark.parametrize(
    ("text", "facts", "backend"),
    [
        ("rope", {}, "sdpa"),
        ("rope", {"causal": False}, "sdpa"),
        ("rope+yarn+logn", {}, "sdpa"),
        ("alibi", {}, "chunked"),
        ("alibi", {"n_queries": 200, "n_keys": 200}, "sdpa"),
        ("alibi", {"n_queries": 1}, "sdpa"),
        ("rope+window", {}, "chunked"),
        ("fire", {}, "chunked"),
        ("rope", {"documents": torch.arange(300)[None] // 100}, "chunked"),
        ("rope", {"n_queries": 200}, "chunked"),
        ("rope", {"n_queries": 200, "causal": False}, "sdpa"),
        ("shaw", {"n_queries": 200, "n_keys": 200}, "eager"),
        ("rope+rerope", {"n_queries": 200, "n_keys": 200}, "eager"),
        ("shaw", {}, "chunked"),
        ("shaw", {"n_queries": 1}, "eager"),
    ],
)
def test_the_back_end_follows_from_what_a_scheme_declares(text, facts, backend):
    assert attention.choose(composition(text, **facts)) == backend


@pytest.mark.parametrize(
    ("text", "hook"),
    [("rope+rerope", "branches"), ("shaw:values=false", "content"), ("alibi+dape", "adapt"), ("shaw", "content")],
)
def test_sdpa_refuses_what_it_would_drop(text, hook):
    q, k, v = torch.randn(3, 1, 1, 300, 8)
    message = f"back-end 'sdpa' cannot run this scheme: it has no place for {hook}; use backend=auto"
    with pytest.raises(UserError, match=message):
        attention.attend(q, k, v, composition(text), "sdpa")


def test_sdpa_refuses_relative_values():
    class Values(Encoding):
        """Changes what is mixed."""

        def mix(self, weights, v, positions):
            return weights @ v + 1

    mixed = compose([Values(SHAPE, None)], [], Positions.build(L, phase="test"))
    with pytest.raises(UserError, match="no place for mix"):
        attention.attend(*torch.randn(3, B, H, L, D), mixed, "sdpa")


def test_an_unknown_back_end_gets_near_matches():
    q, k, v = torch.randn(3, 1, 1, 300, 8)
    message = r"no attention back-end 'spda'\. Did you mean 'sdpa'\? Known: auto, eager, sdpa, chunked"
    with pytest.raises(UserError, match=message):
        attention.attend(q, k, v, composition("rope"), "spda")


def test_every_path_is_used(monkeypatch):
    """What `auto` chooses is what runs."""
    ran = []
    for name in attention.BACKENDS:
        monkeypatch.setitem(attention.BACKENDS, name, lambda q, k, v, c, name=name: ran.append(name))
    for text, n in (("rope", 300), ("alibi", 300), ("shaw", 200)):
        attention.attend(*torch.randn(3, 1, 1, n, 8), composition(text, n, n))
    assert ran == ["sdpa", "chunked", "eager"]


@pytest.mark.slow
def test_a_bias_of_distance_costs_no_memory_at_16384_tokens():
    none, alibi = (growth(scheme, Extent().long) for scheme in ("nope", "alibi"))
    assert alibi < max(1.3 * none, none + 40)
