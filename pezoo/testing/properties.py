"""The properties that make a member of the zoo, each a small function named after it: `pezoo check` runs them.

A check sees a member in a scheme (`Subject`) and raises `CheckFailed` with what was expected and what came. Checks
choose themselves by what a member declares and overrides: `unless` gives the reason why one has nothing to look at;
where that shows in a scheme only, it raises `NotApplicable`. A check compares behaviour with a declaration, or one way
of computing with another; values of formulas are for the tests of each member.
"""

import copy
import dataclasses
import pickle
import typing
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from pezoo import attention
from pezoo.compose import create
from pezoo.composition import Composition
from pezoo.contract import PHASES, Encoding, Extension, Positions, Shape, Undefined, overrides
from pezoo.errors import UserError
from pezoo.model.config import TransformerConfig
from pezoo.model.transformer import Transformer
from pezoo.registry import Entry, entries, entry, make_config
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


# ---- building -----------------------------------------------------------------------------------


@check(once=True)
def says_what_it_is(s: Subject) -> None:
    """It has a title and a class docstring, every setting has a help text, and deviations name checks."""
    missing = [name for name in ("title", "summary") if not getattr(s.entry, name)]
    missing += [f"help of setting {name}" for name, facts in s.entry.parameters.items() if not facts["help"]]
    if missing:
        raise CheckFailed("title, class docstring and a help text for each setting", f"no {', no '.join(missing)}")
    unknown = [name for name in s.cls.traits.deviations if name not in CHECKS]
    if unknown:
        raise CheckFailed("traits.deviations to name checks", ", ".join(unknown))


@check(schedules=True)
def builds_from_name_yaml_and_saved_settings(s: Subject) -> None:
    """Built from its name, from YAML, and again from its written-out settings, it is one and the same scheme."""
    text = yaml.safe_dump(s.spec.data, sort_keys=False)
    for form in (str(s.spec), s.spec.data, yaml.safe_load(text)):
        again = parse(form)
        if again != s.spec:
            raise CheckFailed(f"{form!r} to mean {s.spec}", str(again))
    ids = tokens(LENGTH)
    equal(read(s.model(), ids), read(s.model(parse(yaml.safe_load(text))), ids), "logits", 0.0)


@check(schedules=True)
def builds_at_any_size(s: Subject) -> None:
    """One head or many, odd widths, short training lengths: finite logits, or a refusal that says why."""
    built = 0
    for d_model, n_heads, train_length in ((16, 1, 1), (15, 3, 2), (8, 8, 3), (48, 6, 5)):
        sizes = {"d_model": d_model, "n_heads": n_heads, "n_layers": 1, "train_length": train_length}
        try:
            model = s.model(**sizes)
        except UserError:
            continue
        built += 1
        for phase in s.phases:
            for length in (1, train_length, 2 * train_length + 1):
                if model.scheme.undefined(length, phase) is None:
                    where = f"at {length} tokens with {', '.join(f'{k} = {v}' for k, v in sizes.items())}"
                    finite(read(model, tokens(length), phase=phase), f"logits {where}")
    if not built:
        raise CheckFailed("some size at which it can be built", "a refusal of each")


@check(once=True)
def counts_parameters_as_declared(s: Subject) -> None:
    """`traits.parameters` gives the number of parameters of one copy."""
    for settings in ({}, *_choices(s)):
        for shape in (Shape(48, 3, 2, LENGTH), Shape(32, 4, 3, 24, causal=False)):
            try:
                config, at = make_config(s.entry.name, dict(s.member.settings) | settings)
                member = s.cls(shape, config, at) if s.is_extension else s.cls(shape, config)
            except UserError:
                continue
            expected, came = s.cls.traits.parameters(shape, config), sum(p.numel() for p in member.parameters())
            if expected != came:
                raise CheckFailed(f"{expected} parameters with {settings or 'its settings'}", str(came))


def _choices(s: Subject) -> Iterator[dict[str, Any]]:
    """Settings with each boolean turned, and each other choice of a Literal."""
    for name, facts in s.entry.parameters.items():
        now = s.member.full[name]
        if isinstance(now, bool):
            yield {name: not now}
        for choice in facts["choices"]:
            if choice != now:
                yield {name: choice}


def no_choices(found: Entry) -> str | None:
    """Reason for members whose settings are numbers."""
    settings = found.parameters.values()
    some = any(facts["choices"] or isinstance(facts["default"], bool) for facts in settings)
    return None if some else "no setting with choices"


@check(unless=no_choices)
def every_choice_runs(s: Subject) -> None:
    """Each boolean turned and each other choice of a setting builds, and gives finite logits and gradients."""
    for settings in _choices(s):
        try:
            model = s.model(s.variant(settings))
        except UserError:
            if s.is_extension:
                continue  # this host is refused
            raise
        for phase in s.phases:
            for length in (LENGTH, 3 * LENGTH):
                if model.scheme.undefined(length, phase) is None:
                    for name, tensor in logits_and_gradients(model, tokens(length), phase).items():
                        finite(tensor, f"{name} at {length} tokens with {settings}")


@check(once=True, unless=lambda found: None if set(found.parameters) - {"at"} else "no settings")
def every_setting_matters(s: Subject) -> None:
    """Each setting changes logits, parameters or what is accepted, alone or beside some choice of another."""
    unused = [name for name in s.entry.parameters if name != "at" and not _matters(s, name)]
    if unused:
        raise CheckFailed("every setting to change something", f"no change by {', '.join(unused)}")


def _matters(s: Subject, name: str) -> bool:
    """Whether some other value of a setting changes anything, alone or beside some choice of another setting."""
    choices, refused = list(_choices(s)), True
    values = [c[name] for c in choices if name in c] or _other_values(s, name)
    others = [{n: _other_values(s, n)[0]} for n in s.entry.parameters if n not in ("at", name)]
    for beside in ({}, *(c for c in choices if name not in c), *others):
        if (plain := _traces(s, beside)) is None:
            continue
        for traces in (_traces(s, beside | {name: value}) for value in values):
            refused &= traces is None
            pairs = zip(plain, traces or plain, strict=True)
            if any(a.shape != b.shape or not torch.equal(a, b) for a, b in pairs):
                return True
    return refused  # each of its values: it decides what is accepted


def _other_values(s: Subject, name: str) -> list[Any]:
    """Values to try for a number, a list of numbers, or one of them that is unset."""
    now = s.member.full[name]
    if isinstance(now, bool | str):
        return [now]
    if isinstance(now, int | float):
        return [2 * now, now / 2 if isinstance(now, float) else now // 2, now + 1]
    if isinstance(now, list | tuple):
        return [[2.0] * n for n in range(1, 33)]
    hint = next(f.type for f in dataclasses.fields(s.cls.Config) if f.name == name)
    return [3, 2 * LENGTH, 100] if int in typing.get_args(hint) else [2.0, 0.5]


def _traces(s: Subject, settings: dict[str, Any]) -> list[Tensor] | None:
    """Logits in every phase at some lengths, and the number of parameters; None if the settings are refused."""
    try:
        model = s.model(s.variant(settings), train_length=8 * LENGTH)
    except UserError:
        return None
    traces = [torch.tensor(sum(p.numel() for p in model.parameters()))]
    for phase in s.member.at:
        for length in (4 * LENGTH, 8 * LENGTH, 24 * LENGTH):
            undefined = model.scheme.undefined(length, phase) is not None
            traces.append(torch.empty(0) if undefined else read(model, tokens(length, 1), phase=phase))
    return traces


@check(schedules=True)
def saves_and_loads(s: Subject) -> None:
    """State dict (into a model of another seed), pickle and deep copy keep the results."""
    model, ids = s.model(), tokens(LENGTH)
    fresh = s.model(randomise=False, seed=1)
    fresh.load_state_dict(model.state_dict())
    fresh.config = model.config  # the seed of random positions is not a weight
    for copied in (fresh, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        equal(read(model, ids), read(copied, ids), "logits of the copy", 0.0)


# ---- precision ----------------------------------------------------------------------------------


@check(schedules=True)
def shapes_and_dtypes(s: Subject) -> None:
    """bfloat16, float32 and float64 models give logits of the right shape and dtype, close to each other."""
    for phase, length in s.cases(LENGTH, 3 * LENGTH):
        half, ids = s.model().bfloat16(), tokens(length, 3)
        full, double = copy.deepcopy(half).float(), copy.deepcopy(half).double()
        models = {torch.bfloat16: half, torch.float32: full, torch.float64: double}
        found = {dtype: read(model, ids, phase=phase) for dtype, model in models.items()}
        for dtype, came in found.items():
            if came.shape != (3, length, 16) or came.dtype != dtype:
                raise CheckFailed(f"logits (3, {length}, 16) {dtype}", f"{tuple(came.shape)} {came.dtype}")
        equal(found[torch.float32], found[torch.bfloat16], "logits in bfloat16", 0.25)
        equal(found[torch.float32], found[torch.float64], "logits in float64")


@check()
def heads_of_any_width(s: Subject) -> None:
    """With heads of a given width, attention is as in a model that has this width from d_model / n_heads."""
    phase, length = s.cases(3 * LENGTH, LENGTH)[0]
    sizes = {"n_heads": 3, "n_layers": 2, "train_length": LENGTH}
    usual, given = create(s.spec, d_model=60, **sizes), create(s.spec, d_model=48, head_dim=20, **sizes)
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, length, 20, generator=generator)
    x = torch.randn(2, length, 60, generator=generator)
    shapes = [{name: p.shape for name, p in scheme.state_dict().items()} for scheme in (usual, given)]
    if shapes[0] == shapes[1]:  # else a parameter has the width of the model, and the numbers differ
        given.load_state_dict(usual.state_dict())
    for layer in range(2):
        facts = {"phase": phase, "rows": range(2), "tokens": tokens(length)}
        came, expected = (scheme.prepare(scheme.positions(2, length, **facts)) for scheme in (given, usual))
        came = came.attend(layer, q, k, v, "eager", x=x[..., :48])
        expected = expected.attend(layer, q, k, v, "eager", x=x)
        if came.shape != v.shape:
            raise CheckFailed(f"a result of shape {tuple(v.shape)}", str(tuple(came.shape)))
        equal(expected if shapes[0] == shapes[1] else came, came, "attention with head_dim=20")


@check()
def low_precision_leaves_no_trace(s: Subject) -> None:
    """A model that first ran in bfloat16 and then got its parameters in float32 is as a new one: nothing was kept."""
    sizes = {"n_heads": 12, "d_model": 192}  # ALiBi's slopes for 3 heads are exact in any dtype
    model, again = s.model(**sizes), s.model(**sizes)
    (length, *_) = s.lengths(3 * LENGTH, LENGTH)
    ids = tokens(length)
    read(model.bfloat16(), ids)
    model.float().load_state_dict(again.state_dict())
    equal(read(again, ids), read(model, ids), "logits after a call in bfloat16", 0.0)


@check()
def same_numbers_in_any_precision(s: Subject) -> None:
    """Coordinates, frequencies, biases, embeddings and draws are float32's under autocast and any default dtype."""
    for phase, length in s.cases(3 * LENGTH, LENGTH):
        model = s.model()
        expected = _numbers(model, phase, length)
        for what, precision in PRECISIONS.items():
            with precision():
                came = _numbers(model, phase, length)
            for name, tensor in came.items():
                if tensor.dtype != torch.float32:
                    raise CheckFailed(f"{name} in float32 under {what}, at {length} tokens", str(tensor.dtype))
                # What is added to q and k has their dtype, as their product has.
                exact = not (name.startswith("logits") and any(overrides(e, "rotate") for e in _encodings(model)))
                equal(expected[name], tensor, f"{name} under {what}, at {length} tokens", 0.0 if exact else 0.01)


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


PRECISIONS: dict[str, Callable[[], Any]] = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "a default dtype of bfloat16": lambda: _default(torch.bfloat16),
    "a default dtype of float64": lambda: _default(torch.float64),
}


def _encodings(model: Transformer) -> list[Encoding]:
    return [member for member in model.scheme.members if isinstance(member, Encoding)]


def _numbers(model: Transformer, phase: str, length: int, ids: Tensor | None = None) -> dict[str, Tensor]:
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


@check()
def distinct_far_positions(s: Subject) -> None:
    """Up to 65,536 tokens coordinates stay apart, and so do the vectors that are embedded and rotated at the ends."""
    if any(entry(m.name).cls.traits.tokens for m in s.spec.members):
        raise NotApplicable("several tokens may have one coordinate")
    model = s.model()
    length, composition = _far(s, model, FAR, FAR // 16, 16 * LENGTH, LENGTH)
    coordinates = composition.base[0].positions.query
    if coordinates.dtype != torch.float32:
        raise CheckFailed("coordinates in float32", str(coordinates.dtype))
    if (apart := len(coordinates[0].unique())) < length:
        raise CheckFailed(f"{length} distinct coordinates", f"{apart}")
    ends = torch.arange(length)
    ends = torch.cat((ends[:64], ends[64:][-64:]))
    for hook, vectors in _vectors(model, composition.base[0]).items():
        same = (vectors[ends][:, None] == vectors[ends][None]).all(dim=-1).sum() - len(ends)
        if 0 < same < len(ends) ** 2 - len(ends):  # else it reads no positions
            raise CheckFailed(f"{hook} to give different vectors at different positions", f"{same // 2} equal pairs")


@check()
def positions_survive_low_precision(s: Subject) -> None:
    """Far from the start, what a bfloat16 model embeds, rotates and adds to logits is that of float32, rounded."""
    half, seen = s.model().bfloat16(), []
    for model in (copy.deepcopy(half).float(), half):
        length, composition = _far(s, model, 4096, 16 * LENGTH, LENGTH)
        seen.append(_vectors(model, composition.base[0]) | _pairs(model, composition))
    for hook, expected in seen[0].items():
        equal(expected, seen[1][hook], f"{hook} in bfloat16 at {length} tokens", 0.05)
    for head in range(len(seen[0].get("bias", ()))):  # of the last query, for the nearest keys
        apart, came = (len(v["bias"][head, -32:].unique()) for v in seen)
        if came < 0.9 * apart:
            raise CheckFailed(f"{apart} different biases among the 32 nearest keys, as in float32", f"{came}")


def _far(s: Subject, model: Transformer, *wanted: int) -> tuple[int, Composition]:
    """The first of the wanted lengths at which the scheme is defined, and its first layer there."""
    for length in wanted:
        with suppress(Undefined):
            return length, composition_of(model, positions_of(model, 1, length))
    raise NotApplicable(f"undefined at {', '.join(map(str, wanted))} tokens")


def _vectors(model: Transformer, part: Any) -> dict[str, Tensor]:
    """One vector at every position, (L, d) each, as an encoding embeds and rotates it."""
    encoding, positions, dtype = part.encoding, part.positions, model.head.weight.dtype
    length, found = positions.query.shape[1], {}
    generator = torch.Generator().manual_seed(0)
    if overrides(encoding, "embed"):
        x = torch.randn(model.config.d_model, generator=generator).to(dtype) / model.config.d_model**0.5
        found["embed"] = encoding.embed(x.expand(1, length, -1), positions)[0].float()
    if overrides(encoding, "rotate"):
        heads = model.config.n_heads
        x = torch.randn(model.config.d_model // heads, generator=generator).to(dtype).expand(1, heads, length, -1)
        q, k = encoding.rotate(x, x, positions)
        found["rotate"], found["rotate of keys"] = q[0, 0].float(), k[0, 0].float()
    return found


def _pairs(model: Transformer, composition: Composition) -> dict[str, Tensor]:
    """Bias and content logits of the last query, (H, L) each."""
    length = composition.positions.query.shape[1]
    last = composition.slice(length - 1, length, length)
    size = (1, model.config.n_heads, length, model.config.d_model // model.config.n_heads)
    generator, dtype = torch.Generator().manual_seed(0), model.head.weight.dtype
    k = torch.randn(size, generator=generator).bfloat16().to(dtype)
    part = last.base[0]
    found = {"bias": last.bias(), "content": part.encoding.content(k[:, :, -1:], k, part.positions)}
    return {hook: t[0, :, 0].float() for hook, t in found.items() if t is not None}


# ---- lengths ------------------------------------------------------------------------------------


@check(schedules=True)
def any_length(s: Subject) -> None:
    """Length 1, odd lengths and 16 training lengths give finite logits, or are said to be undefined beforehand."""
    model = s.model()
    for phase in s.phases:
        for length in (1, 3, LENGTH - 1, LENGTH, LENGTH + 1, 63, 16 * LENGTH):
            reason = model.scheme.undefined(length, phase)
            try:
                came = read(model, tokens(length, 1), phase=phase)
            except Undefined as error:
                if reason is None:
                    raise CheckFailed(f"length {length} to be defined, as scheme.undefined says", str(error)) from None
                continue
            if reason is not None:
                raise CheckFailed(f"Undefined at length {length} ({reason})", "logits")
            finite(came, f"logits at length {length} in phase {phase}")


@check(schedules=True)
def length_order_does_not_matter(s: Subject) -> None:
    """The same lengths visited in another order give the same logits: nothing is remembered."""
    for phase in s.phases:
        lengths = s.lengths(LENGTH // 2, LENGTH, LENGTH + 1, 3 * LENGTH, 4 * LENGTH, phase=phase)
        model, again = s.model(), s.model()
        up = {n: read(model, tokens(n), phase=phase) for n in lengths}
        for n in reversed(lengths):
            equal(up[n], read(model, tokens(n), phase=phase), f"logits at {n} tokens after longer ones", 0.0)
            equal(up[n], read(again, tokens(n), phase=phase), f"logits at {n} tokens, the longest visited first,", 0.0)


@check()
def prefix_stable_as_declared(s: Subject) -> None:
    """Logits of a prefix are the same in a longer sequence if, and only if, `prefix_stable` says so."""
    for spec in (s.spec, *_fixed(s)):
        for phase in s.phases:
            model, pairs = s.model(spec), []
            holds = _stable(model, phase)
            lengths = [n for n in (3 * LENGTH, LENGTH) if model.scheme.undefined(n, phase) is None][:1]
            for length in lengths if holds or spec == s.spec else ():  # other settings may leave it nothing to do
                ids = tokens(length)
                full = read(model, ids, phase=phase)
                cuts = (length // 2 + 1, LENGTH - 1)
                pairs += [(full[:, :cut], read(model, ids[:, :cut], phase=phase)) for cut in cuts]
                if model.scheme.undefined(length + 5, phase) is None:
                    pairs.append((full, read(model, ids, phase=phase, declared=length + 5)))
            if pairs:
                trait = f"prefix_stable is {holds} for {spec}"
                as_declared(holds, trait, pairs, f"logits of a prefix in phase {phase}")


def _fixed(s: Subject) -> Iterator[Spec]:
    """The scheme with a number for a setting of an extension that is unset: often it fixes what followed the length."""
    for name in [n for n, value in s.member.full.items() if s.is_extension and value is None]:
        with suppress(UserError):
            spec = s.variant({name: 2})
            s.model(spec)
            yield spec


def _stable(model: Transformer, phase: str) -> bool:
    return all(m.prefix_stable for m in model.scheme.members if phase in getattr(m, "at", (phase,)))


@check()
def growing_generation_as_declared(s: Subject) -> None:
    """With a declared length that grows by each token, logits are those of the full pass where prefix-stable alone."""
    (length, *_) = s.lengths(3 * LENGTH, LENGTH)
    model, ids = s.model(), tokens(length)
    start = length // 2
    cache = model.cache(2, length)
    model(ids[:, :start], positions_of(model, 2, length, declared=start), cache)
    grown = [
        model(ids[:, t : t + 1], positions_of(model, 2, length, declared=t + 1), cache) for t in range(start, length)
    ]
    pairs = [(read(model, ids)[:, start:], torch.cat(grown, dim=1))]
    holds = model.scheme.prefix_stable
    as_declared(holds, f"prefix_stable is {holds}", pairs, "logits of growing generation")


def moves_nothing(found: Entry) -> str | None:
    """Reason for what leaves coordinates and frequencies as they are."""
    moving = any(overrides(found.cls, hook) for hook in ("coordinates", "frequencies") if hasattr(found.cls, hook))
    return of_extensions(found) or (None if moving else "changes no coordinates and no frequencies")


@check(unless=moves_nothing)
def settles_keys_as_they_come(s: Subject) -> None:
    """Where prefix-stable, coordinates and frequencies of keys stay as they are while other keys come after them."""
    for phase, length in s.cases(LENGTH, 2 * LENGTH + 1):
        model = s.model()
        if not _stable(model, phase):
            continue
        positions = positions_of(model, 2, length, phase=phase)
        whole = model.scheme.prepare(positions).layers
        for t in (1, length // 2):
            early = model.scheme.prepare(positions.slice(t - 1, t, t)).layers
            for (now, *_), (then, *_) in zip(whole, early, strict=True):
                for a, b in zip(now.composition.base, then.composition.base, strict=True):
                    equal(a.positions.key[:, :t], b.positions.key, f"coordinates when {t} tokens were there", 0.0)
                    equal(a.positions.query[:, t - 1 : t], b.positions.query, "coordinate of a query, alone,", 0.0)
                    if a.positions.inv_freq is not None:
                        equal(a.positions.inv_freq, b.positions.inv_freq, f"frequencies when {t} were there", 0.0)


@check(schedules=True)
def declared_lengths_by_row(s: Subject) -> None:
    """Rows of a batch with declared lengths of their own have the logits that they have alone."""
    for phase, longest in s.cases(3 * LENGTH, LENGTH):
        model, ids = s.model(), tokens(LENGTH // 2)
        lengths = (LENGTH - 1, longest)
        together = read(model, ids, phase=phase, declared=torch.tensor(lengths))
        for row, declared in enumerate(lengths):
            alone = read(model, ids[row : row + 1], phase=phase, declared=declared, rows=(row,))
            equal(alone, together[row : row + 1], f"logits of a row declared {declared} tokens long")


# ---- what is seen -------------------------------------------------------------------------------


@check(schedules=True)
def causal(s: Subject) -> None:
    """Changing a token leaves the logits before it alone."""
    for phase, length in s.cases(LENGTH, 2 * LENGTH + 1):
        model, ids = s.model(), tokens(length)
        other, at = ids.clone(), 2 * length // 3
        other[:, at] = (other[:, at] + 1) % 16
        before, after = read(model, ids, phase=phase), read(model, other, phase=phase)
        equal(before[:, :at], after[:, :at], "logits before the changed token", 0.0)
        differs(before[:, at:], after[:, at:], "logits from the changed token on")


@check(schedules=True)
def packed_documents_do_not_leak(s: Subject) -> None:
    """Each of two documents in one row has the logits that it has alone, in a decoder and in an encoder."""
    for causal in s.modes:
        for phase, n in s.cases(3 * LENGTH, LENGTH):
            model = s.model(causal=causal)
            a, b = tokens(n // 2 + 1, 1), tokens(n - n // 2 - 1, 1, seed=1)
            documents = torch.cat((torch.zeros_like(a), torch.ones_like(b)), dim=1)
            together = read(model, torch.cat((a, b), dim=1), documents=documents, phase=phase)
            for ids, came in ((a, together[:, : a.shape[1]]), (b, together[:, a.shape[1] :])):
                equal(read(model, ids, declared=n, phase=phase), came, f"logits of a packed document (causal={causal})")


@check(schedules=True)
def padding_does_not_leak(s: Subject) -> None:
    """Padding on either side leaves the logits of the tokens as they are without it, in a decoder and in an encoder."""
    for causal in s.modes:
        for phase, n in s.cases(3 * LENGTH, LENGTH):
            model, ids, filler = s.model(causal=causal), tokens(n - 3), tokens(3, seed=2)
            alone = read(model, ids, declared=n, phase=phase)
            for side, parts in (("left", (filler, ids)), ("right", (ids, filler))):
                valid = torch.cat([torch.full_like(p, p is ids) for p in parts], dim=1).bool()
                came = read(model, torch.cat(parts, dim=1), valid=valid, phase=phase)[valid].view_as(alone)
                equal(alone, came, f"logits with padding on the {side} (causal={causal})")


@check(schedules=True)
def decodes_like_the_full_pass(s: Subject) -> None:
    """Through the cache, token by token and in uneven pieces: the logits of a full pass at that declared length."""
    for phase, length in s.cases(LENGTH, 2 * LENGTH + 1):
        model, ids = s.model(), tokens(length)
        full, positions = read(model, ids, phase=phase), positions_of(model, 2, length, phase=phase)
        for pieces in ([1] * length, [length // 3, 1, length - length // 3 - 1]):
            cache = model.cache(2, length)
            came = torch.cat([model(piece, positions, cache) for piece in ids.split(pieces, dim=1)], dim=1)
            equal(full, came, f"logits decoded in pieces of {pieces[0]}")


@check(schedules=True)
def decodes_padded_and_packed_rows(s: Subject) -> None:
    """A batch with a row padded on the left and a packed row decodes through the cache as in a full pass."""
    for phase in s.phases:
        length = s.lengths(2 * LENGTH + 1, LENGTH, phase=phase)[0]
        model, ids = s.model(), tokens(length)
        place = torch.arange(length)
        valid = torch.stack((place >= 3, place >= 0))
        documents = torch.stack((torch.zeros_like(place), (place > length // 2).long()))
        positions = positions_of(model, 2, length, valid=valid, documents=documents, phase=phase)
        cache = model.cache(2, length)
        came = torch.cat([model(piece, positions, cache) for piece in ids.split(1, dim=1)], dim=1)
        equal(model(ids, positions)[valid], came[valid], "logits of padded and packed rows, decoded,")


@check(unless=of_encodings, once=True)
def stands_beside_any_encoding(s: Subject) -> None:
    """Beside each encoding of the zoo it decodes like the full pass, or is refused with a reason."""
    ids, sizes = tokens(LENGTH), [1, LENGTH // 2, LENGTH // 2 - 1]
    zoo = [e for e in entries().values() if e.kind == "encoding" and e.cls.__module__.startswith("pezoo.encodings.")]
    for other in (e for e in zoo if e.cls is not s.cls):
        with suppress(UserError):  # when it is built, or when it meets what the other has made of q and k
            model = s.model(parse(f"{s.spec}+{other.name}"))
            positions, cache = positions_of(model, 2, LENGTH, phase="test"), model.cache(2, LENGTH)
            came = torch.cat([model(piece, positions, cache) for piece in ids.split(sizes, dim=1)], dim=1)
            # Two of them make the model's numbers larger on the way than one does.
            equal(model(ids, positions), came, f"logits beside {other.name}, decoded,", 10 * TOLERANCE)


# ---- what is declared ---------------------------------------------------------------------------


@check(unless=of_encodings)
def tells_order_in_an_encoder_as_declared(s: Subject) -> None:
    """If `bidirectional`, one layer of an encoder tells order on both sides, and the sides apart; else no direction."""
    bidirectional = s.cls.traits.bidirectional
    try:
        model = s.model(causal=False, n_layers=1)
    except UserError as reason:
        if bidirectional:
            raise CheckFailed("an encoder, for bidirectional is True", str(reason)) from None
        return
    ids = torch.arange(LENGTH)[None]
    there, reversed_ = read(model, ids), read(model, ids.flip(1)).flip(1)
    if not bidirectional:
        equal(there, reversed_, "logits of the reversed sequence (bidirectional is False)")
        return
    differs(there, reversed_, "logits of the reversed sequence (bidirectional is True)")
    swapped = ids.clone()
    swapped[:, [6, 10]] = ids[:, [10, 6]]
    back = read(model, swapped)
    for side, at in (("ahead of the first token", 0), ("behind the last", -1)):
        differs(there[:, at], back[:, at], f"logits when two tokens {side} change places (bidirectional is True)")


@check()
def shift_invariant_as_declared(s: Subject) -> None:
    """Adding a constant to all coordinates leaves the logits if, and only if, `shift_invariant` is declared."""
    invariant = [entry(m.name).cls.traits.shift_invariant for m in s.host.members]
    if not all(invariant):
        raise NotApplicable("the host is not shift-invariant")
    model, holds, pairs = s.model(), s.cls.traits.shift_invariant, []
    for phase, length in s.cases(3 * LENGTH, LENGTH // 2):
        ids = tokens(length)
        positions = positions_of(model, 2, length, phase=phase)
        try:
            moved = model(ids, positions.map(lambda p, index: p + 5.0, (5.0, 1.0)))
        except Undefined:
            continue
        pairs.append((model(ids, positions), moved))
    as_declared(holds, f"shift_invariant is {holds}", pairs, "logits at coordinates moved by 5")


@check()
def rounding_decides_nothing(s: Subject) -> None:
    """At coordinates between whole numbers logits are the same by whatever way their distances are computed."""
    kept, attention.CHUNK = attention.CHUNK, 40
    invariant = all(entry(m.name).cls.traits.shift_invariant for m in s.spec.members)
    try:
        for causal in s.modes:
            models = {backend: s.model(backend=backend, causal=causal) for backend in attention.BACKENDS}
            for phase in s.phases:
                (length, *_) = s.lengths(6 * LENGTH, LENGTH, phase=phase)
                for step in (0.1, 1 / 7):  # many distances lie where float32 puts them on either side of a number
                    _same_by_any_way(models, length, step, phase, invariant)
    finally:
        attention.CHUNK = kept


def _same_by_any_way(models: dict[str, Transformer], length: int, step: float, phase: str, invariant: bool) -> None:
    model, ids = models["eager"], tokens(length)
    steps = positions_of(model, 2, length, phase=phase).scaled(step)
    expected, ways = model(ids, steps), {"steps": steps, "subtraction": steps.replace(spacing=None)}
    if invariant:
        ways["subtraction of coordinates that lie 1/7 higher"] = steps.map(lambda p, index: p + 1 / 7)
    for way, positions in ways.items():
        what = f"logits with distances by {way} at coordinates {step:.3g} apart"
        for name, other in models.items():
            with suppress(Undefined, UserError):
                equal(expected, other(ids, positions), f"{what} ({name})")


@check(unless=reads_none)
def contextual_as_declared(s: Subject) -> None:
    """Other coordinates leave the logits alone if, and only if, `contextual` is declared."""
    model, ids, holds = s.model(), tokens(LENGTH), s.cls.traits.contextual
    positions = positions_of(model, 2, LENGTH)
    bent = positions.map(lambda p, index: p**2 / LENGTH)
    pairs = [(model(ids, positions), model(ids, bent))]
    as_declared(holds, f"contextual is {holds}", pairs, "logits at bent coordinates")


@check()
def random_as_declared(s: Subject) -> None:
    """Another seed gives other coordinates in some phase if, and only if, `random` is declared."""
    pairs = []
    for phase in [p for p in ("train", "tune", "test") if p in s.member.at]:
        for length in s.lengths(LENGTH, phase=phase):
            model, ids = s.model(), tokens(length, 3)
            first = read(model, ids, phase=phase)
            model.config = replace(model.config, seed=1)
            pairs.append((first, read(model, ids, phase=phase)))
    holds = not s.cls.traits.random
    as_declared(holds, f"random is {not holds}", pairs, "logits of another seed")


@check()
def draws_by_seed_and_sequence_alone(s: Subject) -> None:
    """A seed draws the same for a sequence, whatever torch's global generator does and what else is in the batch."""
    ids = tokens(LENGTH, 3)
    for phase, _ in s.cases(LENGTH):

        def logits(rows: tuple[int, ...], around: int, phase: str = phase) -> Tensor:
            torch.manual_seed(around)
            return read(s.model(), ids[rows[0] - 4 :], phase=phase, rows=rows)

        first = logits((4, 5, 6), 0)
        equal(first, logits((4, 5, 6), 1), f"logits of the same seed in phase {phase}", 0.0)
        equal(first[1:], logits((5, 6), 0), f"logits in a smaller batch in phase {phase}")


def no_training(found: Entry) -> str | None:
    """Reason for what does not act in training."""
    return of_extensions(found) or (None if "train" in found.cls.default_at else "does not act in training")


@check(once=True, unless=no_training)
def training_stays_in_its_extent(s: Subject) -> None:
    """No coordinate and no distance of training reaches the extent that encodings are told, to size tables by."""
    scheme = s.model().scheme
    (plain,) = scheme.parts
    extent = plain.encodings[0][0].shape.extent
    positions = Positions.build(LENGTH, 64, phase="train", rows=range(64), tokens=tokens(LENGTH, 64))
    for layer in range(2):
        here = plain.positions_at(positions, layer)
        largest = max(float(t.max()) for t in (here.query, here.key, here.ruler) if t is not None)
        if largest >= extent:
            raise CheckFailed(f"coordinates of training below the extent {extent}", f"{largest:g}")


@check(unless=of_extensions)
def phases_alike_as_declared(s: Subject) -> None:
    """An extension for which nobody has to say the phase gives the same logits in training, tuning and testing."""
    model = s.model()
    if model.scheme.differs_by_phase(PHASES):
        raise NotApplicable("its phase must be said")
    if s.cls.traits.random:
        raise NotApplicable("each phase draws anew")
    for length in s.lengths(LENGTH, 3 * LENGTH):
        there, *others = (read(model, tokens(length), phase=phase) for phase in PHASES)
        for phase, here in zip(PHASES[1:], others, strict=True):
            equal(there, here, f"logits in phase {phase}, which {s.entry.name}.same_in says are those of training", 0.0)


# ---- what an extension may change ---------------------------------------------------------------


def no_neutral(found: Entry) -> str | None:
    """Reason for extensions that cannot be set to change nothing."""
    return of_extensions(found) or ("no neutral settings are declared" if found.cls.traits.neutral is None else None)


@check(unless=no_neutral)
def neutral_settings_change_nothing(s: Subject) -> None:
    """With the settings that `traits.neutral` names, the scheme without the member is reproduced bit for bit."""
    neutral = s.cls.traits.neutral
    model, host = (s.model(spec, randomise=False, backend="eager") for spec in (s.variant(dict(neutral)), s.host))
    _same(model, host, s.phases, (LENGTH, 3 * LENGTH), f"logits with {dict(neutral) or 'initial parameters'}")


def no_factor(found: Entry) -> str | None:
    """Reason for what has no factor that follows the length."""
    factor = found.parameters.get("factor", {"default": 1.0})["default"]
    return of_extensions(found) or ("no factor that is unset" if factor is not None else None)


@check(unless=no_factor)
def unset_factor_spares_training_lengths(s: Subject) -> None:
    """A factor that is left unset changes nothing, bit for bit, up to the training length itself."""
    if s.member.full["factor"] is not None:
        raise NotApplicable("the factor is set")
    model, host = (s.model(spec, backend="eager") for spec in (s.spec, s.host))
    _same(model, host, s.phases, (LENGTH - 1, LENGTH), "logits with an unset factor")


def _same(model: Transformer, host: Transformer, phases: tuple[str, ...], lengths: tuple[int, ...], what: str) -> None:
    for phase in phases:
        within = [n for n in lengths if phase == "test" or n <= LENGTH]
        for length in [n for n in within if host.scheme.undefined(n, phase) is None]:
            expected, came = (read(m, tokens(length), phase=phase) for m in (host, model))
            equal(expected, came, f"{what} at {length} tokens in phase {phase}", 0.0)


def no_frequencies(found: Entry) -> str | None:
    """Reason for what leaves frequencies alone."""
    return of_extensions(found) or (None if overrides(found.cls, "frequencies") else "changes no frequencies")


@check(once=True, unless=no_frequencies)
def slows_the_slow_frequencies_most(s: Subject) -> None:
    """A rule that changes frequencies slows a slower one at least as much as a faster one."""
    config, at = make_config(s.entry.name, dict(s.member.settings))
    extension = s.cls(Shape(64, 1, 1, 512), config, at)
    before = 10000.0 ** -(torch.arange(32) / 32)[None]
    ratio = (extension.frequencies(before, Positions.build(1, declared=4096, phase="test")) / before)[0]
    rises = ratio[1:] - ratio[:-1]
    if (rises > 1e-5).any():
        k = int(rises.argmax())
        came = f"{ratio[k]:.3g}, then {ratio[k + 1]:.3g}"
        raise CheckFailed("new over old frequency never to rise from fast to slow", came)


@check(unless=lambda found: None if of_encodings(found) else reads_none(found))
def positions_matter(s: Subject) -> None:
    """An encoding tells order to a single query of one layer; an extension changes the logits of its host."""
    if s.is_extension:
        changes = acts(s)
        if changes is None:
            raise NotApplicable("the host has tables of another size without it")
        if not changes:
            raise CheckFailed(f"{s.entry.name} to change the logits in some phase", "the same")
        return
    model, ids = s.model(n_layers=1), torch.arange(LENGTH)[None]
    swapped = ids.clone()
    swapped[:, [2, 9]] = ids[:, [9, 2]]
    differs(read(model, ids)[:, -1], read(model, swapped)[:, -1], "the last logits after two tokens change places")


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


# ---- computing ----------------------------------------------------------------------------------


@check(schedules=True)
def back_ends_equal_eager(s: Subject) -> None:
    """Every back-end that accepts the scheme gives eager's logits and gradients, in small chunks, in an encoder too."""
    chunk, attention.CHUNK = attention.CHUNK, 7
    try:
        for causal in s.modes:
            for phase, length in s.cases(2 * LENGTH + 1, LENGTH)[:: 2 if causal else 1][:2]:
                ids = tokens(length)
                expected = logits_and_gradients(s.model(backend="eager", causal=causal), ids, phase)
                for backend in [b for b in attention.BACKENDS if b != "eager"]:
                    try:
                        came = logits_and_gradients(s.model(backend=backend, causal=causal), ids, phase)
                    except UserError:
                        continue  # refused
                    for name, tensor in expected.items():
                        equal(tensor, came[name], f"{backend}'s {name} at {length} tokens (causal={causal})", 1e-3)
    finally:
        attention.CHUNK = chunk


def logits_and_gradients(model: Transformer, ids: Tensor, phase: str = "test") -> dict[str, Tensor]:
    """Logits, and the gradient of every parameter that has one, of a loss of ordinary size."""
    with torch.enable_grad():
        logits = read(model, ids, phase=phase)
        logits.log_softmax(-1)[..., 0].mean().backward()
    found = {"logits": logits.detach()}
    return found | {f"gradient of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}


class _Largest(TorchDispatchMode):
    """Remembers the largest memory that one tensor takes, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.shape = 0, ()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().nbytes() > self.bytes:
                self.bytes, self.shape = tensor.untyped_storage().nbytes(), tuple(tensor.shape)
        return result


@check(schedules=True)
def memory_is_linear(s: Subject) -> None:
    """No long forward holds a tensor of all pairs of tokens, by the chunked back-end or by the one that is chosen."""
    length, kept = 512, (attention.CHUNK, attention.PAIRS)
    attention.CHUNK, attention.PAIRS = 8, 8 * length
    try:
        for phase, backend in product(s.phases, ("chunked", "auto")):
            lengths = (length // 16, length // 8, 2 * length)
            models = (s.model(train_length=n, n_layers=1, backend=backend) for n in lengths)
            model = next((m for m in models if m.scheme.undefined(2 * length, phase) is None), None)
            if model is None:
                raise NotApplicable(f"undefined at {2 * length} tokens")
            size, shape = _largest(model, length, phase)
            if size >= 4 * length**2 and _largest(model, 2 * length, phase)[0] > 3 * size:  # else it is only wide
                raise CheckFailed(f"no tensor of {length} x {length} numbers or more", f"one of shape {shape}")
    finally:
        attention.CHUNK, attention.PAIRS = kept


def _largest(model: Transformer, length: int, phase: str) -> tuple[int, tuple[int, ...]]:
    """Bytes and shape of the largest tensor of a forward."""
    with _Largest() as largest:
        read(model, tokens(length, 1), phase=phase)
    return largest.bytes, largest.shape


@check(schedules=True)
def every_parameter_learns(s: Subject) -> None:
    """Every gradient is finite. Every parameter has one, leaves the value it begins with, and changes the logits."""
    gradients = _gradients(s, 1, (1, 3))
    still = [name for name, total in gradients.items() if not total.any()]
    if still:
        raise CheckFailed("a gradient for every parameter", f"none for {', '.join(still)}")
    if stuck := _stuck(s, list(gradients)):
        raise CheckFailed("that training moves every parameter from where it begins", f"{', '.join(stuck)} stays there")
    if ignored := _ignored(s, list(gradients)):
        raise CheckFailed("logits that each parameter changes", f"the same, whatever {', '.join(ignored)}")


def _stuck(s: Subject, names: list[str]) -> list[str]:
    """Parameters that a few steps of training leave at their initial values, such as one at the end of a clamp."""
    for phase in dict.fromkeys(("train", *s.phases)):
        for length in (LENGTH, 3 * LENGTH):
            model = s.model(randomise=False)
            if not names or model.scheme.undefined(length, phase) is not None:
                continue
            parameters = dict(model.scheme.named_parameters())
            begun = {name: parameters[name].detach().clone() for name in names}
            for _ in range(3):  # what lies behind a layer of zeros has no gradient in the first
                model.zero_grad()
                logits_and_gradients(model, tokens(length), phase)
                for parameter in parameters.values():
                    parameter.data -= 0 if parameter.grad is None else 0.01 * parameter.grad.sign()
            names = [name for name in names if torch.equal(parameters[name], begun[name])]
    return names


def _ignored(s: Subject, names: list[str]) -> list[str]:
    """Parameters that may move without a change: softmax ignores them, and their gradient is rounding."""
    model, generator = s.model(), torch.Generator().manual_seed(0)
    for phase in dict.fromkeys(("train", *s.phases)):
        for length in (LENGTH, 3 * LENGTH):
            if not names or model.scheme.undefined(length, phase) is not None:
                continue
            ids, found = tokens(length), []
            before = read(model, ids, phase=phase)
            for name in names:
                parameter = model.scheme.get_parameter(name)
                kept = parameter.data
                parameter.data = kept + 0.3 * torch.randn(kept.shape, generator=generator)
                if gap(before, read(model, ids, phase=phase)) > ROUNDING:
                    found.append(name)
                parameter.data = kept
            names = [name for name in names if name not in found]
    return names


@check(unless=has_none)
def every_row_learns(s: Subject) -> None:
    """Every row of every parameter gets a gradient at some length: no part of a table lies idle."""
    for name, total in _gradients(s, 8, (1, 3)).items():
        idle = (total.flatten(1).sum(1) if total.ndim > 1 else total) == 0
        if idle.any() and not idle.all():
            raise CheckFailed(f"a gradient for every row of {name}", f"none for {int(idle.sum())} of {len(idle)}")


def _gradients(s: Subject, scale: int, multiples: tuple[int, ...]) -> dict[str, Tensor]:
    """Absolute gradients of the scheme's parameters, summed over phases and lengths."""
    sums: dict[str, Tensor] = {}
    for phase in dict.fromkeys(("train", *s.phases)):
        for length in (scale * LENGTH * m for m in multiples):
            model = s.model(train_length=scale * LENGTH)
            if model.scheme.undefined(length, phase) is not None:
                continue
            found = logits_and_gradients(model, tokens(length), phase)
            for name, gradient in found.items():
                finite(gradient, f"{name} at {length} tokens")
            for name, parameter in model.scheme.named_parameters():
                gradient = found.get(f"gradient of scheme.{name}", torch.zeros_like(parameter))
                sums[name] = sums.get(name, 0) + gradient.abs()
    return sums


def no_bias(found: Entry) -> str | None:
    """Reason for encodings without a bias."""
    some = any(overrides(found.cls, hook) for hook in ("bias", "distance_bias") if hasattr(found.cls, hook))
    return of_encodings(found) or (None if some else "no bias")


@check(unless=no_bias)
def bias_is_not_constant(s: Subject) -> None:
    """A bias differs from pair to pair, in every head."""
    model = s.model()
    composition = composition_of(model, positions_of(model, 1, LENGTH))
    bias, visible = composition.bias(), composition.positions.visible()
    spread = bias.masked_select(visible[:, None]).view(*bias.shape[:2], -1).std(dim=-1)
    if (spread < 1e-6).any():
        head = int(spread[0].argmin())
        raise CheckFailed("a bias that depends on the pair, in every head", f"a constant in head {head}")


def no_reach(found: Entry) -> str | None:
    """Reason for what does not say where the keys lie that it shows."""
    return of_extensions(found) or (None if overrides(found.cls, "reach") else "states no reach")


@check(unless=no_reach)
def reach_holds_what_is_seen(s: Subject) -> None:
    """Every key that the mask shows to some queries lies in the ranges that `reach` states for them."""
    for causal in s.modes:
        for phase, length in s.cases(5 * LENGTH, LENGTH):
            model = s.model(causal=causal)
            composition = model.scheme.prepare(positions_of(model, 1, length, phase=phase)).layers[0][0].composition
            visible, key = composition.visible()[0], torch.arange(length)
            for width in (1, LENGTH // 2 + 1, length):
                for first in range(0, length, width):
                    last = min(first + width, length) - 1
                    ranges = composition.reach(first, last, length)
                    inside = torch.stack([(a <= key) & (key < b) for a, b in ranges] or [key < 0]).any(0)
                    outside = (visible[first : last + 1].any(0) & ~inside).nonzero().flatten().tolist()
                    where = f"(causal={causal}, phase {phase})"
                    if outside:
                        seen = f"keys seen by queries {first} ... {last} in {ranges} {where}"
                        raise CheckFailed(seen, f"key {outside[0]}")
                    start, stop = max(0, ranges[0][0]), ranges[-1][1]
                    part, expected = composition.slice(first, last + 1, stop, start), visible[first : last + 1]
                    equal(expected[:, start:stop], part.visible()[0], f"mask of keys {start} ... {stop - 1} {where}", 0)


def no_distance_mask(found: Entry) -> str | None:
    """Reason for what does not state its mask by distance."""
    return of_extensions(found) or (None if overrides(found.cls, "distance_mask") else "states no mask by distance")


@check(unless=no_distance_mask)
def mask_by_distance_is_the_mask(s: Subject) -> None:
    """What `distance_mask` says of distances is what `mask` says of pairs."""
    for causal in s.modes:
        for phase, length in s.cases(5 * LENGTH, LENGTH):
            model = s.model(causal=causal)
            composition = model.scheme.prepare(positions_of(model, 1, length, phase=phase)).layers[0][0].composition
            for extension in composition.extensions:
                stated = extension.distance_mask(composition.positions.steps())
                if stated is not None:
                    mask = extension.mask(composition.positions)
                    equal(mask, stated, f"mask by distance (causal={causal}, phase {phase})", 0)


@check()
def tokens_as_declared(s: Subject) -> None:
    """Other ids of the tokens change what is made of positions if, and only if, the trait `tokens` is declared."""
    pairs, holds = [], not any(entry(m.name).cls.traits.tokens for m in s.spec.members)
    for phase, length in s.cases(LENGTH, 3 * LENGTH):
        model = s.model()
        here, there = (_numbers(model, phase, length, tokens(length, 2, seed)) for seed in (0, 1))
        pairs += [(here[name], there[name]) for name in here if here[name].shape == there[name].shape]
    as_declared(holds, f"tokens is {not holds}", pairs, "numbers for other tokens")


@check(slow=True, once=True)
def compiles(s: Subject) -> None:
    """torch.compile leaves the logits unchanged."""
    model, ids = s.model(), tokens(LENGTH)
    expected = read(model, ids)
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about itself
        came = torch.compile(model)(ids)
    equal(expected, came, "compiled logits", 1e-3)
