"""How a model is trained."""

from dataclasses import dataclass, field
from typing import Literal

from pezoo.errors import UserError

Schedule = Literal["cosine", "linear", "constant"]


Precision = Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true"]


Strategy = Literal[
    "auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false", "fsdp", "fsdp_cpu_offload"
]
"""Lightning's names of the ways in which processes share a training, without those that start them."""


@dataclass
class TrainConfig:
    """Training, and what tuning shares with it."""

    length: int = 64
    """Training length L. For text in tokens; for a task in the task's own unit, the longest trained on."""
    lengths: Literal["fixed", "uniform", "curriculum"] = "fixed"
    """Lengths of the batches: all of L; drawn from min_length ... L; or growing to L in the first half of the steps.
    A batch of shorter text has more rows, so that its tokens stay as many."""
    min_length: int | None = None
    """Shortest batches, where lengths differ; null: 1, or the least that the task has questions of."""
    steps: int = 800
    """Optimiser steps."""
    batch_size: int = 32
    """Sequences a step, before accumulation."""
    lr: float = 2e-3
    """Peak learning rate of AdamW."""
    lrs: list[float] = field(default_factory=list, metadata={"example": [1e-3, 2e-3]})
    """Several to choose from, for each scheme by its mean validation loss at L over all seeds; empty: lr alone."""
    schedule: Schedule = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup_steps: int = 50
    """Steps of linear warm-up."""
    min_lr_ratio: float = 0.1
    """Last learning rate over the peak."""
    weight_decay: float = 0.1
    """AdamW's weight decay."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """AdamW's betas."""
    grad_clip: float = 1.0
    """Largest gradient norm; 0: no clipping."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    precision: Precision = "32-true"
    """Lightning's precision."""
    checkpointing: bool = field(default=False, metadata={"before": False})
    """Gradient checkpointing: compute each block again in the backward pass, for less memory and more time."""
    devices: int = field(default=1, metadata={"before": 1})
    """Processes of one training on a machine, each with a share of every batch and a GPU of its own."""
    num_nodes: int = field(default=1, metadata={"before": 1})
    """Machines of one training, each with `devices` processes; more than one: launcher=slurm."""
    strategy: Strategy = field(default="auto", metadata={"before": "auto"})
    """Lightning's strategy, by which processes share a training; auto: ddp if there are several."""
    log_every: int = field(default=20, metadata={"hashed": False})
    """Steps between two points of the training curves."""

    @property
    def processes(self) -> int:
        """Of one training, on all its machines."""
        return self.devices * self.num_nodes

    @property
    def sharded(self) -> bool:
        """Whether each process has a part of the weights."""
        return self.strategy.startswith("fsdp")


def check_shares(settings: TrainConfig, key: str = "train") -> None:
    """Refuse a batch that leaves a process without a row.

    Args:
        settings: of the training.
        key: of the recipe, where its `batch_size` stands.

    Raises:
        UserError: if there are fewer rows than processes.
    """
    if settings.batch_size < (processes := settings.processes):
        raise UserError(
            f"{key}.batch_size={settings.batch_size} is fewer than the {processes} processes of a training "
            f"(train.devices={settings.devices}, train.num_nodes={settings.num_nodes}); "
            f"type {key}.batch_size={processes}"
        )
