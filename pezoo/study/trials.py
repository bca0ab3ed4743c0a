"""A little of a study's work, tried before it begins: so it is known how long the rest takes, and how much memory."""

import contextlib
import dataclasses
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch

from pezoo.data import Corpus
from pezoo.outcome import peak_memory, reset_peak_memory
from pezoo.registry import entry
from pezoo.sources import PLUGIN
from pezoo.study.cells import ask
from pezoo.study.estimate import Estimate, operations, row_tokens
from pezoo.study.plan import Cell
from pezoo.training.fit import fit
from pezoo.training.loss import loss_bytes

TRY_SECONDS = 2.0
"""For all that is tried."""
STEPS = 3
"""Of a training that is tried."""
WINDOWS = 4
"""Of a test that is tried."""
SHORTEST = 16
"""Tokens of a row that is tried with a large model."""
OPERATIONS, GPU_OPERATIONS = 2e10, 2e13
"""Most floating-point operations of one trial, about a second's; larger work is not tried."""


def try_some(estimate: Estimate, corpora: Mapping[str, Corpus], threads: int, seconds: float = TRY_SECONDS) -> None:
    """Try a little of each kind of work that is left and unknown, for about so many seconds.

    What a plug-in brings is not tried: this is no worker's process, and whatever ends it ends the study.

    Args:
        estimate: is told what a unit takes.
        corpora: the text of the study, by hash.
        threads: of a worker.
        seconds: after which nothing more is begun.
    """
    deadline, had = time.monotonic() + seconds, torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for key in _in_turn(estimate):
            if time.monotonic() > deadline:
                break
            with contextlib.suppress(Exception):  # whatever is wrong, the study itself will say
                estimate.expect(key, *attempt(estimate.cells[key], corpora))
    finally:
        torch.set_num_threads(had)


def _in_turn(estimate: Estimate) -> Iterator[str]:
    """A cell of each scheme whose time is unknown: first one of each kind of work, from the middle of its schemes."""
    known = {estimate.levels[key][0] for key in estimate.took}
    waiting: dict[str, dict[str, str]] = defaultdict(dict)
    for key in estimate.todo:
        own, sort, *_ = estimate.levels[key]
        modules = (entry(name).cls.__module__ for name in estimate.cells[key].members)
        if estimate.work[key] and own not in known and not any(module.startswith(PLUGIN) for module in modules):
            waiting[sort].setdefault(own, key)
    queues = [list(keys.values()) for keys in waiting.values()]
    queues = [queue[len(queue) // 2 :] + queue[: len(queue) // 2] for queue in queues]
    while queues:
        yield from (queue.pop(0) for queue in queues)
        queues = [queue for queue in queues if queue]


def attempt(cell: Cell, corpora: Mapping[str, Corpus]) -> tuple[float, int | None]:
    """Do a little of a cell's work.

    Returns:
        Seconds of a unit, and the bytes that a process takes at its peak.

    Raises:
        ValueError: if even that would take long.
        Exception: whatever goes wrong.
    """
    device = torch.device(cell.inputs["device"])
    most = OPERATIONS if device.type == "cpu" else GPU_OPERATIONS
    testing, whole = cell.kind == "evaluate", cell
    if "body" in cell.inputs and "tested" not in cell.inputs:
        cell = _shorter(cell, most)
    inputs = cell.inputs
    full = min(WINDOWS, inputs["windows"]["count"]) if testing else cell.settings().batch_size
    rows = min(full, int(most // (operations(cell) * (1 if testing else STEPS))))
    if not rows:
        raise ValueError("it is too large to be tried")
    model, fixed, loss = cell.model(), 0, [0, 0]
    reset_peak_memory(device)
    before = peak_memory(device)
    if testing:
        began = time.perf_counter()
        found, _ = ask(cell, model, corpora, rows)
        seconds = (time.perf_counter() - began) / rows
        peaks = [at.peak_memory_bytes for at in found if at.peak_memory_bytes is not None]
        full = max(1, min(inputs["windows"]["count"], inputs["batch_tokens"] // max(inputs["lengths"])))
    else:
        settings = dataclasses.replace(cell.settings(), steps=STEPS, batch_size=rows, accumulate=1, warmup_steps=1)
        fitted = fit(
            model,
            cell.material(corpora).train,
            None,
            settings,
            seed=inputs["seed"],
            length=settings.length,
            phase=cell.kind,
            weights=cell.weights(),
            device=device,
        )
        if fitted.status not in ("ok", "diverged"):
            raise ValueError(fitted.reason)
        seconds = fitted.train_seconds / (STEPS * rows)
        peaks = [peak for peak in (fitted.peak_memory_bytes,) if peak is not None]
        fixed = training_bytes(fitted.trained_params or 0, settings.precision)
        if device.type != "cpu":  # where the weights had not been before
            fixed += sum(p.nbytes for p in model.parameters())
        vocabulary, tokens = inputs["data"]["vocab_size"], row_tokens(cell)
        loss = [loss_bytes(device, vocabulary, n * tokens) for n in (rows, full)]
    if cell is not whole:  # of a row so short the time is known, and the memory is not
        return seconds * operations(whole) / operations(cell), None
    if before is None or not peaks:
        return seconds, None
    growing = max(0, max(peaks) - before - fixed - loss[0])  # with the rows
    return seconds, int(before + fixed + loss[1] + growing * max(1.0, full / rows))


def training_bytes(trained: int, precision: str) -> int:
    """Bytes of the gradients, and of AdamW's two moments, of so many parameters; frozen ones have none."""
    return 3 * trained * {"bf16-true": 2, "64-true": 8}.get(precision, 4)


def _shorter(cell: Cell, most: float) -> Cell:
    """A cell with rows so short that one can be tried, or the cell itself if its are: models of others are large."""
    inputs, testing = cell.inputs, cell.kind == "evaluate"
    share = most / (operations(cell) * (1 if testing else STEPS))
    if share >= 1:
        return cell
    if testing:
        n = int(share * sum(inputs["lengths"]))
        changed = {"lengths": [max(SHORTEST, n)], "last": 1, "protocol": "prefix"}
    else:
        n = int(share * row_tokens(cell))
        changed = {"settings": inputs["settings"] | {"length": max(SHORTEST, n)}}
    return dataclasses.replace(cell, inputs=inputs | changed)
