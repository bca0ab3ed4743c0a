"""What it costs to be ready for a kill: no fault, but a figure."""

import functools
import random
import time
from collections.abc import Iterator

from studies import Case, Place, expect, fault

SIZES = {"0.2M": {"d_model": 64, "n_layers": 4, "n_heads": 4}, "10M": {"d_model": 384, "n_layers": 6, "n_heads": 6}}
MOST = 0.01
"""Of the time between two savings."""


@fault("the state of a training saved", "it takes less than 1 % of the default time between two savings")
def saving(place: Place, short: bool) -> Iterator[Case]:
    """At two sizes of a model, on a CPU."""
    if not short:
        yield functools.partial(_saving, place)


def _saving(place: Place, rng: random.Random) -> str:
    from pezoo.data.material import Questions
    from pezoo.model.config import TransformerConfig
    from pezoo.model.transformer import Transformer
    from pezoo.study.recipe import Recipe
    from pezoo.training.config import TrainConfig
    from pezoo.training.fit import fit
    from pezoo.training.resume import Saver, Saving

    material, measured = Questions("reverse_string", "causal", 32), []
    inner = Saver._save
    for name, size in SIZES.items():
        seconds: list[float] = []

        def timed(self: Saver, trainer: object, seconds: list[float] = seconds) -> None:
            began = time.perf_counter()
            inner(self, trainer)
            seconds.append(time.perf_counter() - began)

        model = Transformer(
            TransformerConfig(
                **size, vocab_size=material.vocab_size, scheme="rope", train_length=material.n_tokens(32), dropout=0.1
            )
        )
        parameters = sum(p.numel() for p in model.parameters())
        Saver._save = timed
        try:
            state = Saving(place.fresh() / "state.pt", {"cell": name}, minutes=1e-9)
            settings = TrainConfig(steps=6, batch_size=2, warmup_steps=1)
            fit(model, material.train, None, settings, seed=0, length=32, log_dir=place.fresh(), saving=state)
        finally:
            Saver._save = inner
        usual = sorted(seconds)[len(seconds) // 2]
        share = usual / (60 * Recipe.save_minutes)
        expect(share < MOST, f"{share:.1%} at {parameters:,} parameters")
        measured.append(f"{usual * 1000:.0f} ms at {name} parameters ({share:.2%})")
    return ", ".join(measured)
