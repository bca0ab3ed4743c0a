"""One training over several processes: each computes its share of the rows of every batch.

Batches are a function of the step alone, so each process draws the whole batch and takes its rows. Random positions are
keyed by row, whoever computes it. The gradients of the processes are averaged, by Lightning's strategy; losses are
scaled so that this is the gradient of the mean over all that is asked in the batch.
"""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor, distributed

from pezoo.data.tokens import philox
from pezoo.errors import UserError
from pezoo.model.devices import check_devices
from pezoo.task import IGNORE, Example
from pezoo.training.config import TrainConfig


def share(rows: int, rank: int, world: int) -> slice:
    """The rows of a batch that a process computes.

    Each row has one process, and processes have as many as others, give or take one.

    >>> [share(5, rank, 2) for rank in (0, 1)]
    [slice(0, 2, None), slice(2, 5, None)]

    Args:
        rows: of the batch, at least `world`.
        rank: number of the process, from 0.
        world: number of processes.
    """
    return slice(rows * rank // world, rows * (rank + 1) // world)


def divisor(batch: Example, world: int) -> Tensor | None:
    """What the losses of a share are divided by, so that the mean over processes is that over all asked tokens.

    None: the number of those that are asked in the share, which is the batch.
    """
    return (batch.targets != IGNORE).sum() / world if world > 1 else None


def seed_of(seed: int, rank: int) -> int:
    """The seed of a process's dropout, which each draws for itself; the first one's is that of a single process."""
    return int(philox(seed, rank).random_raw()) % 2**63 if rank else seed


def placed(settings: TrainConfig, device: torch.device) -> dict[str, Any]:
    """What Lightning is told of processes and devices: GPUs by number, from the given one on.

    Raises:
        UserError: if there are not so many devices.
    """
    strategy = "ddp" if settings.strategy == "auto" and settings.processes > 1 else settings.strategy
    given = {"accelerator": device.type, "devices": settings.devices, "num_nodes": settings.num_nodes}
    given |= {"strategy": strategy, "use_distributed_sampler": False}
    if device.type == "cuda":
        there = torch.cuda.device_count()
        check_devices(settings.devices, there)
        first = torch.cuda.current_device() if device.index is None else device.index
        given["devices"] = [(first + i) % there for i in range(settings.devices)]
    return given


def environments(settings: TrainConfig) -> list[LightningEnvironment]:
    """What Lightning is told of the machines: it finds out about those of a cluster's job by itself."""
    return [Environment()] if settings.num_nodes == 1 else []


def check_started(settings: TrainConfig, trainer: pl.Trainer) -> None:
    """Refuse a training on several machines whose processes nobody has started.

    Raises:
        UserError: if this is no process of a cluster's job.
    """
    if settings.num_nodes > 1 and not trainer.strategy.cluster_environment.creates_processes_externally:
        raise UserError(
            f"train.num_nodes={settings.num_nodes}: this is no job on several machines; type launcher=slurm"
        )


class Environment(LightningEnvironment):
    """Says to Lightning that the processes of this machine have been started, if there are several."""

    creates_processes_externally = True

    def local_rank(self) -> int:
        """Number of this process."""
        return distributed.get_rank() if distributed.is_initialized() else 0

    def node_rank(self) -> int:
        """Number of this machine, which is alone: what a cluster's job says of it does not count."""
        return 0


def agreed(number: int, group: Any) -> int:
    """The largest number that any process of a group has; itself where there is no group."""
    if group is None:
        return number
    told = torch.tensor(number)
    distributed.all_reduce(told, distributed.ReduceOp.MAX, group)
    return int(told)


def of_all(found: Any, world: int) -> list[Any]:
    """What each process has found, by its number."""
    if world == 1:
        return [found]
    told: list[Any] = [None] * world
    distributed.all_gather_object(told, found)
    return told
