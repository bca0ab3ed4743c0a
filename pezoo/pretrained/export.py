"""Models under a scheme, saved so that transformers runs them without pezoo: `pezoo.export(model, folder)`."""

import copy
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pezoo import files
from pezoo.compose import Scheme
from pezoo.errors import UserError, brief
from pezoo.pretrained.attach import CHILD, Attached
from pezoo.pretrained.fit import fit
from pezoo.pretrained.rope_parameters import Told, Turn, told
from pezoo.pretrained.seam import NoRotation
from pezoo.pretrained.source import quiet


def export(
    model: Any,
    folder: str | Path,
    scheme: str | Mapping[str, Any] | None = None,
    *,
    length: int | None = None,
    train_length: int | None = None,
) -> Path:
    """Save a model as a Hugging Face folder, under a scheme, for transformers without pezoo (`pezoo.export`).

    Weights are written as safetensors, and the config gets the `rope_parameters` under which the model turns queries
    and keys as the scheme does. So the scheme may change the rotation, and one temperature for all queries; whatever
    else it does is refused. The model itself stays as it is. A tokenizer is saved by its own `save_pretrained`.

    Args:
        model: a decoder of transformers, attached or not. Merge adapters first (`merge_and_unload`).
        folder: where to write; empty, or not there yet.
        scheme: as in `attach`, such as "rope+yarn:factor=4"; None: what is attached, or else the model's own.
        length: tokens of the texts to come. Rules that follow the length, unset factors among them, are written as they
            are at this length; without, those that transformers cannot follow are refused. `max_position_embeddings`
            is this, or what the scheme reaches, its factor times the training length, where that is more; under
            rope_type dynamic it is the training length.
        train_length: as in `attach`.

    Returns:
        The folder.

    Raises:
        UserError: if transformers cannot be told the scheme, with the reason, or the folder is taken.
    """
    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"export takes a model of the library transformers, not {type(model).__name__}; "
            "merge adapters first: model.merge_and_unload()"
        )
    if length is not None and (type(length) is not int or length < 1):
        raise UserError(f"length must be a whole number above 0, not {brief(length)}")
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} is there already; name a folder that is empty or not there")
    built, length = _scheme(model, scheme, length, train_length)
    found = told(built, model.config, length)
    config = copy.deepcopy(model.config)
    for name, value in found.settings.items():
        setattr(config, name, value)
    _look(model, config, found, built)
    part = folder.with_name(f".{folder.name}.part")
    files.remove(part)
    try:
        with quiet():
            model.save_pretrained(part, state_dict=_weights(model))
        config.architectures, config.dtype = model.config.architectures, model.config.dtype
        config.save_pretrained(part)
        files.move(part, folder)
    finally:
        files.remove(part)
    return folder


def _scheme(
    model: PreTrainedModel, scheme: Any, length: int | None, train_length: int | None
) -> tuple[Scheme, int | None]:
    """The scheme built for a model, and the length at which its rules are written."""
    attached = getattr(model, CHILD, None)
    if not isinstance(attached, Attached):
        return fit(model, scheme, train_length, 0).scheme, length
    if scheme is not None or train_length is not None:
        raise UserError(
            f"{attached.scheme.spec} is attached to the model; leave scheme= out, or call pezoo.detach first"
        )
    return attached.scheme, length or attached.length


def _weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The model's own weights, without those of a scheme."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(f"{CHILD}.")}


# ---- a look at what transformers makes of it ----------------------------------------------------


def _look(model: PreTrainedModel, config: Any, found: Told, scheme: Scheme) -> None:
    """Refuse a config from which the model's own rotary module makes other tables than the scheme's.

    Raises:
        UserError: if a family reads its config in a way of its own.
    """
    for rotary in _rotaries(model):
        try:
            made = type(rotary)(config=config)
        except TypeError:
            continue  # made in a way that is not known here
        for kind, turns in found.turns.items():
            for total, turn in turns.items():
                places = torch.tensor([[0, 1, total // 2, total - 1]])
                given = made(torch.zeros(1), places, *([] if kind is None else [kind]))
                if not _alike(given, places[0], turn):
                    raise UserError(
                        f"{type(model).__name__} makes something else of its rope_parameters than {scheme.spec} "
                        f"for texts of {total} tokens; it cannot be exported"
                    )


def _alike(given: Any, places: Tensor, turn: Turn) -> bool:
    """Whether a rotary module's tables are those of a scheme: one column a pair, or two, apart or side by side."""
    cos, sin = (given.real, given.imag) if isinstance(given, Tensor) else given
    angles, n = places[:, None].double() * turn.frequencies, len(turn.frequencies)
    ours = torch.stack((angles.cos(), angles.sin())) * math.sqrt(turn.temperature)
    theirs = torch.stack((cos[0], sin[0])).double()
    # float32 knows an angle as well as it knows the place.
    close = 1e-5 + 1e-6 * float(places.max())
    columns = (theirs[..., :n], theirs[..., ::2])
    return any(c.shape == ours.shape and torch.allclose(ours, c, atol=close) for c in columns)


def _rotaries(model: PreTrainedModel) -> Iterator[nn.Module]:
    for module in model.get_decoder().modules():
        if type(module).__name__.endswith("RotaryEmbedding") and not isinstance(module, NoRotation):
            yield module
