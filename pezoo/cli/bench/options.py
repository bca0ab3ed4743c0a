"""Options of a training, beside float32 that is not compiled: what a step takes, and what becomes of the loss."""

import shutil
from typing import Any, get_args

import torch

from pezoo.cli.bench.measuring import Extent, over, rounds
from pezoo.cli.bench.models import SIZES, Run, build, of_pezoo, training
from pezoo.training.config import Precision, TrainConfig

SCHEMES = ("rope", "alibi")
OPTIONS = ("bf16-mixed", "bf16-true", "compile")
"""Precisions as `train.precision` has them, and blocks that PyTorch compiles."""
PLAIN: Precision = "32-true"
"""What they are held against."""
LENGTH = 256
"""Tokens of a text whose training step is timed."""
BATCH = 8
"""Texts of a batch of those whose losses are compared: a processor without bf16 takes its time."""


def options(device: str, extent: Extent) -> list[dict[str, Any]]:
    """Each option with each scheme: time of a training step, and of precisions the validation loss less float32's.

    Losses are those of the quickstart's model, trained on its text for few steps, with several seeds. The interval of
    their difference is Student's, over seeds: weights and batches of a seed are the same in each precision.
    """
    from pezoo.data import DataConfig, load

    corpus, rows = load(DataConfig()), []
    tried = OPTIONS if shutil.which("c++") else [option for option in OPTIONS if option != "compile"]
    for scheme in SCHEMES:
        runs = {option: step(scheme, option, device, extent) for option in (PLAIN, *tried)}
        ratios = over(PLAIN, rounds(runs, extent.processes, device))
        in_float32 = losses(scheme, PLAIN, corpus, device, extent)
        for option in tried:
            row = {"scheme": scheme, "option": option, "step": vars(ratios[option])}
            if option in get_args(Precision):
                found = losses(scheme, option, corpus, device, extent)
                row |= {"steps": 2 * extent.steps, "losses": found, "losses_in_float32": in_float32}
                row |= {"loss": difference(found, in_float32)}
            rows.append(row)
    return rows


def step(scheme: str, option: str, device: str, extent: Extent) -> Run:
    """A training step of the goals' model, on a quarter of the goals' tokens."""
    length = extent.length(LENGTH)
    model = build(scheme, device, length, **SIZES).train()
    if option == "compile":
        for block in model.blocks:
            block.compile()
    if option == "bf16-true":
        model.to(torch.bfloat16)
    mixed = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=option == "bf16-mixed")
    return training(mixed(of_pezoo(model)), model.parameters(), length, extent.batch // 4)


def losses(scheme: str, precision: Any, corpus: Any, device: str, extent: Extent) -> list[float | None]:
    """The validation loss of each seed after the last step, in nats a token; None where it is no number."""
    from pezoo.training.fit import fit

    steps, found = 2 * extent.steps, []
    settings = TrainConfig(steps=steps, warmup_steps=steps // 6, batch_size=BATCH, precision=precision)
    for seed in range(extent.losses):
        model = build(scheme, device, settings.length, seed=seed, vocab_size=corpus.vocab_size)
        how: dict[str, Any] = {"seed": seed, "length": settings.length, "device": device}
        found.append(fit(model, corpus.train, corpus.validation, settings, **how).validation_loss)
    return found


def difference(found: list[float | None], base: list[float | None]) -> dict[str, float | None]:
    """How far losses lie above others of the same seeds: the mean, and the ends of its interval of 95 %.

    All are None where a loss is missing; with one seed there are no ends.
    """
    from pezoo.report.intervals import interval

    above = [a - b for a, b in zip(found, base, strict=True) if a is not None and b is not None]
    if len(above) < len(found):
        return {"mean": None, "low": None, "high": None}
    low, high = interval(above) or (None, None)
    return {"mean": sum(above) / len(above), "low": low, "high": high}
