"""Schemes in attention that is not pezoo's: tables of cosines and sines, and FlexAttention."""

import math

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import pezoo
from pezoo.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
PLAINLY = "torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
"""Runs the definition of flex_attention as it stands, instead of tracing it anew for each call, which takes seconds."""
LENGTH, HEADS, WIDTH = 40, 4, 16


def make(scheme, **sizes):
    sizes = {"d_model": 64, "n_heads": HEADS, "n_layers": 2, "train_length": 16} | sizes
    return pezoo.create(scheme, **sizes)


def draw(length=LENGTH, batch=1):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, batch, HEADS, length, WIDTH, generator=generator).unbind()


# What a model of somebody else does with tables; written as such code is.


def rotate_half(x):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def rotate_every_two(x):
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def apply_rotary(x, cos, sin, rotate):
    width = cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    return torch.cat((turned * cos + rotate(turned) * sin, rest), dim=-1)


def plain_attention(q, k, v):
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    future = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
    return torch.softmax(logits.masked_fill(future, -torch.inf), dim=-1) @ v


ROTARY = [
    "rope",
    "rope:pairing=half",
    "rope:pairing=half:fraction=0.5",
    "rope:fraction=0.25+ntk",
    "rope:pairing=half:kept=0.5",
    "rope:pairing=half+pi:factor=4",
    "rope:pairing=half+yarn",
    "rope+longrope",
    "rope:pairing=half+dynamic_ntk",
    "rope:pairing=half+random",
]


@pytest.mark.parametrize("scheme", ROTARY)
def test_tables_of_a_rotary_scheme_do_all_that_it_does(scheme):
    built, (q, k, v) = make(scheme), draw()
    cos, sin = built.rope_tables(LENGTH)
    assert cos.dtype == sin.dtype == torch.float32
    rotate = rotate_half if "half" in scheme else rotate_every_two
    ours = plain_attention(apply_rotary(q, cos, sin, rotate), apply_rotary(k, cos, sin, rotate), v)
    theirs = pezoo.attend(built, q, k, v, phase="test", rows=(0,), backend="eager")
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


def test_the_other_pairing_is_something_else():
    q, k, v = draw()
    cos, sin = make("rope").rope_tables(LENGTH)
    wrong = plain_attention(apply_rotary(q, cos, sin, rotate_half), apply_rotary(k, cos, sin, rotate_half), v)
    assert (wrong - pezoo.attend(make("rope"), q, k, v)).abs().max() > 0.1


def test_tables_are_those_of_the_layer_and_head_that_are_named():
    by_layer = make({"layers": ["rope:base=100", "nope"]})
    torch.testing.assert_close(by_layer.rope_tables(LENGTH)[0], make("rope:base=100").rope_tables(LENGTH)[0])
    with pytest.raises(UserError, match="nothing turns"):
        by_layer.rope_tables(LENGTH, layer=1)
    by_head = make({"heads": {"alibi": 2, "rope:base=100": 2}})
    torch.testing.assert_close(by_head.rope_tables(LENGTH, head=3)[1], make("rope:base=100").rope_tables(LENGTH)[1])


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        ("nope", "nothing turns"),
        ("alibi", "alibi adds a bias"),
        ("rope+alibi", "alibi adds a bias"),
        ("rope+window:size=8", "window masks keys"),
        ("rope+rerope", "rerope has a far region"),
        ("rope+sink_logits", "sink_logits has a sink"),
        ("rope+fox", "fox reads the layer's input"),
        ("sinusoidal", "sinusoidal changes the token embeddings"),
        ("rope+cope", "cope adds logits that read q or k"),
        ("xpos", "xpos does not just turn pairs of channels"),
        ("rope+logn", "logn scales queries or heads apart"),
        ("rope:fraction=0.5+yarn", "only 8 of its 16 channels turn"),
    ],
)
def test_what_tables_do_not_say_is_refused_with_the_reason(scheme, reason):
    with pytest.raises(UserError, match=reason):
        make(scheme).rope_tables(LENGTH)


FLEX = [
    "nope",
    "alibi",
    "t5",
    "fire",
    "kerple",
    "sandwich",
    "alibi+random",
    "alibi+pi",
    "kerple+rerope",
    "nope+logn",
    "nope+ssmax",
    "alibi+window:size=5",
    "alibi+blockwise",
    "alibi+sinks",
    "rope:pairing=half",
    "rope:pairing=half+window:size=5",
    "rope:pairing=half:fraction=0.5+yarn+logn+window:size=7",
    "rope:pairing=half+alibi",
]


@pytest.mark.parametrize("scheme", FLEX)
def test_flex_attention_under_a_scheme_is_its_own_attention(scheme, monkeypatch):
    monkeypatch.setattr(PLAINLY, True)
    compare_with_flex_attention(scheme)


def test_its_functions_can_be_traced():
    compare_with_flex_attention("rope:pairing=half+alibi+window:size=5")


@torch.no_grad()
def compare_with_flex_attention(scheme):
    built, (q, k, v) = make(scheme), draw()
    for parameter in built.parameters():
        parameter.add_(0.1 * torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1)))
    theirs = pezoo.attend(built, q, k, v, layer=1, phase="test", rows=(0,), backend="eager")
    turns = "rope" in scheme.split("+")[0]
    if turns:
        cos, sin = built.rope_tables(LENGTH, layer=1, beside_mods=True)
        q, k = (apply_rotary(x, cos, sin, rotate_half) for x in (q, k))
    seen = create_block_mask(built.mask_mod(LENGTH, layer=1), 1, HEADS, LENGTH, LENGTH, "cpu", BLOCK_SIZE=8)
    ours = flex_attention(q, k, v, built.score_mod(LENGTH, layer=1, turned=turns), seen)
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_heads_may_have_different_biases_and_masks(monkeypatch):
    monkeypatch.setattr(PLAINLY, True)
    built, (q, k, v) = make({"heads": {"t5": 2, "alibi+window:size=4": 2}}), draw()
    seen = create_block_mask(built.mask_mod(LENGTH), 1, HEADS, LENGTH, LENGTH, "cpu", BLOCK_SIZE=8)
    ours = flex_attention(q, k, v, built.score_mod(LENGTH), seen)
    torch.testing.assert_close(ours, pezoo.attend(built, q, k, v, phase="test"), atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_masks_know_rows_with_padding_and_documents(monkeypatch):
    monkeypatch.setattr(PLAINLY, True)
    built, (q, k, v) = make("nope+window:size=6"), draw(batch=2)
    documents = torch.tensor([[0] * 15 + [1] * 25, [0] * LENGTH])
    valid = torch.ones(2, LENGTH, dtype=torch.bool)
    valid[1, :9] = False
    positions = built.positions(2, LENGTH, phase="test", documents=documents, valid=valid)
    mask = built.mask_mod(LENGTH, positions=positions)
    seen = create_block_mask(mask, 2, HEADS, LENGTH, LENGTH, "cpu", BLOCK_SIZE=8)
    ours = flex_attention(q, k, v, built.score_mod(LENGTH), seen)
    theirs = pezoo.attend(built, q, k, v, positions=positions)
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        ("rope", "turn them first, and say so with turned=True"),
        ("rope+rerope", "rope turns queries and keys otherwise in a far region"),
        ("fox", "fox reads the layer's input"),
        ("cope", "cope adds logits that read q or k"),
        ("stick_breaking", "stick_breaking replaces the softmax"),
        ("alibi+sink_logits", "sink_logits has a sink"),
        ("shaw", "shaw"),
    ],
)
def test_what_no_score_mod_can_do_is_refused_with_the_reason(scheme, reason):
    with pytest.raises(UserError, match=reason):
        make(scheme).score_mod(LENGTH)
