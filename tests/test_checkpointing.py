"""Gradient checkpointing: each block computed again in the backward pass, with the same gradients and less memory."""

import pytest
import torch

import pezoo
from helpers import assert_same_weights, rising_text
from pezoo import testing
from pezoo.model.transformer import Block, Transformer
from pezoo.training.config import TrainConfig
from pezoo.training.fit import fit

MEMBERS = (*pezoo.list_encodings(), *pezoo.list_extensions())


def make(scheme, **settings):
    size = {"vocab_size": 19, "d_model": 24, "n_heads": 3, "n_layers": 3, "train_length": 16}
    return Transformer(size | settings | {"scheme": scheme}).train()


def gradients(model, length=16, phase="train", dtype=None):
    """Of all weights, by name, after a forward with dropout."""
    tokens = torch.randint(19, (2, length), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        logits = model(tokens, model.positions(2, length, phase=phase, rows=(0, 1)))
    logits.float().square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def both(scheme, length=16, phase="train", dtype=None, **settings):
    """The gradients without checkpointing, and with it."""
    plain, again = make(scheme, **settings), make(scheme, **settings)
    again.checkpoint_blocks()
    return gradients(plain, length, phase, dtype), gradients(again, length, phase, dtype)


@pytest.mark.slow
@pytest.mark.ci(one_in=3)
@pytest.mark.parametrize("name", MEMBERS)
def test_every_member_has_the_same_gradients(name):
    """Those that read the layer's input, or draw, too; none keeps something from the first time."""
    spec = testing.subjects(name)[0].spec
    if make(spec).scheme.undefined(16, "train"):
        pytest.skip("undefined at this length")
    assert_same_weights(*both(spec, dropout=0.1))


@pytest.mark.parametrize(
    ("scheme", "settings"),
    [
        ("rope+random:max_length=2048", {"backend": "chunked", "dropout": 0.2}),
        ("fire", {"token_shift": True, "norm": "rmsnorm", "n_kv_heads": 1}),
        ({"layers": ["rope", "alibi+window:size=4", "nope"]}, {"tie_embeddings": True}),
        ({"heads": {"rope": 2, "cope": 1}}, {"activation": "swiglu"}),
    ],
)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_mixtures_options_and_chunks_within_a_block_too(scheme, settings, dtype):
    assert_same_weights(*both(scheme, 520, "tune", dtype, **settings))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_a_training_ends_in_the_same_weights(precision):
    text, ends = rising_text(19), []
    for on in (False, True):
        model = make("fire+random", dropout=0.2)
        settings = TrainConfig(steps=4, batch_size=2, warmup_steps=1, precision=precision, checkpointing=on)
        result = fit(model, text, text, settings, seed=0, length=16)
        ends.append((result.final_loss, result.validation_loss, model.state_dict()))
        assert not model.checkpointing
    (*numbers, weights), (*others, other) = ends
    assert numbers == others
    assert_same_weights(weights, other)


def test_the_backward_pass_keeps_what_goes_into_blocks_and_no_more():
    """Counted in the tensors that autograd stores; without gradients no block is computed again."""

    def stored(model):
        found = {}

        def pack(tensor):
            found[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.hidden(torch.zeros(2, 16, dtype=torch.int64), model.positions(2, 16, phase="train"))
        return sum(found.values())

    weights = sum(p.numel() for p in make("rope").parameters())
    plain = stored(make("rope"))
    model = make("rope")
    model.checkpoint_blocks()
    assert stored(model) < 0.2 * (plain - weights) + weights
    calls, inner = [], Block.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Block, "forward", lambda *args: calls.append(None) or inner(*args))
        gradients(model)
        assert len(calls) == 2 * 3
        with torch.no_grad():
            model.eval()(torch.zeros(1, 4, dtype=torch.int64))
    assert len(calls) == 2 * 3 + 3
