"""The numbers of a scheme are float32's, whatever precision the model around it has."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pezoo
from pezoo import Encoding, Traits, attention, register, testing
from pezoo.compose import prepared
from pezoo.compose import scheme as scheme_module
from pezoo.composition import Composition
from pezoo.contract import in_float32
from pezoo.data import Tokens
from pezoo.positions import Positions
from pezoo.testing.properties.precision import default_dtype as default
from pezoo.testing.subject import read
from pezoo.training.config import TrainConfig
from pezoo.training.fit import fit

SIZES = {"d_model": 32, "n_heads": 2, "n_layers": 1}


class Stranger(Encoding):
    """A bias that a small network makes of the distance, without a thought for precision."""

    traits = Traits(
        shift_invariant=True,
        bidirectional=False,
        parameters=lambda shape, c: 16 + 8 * shape.n_heads,
        deviations={"every_row_learns": "a ReLU may be off at every distance"},
    )

    def __init__(self, shape, config):
        super().__init__(shape, config)
        self.first, self.last = nn.Linear(1, 8), nn.Linear(8, shape.n_heads, bias=False)

    def distance_bias(self, distance):
        near = distance.abs().log1p()[..., None]
        return F.linear(F.linear(near, self.first.weight, self.first.bias).relu(), self.last.weight).movedim(-1, 0)


@pytest.fixture(scope="module")
def stranger():
    register("stranger", title="A network of the distance", family="bias")(Stranger)
    return "stranger"


def test_a_strangers_network_of_distances_passes_the_kit(stranger):
    failed = [(o.check, o.came) for o in testing.check_encoding(stranger) if o.status == "fail"]
    assert failed == []


@pytest.mark.parametrize("scheme", ["fire", "rope+clex", "tupe", "alibi+dape", "transformer_xl"])
def test_without_the_context_around_hooks_the_kit_sees_the_models_precision(scheme, monkeypatch):
    name = scheme.rpartition("+")[2]
    subject = next(s for s in testing.subjects(name) if str(s.spec) == scheme)
    check = "same_numbers_in_any_precision"
    assert testing.run(subject, check).status == "pass"
    for module in (scheme_module, prepared, attention):
        monkeypatch.setattr(module, "in_float32", lambda device: nullcontext())
    assert testing.run(subject, check).status == "fail"


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("scheme", ["alibi", "fire", "t5"])
def test_training_tells_a_thousand_distances_apart_in_any_precision(scheme, precision, monkeypatch):
    biases, distances = [], []
    bias, distance = Composition.bias, Positions.distance

    def seen(kept, function):
        def spy(self, *args):
            kept.append(function(self, *args))
            return kept[-1]

        return spy

    monkeypatch.setattr(Composition, "bias", seen(biases, bias))
    monkeypatch.setattr(Positions, "distance", seen(distances, distance))
    config = {"scheme": scheme, **SIZES, "train_length": 1024, "vocab_size": 16, "backend": "eager"}
    ids = np.random.default_rng(0).integers(16, size=3000).astype(np.uint8)
    settings = TrainConfig(steps=1, batch_size=1, precision=precision)
    text = Tokens(ids, np.array([0, 3000]), ["one"])
    assert fit(pezoo.Transformer(config), text, None, settings, seed=0, length=1024).status == "ok"
    assert biases
    assert distances or scheme == "fire"  # which asks for those of one row
    assert {t.dtype for t in (*biases, *distances)} == {torch.float32}
    assert all(len(n[0, -1].unique()) == 1024 for n in distances)
    if scheme != "t5":  # which has buckets
        assert all(len(b[0, 0, -1].detach().unique()) > 1000 for b in biases)


def test_parameters_stay_float32_when_the_model_is_cast():
    model = pezoo.Transformer({"scheme": "fire+learned", **SIZES, "train_length": 16})
    before = {n: p.clone() for n, p in model.scheme.state_dict().items()}
    for cast in (model.bfloat16, model.double, model.half, lambda: model.to(torch.bfloat16)):
        cast()
        assert model.head.weight.dtype != torch.float32
        for name, parameter in model.scheme.state_dict().items():
            assert torch.equal(parameter, before[name]), name
    assert copy.deepcopy(model).to("meta").scheme.members[0].c.device.type == "meta"
    with torch.device("meta"):
        made = pezoo.Transformer({"scheme": "fire+learned", **SIZES, "train_length": 16})
    assert made.to_empty(device="cpu").scheme.members[0].c.device.type == "cpu"


def test_a_scheme_is_built_in_float32_whatever_the_default():
    with default(torch.bfloat16):
        scheme = pezoo.create("fire+shaw", **SIZES, train_length=16)
    expected = pezoo.create("fire+shaw", **SIZES, train_length=16)
    for name, parameter in scheme.state_dict().items():
        assert torch.equal(parameter, expected.state_dict()[name])


@pytest.mark.parametrize("name", pezoo.list_encodings("*"))
def test_every_encoding_works_in_a_float64_model(name):
    model = pezoo.Transformer({"scheme": name, **SIZES, "train_length": 16}).eval()
    ids = torch.randint(256, (1, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        single = read(model, ids)
        double = read(model.double(), ids)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, atol=1e-4, rtol=1e-4)


def test_a_chunk_that_is_computed_again_is_computed_in_float32(monkeypatch):
    """The backward pass runs each chunk anew, in whatever default dtype holds by then."""
    monkeypatch.setattr(attention, "CHUNK", 16)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        scheme = pezoo.create("fire", **SIZES, train_length=16)
        q, k, v = (torch.randn(1, 2, 600, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
        out = pezoo.attend(scheme, q, k, v, backend="chunked").sum()
        with default(dtype):
            out.backward()
        gradients.append(scheme.members[0].c.grad)
    assert torch.equal(*gradients)


def test_the_context_puts_back_what_it_found():
    with default(torch.float64), torch.autocast("cpu", torch.bfloat16):
        with in_float32(torch.device("cpu")):
            assert (torch.tensor(3) * 0.5).dtype == torch.float32
            assert not torch.is_autocast_enabled("cpu")
        assert torch.get_default_dtype() == torch.float64
        assert torch.is_autocast_enabled("cpu")
