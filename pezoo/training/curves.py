"""Training curves as TensorBoard's event files, which a training that goes on goes on with."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor


class Curves(TensorBoardLogger):
    """Writes an event file into `log_dir` itself, and nothing else.

    Args:
        log_dir: the folder; event files that are already there are removed.
        earlier: event files to go on from, as `written` gave them.
    """

    def __init__(self, log_dir: Path, earlier: Mapping[str, Tensor]) -> None:
        super().__init__(log_dir, name="", version="")
        for stale in self._event_files():
            stale.unlink()
        Path(log_dir).mkdir(parents=True, exist_ok=True)
        for i, content in enumerate(earlier.values()):
            # TensorBoard reads files by name, and names its own by the clock, which may stand still or differ elsewhere
            content.numpy().tofile(Path(log_dir) / f"events.out.tfevents.{i:010}.earlier")

    def _event_files(self) -> list[Path]:
        """All of the folder, in the order in which they were written."""
        return sorted(Path(self.log_dir).glob("events.out.tfevents.*"))

    def save(self) -> None:
        """Flush; without Lightning's hparams.yaml."""
        self.experiment.flush()

    def written(self) -> dict[str, Tensor]:
        """The event files up to now, by name."""
        self.save()
        return {path.name: torch.from_numpy(np.fromfile(path, np.uint8)) for path in self._event_files()}
