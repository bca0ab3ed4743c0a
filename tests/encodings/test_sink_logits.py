"""Sink logits against the attention of transformers' gpt-oss, and the formula in float64."""

import math
from types import SimpleNamespace

import pytest
import torch

import pezoo
from helpers import member, vectors
from pezoo import attention

H, D, L = 3, 4, 13
BACKENDS = ("eager", "sdpa", "chunked")


def created(scheme, **facts):
    """A scheme whose parameters have left their initial values."""
    built = pezoo.create(scheme, **{"d_model": 12, "n_heads": H, "n_layers": 2, "train_length": 8} | facts)
    for i, parameter in enumerate(built.parameters()):
        parameter.data += vectors(*parameter.shape, seed=i)
    return built


def qkv():
    return [vectors(2, H, L, D, seed=i) for i in range(3)]


@pytest.mark.parametrize("encoding", ["nope", "rope:pairing=half"])
def test_attention_is_that_of_gpt_oss(encoding, monkeypatch):
    gpt_oss = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss")
    monkeypatch.setattr(attention, "CHUNK", 4)
    built, (q, k, v) = created(f"{encoding}+sink_logits"), qkv()
    turned = created(encoding).prepare(built.positions(2, L)).layers[0][0].composition.rotate(q, k)
    ahead = torch.full((L, L), -torch.inf).triu(1)
    for layer in range(2):
        s = member(built, "sink_logits", layer).s
        module = SimpleNamespace(sinks=s, num_key_value_groups=1, training=False)
        expected, _ = gpt_oss.eager_attention_forward(module, *turned, v, ahead, scaling=D**-0.5)
        for backend in BACKENDS:
            came = pezoo.attend(built, q, k, v, layer=layer, backend=backend)
            torch.testing.assert_close(came, expected.transpose(1, 2), atol=1e-5, rtol=1e-4)


def test_weights_of_a_query_sum_to_less_than_one(monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 4)
    built, (q, k, _) = created("alibi+sink_logits:init=1"), qkv()
    s, logits = member(built, "sink_logits", 1).s.tolist(), built.logits(q, k, layer=1).double().tolist()
    came = pezoo.attend(built, q, k, torch.ones(2, H, L, D), layer=1)[..., 0]
    for b, h, i in ((b, h, i) for b in range(2) for h in range(H) for i in range(L)):
        total = sum(math.exp(z) for z in logits[b][h][i][: i + 1])
        assert came[b, h, i].item() == pytest.approx(total / (total + math.exp(s[h])), rel=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_off_by_one(backend):
    built, (q, k, v) = created("nope+sink_logits:learned=false"), qkv()
    assert not list(built.parameters())
    assert not built.state_dict()
    powers = (q.double() @ k.double().mT / D**0.5).exp().tril()
    expected = powers @ v.double() / (1 + powers.sum(-1, keepdim=True))
    torch.testing.assert_close(pezoo.attend(built, q, k, v, backend=backend).double(), expected, atol=1e-5, rtol=1e-4)


def test_it_starts_off_by_one_and_a_low_one_is_softmax():
    q, k, v = qkv()
    sizes = {"d_model": 12, "n_heads": H, "n_layers": 1, "train_length": 8}
    first, fixed = (pezoo.create(f"rope+sink_logits{s}", **sizes) for s in ("", ":learned=false"))
    torch.testing.assert_close(pezoo.attend(first, q, k, v), pezoo.attend(fixed, q, k, v))
    low, plain = (pezoo.create(s, **sizes) for s in ("rope+sink_logits:init=-50", "rope"))
    torch.testing.assert_close(pezoo.attend(low, q, k, v), pezoo.attend(plain, q, k, v))


@pytest.mark.parametrize("scheme", ["nope+ssmax:form=fixed:init=3", "rope+sinks:sinks=2:size=4", "alibi+logn"])
def test_no_scale_and_no_mask_reaches_it(scheme):
    built, (q, k, v) = created(f"{scheme}+sink_logits"), qkv()
    s, powers = member(built, "sink_logits").s.double().detach(), built.logits(q, k, phase="test").double().exp()
    expected = powers @ v.double() / (s.exp()[:, None, None] + powers.sum(-1, keepdim=True))
    came = pezoo.attend(built, q, k, v, phase="test")
    torch.testing.assert_close(came.double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("learned", ["true", "false"])
def test_it_goes_where_the_model_goes(learned):
    built = created(f"rope+sink_logits:learned={learned}").to("meta")
    out = pezoo.attend(built, *(t.to("meta") for t in qkv()))
    assert out.is_meta
