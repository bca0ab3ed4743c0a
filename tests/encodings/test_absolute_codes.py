"""CAPE, complex order, FLOATER, TUPE and the hierarchical table against their papers' formulas in float64."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp

import pezoo
from helpers import reals, vectors
from pezoo import UserError
from pezoo.attention import choice
from pezoo.contract import Positions, Shape, Undefined
from pezoo.encodings.absolute import tupe
from pezoo.registry import entry, make_config

WIDTH, HEADS, LENGTH = 8, 2, 6


def build(name, train_length=LENGTH, width=WIDTH, n_layers=2, causal=True, **given):
    """A member of its own, its parameters random."""
    config, _ = make_config(name, given)
    member = entry(name).cls(Shape(width, HEADS, n_layers, train_length, train_length, causal), config)
    generator = torch.Generator().manual_seed(1)
    for parameter in member.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return member


def embed(member, x, positions):
    """What a member makes of x at positions that no extension changed."""
    inv_freq = member.inv_freq()
    own = positions.replace(inv_freq=inv_freq[None] if inv_freq is not None else None)
    member.check(own)
    return member.embed(x, own)


def attention(logits, v):
    """Causal attention with given logits (B, H, L, L), float64."""
    future = torch.ones(logits.shape[-2:]).triu(1).bool()
    return logits.masked_fill(future, -torch.inf).softmax(-1) @ v.double()


# hierarchical


def test_hierarchical_reads_two_digits():
    member, a, n = build("hierarchical", alpha=0.3), 0.3, LENGTH
    table = member.table.double()
    u = (table - a * table[0]) / (1 - a)
    p = torch.arange(float(n * n))[None]
    out = embed(member, torch.zeros(1, n * n, WIDTH), reals(p))[0]
    for i in range(n * n):
        expected = a * u[i // n] + (1 - a) * u[i % n]
        torch.testing.assert_close(out[i].double(), expected, atol=1e-6, rtol=1e-6)
    assert len(torch.unique(out.round(decimals=4), dim=0)) == n * n  # every position has a vector of its own


def test_hierarchical_is_learned_within_its_table():
    member, learned = build("hierarchical"), build("learned")
    assert torch.equal(member.table, learned.table)
    x, positions = vectors(2, LENGTH, WIDTH), Positions.build(LENGTH, phase="test")
    assert torch.equal(embed(member, x, positions), embed(learned, x, positions))


def test_hierarchical_is_linear_between_positions():
    member = build("hierarchical")
    x = torch.zeros(1, 3, WIDTH)
    low, between, high = embed(member, x, reals(torch.tensor([[11.0, 11.25, 12.0]])))[0]
    torch.testing.assert_close(between, 0.75 * low + 0.25 * high)


def test_hierarchical_reads_its_last_position_up_to_the_end():
    member = build("hierarchical")
    last, between = embed(member, torch.zeros(1, 2, WIDTH), reals(torch.tensor([[35.0, 35.75]])))[0]
    assert torch.equal(between, last)


def test_hierarchical_ends_where_two_digits_do():
    scheme = pezoo.create("hierarchical", d_model=WIDTH, n_heads=HEADS, n_layers=1, train_length=LENGTH)
    assert scheme.undefined(36) is None
    assert "36 positions" in scheme.undefined(37)
    with pytest.raises(UserError, match=r"0\.4"):
        build("hierarchical", alpha=0.5)


# complex_order


@pytest.mark.parametrize("width", [8, 7])
def test_complex_order_turns_pairs_of_channels(width):
    config, _ = make_config("complex_order", {})
    member = entry("complex_order").cls(Shape(width, 1, 1, LENGTH), config)
    with torch.no_grad():
        member.log_ratio.copy_(vectors(width // 2) / 4)
    x, p = vectors(1, 5, width), torch.tensor([[0.0, 1, 2.5, 40, 300]])
    out = embed(member, x, reals(p))[0].double()
    for i in range(5):
        for k in range(width // 2):
            start = 10000 ** (-2 * k / (width // 2 * 2))
            angle = start * math.exp(member.log_ratio[k].item()) * float(p[0, i])
            wave = complex(*x[0, i, 2 * k : 2 * k + 2].tolist()) * complex(math.cos(angle), math.sin(angle))
            expected = torch.tensor([wave.real, wave.imag], dtype=torch.float64) * width**0.5
            torch.testing.assert_close(out[i, 2 * k : 2 * k + 2], expected, atol=5e-4, rtol=0)
    if width % 2:
        torch.testing.assert_close(out[:, -1], x[0, :, -1].double() * width**0.5, atol=1e-6, rtol=0)


def test_complex_order_frequencies_are_open_to_extensions_and_to_gradients():
    scheme = pezoo.create("complex_order+ntk:factor=4", d_model=8, n_heads=2, n_layers=1, train_length=8)
    part = scheme.prepare(Positions.build(4, phase="test")).input[0]
    ratio = part.positions.inv_freq[0] / part.encoding.inv_freq()
    torch.testing.assert_close(ratio[[0, -1]], torch.tensor([1.0, 0.25]))
    part.positions.inv_freq.sum().backward()
    assert part.encoding.log_ratio.grad.abs().min() > 0


# floater


@pytest.mark.parametrize(("step", "tolerance"), [(0.01, 1e-5), (0.04, 1e-5), (0.25, 1e-3)])
def test_floater_integrates_its_network(step, tolerance):
    member = build("floater", step=step)
    a, b = member.hidden, member.out

    def slope(t, c):
        c = torch.cat((torch.from_numpy(c).view(-1, WIDTH), torch.full((6, 1), t)), 1)
        h = torch.nn.functional.silu(c @ a.weight.double().T + a.bias.double())
        h = torch.cat((h, torch.full((6, 1), t)), 1)
        return torch.tanh(h @ b.weight.double().T + b.bias.double()).detach().numpy().ravel()

    start, p = member.start.detach().double().numpy().ravel(), torch.tensor([[0.0, 1, 2.5, 10, 17, 33.3, 40]])
    exact = solve_ivp(slope, (0, 40 * step), start, t_eval=(p[0] * step).tolist(), rtol=1e-9, atol=1e-11)
    positions = reals(p)
    positions = positions.replace(prepared=member.prepare(positions))
    for layer in (0, 1):
        for which in (0, 1, 2):
            codes = member._code(which, p, positions.replace(layer=layer))[0].transpose(0, 1).flatten(1)
            expected = torch.from_numpy(exact.y.T).view(-1, 3, 2, WIDTH)[:, which, layer]
            assert (codes.double() - expected).abs().max() < tolerance
            assert (codes[-1] - codes[0]).abs().max() > 0.05


def test_floater_trajectory_does_not_depend_on_the_length_and_stays_bounded():
    member = build("floater", step=0.1)
    short, long = member.prepare(Positions.build(9, phase="test")), member.prepare(Positions.build(200, phase="test"))
    assert torch.equal(short, long[:9])
    reach = member.start.abs() + 0.1 * torch.arange(len(long))[:, None, None, None]
    assert bool((long[:, 0].abs() <= reach + 1e-4).all())


@pytest.mark.parametrize("spaced", [True, False])
def test_the_first_queries_of_an_encoder_meet_the_codes_of_all_keys(spaced):
    scheme = pezoo.create("floater", d_model=WIDTH, n_heads=HEADS, n_layers=1, train_length=LENGTH, causal=False)
    q, k, v = vectors(3, 1, HEADS, 100, WIDTH // HEADS)
    positions = Positions.build(100, phase="test", causal=False)
    if not spaced:
        positions = positions.replace(key=positions.key, spacing=None)
    with torch.no_grad():
        whole = scheme.prepare(positions).attend(0, q, k, v)
        some = scheme.prepare(positions.slice(0, 4)).attend(0, q[:, :, :4], k, v)
    torch.testing.assert_close(some, whole[:, :, :4], rtol=0, atol=1e-5)


def test_floater_adds_its_codes_to_queries_keys_and_values():
    scheme = pezoo.create("floater:step=0.05", d_model=WIDTH, n_heads=HEADS, n_layers=2, train_length=LENGTH)
    member = scheme.members[0]
    q, k, v = vectors(3, 2, HEADS, 5, WIDTH // HEADS)
    positions = reals(torch.tensor([[0.0, 1, 1.5, 4, 6.25]]))
    own = positions.replace(prepared=member.prepare(positions))
    for layer in (0, 1):
        c = [member._code(which, own.query, own.replace(layer=layer)) for which in range(3)]
        assert (c[0] - c[1]).abs().max() > 0.05
        logits = (q + c[0]).double() @ (k + c[1]).double().mT / (WIDTH // HEADS) ** 0.5
        out = pezoo.attend(scheme, q, k, v, positions=positions, layer=layer)
        torch.testing.assert_close(out.double(), attention(logits, v + c[2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("text", ["floater", "rope+floater+rerope:window=40", "floater+shaw"])
def test_what_changes_values_is_the_same_in_all_back_ends(text, causal):
    """With grouped heads, rows that are padded, gradients, and far regions, in which values stay those of the text."""
    n_tokens, width = 301, WIDTH // HEADS
    scheme = pezoo.create(text, d_model=WIDTH, n_heads=HEADS, n_layers=2, train_length=LENGTH, causal=causal)
    valid = torch.arange(n_tokens) < torch.tensor([[n_tokens], [270]])
    drawn, weight = vectors(3, 2, HEADS, n_tokens, width), vectors(2, HEADS, n_tokens, width, seed=1)
    found = {}
    for known in ({}, {"valid": valid}):
        positions = scheme.positions(2, n_tokens, phase="test", **known)
        for backend in ("eager", "chunked", "auto"):
            q, k, v = (t.clone().requires_grad_() for t in (drawn[0], *drawn[1:, :, :1]))
            out = pezoo.attend(scheme, q, k, v, positions=positions, layer=1, backend=backend)
            inputs = [q, k, v, *(p for p in scheme.parameters())]
            given = torch.autograd.grad((out * weight).sum(), inputs, materialize_grads=True)
            found[backend] = out, *given
            for ours, expected in zip(found[backend], found["eager"], strict=True):
                torch.testing.assert_close(ours, expected, atol=1e-5 * float(expected.detach().abs().max()), rtol=1e-5)


def test_floater_leaves_attention_fused():
    scheme = pezoo.create("floater", d_model=WIDTH, n_heads=HEADS, n_layers=2, train_length=LENGTH)
    group = scheme.prepare(scheme.positions(1, 600, phase="test")).layers[0][0]
    assert choice(group.composition) == ("sdpa", "no bias, and no mask but causality")


# tupe


def naive_tupe(member, i, j):
    """The term of positions for each head, float64."""
    rows = []
    for place in (i, j):
        row = member.table[place].double()
        row = (row - row.mean()) / (row.var(correction=0) + 1e-5).sqrt()
        rows.append(row * member.norm.weight.double() + member.norm.bias.double())
    weight = member.project.weight.double()
    q, k = rows[0] @ weight[:WIDTH].T, rows[1] @ weight[WIDTH:].T
    return (q * k).view(HEADS, -1).sum(-1) / (2 * WIDTH / HEADS) ** 0.5


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("untie", [True, False])
def test_tupe_is_a_product_of_projected_positions(untie, causal):
    member = build("tupe", untie_first=untie, causal=causal)
    positions = Positions.build(LENGTH, causal=causal, phase="test")
    bias = member.bias(positions.replace(prepared=member.prepare(positions)))[0]
    for i in range(LENGTH):
        for j in range(LENGTH):
            expected = naive_tupe(member, i, j)
            if untie and j == 0:
                expected = member.first[0].double()
            if untie and i == 0 and not causal:
                expected = member.first[1].double()
            torch.testing.assert_close(bias[:, i, j].double(), expected, atol=1e-5, rtol=1e-5)


def test_tupe_r_adds_the_bias_of_t5():
    member, plain = build("tupe", relative=True), build("tupe")
    plain.load_state_dict({name: member.state_dict()[name] for name in plain.state_dict()})
    positions = Positions.build(LENGTH, phase="test")
    own = positions.replace(prepared=member.prepare(positions))
    difference = member.bias(own) - plain.bias(own)
    for i in range(LENGTH):
        for j in range(i + 1):
            torch.testing.assert_close(difference[0, :, i, j], member.relative.table[i - j], atol=1e-5, rtol=0)


def test_tupe_scales_content_and_positions_alike():
    scheme = pezoo.create("tupe", d_model=WIDTH, n_heads=HEADS, n_layers=3, train_length=LENGTH)
    member = scheme.members[0]
    member.load_state_dict(build("tupe").state_dict())
    q, k, v = vectors(3, 1, HEADS, LENGTH, WIDTH // HEADS)
    positional = torch.stack(
        [torch.stack([naive_tupe(member, i, j) for j in range(LENGTH)], -1) for i in range(LENGTH)], -2
    )
    logits = q.double() @ k.double().mT / (2 * WIDTH / HEADS) ** 0.5 + positional
    for layer in range(3):  # one table serves all layers
        out = pezoo.attend(scheme, q, k, v, layer=layer, phase="test")
        torch.testing.assert_close(out.double(), attention(logits, v), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("text", ["tupe", "tupe:untie_first=true:relative=true", "tupe+logn+random"])
def test_layers_of_tupe_may_share_a_bias(text, causal, monkeypatch):
    """The same outputs and gradients as where each layer makes its own, for chunks, packed rows and decoding too."""
    n_tokens, made = 41, []
    sizes = {"d_model": WIDTH, "n_heads": HEADS, "n_layers": 3, "train_length": 64, "causal": causal}
    scheme = pezoo.create(text, **sizes)
    for parameter in scheme.parameters():
        parameter.data.add_(vectors(*parameter.shape) / 2)
    inner = tupe.TUPE._pairs
    monkeypatch.setattr(tupe.TUPE, "_pairs", lambda *given: made.append(1) or inner(*given))
    monkeypatch.setattr(pezoo.attention, "CHUNK", 16)
    drawn, weight = vectors(3, 2, HEADS, n_tokens, WIDTH // HEADS), vectors(2, HEADS, n_tokens, WIDTH // HEADS, seed=1)
    packed = (torch.arange(n_tokens) // torch.tensor([[13], [20]])).long()
    for first, known in ((0, {}), (0, {"documents": packed}), (36, {}), (n_tokens - 1, {})):
        found = {}
        for few, backend in ((10**9, "eager"), (0, "eager"), (0, "chunked")):
            monkeypatch.setattr(tupe, "FEW", few)
            made.clear()
            positions = scheme.positions(2, n_tokens, phase="train", rows=(0, 1), **known)
            prepared = scheme.prepare(positions.slice(first, n_tokens, n_tokens))
            q, k, v = (t.clone().requires_grad_() for t in drawn)
            out = sum(prepared.attend(layer, q[:, :, first:], k, v, backend) * (1 + layer) for layer in range(3))
            assert len(made) == (1 if few == 0 else 3)
            ours = out, *torch.autograd.grad((out * weight[:, :, first:]).sum(), [q, k, v, *scheme.parameters()])
            for given, expected in zip(ours, found.setdefault("alone", ours), strict=True):
                torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5 * float(expected.detach().abs().max()))


def test_long_texts_of_tupe_share_no_bias(monkeypatch):
    monkeypatch.setattr(tupe, "FEW", 0)
    member = build("tupe", train_length=40)
    positions = Positions.build(40, phase="test")
    shared = member.prepare(positions)
    monkeypatch.setattr(tupe, "MOST", HEADS * 40**2 - 1)
    alone = member.prepare(positions)
    assert shared.shared is not None
    assert alone.shared is None
    part = positions.slice(7, 20, 20)
    torch.testing.assert_close(member.bias(part.replace(prepared=alone)), member.bias(part.replace(prepared=shared)))


def test_tupe_ends_with_its_table():
    scheme = pezoo.create("tupe", d_model=WIDTH, n_heads=HEADS, n_layers=1, train_length=LENGTH)
    assert scheme.undefined(LENGTH) is None
    assert "tupe has 6 positions" in scheme.undefined(LENGTH + 1)
    scheme = pezoo.create("tupe+pi", d_model=WIDTH, n_heads=HEADS, n_layers=1, train_length=LENGTH)
    assert scheme.undefined(16 * LENGTH) is None


def test_tupe_ends_with_its_table_for_keys_that_an_encoder_sees():
    decoder, encoder = (
        pezoo.create("tupe", d_model=WIDTH, n_heads=HEADS, n_layers=1, train_length=LENGTH, causal=causal)
        for causal in (True, False)
    )
    decoder.prepare(Positions.build(LENGTH + 1, phase="test").slice(0, 2))  # ahead of all queries
    encoder.prepare(Positions.build(LENGTH, phase="test", causal=False).slice(0, 2))
    with pytest.raises(Undefined, match="coordinate 6 has none"):
        encoder.prepare(Positions.build(LENGTH + 1, phase="test", causal=False).slice(0, 2))


# cape


def cape(train_length=LENGTH, **given):
    config, at = make_config("cape", given)
    return entry("cape").cls(Shape(WIDTH, HEADS, 1, train_length), config, at)


def test_cape_shifts_jitters_and_stretches():
    member, rows, length = cape(max_shift=4.0, max_jitter=0.5, max_scale=1.5), 4000, 50
    positions = Positions.build(length, rows, phase="train", rows=range(rows))
    moved = member.coordinates(positions)
    p = moved.query.double()
    assert p.shape == (rows, length)
    assert moved.query is moved.key
    assert moved.spacing is None
    assert (p.diff(dim=1) > 0).all()  # the order of tokens stays

    # p_i = s i + s (D + e_i): a line's slope and middle give s and D up to the jitter's mean
    index = torch.arange(length, dtype=torch.float64)
    centred = index - index.mean()
    s = (p * centred).sum(1) / (centred**2).sum()
    shift = p.mean(1) / s - index.mean()
    assert 1 / 1.51 < s.min() < 1 / 1.45
    assert 1.45 < s.max() < 1.51
    assert abs(s.log().mean()) < 0.02  # uniform in its logarithm
    assert abs(s.log().std() - math.log(1.5) / 3**0.5) < 0.01
    assert abs(shift.mean()) < 0.15
    assert abs(shift.std() - 4 / 3**0.5) < 0.05

    jitter = cape(max_shift=0.0, max_scale=1.0).coordinates(positions).query.double() - index
    assert 0.499 < jitter.abs().max() <= 0.5
    assert abs(jitter.std() - 0.5 / 3**0.5) < 0.01
    assert abs(torch.corrcoef(jitter[:, :2].T)[0, 1]) < 0.05


def test_cape_draws_for_each_sequence_the_same_again():
    member = cape()
    four = member.coordinates(Positions.build(9, 4, phase="train", rows=range(4))).query
    assert torch.equal(member.coordinates(Positions.build(9, 1, rows=(2,), phase="train")).query[0], four[2])
    assert len(torch.unique(four[:, 0])) == 4
    assert not torch.equal(member.coordinates(Positions.build(9, 4, seed=1, phase="train", rows=range(4))).query, four)
    decoded = member.coordinates(Positions.build(9, 4, phase="train", rows=range(4)).slice(5, 6))
    assert torch.equal(decoded.query, four[:, 5:6])


def test_cape_without_ranges_changes_nothing_and_tests_plainly():
    member, positions = (
        cape(max_shift=0.0, max_jitter=0.0, max_scale=1.0),
        Positions.build(9, 4, phase="train", rows=range(4)),
    )
    assert torch.equal(member.coordinates(positions).query, positions.query.expand(4, -1))
    scheme = pezoo.create("sinusoidal+cape", d_model=WIDTH, n_heads=HEADS, n_layers=1, train_length=LENGTH)
    for phase, same in (("train", False), ("tune", False), ("test", True)):
        plain = Positions.build(9, phase=phase, rows=(0,))
        assert torch.equal(scheme.prepare(plain).input[0].positions.query, plain.query) == same
    assert scheme.prefix_stable


def test_cape_shows_no_coordinate_beyond_its_extent():
    member = cape(train_length=20, max_shift=3.0, max_scale=1.3)
    p = member.coordinates(Positions.build(20, 3000, phase="train", rows=range(3000))).query
    assert member.extent(20) - 4 < p.max() < member.extent(20)


@pytest.mark.parametrize("encoding", ["learned", "hierarchical", "tupe", "floater"])
def test_cape_needs_coordinates_below_zero(encoding):
    size = {"d_model": WIDTH, "n_heads": HEADS, "n_layers": 1, "train_length": LENGTH}
    with pytest.raises(UserError, match="below 0"):
        pezoo.create(f"{encoding}+cape", **size)
    pezoo.create(f"{encoding}+cape:max_shift=0:max_jitter=0", **size)
    member = build(encoding)
    with pytest.raises(Undefined):
        member.check(reals(torch.tensor([[-0.25, 1.0]])))
