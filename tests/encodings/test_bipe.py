"""BiPE: segments of a text by hand and by a naive reader, and the paper's two encodings by pairs in float64."""

import cmath
import math

import pytest
import torch

import pezoo
from helpers import far_from_start, member, vectors
from pezoo import UserError
from pezoo.contract import Positions
from pezoo.encodings.absolute.bipe import segments

H, D, L = 2, 4, 13
SIZES = {"d_model": H * D, "n_heads": H, "n_layers": 2, "train_length": 4}
END = 3
TOKENS = torch.randint(5, (2, L), generator=torch.Generator().manual_seed(4))


def naive(tokens, ends=(END,)):
    """Place in the segment and number of the segment of each token of one document."""
    found, place, number = [], 0, 0
    for token in tokens:
        found.append((place, number))
        place, number = (0, number + 1) if token in ends else (place + 1, number)
    return found


def found(tokens, ends, **facts):
    positions = Positions.build(tokens.shape[1], len(tokens), tokens=tokens, **facts)
    return torch.stack(segments(positions, list(ends)), -1).tolist()


def test_segments_of_a_text_in_bytes():
    text = torch.tensor([list(b"One. Two!\n.3")])
    places = [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 0, 0]
    numbers = [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 3]
    assert found(text, (46, 10)) == [[list(pair) for pair in zip(places, numbers, strict=True)]]
    assert member(pezoo.create("bipe", **SIZES), "bipe").config.ends == [46, 10]


def test_segments_begin_anew_with_a_document_and_none_ends_in_padding():
    tokens = torch.tensor([[3, 1, 3, 3, 1, 1, 3, 1], [1, 3, 1, 1, 3, 3, 1, 1]])
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 2, 2]])
    valid = torch.tensor([[True] * 8, [False] * 2 + [True] * 6])
    expected = [
        naive([3, 1, 3]) + naive([3, 1, 1, 3, 1]),
        [(0, 0), (0, 0), *naive([1, 1, 3, 3]), *naive([1, 1])],
    ]
    assert found(tokens, (3,), documents=documents, valid=valid) == [[list(p) for p in row] for row in expected]


@pytest.mark.parametrize("ends", [(3,), (0, 4), ()])
def test_segments_are_those_of_a_naive_reader_whatever_is_decoded(ends):
    whole = found(TOKENS, ends)
    assert whole == [[list(p) for p in naive(row, ends)] for row in TOKENS.tolist()]
    cut = Positions.build(L, 2, tokens=TOKENS).slice(6, 8, 8)
    place, number = segments(cut, list(ends))
    assert torch.stack((place, number), -1).tolist() == [row[:8] for row in whole]


@pytest.mark.parametrize("name", ["bipe", "bipe_alibi"])
def test_the_input_gets_the_vector_of_the_place(name):
    scheme = pezoo.create(f"{name}:ends=[3]", **SIZES)
    table, x = member(scheme, name).table, vectors(2, L, H * D)
    assert len(table) == SIZES["train_length"]
    came = scheme.prepare(scheme.positions(2, L, tokens=TOKENS)).embed(x)
    places = [[min(place, len(table) - 1) for place, _ in naive(row)] for row in TOKENS.tolist()]
    assert max(map(max, places)) == len(table) - 1
    torch.testing.assert_close(came, x + table[torch.tensor(places)])


def rope(q, k, apart):
    """Pairs of channels turned by base^(-2c/d) per segment."""
    q, k = (t.double().view(D // 2, 2) for t in (q, k))
    w = [10_000 ** (-2 * c / D) for c in range(D // 2)]
    turned = [complex(*q[c]) * complex(*k[c]).conjugate() * cmath.exp(1j * apart * w[c]) for c in range(D // 2)]
    return sum(z.real for z in turned) / D**0.5


def alibi(q, k, apart, slope):
    return float(q.double() @ k.double()) / D**0.5 - 96 * slope * abs(apart)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", ["bipe", "bipe_alibi"])
def test_attention_knows_the_segments_alone(name, causal):
    scheme = pezoo.create(f"{name}:ends=[3]", **SIZES, causal=causal)
    q, k, v = vectors(3, 2, H, L, D).unbind()
    expected = torch.zeros(2, H, L, D, dtype=torch.float64)
    for r, h, i in ((r, h, i) for r in range(2) for h in range(H) for i in range(L)):
        number = [n for _, n in naive(TOKENS[r].tolist())]
        row = []
        for j in range(i + 1 if causal else L):
            pair = q[r, h, i], k[r, h, j], number[i] - number[j]
            row.append(math.exp(rope(*pair) if name == "bipe" else alibi(*pair, 2.0 ** (-8 * (h + 1) / H))))
        expected[r, h, i] = sum(w / sum(row) * v[r, h, j].double() for j, w in enumerate(row))
    for backend in ("eager", "sdpa", "chunked"):
        came = pezoo.attend(scheme, q, k, v, layer=1, tokens=TOKENS, embedded=True, backend=backend)
        torch.testing.assert_close(came.double(), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("scheme", ["bipe:ends=[3]+ntk:factor=4", "bipe_alibi:ends=[3]:slopes=learned+window:size=4"])
def test_token_by_token_is_the_full_pass_beside_others(scheme):
    config = {"scheme": scheme, "vocab_size": 5, "d_model": 12, "n_heads": 3, "n_layers": 2, "train_length": 8}
    model = far_from_start(pezoo.model.transformer.TransformerConfig(**config))
    cache = model.cache(2, L)
    with torch.no_grad():
        came = torch.cat([model(piece, cache=cache) for piece in TOKENS.split(1, 1)], 1)
        torch.testing.assert_close(came, model(TOKENS), atol=1e-4, rtol=1e-4)


def test_extensions_of_frequencies_act_on_segments_and_those_of_coordinates_are_refused():
    q, k, v = vectors(3, 2, H, L, D).unbind()
    first, second = (pezoo.create(text, **SIZES) for text in ("bipe:ends=[3]+abf:base=50", "bipe:ends=[3]:base=50"))
    given = {"tokens": TOKENS, "embedded": True, "phase": "test"}
    torch.testing.assert_close(pezoo.attend(first, q, k, v, **given), pezoo.attend(second, q, k, v, **given))
    for scheme in ("bipe+pi", "bipe_alibi+random", "bipe+rerope"):
        with pytest.raises(UserError, match=r"does not fit bipe\w*: it needs"):
            pezoo.create(scheme, **SIZES)
