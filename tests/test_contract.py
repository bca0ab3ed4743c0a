"""Positions: what encodings and extensions read."""

import dataclasses

import pytest
import torch

from pezoo.contract import Encoding, Extension, Positions, Shape, overrides, settle
from pezoo.registry import entry


def test_plain_positions_count_from_zero():
    positions = Positions.build(5, 2)
    assert positions.query.tolist() == [[0, 1, 2, 3, 4]]
    assert positions.query.dtype == torch.float32
    assert positions.query_index.dtype == torch.int64
    assert positions.spacing == (0.0, 1.0)
    assert positions.rows is None
    assert positions.length == 5
    assert positions.key_document is None


def test_positions_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Positions.build(5).length = 6


def test_documents_restart_positions_and_separate_tokens():
    documents = torch.tensor([[7, 7, 7, 3, 3, 7]])  # an id that comes back is another document
    positions = Positions.build(6, documents=documents)
    assert positions.query_index.tolist() == [[0, 1, 2, 0, 1, 0]]
    assert positions.spacing is None
    blocks = torch.block_diag(torch.ones(3, 3), torch.ones(2, 2), torch.ones(1, 1)).bool()
    assert torch.equal(positions.visible()[0], blocks.tril())
    encoder = Positions.build(6, documents=documents, causal=False)
    assert torch.equal(encoder.visible()[0], blocks)


@pytest.mark.parametrize("valid", [[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 0, 1]])
def test_padding_is_seen_by_itself_alone(valid):
    valid = torch.tensor([valid]).bool()
    visible = Positions.build(5, valid=valid, causal=False).visible()[0]
    padding = (~valid[0]).nonzero().flatten().tolist()
    for i in padding:
        assert visible[i].nonzero().flatten().tolist() == [i]
        assert visible[:, i].nonzero().flatten().tolist() == [i]


def test_left_padding_does_not_count():
    valid = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    positions = Positions.build(5, 2, valid=valid)
    assert positions.query_index[0, 2:].tolist() == [0, 1, 2]
    assert positions.query_index[1].tolist() == [0, 1, 2, 3, 4]
    documents = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]])
    both = Positions.build(5, 2, valid=valid, documents=documents)
    assert both.query_index[:, 2:].tolist() == [[0, 0, 1], [0, 1, 2]]


def test_a_slice_is_some_queries_and_the_first_keys():
    positions = Positions.build(9, documents=torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]]))
    part = positions.slice(2, 6).slice(1, 3, 7)
    assert part.offset == 3
    for whole, some in (
        (positions.distance()[:, 3:5, :7], part.distance()),
        (positions.steps()[:, 3:5, :7], part.steps()),
        (positions.visible()[:, 3:5, :7], part.visible()),
        (positions.origin()[:, 3:5], part.origin()),
    ):
        assert torch.equal(whole, some)


@pytest.mark.parametrize("factor", [1 / 3, 0.7, torch.tensor([[0.3], [0.5]])])
def test_scaled_coordinates(factor):
    positions = Positions.build(2000, 2).scaled(factor)
    expected = torch.arange(2000.0) * factor
    torch.testing.assert_close(positions.query, expected.expand(len(positions.query), -1))
    distance = positions.distance()
    if positions.spacing is not None:  # equal steps give equal distances, to the last bit
        assert len(distance[0, 1000:].diagonal().unique()) == 1
        assert torch.equal(distance[0, 1999], expected.flip(0))
    differences = positions.query[:, :, None] - positions.key[:, None]
    torch.testing.assert_close(distance, differences, atol=2e-4, rtol=0)  # theirs are rounded


def test_map_makes_new_coordinates_of_queries_and_keys():
    positions = Positions.build(6).slice(2, 4)
    moved = positions.map(lambda p, index: p + 10.0 * (index % 2))
    assert moved.query.tolist() == [[2, 13]]
    assert moved.key.tolist() == [[0, 11, 2, 13, 4, 15]]
    assert moved.spacing is None
    assert moved.distance()[0, 1].tolist() == [13, 2, 11, 0, 9, -2]


def test_a_ruler_replaces_distances():
    ruler = torch.tensor([[0.0, 1.0, 10.0], [0.0, 2.0, 3.0]])
    distance = Positions.build(3, 2).replace(ruler=ruler).distance()
    assert distance[0].tolist() == [[0, -1, -10], [1, 0, -1], [10, 1, 0]]
    assert distance[1, 2].tolist() == [3, 2, 0]


def test_origin_is_where_the_document_begins():
    positions = Positions.build(5, documents=torch.tensor([[0, 0, 1, 1, 1]]))
    shifted = positions.replace(key=positions.key + torch.tensor([3.0, 3, 8, 8, 8]))
    assert shifted.origin().tolist() == [[3, 3, 8, 8, 8]]
    assert Positions.build(5).origin().tolist() == [[0] * 5]


@pytest.mark.parametrize("regular", [True, False])
def test_smallest_and_largest_coordinates(regular):
    positions = Positions.build(8).scaled(0.5).slice(2, 5)
    positions = positions if regular else positions.replace(spacing=None)
    assert (positions.smallest(), positions.largest()) == (1.0, 2.0)


def test_factor_is_how_far_the_length_goes_beyond_training():
    assert Positions.build(10).factor(8) == 1.25
    assert Positions.build(10).factor(16) == 1.0
    assert Positions.build(10, declared=64).factor(16) == 4.0
    assert Positions.build(10, declared=64).factor(16, fixed=2.0) == 2.0
    assert Positions.build(1, 2, declared=torch.tensor([4, 64])).factor(16).tolist() == [[1.0], [4.0]]


def test_draws_are_keyed_by_seed_name_row_phase_and_layer():
    def draw(rows=(3,), salt="a", scope="sequence", seed=0, **facts):
        positions = Positions.build(1, len(rows), rows=rows, seed=seed).replace(**facts)
        return positions.bits(salt, 4, scope)

    torch.manual_seed(0)
    first = draw()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(first, draw())
    assert torch.equal(torch.get_rng_state(), state)
    batch = draw(rows=(8, 3, 5))
    assert torch.equal(batch[1:2], first)
    assert len(batch.unique(dim=0)) == 3
    assert not torch.equal(first, draw(seed=1))
    assert not torch.equal(first, draw(salt="b"))
    assert not torch.equal(first, draw(phase="train"))
    assert torch.equal(first, draw(layer=1))
    assert not torch.equal(draw(scope="layer"), draw(scope="layer", layer=1))
    assert torch.equal(draw(rows=(3, 4), scope="batch"), first)


@pytest.mark.parametrize("size", [(), (3,), (2, 3)])
def test_what_lies_earlier_and_sums_stop_at_documents(size):
    documents = torch.tensor([[5, 5, 5, 2, 2, 5], [1, 1, 1, 1, 1, 1]])
    valid = torch.tensor([[True] * 6, [False, True, True, True, True, True]])
    whole = Positions.build(6, 2, documents=documents, valid=valid)
    x = torch.arange(1.0, 13).view(2, 6, *[1] * len(size)).expand(2, 6, *size).clone()
    starts = [[0, 0, 0, 3, 3, 5], [0, 1, 1, 1, 1, 1]]
    for positions, n_keys in ((whole, 6), (whole.slice(3, 5, 5), 5)):
        keys = x[:, :n_keys]
        for n in (1, 2, 9):
            came = positions.earlier(keys, n)
            for r, t in ((r, t) for r in range(2) for t in range(n_keys)):
                expected = x[r, t - n] if t - n >= starts[r][t] else torch.zeros(size)
                assert torch.equal(came[r, t], expected)
        for r, t in ((r, t) for r in range(2) for t in range(n_keys)):
            assert torch.equal(positions.sums(keys)[r, t], x[r, starts[r][t] : t + 1].sum(0))
    spoilt = x.clone()
    spoilt[0, 3] = torch.nan
    assert torch.equal(whole.sums(spoilt)[0, :3], whole.sums(x)[0, :3])
    assert torch.equal(whole.sums(spoilt)[0, 5], x[0, 5])


def test_settled_distances_do_not_depend_on_rounding():
    n = torch.arange(1, 4000, dtype=torch.float64)
    for step in (1 / 3, 1 / 7, 0.1, 1 / 1.7):
        rough = (n * step).float().double()
        for nudge in (-1e-4, 1e-4):
            assert torch.equal(settle(rough + nudge)[n * step % 1 == 0], (n * step)[n * step % 1 == 0])
    assert settle(torch.tensor([2.0, 2.25, 2.999, 3.001])).tolist() == [2.0, 2.25, 3.0, 3.0]


def test_what_a_member_overrides():
    assert overrides(entry("rope").cls, "rotate")
    assert not overrides(entry("rope").cls, "bias")
    assert overrides(entry("window").cls, "mask")
    assert overrides(entry("dynamic_yarn").cls, "frequencies")  # inherited from a sibling


def test_identity_defaults():
    shape, positions = Shape(8, 2, 1, 4), Positions.build(3)
    encoding, extension = Encoding(shape, None), Extension(shape, None)
    q = torch.randn(1, 2, 3, 4)
    assert encoding.embed(q, positions) is q
    assert encoding.rotate(q, q, positions) == (q, q)
    assert encoding.change_values(q, positions) is q
    assert encoding.bias(positions) is encoding.content(q, q, positions) is encoding.inv_freq() is None
    assert torch.equal(encoding.mix(q @ q.mT, q, positions), q @ q.mT @ q)
    assert encoding.scale() == 0.5
    assert extension.coordinates(positions) is positions
    assert extension.frequencies(q, positions) is q
    assert extension.branches(positions) == ()
    assert extension.mask(positions) is extension.scale(positions) is None
    assert extension.adapt(q, None, positions) is q
    assert torch.equal(extension.adapt(q, q, positions), q + q)
    assert (extension.at, extension.extent(7)) == (("tune", "test"), 7)
