"""Absolute and relative embeddings in the shared Transformer: back-ends, decoding, causality, gradients, joins."""

import pytest
import torch

import pezoo
import pezoo.attention
from pezoo import UserError
from pezoo.model.transformer import Transformer, TransformerConfig
from pezoo.testing.subject import positions_of, read

LENGTH, TRAIN_LENGTH = 40, 16
SCHEMES = (
    "hierarchical",
    "hierarchical+pi",
    "complex_order",
    "complex_order+ntk",
    "floater",
    "sinusoidal+floater+pi",
    "tupe+pi:factor=4",
    "tupe_r:untie_first=true+pi",
    "tupe+alibi+random",
    "transformer_xl",
    "transformer_xl:untie=true+yarn",
    "transformer_xl+rerope",
    "transformer_xl+random:relative=toeplitz",
    "deberta",
    "deberta:position_to_content=released+pi",
    "deberta+rerope",
    "deberta+random",
    "xpos",
    "xpos+yarn:factor=4",
    "xpos+ntk+pi:factor=2",
    "xpos+random",
    "xpos+rerope",
    "cope",
    "cope:divide=true+window:size=5",
    "rope+cope+logn",
    "sinusoidal+cape",
    "rope+cape:at=train,tune,test",
    "alibi:slopes=learned+cape:at=train,tune,test",
)
DEAD = {
    "deberta:position_to_content=released+pi": {"0.table": slice(0, 8)},
    "tupe_r:untie_first=true+pi": {"0.table": slice(0, 1)},
}
"""Rows that a decoder never reads."""


def model(scheme, train_length=TRAIN_LENGTH):
    """A model whose logits and scheme are far from their initial values."""
    size = {"vocab_size": 32, "d_model": 16, "n_heads": 2, "n_layers": 2, "train_length": train_length}
    built = Transformer(TransformerConfig(scheme=scheme, **size)).eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in [*built.scheme.parameters(), *(block.attention.qkv.weight for block in built.blocks)]:
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return built


def tokens(length=LENGTH):
    return torch.randint(32, (2, length), generator=torch.Generator().manual_seed(5))


def use(built, backend):
    for block in built.blocks:
        block.attention.backend = backend


@pytest.mark.parametrize("scheme", SCHEMES)
def test_backends_agree_forward_and_backward(scheme, monkeypatch):
    monkeypatch.setattr(pezoo.attention, "CHUNK", 7)
    built, found = model(scheme), {}
    for backend in ("eager", "chunked", "sdpa"):
        use(built, backend)
        built.zero_grad()
        try:
            logits = read(built, tokens())
        except UserError:
            assert backend == "sdpa"
            continue
        logits.logsumexp(-1).sum().backward()
        found[backend] = logits.detach(), [p.grad.clone() for p in built.parameters()]
    expected, gradients = found.pop("eager")
    for logits, others in found.values():
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)
        for one, other in zip(gradients, others, strict=True):
            assert (one - other).norm() <= 1e-3 * one.norm() + 1e-4


@pytest.mark.parametrize("scheme", SCHEMES)
def test_decoding_is_the_full_pass(scheme):
    built = model(scheme)
    with torch.no_grad():
        full = read(built, tokens())
        for sizes in ([1] * LENGTH, [11, 19, 10]):
            cache = built.cache(2, LENGTH)
            parts = [built(part, positions_of(built, 2, LENGTH), cache) for part in tokens().split(sizes, dim=1)]
            torch.testing.assert_close(torch.cat(parts, 1), full, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_token_sees_later_ones_or_other_documents(scheme):
    built, changed = model(scheme), tokens()
    changed[:, 25] = (changed[:, 25] + 1) % 32
    documents = torch.tensor([[0] * 25 + [1] * 15, [0] * 12 + [1] * 28])
    with torch.no_grad():
        one, other = read(built, tokens()), read(built, changed)
        assert torch.equal(one[:, :25], other[:, :25])
        assert not torch.equal(one[:, 25:], other[:, 25:])
        packed = positions_of(built, 2, LENGTH, documents=documents)
        one, other = built(tokens(), packed), built(changed, packed)
        assert torch.equal(one[0, :25], other[0, :25])
        assert torch.equal(one[1, :12], other[1, :12])
        alone = built(tokens()[1:, :12], positions_of(built, 1, 12, declared=LENGTH, rows=(1,)))
        torch.testing.assert_close(one[1:, :12], alone, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_parameter_is_trained(scheme):
    built = model(scheme)
    for phase in ("train", "tune"):
        built.zero_grad()
        out = built(tokens(TRAIN_LENGTH), positions_of(built, 2, TRAIN_LENGTH, phase=phase))
        (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(7))).sum().backward()
        for name, parameter in built.scheme.named_parameters():
            assert parameter.grad.isfinite().all()
            reached = parameter.grad.flatten(1).abs().sum(1) if parameter.ndim > 1 else parameter.grad.abs()
            if name.endswith("table") and ("random" in scheme or phase == "tune" or "relative" in name):
                assert reached.any()  # a few of many rows
                continue
            dead = next((rows for end, rows in DEAD.get(scheme, {}).items() if name.endswith(end)), None)
            if dead is not None:
                assert not reached[dead].any()
                reached = torch.cat((reached[: dead.start], reached[dead.stop :]))
            assert (reached > 0).all(), name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_sixteen_training_lengths_are_finite(scheme):
    built = model(scheme)
    if "tupe+pi:factor=4" in scheme:
        assert "tupe has 16 positions" in built.scheme.undefined(16 * TRAIN_LENGTH)
        return
    with torch.no_grad():
        for length in (1, 3, 16 * TRAIN_LENGTH):
            assert read(built, tokens(length)).isfinite().all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_parameters_are_as_many_as_declared(scheme):
    built = pezoo.create(scheme, d_model=18, n_heads=3, n_layers=2, train_length=10)
    for part in built.parts:
        for copies in part.encodings:
            for copy in copies:
                assert sum(p.numel() for p in copy.parameters()) == copy.traits.parameters(copy.shape, copy.config)


@pytest.mark.parametrize(
    "scheme", ["complex_order", "floater:step=0.1", "tupe:max_position=64", "transformer_xl", "deberta", "xpos", "cope"]
)
def test_shift_invariance_is_as_declared(scheme):
    built, positions = model(scheme), None
    positions = positions_of(built, 2, LENGTH)
    moved = positions.map(lambda p, index: p + 11.0)
    with torch.no_grad():
        difference = (built(tokens(), moved) - built(tokens(), positions)).abs().max()
    invariant = built.scheme.members[0].traits.shift_invariant
    assert difference < 1e-3 if invariant else difference > 1e-2


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        ("cope+pi", "coordinates"),
        ("cope+random", "coordinates"),
        ("cope+ntk", "frequencies"),
        ("cope+rerope", "shift-invariant"),
        ("tupe+rerope", "shift-invariant"),
        ("floater+rerope", "shift-invariant"),
        ("deberta+ntk", "frequencies"),
        ("floater+yarn", "frequencies"),
        ("tupe+t5", "logit scale"),
        ("tupe+deberta", "logit scale"),
        ("xpos+random:relative=toeplitz", "distances only"),
        ("nope+cape", "coordinates"),
    ],
)
def test_what_cannot_be_joined_is_refused(scheme, reason):
    with pytest.raises(UserError, match=reason):
        pezoo.create(scheme, d_model=16, n_heads=2, n_layers=2, train_length=16)


def test_mixtures_of_layers_and_heads():
    for scheme in (
        {"layers": ["transformer_xl", "floater"]},
        {"heads": {"deberta": 1, "xpos": 1}},
        {"heads": {"tupe+pi": 1, "cope": 1}},
    ):
        built = model(scheme)
        with torch.no_grad():
            full, cache = read(built, tokens()), built.cache(2, LENGTH)
            parts = [built(part, positions_of(built, 2, LENGTH), cache) for part in tokens().split([15, 25], dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), full, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("scheme", ["xpos", "cope"])
def test_what_needs_causality_is_refused_in_an_encoder(scheme):
    with pytest.raises(UserError, match="decoders only"):
        pezoo.create(scheme, d_model=16, n_heads=2, n_layers=1, train_length=16, causal=False)
