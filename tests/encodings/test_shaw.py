"""Shaw's relative vectors against the paper's formula in float64."""

import pytest
import torch

import pezoo
from helpers import member
from pezoo.contract import Positions


def build(text, causal=True):
    scheme = pezoo.create(text, d_model=12, n_heads=3, n_layers=2, train_length=16, causal=causal)
    for parameter in scheme.parameters():
        parameter.data.normal_()
    return scheme


def by_hand(scheme, q, k, v, layer, distance):
    """o_i = sum_j alpha_ij (v_j + aV[c]), l_ij = q_i.(k_j + aK[c]) / sqrt(d), one pair at a time."""
    shaw = member(scheme, "shaw", layer)
    keys, clip = shaw.keys.double(), shaw.config.clip
    values = torch.zeros_like(keys) if shaw.values is None else shaw.values.double()
    q, k, v = (t.double() for t in (q, k, v))
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                seen = range(i + 1 if scheme.shape.causal else q.shape[2])
                rows = [max(-clip, min(clip, round(-distance(i, j)))) + clip for j in seen]
                logits = torch.stack([q[b, h, i] @ (k[b, h, j] + keys[c]) for j, c in zip(seen, rows, strict=True)])
                if shaw.config.by == "both":
                    logits += torch.stack([k[b, h, j] @ keys[c] for j, c in zip(seen, rows, strict=True)])
                weights = torch.softmax(logits / q.shape[-1] ** 0.5, 0)
                vectors = torch.stack([v[b, h, j] + values[c] for j, c in zip(seen, rows, strict=True)])
                out[b, h, i] = weights @ vectors
    return out


@pytest.mark.parametrize("backend", ["eager", "chunked"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("text", ["shaw:clip=4", "shaw:clip=30", "shaw:clip=1:values=false", "shaw:clip=4:by=both"])
def test_shaw_is_its_formula(text, causal, backend, monkeypatch):
    monkeypatch.setattr(pezoo.attention, "CHUNK", 5)
    scheme = build(text, causal)
    q, k, v = torch.randn(3, 2, 3, 13, 4)
    for layer in (0, 1):
        ours = pezoo.attend(scheme, q, k, v, layer=layer, backend=backend, phase="test")
        expected = by_hand(scheme, q, k, v, layer, lambda i, j: i - j)
        torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-5)


def test_shaw_rounds_interpolated_distances():
    scheme = build("shaw:clip=4+pi:factor=2.5").eval()
    q, k, v = torch.randn(3, 1, 3, 20, 4)
    expected = by_hand(scheme, q, k, v, 0, lambda i, j: (i - j) / 2.5)
    torch.testing.assert_close(pezoo.attend(scheme, q, k, v, phase="test").double(), expected, rtol=0, atol=1e-5)


def test_all_keys_beyond_the_clip_are_read_alike():
    scheme = build("shaw:clip=3")
    shaw = member(scheme, "shaw")
    rows = shaw.rows(Positions.build(20, phase="test"))[0, 0]
    assert rows[-1].tolist() == [0] * 17 + [1, 2, 3]
    assert rows[0].tolist() == [3, 4, 5, *[6] * 17]


def test_each_layer_has_tables_with_a_row_for_each_distance():
    sizes = {name: tuple(p.shape) for name, p in build("shaw:clip=5").named_parameters()}
    assert list(sizes.values()) == [(11, 4)] * 4
    assert len(list(build("shaw:values=false").parameters())) == 2


def test_a_decoder_never_reads_the_rows_ahead():
    scheme = build("shaw:clip=4")
    q, k, v = torch.randn(3, 1, 3, 13, 4)
    pezoo.attend(scheme, q, k, v, phase="test").square().sum().backward()
    for table in member(scheme, "shaw").parameters():
        assert table.grad[:5].abs().sum(1).gt(0).all()
        assert not table.grad[5:].any()
