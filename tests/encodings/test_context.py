"""Masks and logit scales against their definitions; segment recurrence against a simulated memory; and all new members
on every back-end."""

import math

import pytest
import torch

import pezoo
from helpers import member
from pezoo import attention
from pezoo.contract import Positions
from pezoo.model.transformer import Transformer, TransformerConfig
from pezoo.registry import entries
from pezoo.testing.subject import positions_of, read


def model(scheme, train_length=16, **facts):
    sizes = {"vocab_size": 16, "d_model": 32, "n_layers": 2, "n_heads": 2, "train_length": train_length}
    built = Transformer(TransformerConfig(scheme=scheme, **sizes | facts)).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in built.scheme.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return built


def ids(length, batch=2):
    return torch.randint(16, (batch, length), generator=torch.Generator().manual_seed(0))


def visible(scheme, length, phase="test", causal=True, train_length=16, **facts):
    built = pezoo.create(scheme, d_model=32, n_heads=2, n_layers=1, train_length=train_length, causal=causal)
    positions = Positions.build(length, phase=phase, causal=causal, **facts)
    return built.prepare(positions).layers[0][0].composition.visible()[0]


def pairs(length, sees, causal=True):
    rows = [[(j <= i or not causal) and sees(i, j) for j in range(length)] for i in range(length)]
    return torch.tensor(rows)


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("before", [0, 1, 2])
@pytest.mark.parametrize("causal", [True, False])
def test_blockwise_by_pairs(size, before, causal):
    ours = visible(f"rope+blockwise:size={size}:before={before}", 30, causal=causal)
    assert torch.equal(ours, pairs(30, lambda i, j: abs(i // size - j // size) <= before, causal))


def test_sizes_are_shares_of_the_training_length():
    for name, whole in (("window", 16), ("blockwise", 8)):
        assert torch.equal(visible(f"rope+{name}", 40), visible(f"rope+{name}:size={whole}", 40))
    for share, size in ((0.25, 4), (0.01, 1), (2, 32)):
        for name in ("window", "blockwise"):
            ours = visible(f"rope+{name}:share={share}", 80)
            assert torch.equal(ours, visible(f"rope+{name}:size={size}", 80))
            assert torch.equal(visible(f"rope+{name}:size=5:share={share}", 40), visible(f"rope+{name}:size=5", 40))
    with pytest.raises(pezoo.UserError, match=r"window:share must be at most 1000, got 1e\+300"):
        pezoo.parse("gemma3:window=1e300")


def test_blockwise_keeps_distances_within_training():
    seen = visible("rope+blockwise", 200)
    steps = torch.arange(200)[:, None] - torch.arange(200)
    assert steps[seen].max() == 15


@pytest.mark.parametrize(("segment", "memory"), [(4, 0), (4, 4), (4, 9), (8, 3)])
@pytest.mark.parametrize("causal", [True, False])
def test_memory_by_pairs(segment, memory, causal):
    ours = visible(f"rope+memory:segment={segment}:memory={memory}", 30, causal=causal)

    def sees(i, j):
        start = i // segment * segment
        return start - memory <= j < start + segment

    assert torch.equal(ours, pairs(30, sees, causal))


def test_memory_may_be_longer_in_testing():
    scheme = "rope+memory:segment=4:memory=2:test_memory=6"
    for phase, memory in (("train", 2), ("tune", 2), ("test", 6)):
        assert torch.equal(visible(scheme, 20, phase), visible(f"rope+memory:segment=4:memory={memory}", 20))


def test_memory_starts_empty_in_each_document():
    documents = torch.tensor([[0] * 7 + [1] * 9])
    both = visible("rope+memory:segment=4:memory=2", 16, documents=documents)
    assert torch.equal(both[7:, 7:], visible("rope+memory:segment=4:memory=2", 9))
    assert not both[7:, :7].any()


@pytest.mark.parametrize("encoding", ["rope", "alibi", "transformer_xl"])
@pytest.mark.parametrize(("segment", "memory"), [(4, 4), (4, 7), (5, 2)])
def test_memory_is_reading_by_segments_with_a_cache_of_hidden_states(encoding, segment, memory):
    """The recurrence itself: each layer sees its segment and the last hidden states of the layer below."""
    whole = model(f"{encoding}+memory:segment={segment}:memory={memory}")
    plain = model(encoding)
    plain.load_state_dict(whole.state_dict())
    tokens = ids(23)
    kept = [torch.zeros(2, 0, 32) for _ in whole.blocks]
    logits = []
    with torch.no_grad():
        for piece in tokens.split(segment, dim=1):
            x = plain.embedding(piece)
            for layer, block in enumerate(plain.blocks):
                seen = torch.cat((kept[layer], x), dim=1)
                kept[layer] = seen[:, max(0, seen.shape[1] - memory) :]
                projected = block.attention.qkv(block.attention_norm(seen)).split(32, dim=-1)
                q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in projected)
                mixed = pezoo.attend(plain.scheme, q[:, :, -piece.shape[1] :], k, v, layer=layer, phase="test")
                x = x + block.attention.out(mixed.transpose(1, 2).flatten(2))
                x = x + block.feed_forward(block.feed_forward_norm(x))
            logits.append(plain.head(plain.norm(x)))
        torch.testing.assert_close(whole(tokens), torch.cat(logits, dim=1), atol=2e-5, rtol=1e-4)


def test_logn_golden_values():
    built = pezoo.create("rope+logn", d_model=32, n_heads=2, n_layers=1, train_length=512)
    logn = member(built, "logn")
    sigma = logn.scale(Positions.build(4096, phase="test"))[0]
    for n, expected in ((512, 1), (1024, 1.111111), (4096, 1.333333)):
        assert sigma[n - 1].item() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(sigma[:512], torch.ones(512))


def test_logn_scales_content_and_not_the_bias():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 40, 16).unbind()
    built = pezoo.create("alibi+logn:floor=false", d_model=32, n_heads=2, n_layers=1, train_length=8).eval()
    steps = torch.arange(40)[:, None] - torch.arange(40)
    sigma = torch.tensor([math.log(i + 1) / math.log(8) for i in range(40)])[:, None]
    slopes = torch.tensor([0.0625, 0.00390625])[:, None, None]
    logits = (q @ k.transpose(-1, -2) / 4 * sigma - slopes * steps).masked_fill(steps < 0, -torch.inf)
    for backend in ("eager", "sdpa", "chunked"):
        torch.testing.assert_close(pezoo.attend(built, q, k, v, backend=backend, phase="test"), logits.softmax(-1) @ v)


def test_logn_counts_within_the_document():
    documents = torch.tensor([[0] * 9 + [1] * 20])
    built = pezoo.create("rope+logn", d_model=32, n_heads=2, n_layers=1, train_length=8)
    logn = member(built, "logn")
    packed = logn.scale(Positions.build(29, documents=documents, phase="test"))[0]
    assert torch.equal(packed[9:], logn.scale(Positions.build(20, phase="test"))[0])


def test_logn_takes_the_length_of_the_document_in_an_encoder():
    documents = torch.tensor([[0] * 9 + [1] * 20])
    built = pezoo.create("sinusoidal+logn", d_model=32, n_heads=2, n_layers=1, train_length=8, causal=False)
    sigma = member(built, "logn").scale(Positions.build(29, documents=documents, phase="test", causal=False))[0]
    expected = torch.tensor([math.log(9) / math.log(8)] * 9 + [math.log(20) / math.log(8)] * 20)
    torch.testing.assert_close(sigma, expected)


# Every new member, composed, on every back-end


COMPOSED = (
    "tisa",
    "sandwich",
    "tisa+pi",
    "sandwich+random",
    "alibi+dape",
    "kerple+dape+pi:factor=3",
    "fire+dape+self_extend:window=4:group=2",
    "kerple+pi+leaky_rerope",
    "alibi+self_extend",
    "fire+self_extend",
    "t5+sinks:sinks=2:size=6",
    "shaw+self_extend:window=4:group=2",
    "shaw+lm_infinite:first=2:size=8",
    "xpos+yarn",
    "xpos+self_extend:window=4:group=2",
    "rope+clex",
    "rope+longrope+sinks:sinks=1",
    "rope+resonance+logn+blockwise",
    "sinusoidal+giraffe",
    "rope+giraffe:basis=truncated+memory",
    "kerple+random:relative=toeplitz+pi",
    "fire+random:relative=toeplitz",
    "fire+random+sinks:sinks=2",
    "rope+qwen_dynamic_ntk+logn+window",
)


@pytest.mark.parametrize("scheme", COMPOSED)
def test_back_ends_and_decoding_agree_with_eager(scheme, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 7)
    built, tokens = model(scheme), ids(37)
    found = {}
    for backend in attention.BACKENDS:
        for block in built.blocks:
            block.attention.backend = backend
        try:
            logits = read(built, tokens)
        except pezoo.UserError:
            continue  # refused: only sdpa may
        built.zero_grad()
        logits.log_softmax(-1)[..., 0].sum().backward()
        gradients = [p.grad.clone() for p in built.parameters()]
        found[backend] = (logits.detach(), gradients)
    assert {"eager", "chunked"} <= found.keys()
    expected, gradients = found["eager"]
    for logits, came in found.values():
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)
        for one, other in zip(gradients, came, strict=True):
            torch.testing.assert_close(other, one, atol=1e-4 * float(one.abs().max()) + 1e-6, rtol=1e-3)
    for block in built.blocks:
        block.attention.backend = "auto"
    with torch.no_grad():
        cache = built.cache(2, 37)
        pieces = [built(piece, positions_of(built, 2, 37), cache) for piece in tokens.split([11, 1, 1, 17, 7], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("scheme", ["tisa", "tisa:offset=code:shared=true", "kerple+dape", "rope+clex", "xpos+clex"])
@pytest.mark.parametrize("phase", ["tune", "test"])
def test_every_parameter_gets_a_gradient(scheme, phase):
    built = model(scheme)
    built(ids(40), positions_of(built, 2, 40, phase=phase)).log_softmax(-1)[..., 0].sum().backward()
    for name, parameter in built.scheme.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_every_neutral_setting_is_known():
    names = (
        "dape clex abf longrope llama3 giraffe leaky_rerope self_extend sinks lm_infinite blockwise memory pose cream"
    )
    assert {n for n in names.split() if entries()[n].traits.neutral is None} == set()


@pytest.mark.parametrize("name", [n for n, e in entries().items() if e.traits and e.traits.neutral is not None])
@pytest.mark.parametrize("host", ["rope", "alibi"])
def test_neutral_settings_reproduce_the_host_bit_for_bit(name, host):
    neutral = dict(entries()[name].traits.neutral)
    try:
        with_it = model({host: None, name: neutral}, backend="eager")
    except pezoo.UserError:
        pytest.skip(f"{name} does not fit {host}")
    for parameter in (p for copies in with_it.scheme.parts[0].extensions for one in copies for p in one.parameters()):
        parameter.data.zero_()
    without = model(host, backend="eager")
    for length in (16, 48):
        assert torch.equal(read(with_it, ids(length)), read(without, ids(length)))
