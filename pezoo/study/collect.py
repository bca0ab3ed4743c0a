"""Finished cells to results: what the recipe asked for, as lines of `results.jsonl`."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from pezoo.data.material import Text
from pezoo.results import BITS_PER_BYTE, Result
from pezoo.study.plan import Plan, digest
from pezoo.study.recipe import WHERE, Recipe
from pezoo.study.resolve import Evaluation
from pezoo.study.store import Store, now, provenance


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a cell could not be finished."""

    status: str
    """failed or out_of_memory."""
    reason: str
    date: str = dataclasses.field(default_factory=now)
    by: Mapping[str, Any] | None = None
    """What has computed, as `provenance` has it; None: unknown, and taken to be as here."""


def config_hash(recipe: Recipe) -> str:
    """Hash of a recipe, without what only says where cells run."""
    return digest({key: value for key, value in dataclasses.asdict(recipe).items() if key not in WHERE})


def collect(plan: Plan, store: Store, failures: Mapping[str, Failure] | None = None) -> list[Result]:
    """Results of all evaluations that are finished, or failed in this run, in the recipe's order.

    Where memory did not suffice for some lengths, those say so and the others have their values.

    Args:
        plan: what the recipe asks for.
        store: the cells on disk.
        failures: by key, cells that failed in this run; what builds on them has failed too.
    """
    results = []
    for evaluation in plan.evaluations:
        key = evaluation.cell
        lost = [k for k in (key, *plan.ancestors(key)) if k in (failures or {})]
        failed = any(failures[k].status == "failed" for k in lost)
        if store.done(key) or (store.kept(key) and not failed):
            found = store.facts(key)
        elif lost:
            found = _failed(plan, key, failures[lost[-1]], plan.cells[lost[-1]].title)
        else:
            continue
        results += _lines(plan, store, evaluation, found)
    return results


def _failed(plan: Plan, key: str, failure: Failure, title: str) -> dict[str, Any]:
    """The facts of an evaluation that could not be done."""
    cell = plan.cells[key]
    why = {"status": failure.status, "reason": f"{title}: {failure.reason}"}
    at = {"stride": None, "depth": None, "bos": False, "values": {}, "n_tokens": 0, "n_documents": 0} | why
    lengths = [at | {"test_length": n, "seconds": None, "peak_memory_bytes": None} for n in cell.inputs["lengths"]]
    # Parameters are not counted: the model may be what does not fit into memory.
    facts = {"lengths": lengths, "scale_factors": {}, "params": None, "date": failure.date}
    return facts | (failure.by or provenance(cell.inputs["device"]))


def _end(handed: Mapping[str, Any]) -> str:
    """Whether a model's learning rate is the lowest or the highest of those that it was chosen among; or nothing."""
    tried = sorted(map(float, handed.get("validation_losses", ())))
    if len(tried) < 2:
        return ""
    return {tried[0]: "lowest", tried[-1]: "highest"}.get(handed["learning_rate"], "")


def _lines(plan: Plan, store: Store, evaluation: Evaluation, found: dict[str, Any]) -> list[Result]:
    trial, spec, key = evaluation.trial, evaluation.spec, evaluation.cell
    recipe, tested, protocol = trial.recipe, evaluation.test.material, evaluation.test.protocol
    inputs = plan.cells[key].inputs
    handed = [store.facts(k) for k in plan.line(key) if store.done(k)]
    fits = [facts["fit"] for facts in handed]
    processor = [fit.get("cpu_seconds") for fit in fits]
    came_trained = trial.body is not None and trial.body.trained
    common = {
        "study": plan.recipe.study,
        "cell": key,
        "label": evaluation.label,
        "scheme": str(spec),
        "encoding": "+".join(spec.encodings),
        "extensions": spec.extensions,
        "family": spec.family,
        "part": trial.part,
        "task": tested.name,
        "corpus": tested.source,
        "corpus_digest": inputs["data"].get("digest", ""),
        "tokenizer": inputs["data"].get("tokenizer", ""),
        "protocol": str(protocol),
        "train_length": recipe.train.length,
        "seed": evaluation.seed,
        "learning_rate": handed[-1]["learning_rate"] if handed else 0.0 if came_trained else recipe.train.lr,
        "rate_is": _end(handed[-1]) if handed else "",
        "steps": 0 if came_trained else recipe.train.steps,
        "finetune_steps": evaluation.tuned.steps if evaluation.tuned else 0,
        "finetune_length": evaluation.tuned.length if evaluation.tuned else None,
        "params": found["params"],
        "trained_params": fits[0].get("trained_params") if fits else None,
        "train_seconds": sum(fit["train_seconds"] for fit in fits) if fits else None,
        "train_cpu_seconds": sum(processor) if fits and None not in processor else None,
        "tokens_per_second": fits[-1]["tokens_per_second"] if fits else None,
        "threads": recipe.threads,
        "config_hash": config_hash(plan.recipe),
        **{name: found[name] for name in ("versions", "device", "machine")},
        **{f"train_{name}": handed[-1][name] for name in ("versions", "device", "machine") if handed},
        "test_precision": inputs["precision"],
        "window_overlap": found.get("overlap"),
        "date": found["date"],
    }
    metrics = (*protocol.metrics, BITS_PER_BYTE) if isinstance(tested, Text) else protocol.metrics
    measured = [m for m in metrics if any(m in at["values"] for at in found["lengths"])]
    results = []
    for at in found["lengths"]:
        length = at["test_length"]
        for metric in measured or [m for m in metrics if m != BITS_PER_BYTE]:
            value, status, reason = at["values"].get(metric), at["status"], at["reason"]
            if value is None and status == "ok":  # not every length or depth has every metric
                continue
            if status == "ok" and not math.isfinite(value):
                value, status, reason = None, "diverged", f"the {metric} is not finite"
            result = Result(
                **common,
                stride=at["stride"],
                bos=at["bos"],
                depth=at["depth"],
                metric=metric,
                value=value,
                n_tokens=at["n_tokens"],
                n_documents=at["n_documents"],
                test_length=length,
                length_ratio=length / recipe.train.length,
                scale_factor=found["scale_factors"].get(str(length)),
                eval_seconds=at["seconds"],
                peak_memory_bytes=at["peak_memory_bytes"],
                status=status,
                reason=reason,
            )
            results.append(result)
    return results
