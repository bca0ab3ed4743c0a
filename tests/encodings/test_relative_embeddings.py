"""Transformer-XL, DeBERTa, xPos and CoPE against their papers' formulas in float64, and against other libraries."""

import cmath
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pezoo
from helpers import member, reals, vectors
from pezoo.contract import Positions
from pezoo.encodings.relative.deberta import log_bucket

WIDTH, HEADS, LENGTH = 12, 3, 7
HEAD = WIDTH // HEADS


def create(scheme, train_length=LENGTH, width=WIDTH, heads=HEADS, causal=True):
    """A scheme whose parameters are random."""
    sizes = {"d_model": width, "n_heads": heads, "n_layers": 2, "train_length": train_length}
    scheme = pezoo.create(scheme, **sizes, causal=causal)
    generator = torch.Generator().manual_seed(1)
    for parameter in scheme.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return scheme.eval()


def naive(logit, q, k, v, visible):
    """Attention of one row in float64, whose logits are logit(h, q_i, k_j, i, j)."""
    q, k, v = q.double(), k.double(), v.double()
    out = torch.zeros_like(v)
    for h in range(q.shape[0]):
        for i in range(q.shape[1]):
            seen = [j for j in range(q.shape[1]) if visible[i, j]]
            weights = torch.stack([logit(h, q[h, i], k[h, j], i, j) for j in seen]).softmax(0)
            out[h, i] = sum(w * v[h, j] for w, j in zip(weights, seen, strict=True))
    return out


def check(scheme, logit, positions, layer=0, atol=1e-5):
    """The scheme's attention is that of naively made logits; `logit` gets its row as well."""
    q, k, v = vectors(3, 2, HEADS, LENGTH, HEAD)
    visible = positions.visible()
    with torch.no_grad():
        for row in range(2):
            expected = naive(lambda *a, row=row: logit(row, *a), q[row], k[row], v[row], visible[row % len(visible)])
            for backend in ("eager", "chunked"):
                out = pezoo.attend(scheme, q, k, v, positions=positions, layer=layer, backend=backend)[row]
                torch.testing.assert_close(out.double(), expected, atol=atol, rtol=1e-5)


DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1]])
REALS = torch.tensor([[0.0, 1, 2.5, 3, 7.25, 20, 150], [3.0, 5, 6, 7, 8, 9, 30.5]])
LAYOUTS = {
    "plain": lambda: Positions.build(LENGTH, phase="test"),
    "scaled": lambda: Positions.build(LENGTH, phase="test").scaled(0.3),
    "documents": lambda: Positions.build(LENGTH, 2, documents=DOCUMENTS, phase="test"),
    "real": lambda: reals(REALS),
    "ruler": lambda: Positions.build(LENGTH, phase="test").replace(ruler=REALS - REALS[:, :1]),
}


def distances(positions):
    """Signed distances of both rows, float64."""
    return positions.distance().double().expand(2, -1, -1)


# transformer_xl


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("untie", [False, True])
@pytest.mark.parametrize("layer", [0, 1])
def test_transformer_xl_is_the_papers_sum_of_four_terms(layout, untie, layer):
    scheme, positions = create(f"transformer_xl:untie={untie}"), LAYOUTS[layout]()
    member, n = scheme.members[0], distances(positions)
    assert len(member.u) == (2 if untie else 1)

    def logit(row, h, q, k, i, j):
        w = [10000 ** (-2 * m / WIDTH) for m in range(WIDTH // 2)]
        angles = [float(n[row, i, j]) * x for x in w]
        r = torch.tensor([*map(math.sin, angles), *map(math.cos, angles)], dtype=torch.float64)
        relative = member.project[layer, h].double() @ r
        u, v = (x[layer % len(x), h].double() for x in (member.u, member.v))
        return (q @ k + q @ relative + u @ k + v @ relative) / HEAD**0.5

    check(scheme, logit, positions, layer)


def test_transformer_xl_in_an_encoder_tells_past_from_future():
    scheme = create("transformer_xl", causal=False)
    q, k, v = vectors(3, 1, HEADS, LENGTH, HEAD)
    positions = Positions.build(LENGTH, causal=False, phase="test")
    out = pezoo.attend(scheme, q, k, v, positions=positions)
    mirrored = pezoo.attend(scheme, q.flip(2), k.flip(2), v.flip(2), positions=positions).flip(2)
    assert (out - mirrored).abs().max() > 0.1
    ruled = positions.replace(ruler=torch.arange(float(LENGTH))[None])
    torch.testing.assert_close(pezoo.attend(scheme, q, k, v, positions=ruled), out, atol=1e-5, rtol=1e-5)


# deberta


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("convention", ["paper", "released"])
@pytest.mark.parametrize(("terms", "layer"), [("both", 0), ("both", 1), ("c2p", 1), ("p2c", 1)])
@pytest.mark.parametrize("buckets", [None, 4])
def test_deberta_is_the_papers_sum_of_terms(layout, convention, terms, layer, buckets):
    reach, far = buckets or 3, 20 if buckets else 3
    more = f":buckets={buckets}" if buckets else ""
    scheme = create(f"deberta:max_distance={far}:position_to_content={convention}:terms={terms}{more}")
    positions = LAYOUTS[layout]()
    member, n = scheme.members[0], distances(positions)
    table = member.table.double()
    assert len(table) == 2 * reach

    def clip(x):
        x = round(x)
        if buckets and abs(x) > buckets // 2:
            middle = buckets // 2
            share = math.log(abs(x) / middle) / math.log((far - 1) / middle)
            x = int(math.copysign(middle + math.ceil(share * (middle - 1)), x))
        return min(max(x + reach, 0), 2 * reach - 1)

    def logit(row, h, q, k, i, j):
        distance, total, sides = float(n[row, i, j]), q @ k, iter(member.project[:, layer, h].double())
        if terms != "p2c":
            total = total + q @ (table @ next(sides))[clip(distance)]
        if terms != "c2p":
            total = total + k @ (table @ next(sides))[clip(-distance if convention == "paper" else distance)]
        return total / ((3 if terms == "both" else 2) * HEAD) ** 0.5

    check(scheme, logit, positions, layer)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 3), st.integers(0, 99))
def test_deberta_released_is_that_of_transformers(length, reach, heads, seed):
    module = pytest.importorskip("transformers.models.deberta.modeling_deberta", reason="parity needs transformers")
    width = 4 * heads
    config = SimpleNamespace(
        hidden_size=width,
        num_attention_heads=heads,
        pos_att_type=["c2p", "p2c"],
        relative_attention=True,
        max_relative_positions=reach,
        max_position_embeddings=reach,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    scheme = create(f"deberta:max_distance={reach}:position_to_content=released", width=width, heads=heads)
    member = scheme.members[0]
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        theirs = module.DisentangledSelfAttention(config).eval()
        for projection, ours in ((theirs.pos_proj, 0), (theirs.pos_q_proj, 1)):
            projection.weight.copy_(member.project[ours, 1].transpose(-1, -2).flatten(0, 1))
        theirs.pos_q_proj.bias.zero_()
        x = torch.randn(1, length, width)
        q, k, v = theirs.transpose_for_scores(theirs.in_proj(x)).chunk(3, dim=-1)
        causal = torch.ones(1, 1, length, length).tril()
        expected, _ = theirs(
            x,
            causal,
            rel_embeddings=member.table,
            relative_pos=module.build_relative_position(x, x),
        )
        out = pezoo.attend(scheme, q, k, v, layer=1, phase="test").transpose(1, 2).flatten(2)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 32).map(lambda n: 2 * n), st.integers(2, 200))
def test_deberta_buckets_are_those_of_transformers(n_buckets, more):
    module = pytest.importorskip("transformers.models.deberta_v2.modeling_deberta_v2", reason="needs transformers")
    middle, far = n_buckets // 2, n_buckets // 2 + more
    distances = torch.arange(-2 * far, 2 * far + 1)
    expected = module.make_log_bucket_position(distances, n_buckets, far).clamp(-n_buckets, n_buckets)
    ours = log_bucket(distances.float(), n_buckets, far)
    for n in distances[ours != expected].tolist():  # their logarithm is float32: at the end of a bucket it may err
        real = math.log(abs(n) / middle) / math.log((far - 1) / middle) * (middle - 1)
        assert abs(real - round(real)) < 1e-4
    end = distances.abs() == far - 1
    assert ours[end].abs().tolist() == [n_buckets - 1] * 2


@settings(deadline=None, max_examples=15)
@given(
    st.integers(1, 12), st.integers(2, 4).map(lambda n: 2 * n), st.sampled_from([["c2p"], ["p2c"], ["c2p", "p2c"]]),
    st.integers(1, 3), st.integers(0, 99),
)  # fmt: skip
def test_deberta_with_buckets_is_version_2_of_transformers(length, buckets, terms, heads, seed):
    module = pytest.importorskip("transformers.models.deberta_v2.modeling_deberta_v2", reason="needs transformers")
    width = 4 * heads
    config = SimpleNamespace(
        hidden_size=width,
        num_attention_heads=heads,
        pos_att_type=terms,
        relative_attention=True,
        position_buckets=buckets,
        max_relative_positions=16,
        share_att_key=False,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    name = "both" if len(terms) == 2 else terms[0]
    text = f"deberta:max_distance=16:buckets={buckets}:position_to_content=released:terms={name}"
    member = (scheme := create(text, width=width, heads=heads)).members[0]
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        theirs = module.DisentangledSelfAttention(config).eval()
        for term, ours in zip(terms, member.project[:, 1], strict=True):
            projection = theirs.pos_key_proj if term == "c2p" else theirs.pos_query_proj
            projection.weight.copy_(ours.transpose(-1, -2).flatten(0, 1))
            projection.bias.zero_()
        x = torch.randn(1, length, width)
        q, k, v = (
            p(x).unflatten(-1, (heads, 4)).transpose(1, 2)
            for p in (theirs.query_proj, theirs.key_proj, theirs.value_proj)
        )
        causal = torch.ones(1, 1, length, length).tril()
        relative = module.build_relative_position(x, x, buckets, 16)
        expected, _ = theirs(x, causal, rel_embeddings=member.table, relative_pos=relative)
        out = pezoo.attend(scheme, q, k, v, layer=1, phase="test").transpose(1, 2).flatten(2)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("deberta:buckets=7", "buckets must be even, such as 8, not 7"),
        ("deberta:buckets=32:max_distance=17", "buckets=32 needs max_distance=18 or more; it is 17"),
    ],
)
def test_deberta_refuses_buckets_that_mean_nothing(text, words):
    with pytest.raises(pezoo.UserError, match=words):
        create(text)


def test_deberta_trains_every_row_that_a_longer_text_reads():
    length = 9

    def read(length):
        member = create("deberta", train_length=9).members[0]
        assert member.reach == 4
        q, k = vectors(2, 1, HEADS, length, HEAD)
        positions = Positions.build(length, phase="test")
        member.content(q, k, positions.replace(prepared=member.prepare(positions))).tril().sum().backward()
        return member.table.grad.abs().sum(1) > 0

    assert torch.equal(read(length), read(8 * length))
    assert read(length).all()


# xpos


@pytest.mark.parametrize("layout", ["plain", "scaled", "documents", "real"])
@pytest.mark.parametrize("given_settings", ["", ":gamma=0.1:scale_base=16:base=100", ":fraction=0.5:scale_base=16"])
def test_xpos_is_rope_with_decay(layout, given_settings):
    scheme, positions = create("xpos" + given_settings), LAYOUTS[layout]()
    config, n = scheme.members[0].config, distances(positions)
    width = int(HEAD * config.fraction)

    def logit(row, h, q, k, i, j):
        total, distance = float(q[width:] @ k[width:]), float(n[row, i, j])
        for m in range(width // 2):
            zeta = (2 * m / width + config.gamma) / (1 + config.gamma)
            turned = cmath.exp(1j * distance * config.base ** (-2 * m / width))
            a, b = (complex(*x[2 * m : 2 * m + 2].tolist()) for x in (q, k))
            total += zeta ** (distance / config.scale_base) * (a * b.conjugate() * turned).real
        return torch.tensor(total / HEAD**0.5, dtype=torch.float64)

    check(scheme, logit, positions, atol=3e-5)


def test_xpos_has_the_published_rates():
    member = create("xpos", width=64, heads=1).members[0]
    zeta = (member.rates() * 512).exp()
    torch.testing.assert_close(zeta[[0, 16, 31]], torch.tensor([0.285714, 0.642857, 0.977679]), atol=1e-6, rtol=0)
    decay = (member.rates() * 2048).exp()
    torch.testing.assert_close(decay[[0, 31]], torch.tensor([0.006664, 0.913660]), atol=2e-6, rtol=0)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 40), st.integers(2, 16), st.sampled_from([1, 2, 4]), st.floats(32, 1024), st.integers(0, 99))
def test_xpos_is_that_of_x_transformers(length, half, parts, scale_base, seed):
    library = pytest.importorskip("x_transformers.x_transformers", reason="parity needs x-transformers")
    width = 2 * half * parts
    theirs = library.RotaryEmbedding(2 * half, use_xpos=True, scale_base=scale_base)
    angles, scale = theirs.forward_from_seq_len(length)
    scheme = create(f"xpos:scale_base={scale_base!r}:fraction={1 / parts}", width=width, heads=1)
    q, k = vectors(2, 1, 1, length, width, seed=seed)
    logits = library.apply_rotary_pos_emb(q, angles, scale) @ library.apply_rotary_pos_emb(k, angles, 1 / scale).mT
    composition = scheme.prepare(Positions.build(length, phase="test")).layers[0][0].composition
    rotated_q, rotated_k = composition.rotate(q, k)
    torch.testing.assert_close((rotated_q @ rotated_k.mT).tril(), logits.tril(), atol=2e-4, rtol=1e-4)


def test_xpos_holds_65536_tokens_and_is_undefined_where_float32_ends():
    scheme = create("xpos")
    assert scheme.undefined(65536) is None
    assert "factors over 79999 positions" in scheme.undefined(80000)
    assert create("xpos+pi:factor=2").undefined(80000) is None
    p = torch.tensor([[0.0, 1, 30000, 65000, 65530, 65534, 65535]])
    q, k, v = vectors(3, 1, HEADS, LENGTH, HEAD).abs()
    found, near = (
        pezoo.attend(scheme, q, k, v, positions=reals(p)),
        pezoo.attend(scheme, q, k, v, positions=reals(p - 65000)),
    )
    torch.testing.assert_close(found[:, :, 4:], near[:, :, 4:], atol=1e-2, rtol=0)  # far keys count for little
    assert found.isfinite().all()
    q.requires_grad_(), k.requires_grad_()
    pezoo.attend(scheme, q, k, v, positions=reals(p)).sum().backward()
    assert q.grad.isfinite().all()
    assert k.grad.isfinite().all()


def test_xpos_yarn_and_ntk_change_the_angles_and_leave_the_decay():
    for extension in ("yarn:factor=4", "ntk:factor=4"):
        plain, changed = (create(s, width=48) for s in ("xpos", f"xpos+{extension}"))
        positions = Positions.build(30, phase="test")
        by_plain, by_changed = (
            s.prepare(positions).layers[0][0].composition.base[0].positions.prepared[0] for s in (plain, changed)
        )
        torch.testing.assert_close(by_plain.abs(), by_changed.abs())
        assert (by_plain - by_changed).abs().max() > 0.1


# cope


@pytest.mark.parametrize("layout", ["plain", "documents"])
@pytest.mark.parametrize("divide", [False, True])
@pytest.mark.parametrize("layer", [0, 1])
def test_cope_counts_by_gates(layout, divide, layer):
    scheme, positions = create(f"cope:max_position=3:divide={divide}"), LAYOUTS[layout]()
    tables = [member(scheme, "cope", i).table.double() for i in range(2)]
    keys, visible = vectors(3, 2, HEADS, LENGTH, HEAD)[1].double(), positions.visible()
    highest = []

    def logit(row, h, q, k, i, j):
        counted = [m for m in range(j, i + 1) if visible[row % len(visible), i, m]]
        p = sum(torch.sigmoid(q @ keys[row, h, m] / HEAD**0.5).item() for m in counted)
        highest.append(p)
        p = min(p, 2.0)
        low, high = math.floor(p), math.ceil(p)
        e = tables[layer]
        position = (1 - (p - low)) * (q @ e[low]) + (p - low) * (q @ e[high])
        return q @ k / HEAD**0.5 + position / (HEAD**0.5 if divide else 1)

    check(scheme, logit, positions, layer)
    assert max(highest) > 2  # some counts are cut off


def test_cope_counts_what_a_mask_hides():
    plain, masked = create("cope"), create("cope+window:size=3:at=test")
    q, k, v = vectors(3, 1, HEADS, LENGTH, HEAD)
    positions = Positions.build(LENGTH, phase="test")
    logits = member(plain, "cope").content(q, k, positions).double() + q.double() @ k.double().mT / HEAD**0.5
    hidden = positions.steps()[:, None].abs() >= 3
    hidden = hidden | ~positions.visible()[:, None]
    expected = logits.masked_fill(hidden, -torch.inf).softmax(-1) @ v.double()
    torch.testing.assert_close(pezoo.attend(masked, q, k, v, phase="test").double(), expected, atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 20), st.integers(2, 9), st.integers(1, 3), st.integers(0, 99))
def test_cope_is_that_of_x_transformers(length, rows, heads, seed):
    library = pytest.importorskip("x_transformers.x_transformers", reason="parity needs x-transformers")
    scheme = create(f"cope:max_position={rows}", width=4 * heads, heads=heads)
    member = scheme.members[0]
    theirs = library.CoPE(4, heads, rows)
    theirs.pos_emb = member.table
    q, k = vectors(2, 2, heads, length, 4, seed=seed)
    future = torch.ones(length, length).triu(1).bool()
    expected = theirs(q, (q @ k.mT / 2).masked_fill(future, -torch.finfo(torch.float32).max))
    found = member.content(q, k, Positions.build(length, phase="test"))
    torch.testing.assert_close(found.tril(), expected.tril(), atol=1e-5, rtol=1e-5)


def test_cope_starts_as_no_encoding():
    size = {"d_model": WIDTH, "n_heads": HEADS, "n_layers": 1, "train_length": LENGTH}
    q, k, v = vectors(3, 1, HEADS, LENGTH, HEAD)
    out = [pezoo.attend(pezoo.create(name, **size), q, k, v) for name in ("cope", "nope")]
    torch.testing.assert_close(*out)
