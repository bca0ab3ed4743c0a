"""A little of a study's work, tried before it begins: so it is known how long the rest takes, and how much memory."""

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping

import torch

from pezoo.data import Corpus
from pezoo.model.devices import is_here
from pezoo.outcome import peak_memory, reset_peak_memory
from pezoo.study.cells import ask
from pezoo.study.estimate import Estimate, operations, processes, row_tokens, to_try
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


def try_some(
    estimate: Estimate, corpora: Mapping[str, Corpus], threads: int, seconds: float = TRY_SECONDS, device: str = "cpu"
) -> None:
    """Try a little of each kind of work that is left and unknown, for about so many seconds.

    In a worker's process `tried` does it.

    Args:
        estimate: is told what a unit takes.
        corpora: the text of the study, by hash.
        threads: of a worker.
        seconds: after which nothing more is begun.
        device: what cells call cuda, if they do.
    """
    had = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.cuda.device(device) if device.startswith("cuda:") else contextlib.nullcontext():
            for key, *found in tried(to_try(estimate), corpora, seconds):
                estimate.expect(key, *found)
    finally:
        torch.set_num_threads(had)


def tried(
    cells: Iterable[Cell], corpora: Mapping[str, Corpus], seconds: float = TRY_SECONDS
) -> Iterator[tuple[str, float, int | None]]:
    """Try a little of each, and yield its key with what `attempt` returns; after so many seconds nothing is begun."""
    deadline = time.monotonic() + seconds
    for cell in cells:
        if time.monotonic() > deadline:
            break
        try:
            found = attempt(cell, corpora)
        except Exception:  # whatever is wrong, the study itself will say
            continue
        yield cell.key, *found


def attempt(cell: Cell, corpora: Mapping[str, Corpus]) -> tuple[float, int | None]:
    """Do a little of a cell's work, on its device, or on the CPU where that is not here.

    Returns:
        Seconds of a unit, and the bytes that a process takes at its peak.

    Raises:
        ValueError: if even that would take long.
        Exception: whatever goes wrong.
    """
    wanted = torch.device(cell.inputs["device"])
    device = wanted if is_here(wanted.type) else torch.device("cpu")
    cell = dataclasses.replace(cell, inputs=cell.inputs | {"device": device.type})
    most = OPERATIONS if device.type == "cpu" else GPU_OPERATIONS
    testing, whole = cell.kind == "evaluate", cell
    if "body" in cell.inputs and "tested" not in cell.inputs:
        cell = _shorter(cell, most)
    inputs = cell.inputs
    several = processes(cell)  # of which one is tried
    full = min(WINDOWS, inputs["windows"]["count"]) if testing else -(-cell.settings().batch_size // several)
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
        settings = dataclasses.replace(settings, devices=1, num_nodes=1, strategy="auto")
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
        seconds = fitted.train_seconds / (STEPS * rows * several)
        peaks = [peak for peak in (fitted.peak_memory_bytes,) if peak is not None]
        fixed = training_bytes(fitted.trained_params or 0, settings.precision)
        if device.type != "cpu":  # where the weights had not been before
            fixed += sum(p.nbytes for p in model.parameters())
        vocabulary, tokens = inputs["data"]["vocab_size"], row_tokens(cell)
        loss = [loss_bytes(on, vocabulary, n * tokens) for on, n in ((device, rows), (wanted, full))]
    if cell is not whole:  # of a row so short the time is known, and the memory is not
        return seconds * operations(whole) / operations(cell), None
    if before is None or not peaks:
        return seconds, None
    growing = max(0, max(peaks) - before - fixed - loss[0]) * max(1.0, full / rows)  # with the rows
    if device != wanted:  # of a GPU that is not here: nothing of this process is there
        before = sum(p.nbytes for p in model.parameters())
    return seconds, int(before + fixed + loss[1] + growing)


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
