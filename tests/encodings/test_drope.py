"""DroPE: RoPE in training, NoPE afterwards, with a temperature that follows the length."""

import math

import pytest
import torch

import pezoo
from helpers import far_from_start, vectors
from pezoo.contract import Positions
from pezoo.scheme import parse

L = 8
SIZES = {"vocab_size": 16, "d_model": 24, "n_heads": 3, "n_layers": 2, "train_length": L}


def pair(one, other):
    """Two models of the same weights, as functions of phase and length that give logits."""
    models = [far_from_start(SIZES | {"scheme": scheme}) for scheme in (one, other)]
    models[1].load_state_dict(models[0].state_dict())

    def read(model, phase, length):
        ids = torch.randint(16, (2, length), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return model(ids, model.positions(2, length, phase=phase))

    return [lambda phase, length, model=model: read(model, phase, length) for model in models]


@pytest.mark.parametrize("rope", ["rope", "rope:pairing=half:base=500", "partial_rope"])
def test_it_trains_as_rope_and_is_tuned_as_nope(rope):
    dropped, whole = pair(f"{rope}+drope", rope)
    _, nope = pair(f"{rope}+drope", "nope")
    assert torch.equal(dropped("train", L), whole("train", L))
    for phase in ("tune", "test"):
        for length in (3, L):
            assert torch.equal(dropped(phase, length), nope(phase, length))
    assert not torch.allclose(dropped("test", L), whole("test", L), atol=1e-3)


@pytest.mark.parametrize(("sharpen", "length"), [(0.412, 24), (0.103, 64), (0, 64)])
def test_beyond_training_it_is_nope_with_a_temperature(sharpen, length):
    q, k, v = (vectors(2, 3, length, 8, seed=i) for i in range(3))
    built = pezoo.create(f"rope+drope:sharpen={sharpen}", d_model=24, n_heads=3, n_layers=1, train_length=L)
    beta = 1 + sharpen * math.log(length / L)
    logits = (beta * q.double() @ k.double().mT / 8**0.5).masked_fill(torch.ones(length, length).triu(1) > 0, -math.inf)
    for backend in ("eager", "sdpa", "chunked"):
        came = pezoo.attend(built, q, k, v, phase="test", backend=backend)
        torch.testing.assert_close(came.double(), logits.softmax(-1) @ v.double(), atol=1e-5, rtol=1e-4)


def test_rows_of_other_lengths_have_temperatures_of_their_own():
    built = pezoo.create("rope+drope", d_model=24, n_heads=3, n_layers=1, train_length=L)
    (drope,) = built.parts[0].extensions[0]
    came = drope.scale(Positions.build(4, 3, declared=torch.tensor([4, 16, 80]), phase="test"))
    assert came.flatten().tolist() == pytest.approx([1, 1 + 0.412 * math.log(2), 1 + 0.412 * math.log(10)])


def test_the_temperature_follows_the_length_after_tuning():
    spec = parse("rope+drope")
    assert spec.fixed(L, L) == spec
    assert str(spec.at("train")) == "rope"


def test_tokens_of_a_dropped_sinusoid_get_one_vector():
    built = pezoo.create("sinusoidal+drope", d_model=24, n_heads=3, n_layers=1, train_length=L)
    added = built.prepare(built.positions(1, 20, phase="test")).embed(torch.zeros(1, 20, 24))[0]
    assert torch.equal(added, added[:1].expand(20, -1))
    assert not torch.equal(added, built.prepare(built.positions(1, 20, phase="train")).embed(torch.zeros(1, 20, 24))[0])


@pytest.mark.parametrize("other", ["yarn", "ntk", "clex", "longrope", "resonance"])
def test_other_rules_for_frequencies_are_refused(other):
    for scheme in (f"rope+drope+{other}", f"rope+{other}+drope"):
        with pytest.raises(pezoo.UserError, match=f"beside {other}, drope sets all frequencies to 0"):
            pezoo.create(scheme, d_model=24, n_heads=3, n_layers=1, train_length=L)


def test_what_acts_beside_it():
    trained = pezoo.create("rope+resonance:at=train+drope", d_model=24, n_heads=3, n_layers=1, train_length=L)
    assert not trained.frequencies(20).any()
    with pytest.raises(pezoo.UserError, match="drope does not fit alibi: it needs frequencies"):
        pezoo.create("alibi+drope", d_model=24, n_heads=3, n_layers=1, train_length=L)
