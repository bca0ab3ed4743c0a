"""The state of a training on disk: one that was stopped or killed goes on there, as if nothing had happened.

A state is a checkpoint of Lightning's (weights, optimiser, schedule, loops, scaler of gradients), to which are added
what was counted, the generators' states and the curves. It is taken before a step, after the validation that belongs
to the step before.
"""

import contextlib
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import CheckpointIO
from torch import distributed

from pezoo.files import replacing
from pezoo.training.shares import agreed, of_all

State = dict[str, Any]
DUE = 1
"""That a state is due, among the numbers of signals, all of which that come here are larger."""


def to_nobody(line: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Saving:
    """Where the state of a training is saved, how often, and whose it is."""

    path: Path
    """The file; it stays when the training has ended."""
    owner: Mapping[str, str]
    """All that a training must share with the one that saved the state, if it is to go on there."""
    minutes: float = 5.0
    """Between two savings."""
    note: Callable[[str], None] = to_nobody
    """Told in a few words that the training goes on, or why it does not."""

    def read(self) -> State | None:
        """The state to go on from, or None; one that is damaged, or of another training, is thrown away."""
        try:
            with zipfile.ZipFile(self.path) as file:
                if damaged := file.testzip():
                    raise ValueError(f"{damaged} is not what was written")
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            owner, step = state["owner"], state["counted"]["steps"]
        except FileNotFoundError:
            return None
        except MemoryError:
            raise
        except Exception:  # damage can look like anything
            return self._throw_away("is damaged")
        if owner != (ours := self.whose()):
            changed = [name for name in owner.keys() | ours.keys() if owner.get(name) != ours.get(name)]
            return self._throw_away(f"has another {', '.join(sorted(changed))}")
        self.note(f"goes on at step {step:,}")
        return state

    def whose(self) -> dict[str, str]:
        """The owner in plain text; torch's version is an object of its own."""
        return {name: str(value) for name, value in self.owner.items()}

    def _throw_away(self, why: str) -> None:
        self.note(f"starts anew: its saved state {why}")
        with contextlib.suppress(OSError):
            self.path.unlink()


class Signals:
    """Puts off Ctrl-C, SIGTERM and SIGUSR2 until a training has saved its state; then they act as usual.

    A cluster sends SIGUSR2 before a time limit. A second signal acts at once.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._usual: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other hears of signals
            numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR2") if hasattr(signal, name)]
            found = {number: signal.getsignal(number) for number in numbers}
            self._usual = {n: handler for n, handler in found.items() if handler not in (None, signal.SIG_IGN)}
        self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()
        if self.asked is None:
            return
        handler = self._usual[self.asked]
        if callable(handler):  # also where the signal itself is blocked: Ray interrupts its processes in another way
            handler(self.asked, None)
        else:
            signal.raise_signal(self.asked)

    def take(self) -> None:
        """Let no one else handle them; Lightning would end a training between two batches of one step."""
        for number in self._usual if self.asked is None else ():
            signal.signal(number, self._put_off)

    def _put_off(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._usual.items():
            signal.signal(number, handler)


class Saver(pl.Callback):
    """Saves the state of a training now and then, and when it is to stop.

    Args:
        saving: where and how often.
        state: that the training goes on from, if any.
        signals: that stop it.
    """

    def __init__(self, saving: Saving, state: State | None, signals: Signals) -> None:
        self.saving, self.signals = saving, signals
        self.random = state and state["random"]
        self.group: Any = None
        """Processes that must do the same."""
        self.first = state["counted"]["steps"] if state else 0
        self.saved = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Take the signals back from Lightning; several processes agree on the CPU, so that no GPU waits for it."""
        self.signals.take()
        if trainer.world_size > 1:
            self.group = distributed.new_group(backend="gloo")

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Between two steps is where a state is taken, and gone on from.

        Raises:
            SystemExit: when the training is to stop, after its state was saved.
        """
        device = trainer.strategy.root_device
        if self.random is not None:
            set_random(device, self.random[trainer.global_rank])
            self.random = None
        if batch_idx % trainer.accumulate_grad_batches:
            return
        due = time.monotonic() - self.saved >= 60 * self.saving.minutes
        asked = agreed(self.signals.asked or (DUE if due else 0), self.group)
        if asked and module.steps > self.first:
            trainer.save_checkpoint(self.saving.path, weights_only=False)
            self.saved = time.monotonic()
        if asked > DUE:
            raise SystemExit(128 + asked)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: State) -> None:
        """Add what Lightning does not know of."""
        checkpoint["owner"] = self.saving.whose()
        checkpoint["random"] = of_all(get_random(trainer.strategy.root_device), trainer.world_size)
        checkpoint["curves"] = trainer.logger.written() if trainer.logger is not None else {}


class StateFile(CheckpointIO):
    """Writes states whole or not at all, and hands Lightning the one that was read.

    Args:
        state: that was read, if any.
        note: is told when a state cannot be written.
    """

    def __init__(self, state: State | None, note: Callable[[str], None] = to_nobody) -> None:
        self.state, self.note = state, note

    def save_checkpoint(self, checkpoint: State, path: str | Path, storage_options: Any = None) -> None:
        """Write a state; a full disk, say, is no reason to end a training."""
        try:
            with replacing(path) as file:
                torch.save(checkpoint, file)
        except OSError as error:
            self.note(f"cannot save its state to {path}: {error.strerror or error}")

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> State:
        """The state that was read, once."""
        state, self.state = self.state, None
        return state

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a state."""
        Path(path).unlink(missing_ok=True)


def get_random(device: torch.device) -> dict[str, torch.Tensor]:
    """States of torch's generators, of the CPU and of a device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state()
    return states


def set_random(device: torch.device, states: Mapping[str, torch.Tensor]) -> None:
    """Put back what `get_random` found."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[device.type])
