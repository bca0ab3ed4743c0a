"""What is under test, and what checks have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pezoo.composition import Composition
from pezoo.contract import Encoding, Extension, Positions, Shape, overrides
from pezoo.errors import UserError
from pezoo.model.config import TransformerConfig
from pezoo.model.transformer import Transformer
from pezoo.registry import Entry, make_config
from pezoo.scheme import MemberSpec, Spec, parse

LENGTH = 16
"""Training length of the models in the checks."""
FAR = 65_536
"""How far positions must stay apart."""
TOLERANCE = 2e-4
"""What counts as the same, relative to the largest logit."""
ROUNDING = 1e-5
"""What float32 may change in logits that are the same, relative to the largest."""
HOOKS = ("embed", "rotate", "bias", "distance_bias", "product", "content", "normalise", "change_values", "mix")
"""What an encoding brings positions in by."""


class CheckFailed(AssertionError):
    """A member does not do what it declares."""

    def __init__(self, expected: str, came: str) -> None:
        super().__init__(f"expected {expected}; came {came}")
        self.expected, self.came = expected, came


class NotApplicable(Exception):
    """The check has nothing to look at in this scheme."""


@dataclass(frozen=True)
class Subject:
    """What is under test: an encoding by itself, an extension on a host, or a layer schedule as a whole."""

    entry: Entry
    spec: Spec

    @property
    def cls(self) -> type[Encoding] | type[Extension]:
        """The member's class."""
        return self.entry.cls

    @property
    def is_extension(self) -> bool:
        """Whether the scheme is a host with this extension."""
        return issubclass(self.cls, Extension)

    @property
    def member(self) -> MemberSpec:
        """The member with its settings."""
        return next(m for m in self.spec.members if m.name == self.entry.name)

    @property
    def host(self) -> Spec:
        """The scheme without the member."""
        return Spec(tuple(m for m in self.spec.members if m.name != self.entry.name))

    @property
    def phases(self) -> tuple[str, ...]:
        """Phases to look at: testing; for an extension that draws, and one that acts in learning only, that as well."""
        if self.spec.layers:
            return ("test",)
        at = self.member.at
        learning = tuple(p for p in ("train", "tune") if p in at)[:1]
        if self.is_extension and (self.cls.traits.random or "test" not in at):
            return (*learning, *(p for p in at if p == "test"))
        return ("test",)

    @property
    def modes(self) -> tuple[bool, ...]:
        """Values of `causal` for which the scheme can be built."""
        try:
            self.model(causal=False)
        except UserError:
            return (True,)
        return (True, False)

    def variant(self, settings: dict[str, Any]) -> Spec:
        """The scheme with some of the member's settings changed."""
        return parse(dict(self.spec.data) | {self.entry.name: self.member.full | settings})

    def model(self, spec: Spec | None = None, *, randomise: bool = True, **config: Any) -> Transformer:
        """A small model in evaluation mode, with 3 heads and an attention sharp enough for positions to show.

        Parameters of the scheme are moved off their initial values, so that none hides behind a zero.
        """
        sizes = {"vocab_size": 16, "d_model": 48, "n_layers": 2, "n_heads": 3, "train_length": LENGTH} | config
        if layers := (spec or self.spec).layers:
            sizes["n_layers"] = len(layers)
        model = Transformer(TransformerConfig(scheme=spec or self.spec, **sizes)).eval()
        for block in model.blocks:
            block.attention.qkv.weight.data *= 5
            block.attention.out.weight.data *= 10
        model.head.weight.data *= 10
        if randomise:
            generator = torch.Generator().manual_seed(1)
            for parameter in model.scheme.parameters():
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        return model

    def lengths(self, *wanted: int, phase: str = "test") -> list[int]:
        """Those of the wanted lengths at which the scheme is defined; never none."""
        good = [n for n in wanted if self._scheme.undefined(n, phase) is None]
        if not good:
            raise NotApplicable(f"undefined at {', '.join(map(str, wanted))} tokens")
        return good

    @cached_property
    def _scheme(self) -> Composition:
        return self.model().scheme

    def cases(self, *wanted: int) -> list[tuple[str, int]]:
        """Phases and lengths to look at."""
        return [(phase, length) for phase in self.phases for length in self.lengths(*wanted, phase=phase)]


@dataclass(frozen=True)
class Check:
    """One property, and how it is looked at."""

    function: Callable[[Any], None]
    """Takes a `Subject`, or of `pezoo.testing.tasks` a task."""
    slow: bool = False
    once: bool = False
    """The property is of the member alone: one scheme is enough."""
    unless: Callable[[Entry], str | None] = lambda found: None
    """Why the check does not apply to a member; None if it does."""
    schedules: bool = False
    """The property is that of a whole model, and a layer schedule is held to it as well."""

    @property
    def summary(self) -> str:
        """What must hold, in a sentence."""
        return (self.function.__doc__ or "").strip()


CHECKS: dict[str, Check] = {}


def check(**facts: Any) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
    """Add a function to the kit, under its own name; `facts` as in `Check`."""

    def add(function: Callable[[Subject], None]) -> Callable[[Subject], None]:
        CHECKS[function.__name__] = Check(function, **facts)
        return function

    return add


def of_encodings(found: Entry) -> str | None:
    """Reason for what the encoding of a scheme decides."""
    return None if issubclass(found.cls, Encoding) else "the encoding decides"


def of_extensions(found: Entry) -> str | None:
    """Reason for what extensions alone do."""
    return None if issubclass(found.cls, Extension) else "for extensions"


def reads_none(found: Entry) -> str | None:
    """Reason for encodings that override no hook."""
    return of_encodings(found) or (None if any(overrides(found.cls, h) for h in HOOKS) else "reads no positions")


def has_none(found: Entry) -> str | None:
    """Reason for members without parameters."""
    config, _ = make_config(found.name, {})
    return None if found.cls.traits.parameters(Shape(48, 3, 2, LENGTH), config) else "no parameters"


def tokens(length: int, batch: int = 2, seed: int = 0) -> Tensor:
    """Random ids (B, L) below 16."""
    return torch.randint(16, (batch, length), generator=torch.Generator().manual_seed(seed))


def read(model: Transformer, ids: Tensor, **facts: Any) -> Tensor:
    """Logits of ids at positions with given facts (phase, declared, documents, valid, rows)."""
    return model(ids, positions_of(model, *ids.shape, **facts))


def positions_of(model: Transformer, batch: int, length: int, **facts: Any) -> Positions:
    """Positions of rows 0 ... B - 1 of random tokens, or with other facts."""
    return model.positions(batch, length, **{"rows": range(batch), "tokens": tokens(length, batch)} | facts)


def composition_of(model: Transformer, positions: Positions) -> Composition:
    """What the scheme adds to the first layer, for a random input of it."""
    return model.scheme.prepare(positions).reading(0, inputs(model, positions))[0].composition


def inputs(model: Transformer, positions: Positions) -> Tensor:
    """A random input of a layer, (B or R, Lk, D), float32."""
    size = (*positions.key.shape, model.config.d_model)
    rows = max(len(positions.key), len(positions.rows or ()))
    return torch.randn(rows, *size[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float32)


def gap(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value where that exceeds 1."""
    return (a.float() - b.float()).abs().max().item() / max(1.0, a.float().abs().max().item())


def equal(expected: Tensor, came: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Raise unless two tensors agree."""
    finite(came, what)
    if (off := gap(expected, came)) > tolerance:
        raise CheckFailed(f"{what} equal within {tolerance:g}", f"a difference of {off:.3g}")


def finite(came: Tensor, what: str) -> None:
    """Raise unless all is finite."""
    if not torch.isfinite(came).all():
        raise CheckFailed(f"finite {what}", "NaN or infinity")


def differs(a: Tensor, b: Tensor, what: str) -> None:
    """Raise if two tensors agree."""
    if gap(a, b) <= TOLERANCE:
        raise CheckFailed(f"{what} to differ", "the same")


def as_declared(holds: bool, trait: str, pairs: list[tuple[Tensor, Tensor]], what: str) -> None:
    """Where a trait holds all pairs agree; where it does not, some pair differs."""
    if not pairs:
        raise NotApplicable("undefined there")
    for a, b in pairs if holds else ():
        equal(a, b, f"{what} ({trait})")
    if not holds and all(gap(a, b) <= TOLERANCE for a, b in pairs):
        raise CheckFailed(f"{what} to differ ({trait})", "the same")


def logits_and_gradients(model: Transformer, ids: Tensor, phase: str = "test") -> dict[str, Tensor]:
    """Logits, and the gradient of every parameter that has one, of a loss of ordinary size."""
    with torch.enable_grad():
        logits = read(model, ids, phase=phase)
        logits.log_softmax(-1)[..., 0].mean().backward()
    found = {"logits": logits.detach()}
    return found | {f"gradient of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}


def acts(s: Subject) -> bool | None:
    """Whether an extension changes the logits of its host in some phase; None if they do not compare."""
    model, host = s.model(), s.model(s.host)
    sizes = {name: p.shape for name, p in model.named_parameters()}
    if any(p.shape != sizes.get(name) for name, p in host.named_parameters()):
        return None
    for phase in s.member.at:
        for length in (LENGTH, 4 * LENGTH):
            if all(m.scheme.undefined(length, phase) is None for m in (model, host)):
                there, here = (read(m, tokens(length), phase=phase) for m in (host, model))
                if not gap(there, here) <= TOLERANCE:
                    return True
    return False


def encodings(model: Transformer) -> list[Encoding]:
    """The encodings of a model's scheme."""
    return [member for member in model.scheme.members if isinstance(member, Encoding)]


def numbers(model: Transformer, phase: str, length: int, ids: Tensor | None = None) -> dict[str, Tensor]:
    """What a scheme makes of positions, of ids (2, L) for those that read them, and of no q and k, in both layers."""
    config, scheme = model.config, model.scheme
    where = positions_of(model, 2, length, phase=phase, **({} if ids is None else {"tokens": ids}))
    prepared, read = scheme.prepare(where), inputs(model, where)
    x = torch.zeros(2, length, config.d_model, dtype=torch.float32)
    q = torch.zeros(2, config.n_heads, length, config.d_model // config.n_heads, dtype=torch.float32)
    found = {"embeddings": prepared.embed(x)}
    for layer, (group,) in enumerate(prepared.layers):
        positions = group.composition.base[0].positions
        given = {"coordinates": positions.query, "distances": positions.ruler, "frequencies": positions.inv_freq}
        logits = prepared.logits(layer, q, q, x=read)
        given["logits without content"] = logits.masked_fill(logits == -torch.inf, 0.0)
        found |= {f"{name} of layer {layer}": tensor for name, tensor in given.items() if tensor is not None}
    return found
