"""The loss of a training in chunks of tokens: the same numbers, less memory."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from helpers import rising_text, vectors
from pezoo.model.transformer import Transformer
from pezoo.task import IGNORE
from pezoo.training import loss as module
from pezoo.training.config import TrainConfig
from pezoo.training.fit import LanguageModel, fit
from pezoo.training.loss import cross_entropy, losses_and_hits

V, WIDTH = 300, 8


@pytest.fixture
def chunks(monkeypatch):
    """Seven tokens at once."""
    monkeypatch.setattr(module, "at_once", lambda device, vocabulary: 7)


def some(dtype=torch.float64):
    """An output layer, what it reads, and targets of which some are not asked: (3, 11), so that chunks cross rows."""
    head = torch.nn.Linear(WIDTH, V, bias=False, dtype=dtype)
    targets = torch.randint(V, (3, 11), generator=torch.Generator().manual_seed(0))
    targets[0, :9] = targets[2, 4] = IGNORE  # the first chunk asks nothing
    return head, vectors(3, 11, WIDTH).to(dtype).requires_grad_(), targets


def test_chunks_have_the_loss_and_the_gradients_of_the_whole(chunks):
    head, hidden, targets = some()
    whole = F.cross_entropy(head(hidden).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    expected = torch.autograd.grad(whole, [hidden, head.weight])
    found = cross_entropy(head, hidden, targets, V)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(found, [hidden, head.weight]), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("at_once", [7, 33])
def test_losses_of_tokens_are_those_of_the_whole_and_only_of_what_is_asked(at_once, monkeypatch):
    monkeypatch.setattr(module, "at_once", lambda device, vocabulary: at_once)
    head, hidden, targets = some()
    head.weight.data[targets[1, 0]] = 100 * hidden[1, 0].detach()  # one that is right
    logits, asked = head(hidden)[targets != IGNORE], targets[targets != IGNORE]
    losses, hits = map(torch.cat, zip(*losses_and_hits(head, hidden, targets, V), strict=True))
    torch.testing.assert_close(losses, F.cross_entropy(logits, asked, reduction="none"), rtol=1e-12, atol=1e-12)
    assert hits.tolist() == (logits.argmax(-1) == asked).float().tolist()
    assert hits.sum() >= 1


def test_with_a_small_vocabulary_all_is_as_it_was_bit_by_bit():
    head, hidden, targets = some(torch.float32)
    whole = F.cross_entropy(head(hidden).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    assert torch.equal(cross_entropy(head, hidden, targets, V), whole)
    each = F.cross_entropy(head(hidden).transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")
    ((losses, _),) = losses_and_hits(head, hidden, targets, V)
    assert torch.equal(losses, each[targets != IGNORE])
    assert module.at_once(torch.device("cpu"), 256) >= 32 * 2048


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_a_training_in_chunks_ends_where_another_does(precision, monkeypatch):
    text, ends = rising_text(19), []
    for size in (10**6, 7):
        monkeypatch.setattr(module, "at_once", lambda device, vocabulary, size=size: size)
        made = {"scheme": "fire", "vocab_size": 19, "d_model": 16, "n_heads": 2, "n_layers": 1, "train_length": 8}
        model = Transformer(made | {"tie_embeddings": True})
        settings = TrainConfig(steps=3, batch_size=4, warmup_steps=1, precision=precision)
        ends.append((fit(model, text, text, settings, seed=0, length=8), model))
    (whole, model), (chunked, other) = ends
    exact = {"32-true": 1e-5, "64-true": 1e-10}.get(precision, 2e-2)
    assert chunked.final_loss == pytest.approx(whole.final_loss, rel=exact)
    assert chunked.validation_loss == pytest.approx(whole.validation_loss, rel=exact)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], weight, rtol=10 * exact, atol=exact)


PROGRAM = """
import resource, sys
import torch
from pezoo.training.loss import cross_entropy, losses_and_hits
V, L = 50_000, 2048
head, hidden, targets = torch.nn.Linear(16, V, bias=False), torch.randn(1, L, 16, requires_grad=True), torch.zeros(1, L)
targets = targets.long()
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
cross_entropy(head, hidden, targets, V).backward()
with torch.no_grad():
    for _ in losses_and_hits(head, hidden, targets, V):
        pass
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.ci
def test_the_logits_of_a_long_text_are_never_whole_in_memory():
    """They would be 390 MiB, and three times that with their gradients."""
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 500


def test_training_asks_for_no_logits_but_those_of_the_loss(monkeypatch):
    """Neither training nor validation calls the model for all of them."""
    monkeypatch.setattr(Transformer, "forward", None)
    model = Transformer({"vocab_size": 19, "d_model": 8, "n_heads": 1, "n_layers": 1, "train_length": 8})
    assert isinstance(LanguageModel(model, TrainConfig(), "train").model, Transformer)
    text = rising_text(19)
    assert fit(model, text, text, TrainConfig(steps=1, warmup_steps=0), seed=0, length=8).status == "ok"
