"""Schemes in people's own models: what they must say, what is refused, and the numbers that they can look at."""

import math

import pytest
import torch

import pezoo
from pezoo import Positions, Undefined, UserError
from pezoo.encodings.bias.alibi import slopes

SIZES = {"d_model": 32, "n_heads": 4, "n_layers": 2, "train_length": 16}
LENGTH = 40


def vectors(n=3, heads=4, length=LENGTH, width=8, batch=2):
    return torch.randn(n, batch, heads, length, width, generator=torch.Generator().manual_seed(0)).unbind()


def create(text, **sizes):
    return pezoo.create(text, **SIZES | sizes)


# What must be said


@pytest.mark.parametrize("training", [True, False])
def test_a_scheme_that_acts_in_some_phases_wants_to_know_the_phase(training):
    q, k, v = vectors()
    scheme = create("rope+pi:factor=4").train(training)
    with pytest.raises(UserError, match="pi acts differently in training, tuning and testing: pass phase='train'"):
        pezoo.attend(scheme, q, k, v)
    plain = pezoo.attend(create("rope"), q, k, v)
    assert torch.equal(pezoo.attend(scheme, q, k, v, phase="train"), plain)
    for phase in ("tune", "test"):
        assert not torch.allclose(pezoo.attend(scheme, q, k, v, phase=phase), plain)
    with pytest.raises(UserError, match="phase is one of train, tune, test, not 'eval'"):
        pezoo.attend(scheme, q, k, v, phase="eval")


@pytest.mark.parametrize("text", ["rope", "alibi+dape", "rope+resonance", "rope+window:at=train,tune,test", "t5"])
def test_where_all_phases_act_alike_nothing_need_be_said(text):
    q, k, v = vectors()
    scheme = create(text)
    said = [pezoo.attend(scheme, q, k, v, phase=phase) for phase in ("train", "tune", "test")]
    assert all(torch.equal(pezoo.attend(scheme, q, k, v), out) for out in said)


@pytest.mark.parametrize("text", ["sinusoidal+shift", "rope+memory:test_memory=4", "rope+clex:at=train,tune,test"])
def test_acting_in_all_phases_is_not_yet_acting_alike(text):
    with pytest.raises(UserError, match="acts differently in training, tuning and testing"):
        create(text).prepare(create(text).positions(1, 8, rows=(0,)))


def test_a_scheme_that_draws_wants_to_know_the_sequences():
    q, k, v = vectors()
    scheme = create("rope+random")
    with pytest.raises(UserError, match=r"random draws for each sequence anew: pass rows=.*step \* B"):
        pezoo.attend(scheme, q, k, v, phase="train")
    steps = [pezoo.attend(scheme, q, k, v, phase="train", rows=range(2 * i, 2 * i + 2)) for i in range(3)]
    assert not torch.allclose(steps[0], steps[1])
    assert torch.equal(steps[1], pezoo.attend(scheme, q, k, v, phase="train", rows=(2, 3)))
    with pytest.raises(UserError, match="rows numbers 3 sequences, but the batch has 2"):
        pezoo.attend(scheme, q, k, v, phase="train", rows=(0, 1, 2))
    another_seed = pezoo.attend(create("rope+random", seed=1), q, k, v, phase="train", rows=(2, 3))
    assert not torch.allclose(steps[1], another_seed)
    outside = create("rope+pose")  # draws in training and tuning alone
    assert torch.equal(pezoo.attend(outside, q, k, v, phase="test"), pezoo.attend(create("rope"), q, k, v))


def test_the_transformer_in_a_loop_of_ones_own():
    ids = torch.randint(16, (2, 12))
    config = {"vocab_size": 16, "d_model": 32, "n_heads": 4, "n_layers": 1, "train_length": 16}
    random = pezoo.Transformer(config | {"scheme": "rope+random"}).train()
    with pytest.raises(UserError, match="random draws for each sequence anew"):
        random(ids)
    steps = [random(ids, random.positions(2, 12, rows=rows)) for rows in ((0, 1), (2, 3))]
    assert not torch.allclose(*steps)
    tuned = pezoo.Transformer(config | {"scheme": "rope+pi:factor=4"}).train()
    with pytest.raises(UserError, match="pi acts differently in training and in tuning: pass phase='train'"):
        tuned(ids)
    assert not torch.allclose(*(tuned(ids, tuned.positions(2, 12, phase=phase)) for phase in ("train", "tune")))
    assert torch.equal(tuned.eval()(ids), tuned(ids, tuned.positions(2, 12, phase="test")))
    with pytest.raises(UserError, match=r"a Transformer has no setting 'heads'. Did you mean 'n_heads'"):
        pezoo.Transformer({"heads": 2})


def test_a_scheme_of_a_decoder_refuses_positions_of_an_encoder():
    scheme = create("t5")
    with pytest.raises(UserError, match=r"those of an encoder \(causal=False\).*created for a decoder"):
        scheme.prepare(Positions.build(8, causal=False))
    assert create("t5", causal=False).positions(1, 8).causal is False


def test_phase_and_rows_are_part_of_positions():
    q, k, v = vectors()
    scheme = create("rope+random")
    positions = scheme.positions(2, LENGTH, phase="train", rows=(4, 5))
    expected = pezoo.attend(scheme, q, k, v, phase="train", rows=(4, 5))
    assert torch.equal(pezoo.attend(scheme, q, k, v, positions=positions), expected)
    with pytest.raises(UserError, match="phase and rows are part of positions"):
        pezoo.attend(scheme, q, k, v, positions=positions, phase="train")


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 8}, "q has 8 heads of width 8 .* for 4 heads of width 8; .* n_heads=8, head_dim=8"),
        ({"width": 16}, "q has 4 heads of width 16 .* head_dim=16"),
        ({"heads": 1}, "q has 1 heads of width 8"),
    ],
)
@pytest.mark.parametrize("text", ["rope", "nope", "alibi", {"heads": {"rope": 2, "alibi": 2}}])
def test_heads_that_the_scheme_was_not_created_for(text, changes, message):
    with pytest.raises(UserError, match=message):
        pezoo.attend(create(text), *vectors(**changes))


def test_sizes_that_do_not_go_together():
    scheme, (q, k, v) = create("rope"), vectors()
    for layer in (2, -1):
        with pytest.raises(UserError, match=rf"layer = {layer}, but the scheme has layers 0 \.\.\. 1"):
            pezoo.attend(scheme, q, k, v, layer=layer)
    with pytest.raises(UserError, match="3 key/value heads do not divide 4 query heads"):
        pezoo.attend(scheme, q, k[:, :3], v[:, :3])
    for wrong in ((q, k, v[:, :, 1:]), (q[0], k[0], v[0]), (q, k[:1], v[:1])):
        with pytest.raises(UserError, match=r"q is \(B, H, Lq, d\), k and v are \(B, Hkv, Lk, d\)"):
            pezoo.attend(scheme, *wrong)
    positions = scheme.positions(2, LENGTH - 1)
    with pytest.raises(
        UserError, match="positions are of 39 queries and 39 keys in 1 rows, but q and k have 40 and 40"
    ):
        pezoo.attend(scheme, q, k, v, positions=positions)
    with pytest.raises(UserError, match="documents has 39 tokens a row, not 40"):
        scheme.positions(2, LENGTH, documents=torch.zeros(2, LENGTH - 1))


@pytest.mark.parametrize("text", ["sinusoidal", "learned+pi", "rope+complex_order"])
def test_attend_cannot_embed(text):
    q, k, v = vectors(length=12)
    scheme = create(text)
    with pytest.raises(UserError, match="changes the token embeddings, which attend never sees"):
        pezoo.attend(scheme, q, k, v, phase="test")
    x = torch.randn(2, 12, 32)
    prepared = scheme.prepare(scheme.positions(2, 12, phase="test"))
    assert not torch.allclose(prepared.embed(x), x)
    expected = prepared.attend(0, q, k, v)
    assert torch.equal(pezoo.attend(scheme, q, k, v, phase="test", embedded=True), expected)


# Heads of a width of their own


@pytest.mark.parametrize("name", pezoo.list_encodings("*"))
def test_heads_wider_than_their_share_of_the_model(name):
    """A scheme that reads the heads alone is that of a model as wide as its heads; every scheme works."""
    q, k, v = vectors(width=20, length=16)
    scheme = create(name, head_dim=20)
    assert scheme.shape.head_dim == 20
    x, tokens = torch.randn(2, 16, 32), torch.arange(32).view(2, 16)
    prepared = scheme.prepare(scheme.positions(2, 16, phase="test", rows=(0, 1), tokens=tokens))
    out = prepared.attend(1, q, k, v, x=x)
    assert out.isfinite().all()
    assert prepared.embed(x).shape == (2, 16, 32)
    for member in scheme.members:
        expected = member.traits.parameters(member.shape, member.config)
        assert sum(p.numel() for p in member.parameters()) == expected
    same = create(name, d_model=80)
    if [p.shape for p in same.parameters()] == [p.shape for p in scheme.parameters()]:
        same.load_state_dict(scheme.state_dict())
        assert torch.equal(pezoo.attend(same, q, k, v, layer=1, phase="test", rows=(0, 1), embedded=True), out)


def test_a_head_width_is_asked_for_where_it_is_not_whole():
    with pytest.raises(UserError, match="d_model = 30 is not divisible by n_heads = 4; or pass head_dim="):
        create("rope", d_model=30)
    assert create("rope", d_model=30, head_dim=8).shape.head_dim == 8
    with pytest.raises(UserError, match="head_dim must be positive, got 0"):
        create("rope", head_dim=0)


# The numbers of a scheme


@pytest.mark.parametrize("text", ["rope", "fire", "shaw", "alibi+dape", "rope+rerope:window=4", "kerple+logn", "cope"])
def test_logits_are_what_attention_makes_weights_of(text):
    q, k, v = vectors()
    scheme = create(text)
    logits = scheme.logits(q, k, layer=1, phase="test")
    assert logits.shape == (2, 4, LENGTH, LENGTH)
    assert logits.dtype == torch.float32
    assert torch.equal(logits == -torch.inf, torch.ones(LENGTH, LENGTH).triu(1).bool().expand(2, 4, -1, -1))
    if text != "shaw":  # which adds to values too
        out = pezoo.attend(scheme, q, k, v, layer=1, phase="test")
        torch.testing.assert_close(logits.softmax(-1) @ v, out, atol=1e-5, rtol=1e-5)
    some = scheme.logits(q[:, :, -3:], k, layer=1, phase="test")
    torch.testing.assert_close(some, logits[:, :, -3:], atol=1e-5, rtol=1e-5)


def test_the_bias_of_alibi_and_of_a_mixture():
    distance = torch.arange(9)[:, None] - torch.arange(9)
    expected = -torch.tensor(slopes(4))[:, None, None] * distance.abs()
    assert torch.equal(create("alibi").bias(9), expected)
    assert torch.equal(create("rope").bias(9), torch.zeros(4, 9, 9))
    assert torch.equal(create("alibi+pi:factor=4").bias(9), expected / 4)
    assert torch.equal(create("alibi+pi:factor=4").bias(9, phase="train"), expected)
    mixed = create({"heads": {"rope": 2, "alibi": 2}}).bias(9)
    two = -torch.tensor(slopes(2))[:, None, None] * distance.abs()
    assert torch.equal(mixed, torch.cat((torch.zeros(2, 9, 9), two)))
    capped = create("alibi+rerope:window=3").bias(9)
    assert torch.equal(capped.tril(), (-torch.tensor(slopes(4))[:, None, None] * distance.clamp(max=3).abs()).tril())
    drawn = create("alibi+random")
    assert not torch.equal(drawn.bias(9, row=1), drawn.bias(9, row=2))


def test_frequencies_and_temperature():
    w = 10000 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    torch.testing.assert_close(create("rope").frequencies(64).double(), w, rtol=1e-6, atol=0)
    ntk = create("rope+ntk")  # its factor is that of the length
    torch.testing.assert_close(ntk.frequencies(64)[-1].double(), w[-1] / 4, rtol=1e-5, atol=0)
    assert torch.equal(ntk.frequencies(16), create("rope").frequencies(16))
    assert torch.equal(ntk.frequencies(64, phase="train"), create("rope").frequencies(64))
    mixed = create({"heads": {"rope": 2, "rope:base=100": 2}})
    assert torch.equal(mixed.frequencies(8, head=2), create("rope:base=100").frequencies(8))
    with pytest.raises(UserError, match="alibi has no frequencies"):
        create("alibi").frequencies(8)
    with pytest.raises(UserError, match=r"head = 4, but the scheme has heads 0 \.\.\. 3"):
        mixed.frequencies(8, head=4)
    assert create("rope").temperature(5).tolist() == [1.0] * 5
    expected = (0.1 * math.log(4) + 1) ** 2
    assert create("rope+yarn:factor=4").temperature(5).tolist() == pytest.approx([expected] * 5)
    logn = create("rope+logn").temperature(64)
    assert logn.tolist() == pytest.approx([max(1, math.log(i + 1) / math.log(16)) for i in range(64)])


def test_draws_can_be_handed_in():
    mine = torch.tensor([[0.0, 3, 4, 9, 11, 12], [1.0, 2, 3, 5, 8, 13]])
    q, k, v = vectors(length=6)
    scheme = create("rope+random")
    positions = scheme.positions(2, 6, phase="train", draws={"random": mine})
    plain = create("rope")
    moved = plain.positions(2, 6).replace(query=mine, key=mine, spacing=None)
    expected = pezoo.attend(plain, q, k, v, positions=moved)
    assert torch.equal(pezoo.attend(scheme, q, k, v, positions=positions), expected)
    with pytest.raises(UserError, match=r"draws are given for 'randm', which .* has not. Did you mean 'random'"):
        scheme.prepare(scheme.positions(2, 6, phase="train", draws={"randm": mine}))
    shifted = create("learned+shift")
    with pytest.raises(Undefined, match="learned has 79 positions; coordinate 105 has none"):
        shifted.prepare(shifted.positions(1, 6, phase="train", draws={"shift": torch.tensor([[100]])}))


@pytest.mark.parametrize("name", ["pose", "cream", "giraffe_random", "random", "shift", "cape", "clex"])
def test_every_member_that_draws_takes_a_draw_by_its_name(name):
    scheme = create(f"rope+{name}")
    shape = {"shift": (1, 1), "clex": (1, 1), "cape": (1, 10)}.get(name, (1, 8))
    with pytest.raises(UserError, match=f"{name} draws for each sequence anew"):
        scheme.prepare(scheme.positions(1, 8, phase="tune"))
    given = torch.ones(shape, dtype=torch.int64)
    rows = {"rows": (0,)} if name == "clex" else {}  # whose coordinates are drawn besides
    scheme.prepare(scheme.positions(1, 8, phase="tune", draws={name: given}, **rows))


# Positions


def test_padding_is_a_document_that_no_id_can_join():
    valid = torch.tensor([[True, False, True]])
    for ids in ([[-2, 0, -2]], [[-2, -2, -2]], [[5, 5, 5]]):
        visible = Positions.build(3, documents=torch.tensor(ids), valid=valid, causal=False).visible()[0]
        assert visible[1].tolist() == [False, True, False]
        assert not visible[0, 1]
        assert not visible[2, 1]


def test_what_is_given_moves_to_the_device():
    positions = Positions.build(
        4, 2, device="meta", declared=torch.tensor([4, 9]), documents=torch.zeros(2, 4), valid=torch.ones(2, 4).bool()
    )
    assert {positions.length.device.type, positions.key_document.device.type} == {"meta"}
    assert positions.lengths == (4, 9)


def test_parameters_are_named_by_member():
    names = [name for name, _ in create("fire+t5+alibi:slopes=learned+dape").named_parameters()]
    assert {name.split(".")[2] for name in names} == {"fire", "t5", "alibi", "dape"}
    assert "parts.0.fire.1.c" in names
    there, here = create("fire+t5"), create("t5+fire", seed=1)  # in whatever order they are written
    here.load_state_dict(there.state_dict())
