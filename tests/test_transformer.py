"""The shared model, and what holds for it under every scheme."""

import copy

import pytest
import torch
import torch.nn.functional as F

import pezoo
from helpers import assert_same_weights, far_from_start, member
from pezoo import attention
from pezoo.contract import Positions, Undefined, overrides
from pezoo.errors import UserError
from pezoo.fitting import fits
from pezoo.model.cache import SPARE, Cache
from pezoo.model.transformer import Transformer, TransformerConfig
from pezoo.registry import entry
from pezoo.testing.subject import positions_of, read

TRAIN, LONG = 8, 27
SIZES = {"vocab_size": 11, "d_model": 16, "n_heads": 2, "n_layers": 2, "train_length": TRAIN}

ENCODINGS = [name for name in pezoo.list_encodings() if entry(name).kind == "encoding"]
GRID = [
    f"{encoding}+{extension}"
    for encoding in ENCODINGS
    for extension in pezoo.list_extensions()
    if not fits(entry(extension).cls, entry(encoding).cls)
]
SCHEMES = [
    "alibi:slopes=learned",
    "kerple_power",
    "fire_shared",
    "t5:scale=sqrt",
    "rope:pairing=half:fraction=0.5",
    "p_rope",
    "rope+pi",
    "rope+pi:factor=4",
    "rope+ntk",
    "rope+dynamic_ntk",
    "rope+yarn:factor=4",
    "rope+yarn+logn",
    "rope+random",
    "rope+random:draw=layer",
    "alibi+random:relative=toeplitz",
    "fire+random",
    "learned+random",
    "learned+pi:factor=4",
    "shaw+pi:factor=3",
    "t5+pi",
    "shape",
    "rope+rerope",
    "shaw+rerope",
    "alibi+rerope",
    "rope+self_extend",
    "alibi+sinks",
    "alibi+dape",
    "rope+window:size=5",
    "alibi+pi+window:size=5",
    "sinusoidal+alibi",
    "sinusoidal+rope+ntk",
    {"layers": ["rope", "nope"]},
    {"layers": ["shaw", {"heads": {"rope+pi": 1, "alibi": 1}}]},
]


def name_of(scheme):
    return str(pezoo.parse(scheme))


each_scheme = pytest.mark.parametrize(
    "scheme",
    [pytest.param(name, marks=(pytest.mark.slow, pytest.mark.ci(one_in=5))) for name in ENCODINGS] + SCHEMES,
    ids=name_of,
)
"""Encodings alone are slow: the conformance kit asks the same of them."""


def build(scheme, **config):
    return far_from_start({"scheme": scheme} | SIZES | config)


def ids(length, batch=2, seed=0):
    return torch.randint(11, (batch, length), generator=torch.Generator().manual_seed(seed))


def longest(model, phase="test"):
    """The long test length, or the training length where a scheme ends with it."""
    return LONG if model.scheme.undefined(LONG, phase) is None else TRAIN


def same(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def differ(a, b):
    assert (a - b).abs().max() > 1e-3


def outcome(model, tokens, backend, **facts):
    """Logits, and gradients by parameter, of a back-end."""
    for block in model.blocks:
        block.attention.backend = backend
    model.zero_grad()
    logits = model(tokens, positions_of(model, *tokens.shape, **facts))
    (logits.log_softmax(-1)[..., 3].sum() / tokens.numel()).backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def decode(model, tokens, pieces, **facts):
    """Logits by way of the cache, some tokens at a time."""
    cache = model.cache(*tokens.shape)
    positions = positions_of(model, *tokens.shape, **facts)
    with torch.no_grad():
        return torch.cat([model(piece, positions, cache) for piece in tokens.split(pieces, dim=1)], dim=1)


def attempt(function, *arguments):
    """What a function returns, and an empty message; or None and why it was refused."""
    try:
        return function(*arguments), ""
    except UserError as error:
        return None, str(error)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 5)
    monkeypatch.setattr(attention, "PAIRS", 200)  # three of LONG queries in two rows, where pairs count
    monkeypatch.setattr(attention, "DENSE_LIMIT", 4)


# The grid: every encoding with every extension


@pytest.mark.slow
@pytest.mark.ci(one_in=6)
@pytest.mark.parametrize("scheme", GRID)
@pytest.mark.usefixtures("small_chunks")
def test_every_pair_works_or_is_refused_with_a_reason(scheme):
    """Back-ends, decoding and causality, in a phase in which the extension acts."""
    model, refusal = attempt(build, scheme)
    if refusal:
        assert "cannot work: " in refusal
        return
    at = pezoo.parse(scheme).members[1].at
    phase = "test" if "test" in at else "tune"
    length = longest(model, phase)
    tokens = ids(length, 1).repeat(2, 1)  # a sequence, and the same with one token changed, under the same draws
    t = 2 * length // 3
    tokens[1, t] = (tokens[1, t] + 1) % 11
    facts = {"phase": phase, "rows": (5, 5)}
    logits, gradients = outcome(model, tokens, "eager", **facts)
    assert logits.isfinite().all()
    same(logits[0, :t], logits[1, :t])
    differ(logits[0, t], logits[1, t])
    chunked, others = outcome(model, tokens, "chunked", **facts)
    same(chunked, logits)
    assert others.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert gradient.isfinite().all(), name
        same(others[name], gradient)
    same(decode(model, tokens, [length // 3, 1, length - length // 3 - 1], **facts), logits)


def test_pairs_that_do_not_fit_are_refused():
    refused = [(e, x) for e in ENCODINGS for x in pezoo.list_extensions() if f"{e}+{x}" not in GRID]
    assert ("nope", "pi") in refused
    for encoding, extension in refused:
        with pytest.raises(UserError, match=f"{extension} does not fit {encoding}: it needs .* It works with: "):
            pezoo.parse(f"{encoding}+{extension}")


# What holds under every scheme


@each_scheme
@pytest.mark.usefixtures("small_chunks")
def test_back_ends_equal_eager(scheme):
    model = build(scheme)
    for length in (1, longest(model)):
        expected, gradients = outcome(model, ids(length), "eager")
        for backend in ("sdpa", "chunked", "auto"):
            found, refusal = attempt(outcome, model, ids(length), backend)
            if refusal:
                assert backend == "sdpa"
                assert "it has no place for" in refusal
                continue
            logits, others = found
            same(logits, expected)
            for name, gradient in gradients.items():
                same(others[name], gradient)


@each_scheme
def test_decoding_token_by_token_equals_the_full_pass(scheme):
    model = build(scheme)
    length = longest(model)
    tokens = ids(length)
    same(decode(model, tokens, 1), read(model, tokens))


@each_scheme
def test_packed_documents_are_as_if_alone(scheme):
    model = build(scheme)
    length = longest(model)
    tokens = ids(length, 1)
    sizes = [length // 3, length // 4, length - length // 3 - length // 4]
    documents = torch.repeat_interleave(torch.tensor([4, 9, 4]), torch.tensor(sizes))[None]
    positions = positions_of(model, 1, length, documents=documents)
    together = model(tokens, positions)
    for part, logits in zip(tokens.split(sizes, 1), together.split(sizes, 1), strict=True):
        same(logits, model(part, positions_of(model, *part.shape, declared=length)))
    edited = tokens.clone()
    edited[:, : sizes[0]] = (tokens[:, : sizes[0]] + 1) % 11
    assert torch.equal(model(edited, positions)[:, sizes[0] :], together[:, sizes[0] :])
    same(decode(model, tokens, [sizes[0] + 1, length - sizes[0] - 1], documents=documents), together)


@pytest.mark.slow
@pytest.mark.ci(one_in=3)
@each_scheme
def test_padding_on_either_side_changes_nothing(scheme):
    model = build(scheme)
    length = longest(model)
    tokens, pad = ids(length - 3), ids(3, seed=1)
    expected = model(tokens, positions_of(model, *tokens.shape, declared=length))
    for parts in ((pad, tokens), (tokens, pad)):
        valid = torch.cat([torch.full_like(part, part is tokens) for part in parts], 1).bool()
        padded = torch.cat(parts, 1)
        logits = model(padded, positions_of(model, 2, length, valid=valid))
        assert logits.isfinite().all()
        same(logits[valid].view_as(expected), expected)
        same(decode(model, padded, 1, valid=valid)[valid].view_as(expected), expected)


@each_scheme
def test_nothing_is_remembered_from_one_length_to_the_next(scheme):
    model = build(scheme)
    lengths = [TRAIN // 2, TRAIN] if longest(model) == TRAIN else [TRAIN // 2, TRAIN, TRAIN + 1, LONG]
    up = {n: read(model, ids(n)) for n in lengths}
    down = {n: read(model, ids(n)) for n in reversed(lengths)}
    for n in lengths:
        assert torch.equal(up[n], down[n])


@each_scheme
def test_prefixes_are_stable_as_declared(scheme):
    model = build(scheme)
    length = longest(model)
    short = 2 * length // 3
    tokens = ids(length)
    whole, prefix = read(model, tokens)[:, :short], read(model, tokens[:, :short])
    if model.scheme.prefix_stable:
        same(prefix, whole)
    else:
        differ(prefix, whole)
        same(model(tokens[:, :short], positions_of(model, 2, short, declared=length)), whole)


@each_scheme
def test_shifted_coordinates_matter_as_declared(scheme):
    model = build(scheme)
    members = [entry(m.name).cls for m in pezoo.parse(scheme).all_members()]
    positions = positions_of(model, 2, TRAIN - 3)
    tokens = ids(TRAIN - 3)
    expected = model(tokens, positions)
    try:
        moved = model(tokens, positions.map(lambda p, index: p + 3.0, (3.0, 1.0)))
        irregular = model(tokens, positions.map(lambda p, index: p + 3.0))
    except Undefined:
        assert not all(cls.traits.shift_invariant for cls in members)
        return
    same(irregular, moved)
    if all(cls.traits.shift_invariant for cls in members):
        same(moved, expected)
    elif len(members) == 1:
        differ(moved, expected)


@each_scheme
def test_sixteen_training_lengths_are_finite_or_declared_undefined(scheme):
    model = build(scheme)
    tokens = ids(16 * TRAIN, 1)
    reason = model.scheme.undefined(16 * TRAIN)
    if reason is None:
        with torch.no_grad():
            assert read(model, tokens).isfinite().all()
    else:
        with pytest.raises(Undefined) as raised:
            read(model, tokens)
        assert str(raised.value) == reason


@each_scheme
def test_rows_of_different_declared_lengths_are_as_if_alone(scheme):
    model = build(scheme)
    declared = [TRAIN, 2 * TRAIN, 3 * TRAIN + 1]
    tokens = ids(TRAIN, 3)
    together = model(tokens, positions_of(model, 3, TRAIN, declared=torch.tensor(declared)))
    for row, length in enumerate(declared):
        alone = model(tokens[row : row + 1], positions_of(model, 1, TRAIN, declared=length, rows=(row,)))
        same(together[row : row + 1], alone)


@each_scheme
def test_encoders(scheme):
    members = [entry(m.name).cls for m in pezoo.parse(scheme).all_members()]
    model, refusal = attempt(lambda: build(scheme, causal=False))
    if refusal:
        assert "decoder" in refusal
        assert not members[0].traits.bidirectional
        return
    tokens = ids(TRAIN)
    logits, gradients = outcome(model, tokens, "eager")
    edited = tokens.clone()
    edited[:, -1] = (tokens[:, -1] + 1) % 11
    differ(read(model, edited)[:, :-1], logits[:, :-1])
    backwards = read(model, tokens.flip(1)).flip(1)
    if members[0].traits.bidirectional:
        differ(backwards, logits)
    if scheme in ("nope", "alibi", "kerple", "kerple_power", "fire"):  # both directions alike
        assert not members[0].traits.bidirectional
        same(backwards, logits)
    chunked, others = outcome(model, tokens, "chunked")
    same(chunked, logits)
    for name, gradient in gradients.items():
        same(others[name], gradient)


@each_scheme
def test_random_draws_belong_to_the_sequence(scheme):
    model, tokens = build(scheme), ids(TRAIN, 3)
    random = any(
        entry(m.name).cls.traits.random or m.name in ("shift", "cape") for m in pezoo.parse(scheme).all_members()
    )
    for phase in ("train", "test"):
        torch.manual_seed(0)
        together = model(tokens, positions_of(model, 3, TRAIN, phase=phase, rows=(6, 7, 8)))
        torch.manual_seed(1)
        again = build(scheme)(tokens, positions_of(model, 3, TRAIN, phase=phase, rows=(6, 7, 8)))
        assert torch.equal(again, together)
        one = model(tokens[1:2], positions_of(model, 1, TRAIN, phase=phase, rows=(7,)))
        same(one, together[1:2])
        other = model(tokens, positions_of(model, 3, TRAIN, phase=phase, rows=(9, 7, 10)))
        same(other[1], together[1])
        if not random:
            same(other, together)
    if random:
        train = [
            model(tokens, positions_of(model, 3, TRAIN, phase="train", rows=rows)) for rows in ((6, 7, 8), (9, 7, 10))
        ]
        differ(train[0][0], train[1][0])


@each_scheme
@pytest.mark.usefixtures("small_chunks")
def test_half_precision_stays_close(scheme):
    model = build(scheme)
    length = longest(model)
    tokens = ids(length)
    expected = read(model, tokens)
    half = copy.deepcopy(model).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = read(model, tokens)
        cached = decode(model, tokens, [3, length - 3])
    mixed.float().log_softmax(-1).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    scale = expected.abs().max()
    for logits in (read(half, tokens), decode(half, tokens, [3, length - 3]), mixed, cached):
        assert logits.dtype == torch.bfloat16
        assert (logits.float() - expected).abs().mean() < 0.1 * scale


@each_scheme
def test_fewer_heads_of_keys_and_values_are_repeated(scheme):
    """A model with one head of keys equals one with that head's weights twice."""
    shared, full = (build(scheme, n_kv_heads=n) for n in (1, 2))
    full.scheme.load_state_dict(shared.scheme.state_dict())
    with torch.no_grad():
        for a, b in zip(shared.blocks, full.blocks, strict=True):
            q, k, v = a.attention.qkv.weight.split(a.attention.split)
            b.attention.qkv.weight.copy_(torch.cat((q, k, k, v, v)))
            b.attention.out.load_state_dict(a.attention.out.state_dict())
            b.feed_forward.load_state_dict(a.feed_forward.state_dict())
        full.embedding.load_state_dict(shared.embedding.state_dict())
        full.head.load_state_dict(shared.head.state_dict())
    same(read(shared, ids(TRAIN)), read(full, ids(TRAIN)))


# Far positions


def test_far_angles_and_distances_stay_apart_in_bfloat16():
    far = 65536
    positions = Positions.build(far, phase="test")
    assert positions.query[0].diff().min() == 1
    for name in ENCODINGS:
        model = Transformer(TransformerConfig(scheme=name, **SIZES | {"n_heads": 1})).bfloat16()
        encoding = member(model.scheme, name)
        if entry(name).traits.tokens:  # its angles are those of segments, which are few
            continue
        if overrides(encoding, "inv_freq") and overrides(encoding, "prepare"):
            own = positions.replace(inv_freq=encoding.inv_freq()[None])
            by_q = encoding.prepare(own)
            by_q = by_q[0] if isinstance(by_q, tuple) else by_q
            if by_q.is_complex():
                turns = torch.view_as_real(by_q[0, 0]).flatten(1)
                assert turns.dtype == torch.float32
                assert len(turns.unique(dim=0)) == far, name
    alibi = member(Transformer(TransformerConfig(scheme="alibi", **SIZES)).bfloat16().scheme, "alibi")
    assert (alibi.distance_bias(torch.arange(float(far)))[-1].diff() < 0).all()


@pytest.mark.parametrize("scheme", ["rope", "sinusoidal"])
def test_half_precision_does_not_round_angles(scheme):
    """Far positions give what float32 gives, to the precision of the logits."""
    model, tokens = build(scheme), ids(TRAIN)
    far = positions_of(model, 2, TRAIN).map(lambda p, index: p + 65521.0)
    expected = model(tokens, far)
    off = (copy.deepcopy(model).bfloat16()(tokens, far).float() - expected).abs().mean()
    near = (read(copy.deepcopy(model).bfloat16(), tokens).float() - read(model, tokens)).abs().mean()
    assert off < 3 * near


# Weights


def test_two_schemes_start_from_the_same_body():
    def body(scheme, seed=0):
        model = Transformer(TransformerConfig(scheme=scheme, seed=seed, **SIZES))
        return {n: p for n, p in model.named_parameters() if not n.startswith("scheme.")}

    torch.manual_seed(5)
    expected = body("nope")
    for scheme in ("learned", "kerple", "shaw", "fire", "rope+random", {"layers": ["t5", "rope"]}):
        torch.manual_seed(6)
        assert all(torch.equal(p, expected[n]) for n, p in body(scheme).items())
    other = body("nope", seed=1)
    assert not any(torch.equal(p, expected[n]) for n, p in other.items() if p.ndim > 1)


def test_initial_weights_have_their_sizes():
    model = Transformer(TransformerConfig(d_model=128, n_layers=8, vocab_size=500))
    block = model.blocks[3]
    for weight, std in (
        (model.embedding.weight, 128**-0.5),
        (model.head.weight, 0.02),
        (block.attention.qkv.weight, 0.02),
        (block.attention.out.weight, 0.02 / 4),
        (block.feed_forward.up.weight, 0.02),
        (block.feed_forward.out.weight, 0.02 / 4),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.05)


def test_absolute_codes_add_to_tokens_of_their_own_size():
    model = Transformer(TransformerConfig(scheme="sinusoidal", d_model=128, vocab_size=500))
    x = model.embedding(torch.arange(64)[None])
    embedded = model.scheme.prepare(positions_of(model, 1, 64)).embed(x)
    codes = embedded - x * 128**0.5
    assert (embedded - codes).std().item() == pytest.approx(1, rel=0.1)
    assert codes.square().mean().sqrt().item() == pytest.approx(0.7, rel=0.05)


# The body against a plain one, written out


def by_hand(model, tokens):
    """The forward pass of a decoder without a scheme, from its weights."""
    c, w = model.config, dict(model.named_parameters())
    heads, kv = c.n_heads, c.n_kv_heads or c.n_heads
    width = c.head_dim or c.d_model // heads
    layer_eps, rms_eps = c.norm_eps or 1e-5, c.norm_eps or torch.finfo(torch.float32).eps

    def norm(x, name):
        if c.norm == "layernorm":
            x = x - x.mean(-1, keepdim=True)
            return x / (x.pow(2).mean(-1, keepdim=True) + layer_eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]
        return rms_norm(x, name)

    def rms_norm(x, name):
        return x / (x.pow(2).mean(-1, keepdim=True) + rms_eps).sqrt() * w[f"{name}.weight"]

    def linear(x, name, biased):
        assert (f"{name}.bias" in w) == biased
        return x @ w[f"{name}.weight"].T + (w[f"{name}.bias"] if biased else 0)

    activation = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "swiglu": F.silu, "geglu": F.gelu}[c.activation]
    x = w["embedding.weight"][tokens]
    for i in range(c.n_layers):
        at = f"blocks.{i}"
        y = linear(norm(x, f"{at}.attention_norm"), f"{at}.attention.qkv", c.attention_bias in ("qkv", "all"))
        q, k, v = y.split([heads * width, kv * width, kv * width], -1)
        if c.qk_norm and c.qk_norm_scope == "all":
            q, k = rms_norm(q, f"{at}.attention.q_norm"), rms_norm(k, f"{at}.attention.k_norm")
        outputs = []
        for h in range(heads):
            g = h * kv // heads
            qh = q[..., h * width : (h + 1) * width]
            kh, vh = (t[..., g * width : (g + 1) * width] for t in (k, v))
            if c.token_shift:
                u = w[f"{at}.attention.shift.gates.weight"]
                z = norm(x, f"{at}.attention_norm")
                kh, vh = shifted_by_hand(kh, z, u[g]), shifted_by_hand(vh, z, u[kv + g])
            if c.qk_norm and c.qk_norm_scope == "head":
                qh, kh = rms_norm(qh, f"{at}.attention.q_norm"), rms_norm(kh, f"{at}.attention.k_norm")
            logits = (qh @ kh.mT / width**0.5).masked_fill(torch.ones_like(qh @ kh.mT).triu(1).bool(), -torch.inf)
            outputs.append(torch.softmax(logits, -1) @ vh)
        before = x
        x = x + linear(torch.cat(outputs, -1), f"{at}.attention.out", c.attention_bias == "all")
        y = norm(before if c.parallel_residual else x, f"{at}.feed_forward_norm")
        y = linear(y, f"{at}.feed_forward.up", c.feed_forward_bias)
        if "glu" in c.activation:
            gate, up = y.chunk(2, -1)
            y = activation(gate) * up
        else:
            y = activation(y)
        x = x + linear(y, f"{at}.feed_forward.out", c.feed_forward_bias)
    head = w["embedding.weight"] if c.tie_embeddings else w["head.weight"]
    return norm(x, "norm") @ head.T


def shifted_by_hand(found, x, u):
    """Keys or values of a head, (B, L, d), token by token: a_t of the one before, the rest of its own."""
    a = 1 / (1 + torch.exp(-(x @ u)))
    rows = [(1 - a[:, :1]) * found[:, 0]]
    rows += [a[:, t, None] * found[:, t - 1] + (1 - a[:, t, None]) * found[:, t] for t in range(1, x.shape[1])]
    return torch.stack(rows, 1)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"norm": "rmsnorm", "activation": "swiglu"},
        {"token_shift": True},
        {"token_shift": True, "n_heads": 4, "n_kv_heads": 2, "qk_norm": True},
        {"activation": "relu", "n_heads": 4, "n_kv_heads": 2},
        {"activation": "geglu", "qk_norm": True, "d_ff": 24},
        {"activation": "silu", "tie_embeddings": True, "n_kv_heads": 1},
        {"head_dim": 6, "n_heads": 3, "attention_bias": "qkv"},
        {"head_dim": 12, "n_heads": 4, "n_kv_heads": 2, "qk_norm": True, "norm": "rmsnorm", "norm_eps": 0.3},
        {"qk_norm": True, "qk_norm_scope": "all", "n_heads": 4, "n_kv_heads": 2, "token_shift": False},
        {"parallel_residual": True, "attention_bias": "all", "feed_forward_bias": True, "norm_eps": 0.3},
        {"activation": "swiglu", "feed_forward_bias": True},
    ],
)
def test_the_body_is_a_plain_pre_norm_transformer(config):
    model = build("nope", **config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name or "bias" in name:
                p.add_(0.1 * torch.randn_like(p))
    tokens = ids(9)
    same(read(model, tokens), by_hand(model, tokens))


@pytest.mark.parametrize("scheme", ["rope", "alibi+window:size=4", "fox"])
def test_every_option_of_the_body_is_decoded_as_in_the_full_pass(scheme):
    sizes = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "qk_norm": True, "qk_norm_scope": "all"}
    model = build(scheme, **sizes, parallel_residual=True, attention_bias="all", feed_forward_bias=True, norm_eps=0.1)
    tokens = ids(LONG)
    cache = model.cache(1, 3)
    model(tokens[:1, :3], cache=cache)
    assert cache.pairs[1].rooms[0].shape == (1, 2, 3, 6)
    same(decode(model, tokens, 1), read(model, tokens))


def test_biases_start_at_zero_whatever_was_drawn_before():
    torch.rand(3)
    model = Transformer(SIZES | {"attention_bias": "all", "feed_forward_bias": True})
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert len(biases) == 2 * 6 + 1
    assert not any(bias.any() for bias in biases)
    plain = Transformer(SIZES).state_dict()
    assert_same_weights(plain, {name: w for name, w in model.state_dict().items() if name in plain})


def test_width_of_the_feed_forward_block():
    for activation, d_ff, up, out in (("gelu", None, 64, 64), ("swiglu", None, 84, 42), ("swiglu", 10, 20, 10)):
        block = build("nope", activation=activation, d_ff=d_ff).blocks[0].feed_forward
        assert (block.up.weight.shape, block.out.weight.shape) == ((up, 16), (16, out))


def test_dropout_acts_in_training_only():
    model = build("nope", dropout=0.5)
    assert torch.equal(read(model, ids(5)), read(model, ids(5)))
    model.train()
    assert not torch.equal(read(model, ids(5)), read(model, ids(5)))


def test_the_phase_follows_the_module():
    model = build("rope+pi")
    assert positions_of(model, 1, 4).phase == "test"
    assert build("rope").train().positions(1, 4).phase == "train"
    assert positions_of(model, 1, 4, phase="tune").phase == "tune"


# Cache


def test_the_cache_is_filled_and_no_further():
    model = build("rope", n_kv_heads=1)
    cache = model.cache(2, 6)
    model(ids(4), cache=cache)
    assert cache.filled == 4
    for layer in range(2):
        for room in cache.pairs[layer].rooms:
            assert room.shape == (2, 1, 6, 8)
            assert room[:, :, :4].ne(0).all()
            assert not room[:, :, 4:].any()
    with pytest.raises(UserError, match="the cache was made for 6 tokens, not 7"):
        model(ids(3), cache=cache)
    model(ids(2), cache=cache)
    assert cache.filled == 6


@pytest.mark.parametrize("prompt", [1, 5, 100])
@pytest.mark.parametrize(
    "scheme",
    [
        "rope+window:size=8",
        "alibi+window:size=8",
        {"layers": ["rope+window:size=8", "nope"]},
        "rope+window:size=8+logn",
    ],
    ids=str,
)
def test_a_cache_keeps_what_a_window_can_still_see(scheme, prompt):
    model, tokens = build(scheme), ids(140)
    cache = model.cache(len(tokens), 140)
    steps = [model(tokens[:, :prompt], cache=cache)]
    steps += [model(piece, cache=cache) for piece in tokens[:, prompt:].split(3, dim=1)]
    kept = [cache.pairs[layer].rooms[0].shape[2] for layer in range(2)]
    assert kept[0] <= 2 * (8 + 3) + SPARE
    assert kept[1] == (140 if isinstance(scheme, dict) else kept[0])
    torch.testing.assert_close(torch.cat(steps, dim=1), model(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "scheme",
    ["rope+sinks", *(f"{s}+window:size=8" for s in ("fox", "shaw", "rope+rerope", "xpos", "rope+pi", "floater"))],
)
def test_a_cache_keeps_all_where_it_is_not_sure(scheme):
    model = build(scheme)
    cache = model.cache(2, 40)
    steps = [model(piece, cache=cache) for piece in ids(40).split(4, dim=1)]
    assert cache.pairs[0].start == 0
    torch.testing.assert_close(torch.cat(steps, dim=1), model(ids(40)), rtol=1e-4, atol=1e-5)


def first_keys(scheme, **config):
    """The first layer's keys of one token at five places, as a cache holds them: (Hkv, 5 or fewer, d)."""
    model = build(scheme, **config)
    cache = model.cache(1, 5)
    assert isinstance(cache, Cache)
    for piece in torch.full((1, 5), 3).split([2, 1, 2], dim=1):
        model(piece, cache=cache)
    return cache.pairs[0].rooms[0][0, :, : 5 - cache.pairs[0].start]


KEPT = [
    "",
    ":pairing=half",
    ":fraction=0.5",
    "+pi:factor=4",
    "+yarn:factor=4+logn",
    "+kerple",
    "+window:size=2",
    "+fox",
]
"""What comes after rope."""
NOT_KEPT = [
    "xpos",
    "fope",
    "rope+pi",
    "rope+dynamic_ntk",
    "rope+random",
    "rope+rerope",
    "rope+self_extend:group=2",
    "rope+sinks",
    "rope+shaw",
    "rope+dape_v2:reads=sum",
    "rope+xpos",
    {"heads": {"rope": 1, "nope": 1}},
]


@pytest.mark.parametrize("scheme", KEPT)
def test_the_cache_holds_keys_turned_where_nothing_turns_them_anew(scheme):
    for config in ({}, {"n_kv_heads": 1}):
        kept, plain = first_keys("rope" + scheme, **config), first_keys("nope", **config)
        positions = Positions.build(5, phase="test")
        (part, *_) = build("rope" + scheme).scheme.prepare(positions).layers[0][0].composition.base
        turned, _ = part.encoding.rotate(plain[None], plain[None], part.positions)
        torch.testing.assert_close(kept, turned[0, :, -kept.shape[1] :])
        differ(kept, plain[:, -kept.shape[1] :])


@pytest.mark.parametrize("scheme", NOT_KEPT, ids=name_of)
def test_the_cache_holds_other_keys_as_they_were(scheme):
    first = first_keys(scheme)
    torch.testing.assert_close(first, first[:, :1].expand_as(first))


@pytest.mark.parametrize("scheme", [*("rope" + more for more in KEPT), {"layers": ["rope", "rope+dynamic_ntk"]}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_decoding_with_turned_keys_equals_the_full_pass(scheme, dtype):
    """With grouped heads, in any precision; a row that is padded and one that is packed beside plain ones."""
    model, tokens = build(scheme, n_kv_heads=1).to(dtype), ids(LONG, 3)
    place = torch.arange(LONG)
    valid, documents = torch.ones(3, LONG, dtype=torch.bool), torch.zeros(3, LONG, dtype=torch.int64)
    valid[0, :4], documents[1] = False, (place > 11).long()
    near = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    for facts in ({}, {"valid": valid, "documents": documents}):
        full, came = read(model, tokens, **facts), decode(model, tokens, [5, 1, 1, LONG - 7], **facts)
        torch.testing.assert_close(came[valid], full[valid], **near)


# Token shift


@pytest.mark.parametrize("scheme", ["nope", "rope", "fox", "sinusoidal+alibi"])
@pytest.mark.parametrize("pieces", [1, [1, 3, LONG - 4], [LONG - 1, 1]])
def test_shifted_tokens_are_decoded_as_in_the_full_pass(scheme, pieces):
    model = build(scheme, token_shift=True, n_kv_heads=1)
    tokens = ids(LONG)
    same(decode(model, tokens, pieces), read(model, tokens))
    differ(read(model, tokens), read(build(scheme, n_kv_heads=1), tokens))


@pytest.mark.parametrize("pieces", [1, [9, 1, 5, 5]])
def test_no_token_is_mixed_with_one_of_another_document_or_with_padding(pieces):
    model = build("rope", token_shift=True)
    parts = ids(9), ids(5, seed=1), ids(6, seed=2)
    tokens = torch.cat(parts, 1)
    alone = torch.cat([model(part, positions_of(model, *part.shape, declared=20)) for part in parts], 1)
    documents = torch.repeat_interleave(torch.tensor([1, 0, 1]), torch.tensor([9, 5, 6])).expand(2, -1)
    same(model(tokens, positions_of(model, 2, 20, documents=documents)), alone)
    same(decode(model, tokens, pieces, documents=documents), alone)
    valid = (torch.arange(20) >= 9).expand(2, -1)
    alone = model(tokens[:, 9:], positions_of(model, 2, 11, declared=20))
    same(model(tokens, positions_of(model, 2, 20, valid=valid))[:, 9:], alone)
    same(decode(model, tokens, pieces, valid=valid)[:, 9:], alone)


def test_a_token_shift_gives_order_to_a_model_without_positions():
    """One layer without positions reads a set: its last token cannot tell in which order the others stood."""
    tokens = torch.tensor([[1, 2, 3, 4, 5], [2, 1, 3, 4, 5]])
    blind, shifted = (read(build("nope", n_layers=1, token_shift=on), tokens)[:, -1] for on in (False, True))
    same(blind[0], blind[1])
    differ(shifted[0], shifted[1])


def test_a_token_shift_leaves_all_other_weights_as_they_were():
    plain, shifted = (Transformer(SIZES | {"token_shift": on}).state_dict() for on in (False, True))
    gates = {f"blocks.{i}.attention.shift.gates.weight" for i in range(2)}
    assert shifted.keys() - plain.keys() == gates
    assert_same_weights(plain, {name: weight for name, weight in shifted.items() if name not in gates})
    assert all(shifted[name].std() == pytest.approx(0.02, rel=0.5) for name in gates)


# Mistakes


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"d_model": 15}, "model.d_model = 15 is not divisible by n_heads = 2"),
        ({"d_model": 0}, "model.d_model must be positive, got 0"),
        ({"head_dim": -1}, "model.head_dim must be positive, got -1"),
        ({"norm_eps": 0.0}, "model.norm_eps must be positive, got 0"),
        ({"attention_bias": "al"}, "model.attention_bias is one of none, qkv, all, not 'al'. Did you mean 'all'?"),
        ({"qk_norm_scope": "all"}, "model.qk_norm_scope = all does nothing without qk_norm"),
        ({"n_layers": -1}, "model.n_layers must be positive, got -1"),
        ({"train_length": 0}, "model.train_length must be positive"),
        ({"d_ff": 0}, "model.d_ff must be positive"),
        ({"n_heads": 2, "n_kv_heads": 3}, "model.n_kv_heads = 3 does not divide n_heads = 2"),
        ({"dropout": 1.0}, r"model.dropout must lie in \[0, 1\), got 1.0"),
        ({"norm": "layernrom"}, r"model.norm is one of layernorm, rmsnorm, not 'layernrom'\. Did you mean 'layernorm'"),
        ({"activation": "tanh"}, "model.activation is one of gelu, relu, silu, swiglu, geglu, not 'tanh'"),
        ({"scheme": "ropee"}, "no member is called 'ropee'"),
        ({"scheme": "nope+pi"}, "pi does not fit nope"),
    ],
)
def test_a_wrong_configuration_is_refused(config, message):
    with pytest.raises(UserError, match=message):
        Transformer(SIZES | config)


def test_an_unknown_back_end_is_refused():
    with pytest.raises(UserError, match=r"no attention back-end 'egaer'\. Did you mean 'eager'"):
        build("nope", backend="egaer")(ids(3))
