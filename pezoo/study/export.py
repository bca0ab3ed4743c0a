"""A study's model of the library transformers as a folder that transformers loads."""

import shutil
from pathlib import Path

from pezoo.errors import UserError
from pezoo.model.transformer import Transformer
from pezoo.study.models import find_model


def export_model(
    folder: str | Path,
    scheme: str,
    to: str | Path,
    *,
    length: int | None = None,
    seed: int | None = None,
    part: str | None = None,
) -> tuple[str, int]:
    """Save a model of a study as `pezoo.export` does, with the tokenizer of the model that it began with.

    Args:
        folder: of the study.
        scheme: a row's label.
        to: where to write; empty, or not there yet.
        length: as in `pezoo.export`; default: the longest that the model was tuned at, if it was.
        seed: of the training or tuning.
        part: of the recipe, if the row is in several.

    Returns:
        The label and the seed of what was saved.

    Raises:
        UserError: if there is no such model, it is pezoo's own, or transformers cannot be told the scheme.
    """
    found = find_model(folder, scheme, seed, part)
    if isinstance(found.model, Transformer):
        raise UserError(
            f"{found.label!r} of {folder} is pezoo's own Transformer, which transformers does not have; "
            "studies of somebody's model can be exported: pezoo evaluate --help"
        )
    from pezoo.pretrained.export import export
    from pezoo.pretrained.source import TOKENIZER_FILES

    tuned = [n for n, why in found.lengths.items() if why == "tuning"]
    export(found.model.model, to, length=length or max(tuned, default=None))
    source = found.inputs["body"]["folder"]
    for name in TOKENIZER_FILES if source else ():
        if (file := Path(source) / name).is_file() and not (Path(to) / name).exists():
            shutil.copyfile(file, Path(to) / name)
    return found.label, found.seed
