"""Small members that use the wider hooks of the contract: each against its formula, and held to the kit."""

import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pezoo
from helpers import member
from pezoo import Encoding, Extension, Positions, Traits, UserError, attention, register, testing
from pezoo.contract import overrides
from pezoo.drawing import picture
from pezoo.model.decode import decode
from pezoo.positions import on_tensors
from pezoo.registry import _entries, entry, setting
from pezoo.study import Study

H, D, WIDTH, L = 3, 4, 12, 11
SIZES = {"d_model": WIDTH, "n_heads": H, "n_layers": 2, "train_length": 8}
LEARNING = ("train", "tune", "test")
END = 3
"""The token that ends a segment."""


class OwnPerLayer:
    """Each layer has parameters of its own."""

    @classmethod
    def per_layer(cls, config):
        return True


class Forget(OwnPerLayer, Encoding):
    """A forget gate, read from the layer's input: l_ij += D_i - D_j, D = cumsum ln sigmoid(w x + b)."""

    traits = Traits(
        shift_invariant=True,
        bidirectional=False,
        contextual=True,
        parameters=lambda shape, c: shape.n_heads * (shape.input_width + 1),
    )

    def __init__(self, shape, config):
        super().__init__(shape, config)
        if not shape.causal:
            raise UserError("forget is for decoders only")
        self.gate = nn.Linear(shape.input_width, shape.n_heads)

    def read(self, x, positions):
        return F.logsigmoid(self.gate(x))

    def bias(self, positions):
        total = positions.read.cumsum(1).mT  # (B, H, Lk)
        return positions.of_queries(total, 2)[..., None] - total[:, :, None]


class LearnedScale(OwnPerLayer, Extension):
    """A learned scale of each head, times the logarithm of the keys that a query sees."""

    traits = Traits(shift_invariant=True, parameters=lambda shape, c: shape.n_heads)
    default_at = LEARNING

    def __init__(self, shape, config, at=None):
        super().__init__(shape, config, at)
        self.strength = nn.Parameter(torch.linspace(0.5, 1.5, shape.n_heads))

    def scale(self, positions):
        return self.strength[:, None] * (positions.query_index + 2).log()[:, None]


class LearnedSink(OwnPerLayer, Extension):
    """One learned logit of each head, without a value."""

    traits = Traits(shift_invariant=True, parameters=lambda shape, c: shape.n_heads)
    default_at = LEARNING

    def __init__(self, shape, config, at=None):
        super().__init__(shape, config, at)
        self.logit = nn.Parameter(torch.linspace(-1, 1, shape.n_heads))

    def sink(self):
        return self.logit


class OffByOne(Extension):
    """A sink of logit 0: softmax with one more in its denominator."""

    traits = Traits(shift_invariant=True)
    default_at = LEARNING

    def sink(self):
        return torch.zeros(self.shape.n_heads)


class Segments(Extension):
    """Coordinates count the segments of a document before a token; a segment ends with the token `end`."""

    traits = Traits(shift_invariant=True, tokens=True)
    default_at = LEARNING

    @dataclass
    class Config:
        end: int = setting(END, "the token that ends a segment", at_least=0)

    def coordinates(self, positions):
        ends = (positions.tokens == self.config.end).long()
        before = ends.cumsum(1) - ends
        first = torch.arange(before.shape[1], device=before.device) - positions.key_index
        key = (before - before.gather(1, first.expand(len(before), -1))).to(torch.float32)
        return positions.replace(query=positions.of_queries(key), key=key, spacing=None)


class Polar(Encoding):
    """Keys and queries twice as wide as values: each channel is an amplitude, turned by an angle of its own."""

    traits = Traits(shift_invariant=True, parameters=lambda shape, c: shape.n_heads * shape.head_dim)

    def __init__(self, shape, config):
        super().__init__(shape, config)
        self.phase = nn.Parameter(torch.linspace(-1, 0, shape.n_heads * shape.head_dim).view(shape.n_heads, 1, -1))

    def inv_freq(self):
        return 100.0 ** -(torch.arange(self.shape.head_dim) / self.shape.head_dim)

    def rotate(self, q, k, positions):
        def turned(t, place, phase):
            angle = (place[..., None] * positions.inv_freq[:, None])[:, None] + phase
            amplitude = F.softplus(t.float())
            return torch.cat([amplitude * angle.cos(), amplitude * angle.sin()], -1).to(t.dtype)

        return turned(q, positions.query, 0.0), turned(k, positions.key, self.phase)


class SinkAndWindow(Extension):
    """A query sees the first token and the last ones, and says so."""

    traits = Traits(shift_invariant=True, neutral={"size": 1_000_000_000})
    default_at = ("test",)

    @dataclass
    class Config:
        size: int = setting(5, "tokens of the window", at_least=1)

    def mask(self, positions):
        return (positions.steps().abs() < self.config.size) | (positions.key_index < 1)[:, None]

    def reach(self, first, last):
        return (0, 1), (first - self.config.size + 1, last + self.config.size)


class StickBreaking(Encoding):
    """Weights that break a stick, the nearest key first; what is left is the query's own."""

    traits = Traits(shift_invariant=True, bidirectional=False, contextual=True)

    def __init__(self, shape, config):
        super().__init__(shape, config)
        if not shape.causal:
            raise UserError("sticks is for decoders only")

    def normalise(self, logits, positions):
        own = (positions.steps() == 0)[:, None] & positions.visible()[:, None]
        logits = logits.masked_fill(own, -torch.inf)
        keep = F.logsigmoid(-logits)  # 0 where a key is not seen
        after = keep.flip(-1).cumsum(-1).flip(-1) - keep
        weights = (F.logsigmoid(logits) + after).exp()
        return torch.where(own, keep.sum(-1, keepdim=True).exp(), weights)


class Householder(OwnPerLayer, Encoding):
    """q.k replaced: between key j and query i stand the reflections of the tokens j + 1 ... i, read from the input."""

    traits = Traits(
        shift_invariant=True,
        bidirectional=False,
        contextual=True,
        parameters=lambda shape, c: shape.input_width * shape.n_heads * (shape.head_dim + 1),
    )

    def __init__(self, shape, config):
        super().__init__(shape, config)
        if not shape.causal:
            raise UserError("householder is for decoders only")
        self.project = nn.Linear(shape.input_width, shape.n_heads * (shape.head_dim + 1), bias=False)

    def read(self, x, positions):
        w, beta = self.project(x).split([self.shape.n_heads * self.shape.head_dim, self.shape.n_heads], -1)
        return F.normalize(w.unflatten(-1, (self.shape.n_heads, -1)), dim=-1), 2 * beta.sigmoid()

    def product(self, q, k, positions):
        w, beta = positions.read
        r, columns = q.float(), []
        place = positions.offset + torch.arange(q.shape[2], device=q.device)
        for j in range(k.shape[2] - 1, -1, -1):
            columns.append((r * k[:, :, j : j + 1].float()).sum(-1))
            along = w[:, j, :, None]  # (B, H, 1, d)
            turned = r - beta[:, j, :, None, None] * (r * along).sum(-1, keepdim=True) * along
            r = torch.where((place >= j)[:, None], turned, r)
        return torch.stack(columns[::-1], -1)


MEMBERS = {
    "forget": Forget,
    "learned_scale": LearnedScale,
    "learned_sink": LearnedSink,
    "off_by_one": OffByOne,
    "segments": Segments,
    "polar": Polar,
    "sink_and_window": SinkAndWindow,
    "sticks": StickBreaking,
    "householder": Householder,
}


@pytest.fixture(scope="module", autouse=True)
def members(same_zoo):
    for name, cls in MEMBERS.items():
        register(name, title="A member of the tests")(cls)


def created(scheme, **sizes):
    """A scheme with parameters moved off their initial values, and random q, k, v, x and ids for it."""
    scheme = pezoo.create(scheme, **SIZES | sizes)
    generator = torch.Generator().manual_seed(1)
    for parameter in scheme.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return scheme


def vectors(batch=2, heads=H, length=L):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, batch, heads, length, D, generator=generator).unbind()
    x = torch.randn(batch, length, WIDTH, generator=generator)
    return q, k, v, x, torch.randint(5, (batch, length), generator=generator)


def by_pairs(logit, v, weigh):
    """Attention of one pair after another in float64; weigh: the logits of a row's keys 0 ... i -> their weights."""
    out = torch.zeros(v.shape, dtype=torch.float64)
    for b, h, i in ((b, h, i) for b in range(len(v)) for h in range(H) for i in range(L)):
        weights = weigh([float(logit(b, h, i, j)) for j in range(i + 1)])
        out[b, h, i] = sum(w * v[b, h, j].double() for j, w in enumerate(weights))
    return out


def softmax(row, *more):
    total = sum(math.exp(z) for z in (*row, *more))
    return [math.exp(z) / total for z in row]


def products(q, k):
    return q.double() @ k.double().mT / D**0.5


def agree(monkeypatch, scheme, expected, **given):
    """Layer 1 in every back-end that does not refuse, by whole and continued calls; returns the names of these."""
    q, k, v, *_ = vectors()
    ran = []
    monkeypatch.setattr(attention, "CHUNK", 3)
    for backend in attention.BACKENDS:
        try:
            out = pezoo.attend(scheme, q, k, v, layer=1, backend=backend, **given)
        except UserError:
            continue
        ran.append(backend)
        torch.testing.assert_close(out.double(), expected, atol=2e-5, rtol=1e-4)
        last = pezoo.attend(scheme, q[:, :, -4:], k, v, layer=1, backend=backend, **given)
        torch.testing.assert_close(last.double(), expected[:, :, -4:], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(pezoo.attend(scheme, q, k, v, layer=1, **given).double(), expected, atol=2e-5, rtol=1e-4)
    return ran


# The kit

QUICK = (
    "decodes_like_the_full_pass",
    "decodes_padded_and_packed_rows",
    "packed_documents_do_not_leak",
    "back_ends_equal_eager",
    "every_parameter_learns",
    "tokens_as_declared",
)


@pytest.mark.slow
@pytest.mark.ci(one_in=5)
@pytest.mark.parametrize("check", QUICK)
@pytest.mark.parametrize("name", MEMBERS)
def test_each_passes_the_checks_of_what_is_new(name, check):
    outcome = testing.run(testing.subjects(name)[0], check)
    assert outcome.status in ("pass", "skip"), outcome


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("name", MEMBERS)
def test_each_passes_the_kit(name):
    outcomes = testing.check_encoding(name)
    bad = [(o.scheme, o.check, o.expected, o.came) for o in outcomes if o.status not in ("pass", "skip")]
    assert not bad


# Reading the layer's input


def gates(member, x):
    weight, bias = member.gate.weight.double(), member.gate.bias.double()
    return torch.log(1 / (1 + torch.exp(-(x.double() @ weight.T + bias)))).detach()


def test_a_forget_gate_is_the_formula(monkeypatch):
    scheme, (q, k, v, x, _) = created("forget"), vectors()
    f, z = gates(member(scheme, "forget", 1), x), products(q, k)

    def logit(b, h, i, j):
        return z[b, h, i, j] + sum(float(f[b, t, h]) for t in range(j + 1, i + 1))

    assert agree(monkeypatch, scheme, by_pairs(logit, v, softmax), x=x) == ["eager", "sdpa", "chunked"]


def test_gates_of_a_group_of_heads_read_the_whole_input():
    scheme, (q, k, v, x, _) = created({"heads": {"forget": 1, "alibi": 2}}), vectors()
    f, z = gates(member(scheme, "forget", 1), x), products(q, k)
    logits = z[:, 0] + f[..., 0].cumsum(1)[:, :, None] - f[..., 0].cumsum(1)[:, None]
    expected = logits.masked_fill(torch.ones(L, L).triu(1).bool(), -torch.inf).softmax(-1) @ v[:, 0].double()
    out = pezoo.attend(scheme, q, k, v, layer=1, x=x)
    torch.testing.assert_close(out[:, 0].double(), expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(out[:, 1:], pezoo.attend(scheme, q, k, v, layer=1, x=x * 2)[:, 1:])


def test_far_regions_keep_what_was_read():
    scheme, (q, k, _, x, _) = created("rope+forget+rerope:window=3"), vectors()
    plain = created("rope+rerope:window=3")
    given = {"layer": 1, "phase": "test"}
    f = gates(member(scheme, "forget", 1), x).cumsum(1).transpose(1, 2)
    expected = plain.logits(q, k, **given).double() + f[..., None] - f[:, :, None]
    torch.testing.assert_close(scheme.logits(q, k, x=x, **given).double(), expected, atol=1e-4, rtol=1e-4)


def test_the_input_is_demanded_by_those_that_read_it_alone():
    q, k, v, x, _ = vectors()
    scheme = created("rope+forget")
    with pytest.raises(UserError, match=r"forget reads the input of the layer: pass x=.*\(B, Lk, D\)"):
        pezoo.attend(scheme, q, k, v)
    with pytest.raises(UserError, match=r"x is \(B, L, 12\), for 11 tokens, not \(2, 11, 13\)"):
        pezoo.attend(scheme, q, k, v, x=F.pad(x, (0, 1)))
    with pytest.raises(UserError, match="x has 1 rows, but q has 2"):
        pezoo.attend(scheme, q, k, v, x=x[:1])
    with pytest.raises(UserError, match="has read 2 tokens of the input, but there are 11 keys; pass x= of all"):
        pezoo.attend(scheme, q[:, :, -2:], k, v, x=x[:, -2:])
    with pytest.raises(UserError, match=r"what forget adds depends on the layer's input; scheme.logits\(q, k, x=x\)"):
        scheme.bias(8)
    plain = created("rope")
    assert torch.equal(pezoo.attend(plain, q, k, v, x=x), pezoo.attend(plain, q, k, v))
    assert plain.prepare(plain.positions(2, L)).read(0, x) is None


def test_reads_are_kept_and_continued_in_a_loop_of_ones_own():
    scheme, (q, k, v, x, _) = created("rope+forget"), vectors()
    whole, kept, outs = scheme.positions(2, L), None, []
    for start, stop in ((0, 5), (5, 6), (6, L)):
        prepared = scheme.prepare(whole.slice(start, stop, stop))
        new = prepared.read(1, x[:, start:stop])
        kept = new if kept is None else on_tensors(lambda a, b: torch.cat([a, b], 1), kept, new)
        outs.append(prepared.attend(1, q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop], read=kept))
    expected = pezoo.attend(scheme, q, k, v, layer=1, x=x)
    torch.testing.assert_close(torch.cat(outs, 2), expected, atol=1e-5, rtol=1e-5)


def test_every_hook_of_attention_finds_what_was_read_for_its_keys(monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 3)
    asked = set()

    class Looking(Encoding):
        """Overrides the hooks of attention, changes nothing, and looks at what was read."""

        def read(self, x, positions):
            return x.sum(-1), x

        def look(self, hook, positions, n_keys, queries=None):
            asked.add(hook)
            total, whole = positions.read
            assert total.shape[1] == whole.shape[1] == n_keys
            if queries is not None:
                assert torch.equal(positions.of_queries(total), x.sum(-1)[:, queries])

        def rotate(self, q, k, positions):
            self.look("rotate", positions, k.shape[2], slice(4, L))
            return q, k

        def product(self, q, k, positions):
            self.look("product", positions, k.shape[2])
            return super().product(q, k, positions)

        def content(self, q, k, positions):
            start = positions.offset
            self.look("content", positions, k.shape[2], slice(start, start + q.shape[2]))

        def bias(self, positions):
            self.look("bias", positions, positions.key.shape[1])

        def change_values(self, v, positions):
            self.look("change_values", positions, v.shape[2])
            return v

        def normalise(self, logits, positions):
            self.look("normalise", positions, logits.shape[3])
            return super().normalise(logits, positions)

        def mix(self, weights, v, positions):
            self.look("mix", positions, v.shape[2])
            return super().mix(weights, v, positions)

    register("looking", title="t")(Looking)
    q, k, v, x, _ = vectors()
    for backend in ("eager", "chunked"):
        asked.clear()
        out = pezoo.attend(created("looking"), q[:, :, 4:], k, v, x=x, backend=backend)
        assert asked == {"rotate", "product", "content", "bias", "change_values", "normalise", "mix"}
        torch.testing.assert_close(out, pezoo.attend(created("nope"), q[:, :, 4:], k, v))


def test_a_read_that_is_not_there_for_each_token_is_refused(monkeypatch):
    monkeypatch.setattr(Forget, "read", lambda self, x, positions: x.mean(1))
    q, k, v, x, _ = vectors()
    with pytest.raises(UserError, match=r"read of forget gives \(2, 12\), but it is to begin with \(2, 11\)"):
        pezoo.attend(created("forget"), q, k, v, x=x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_read_is_float32(dtype):
    scheme = created("forget").to(dtype)
    prepared = scheme.prepare(scheme.positions(2, L))
    x = vectors()[3].to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        ((read,),) = prepared.read(0, x)
    assert read.dtype == torch.float32
    torch.testing.assert_close(read.double(), gates(member(scheme, "forget"), x), atol=1e-5, rtol=1e-5)


# A product, a normaliser, wide keys


def test_a_product_of_ones_own_is_the_formula(monkeypatch):
    scheme, (q, k, v, x, _) = created("householder"), vectors()
    project = member(scheme, "householder", 1).project
    w, beta = (x.double() @ project.weight.double().T).detach().split([H * D, H], -1)
    w, beta = F.normalize(w.view(2, L, H, D), dim=-1), 2 / (1 + torch.exp(-beta))

    def logit(b, h, i, j):
        turn = torch.eye(D, dtype=torch.float64)
        for t in range(j + 1, i + 1):
            turn = turn @ (torch.eye(D) - beta[b, t, h] * torch.outer(w[b, t, h], w[b, t, h]))
        return k[b, h, j].double() @ turn @ q[b, h, i].double() / D**0.5

    assert agree(monkeypatch, scheme, by_pairs(logit, v, softmax), x=x) == ["eager", "chunked"]


def test_a_product_reads_rotated_queries_and_keys():
    scheme, (q, k, _, x, _) = created("rope+householder"), vectors()
    turned = created("rope").prepare(Positions.build(L, phase="test")).layers[0][0].composition.rotate(q, k)
    for parameter in scheme.parameters():
        parameter.data.zero_()  # beta 1, w 0
    expected = turned[0] @ turned[1].mT / D**0.5
    causal = torch.ones(L, L).tril().bool()
    ours = scheme.logits(q, k, x=x)
    torch.testing.assert_close(ours[..., causal], expected[..., causal], atol=1e-5, rtol=1e-5)


def break_stick(row):
    shares, rest = [], 1.0
    for z in reversed(row[:-1]):
        shares.append(rest / (1 + math.exp(-z)))
        rest -= shares[-1]
    return [*reversed(shares), rest]


def test_stick_breaking_is_the_formula(monkeypatch):
    scheme, (q, k, v, *_) = created("sticks"), vectors()
    z = products(q, k)
    expected = by_pairs(lambda b, h, i, j: z[b, h, i, j], v, break_stick)
    assert agree(monkeypatch, scheme, expected) == ["eager", "chunked"]


def test_wide_keys_are_the_formula(monkeypatch):
    scheme, (q, k, v, *_) = created("polar"), vectors()
    phase = member(scheme, "polar").phase.double().detach()[:, 0]
    w = 100.0 ** -(torch.arange(D, dtype=torch.float64) / D)
    a, b_ = (torch.log1p(torch.exp(t.double())) for t in (q, k))

    def logit(b, h, i, j):
        return (a[b, h, i] * b_[b, h, j] * torch.cos((i - j) * w - phase[h])).sum() / D**0.5

    assert agree(monkeypatch, scheme, by_pairs(logit, v, softmax)) == ["eager", "sdpa", "chunked"]


@pytest.mark.parametrize("extension", ["pi:factor=4", "yarn:factor=4", "ntk:factor=4", "rerope:window=3", "logn"])
def test_extensions_act_on_wide_keys(extension):
    scheme, (q, k, v, *_) = created(f"polar+{extension}"), vectors()
    plain, given = created("polar"), {"phase": "test"}
    out = pezoo.attend(scheme, q, k, v, **given)
    assert out.isfinite().all()
    assert not torch.allclose(out, pezoo.attend(plain, q, k, v, **given))
    if extension == "pi:factor=4":
        positions = plain.positions(2, L, phase="test").scaled(1 / 4)
        torch.testing.assert_close(out, pezoo.attend(plain, q, k, v, positions=positions))


def test_what_is_wide_is_not_rotated_further():
    q, k, v, *_ = vectors()
    assert pezoo.attend(created("rope+polar"), q, k, v).isfinite().all()
    with pytest.raises(UserError, match="rope cannot rotate what is no longer 4 wide; name it first in the scheme"):
        pezoo.attend(created("polar+rope"), q, k, v)


def test_nothing_changes_q_and_k_after_one_that_turns_last():
    q, k, v, *_ = vectors()
    assert pezoo.attend(created("floater+xpos"), q, k, v).isfinite().all()
    with pytest.raises(UserError, match="floater cannot change q and k after xpos; name it first in the scheme"):
        pezoo.attend(created("xpos+floater"), q, k, v)


# Scales and sinks


def test_a_scale_of_each_head_and_layer_is_the_formula(monkeypatch):
    scheme, (q, k, v, *_) = created("alibi+learned_scale"), vectors()
    s, z = member(scheme, "learned_scale", 1).strength.tolist(), products(q, k)
    bias = created("alibi").bias(L).double()

    def logit(b, h, i, j):
        return s[h] * math.log(i + 2) * z[b, h, i, j] + bias[h, i, j]

    assert agree(monkeypatch, scheme, by_pairs(logit, v, softmax)) == ["eager", "sdpa", "chunked"]
    for layer in range(2):
        s = member(scheme, "learned_scale", layer).strength.tolist()
        came = [scheme.temperature(5, layer=layer, head=h).tolist() for h in range(H)]
        assert came == [pytest.approx([s[h] * math.log(i + 2) for i in range(5)]) for h in range(H)]


def test_factors_of_all_shapes_multiply():
    scheme = created("rope+learned_scale+logn+yarn:factor=4")
    alone = [created(f"rope+{e}").temperature(40, head=2) for e in ("learned_scale", "logn", "yarn:factor=4")]
    own = member(scheme, "learned_scale").strength
    own.data = member(created("rope+learned_scale"), "learned_scale").strength.data
    torch.testing.assert_close(scheme.temperature(40, head=2), alone[0] * alone[1] * alone[2])
    mixed = created({"heads": {"rope": 1, "rope+learned_scale": 2}})
    s = member(mixed, "learned_scale", part=1).strength.tolist()
    assert mixed.temperature(3, head=2).tolist() == pytest.approx([s[1] * math.log(i + 2) for i in range(3)])


def test_hooks_of_an_extension_know_the_layer():
    """It need not have a copy for each; of a mixture, the layers that have its scheme are counted."""

    @register("deep", title="A member of the tests")
    class Deep(Extension):
        """Layer n is n + 1 times as sharp, and sees n + 1 tokens."""

        def scale(self, positions):
            return float(positions.layer + 1)

        def mask(self, positions):
            return positions.steps() <= positions.layer

    try:
        whole, mixed = created("rope+deep", n_layers=4), created({"layers": ["nope", "rope+deep"]}, n_layers=4)
        places = whole.positions(1, L, phase="test")
        for scheme, depths in ((whole, [0, 1, 2, 3]), (mixed, [None, 0, None, 1])):
            for layer, depth in enumerate(depths):
                assert scheme.temperature(L, layer=layer).unique().tolist() == [1 if depth is None else depth + 1]
                seen = scheme.prepare(places).at(layer)[0].composition.visible()[0, -1].sum()
                assert seen == (L if depth is None else depth + 1)
    finally:
        del _entries["deep"]


@pytest.mark.parametrize("encoding", ["nope", "alibi", "fire"])
def test_a_sink_is_one_more_column_of_the_softmax(encoding, monkeypatch):
    scheme, (q, k, v, *_) = created(f"{encoding}+learned_sink"), vectors()
    s = member(scheme, "learned_sink", 1).logit
    plain = created(encoding)
    plain.load_from(scheme)
    logits = plain.logits(q, k, layer=1).double()
    column = s.double()[:, None, None].expand(2, H, L, 1)
    expected = torch.cat([logits, column], -1).softmax(-1)[..., :-1] @ v.double()
    assert agree(monkeypatch, scheme, expected.detach()) == ["eager", "sdpa", "chunked"]


def test_two_sinks_are_two_columns():
    scheme, (q, k, v, *_) = created("nope+learned_sink+off_by_one"), vectors()
    s, z = member(scheme, "learned_sink", 1).logit.tolist(), products(q, k)
    for h in range(H):
        row, values = (lambda b, _, i, j, h=h: z[b, h, i, j]), v[:, [h] * H]
        expected = by_pairs(row, values, lambda logits, h=h: softmax(logits, s[h], 0.0))
        out = pezoo.attend(scheme, q, k, v, layer=1)
        torch.testing.assert_close(out[:, h].double(), expected[:, 0], atol=2e-5, rtol=1e-4)


def test_the_weights_that_are_observed_leave_out_the_sink(monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 3)
    scheme, (q, k, v, *_) = created("nope+off_by_one"), vectors()
    seen = []
    with attention.observing(lambda logits, weights, composition: seen.append((logits, weights))):
        pezoo.attend(scheme, q, k, v)
    for logits, weights in seen:
        total = logits.exp().sum(-1)
        torch.testing.assert_close(weights.sum(-1), total / (total + 1))


# What does not go together


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("sticks+learned_sink", r"cannot work: a sink \(learned_sink\) counts in a softmax, and sticks"),
        ("sticks+other_sticks", "cannot be joined: each brings a normaliser of its own"),
        ("householder+other_householder", "cannot be joined: each brings a product of queries and keys of its own"),
    ],
)
def test_what_cannot_be_joined_is_refused(scheme, message):
    register("other_sticks", title="t")(type("Other", (StickBreaking,), {"__doc__": "Another."}))
    register("other_householder", title="t")(type("Other", (Householder,), {"__doc__": "Another."}))
    try:
        with pytest.raises(UserError, match=message):
            created(scheme)
    finally:
        del _entries["other_sticks"], _entries["other_householder"]


@pytest.mark.parametrize(
    ("scheme", "hook"),
    [("sticks", "normalise"), ("householder", "product"), ("alibi+sticks", "normalise")],
)
def test_sdpa_refuses_what_it_has_no_place_for(scheme, hook):
    q, k, v, x, _ = vectors()
    with pytest.raises(UserError, match=f"back-end 'sdpa' cannot run this scheme: it has no place for {hook}"):
        pezoo.attend(created(scheme), q, k, v, x=x, backend="sdpa")
    assert pezoo.attend(created(scheme), q, k, v, x=x).isfinite().all()


# Coordinates from tokens


def test_segments_are_counted_from_tokens():
    tokens = torch.tensor([[1, END, 1, 1, END, END, 0], [0, 0, 0, END, 2, 2, 2]])
    scheme = created("rope+segments")
    positions = scheme.prepare(scheme.positions(2, 7, tokens=tokens)).layers[0][0].composition.positions
    assert positions.query.tolist() == [[0, 0, 1, 1, 1, 2, 3], [0, 0, 0, 0, 1, 1, 1]]
    packed = scheme.positions(2, 7, tokens=tokens, documents=torch.tensor([[0, 0, 0, 1, 1, 1, 1]] * 2))
    positions = scheme.prepare(packed).layers[0][0].composition.positions
    assert positions.query.tolist() == [[0, 0, 1, 0, 0, 1, 2], [0, 0, 0, 0, 1, 1, 1]]


def test_coordinates_from_tokens_are_those_given(monkeypatch):
    scheme, plain, (q, k, v, _, tokens) = created("rope+segments"), created("rope"), vectors()
    ends = (tokens == END).float()
    given = ends.cumsum(1) - ends
    assert given.max() > 1
    positions = plain.positions(2, L).replace(query=given, key=given, spacing=None)
    expected = pezoo.attend(plain, q, k, v, layer=1, positions=positions)
    agree(monkeypatch, scheme, expected.double(), tokens=tokens)
    again = pezoo.attend(scheme, q, k, v, layer=1, positions=scheme.positions(2, L), tokens=tokens)
    torch.testing.assert_close(again, expected)
    torch.testing.assert_close(scheme.logits(q, k, tokens=tokens), plain.logits(q, k, positions=positions))


def test_tokens_are_demanded_by_those_that_read_them_alone():
    q, k, v, _, tokens = vectors()
    with pytest.raises(UserError, match=r"segments reads the tokens: pass tokens=, their ids, \(B, 11\)"):
        pezoo.attend(created("rope+segments"), q, k, v)
    with pytest.raises(UserError, match="tokens has 9 tokens a row, not 11"):
        pezoo.attend(created("rope+segments"), q, k, v, tokens=tokens[:, :9])
    scheme = created("rope+segments")
    with pytest.raises(UserError, match=r"tokens has the shape \(2, 9\), not \(B, 11\)"):
        pezoo.attend(scheme, q, k, v, positions=scheme.positions(2, L), tokens=tokens[:, :9])
    assert torch.equal(pezoo.attend(created("rope"), q, k, v, tokens=tokens), pezoo.attend(created("rope"), q, k, v))


@pytest.mark.parametrize("scheme", ["alibi+segments", "rope+forget", "householder+learned_sink", "polar+learned_scale"])
def test_generated_text_is_that_of_reading_everything_anew(scheme):
    config = {"vocab_size": 6, "d_model": WIDTH, "n_heads": H, "n_layers": 2, "train_length": 8}
    model = pezoo.Transformer(config | {"scheme": scheme}).eval()
    for parameter in model.parameters():
        parameter.data *= 3
    prompt = torch.tensor([[1, END, 2], [0, 5, 4]])
    came = decode(model, prompt, 8)
    text = prompt
    with torch.no_grad():
        for _ in range(8):
            text = torch.cat([text, model(text)[:, -1].argmax(-1)[:, None]], 1)
    assert torch.equal(came, text[:, 3:])
    assert len(came.unique()) > 1


@pytest.mark.parametrize("scheme", ["alibi+segments", "forget+learned_sink", "householder", "polar+learned_scale"])
def test_nothing_is_read_from_the_device(scheme):
    config = {"vocab_size": 6, "d_model": WIDTH, "n_heads": H, "n_layers": 1, "train_length": 8}
    model = pezoo.Transformer(config | {"scheme": scheme}).to("meta")
    ids = torch.zeros(2, 9, dtype=torch.int64, device="meta")
    model.train()(ids, model.positions(2, 9, documents=torch.zeros(2, 9))).sum().backward()
    assert all(p.grad.is_meta for p in model.scheme.parameters())
    assert decode(model, ids, 3).shape == (2, 3)
    assert model.scheme.undefined(20) is None


@pytest.mark.parametrize("scheme", ["forget", "alibi+segments", "rope+learned_scale", "polar", "rope+sink_and_window"])
def test_a_scheme_can_be_planned_and_drawn(scheme, tmp_path):
    recipe = {"schemes": [scheme], "data": {"max_bytes": 20_000}, "test": {"lengths": ["1x"], "windows": 1}}
    recipe |= {"model": {"d_model": 12, "n_layers": 1, "n_heads": 3}, "train": {"length": 8}}
    Study.prepare(recipe, [], tmp_path / "study")
    assert len(picture(scheme, train_length=8, n_heads=3, d_model=12).axes) >= 1


# Reach


def seen(scheme, length, causal=True, phase="test"):
    sizes = {**SIZES, "train_length": 8, "causal": causal}
    scheme = pezoo.create(scheme, **sizes)
    composition = scheme.prepare(scheme.positions(1, length, phase=phase)).layers[0][0].composition
    return composition, composition.visible()[0]


@pytest.mark.parametrize(
    ("scheme", "first", "last", "expected"),
    [
        ("rope", 10, 12, [(0, 13)]),
        ("rope+window:size=4", 10, 12, [(7, 13)]),
        ("rope+blockwise:size=4", 10, 12, [(4, 13)]),
        ("rope+memory:segment=4:memory=2", 9, 13, [(6, 14)]),
        ("rope+sinks:sinks=2:size=4", 10, 12, [(0, 2), (7, 13)]),
        ("rope+lm_infinite:first=3:size=6", 10, 12, [(0, 3), (5, 13)]),
        ("rope+sinks:sinks=2:size=4", 3, 5, [(0, 6)]),
        ("rope+sinks:sinks=2:size=4+window:size=5", 10, 12, [(7, 13)]),
        ("rope+sink_and_window:size=3", 10, 10, [(0, 1), (8, 11)]),
    ],
)
def test_the_reach_of_what_hides_keys(scheme, first, last, expected):
    composition, visible = seen(scheme, 20)
    assert composition.reach(first, last, 20) == expected
    found = visible[first : last + 1].any(0).nonzero().flatten().tolist()
    assert found == [key for start, stop in expected for key in range(start, stop)]


def test_every_extension_that_masks_states_its_reach():
    zoo = [n for n in pezoo.list_extensions() if n not in MEMBERS]
    classes = [entry(n).cls for n in zoo]
    masking = [c for c in classes if overrides(c, "mask")]
    assert len(masking) >= 5
    assert all(overrides(c, "reach") for c in masking)
