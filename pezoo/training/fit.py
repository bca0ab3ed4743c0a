"""Training and tuning with pytorch-lightning, and checkpoints.

Two trainings with the same settings and seed see the same batches, which are a function of the step
alone, and end in the same weights, bit by bit on a CPU; also one that was stopped and went on (see
`pezoo.training.resume`).
"""

import contextlib
import copy
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from pezoo.data.material import Batched
from pezoo.files import curves_into
from pezoo.model.devices import check_training, without_subnormals
from pezoo.model.transformer import Transformer
from pezoo.outcome import outcome, peak_memory, reset_peak_memory
from pezoo.task import Example
from pezoo.training.batches import VALIDATION_BATCHES, TrainingData
from pezoo.training.config import TrainConfig, check_shares
from pezoo.training.curves import Curves
from pezoo.training.lightning import ctrl_c, quiet
from pezoo.training.loss import cross_entropy, losses_and_hits
from pezoo.training.peers import together
from pezoo.training.resume import Saver, Saving, Signals, State, StateFile, to_nobody
from pezoo.training.shares import check_started, divisor, environments, placed, seed_of, share
from pezoo.training.weights import ALL, Weights, count_trained, tuned

# The curve of validation perplexity: how many points at most. A point for at least so many training batches, which take
# three times as long as those of a validation, is 3 % of the time; the middle and the end have one however short a
# training is.
VALIDATIONS = 10
BATCHES_PER_VALIDATION = 10 * VALIDATION_BATCHES

# What a module counts while it is trained; a training that goes on counts on.
COUNTED = ("steps", "validated_at", "seconds", "cpu_seconds", "n_rows", "n_tokens", "final_loss", "validation_loss")


@dataclass(frozen=True)
class FitResult:
    """What a training took, and how it ended; of several processes, for the first."""

    train_seconds: float
    """Time of the training steps alone: no set-up, no drawing of batches, no validation."""
    tokens_per_second: float
    """Training speed in that time."""
    steps: int
    """Optimiser steps made."""
    final_loss: float
    """Loss of the last batch, nats a token."""
    peak_memory_bytes: int | None
    """See `pezoo.outcome`."""
    validation_loss: float | None = None
    """Mean loss in nats on the validation batches after the last step; None without validation."""
    status: Literal["ok", "diverged", "undefined", "out_of_memory"] = "ok"
    reason: str = ""
    """Why `status` is not ok."""
    trained_params: int | None = None
    """Parameters that were trained, adapters among them; None in earlier results."""
    cpu_seconds: float | None = None
    """Processor time of the training steps, which other work on the machine does not stretch; None on a GPU."""


def learning_rate(step: int, settings: TrainConfig) -> float:
    """The learning rate at a step, as a factor on `settings.lr`.

    Linear warm-up to 1, then along `settings.schedule`: constant stays there, others reach `min_lr_ratio` at the last
    step.

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


def validated_every(settings: TrainConfig) -> int:
    """Steps from one validation to the next; the last is at the end, wherever that falls."""
    if settings.sharded:  # at the end alone, where a training with all of the model's parts still can
        return settings.steps
    many = settings.steps * settings.accumulate // BATCHES_PER_VALIDATION
    return math.ceil(settings.steps / min(VALIDATIONS, max(2, many)))


class LanguageModel(pl.LightningModule):
    """A Transformer with its loss, metrics, optimiser and curves.

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
        encoding = set(model.scheme.parameters())
        named = ((name, p) for name, p in model.named_parameters() if p.ndim > 1 and p not in encoding)
        self.decayed = {name for name, _ in named if not name.endswith("bias") and not _of_norm(model, name)}
        self.gathered: dict[str, Tensor] = {}
        """The weights in the end, where each process has had a part of them."""
        self.loss, self.accuracy = MeanMetric(nan_strategy="disable"), MeanMetric()
        self.steps, self.validated_at = 0, 0
        self.seconds = self.cpu_seconds = 0.0
        self.began = (0.0, 0.0)
        self.n_rows = self.n_tokens = 0  # of the training batches that are done
        self.final_loss = self.validation_loss = math.nan

    def _read(self, batch: Example, first_row: int, phase: str) -> tuple[Tensor, Tensor]:
        """Of the rows that this process computes, what the output layer reads, (B, L, D), and the targets, (B, L).

        Random draws are keyed by row, from `first_row` for that of the batch.
        """
        own = share(len(batch.tokens), self.trainer.global_rank, self.trainer.world_size)
        tokens, rows = batch.tokens[own], tuple(range(first_row + own.start, first_row + own.stop))
        positions = self.model.positions(*tokens.shape, phase=phase, rows=rows, first_row=first_row)
        return self.model.hidden(tokens, positions), batch.targets[own]

    def training_step(self, batch: Example, batch_idx: int) -> Tensor:
        """Mean cross-entropy, in nats, of what is asked; of several processes' shares it is the mean of theirs."""
        hidden, targets = self._read(batch, self.n_rows, self.phase)
        by = divisor(batch, self.trainer.world_size)
        return cross_entropy(self.model.head, hidden, targets, self.model.config.vocab_size, by)

    def on_train_batch_start(self, batch: Example, batch_idx: int) -> None:
        """A step begins."""
        self.began = (time.perf_counter(), time.process_time())

    def on_train_batch_end(self, outputs: dict[str, Tensor], batch: Example, batch_idx: int) -> None:
        """Count time and tokens. Every `log_every` steps: curves, progress, an end if weights are not finite."""
        settings = self.settings
        self.steps, partial = divmod(batch_idx + 1, settings.accumulate)
        told = not partial and (self.steps % settings.log_every == 0 or self.steps == settings.steps)
        loss = math.nan
        if told:  # waits for a GPU, and for the other processes
            loss = self.trainer.strategy.reduce(outputs["loss"]).item() * settings.accumulate
        self.seconds += time.perf_counter() - self.began[0]
        self.cpu_seconds += time.process_time() - self.began[1]
        self.n_rows += len(batch.tokens)
        self.n_tokens += batch.tokens.numel()
        if not told:
            return
        self.final_loss = loss
        if not math.isfinite(loss):
            finite = all(bool(p.isfinite().all()) for p in self.model.parameters())
            if not self.trainer.strategy.reduce_boolean_decision(finite):
                self.trainer.should_stop = True  # no loss will be finite after it
        if self.logger is not None:
            curves = {
                "train/loss": loss,
                "train/perplexity": _perplexity(loss),
                "train/learning_rate": settings.lr * learning_rate(self.steps - 1, settings),
            }
            self.logger.log_metrics(curves, self.steps)
        if self.progress is not None:
            self.progress(self.steps, settings.steps, loss)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the norm of all gradients, also where each process has a part of them."""
        if self.settings.sharded and gradient_clip_val:
            self.trainer.strategy.model.clip_grad_norm_(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_end(self) -> None:
        """Gather weights of which each process has a part."""
        if self.settings.sharded:
            with FullyShardedDataParallel.summon_full_params(self.trainer.strategy.model, writeback=False):
                self.gathered = {name: weight.to("cpu", copy=True) for name, weight in self.model.state_dict().items()}

    def on_validation_start(self) -> None:
        """Means are float32 at least, although Lightning casts all that a module holds to the training's precision."""
        for mean in (self.loss, self.accuracy):
            mean.set_dtype(torch.promote_types(mean.weight.dtype, torch.float32))

    def validation_step(self, batch: Example, batch_idx: int) -> None:
        """Count what is asked for the mean loss and accuracy."""
        hidden, targets = self._read(batch, batch_idx * len(batch.tokens), "test")
        for losses, hits in losses_and_hits(self.model.head, hidden, targets, self.model.config.vocab_size):
            self.loss.update(losses)
            self.accuracy.update(hits)

    def on_validation_epoch_end(self) -> None:
        """Add a point to the curves of validation."""
        loss = self.validation_loss = self.loss.compute().item()  # of all processes
        curves = {"validation/loss": loss, "validation/perplexity": _perplexity(loss)}
        curves["validation/accuracy"] = self.accuracy.compute().item()
        if self.logger is not None:
            self.logger.log_metrics(curves, self.steps)
        self.loss.reset()
        self.accuracy.reset()
        self.validated_at = self.steps

    def on_save_checkpoint(self, checkpoint: State) -> None:
        """Add what was counted."""
        checkpoint["counted"] = {name: getattr(self, name) for name in COUNTED}
        checkpoint["peak_memory_bytes"] = peak_memory(self.device)

    def on_load_checkpoint(self, checkpoint: State) -> None:
        """Count on. The weights are read next, in the training's precision; Lightning would turn to it only later."""
        self.trainer.precision_plugin.convert_module(self)
        counted = {"cpu_seconds": math.nan} | checkpoint["counted"]  # earlier versions did not count it
        for name in COUNTED:
            setattr(self, name, counted[name])

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW that decays matrices alone: no norm, no bias, no parameter of the scheme."""
        settings = self.settings
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        decayed = [p for name, p in trained.items() if name in self.decayed]
        others = [p for name, p in trained.items() if name not in self.decayed]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=settings.lr,
            betas=tuple(settings.betas),
            fused=not settings.precision.endswith("mixed"),  # which Lightning refuses to clip
        )
        schedule = LambdaLR(optimizer, lambda step: learning_rate(step, settings))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _of_norm(model: nn.Module, name: str) -> bool:
    """Whether a parameter is a norm's; those of Cohere's heads are matrices."""
    return "norm" in type(model.get_submodule(name.rpartition(".")[0])).__name__.lower()


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700))  # more is no number


def fit(
    model: Transformer,
    material: Batched,
    validation: Batched | None,
    settings: TrainConfig,
    *,
    seed: int,
    length: int,
    phase: Literal["train", "tune"] = "train",
    weights: Weights = ALL,
    log_dir: Path | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int, float], None] | None = None,
    saving: Saving | None = None,
) -> FitResult:
    """Train `model` in place on batches of `material`.

    Args:
        model: what is trained; it ends on the CPU, in the mode it was in.
        material: what is trained on: text as `Tokens`, or a task.
        validation: the same for validation, which it has twice to ten times, at the end too; only there where there is
            one step, or each process has a part of the weights.
        settings: how to train; `settings.length` is not read.
        seed: of the batches and of dropout; weights and random positions have the model's own.
        length: L, the length of the longest training sequences, as the material counts it.
        phase: in which the scheme acts.
        weights: which of them are trained; adapters are merged into the model in the end, which is float32 then if it
            was less.
        log_dir: folder for TensorBoard's training curves; replaces those of an earlier attempt.
        device: where to train; of several processes the first one, and GPUs with the next numbers the others.
        progress: called every `settings.log_every` steps with (step, steps, loss).
        saving: how to save the training's state, and to go on from one that is there. Ctrl-C and SIGTERM then wait
            until it is saved.

    Returns:
        Measurements and a status: a loss that is not finite, a scheme that is undefined at
        `length` and a lack of memory are results.

    Raises:
        UserError: if the device cannot train in that precision, the model has no such weights, or there are not so many
            devices, or fewer rows in a batch than processes.
        PeerFailed: if another process of the training fails.
    """
    device = torch.device(device)
    check_training(device, settings.precision)
    check_shares(settings)
    training = model.training
    state = saving.read() if saving is not None else None
    going_on, done, curves, earlier_peak = state is not None, 0, {}, None
    if going_on:
        done, curves, earlier_peak = state["counted"]["steps"], state["curves"], state["peak_memory_bytes"]
    data = TrainingData(material, validation, settings, length, seed, done, ahead=device.type == "cuda")
    note = to_nobody if saving is None else saving.note
    silent = saving and dataclasses.replace(saving, note=to_nobody)
    options = {"seed": seed, "length": length, "phase": phase, "weights": weights, "device": device, "saving": silent}
    status, reason = "ok", ""
    model.train()
    stoppable = Signals() if saving is not None else contextlib.nullcontext()
    with (
        together(settings, device, functools.partial(_fit_beside, model, material, validation, settings, options)),
        tuned(model, weights, seed),
        checkpointed(model, settings.checkpointing),
        stoppable as signals,
        quiet(),
        ctrl_c(),
        without_subnormals(device),
    ):
        trained_params = count_trained(model)
        # FSDP takes a model apart for good.
        module = LanguageModel(copy.deepcopy(model) if settings.sharded else model, settings, phase, progress)
        trainer = pl.Trainer(
            **placed(settings, device),
            plugins=[StateFile(state, note), *environments(settings)],
            callbacks=[Saver(saving, state, signals)] if saving is not None else [],
            precision=settings.precision,
            max_epochs=1,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.grad_clip or None,
            val_check_interval=validated_every(settings) * settings.accumulate,
            limit_val_batches=1.0 if validation is not None else 0,
            num_sanity_val_steps=0,
            logger=False,
            log_every_n_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_autolog_hparams=False,
        )
        check_started(settings, trainer)
        if log_dir is not None and trainer.is_global_zero:
            trainer.logger = Curves(log_dir, curves)
        del state, curves  # as large as the model three times over
        device = trainer.strategy.root_device
        reset_peak_memory(device)
        try:
            with curves_into(log_dir), torch.random.fork_rng([device.index] if device.type == "cuda" else []):
                torch.manual_seed(seed_of(seed, trainer.global_rank))
                trainer.fit(module, datamodule=data, ckpt_path=saving.path if going_on else None)
                if module.gathered:
                    model.load_state_dict(module.gathered)
                elif validation is not None and module.validated_at != module.steps and not settings.sharded:
                    trainer.validate(module, datamodule=data, verbose=False)
        except Exception as error:
            status, reason = outcome(error)
            if status == "failed":
                raise
        finally:
            model.train(training)
    if status == "ok" and not math.isfinite(module.final_loss):
        status, reason = "diverged", f"the training loss is not finite at step {module.steps}"
    peaks = [peak for peak in (peak_memory(device), earlier_peak) if peak is not None]
    return FitResult(
        train_seconds=module.seconds,
        tokens_per_second=module.n_tokens / module.seconds if module.seconds else 0.0,
        steps=module.steps,
        final_loss=module.final_loss,
        peak_memory_bytes=max(peaks, default=None),
        validation_loss=module.validation_loss if math.isfinite(module.validation_loss) else None,
        status=status,
        reason=reason,
        trained_params=trained_params,
        cpu_seconds=module.cpu_seconds if device.type == "cpu" and math.isfinite(module.cpu_seconds) else None,
    )


def _fit_beside(
    model: Transformer, material: Batched, validation: Batched | None, settings: TrainConfig, options: dict[str, Any]
) -> str:
    """Do as `fit` does in the first process of a training; why this process cannot go on, or nothing."""
    found = fit(model, material, validation, settings, **options)
    return found.reason if found.status == "out_of_memory" else ""


@contextlib.contextmanager
def checkpointed(model: Transformer, on: bool) -> Iterator[None]:
    """While this holds, blocks are computed again in the backward pass, if that is wanted."""
    if on:
        model.checkpoint_blocks(True)
    try:
        yield
    finally:
        if on:
            model.checkpoint_blocks(False)
