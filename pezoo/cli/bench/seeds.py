"""Several seeds of one scheme on one device: trained one after another, stacked into one training, or by processes.

Stacked, each parameter has one more dimension, the seed's: PyTorch maps the loss over it, and one AdamW moves all.
Batches, random positions and the clipping of gradients are those of each seed, so losses are those of trainings apart.

Legend: S seeds, B batch, L length, T declared length.
"""

import multiprocessing
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from pezoo.cli.bench.measuring import Extent, Spread, over
from pezoo.cli.bench.models import build, noise
from pezoo.data.material import Batched, Batches
from pezoo.errors import UserError
from pezoo.model.devices import without_subnormals
from pezoo.model.transformer import Transformer
from pezoo.positions import Positions
from pezoo.training.config import TrainConfig
from pezoo.training.loss import cross_entropy

SCHEMES = ("nope", "rope", "alibi")
APART = "one after another"
PROCESSES = (2, 4, 8)


def seeds(device: str, extent: Extent) -> list[dict[str, Any]]:
    """Wall and CPU time of training several seeds in each way, over that of one after another in one process.

    All ways take turns. Processes have started before, and have trained a little; CPU time is that of all of them.
    """
    rows, trained, steps = [], tuple(range(extent.seeds)), extent.steps // 3
    context = multiprocessing.get_context("spawn")  # what a GPU's driver runs in cannot be forked
    pool = [ProcessPoolExecutor(1, context) for _ in trained]
    try:
        for scheme in SCHEMES:
            plans = ways(Job(scheme, trained, steps, device))
            for jobs in plans.values():
                together(pool, [replace(job, steps=2) for job in jobs])
            wall: dict[str, list[float]] = {way: [] for way in plans}
            cpu: dict[str, list[float]] = {way: [] for way in plans}
            losses: dict[str, dict[int, float]] = {}
            for _ in range(extent.processes):
                for way, jobs in plans.items():
                    seconds, spent, losses[way] = together(pool, jobs)
                    wall[way].append(seconds)
                    cpu[way].append(spent)
            row = {"scheme": scheme, "seeds": len(trained), "steps": steps}
            row["parameters"] = sum(p.numel() for p in build(scheme).parameters())
            wall_over, cpu_over = over(APART, wall), over(APART, cpu)
            row["ways"] = [
                {
                    "way": way,
                    "seconds": vars(Spread.of(wall[way])),
                    "cpu_seconds": vars(Spread.of(cpu[way])),
                    "over": vars(wall_over[way]),
                    "cpu_over": vars(cpu_over[way]),
                    "loss_differs_by": max(abs(losses[way][s] / loss - 1) for s, loss in losses[APART].items()),
                }
                for way in plans
            ]
            rows.append(row)
    finally:
        for process in pool:
            process.shutdown(cancel_futures=True)
    return rows


@dataclass(frozen=True)
class Job:
    """What one process trains at a stretch."""

    scheme: str
    seeds: tuple[int, ...]
    steps: int
    device: str
    stacked: bool = False


def ways(job: Job) -> dict[str, list[Job]]:
    """Ways to train the seeds of a job, each as jobs of processes that run at once."""
    found = {APART: [job], "stacked": [replace(job, stacked=True)]}
    for count in (count for count in PROCESSES if count <= len(job.seeds)):
        found[f"{count} processes"] = [replace(job, seeds=job.seeds[i::count]) for i in range(count)]
    return found


def together(pool: Sequence[ProcessPoolExecutor], jobs: Sequence[Job]) -> tuple[float, float, dict[int, float]]:
    """Run jobs at once, each in a process of its own: wall seconds, CPU seconds, and the last loss of each seed."""
    start = time.perf_counter()
    begun = [process.submit(run, job) for process, job in zip(pool, jobs, strict=False)]
    done = [job.result() for job in begun]
    wall = time.perf_counter() - start
    return wall, sum(spent for spent, _ in done), {s: loss for _, losses in done for s, loss in losses.items()}


def run(job: Job) -> tuple[float, dict[int, float]]:
    """Train the seeds of a job in this process: its CPU seconds, and the last loss of each."""
    torch.set_num_threads(1)
    start, settings = time.process_time(), TrainConfig(steps=job.steps, warmup_steps=0)
    models = [build(job.scheme, job.device, settings.length, seed=seed) for seed in job.seeds]
    losses = (stacked if job.stacked else apart)(models, noise(), settings, job.device)
    return time.process_time() - start, {s: each[-1] for s, each in zip(job.seeds, losses, strict=True)}


def apart(
    models: Sequence[Transformer], text: Batched, settings: TrainConfig, device: str = "cpu"
) -> list[list[float]]:
    """Train models one after another, as a study does; the losses of each, every `log_every` steps."""
    from pezoo.training.fit import fit

    losses = []
    for model in models:
        told: list[float] = []
        how: dict[str, Any] = {"seed": model.config.seed, "length": settings.length, "device": device}
        fit(model, text, None, settings, progress=lambda step, steps, loss, told=told: told.append(loss), **how)
        losses.append(told)
    return losses


class Loss(nn.Module):
    """A model with its loss."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor, positions: Positions) -> Tensor:
        """Mean cross-entropy of what is asked; tokens and targets are (B, L)."""
        hidden = self.model.hidden(tokens, positions)
        return cross_entropy(self.model.head, hidden, targets, self.model.config.vocab_size)


def stacked(
    models: Sequence[Transformer], text: Batched, settings: TrainConfig, device: str = "cpu"
) -> list[list[float]]:
    """Train models that differ by their seed as one; the losses of each, every `log_every` steps.

    Their parameters stay as they were. A scheme fits if PyTorch can map what it computes. On a CPU fused attention is
    run seed by seed, and a learned bias has no gradient there: `backend="eager"` has. Members that ask for a parameter
    by its name, as fire, dape and dape_v2 do, cannot be stacked.

    Raises:
        UserError: if layers draw positions apart, or the training has what cannot be stacked.
    """
    from pezoo.training.fit import LanguageModel

    first = models[0]
    if first.config.dropout or settings.accumulate > 1 or settings.lengths != "fixed":
        raise UserError("trainings with dropout, accumulated batches or lengths that differ cannot be stacked")
    one = Loss(first.train()).to(device)
    parameters, buffers = stack_module_state([Loss(model.train()).to(device) for model in models])
    names = {parameter: name for name, parameter in one.named_parameters()}
    optimizer, schedule = LanguageModel(first, settings, "train").configure_optimizers().values()
    for group in optimizer.param_groups:
        group["params"] = [parameters[names[parameter]] for parameter in group["params"]]
    batch, length = settings.batch_size, settings.length

    def loss(
        parameters: dict[str, Tensor], buffers: dict[str, Tensor], tokens: Tensor, targets: Tensor,
        draws: dict[str, Tensor],
    ) -> Tensor:  # fmt: skip
        return functional_call(one, (parameters, buffers), (tokens, targets, positions.replace(draws=draws)))

    streams = [Batches(text, settings, length, settings.steps, model.config.seed) for model in models]
    told: list[Tensor] = []
    with without_subnormals(torch.device(device)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)  # attention seed by seed
        for step, batches in enumerate(zip(*streams, strict=True)):
            tokens = torch.stack([batch.tokens for batch in batches]).to(device)
            targets = torch.stack([batch.targets for batch in batches]).to(device)
            rows = tuple(range(step * batch, (step + 1) * batch))
            each = [model.positions(batch, length, phase="train", rows=rows, device=device) for model in models]
            drawn, positions = [draws_of(*pair) for pair in zip(models, each, strict=True)], each[0]
            draws = {name: torch.stack([found[name] for found in drawn]) for name in drawn[0]}
            losses = vmap(loss)(parameters, buffers, tokens, targets, draws)
            optimizer.zero_grad()
            losses.sum().backward()
            clip(list(parameters.values()), settings.grad_clip)
            optimizer.step()
            schedule["scheduler"].step()
            if (step + 1) % settings.log_every == 0 or step + 1 == settings.steps:
                told.append(losses.detach())
    columns: list[list[float]] = torch.stack(told, dim=1).tolist()
    return columns


def clip(parameters: Sequence[Tensor], most: float) -> None:
    """Shorten gradients (S, ...) to a norm of at most so much in each seed, as PyTorch does in one; 0: not at all."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    factor = (most / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients if most else ():
        gradient.mul_(factor.view(-1, *[1] * (gradient.ndim - 1)))


@dataclass(frozen=True)
class Noted(Positions):
    """Positions that note what is drawn."""

    noted: dict[str, Tensor] = field(default_factory=dict)

    def draw(self, name: str, make: Any) -> Tensor:
        """See `Positions.draw`."""
        found = self.noted[name] = super().draw(name, make)
        return found


def draws_of(model: Transformer, positions: Positions) -> dict[str, Tensor]:
    """What a model's members draw for these positions, by name, as `Positions.draws` takes it: (R, T) each.

    Raises:
        UserError: if layers draw apart, for which there is no place.
    """
    noted = Noted(**vars(positions))
    for part in model.scheme.plain:
        if any(extension.draws_per_layer for extension, *_ in part.acting(positions)):
            raise UserError(f"layers draw positions apart in {part.spec}, which cannot be stacked")
        before = dict(noted.noted)
        part.positions_at(noted, 0)
        if any(not torch.equal(noted.noted[name], table) for name, table in before.items()):
            raise UserError("layers or heads draw positions apart, which cannot be stacked")
    return noted.noted
