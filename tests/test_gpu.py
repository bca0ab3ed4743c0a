"""What a GPU must do as a CPU does: `make gpu`, or `pytest -m gpu` on a machine with a CUDA device.

`PEZOO_TEST_DEVICE=cpu pytest -m gpu` runs the same tests without one, so that they work the day one is at hand.
"""

import copy
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import pezoo
from pezoo import attention, testing
from pezoo.data import Tokens, Windows
from pezoo.data.material import Questions
from pezoo.evaluation import evaluate
from pezoo.evaluation.answers import evaluate_answers
from pezoo.model.decode import decode
from pezoo.model.transformer import Transformer, TransformerConfig
from pezoo.training.checkpoint import load, save
from pezoo.training.config import TrainConfig
from pezoo.training.fit import fit

DEVICE = torch.device(os.environ.get("PEZOO_TEST_DEVICE", "cuda"))
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="PyTorch finds no CUDA device"),
]

LENGTH = 16
MEMBERS = (*pezoo.list_encodings(), *pezoo.list_extensions())
SOME = ("rope+random", "alibi", "cope")
if DEVICE.type != "cpu":  # where bfloat16 is slow
    SOME += ("rope+yarn", "rope+rerope", "t5", "fire", "learned", "floater")
ALIKE = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture
def device():
    return DEVICE


def model(scheme, **config):
    """A small decoder with an attention sharp enough for positions to show; a member alone gets a host."""
    scheme = str(testing.subjects(scheme)[0].spec) if scheme in MEMBERS else scheme
    sizes = {"vocab_size": 64, "train_length": LENGTH, "d_model": 48, "n_heads": 3, "n_layers": 2} | config
    built = Transformer(TransformerConfig(scheme=scheme, **sizes)).eval()
    for block in built.blocks:
        block.attention.qkv.weight.data *= 5
    return built


def pair(scheme, device, **config):
    """The same model on the CPU and on the device."""
    here = model(scheme, **config)
    return here, copy.deepcopy(here).to(device)


def tokens(length=LENGTH, batch=2):
    return torch.randint(64, (batch, length), generator=torch.Generator().manual_seed(0))


def read(built, ids, **facts):
    """Logits on the CPU, of ids at positions with given facts, which come from the CPU."""
    positions = built.positions(*ids.shape, **{"rows": (3, 9)[: len(ids)]} | facts)
    return built(ids.to(built.head.weight.device), positions).float().cpu()


def loss(built, phase="train"):
    ids = tokens().to(built.head.weight.device)
    logits = built(ids, built.positions(*ids.shape, phase=phase, rows=(5, 8)))
    return cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())


# ---- forward ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", MEMBERS)
def test_logits_are_those_of_the_cpu(scheme, device):
    """Of whole rows, of packed and padded ones, and where each declares a length of its own."""
    here, there = pair(scheme, device)
    place = torch.arange(LENGTH).expand(2, -1)
    for facts in (
        {},
        {"documents": place // 9, "valid": place > 2},
        {"declared": torch.tensor([LENGTH, LENGTH - 1])},
    ):
        for phase in ("train", "test"):
            expected = read(here, tokens(), phase=phase, **facts)
            torch.testing.assert_close(read(there, tokens(), phase=phase, **facts), expected, **ALIKE)


@pytest.mark.parametrize("scheme", ["rope+pi", "alibi", "rope+self_extend", "rope+clex", "rope+random", "t5+window"])
def test_longer_than_in_training(scheme, device):
    here, there = pair(scheme, device)
    for facts in ({}, {"declared": torch.tensor([4 * LENGTH, 9 * LENGTH])}):
        expected = read(here, tokens(4 * LENGTH), **facts)
        torch.testing.assert_close(read(there, tokens(4 * LENGTH), **facts), expected, **ALIKE)


@pytest.mark.parametrize("scheme", MEMBERS)
@pytest.mark.parametrize("backend", ["sdpa", "chunked", "auto"])
def test_back_ends_equal_eager(scheme, backend, device, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 7)
    eager = model(scheme, backend="eager").to(device)
    other = model(scheme, backend=backend).to(device)
    place = torch.arange(LENGTH).expand(2, -1)
    for facts in ({}, {"documents": place // 9, "valid": place > 2}):
        try:
            came = read(other, tokens(), **facts)
        except pezoo.UserError:
            pytest.skip(f"{backend} refuses {scheme}")
        torch.testing.assert_close(came, read(eager, tokens(), **facts), **ALIKE)


@pytest.mark.parametrize("scheme", ["rope", "alibi", "t5", "fire", "learned"])
def test_bfloat16_stays_close(scheme, device):
    built = model(scheme, train_length=512).to(device)
    full, half = read(built, tokens(512)), read(built.bfloat16(), tokens(512))
    assert (full - half).abs().max() < 0.1 * full.abs().max()


# ---- FlexAttention ------------------------------------------------------------------------------

FLEX = [
    "nope",
    "rope+random",
    "t5",
    "kerple+window:size=90",
    "fire",
    "cable",
    "alibi+blockwise:size=30",
    "t5+sink_logits",
]
needs_kernel = [
    pytest.mark.skipif(DEVICE.type != "cuda", reason="FlexAttention has a kernel for CUDA alone"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


def both(scheme, device, **config):
    """The same model under the definition and under FlexAttention."""
    return [model(scheme, train_length=64, backend=backend, **config).to(device) for backend in ("eager", "flex")]


@pytest.mark.parametrize("scheme", [pytest.param(scheme, marks=needs_kernel) for scheme in FLEX])
def test_flex_attention_is_eager_at_all_lengths_with_two_kernels(scheme, device):
    """One of them is for fewer than 128 queries. Gradients are those of the tables too, and of all that is learned."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    eager, flex = both(scheme, device, n_layers=1)
    for length in (600, 300, 130, 385, 40):
        losses = []
        for built in (eager, flex):
            built.zero_grad()
            ids = tokens(length).to(device)
            logits = built(ids, built.positions(*ids.shape, phase="test", rows=(3, 9)))
            losses.append(cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))
            losses[-1].backward()
        torch.testing.assert_close(losses[1], losses[0])
        for (name, p), q in zip(eager.named_parameters(), flex.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), name
            if p.grad is not None:
                near = {"rtol": 1e-3, "atol": 1e-4 * p.grad.abs().max().item()}
                torch.testing.assert_close(q.grad, p.grad, **near, msg=lambda m, n=name, at=length: f"{n}, {at}: {m}")
    assert counters["stats"]["unique_graphs"] <= 2


@pytest.mark.parametrize("scheme", [pytest.param(scheme, marks=needs_kernel) for scheme in FLEX])
def test_flex_attention_of_packed_padded_and_continued_rows(scheme, device):
    eager, flex = both(scheme, device, n_layers=1, n_heads=4, d_model=64, n_kv_heads=2)
    place = torch.arange(200).expand(2, -1)
    facts = {"documents": place // 90, "valid": place > 2}
    with torch.inference_mode():
        torch.testing.assert_close(read(flex, tokens(200), **facts), read(eager, tokens(200), **facts), **ALIKE)
        ids = tokens(200).to(device)
        whole = eager(ids, eager.positions(2, 200, rows=(3, 9)))
        cache, positions = flex.cache(2, 200), flex.positions(2, 200, rows=(3, 9))
        came = torch.cat([flex(piece, positions, cache) for piece in ids.split([150, 48, 1, 1], 1)], dim=1)
        torch.testing.assert_close(came, whole, **ALIKE)


@pytest.mark.parametrize("precision", [pytest.param(p, marks=needs_kernel) for p in ("32-true", "bf16-mixed")])
def test_training_under_flex_attention_ends_where_it_does_without(precision, device):
    ends = []
    for backend in ("auto", "flex"):
        config = TransformerConfig(
            scheme="t5", vocab_size=64, train_length=32, d_model=48, n_heads=3, backend=backend
        )  # fmt: skip
        settings = replace(SETTINGS, precision=precision)
        result = fit(Transformer(config), text(), text(), settings, seed=0, length=32, device=device)
        ends.append(result.validation_loss)
    assert ends[1] == pytest.approx(ends[0], rel=0.02)


# ---- decoding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", MEMBERS)
def test_decoding_equals_the_full_pass(scheme, device):
    built, ids = model(scheme).to(device), tokens().to(device)
    positions = built.positions(2, LENGTH, rows=(3, 9))
    cache = built.cache(2, LENGTH)
    with torch.inference_mode():
        came = torch.cat([built(piece, positions, cache) for piece in ids.split([LENGTH - 4, 1, 1, 2], 1)], dim=1)
        torch.testing.assert_close(came, built(ids, positions), **ALIKE)


def test_decoding_of_padded_and_packed_rows(device):
    built, ids, place = model("rope+alibi").to(device), tokens().to(device), torch.arange(LENGTH)
    valid = torch.stack((place >= 3, place >= 0))
    positions = built.positions(2, LENGTH, valid=valid, documents=torch.stack((0 * place, place // 9)))
    cache = built.cache(2, LENGTH)
    with torch.inference_mode():
        came = torch.cat([built(piece, positions, cache) for piece in ids.split(1, 1)], dim=1)
        torch.testing.assert_close(came[valid.to(device)], built(ids, positions)[valid.to(device)], **ALIKE)


@pytest.mark.parametrize("scheme", ["rope+dynamic_ntk", "alibi", "learned:max_position=64"])
def test_greedy_continuations_are_those_of_the_cpu(scheme, device):
    here, there = pair(scheme, device)
    assert torch.equal(decode(there, tokens().to(device), 12).cpu(), decode(here, tokens(), 12))


# ---- training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", MEMBERS)
def test_gradients_are_those_of_the_cpu(scheme, device):
    """Random draws and all; a step with them is finite."""
    pairs = pair(scheme, device)
    for built in pairs:
        optimizer = torch.optim.AdamW(built.train().parameters(), fused=True)
        loss(built).backward()
    for (name, p), q in zip(pairs[0].named_parameters(), pairs[1].parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(q.grad.cpu(), p.grad, rtol=1e-2, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    optimizer.step()
    assert torch.isfinite(loss(pairs[1]))


@pytest.mark.parametrize("scheme", MEMBERS)
def test_mixed_precision_stays_close(scheme, device):
    """Loss and gradients under autocast to bfloat16."""
    full, half = model(scheme).to(device).train(), model(scheme).to(device).train()
    expected = loss(full)
    with torch.autocast(device.type, torch.bfloat16):
        came = loss(half)
    for value in (expected, came):
        value.backward()
    assert came.item() == pytest.approx(expected.item(), rel=0.05)
    norms = [torch.stack([p.grad.norm() for p in m.parameters() if p.grad is not None]).norm() for m in (full, half)]
    assert norms[1].item() == pytest.approx(norms[0].item(), rel=0.25)


def text():
    """A text of repeated phrases, which a few steps learn something of."""
    draws = np.random.default_rng(0)
    phrases = draws.integers(0, 64, (8, 12))
    ids = phrases[draws.integers(0, 8, 1000)].reshape(-1).astype(np.uint8)
    return Tokens(ids, np.array([0, len(ids)]), ["phrases"])


SETTINGS = TrainConfig(steps=40, batch_size=8, lr=4e-3, warmup_steps=5, log_every=20)


def trained(scheme, device, **settings):
    built = Transformer(TransformerConfig(scheme=scheme, vocab_size=64, train_length=32, d_model=48, n_heads=3))
    result = fit(built, text(), text(), replace(SETTINGS, **settings), seed=0, length=32, device=device)
    assert result.status == "ok", result.reason
    assert next(built.parameters()).device.type == "cpu"
    return result, built


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("scheme", SOME)
def test_training_learns(scheme, precision, device):
    result, _ = trained(scheme, device, precision=precision)
    assert result.validation_loss < 3.8 < np.log(64)
    assert result.peak_memory_bytes > 0
    assert result.tokens_per_second > 0


@pytest.mark.parametrize("scheme", ["rope+random", "t5"])
def test_training_ends_where_it_does_on_a_cpu(scheme, device):
    """And where it does again: the batches and the draws are the same, only the order of additions is not."""
    (on_cpu, _), (first, one), (again, other) = (trained(scheme, d) for d in ("cpu", device, device))
    assert first.validation_loss == pytest.approx(on_cpu.validation_loss, rel=0.02)
    assert again.validation_loss == pytest.approx(first.validation_loss, rel=0.02)
    if device.type == "cpu":
        assert all(map(torch.equal, one.parameters(), other.parameters()))


def test_what_was_trained_there_is_read_anywhere(device, tmp_path):
    _, built = trained("alibi", device)
    save(tmp_path / "model.pt", built, {})
    read_back, _ = load(tmp_path / "model.pt")
    torch.testing.assert_close(read(read_back, tokens(32)), read(built.eval(), tokens(32)))


def test_a_task_trains(device):
    questions = Questions("reverse_string", "encoder", 8)
    config = TransformerConfig(
        scheme="rope+random", train_length=questions.n_tokens(8), vocab_size=questions.vocab_size, d_model=48,
        n_heads=3, causal=False,
    )  # fmt: skip
    settings = replace(SETTINGS, steps=20, lengths="uniform")
    result = fit(Transformer(config), questions.train, questions.validation, settings, seed=0, length=8, device=device)
    assert result.status == "ok"


# ---- testing ------------------------------------------------------------------------------------


def windows():
    return Windows(tokens(4 * LENGTH + 1, 6), torch.arange(6).numpy(), torch.zeros(6).long().numpy())


@pytest.mark.parametrize("protocol", ["prefix", "sliding", "last", "attention"])
@pytest.mark.parametrize("scheme", ["rope+yarn", "alibi", "rope+rerope"])
def test_measurements_are_those_of_the_cpu(scheme, protocol, device):
    here, there = (
        evaluate(model(scheme), windows(), [LENGTH, 4 * LENGTH], protocol=protocol, last=8, device=d)
        for d in ("cpu", device)
    )
    for a, b in zip(here, there, strict=True):
        assert a.status == b.status == "ok"
        for name, value in a.values.items():
            assert b.values[name] == pytest.approx(value, rel=1e-2, abs=1e-3), name


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize("scheme", ["rope+yarn", "alibi", "learned:max_position=64"])
def test_lower_precision_in_testing_stays_close(scheme, precision, device):
    if precision == "tf32" and device.type != "cuda":
        pytest.skip("TF32 is of CUDA")
    full, half = (
        evaluate(model(scheme), windows(), [4 * LENGTH], last=8, device=device, precision=p)[0]
        for p in ("float32", precision)
    )
    assert half.values["perplexity"] == pytest.approx(full.values["perplexity"], rel=0.05)


@pytest.mark.parametrize("task", ["passkey", "mqar", "reverse_string"])
@pytest.mark.parametrize("scheme", ["rope+pi", "alibi", "rope+rerope"])
def test_answers_are_those_of_the_cpu(task, scheme, device):
    questions = Questions(task, "causal", 16)
    config = TransformerConfig(
        scheme=scheme, train_length=questions.n_tokens(16), vocab_size=questions.vocab_size, d_model=48, n_heads=3
    )
    for protocol in ["answers"] if task == "mqar" else ["answers", "generation"]:
        here, there = (
            evaluate_answers(Transformer(config), questions, [16, 32], protocol=protocol, count=8, device=d)
            for d in ("cpu", device)
        )
        for a, b in zip(here, there, strict=True):
            assert a.status == b.status == "ok"
            assert b.values["token_accuracy"] == pytest.approx(a.values["token_accuracy"], abs=0.1)
