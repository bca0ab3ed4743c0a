"""Training and tuning with pytorch-lightning, and checkpoints.

Two trainings with the same settings and seed see the same batches, which are a function of the step
alone, and end in the same weights, bit by bit. A training that was stopped starts over.
"""

import contextlib
import logging
import math
import pickle
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics.text import Perplexity

from pezoo.config import TrainConfig
from pezoo.data import Tokens, crops
from pezoo.errors import UserError
from pezoo.evaluation.memory import peak_memory, reset_peak_memory
from pezoo.evaluation.passes import outcome
from pezoo.results import replacing
from pezoo.transformer import Transformer, TransformerConfig

# The curve of validation perplexity: how many points, of how many batches each (together about 3 %
# of the time), from crops that are the same whatever the training's seed.
VALIDATIONS, VALIDATION_BATCHES, VALIDATION_SEED = 10, 8, 0


@dataclass(frozen=True)
class FitResult:
    """What a training took, and how it ended."""

    train_seconds: float
    """Time of the training steps, without set-up and validation."""
    tokens_per_second: float
    """Training speed in that time."""
    steps: int
    """Optimiser steps made."""
    final_loss: float
    """Loss of the last batch, nats a token."""
    peak_memory_bytes: int | None
    """See `pezoo.evaluation.memory`."""
    status: Literal["ok", "diverged", "undefined", "out_of_memory"] = "ok"
    reason: str = ""
    """Why `status` is not ok."""


def learning_rate(step: int, settings: TrainConfig) -> float:
    """The learning rate at a step, as a factor on `settings.lr`.

    Linear warm-up to 1, then along `settings.schedule`, reaching `min_lr_ratio` at the last step.

    Args:
        step: optimiser step, from 0.
        settings: of the training.
    """
    warmup, last = settings.warmup_steps, settings.steps - 1
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, last - warmup))
    shapes = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return settings.min_lr_ratio + (1 - settings.min_lr_ratio) * shapes[settings.schedule]


class LanguageModel(pl.LightningModule):
    """A Transformer with its loss, metric, optimiser and curves.

    Args:
        model: what is trained.
        settings: how.
        phase: in which the scheme acts, "train" or "tune".
        progress: called every `log_every` steps with (step, steps, loss).
    """

    def __init__(
        self,
        model: Transformer,
        settings: TrainConfig,
        phase: str,
        progress: Callable[[int, int, float], None] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.settings, self.phase, self.progress = model, settings, phase, progress
        self.perplexity = Perplexity()
        self.steps, self.final_loss, self.seconds = 0, math.nan, 0.0

    def _logits(self, ids: Tensor, batch_idx: int, phase: str) -> Tensor:
        """Logits (B, L, V), float32, of all but the last of the ids (B, L + 1)."""
        batch, length = ids.shape[0], ids.shape[1] - 1
        rows = tuple(range(batch_idx * batch, (batch_idx + 1) * batch))  # keys of random draws
        positions = self.model.positions(batch, length, phase=phase, rows=rows)
        return self.model(ids[:, :-1], positions).float()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Mean cross-entropy, in nats, of the ids (B, L + 1) after the first."""
        logits = self._logits(batch, batch_idx, self.phase)
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    def on_train_batch_end(self, outputs: dict[str, Tensor], batch: Tensor, batch_idx: int) -> None:
        """Every `log_every` steps: curves, progress, and an end if the loss is not finite."""
        settings = self.settings
        self.steps, partial = divmod(batch_idx + 1, settings.accumulate)
        if partial or (self.steps % settings.log_every and self.steps != settings.steps):
            return
        loss = self.final_loss = outputs["loss"].item() * settings.accumulate
        if not math.isfinite(loss):  # nor will any be after it: the weights are not
            self.trainer.should_stop = True
        if self.logger is not None:
            curves = {
                "train/loss": loss,
                "train/perplexity": math.exp(min(loss, 700)),
                "train/learning_rate": settings.lr * learning_rate(self.steps - 1, settings),
            }
            self.logger.log_metrics(curves, self.steps)
        if self.progress is not None:
            self.progress(self.steps, settings.steps, loss)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Count the ids (B, L + 1) for the perplexity."""
        self.perplexity.update(self._logits(batch, batch_idx, "test"), batch[:, 1:])

    def on_validation_epoch_end(self) -> None:
        """Add a point to the curve of validation perplexity."""
        self.logger.log_metrics({"validation/perplexity": self.perplexity.compute()}, self.steps)
        self.perplexity.reset()

    def start_clock(self) -> None:
        """Count the time from here on."""
        self.seconds -= time.perf_counter()

    def stop_clock(self) -> None:
        """Count no time from here on."""
        self.seconds += time.perf_counter()

    on_train_start = on_validation_end = start_clock
    on_train_end = on_validation_start = stop_clock

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW that decays matrices alone: no norm, no bias, no parameter of the scheme."""
        settings, encoding = self.settings, set(self.model.scheme.parameters())
        decayed = [p for p in self.model.parameters() if p.ndim > 1 and p not in encoding]
        others = [p for p in self.model.parameters() if p.ndim < 2 or p in encoding]
        optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": settings.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=settings.lr,
            betas=tuple(settings.betas),
            fused=not settings.precision.endswith("mixed"),  # which Lightning refuses to clip
        )
        schedule = LambdaLR(optimizer, lambda step: learning_rate(step, settings))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


@dataclass(frozen=True)
class Batches:
    """An iterable over crops: batch i is that of step i, ids (batch_size, length + 1)."""

    tokens: Tokens
    length: int
    batch_size: int
    count: int
    """Number of batches."""
    seed: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        for step in range(self.count):
            yield crops(self.tokens, self.length, self.batch_size, step, self.seed)


class Crops(pl.LightningDataModule):
    """Training batches, and a fixed sample of validation batches of the same shape.

    Args:
        tokens: training text.
        validation: validation text, if any.
        settings: of the training.
        length: tokens in a sequence.
        seed: of the training's crops.
    """

    def __init__(
        self,
        tokens: Tokens,
        validation: Tokens | None,
        settings: TrainConfig,
        length: int,
        seed: int,
    ) -> None:
        super().__init__()
        size, count = settings.batch_size, settings.steps * settings.accumulate
        self.training = Batches(tokens, length, size, count, seed)
        self.validation = []
        if validation is not None:
            self.validation = Batches(validation, length, size, VALIDATION_BATCHES, VALIDATION_SEED)

    def train_dataloader(self) -> Batches:
        """The batches of the whole training."""
        return self.training

    def val_dataloader(self) -> Batches | list[Tensor]:
        """The batches of each validation."""
        return self.validation


class Curves(TensorBoardLogger):
    """Writes an event file into `log_dir` itself, and nothing else.

    Args:
        log_dir: the folder; event files that are already there are removed.
    """

    def __init__(self, log_dir: Path) -> None:
        super().__init__(log_dir, name="", version="")
        for stale in Path(log_dir).glob("events.out.tfevents.*"):
            stale.unlink()

    def save(self) -> None:
        """Flush; without Lightning's hparams.yaml."""
        self.experiment.flush()


def fit(
    model: Transformer,
    tokens: Tokens,
    validation: Tokens | None,
    settings: TrainConfig,
    *,
    seed: int,
    length: int,
    phase: Literal["train", "tune"] = "train",
    log_dir: Path | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int, float], None] | None = None,
) -> FitResult:
    """Train `model` in place on crops of `tokens`.

    Args:
        model: what is trained; it ends on the CPU, in the mode it was in.
        tokens: training text.
        validation: validation text; its perplexity is a curve, so only read if there is a log_dir.
        settings: how to train; `settings.length` is not read.
        seed: of the crops and of dropout; weights and random positions have the model's own.
        length: tokens in a training sequence.
        phase: in which the scheme acts.
        log_dir: folder for TensorBoard's training curves; replaces those of an earlier attempt.
        device: where to train.
        progress: called every `settings.log_every` steps with (step, steps, loss).

    Returns:
        Measurements and a status: a loss that is not finite, a scheme that is undefined at
        `length` and a lack of memory are results.

    Raises:
        UserError: if the device cannot train in that precision.
    """
    device = torch.device(device)
    if device.type == "cpu":
        if settings.precision.startswith("16"):
            raise UserError(f"precision={settings.precision!r} needs a GPU; use 32-true or bf16-mixed on a CPU")
        torch.set_flush_denormal(True)
    index = device.index or 0
    validated = log_dir is not None and validation is not None
    training, module = model.training, LanguageModel(model, settings, phase, progress)
    data = Crops(tokens, validation if validated else None, settings, length, seed)
    status, reason = "ok", ""
    model.train()
    reset_peak_memory(device)
    with quiet(), ctrl_c(), torch.random.fork_rng([index] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        trainer = pl.Trainer(
            accelerator="cpu" if device.type == "cpu" else "gpu",
            devices=1 if device.type == "cpu" else [index],
            plugins=[LightningEnvironment()],  # one process, also inside a cluster's job
            precision=settings.precision,
            max_epochs=1,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.grad_clip or None,
            val_check_interval=max(1, settings.steps // VALIDATIONS) * settings.accumulate,
            limit_val_batches=1.0 if validated else 0,
            num_sanity_val_steps=0,
            logger=Curves(log_dir) if log_dir is not None else False,
            log_every_n_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_autolog_hparams=False,
        )
        try:
            trainer.fit(module, datamodule=data)
        except Exception as error:
            status, reason = outcome(error)
            if status == "failed":
                raise
            if module.seconds < 0:
                module.stop_clock()
        finally:
            model.train(training)
    if status == "ok" and not math.isfinite(module.final_loss):
        status, reason = "diverged", f"the training loss is not finite at step {module.steps}"
    n_tokens = module.steps * settings.accumulate * settings.batch_size * length
    return FitResult(
        train_seconds=module.seconds,
        tokens_per_second=n_tokens / module.seconds if module.seconds else 0.0,
        steps=module.steps,
        final_loss=module.final_loss,
        peak_memory_bytes=peak_memory(device),
        status=status,
        reason=reason,
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep from the user Lightning's remarks, and its use of a name that PyTorch gave up."""
    log = logging.getLogger("pytorch_lightning")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
            yield
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def ctrl_c() -> Iterator[None]:
    """Let Ctrl-C through: Lightning would end the process, and leave it deaf to a second one."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None


def save(path: str | Path, model: Transformer, extra: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: the file to write or to replace.
        model: what is kept: its configuration and weights.
        extra: plain values (numbers, texts, lists, dictionaries, tensors) to keep beside them.
    """
    config = vars(model.config) | {"scheme": model.scheme.spec.data}
    with replacing(path) as file:
        torch.save({"config": config, "weights": model.state_dict(), "extra": extra}, file)


def load(path: str | Path) -> tuple[Transformer, dict[str, Any]]:
    """Read what `save` wrote: the model, on the CPU and in evaluation mode, and `extra`.

    Raises:
        UserError: if there is no such file, or it is no such checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        config, weights, extra = state["config"], state["weights"], state["extra"]
    except (OSError, EOFError, RuntimeError, LookupError, TypeError, pickle.PickleError) as error:
        raise UserError(f"cannot read a checkpoint from {path}: {error}") from error
    model = Transformer(TransformerConfig(**config))
    model.to(weights["head.weight"].dtype).load_state_dict(weights)
    return model.eval(), extra
