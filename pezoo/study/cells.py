"""What a cell does."""

import dataclasses
import functools
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pezoo.data import Corpus, Windows, windows
from pezoo.data.material import Questions
from pezoo.evaluation import LengthResult, evaluate
from pezoo.evaluation.answers import evaluate_answers
from pezoo.evaluation.result import with_bits_per_byte
from pezoo.model.transformer import Transformer
from pezoo.results.losses import Losses, write_losses
from pezoo.study.plan import Cell
from pezoo.study.store import Store, versions
from pezoo.training.fit import fit
from pezoo.training.resume import Saving

Report = Callable[[int, int, float | None], None]
"""Called with (steps or tokens done, in all, loss)."""

Note = Callable[[str], None]
"""Called with a line for people."""


def run_cell(
    cell: Cell,
    store: Store,
    corpora: Mapping[str, Corpus],
    report: Report,
    note: Note = lambda line: None,
    save_minutes: float = 5.0,
    kept: bool = True,
) -> dict[str, Any]:
    """Run a cell and return its facts; it is in the store when this returns, if it is kept.

    Args:
        cell: what to run.
        store: where it goes, and where what it builds on is.
        corpora: the text of the study, by hash.
        report: is told how far it is.
        note: is told that a training goes on from a saved state.
        save_minutes: between two savings of that state.
        kept: whether this process keeps it; of those of a training on several machines the first one does.

    Raises:
        UserError: if its corpus is no longer the one that the study was planned with.
        MemoryError: if there is not enough memory for a training.
    """
    torch.manual_seed(cell.inputs["seed"])  # should a plug-in draw from the global generator
    owner = {"cell": cell.key, **versions()}
    saving = Saving(store.state(cell.key), owner, save_minutes, lambda line: note(f"{cell.title}: {line}"))
    train = functools.partial(fit_model, saving=saving)
    work = {"choose": choose_model, "evaluate": evaluate_model}.get(cell.kind, train)
    if not kept:
        with tempfile.TemporaryDirectory(prefix="pezoo-") as elsewhere:
            return work(cell, store, corpora, Path(elsewhere), report)
    with store.writing(cell) as (folder, facts):
        facts |= work(cell, store, corpora, folder, report)
    saving.path.unlink(missing_ok=True)
    return facts


def fit_model(
    cell: Cell, store: Store, corpora: Mapping[str, Corpus], folder: Path, report: Report, saving: Saving
) -> dict[str, Any]:
    """Train a model, or tune a trained one."""
    inputs, settings, material = cell.inputs, cell.settings(), cell.material(corpora)
    if cell.parent is not None:
        parent = store.facts(cell.parent)
        if parent["fit"]["status"] != "ok":
            return {"fit": parent["fit"]}
    model = cell.model(store.weights(cell.parent))
    fitted = fit(
        model,
        material.train,
        material.validation,
        settings,
        seed=inputs["seed"],
        length=settings.length,
        phase=cell.kind,
        weights=cell.weights(),
        log_dir=store.study / cell.log,
        device=inputs["device"],
        progress=report,
        saving=saving,
    )
    if fitted.status == "out_of_memory":  # no result: there may be enough next time
        raise MemoryError(fitted.reason)
    if fitted.status == "ok":
        cell.save(folder / "model.pt", model)
    return {"fit": dataclasses.asdict(fitted), "learning_rate": settings.lr}


def choose_model(
    cell: Cell, store: Store, corpora: Mapping[str, Corpus], folder: Path, report: Report
) -> dict[str, Any]:
    """Hand on the model of the learning rate with the lowest validation loss, averaged over seeds.

    A rate at which a training diverged, or has no such loss, comes last; ties go to the one named first.
    """
    losses = {}
    for lr, keys in cell.inputs["candidates"].items():
        fits = [store.facts(key)["fit"] for key in keys]
        found = [fit["validation_loss"] if fit["status"] == "ok" else None for fit in fits]
        losses[lr] = None if None in found else sum(found) / len(found)
    best = min(losses, key=lambda lr: math.inf if losses[lr] is None else losses[lr])
    chosen = next(k for k in cell.inputs["candidates"][best] if store.facts(k)["inputs"]["seed"] == cell.inputs["seed"])
    if (model := store.path(chosen) / "model.pt").exists():
        try:
            (folder / "model.pt").hardlink_to(model)
        except OSError:  # not every file system has links
            shutil.copyfile(model, folder / "model.pt")
    facts = store.facts(chosen)
    computed_by = {name: facts[name] for name in ("device", "machine", "versions") if name in facts}
    return computed_by | {"fit": facts["fit"], "learning_rate": float(best), "validation_losses": losses}


def evaluate_model(
    cell: Cell, store: Store, corpora: Mapping[str, Corpus], folder: Path, report: Report
) -> dict[str, Any]:
    """Test a model at every length."""
    inputs = cell.inputs
    fitted = {"status": "ok"} if cell.parent is None else store.facts(cell.parent)["fit"]
    lengths, protocol = inputs["lengths"], inputs["protocol"]
    tested = cell.material(corpora)
    facts = {}
    model = cell.model(store.weights(cell.parent) if fitted["status"] == "ok" else None)
    if fitted["status"] != "ok":
        why = {"status": fitted["status"], "reason": f"no trained model: {fitted['reason']}"}
        found = [LengthResult(length, protocol=protocol, **why) for length in lengths]
    else:
        found, sequences = ask(cell, model, corpora, inputs["windows"]["count"], report)
        if sequences is not None:
            text = tested.corpus.test
            _keep_losses(folder, protocol, found, text.names)
            if text.bytes_per_token is not None:
                found = [with_bits_per_byte(at, text.bytes_per_token) for at in found]
            facts["overlap"] = sequences.overlap
    return facts | {
        "lengths": [dataclasses.asdict(dataclasses.replace(at, bins=None)) for at in found],
        "scale_factors": {str(n): model.scheme.scale_factor(tested.n_tokens(n)) for n in lengths},
        "params": sum(p.numel() for p in model.parameters()),
    }


def ask(
    cell: Cell, model: Transformer, corpora: Mapping[str, Corpus], count: int, report: Report = lambda *_: None
) -> tuple[list[LengthResult], Windows | None]:
    """Test a model as a cell does, on `count` questions, or windows of text; these come too."""
    inputs, tested = cell.inputs, cell.material(corpora)
    lengths, seed = inputs["lengths"], inputs["windows"]["seed"]
    how = {name: inputs[name] for name in ("protocol", "batch_tokens", "device", "precision")}
    how["progress"] = lambda done, total: report(done, total, None)
    if isinstance(tested, Questions):
        return evaluate_answers(model, tested, lengths, count=count, seed=seed, **how), None
    sequences = windows(tested.corpus.test, max(lengths), count, seed)
    return evaluate(model, sequences, lengths, last=inputs["last"], **how), sequences


def _keep_losses(folder: Path, protocol: str, found: list[LengthResult], names: Sequence[str]) -> None:
    """Write the losses by document and position, where a protocol gives them."""
    for at in found:
        if at.bins is not None:
            losses = Losses(
                loss_sum=at.bins.loss_sum,
                tokens=at.bins.tokens,
                edges=at.bins.edges,
                documents=[names[i] for i in at.bins.documents],
                test_length=at.test_length,
                protocol=protocol,
            )
            write_losses(folder / f"losses_{at.test_length}.npz", losses)
