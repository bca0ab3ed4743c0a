"""Coordinates drawn for training: what each draw must look like, and how draws are spread."""

import pytest
import torch

import pezoo
from helpers import member
from pezoo.contract import Extension, Positions
from pezoo.registry import register

SHAPE = {"d_model": 32, "n_heads": 2, "n_layers": 2, "train_length": 16}


def scheme(text, **facts):
    return pezoo.create(text, **SHAPE | facts)


def drawn(text, length=16, batch=300, phase="train", **facts):
    """Coordinates (B, L) that the first layer reads."""
    prepared = scheme(text).prepare(Positions.build(length, batch, phase=phase, **{"rows": range(batch)} | facts))
    return prepared.layers[0][0].composition.positions.key


DRAWS = ("pose", "cream", "giraffe_random", "random", "random:relative=toeplitz")


@pytest.mark.parametrize("name", DRAWS)
def test_draws_belong_to_the_sequence_and_the_seed(name):
    text = f"alibi+{name}"
    p = drawn(text, batch=4)
    assert torch.equal(p, drawn(text, batch=4))
    assert torch.equal(p[2:], drawn(text, batch=2, rows=(2, 3)))
    assert not torch.equal(p, drawn(text, batch=4, seed=1))
    assert not torch.equal(p[0], p[1])


@pytest.mark.parametrize("name", ["pose", "cream", "giraffe_random"])
def test_testing_reads_plain_positions(name):
    p = drawn(f"rope+{name}", phase="test")
    assert torch.equal(p, torch.arange(16.0)[None])
    assert scheme(f"rope+{name}").prefix_stable


@pytest.mark.parametrize("name", DRAWS)
def test_coordinates_rise(name):
    assert (drawn(f"alibi+{name}").diff() > 0).all()


@pytest.mark.parametrize("name", [*DRAWS[:4], "pose:start=random"])
def test_a_learned_table_has_a_row_for_every_coordinate_that_training_shows(name):
    built = scheme(f"learned+{name}")
    rows = len(member(built, "learned").table)
    assert rows == (17 if name == "giraffe_random" else 256)
    assert drawn(f"rope+{name}").max() < rows


def test_packed_documents_share_a_draw_by_index():
    documents = torch.tensor([[0] * 9 + [1] * 7])
    p = drawn("rope+pose", batch=1, documents=documents)[0]
    assert torch.equal(p[9:], p[:7])


# PoSE


@pytest.mark.parametrize("start", ["zero", "random"])
def test_pose_is_two_runs_with_a_gap(start):
    p = drawn(f"rope+pose:max_length=100:start={start}")
    steps = p.diff()
    assert ((steps != 1).sum(1) <= 1).all()
    assert (p[:, -1] <= 99).all()
    cuts = [int((s != 1).nonzero()[0]) + 1 for s in steps if (s != 1).any()]
    assert set(cuts) == set(range(1, 9))  # U{1 ... 8}, all of them
    gaps = p[:, -1] - p[:, 0] - 15
    if start == "zero":
        assert (p[:, 0] == 0).all()
        assert gaps.min() <= 1
        assert gaps.max() >= 82
        assert 35 < gaps.mean() < 49  # U{0 ... 84}: 42 +- 1.4
    else:
        assert (p[:, 0] > 0).any()


def test_pose_leaves_a_text_as_long_as_its_goal():
    assert torch.equal(drawn("rope+pose:max_length=16", batch=3), torch.arange(16.0).expand(3, -1))


def test_pose_with_interpolation_trains_on_the_interpolated_range():
    p = drawn("rope+pose:at=tune+pi:factor=16", phase="tune")
    assert p.max() < 16
    assert p.max() > 14
    assert torch.equal(p * 16, drawn("rope+pose:at=tune", phase="tune"))


# CREAM


def test_cream_is_head_middle_and_tail():
    length, goal = 24, 8 * 24
    heads, ends = set(), []
    for p in drawn(f"rope+cream:max_length={goal}", length, batch=400).tolist():
        head = next((h for h in (8, 1) if p[:h] == list(range(h)) and p[h] != h), None)
        candidates = [h for h in (8,) if p[-h:] == list(range(goal - h, goal))] if head is None else [head]
        h = candidates[0] if candidates else 8
        assert p[:h] == list(range(h))
        assert p[-h:] == list(range(goal - h, goal))
        middle = p[h:-h]
        assert middle == list(range(int(middle[0]), int(middle[0]) + length - 2 * h))
        assert h <= middle[0]
        assert middle[-1] < goal - h
        heads.add(h)
        ends.append((middle[0] + middle[-1]) / 2)
    assert heads == {8}  # 4 s = 32 is above a third
    centre = sum(ends) / len(ends)
    assert 0.3 * goal < centre < 0.7 * goal


def test_cream_has_short_heads_for_continuity():
    p = drawn("rope+cream:max_length=240", length=120, batch=60)  # s = 2: heads of 8 or of 40
    heads = {int((row == torch.arange(120.0)).cumprod(0).sum()) for row in p}
    tails = {int((row == torch.arange(120.0, 240)).flip(0).cumprod(0).sum()) for row in p}
    assert min(heads) == 8
    assert any(head >= 40 for head in heads)
    assert min(tails) == 8


def test_cream_of_a_text_as_long_as_its_goal_is_plain():
    assert torch.equal(drawn("rope+cream:max_length=20", batch=3), torch.arange(16.0).expand(3, -1))


def test_a_small_spread_keeps_the_middle_in_the_middle():
    goal = 64 * 24
    spread = {}
    for sigma in (1, 30):
        p = drawn(f"rope+cream:max_length={goal}:sigma={sigma}", 24)
        spread[sigma] = p[:, 12].std()
    assert spread[1] < spread[30]


# Giraffe


def test_giraffe_steps_are_random_numbers_below_two():
    p = drawn("rope+giraffe_random", length=64, batch=200)
    steps = torch.cat((p[:, :1], p.diff()), dim=1)
    assert (steps < 2).all()
    assert (steps > 0).all()
    assert (p[:, -1] <= 64.0001).all()
    assert p[:, 0].std() > 0.3
    scaled = torch.isclose(p[:, -1], torch.tensor(64.0))
    assert 0.3 < scaled.float().mean() < 0.7  # sums above T, half of them
    assert 0.9 < steps.mean() < 1.0


# Distances instead of positions


def test_toeplitz_draws_distances():
    built = scheme("alibi+random:relative=toeplitz:max_length=50", train_length=20)
    composition = built.prepare(Positions.build(20, 3, phase="train", rows=range(3))).layers[0][0].composition
    bias = composition.bias()
    slopes = torch.tensor([0.0625, 0.00390625])
    for b in range(3):
        d = -bias[b, 0, :, 0] / slopes[0]  # of distances 0, 1, 2 ...
        assert d[0] == 0
        assert (d.diff() >= 1).all()
        assert d[-1] <= 49
        assert torch.equal(d, d.round())
        for i in range(20):
            for j in range(i + 1):
                assert torch.equal(bias[b, :, i, j], -slopes * d[i - j])
    assert not torch.equal(bias[0], bias[1])


def test_toeplitz_draws_up_to_the_range_are_all_distances():
    composition = (
        scheme("alibi+random:relative=toeplitz:max_length=16")
        .prepare(Positions.build(16, phase="train", rows=(0,)))
        .layers[0][0]
        .composition
    )
    steps = torch.arange(16)[:, None] - torch.arange(16)
    assert torch.equal(composition.base[0].positions.distance()[0], steps.float())


def test_toeplitz_keeps_the_argument_of_fire_within_its_range():
    built = scheme("fire+random:relative=toeplitz")
    positions = (
        built.prepare(Positions.build(16, 4, phase="train", rows=range(4))).layers[0][0].composition.base[0].positions
    )
    reach = positions.query - positions.origin()
    distance = positions.distance().clamp(min=0)
    assert (distance <= reach[..., None] + 1e-6).all()
    assert torch.equal(distance[:, -1, 0], reach[:, -1])


def test_interpolation_scales_drawn_distances():
    texts = ("alibi+random:relative=toeplitz", "alibi+random:relative=toeplitz+pi:factor=4:at=train")
    plain, scaled = (
        scheme(t).prepare(Positions.build(16, 2, phase="train", rows=range(2))).layers[0][0].composition for t in texts
    )
    torch.testing.assert_close(scaled.bias() * 4, plain.bias())


@pytest.mark.parametrize("base", ["rope", "sinusoidal", "learned"])
def test_toeplitz_refuses_what_reads_positions_one_by_one(base):
    with pytest.raises(pezoo.UserError, match="draws distances only"):
        scheme(f"{base}+random:relative=toeplitz")


def test_toeplitz_is_undefined_past_its_range():
    assert scheme("t5+random:relative=toeplitz:max_length=40").undefined(41)
    assert scheme("t5+random:relative=toeplitz:max_length=40").undefined(40) is None


@pytest.mark.parametrize("name", ["pose", "cream", "giraffe_random"])
def test_draws_need_coordinates(name):
    with pytest.raises(pezoo.UserError, match="coordinates"):
        scheme(f"nope+{name}")


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("rope+pi:factor=16+pose:at=tune", "rope+pose:at=tune+pi:factor=16"),
        ("rope+pi+random", "rope+random+pi"),
        ("rope+pi+clex", "rope+clex+pi"),
        ("rope+shift+rfs", "rope+rfs+shift"),
        ("rope+pi:at=train+cream", "rope+pi:at=test+cream"),
        ("rope+pi:at=tune+clex", "rope+pi:at=test+clex"),
    ],
)
def test_what_draws_anew_comes_first(text, at):
    """In a phase of both, what stands before it would be undone."""
    name = text.split("+")[2].split(":")[0]
    with pytest.raises(pezoo.UserError, match=f"{name} makes all coordinates anew in t.*ing, .* name {name} first"):
        scheme(text)
    scheme(at)


def test_what_draws_in_other_phases_may_follow():
    both = scheme("rope+pi:factor=4:at=test+pose")
    for phase, expected in (("test", torch.arange(16)[None] / 4), ("train", drawn("rope+pose", batch=2))):
        prepared = both.prepare(Positions.build(16, 2, phase=phase, rows=range(2)))
        assert torch.equal(prepared.layers[0][0].composition.positions.key, expected)


def test_a_stranger_s_coordinates_come_first_too():
    @register("reversed_counting", title="Coordinates from the end")
    class Reversed(Extension):
        """Made of the number of tokens alone."""

        def coordinates(self, positions):
            return positions.map(lambda p, index: positions.longest - 1.0 - index)

    with pytest.raises(pezoo.UserError, match="after pi, reversed_counting makes all coordinates anew in tuning"):
        scheme("rope+pi+reversed_counting")
    scheme("rope+reversed_counting+pi")
