"""The trained models of a study."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pezoo.data import load, windows
from pezoo.errors import UserError, suggest
from pezoo.model.transformer import Transformer
from pezoo.registry import entries
from pezoo.results import LANGUAGE_MODELLING, read_study
from pezoo.scheme import parse
from pezoo.study.folder import plugins_of, read_record, require_plugins
from pezoo.study.plan import Cell
from pezoo.study.reading import load_recipe
from pezoo.study.store import Store


@dataclass(frozen=True)
class Trained:
    """A language model of a study, as it was tested there."""

    model: Transformer
    """On the CPU and in evaluation mode."""
    label: str
    seed: int
    part: str
    """Of the recipe; empty if it has none."""
    inputs: dict[str, Any]
    """What determined its evaluation."""
    lengths: dict[int, str]
    """Lengths that it has seen, in tokens, and in what: "training", "tuning"."""
    changed: bool
    """Whether the source of a member is no longer what it was trained with."""


def find_model(folder: str | Path, scheme: str | None, seed: int | None = None, part: str | None = None) -> Trained:
    """Find a language model in the folder of a study, however far the study has come.

    It is found by way of `results.jsonl`, not by planning the recipe again: so it is found on another device, and
    after a member's source has changed.

    Args:
        folder: of the study.
        scheme: a row's label ("rope+pi, 200 steps @ 8x"), or a scheme that one row alone was tested with.
        seed: of the training; default: the recipe's first.
        part: of the recipe, if the row is in several.

    Raises:
        UserError: if there is no such study, row, seed or trained model; the message lists what there is.
    """
    results = [r for r in read_study(folder) if r.task == LANGUAGE_MODELLING and part in (None, r.part)]
    if not Path(folder, "cells").is_dir():
        recipe = shlex.quote(str(Path(folder, "recipe.yaml")))
        raise UserError(f"{folder} holds results without models; to train them: pezoo run {recipe} --out runs/again")
    if not results:
        where = f"part {part!r} of {folder}" if part is not None else str(folder)
        raise UserError(f"{where} has no tested language model, and only those can write text")
    label = _label(folder, scheme, {r.label: r.scheme for r in results})
    results = [r for r in results if r.label == label]
    parts = list(dict.fromkeys(r.part for r in results))
    if len(parts) > 1:
        raise UserError(
            f"{label!r} is in several parts of the recipe, {', '.join(parts)}; type --part {shlex.quote(parts[0])}"
        )
    seeds = list(dict.fromkeys(r.seed for r in results))
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise UserError(f"{label!r} was not trained with seed {seed}; its seeds: {', '.join(map(str, seeds))}")

    result, store = next(r for r in results if r.seed == seed), Store(Path(folder))
    inputs = store.facts(result.cell)["inputs"] if store.kept(result.cell) else {}
    parent, as_it_came = inputs.get("parent"), "body" in inputs and inputs["parent"] is None
    if not as_it_came and (parent is None or not store.kept(parent) or not store.weights(parent).is_file()):
        why = result.reason.removeprefix("no trained model: ") or "its files are gone or damaged; run the study again"
        raise UserError(f"{folder} has no trained model of {label!r}, seed {seed}: {why}")
    if missing := [name for name in inputs["sources"] if name not in entries()]:
        _refuse_unknown(Path(folder), label, missing)
    anywhere = inputs | ({"backend": "auto"} if "backend" in inputs else {})  # it may have been trained on a GPU
    model = Cell("", anywhere).model(store.weights(parent))
    lengths = {inputs["train_length"]: "training"}
    if parent is not None and (fit := store.facts(parent)["inputs"])["kind"] == "tune":
        lengths |= {fit["settings"]["length"]: "tuning"}
    changed = parse(inputs["scheme"]).sources() != inputs["sources"]
    return Trained(model.eval(), label, seed, result.part, inputs, lengths, changed)


def _refuse_unknown(folder: Path, label: str, missing: list[str]) -> None:
    """Say which plug-ins a row needs, whose members are not registered."""
    require_plugins(plugins_of(read_record(folder), folder), (), f"the study in {folder}")
    raise UserError(f"{label!r} needs {', '.join(missing)}, which is not registered; name its file: --plugin FILE.py")


def _label(folder: str | Path, given: str | None, schemes: dict[str, str]) -> str:
    """The label that is meant, of the labels whose schemes these are."""
    if given in schemes:
        return given
    found = []
    if given is not None:
        try:
            scheme = str(parse(given))
        except UserError:
            scheme = given
        found = [label for label, its in schemes.items() if its == scheme]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"several rows of {folder} are {given}: {_list(found)}; name one of them")
    wrong = "say which scheme" if given is None else f"{folder} has no {given!r}"
    near = "" if given is None else suggest(given, {*schemes, *schemes.values()})
    raise UserError(f"{wrong}.{near} It has: {_list(schemes)}")


def _list(labels: Iterable[str]) -> str:
    return "; ".join(map(repr, labels))


def opening(folder: str | Path, trained: Trained, n: int) -> tuple[Tensor, str]:
    """The first n tokens, (1, n), of the first window that the study tested on, and where they stand, in words.

    Raises:
        UserError: if the text is not there any more.
    """
    recipe = dict(load_recipe(Path(folder) / "recipe.yaml", connects=False).split())[trained.part]
    corpus = load(recipe.data)
    if corpus.tokenizer != trained.inputs["data"]["tokenizer"]:
        raise UserError(f"the recipe in {folder} now has another tokenizer than the model; give a --prompt")
    cut = windows(corpus.test, max(recipe.test_lengths), recipe.test.windows, recipe.test.seed)
    where = f"{n} tokens of the test document {corpus.test.names[cut.document[0]]}, from token {cut.offset[0]} on"
    return cut.ids[:1, :n], where
