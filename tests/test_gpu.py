"""What needs a CUDA device: `pytest -m gpu`."""

import pytest
import torch

import pezoo
from pezoo import attention
from pezoo.data.material import Questions
from pezoo.evaluation.answers import evaluate_answers
from pezoo.transformer import Transformer, TransformerConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device"),
]


def model(scheme: str, backend: str = "eager") -> Transformer:
    config = TransformerConfig(scheme=scheme, train_length=16, d_model=48, n_heads=3, n_layers=2, backend=backend)
    return Transformer(config).eval()


@pytest.mark.parametrize("scheme", pezoo.list_encodings())
def test_gpu_agrees_with_cpu(scheme):
    ids = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    on_cpu, on_gpu = model(scheme), model(scheme).cuda()
    torch.testing.assert_close(on_gpu(ids.cuda()).cpu(), on_cpu(ids), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scheme", pezoo.list_encodings())
@pytest.mark.parametrize("backend", ["sdpa", "chunked", "auto"])
def test_back_ends_equal_eager(scheme, backend, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 7)
    ids = torch.randint(256, (2, 16), device="cuda")
    expected = model(scheme).cuda()(ids)
    try:
        came = model(scheme, backend).cuda()(ids)
    except pezoo.UserError:
        pytest.skip(f"{backend} refuses {scheme}")
    torch.testing.assert_close(came, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scheme", ["rope", "alibi", "t5"])
def test_bfloat16_stays_close(scheme):
    ids = torch.randint(256, (1, 1024), device="cuda")
    built = model(scheme, "auto").cuda()
    full = built(ids)
    half = built.bfloat16()(ids).float()
    assert (full - half).abs().max() < 0.05 * full.abs().max()


@pytest.mark.parametrize("task", ["passkey", "mqar", "reverse_string"])
@pytest.mark.parametrize("scheme", ["rope+pi", "alibi", "rope+rerope"])
def test_answers_are_those_of_the_cpu(task, scheme):
    questions = Questions(task, "causal", 16)
    config = TransformerConfig(
        scheme=scheme, train_length=questions.n_tokens(16), vocab_size=questions.vocab_size, d_model=48, n_heads=3
    )
    for protocol in ["answers"] if task == "mqar" else ["answers", "generation"]:
        on_cpu, on_gpu = (
            evaluate_answers(Transformer(config), questions, [16, 32], protocol=protocol, count=8, device=device)
            for device in ("cpu", "cuda")
        )
        for here, there in zip(on_cpu, on_gpu, strict=True):
            assert here.status == there.status == "ok"
            assert there.values["token_accuracy"] == pytest.approx(here.values["token_accuracy"], abs=0.1)
