"""What a recipe says in words, as schemes, protocols and a device: tried before anything is trained."""

import fnmatch
import traceback
from typing import Any

import torch

from pezoo.compose import build
from pezoo.contract import Shape, Undefined
from pezoo.data.material import Material, Questions
from pezoo.errors import UserError, brief, cut, suggest
from pezoo.evaluation import parse_protocol
from pezoo.evaluation.answers import check_answer_protocol
from pezoo.model.devices import check_testing, check_training, find_device
from pezoo.registry import entries, entry
from pezoo.scheme import MemberSpec, Spec, parse, read_members
from pezoo.study.recipe import Recipe, Row
from pezoo.task import parse_task


def matching(key: str, asked: list[str], kind: str) -> list[str]:
    """Members that names with settings, or patterns, stand for."""
    names, found = [n for n, e in entries().items() if e.kind == kind], []
    for text in asked:
        matches = fnmatch.filter(names, text) if "*" in text else [text] * (text.split(":")[0] in names)
        if not matches:
            raise UserError(
                f"{key}: no {kind} is called {brief(text)}.{suggest(text, names)} All: pezoo list --{kind}s"
            )
        try:
            for name, settings in read_members(text) if "*" not in text else ():
                MemberSpec.make(name, settings)
        except UserError as error:  # else its pairs would be left out like those that cannot work
            raise UserError(f"{key}: {error}") from None
        found += matches
    return list(dict.fromkeys(found))


def resolve_protocols(material: Material, recipe: Recipe) -> list[tuple[Material, str]]:
    """What is tested under which protocol.

    Raises:
        UserError: if there is no such protocol or task, or the task has another vocabulary than the text.
    """
    asked = recipe.test.protocols
    try:
        if isinstance(material, Questions):
            for protocol in asked:
                check_answer_protocol(protocol, material)
            return [(material, protocol) for protocol in dict.fromkeys(asked or ["answers"])]
        protocols = dict.fromkeys(str(parse_protocol(p)) for p in asked or ["prefix"])
    except UserError as error:
        raise UserError(f"test.protocols: {error}") from None
    tests: list[tuple[Material, str]] = [(material, protocol) for protocol in protocols]
    for task in dict.fromkeys(str(parse_task(task)) for task in recipe.test.tasks):
        refuse_main(parse_task(task).name)
        questions = Questions(task, "causal", None)
        if questions.vocab_size != material.vocab_size:
            raise UserError(
                f"test.tasks: {task} has a vocabulary of {questions.vocab_size}, the text of data one of "
                f"{material.vocab_size}; a task to test a language model on must have the same"
            )
        tests.append((questions, "answers"))
    return tests


def acting(spec: Spec, phase: str) -> Spec:
    """The scheme as it acts in a phase, if its modules are then still the same ones.

    `{layers: [t5, t5+window:at=test]}` has two sets of T5 weights and would have one without the
    window; it is kept as it is, since an extension that does not act changes only the name.
    """
    reduced = spec.at(phase)
    return reduced if _pattern(reduced) == _pattern(spec) else spec


def _pattern(spec: Spec) -> list[list[int]]:
    """Which groups of heads in which layers share modules."""
    seen: dict[Any, int] = {}
    layers = [layer.heads or ((layer, 0),) for layer in spec.layers or (spec,)]
    return [[seen.setdefault(group, len(seen)) for group in layer] for layer in layers]


def resolve_device(recipe: Recipe) -> str:
    """Return the kind of device that cells run on, "cpu", "cuda" or "mps": which one of several is not in their hash.

    Raises:
        UserError: if it is not there, or cannot do what the recipe asks.
    """
    device = find_device(recipe.device)
    check_training(device, recipe.train.precision)
    check_testing(device, recipe.test.precision)
    for protocol in recipe.test.protocols if device.type == "mps" else ():
        if protocol.partition(":")[0].strip() == "attention":
            raise UserError(
                "test.protocols: attention sums in float64, which device=mps does not have; type device=cpu"
            )
    return device.type


def resolve_scheme(recipe: Recipe, row: Row, key: str, material: Material, train_tokens: int) -> Spec:
    """Parse a scheme and try it on two tokens: what cannot work is refused before any training."""
    model = recipe.model
    try:
        spec = parse(row.scheme)
        refuse_main(*(member.name for member in spec.all_members()))
        shape = Shape(model.d_model, model.n_heads, model.n_layers, train_tokens, causal=material.causal)
        scheme = build(spec, shape)
        q, x = torch.zeros(1, model.n_heads, 2, shape.head_dim), torch.zeros(1, 2, model.d_model)
        tokens = torch.zeros(1, 2, dtype=torch.int64)
        for phase in ("train", "test"):
            with torch.no_grad():
                prepared = scheme.prepare(scheme.positions(1, 2, phase=phase, rows=(0,), tokens=tokens))
                for layer in range(model.n_layers):
                    prepared.attend(layer, q, q, q, recipe.backend, x=x)
    except Undefined:
        return spec
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
    except Exception as error:  # in somebody's plug-in
        where = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {cut(str(error), 300)} ({where.filename}, line {where.lineno})"
        raise UserError(f"{key}: {spec} fails with {what}") from error
    return spec


def refuse_main(*names: str) -> None:
    """Refuse members of the running program itself, which the processes of a study could not import."""
    for name in names:
        if entry(name).cls.__module__ == "__main__":
            raise UserError(
                f"{name} was defined in a notebook, a console or the running script, where the processes of a study do "
                'not find it; put it in a file of its own and pass plugins=["FILE.py"], or --plugin FILE.py'
            )
