"""The conformance kit: what it means to be a member of the zoo, as small checks that choose themselves by a member's traits.

`check_encoding("alibi")`, or a class, or the command `pezoo check NAME|FILE.py`. An extension is checked on a representative of each kind of encoding that
it fits. Each check compares behaviour with a declaration or with the eager definition; a failure says what was expected, what came, and what to type to see it.
"""

import copy
import pickle
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import yaml
from torch import Tensor

from pezoo import attention
from pezoo.contract import Encoding, Extension, Positions, Shape, Undefined, overrides
from pezoo.errors import UserError
from pezoo.registry import Entry, entries, entry, make_config
from pezoo.scheme import Spec, fits, parse
from pezoo.transformer import Transformer, TransformerConfig

LENGTH = 16
"""Training length of the models in the checks: odd head counts and odd lengths on purpose."""
FAR = 65_536
TOLERANCE = 2e-4


class CheckFailed(AssertionError):
    """A member does not do what it declares."""

    def __init__(self, expected: str, came: str) -> None:
        super().__init__(f"expected {expected}; came {came}")
        self.expected, self.came = expected, came


class NotApplicable(Exception):
    """The check has nothing to look at in this member."""


@dataclass(frozen=True)
class Outcome:
    """How one check ended."""

    scheme: str
    check: str
    status: str
    """pass, fail, known (a declared deviation) or skip."""
    message: str = ""
    snippet: str = ""


@dataclass(frozen=True)
class Subject:
    """A member under test, in a scheme."""

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

    def model(self, spec: Spec | None = None, *, randomise: bool = True, **config: Any) -> Transformer:
        """A small model in evaluation mode; parameters of the scheme are moved off their initial values, so that none hides behind a zero."""
        facts = {"vocab_size": 16, "d_model": 48, "n_layers": 2, "n_heads": 3, "train_length": LENGTH} | config
        model = Transformer(TransformerConfig(scheme=spec or self.spec, **facts)).eval()
        if randomise:
            generator = torch.Generator().manual_seed(1)
            for parameter in model.scheme.parameters():
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
            for block in model.blocks:  # sharper attention than at initialisation, so that positions show
                block.attention.qkv.weight.data *= 10
        return model

    def lengths(self, *wanted: int) -> list[int]:
        """Those of the wanted lengths at which the scheme is defined; never none."""
        scheme = self.model().scheme
        good = [n for n in wanted if scheme.undefined(n) is None]
        if not good:
            raise NotApplicable(f"undefined at {', '.join(map(str, wanted))} tokens")
        return good


Check = Callable[[Subject], None]
CHECKS: dict[str, Check] = {}
SLOW: set[str] = set()


def check(function: Check) -> Check:
    """Add a check to the kit, under its own name."""
    CHECKS[function.__name__] = function
    return function


def tokens(length: int, batch: int = 2, seed: int = 0) -> Tensor:
    """Random ids (B, L) below 16."""
    return torch.randint(16, (batch, length), generator=torch.Generator().manual_seed(seed))


def equal(expected: Tensor, came: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Raise unless two tensors agree, relative to the largest value expected."""
    if not torch.isfinite(came).all():
        raise CheckFailed(f"finite {what}", "NaN or infinity")
    off = (expected.float() - came.float()).abs().max().item()
    limit = tolerance * max(1.0, expected.float().abs().max().item())
    if off > limit:
        raise CheckFailed(f"{what} equal within {limit:.1g}", f"a difference of {off:.3g}")


def differs(a: Tensor, b: Tensor, what: str) -> None:
    """Raise if two tensors agree."""
    if (a.float() - b.float()).abs().max().item() <= TOLERANCE:
        raise CheckFailed(f"{what} to differ", "the same")


def declared_length(model: Transformer, ids: Tensor, declared: int) -> Tensor:
    """Logits of ids as the beginning of a sequence of `declared` tokens."""
    return model(ids, model.positions(*ids.shape, declared=declared))


# ---- building -----------------------------------------------------------------------------------


@check
def builds_from_defaults_yaml_and_its_own_config(s: Subject) -> None:
    """Built from its name, from YAML, and from its written-out settings, it is one and the same scheme."""
    text = yaml.safe_dump(s.spec.data)
    for form in (str(s.spec), s.spec.data, yaml.safe_load(text)):
        again = parse(form)
        if again != s.spec:
            raise CheckFailed(f"{form!r} to mean {s.spec}", str(again))
    ids = tokens(LENGTH)
    equal(s.model()(ids), s.model(parse(yaml.safe_load(text)))(ids), "logits", 0.0)


@check
def has_facts(s: Subject) -> None:
    """It has a title, a summary, and a docstring with its equation's source."""
    missing = [name for name in ("title", "summary") if not getattr(s.entry, name)]
    if missing:
        raise CheckFailed("a title and a class docstring", f"no {' and no '.join(missing)}")


@check
def counts_parameters_as_declared(s: Subject) -> None:
    """`traits.parameters` gives the number of parameters of one copy."""
    shape = Shape(48, 3, 2, LENGTH)
    for settings in ({}, *_choices(s.entry)):
        config, at = make_config(s.entry.name, settings)
        member = s.cls(shape, config, at) if s.is_extension else s.cls(shape, config)
        expected, came = s.cls.traits.parameters(shape, config), sum(p.numel() for p in member.parameters())
        if expected != came:
            raise CheckFailed(f"{expected} parameters with {settings or 'default settings'}", str(came))


def _choices(found: Entry) -> Iterator[dict[str, Any]]:
    """Settings with each boolean turned and each other choice of a Literal."""
    for name, facts in found.parameters.items():
        if isinstance(facts["default"], bool):
            yield {name: not facts["default"]}
        for choice in facts["choices"]:
            if choice != facts["default"]:
                yield {name: choice}


@check
def saves_and_loads(s: Subject) -> None:
    """State dict, pickle and deep copy keep the results."""
    model, ids = s.model(), tokens(LENGTH)
    fresh = s.model(randomise=False)
    fresh.load_state_dict(model.state_dict())
    for copied in (fresh, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        equal(model(ids), copied(ids), "logits of the copy", 0.0)


@check
def shapes_and_dtypes(s: Subject) -> None:
    """float32 and bfloat16 models give logits of the right shape and dtype, close to each other."""
    model, ids = s.model(), tokens(LENGTH, 3)
    full, half = model(ids), copy.deepcopy(model).bfloat16()(ids)
    for logits, dtype in ((full, torch.float32), (half, torch.bfloat16)):
        if logits.shape != (3, LENGTH, 16) or logits.dtype != dtype:
            raise CheckFailed(f"(3, {LENGTH}, 16) {dtype}", f"{tuple(logits.shape)} {logits.dtype}")
    if not torch.isfinite(half).all():
        raise CheckFailed("finite logits in bfloat16", "NaN or infinity")


# ---- lengths ------------------------------------------------------------------------------------


@check
def any_length(s: Subject) -> None:
    """Length 1, odd lengths and 16 training lengths give finite logits, or are declared undefined before anything is computed."""
    model = s.model()
    for length in (1, 3, LENGTH - 1, LENGTH, LENGTH + 1, 63, 16 * LENGTH):
        reason = model.scheme.undefined(length)
        try:
            logits = model(tokens(length, 1))
        except Undefined as error:
            if reason is None:
                raise CheckFailed(f"length {length} to be defined, as scheme.undefined says", str(error)) from None
            continue
        if reason is not None:
            raise CheckFailed(f"Undefined at length {length} ({reason})", "logits")
        if not torch.isfinite(logits).all():
            raise CheckFailed(f"finite logits at length {length}", "NaN or infinity")


@check
def length_order_does_not_matter(s: Subject) -> None:
    """The same lengths visited in another order give the same logits: nothing is remembered."""
    lengths = s.lengths(LENGTH // 2, LENGTH, 3 * LENGTH, 4 * LENGTH)
    model = s.model()
    up = {n: model(tokens(n)) for n in lengths}
    down = {n: model(tokens(n)) for n in reversed(lengths)}
    again = s.model()
    for n in lengths:
        equal(up[n], down[n], f"logits at {n} tokens, visited in descending order,", 0.0)
        equal(up[n], again(tokens(n)), f"logits at {n} tokens of a new model", 0.0)


@check
def prefix_stable_as_declared(s: Subject) -> None:
    """Logits of a prefix are the same in a longer sequence if, and only if, `prefix_stable` says so."""
    (length, *_) = s.lengths(3 * LENGTH, LENGTH)
    model, ids = s.model(), tokens(length)
    cut = length // 2 + 1
    if model.scheme.prefix_stable:
        equal(model(ids)[:, :cut], model(ids[:, :cut]), "logits of a prefix")
        equal(model(ids), declared_length(model, ids, length + 5), "logits at a longer declared length")
    else:
        differs(model(ids)[:, :cut], model(ids[:, :cut]), "logits of a prefix (prefix_stable is False)")


@check
def distinct_far_positions(s: Subject) -> None:
    """Coordinates up to 65,536 stay apart, and so do the angles of a bfloat16 model."""
    model = s.model().bfloat16()
    scheme = model.scheme
    length = FAR if scheme.undefined(FAR) is None else s.lengths(FAR // 16, 16 * LENGTH, LENGTH)[0]
    composition = scheme.prepare(model.positions(1, length)).layers[0][0].composition
    for part in composition.base:
        if part.positions.query.dtype != torch.float32:
            raise CheckFailed("coordinates in float32", str(part.positions.query.dtype))
        apart = len(part.positions.query[0].unique())
        if apart < length and not _merges_positions(s):
            raise CheckFailed(f"{length} distinct coordinates", str(apart))
    if overrides(composition.base[0].encoding, "rotate"):
        head = model.config.d_model // model.config.n_heads
        generator = torch.Generator().manual_seed(0)
        vector = torch.randn(head, generator=generator)
        ends = torch.cat((torch.arange(64), torch.arange(length - 64, length)))
        part = composition.base[0]
        x = vector.expand(1, 3, length, head)
        turned = part.encoding.rotate(x, x, part.positions)[0][0, 0, ends]
        gaps = (turned[:, None] - turned[None]).norm(dim=-1) + torch.eye(len(ends)) * 1e9
        if gaps.min() == 0:
            raise CheckFailed("different vectors at different far positions", f"two that are {gaps.min():.1g} apart")


def _merges_positions(s: Subject) -> bool:
    return "distinct_far_positions" in s.cls.traits.deviations


# ---- what is seen -------------------------------------------------------------------------------


@check
def causal(s: Subject) -> None:
    """Changing a token leaves the logits before it alone."""
    for length in s.lengths(LENGTH, 2 * LENGTH + 1):
        model, ids = s.model(), tokens(length)
        other = ids.clone()
        at = 2 * length // 3
        other[:, at] = (other[:, at] + 1) % 16
        equal(model(ids)[:, :at], model(other)[:, :at], "logits before the changed token", 0.0 if length <= 256 else 1e-6)
        differs(model(ids)[:, at:], model(other)[:, at:], "logits from the changed token on")


@check
def packed_documents_do_not_leak(s: Subject) -> None:
    """Each of two documents in one row has the logits that it has alone; editing one leaves the other."""
    model, n = s.model(), LENGTH
    a, b = tokens(n // 2 + 1, 1), tokens(n // 2, 1, seed=1)
    both = torch.cat((a, b), dim=1)
    documents = torch.cat((torch.zeros_like(a), torch.ones_like(b)), dim=1)

    def packed(ids: Tensor) -> Tensor:
        return model(ids, model.positions(1, ids.shape[1], documents=documents, declared=n))

    together = packed(both)
    equal(declared_length(model, a, n), together[:, : a.shape[1]], "logits of the first document")
    equal(declared_length(model, b, n), together[:, a.shape[1] :], "logits of the second document")
    edited = both.clone()
    edited[:, 0] = (edited[:, 0] + 1) % 16
    equal(together[:, a.shape[1] :], packed(edited)[:, a.shape[1] :], "logits of the document that was not edited", 0.0)


@check
def padding_does_not_leak(s: Subject) -> None:
    """Padding on either side leaves the logits of the tokens as they are without it."""
    model, pad = s.model(), 3
    ids = tokens(LENGTH - pad, 2)
    alone = declared_length(model, ids, LENGTH)
    filler = tokens(pad, 2, seed=2)
    for left in (True, False):
        parts = (filler, ids) if left else (ids, filler)
        padded = torch.cat(parts, dim=1)
        valid = torch.cat([torch.full_like(p, p is ids) for p in parts], dim=1).bool()
        logits = model(padded, model.positions(2, LENGTH, valid=valid))
        side = "left" if left else "right"
        equal(alone, logits[valid].view_as(alone), f"logits with padding on the {side}")


@check
def tells_order_in_an_encoder_as_declared(s: Subject) -> None:
    """In an encoder reversed tokens give other logits than reversed logits if, and only if, `bidirectional` is declared (by any member of the scheme)."""
    if s.is_extension:
        raise NotApplicable("the encoding decides")
    model, ids = s.model(causal=False), tokens(LENGTH)
    there, back = model(ids), model(ids.flip(1)).flip(1)
    if s.cls.traits.bidirectional:
        differs(there, back, "logits of the reversed sequence (bidirectional is True)")
    else:
        equal(there, back, "logits of the reversed sequence (bidirectional is False)")


@check
def shift_invariant_as_declared(s: Subject) -> None:
    """Adding a constant to all coordinates leaves the logits if, and only if, `shift_invariant` is declared."""
    model, ids = s.model(), tokens(LENGTH // 2)
    positions = model.positions(*ids.shape, declared=LENGTH)
    moved = positions.map(lambda p, index: p + 5.0, (5.0, 1.0))
    by_name = [entry(m.name).cls.traits for m in s.spec.all_members()]
    declared = all(t.shift_invariant for t in by_name)
    try:
        there = model(ids, moved)
    except Undefined:
        raise NotApplicable("undefined at shifted coordinates") from None
    if declared:
        equal(model(ids, positions), there, "logits at shifted coordinates")
    elif s.cls.traits.random or all(t.shift_invariant for t in by_name if t is not s.cls.traits) and s.is_extension:
        raise NotApplicable("coordinates are replaced")
    else:
        differs(model(ids, positions), there, "logits at shifted coordinates (shift_invariant is False)")


@check
def decodes_like_the_full_pass(s: Subject) -> None:
    """Token by token, and in uneven pieces, through the cache: the logits of one full pass at the same declared length."""
    for length in s.lengths(LENGTH, 2 * LENGTH + 1):
        model, ids = s.model(), tokens(length)
        full = model(ids)
        for pieces in ([1] * length, [length // 3, 1, length - length // 3 - 1]):
            cache = model.cache(2, length)
            parts = [model(piece, cache=cache) for piece in ids.split(pieces, dim=1)]
            equal(full, torch.cat(parts, dim=1), f"logits decoded in pieces of {pieces[0]}")


@check
def growing_generation_as_declared(s: Subject) -> None:
    """Where the declared length grows with each token, results are those of the final length exactly for prefix-stable schemes."""
    (length, *_) = s.lengths(2 * LENGTH, LENGTH)
    model, ids = s.model(), tokens(length)
    full = model(ids)
    grown = torch.stack([model(ids[:, : t + 1])[:, -1] for t in range(length // 2, length)], dim=1)
    if model.scheme.prefix_stable:
        equal(full[:, length // 2 :], grown, "logits of growing generation")
    else:
        differs(full[:, length // 2 :], grown, "logits of growing generation (prefix_stable is False)")


# ---- computing ----------------------------------------------------------------------------------


@check
def back_ends_equal_eager(s: Subject) -> None:
    """Every back-end that accepts the scheme gives eager's logits and gradients, at odd lengths and in small chunks."""
    chunk, attention.CHUNK = attention.CHUNK, 7
    try:
        for length in s.lengths(LENGTH, 2 * LENGTH + 1):
            ids = tokens(length)
            expected = _logits_and_gradients(s.model(backend="eager"), ids)
            for backend in attention.BACKENDS:
                try:
                    came = _logits_and_gradients(s.model(backend=backend), ids)
                except UserError:
                    continue  # refused
                for name, tensor in expected.items():
                    equal(tensor, came[name], f"{backend}'s {name} at {length} tokens", 1e-3)
    finally:
        attention.CHUNK = chunk


def _logits_and_gradients(model: Transformer, ids: Tensor) -> dict[str, Tensor]:
    logits = model(ids)
    (logits.log_softmax(-1)[..., 0].sum() / logits.shape[1]).backward()
    found = {"logits": logits.detach()}
    return found | {f"gradient of {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}


@check
def every_parameter_learns(s: Subject) -> None:
    """After randomising, every parameter gets a finite gradient that is not all zero."""
    (length, *_) = s.lengths(3 * LENGTH, LENGTH)
    for phase in ("train", "test"):
        model = s.model()
        parameters = dict(model.scheme.named_parameters())
        if not parameters:
            raise NotApplicable("no parameters")
        if phase == "train":
            length = LENGTH
        logits = model(tokens(length), model.positions(2, length, phase=phase))
        logits.log_softmax(-1)[..., 0].sum().backward()
        gone = [n for n, p in parameters.items() if p.grad is None or not p.grad.abs().sum() > 0]
        acts = not s.is_extension or phase in s.cls.default_at
        if gone and acts:
            raise CheckFailed("a gradient for every parameter", f"none for {', '.join(gone)} in phase {phase}")
        bad = [n for n, p in parameters.items() if p.grad is not None and not torch.isfinite(p.grad).all()]
        if bad:
            raise CheckFailed("finite gradients", f"NaN or infinity for {', '.join(bad)}")


@check
def bias_is_not_constant(s: Subject) -> None:
    """A bias, if there is one, differs from pair to pair."""
    if s.is_extension or not (overrides(s.cls, "bias") or overrides(s.cls, "distance_bias")):
        raise NotApplicable("no bias")
    model = s.model()
    composition = model.scheme.prepare(model.positions(1, LENGTH)).layers[0][0].composition
    bias = composition.bias()
    seen = bias.masked_select(composition.positions.visible()[:, None]).view(*bias.shape[:2], -1)
    if (seen.std(dim=-1) < 1e-6).any():
        raise CheckFailed("a bias that depends on the pair, in every head", "a constant")


@check
def positions_matter(s: Subject) -> None:
    """The member changes the logits of a model beyond what the scheme without it gives."""
    lengths = s.lengths(4 * LENGTH, LENGTH)
    model, ids = s.model(), tokens(lengths[0])
    if s.is_extension:
        base = s.model(Spec(tuple(m for m in s.spec.members if m.name != s.entry.name)))
        if any(p.numel() for p in base.scheme.parameters()):
            raise NotApplicable("the host's own parameters may differ in size")
        for phase in s.spec.members[-1].at:
            there, here = (m(ids, m.positions(*ids.shape, phase=phase)) for m in (base, model))
            if (there - here).abs().max() > TOLERANCE:
                return
        if all(entry(m.name).cls.traits.shift_invariant for m in s.spec.members[:-1]):
            raise NotApplicable("the host is shift-invariant")
        raise CheckFailed(f"{s.entry.name} to change the logits in some phase", "the same")
    swapped = ids.clone()
    swapped[:, [1, 3]] = ids[:, [3, 1]]
    swapped[:, 1] = (ids[:, 3] + (ids[:, 3] == ids[:, 1]).long()) % 16
    differs(model(ids)[:, -1], model(swapped)[:, -1], "the last logits after two tokens change places")


@check
def neutral_settings_change_nothing(s: Subject) -> None:
    """With the settings that `traits.neutral` names, the scheme without the member is reproduced bit for bit."""
    neutral = s.cls.traits.neutral
    if neutral is None or not s.is_extension:
        raise NotApplicable("no neutral settings are declared")
    bare = Spec(tuple(m for m in s.spec.members if m.name != s.entry.name))
    with_it = parse(dict(bare.data) | {s.entry.name: dict(neutral)})
    model, base = (s.model(spec, randomise=False, backend="eager") for spec in (with_it, bare))
    for length in (LENGTH, 3 * LENGTH):
        if base.scheme.undefined(length) is None:
            equal(base(tokens(length)), model(tokens(length)), f"logits at {length} tokens", 0.0)


@check
def slows_the_slow_frequencies_most(s: Subject) -> None:
    """A rule that slows frequencies slows a slower one at least as much as a faster one."""
    if not s.is_extension or not overrides(s.cls, "frequencies"):
        raise NotApplicable("changes no frequencies")
    shape = Shape(64, 1, 1, 512)
    config, at = make_config(s.entry.name, {})
    extension = s.cls(shape, config, at)
    base = 10000.0 ** -(torch.arange(32) / 32)[None]
    with torch.no_grad():
        after = extension.frequencies(base, Positions.build(1, declared=4096))
    ratio = (after / base)[0]
    if (ratio[1:] > ratio[:-1] + 1e-5).any():
        k = int((ratio[1:] - ratio[:-1]).argmax())
        raise CheckFailed("new over old frequency not to rise from fast to slow", f"{ratio[k]:.3g}, then {ratio[k + 1]:.3g}")


@check
def same_seed_same_draw(s: Subject) -> None:
    """Two models of one seed agree, whatever torch's global generator does; another batch leaves a sequence's draw; another seed changes it."""
    ids = tokens(LENGTH, 3)
    for phase in ("train", "test"):

        def logits(seed: int, ids: Tensor, rows: tuple[int, ...], phase: str = phase) -> Tensor:
            torch.manual_seed(rows[0])
            model = s.model()
            model.config = replace(model.config, seed=seed)
            return model(ids, model.positions(*ids.shape, phase=phase, rows=rows))

        first = logits(0, ids, (4, 5, 6))
        equal(first, logits(0, ids, (4, 5, 6)), f"logits of the same seed in phase {phase}", 0.0)
        if s.spec.all_members()[-1].full.get("draw") != "batch":
            equal(first[1:], logits(0, ids[1:], (5, 6)), f"logits in a smaller batch in phase {phase}", 1e-5)
        if s.cls.traits.random and phase in s.cls.default_at:
            differs(first, logits(1, ids, (4, 5, 6)), "logits of another seed")


@check
def compiles(s: Subject) -> None:
    """torch.compile leaves the logits unchanged."""
    model, ids = s.model(), tokens(LENGTH)
    expected = model(ids)
    torch._dynamo.reset()
    equal(expected, torch.compile(model)(ids), "compiled logits", 1e-3)


SLOW.add("compiles")


# ---- running ------------------------------------------------------------------------------------


def subjects(member: str | type) -> list[Subject]:
    """The schemes in which a member is checked: itself, or an extension on one host of each kind that it fits."""
    if isinstance(member, type):
        found = next((e for e in entries().values() if e.cls is member), None)
        if found is None:
            raise UserError(f"{member.__name__} is not registered; decorate it with @pezoo.register(...)")
    else:
        found = entry(member)
    if found.kind == "task":
        raise UserError(f"{found.name} is a task; the kit checks encodings and extensions")
    if found.kind == "alias":
        spec = parse(found.name)
        return [Subject(entry(spec.members[-1].name), spec)]
    if issubclass(found.cls, Encoding):
        return [Subject(found, parse(found.name))]
    chosen: list[Subject] = []
    shape = Shape(48, 3, 2, LENGTH)
    encodings = [e for e in entries().values() if e.kind == "encoding" and e.family != "custom"]

    def plainness(e: Entry) -> tuple[bool, bool]:
        config, _ = make_config(e.name, {})
        return not e.cls.traits.prefix_stable, e.cls.traits.parameters(shape, config) > 0

    for hook in ("rotate", "distance_bias", "embed", "content"):
        for e in sorted(encodings, key=plainness):
            other = hook == "embed" and overrides(e.cls, "rotate")
            if not overrides(e.cls, hook) or other or fits(found.cls, e.cls):
                continue
            try:
                spec = parse(f"{e.name}+{found.name}")
                Transformer(TransformerConfig(d_model=48, n_heads=3, n_layers=2, train_length=LENGTH, scheme=spec))
            except UserError:
                continue
            chosen.append(Subject(found, spec))
            break
    if not chosen:
        raise UserError(f"{found.name} fits no encoding of the zoo")
    return chosen


def check_encoding(member: str | type, *, slow: bool = False, only: str | None = None) -> list[Outcome]:
    """Hold a member to the kit.

    Args:
        member: a name, or a registered class of one's own.
        slow: run torch.compile's check too.
        only: one check by name.

    Returns:
        One outcome a check and scheme, failures included; see `report`.

    Raises:
        UserError: if there is no such member or check.
    """
    if only is not None and only not in CHECKS:
        raise UserError(f"no check is called {only!r}; they are: {', '.join(CHECKS)}")
    names = [n for n in CHECKS if (n == only if only else slow or n not in SLOW)]
    return [run(subject, name) for subject in subjects(member) for name in names]


def run(subject: Subject, name: str) -> Outcome:
    """Run one check on one scheme."""
    scheme = str(subject.spec)
    snippet = f"from pezoo import testing\nprint(*testing.check_encoding({subject.entry.name!r}, only={name!r}), sep='\\n')"
    reasons = {k: v for m in subject.spec.all_members() for k, v in entry(m.name).cls.traits.deviations.items()}
    try:
        with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(True):
            CHECKS[name](subject)
    except NotApplicable as reason:
        return Outcome(scheme, name, "skip", str(reason))
    except Exception as error:
        message = str(error)
        if not isinstance(error, CheckFailed):
            place = traceback.extract_tb(error.__traceback__)[-1]
            message = f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
        if name in reasons:
            return Outcome(scheme, name, "known", f"{reasons[name]} ({message})")
        return Outcome(scheme, name, "fail", message, snippet)
    if name in subject.cls.traits.deviations:
        return Outcome(scheme, name, "fail", "declared as a deviation, but it passes: remove it from the traits", snippet)
    return Outcome(scheme, name, "pass")


def failures(outcomes: list[Outcome]) -> list[Outcome]:
    """Those that failed."""
    return [o for o in outcomes if o.status == "fail"]
