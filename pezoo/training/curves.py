"""Training curves as TensorBoard's event files, which a training that goes on goes on with."""

from collections.abc import Mapping
from pathlib import Path

from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from pezoo.training.resume import read_files, write_files

EVENT_FILES = "events.out.tfevents.*"


class Curves(TensorBoardLogger):
    """Writes an event file into `log_dir` itself, and nothing else.

    Args:
        log_dir: the folder; event files that are already there are removed.
        earlier: event files to go on from, as `written` gave them.
    """

    def __init__(self, log_dir: Path, earlier: Mapping[str, Tensor]) -> None:
        super().__init__(log_dir, name="", version="")
        write_files(Path(log_dir), EVENT_FILES, earlier)

    def save(self) -> None:
        """Flush; without Lightning's hparams.yaml."""
        self.experiment.flush()

    def written(self) -> dict[str, Tensor]:
        """The event files up to now, by name."""
        self.save()
        return read_files(Path(self.log_dir), EVENT_FILES)
