"""What a training reads, for Lightning: its batches, and those of its validations."""

import pytorch_lightning as pl

from pezoo.data.material import Batched, Batches
from pezoo.task import Example
from pezoo.training.config import TrainConfig
from pezoo.training.resume import State

# Batches of a validation, from crops that are the same whatever the training's seed.
VALIDATION_BATCHES, VALIDATION_SEED = 8, 0


class TrainingBatches(Batches):
    """The batches of a training, which say to Lightning that they can go on where they stopped: `first` does it."""

    def state_dict(self) -> State:
        """Nothing that `first` does not say."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """See `state_dict`."""


class TrainingData(pl.LightningDataModule):
    """Training batches, and a fixed sample of validation batches at the training length.

    Args:
        material: what is trained on.
        validation: what is validated on, if anything.
        settings: of the training.
        length: L, the longest sequences, as the material counts it.
        seed: of the training's batches.
        done: steps that are done.
        ahead: whether the next batch is drawn while one is trained on.
    """

    def __init__(
        self,
        material: Batched,
        validation: Batched | None,
        settings: TrainConfig,
        length: int,
        seed: int,
        done: int = 0,
        ahead: bool = False,
    ) -> None:
        super().__init__()
        count, first = settings.steps * settings.accumulate, done * settings.accumulate
        self.training = TrainingBatches(material, settings, length, count, seed, first=first, ahead=ahead)
        self.validation: Batches | list[Example] = []
        if validation is not None:
            self.validation = Batches(validation, settings, length, VALIDATION_BATCHES, VALIDATION_SEED, fixed=True)

    def train_dataloader(self) -> Batches:
        """The batches of the whole training."""
        return self.training

    def val_dataloader(self) -> Batches | list[Example]:
        """The batches of each validation."""
        return self.validation
