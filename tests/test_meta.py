"""No forward, training step or decoding mixes devices, reads a number from the device, or waits for a copy to it.

All of it runs on PyTorch's device `meta`, whose tensors have shapes but no values: a tensor that was left on the CPU
and a read such as `float(tensor)` raise there. A GPU would run on, and stand still at each read and each such copy.
"""

from contextlib import contextmanager, suppress

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

import pezoo
from pezoo import attention, testing
from pezoo.contract import PHASES, overrides, to_device
from pezoo.model.decode import decode
from pezoo.model.transformer import Transformer, TransformerConfig
from pezoo.registry import entry
from pezoo.scheme import parse

LENGTH = 16
MEMBERS = (*pezoo.list_encodings(), *pezoo.list_extensions())
MIXTURES = {
    "sum": "rope+alibi+t5",
    "extensions": "rope+random:draw=layer+yarn+logn+window",
    "layers": {"layers": ["rope+window", "nope"]},
    "heads": {"heads": {"alibi": 1, "rope": 2}},
    # Encodings that have no value for some coordinates, under draws.
    **{s: s for s in ("learned+random", "hierarchical+pose", "tupe+shift", "xpos+cream")},
    "floater+random": "floater:step=0.001+random",
}

WHY_FAR = "far regions, in testing alone, whose bounds nobody states; xPos looks whether they are in range"
WHY_DRAWN = "jittered coordinates, whose bounds nobody states; xPos looks whether they are in range"
WHY_OWN = "rows with lengths of their own are squeezed by factors of their own, which the device holds"
READS = {
    ("xpos+rerope", "test", "plain"): WHY_FAR,
    ("xpos+sinks", "test", "plain"): WHY_FAR,
    ("xpos+cape", "train", "plain"): WHY_DRAWN,
    ("learned+pi", "test", "declared"): WHY_OWN,
    ("learned:max_position=8", "test", "packed"): "only documents' own lengths tell whether a longer row is defined",
}
"""Schemes that do read a number from the device, once in a forward, and why."""


class Waits(AssertionError):
    """The host would wait for a copy to the device."""


class _Copies(TorchDispatchMode):
    """Refuses operations that take a tensor of the CPU to the device, but for a copy that does not wait."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        given, made = ([t for t in tree_iter(x) if isinstance(t, torch.Tensor)] for x in ((args, kwargs), result))
        # A single number of the CPU is handed to a kernel as it is, but torch.where copies it.
        left = [t for t in given if t.is_cpu and (t.ndim or function is torch.ops.aten.where.self)]
        if left and any(t.is_meta for t in made) and not (kwargs or {}).get("non_blocking"):
            raise Waits(f"{function} copies a tensor of the CPU; use pezoo.contract.to_device")
        return result


class _Constants(TorchFunctionMode):
    """Refuses tensors that are made on the device from numbers of the host, which `_Copies` does not see."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        if function in (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor) and result.is_meta:
            data = args[-1] if args else next(iter(kwargs.values()))
            if not isinstance(data, torch.Tensor):
                raise Waits(f"{function.__name__} copies numbers of the CPU; use pezoo.contract.to_device")
        return result


@contextmanager
def watching():
    """Refuse what waits for a copy to the device."""
    with _Constants(), _Copies():
        yield


def schemes(name):
    return [MIXTURES[name]] if name in MIXTURES else [str(s.spec) for s in testing.subjects(name)]


def model(scheme, **config):
    sizes = {"vocab_size": 16, "d_model": 48, "n_heads": 3, "n_layers": 1, "train_length": LENGTH} | config
    if (isinstance(scheme, dict) and "layers" in scheme) or "draw=layer" in str(scheme):
        sizes["n_layers"] = 2
    return Transformer(TransformerConfig(scheme=scheme, **sizes)).to("meta")


def ids(length=LENGTH):
    return torch.zeros(2, length, dtype=torch.int64, device="meta")


def facts():
    """What positions may be told beside the length, all of it on the host, as a data loader has it."""
    place = torch.arange(LENGTH).expand(2, -1)
    return {
        "plain": {"rows": (3, 9)},
        "packed": {"documents": place // 9, "valid": place > 2, "rows": (3, 9)},
        "declared": {"declared": torch.tensor([LENGTH, 2 * LENGTH]), "rows": (3, 9)},
    }


def step(built, phase, known):
    optimizer = torch.optim.AdamW(built.parameters())
    with watching():  # members run in the forward alone; the watch takes time
        logits = built(ids(), built.positions(2, LENGTH, phase=phase, **known))
    cross_entropy(logits.float().flatten(0, 1), ids().flatten()).backward()
    nn.utils.clip_grad_norm_(built.parameters(), 1.0)
    optimizer.step()


@torch.inference_mode()
def continued(built, pieces, **known):
    cache, positions = built.cache(2, LENGTH), built.positions(2, LENGTH, **{"rows": (3, 9)} | known)
    for piece in ids().split(pieces, dim=1):
        built(piece, positions, cache)


@pytest.mark.slow
@pytest.mark.ci(one_in=3)
@pytest.mark.parametrize("name", [*MEMBERS, *MIXTURES])
def test_every_member_trains_and_decodes_without_waiting(name):
    """One step in which rows are packed and padded and have names and lengths of their own, then decoding."""
    declared = {} if name in MIXTURES else facts()["declared"]
    for scheme in schemes(name):
        built = model(scheme)
        step(built, "train", facts()["packed"] | declared)
        continued(built.eval(), [LENGTH - 1, 1], **declared)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MEMBERS, *MIXTURES])
def test_every_phase_and_kind_of_row(name):
    for scheme in schemes(name):
        for kind, known in facts().items():
            for phase in PHASES:
                if (str(scheme), phase, kind) not in READS:
                    step(model(scheme), phase, known)
            continued(model(scheme).eval(), [LENGTH - 2, 1, 1], **known)
        with suppress(pezoo.UserError):  # some schemes are for decoders only
            step(model(scheme, causal=False), "test", facts()["packed"])


@pytest.mark.slow
@pytest.mark.parametrize("backend", attention.BACKENDS)
@pytest.mark.parametrize("name", MEMBERS)
def test_every_back_end(name, backend, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 7)
    for scheme in schemes(name):
        built = model(scheme, backend=backend).eval()
        for known in (facts()["plain"], facts()["packed"]):
            with suppress(pezoo.UserError), watching():  # some back-ends refuse some schemes
                built(ids(), built.positions(2, LENGTH, **known)).sum().backward()


@pytest.mark.parametrize(("scheme", "phase", "kind"), READS, ids=lambda value: str(value))
def test_these_still_read_from_the_device(scheme, phase, kind):
    with pytest.raises(RuntimeError, match="cannot be called on meta tensors"):
        step(model(scheme), phase, facts()[kind])


def test_a_scheme_says_where_it_is_undefined():
    """Without a look at the device too."""
    built = model("learned")
    with watching():
        assert built.scheme.undefined(LENGTH) is None
        assert "learned has 16 positions" in built.scheme.undefined(LENGTH + 1)


def test_a_token_shift():
    built = model("fox", token_shift=True)
    step(built, "train", facts()["packed"])
    continued(built.eval(), [LENGTH - 1, 1], **facts()["packed"])


def test_greedy_decoding():
    built = model("rope+pi").eval()
    with watching():
        assert decode(built, ids(), 4).shape == (2, 4)


@pytest.mark.parametrize(
    "read",
    [float, int, bool, torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.nonzero, lambda t: t[t > 0], torch.equal],
)
def test_a_read_raises_on_meta(read):
    """Without which nothing here would show a read."""
    number = torch.zeros((), device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        read(number, number) if read is torch.equal else read(number)


def test_a_tensor_left_on_the_cpu_raises_on_meta():
    with pytest.raises(RuntimeError, match="device"):
        torch.zeros(3, device="meta") + torch.zeros(3)


def test_copies_that_wait_are_seen():
    there, here = torch.zeros(3, device="meta"), torch.arange(3)
    for copied in (
        lambda: torch.tensor([1.0], device="meta"),
        lambda: torch.as_tensor(1, device="meta"),
        lambda: there.new_tensor([1.0]),
        lambda: here.to("meta"),
        lambda: there[here],
        lambda: torch.where(torch.tensor(True), there, there),
    ):
        with pytest.raises(Waits), watching():
            copied()
    with watching():
        assert to_device(here, "meta").is_meta
        assert (there * torch.tensor(2.0)).is_meta


def test_names_in_the_tables_are_schemes():
    for scheme in (*MIXTURES.values(), *(scheme for scheme, *_ in READS)):
        parse(scheme)


@pytest.mark.parametrize(
    "name", [*(n for n in pezoo.list_extensions() if overrides(entry(n).cls, "coordinates")), *MIXTURES]
)
def test_bounds_that_the_host_knows_hold(name):
    """Every coordinate lies in them, in each phase, in whole rows and packed ones, for queries alone too."""
    known = [{}, facts()["packed"], {"declared": torch.tensor([3 * LENGTH, LENGTH])}]
    for scheme in schemes(name)[:1]:
        built = Transformer(TransformerConfig(scheme=scheme, train_length=LENGTH, d_model=48, n_heads=3, n_layers=2))
        for phase in PHASES:
            for more in known:
                whole = built.positions(2, LENGTH, phase=phase, **{"rows": (3, 9)} | more)
                for positions in (whole, whole.slice(9, 12, 12)):
                    prepared = built.scheme.prepare(positions)
                    regions = [r for groups in prepared.layers for r in groups[0].composition.regions]
                    for here in (part.positions for region in regions for part in region.parts):
                        low, high = here.bounds or (-torch.inf, torch.inf)
                        assert all(low <= p.min() and p.max() <= high for p in (here.query, here.key))
