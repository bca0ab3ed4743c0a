"""A model as a file: its configuration and weights."""

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from pezoo.errors import UserError
from pezoo.files import replacing
from pezoo.model.config import TransformerConfig
from pezoo.model.transformer import Transformer
from pezoo.registry import entry
from pezoo.training.keys import from_stored, to_stored


def save(path: str | Path, model: Transformer, extra: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: the file to write or to replace.
        model: what is kept: its configuration and weights.
        extra: plain values (numbers, texts, lists, dictionaries, tensors) to keep beside them.
    """
    config = to_stored(model.config) | {"scheme": model.scheme.spec.data}
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
    stored = from_stored(TransformerConfig, config)
    if stored.get("backend") == "flex":  # of the GPU that it was trained on
        stored["backend"] = "auto"
    model = Transformer(TransformerConfig(**stored))
    weights = {_today(name, model): weight for name, weight in weights.items()}
    model.to(weights["head.weight"].dtype).load_state_dict(weights)
    return model.eval(), extra


def carry_over(trained: Transformer, model: Transformer) -> None:
    """Copy weights to a model whose scheme has the same encodings, and perhaps other extensions."""
    body = {k: v for k, v in trained.state_dict().items() if not k.startswith("scheme.")}
    missing, unexpected = model.load_state_dict(body, strict=False)
    if unexpected or any(not name.startswith("scheme.") for name in missing):
        raise RuntimeError(f"the trained model does not fit: {unexpected or missing}")
    model.scheme.load_from(trained.scheme)


def _today(name: str, model: Transformer) -> str:
    """Today's name of a weight: 0.1.0 counted the members of a scheme, `parts.0.encodings.0` for `parts.0.fire`."""
    found = re.fullmatch(r"(scheme\.parts\.(\d+))\.(encoding|extension)s\.(\d+)(\.\d+\..+)", name)
    if found is None:
        return name
    part, index, kind, place, rest = found.groups()
    members = [member for member in model.scheme.parts[int(index)].copies() if entry(member).kind == kind]
    return f"{part}.{members[int(place)]}{rest}"
