"""What a cell does."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pezoo.config import TrainConfig
from pezoo.data import Corpus, windows
from pezoo.errors import UserError
from pezoo.evaluation import LengthResult, evaluate
from pezoo.lightning import fit, load, save
from pezoo.results import Losses, write_losses
from pezoo.study.plan import Cell, count_parameters
from pezoo.study.store import Store
from pezoo.transformer import Transformer

Report = Callable[[int, int, float | None], None]
"""Called with (steps or tokens done, in all, loss)."""


def run_cell(cell: Cell, store: Store, corpus: Corpus, report: Report) -> dict[str, Any]:
    """Run a cell and return its facts; it is in the store when this returns.

    Raises:
        UserError: if the corpus is no longer the one that the study was planned with.
    """
    if corpus.hash != cell.inputs["data"]["hash"]:
        raise UserError("the corpus has changed since this run began; run the study again")
    torch.manual_seed(cell.inputs["seed"])  # should a plug-in draw from the global generator
    work = evaluate_model if cell.kind == "evaluate" else fit_model
    with store.writing(cell) as (folder, facts):
        facts |= work(cell, store, corpus, folder, report)
    return facts


def fit_model(cell: Cell, store: Store, corpus: Corpus, folder: Path, report: Report) -> dict[str, Any]:
    """Train a model, or tune a trained one."""
    inputs, model, settings = cell.inputs, cell.model(), TrainConfig(**cell.inputs["settings"])
    if cell.parent is not None:
        parent = store.facts(cell.parent)
        if parent["fit"]["status"] != "ok":
            return {"fit": parent["fit"]}
        carry_over(load(store.path(cell.parent) / "model.pt")[0], model)
    fitted = fit(
        model,
        corpus.train,
        corpus.validation,
        settings,
        seed=inputs["seed"],
        length=settings.length,
        phase=cell.kind,
        log_dir=store.study / cell.log,
        device=inputs["device"],
        progress=report,
    )
    if fitted.status == "ok":
        save(folder / "model.pt", model, {"title": cell.title})
    return {"fit": dataclasses.asdict(fitted)}


def evaluate_model(cell: Cell, store: Store, corpus: Corpus, folder: Path, report: Report) -> dict[str, Any]:
    """Test a model at every length."""
    inputs, model, fitted = cell.inputs, cell.model(), store.facts(cell.parent)["fit"]
    lengths, protocol = inputs["lengths"], inputs["protocol"]
    if fitted["status"] == "ok":
        carry_over(load(store.path(cell.parent) / "model.pt")[0], model)
        found = evaluate(
            model,
            windows(corpus.test, max(lengths), inputs["windows"]["count"], inputs["windows"]["seed"]),
            lengths,
            protocol=protocol,
            last=inputs["last"],
            batch_tokens=inputs["batch_tokens"],
            device=inputs["device"],
            progress=lambda done, total: report(done, total, None),
        )
    else:
        why = {"status": fitted["status"], "reason": f"no trained model: {fitted['reason']}"}
        found = [LengthResult(length, protocol, None, **why) for length in lengths]
    for at in found:
        if at.bins is not None:
            losses = Losses(
                loss_sum=at.bins.loss_sum,
                tokens=at.bins.tokens,
                edges=at.bins.edges,
                documents=[corpus.test.names[i] for i in at.bins.documents],
                test_length=at.test_length,
                protocol=protocol,
            )
            write_losses(folder / f"losses_{at.test_length}.npz", losses)
    return {
        "lengths": [dataclasses.asdict(dataclasses.replace(at, bins=None)) for at in found],
        "scale_factors": {str(n): model.scheme.scale_factor(n) for n in lengths},
        "params": count_parameters(model),
    }


def carry_over(trained: Transformer, model: Transformer) -> None:
    """Copy weights to a model whose scheme has the same encodings, and perhaps other extensions."""
    body = {k: v for k, v in trained.state_dict().items() if not k.startswith("scheme.")}
    missing, unexpected = model.load_state_dict(body, strict=False)
    if unexpected or any(not name.startswith("scheme.") for name in missing):
        raise RuntimeError(f"the trained model does not fit: {unexpected or missing}")
    model.scheme.load_from(trained.scheme)
