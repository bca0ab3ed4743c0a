"""The files of a checkpoint: config.json, and weights as safetensors, in one file or in shards.

Names, shapes and precisions are read from the heads of the files, before any weight is. Pickles are never read.
"""

import json
import math
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pezoo.errors import UserError, brief, cut, suggest
from pezoo.typed import said

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Precisions that are read, by their names in safetensors."""
PIECE = 2**23
"""Bytes of a tensor that are read together."""
AGAIN = "download or save it again"


def find_folder(path: str | Path) -> Path:
    """The folder of a checkpoint: a local one, or that of a name on the Hugging Face hub, downloaded once.

    Raises:
        UserError: if there is neither, or the hub cannot be reached.
    """
    if Path(path).is_dir():
        return Path(path)
    name = str(path)
    if Path(path).exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        what = "a file" if Path(path).exists() else "not there"
        raise UserError(f"{brief(name)} is {what}; name a folder with {CONFIG}, or a model of the hub as OWNER/NAME")
    if find_spec("huggingface_hub") is None:
        raise UserError(f"there is no folder {name}, and the hub needs a package: type `pip install 'pezoo[hf]'`")
    import huggingface_hub

    wanted = [CONFIG, INDEX, SINGLE, "model-*.safetensors", "pytorch_model*.index.json"]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except (OSError, ValueError, RuntimeError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise UserError(
            f"there is no folder {name}, and it cannot be had from the Hugging Face hub: {said(error)}"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """A file of the checkpoint that holds a mapping.

    Raises:
        UserError: if it is missing, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}; name a folder that save_pretrained wrote") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {said(error)}; {AGAIN}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold a mapping, not {brief(found)}; {AGAIN}")
    return found


class Weights:
    """The tensors of a checkpoint: their shapes and precisions, and a way to read them one by one.

    Raises:
        UserError: if weights are missing, damaged, pickles, or of a precision that is not read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        for file in self._files():
            self._look(file)

    def _files(self) -> list[Path]:
        single, index = self.folder / SINGLE, self.folder / INDEX
        if single.is_file():
            return [single]
        if not index.is_file():
            if pickles := sorted(path.name for path in self.folder.glob("pytorch_model*.bin")):
                raise UserError(
                    f"{self.folder} has its weights as pickles alone ({cut(', '.join(pickles))}), which could run code "
                    "and are not read. Load it by transformers once, and type model.save_pretrained(FOLDER)"
                )
            raise UserError(f"{self.folder} has neither {SINGLE} nor {INDEX}; {AGAIN}")
        told = read_json(index).get("weight_map")
        if not isinstance(told, dict) or not all(isinstance(n, str) and Path(n).name == n for n in told.values()):
            raise UserError(f"{index} must have a weight_map, from names of tensors to names of files; {AGAIN}")
        files = sorted(set(told.values()))
        missing = [name for name in files if not (self.folder / name).is_file()]
        if missing:
            raise UserError(
                f"{self.folder} lacks {cut(', '.join(missing))}, {len(missing)} of the {len(files)} files that "
                f"{INDEX} names; {AGAIN}"
            )
        return [self.folder / name for name in files]

    def _look(self, file: Path) -> None:
        import safetensors

        try:
            with safetensors.safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no mapping
                    part = opened.get_slice(name)
                    self.files[name], self.shapes[name] = file, tuple(part.get_shape())
                    if part.get_dtype() not in DTYPES:
                        raise UserError(
                            f"{file}: {name} has the precision {part.get_dtype()}, and weights are read in "
                            f"{', '.join(DTYPES)}. Take a checkpoint that is not quantised"
                        )
                    self.dtypes[name] = DTYPES[part.get_dtype()]
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{file} is damaged, cut short or no safetensors: {said(error)}; {AGAIN}") from None

    def check(self, wanted: dict[str, tuple[int, ...]], ignored: str) -> None:
        """Refuse a checkpoint that lacks tensors, has others, or has them in other shapes.

        Args:
            wanted: shapes by name, as the config asks for them.
            ignored: a pattern of names that may be there as well.

        Raises:
            UserError: naming the tensor.
        """
        surplus = [name for name in self.files if name not in wanted and not re.search(ignored, name)]
        if missing := [name for name in wanted if name not in self.files]:
            near = suggest(missing[0], surplus)
            raise UserError(
                f"{self.folder} lacks {len(missing)} of the {len(wanted)} tensors that its {CONFIG} asks for, such as "
                f"{missing[0]}.{near} Either the files or {CONFIG} are of another model; {AGAIN}"
            )
        if surplus:
            raise UserError(
                f"{self.files[surplus[0]]} has {len(surplus)} tensors that {CONFIG} does not ask for, such as "
                f"{surplus[0]}, and they would be left out. Take the {CONFIG} that belongs to the weights, or "
                "use pezoo.attach"
            )
        for name, shape in wanted.items():
            if self.shapes[name] != shape:
                raise UserError(
                    f"{self.files[name]}: {name} has the shape {self.shapes[name]}, and {CONFIG} asks for {shape}. "
                    f"Either the file or {CONFIG} is of another model; {AGAIN}"
                )

    def pieces(self, name: str, unit: int = 1) -> Iterator[tuple[int, Tensor]]:
        """The rows of a tensor, a few megabytes at a time, each with the number of its first row.

        Files are mapped, and opened anew for each piece: what was read counts as memory until its file is closed.

        Args:
            name: of the tensor.
            unit: rows that stay together.
        """
        import safetensors

        shape = self.shapes[name]
        row = self.dtypes[name].itemsize * math.prod(shape[1:])
        step = max(1, PIECE // (row * unit)) * unit
        for start in range(0, shape[0], step):
            with safetensors.safe_open(self.files[name], "pt") as opened:
                yield start, opened.get_slice(name)[start : start + step]
