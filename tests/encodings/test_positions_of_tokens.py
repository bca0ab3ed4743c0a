"""Shifted and random coordinates, and sliding windows, token by token."""

import pytest
import torch

import pezoo
from helpers import member
from pezoo.contract import Positions, Undefined


def build(text, train_length=16, causal=True):
    sizes = {"d_model": 8, "n_heads": 1, "n_layers": 3, "train_length": train_length}
    return pezoo.create(text, **sizes, causal=causal).eval()


def coordinates(text, length=16, batch=1, phase="train", layer=0, **facts):
    positions = Positions.build(length, batch, phase=phase, rows=range(batch), **facts)
    return build(text).parts[0].positions_at(positions, layer).query


# shift


def test_shift_moves_each_training_sequence_as_a_whole():
    ours = coordinates("sinusoidal+shift:max_shift=500", batch=300)
    offsets = ours[:, 0]
    assert torch.equal(ours, offsets[:, None] + torch.arange(16))
    assert 0 <= offsets.min() < 25
    assert 475 < offsets.max() <= 499
    assert len(offsets.unique()) > 100
    assert torch.equal(offsets, offsets.round())


@pytest.mark.parametrize(("text", "offset"), [("shift", 0), ("shift:test_offset=500", 500)])
def test_shift_has_one_offset_in_testing(text, offset):
    ours = coordinates(f"sinusoidal+{text}", batch=4, phase="test")
    assert ours.tolist() == [[offset + i for i in range(16)]]


def test_shift_draws_in_tuning_too_and_shows_what_it_says():
    assert coordinates("sinusoidal+shift", batch=9, phase="tune")[:, 0].unique().numel() > 1
    largest = coordinates("sinusoidal+shift", batch=400)[:, -1].max()
    assert largest == 16 + 4 * 16 - 2  # K is four training lengths
    assert len(member(build("learned+shift"), "learned").table) == largest + 1


def test_shift_does_nothing_to_a_shift_invariant_encoding():
    q, k, v = torch.randn(3, 2, 1, 16, 8)
    for base in ("rope", "alibi", "fire"):
        scheme = build(f"{base}+shift:test_offset=100")
        torch.testing.assert_close(
            pezoo.attend(scheme, q, k, v, phase="test"),
            pezoo.attend(build(base), q, k, v, phase="test"),
            atol=1e-4,
            rtol=0,
        )


# random


@pytest.mark.parametrize("phase", ["train", "tune", "test"])
def test_random_draws_a_sorted_subset(phase):
    ours = coordinates("rope+random:max_length=40", batch=200, phase=phase)
    assert (ours.diff(dim=1) > 0).all()
    assert ours.min() == 0
    assert ours.max() == 39
    assert torch.equal(ours, ours.round())
    counts = torch.bincount(ours.flatten().long(), minlength=40)
    assert counts.min() > 0.5 * 200 * 16 / 40  # all alike, up to chance
    assert counts.max() < 1.5 * 200 * 16 / 40
    assert len(ours.unique(dim=0)) == 200


def test_random_scopes_of_a_draw():
    each = coordinates("rope+random", batch=3)
    batch = coordinates("rope+random:draw=batch", batch=3)
    assert len(each.unique(dim=0)) == 3
    assert len(batch) == 1
    for scope, same in (("sequence", True), ("batch", True), ("layer", False)):
        first, second = (coordinates(f"rope+random:draw={scope}", layer=layer) for layer in (0, 1))
        assert torch.equal(first, second) is same
    parts = build("rope+random:draw=layer").prepare(Positions.build(16, phase="train", rows=(0,))).layers
    assert len({tuple(g.composition.base[0].positions.query[0].tolist()) for (g,) in parts}) == 3


def test_a_draw_for_a_batch_does_not_depend_on_how_it_is_cut():
    """In training over several processes, and in tests however many rows a forward has."""

    def drawn(rows, **facts):
        where = Positions.build(16, len(rows), rows=rows, **facts)
        return build("rope+random:draw=batch").prepare(where).at(0)[0].composition.base[0].positions.query

    whole = drawn((6, 7, 8, 9), phase="train")
    assert torch.equal(drawn((8, 9), phase="train", first_row=6), whole)
    assert not torch.equal(drawn((10, 11), phase="train"), whole)
    assert torch.equal(drawn((4, 5), phase="test"), drawn((0,), phase="test"))


def test_random_ends_where_its_range_does():
    whole = coordinates("rope+random:max_length=16")
    assert whole.tolist() == [list(range(16))]
    with pytest.raises(Undefined, match="random draws from 15 positions; 16 tokens need more"):
        build("rope+random:max_length=15").prepare(Positions.build(16, phase="test"))
    assert coordinates("rope+random", length=16 * 16, phase="test").tolist() == [list(range(256))]


# window


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("size", [1, 3, 20])
def test_window_by_pairs(size, causal):
    scheme = build(f"nope+window:size={size}", causal=causal)
    visible = scheme.prepare(Positions.build(10, causal=causal, phase="test")).layers[0][0].composition.visible()[0]
    for i in range(10):
        for j in range(10):
            assert visible[i, j] == (abs(i - j) < size and (j <= i or not causal))


def test_window_counts_tokens_and_not_coordinates():
    documents = torch.tensor([[0] * 4 + [1] * 6])
    for text in ("rope+window:size=3", "rope+pi+window:size=3", "rope+random+window:size=3"):
        positions = Positions.build(10, documents=documents, phase="test", rows=(0,))
        composition = build(text, 5).prepare(positions).layers[0][0].composition
        assert composition.visible()[0].sum(1).tolist() == [1, 2, 3, 3, 1, 2, 3, 3, 3, 3]


def test_window_is_the_training_length_unless_given_and_acts_after_training():
    scheme = build("nope+window", 4)
    for phase, seen in (("train", 9), ("tune", 4), ("test", 4)):
        composition = scheme.prepare(Positions.build(9, phase=phase)).layers[0][0].composition
        assert composition.visible()[0, -1].sum() == seen


def test_layers_of_windows_reach_further():
    """N layers of a window of W draw on N (W - 1) + 1 tokens."""
    model = pezoo.Transformer({"scheme": "alibi+window:size=3", "d_model": 8, "n_heads": 1, "n_layers": 2}).eval()
    tokens = torch.randint(256, (1, 12))
    base = model(tokens)[0, -1]
    for t in range(11):
        changed = tokens.clone()
        changed[0, t] = (changed[0, t] + 1) % 256
        assert (model(changed)[0, -1] == base).all() == (t < 12 - 5)
