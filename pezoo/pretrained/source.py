"""Where a model of the library transformers comes from: a folder, a name on the hub, or a config as plain data.

Nothing here runs code that comes with a model, and weights are read from safetensors alone.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pezoo.errors import UserError, brief, cut, suggest
from pezoo.pretrained import need_transformers

TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""Files by which a folder says that it holds a tokenizer."""
TOKENIZER_FILES = (*TOKENIZERS, "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
"""All that a tokenizer may consist of."""
WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
"""What is fetched of a model on the hub."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
BYTES = range(256, 513)
"""Sizes of vocabularies that may be bytes, with some special tokens."""


@dataclass(frozen=True)
class Source:
    """A decoder as plain data: where its weights are, or the config that it is made of with random ones.

    Either `folder` is set, or `config`. What moves no number is no part of the names of cells.
    """

    folder: str | None = field(default=None, metadata={"hashed": False})
    """With config.json and safetensors."""
    digest: str | None = None
    """SHA-256 of these files."""
    config: dict[str, Any] | None = None
    """`model_type` and the settings of such a config."""
    sizes: dict[str, int] | None = field(default=None, metadata={"hashed": False})
    """How large it is: parameters, width, layers."""


def find(given: str) -> Path:
    """The folder of a model, given that or a name on the hub, from which it is fetched once.

    Raises:
        UserError: if there is no such model, or it cannot be fetched.
    """
    need_transformers()
    path = Path(given).expanduser()
    if is_here(given):
        return path.resolve()
    if path.exists():
        raise UserError(f"{given} is a file; a model is a folder with config.json and safetensors")
    if given.count("/") > 1 or given[:1] in ("/", ".", "~"):
        raise UserError(f"there is no folder {cut(given)}")
    return _fetched(given)


def is_here(given: str) -> bool:
    """Whether a model is named by its folder, and not as the hub names it."""
    return Path(given).expanduser().is_dir()


@functools.cache
def _fetched(name: str) -> Path:
    from huggingface_hub import snapshot_download

    with contextlib.suppress(Exception):  # it is not here, or not all of it
        folder = Path(snapshot_download(name, allow_patterns=WANTED, local_files_only=True))
        weight_files(folder)
        return folder
    try:
        return Path(snapshot_download(name, allow_patterns=WANTED))
    except Exception as error:  # whatever the network, the hub and the name come to
        why = cut(str(error).strip().partition("\n")[0], 200)
        raise UserError(f"{brief(name)} is no folder here, and cannot be fetched from the hub: {why}") from None


def holds_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZERS)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a model.

    Raises:
        UserError: if there are none, or not all of them.
    """
    index = folder / "model.safetensors.index.json"
    if (single := folder / "model.safetensors").is_file():
        return [single]
    if not index.is_file():
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        why = f"; it has {pickles[0]}, and such files may run code when they are read" if pickles else ""
        raise UserError(
            f"{folder} holds no model.safetensors{why}. Save the model by save_pretrained, which writes safetensors"
        )
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        files = [folder / Path(name).name for name in names]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{index} cannot be read: {cut(str(error), 200)}") from None
    if missing := [path.name for path in files if not path.is_file()]:
        raise UserError(f"{folder} lacks {', '.join(missing[:3])}, which {index.name} names")
    return files


def digest_of(folder: Path) -> str:
    """SHA-256 of a model's config and weights, read once for each time that the files change."""
    files = [folder / "config.json", *weight_files(folder)]
    try:
        stamps = tuple((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files)
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from None
    return _digest(stamps)


@functools.cache
def _digest(stamps: tuple[tuple[str, int, int], ...]) -> str:
    whole = hashlib.sha256()
    for name, _, _ in stamps:
        with open(name, "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def config_of(source: Source) -> Any:
    """The config of a model, as an object of transformers.

    Raises:
        UserError: if there is none, or it is of a kind, or has settings, that transformers does not know.
    """
    need_transformers()
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as DECODERS

    if source.folder is not None:
        try:
            return AutoConfig.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # of a file that may hold anything
            raise UserError(f"{source.folder}/config.json cannot be read: {_said(error)}") from None
    assert source.config is not None
    settings = dict(source.config)
    kind = settings.pop("model_type", None)
    if kind not in DECODERS:
        raise UserError(
            f"model.from.model_type is a kind of decoder that transformers knows, such as llama, not {brief(kind)}."
            f"{suggest(str(kind), DECODERS)}"
        )
    try:
        known = AutoConfig.for_model(kind)
        names = {*known.to_dict(), *type(known).attribute_map}
        if unknown := [name for name in settings if name not in names and name not in OFTEN]:
            raise UserError(f"model.from: {kind} has no setting {brief(unknown[0])}.{suggest(unknown[0], names)}")
        return AutoConfig.for_model(kind, **settings)
    except UserError:
        raise
    except Exception as error:  # transformers checks some settings, each in a way of its own
        raise UserError(f"model.from is no config of {kind}: {_said(error)}") from None


OFTEN = (
    "head_dim",
    "max_position_embeddings",
    "vocab_size",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "rope_parameters",
)
"""Settings that are filled in, or that a config may have without stating it."""


def stated_length(folder: Path) -> int | None:
    """Tokens that a model was trained on, before any extension, as its config states them; None if it does not."""
    from pezoo.pretrained.fit import stated

    return stated(config_of(Source(str(folder))))[0]


def load(source: Source, seed: int = 0) -> Any:
    """The model in float32, on the CPU and in evaluation mode.

    Args:
        source: where it comes from.
        seed: of the weights, where they are random.

    Raises:
        UserError: if a weight is missing or of another shape, or a file is damaged.
    """
    config = config_of(source)
    from transformers import AutoModelForCausalLM

    if source.folder is None:
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False).eval()
        except Exception as error:  # sizes that do not go together, each said in another way
            raise UserError(f"model.from: no {config.model_type} can be made of this config: {_said(error)}") from error
    weight_files(Path(source.folder))
    try:
        with quiet():
            model, found = AutoModelForCausalLM.from_pretrained(
                source.folder,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # said below, with the names
                output_loading_info=True,
            )
    except MemoryError:
        raise
    except Exception as error:  # of files that may hold anything
        raise UserError(f"the model in {source.folder} cannot be loaded: {_said(error)}") from error
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"{source.folder} lacks {_some(missing)}, so that weights would be random")
    if wrong := found["mismatched_keys"]:
        raise UserError(
            f"{source.folder}: {_some(sorted(name for name, *_ in wrong))} has another shape than its config"
        )
    return model.eval()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep from the user the bars and remarks of transformers: what matters of them is a message of ours."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"the weight{'s' * (len(names) > 1)} {', '.join(names[:3])}{more}"


def _said(error: BaseException) -> str:
    return cut(" ".join(str(error).split()) or type(error).__name__, 300)


def as_config(given: Mapping[str, Any], vocab_size: int, length: int) -> dict[str, Any]:
    """A config as a recipe gives it, with what the study knows: the vocabulary and the training length.

    Raises:
        UserError: if it says otherwise.
    """
    settings = dict(given)
    if settings.setdefault("vocab_size", vocab_size) < vocab_size:
        raise UserError(f"model.from.vocab_size={settings['vocab_size']} is less than the data's, {vocab_size}")
    for name in ("max_position_embeddings", "n_positions"):
        if settings.get(name, length) != length:
            raise UserError(f"model.from.{name}={settings[name]} must be the training length, {length}; leave it out")
    settings["max_position_embeddings"] = length
    settings.pop("n_positions", None)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        settings.setdefault(name, None)
    return settings
