"""Weights of others in pezoo's own Transformer: `pezoo.from_pretrained("FOLDER")`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pezoo.compose import build
from pezoo.contract import Shape
from pezoo.errors import UserError, brief
from pezoo.model.config import TransformerConfig
from pezoo.model.transformer import Transformer
from pezoo.pretrained.families import IGNORED, Part, body, parts, settle
from pezoo.pretrained.rope_config import RopeConfig, read_config
from pezoo.pretrained.weights import CONFIG, DTYPES, Weights, find_folder, read_json
from pezoo.pretrained.with_own import with_own
from pezoo.scheme import Spec, parse

NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}


@torch.no_grad()
def from_pretrained(
    path: str | Path,
    *,
    scheme: str | Mapping[str, Any] | None = None,
    dtype: torch.dtype | str | None = None,
    train_length: int | None = None,
    seed: int = 0,
) -> Transformer:
    """Read a checkpoint of another library's decoder into pezoo's own Transformer (`pezoo.from_pretrained`).

    It reads config.json and safetensors of the families Llama, Mistral, Qwen2, Qwen3, SmolLM3 and GPT-NeoX (Pythia),
    without transformers. Tensors are read one by one, so that little more memory is needed than the weights take.

    Args:
        path: a folder, or a name on the Hugging Face hub, such as "EleutherAI/pythia-70m".
        scheme: such as "rope+yarn:factor=4", or a mapping; None: the model's own, which gives the same logits as
            transformers does. As in `attach`, `rope` stands for the model's own rotation without its extensions, layers
            that do not turn stay so, and windows of the model go on, unless the scheme has a window.
        dtype: of the weights, such as torch.bfloat16 or "bfloat16"; default: that of the file's token embeddings.
        train_length: tokens of a text that it was trained on (L); default: as its config states it, before any
            extension.
        seed: of the scheme's own parameters and its random positions.

    Returns:
        The model, on the CPU and in evaluation mode. It has no dropout.

    Raises:
        UserError: if the checkpoint is of another family, asks for what this Transformer has not, or is damaged; or
            the scheme does not fit.
    """
    if dtype is not None and str(dtype).removeprefix("torch.") not in NAMES:
        raise UserError(f"dtype must be one of {', '.join(NAMES)}, not {brief(dtype)}")
    folder = find_folder(path)
    config = read_json(folder / CONFIG)
    try:
        facts = settle(config)
        keys, own = body(facts), read_config(facts)
        plain = TransformerConfig(**keys, seed=seed, train_length=train_length or own.train_length)
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from None
    spec = _scheme(own, scheme)
    shape = Shape(**own.sizes | {"train_length": plain.train_length})
    built = build(spec, shape, seed)
    with torch.device("meta"):
        model = Transformer(plain)
    model.scheme, plain.scheme = built, spec.data
    _fill(model, Weights(folder), facts["model_type"], dtype)
    return model.eval()


def _scheme(own: RopeConfig, given: str | Mapping[str, Any] | None) -> Spec:
    """The model's own scheme, or the one given with what the model has in each layer."""
    whole = parse(own.scheme)
    if given is None:
        return whole
    rotations, layers = [parse(text) for text in own.rotations], whole.layers or (whole,)
    layers *= own.n_layers // len(layers)
    beside = []
    for layer, rotation in zip(layers, rotations, strict=True):
        turning = {member.name for member in rotation.members}
        beside.append([member for member in layer.members if member.name not in turning])
    return with_own(parse(given), rotations, beside)


def _fill(model: Transformer, weights: Weights, family: str, dtype: torch.dtype | str | None) -> None:
    """Give a model without weights those of a checkpoint.

    Raises:
        UserError: if names or shapes are not those that its config asks for.
    """
    config = model.config
    found = list(parts(family, config, config.vocab_size))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    wanted = {name: (rows, *shapes[part.target][1:]) for part in found for name, rows in part.sources}
    heads, embedding = ("lm_head.weight", "embed_out.weight"), found[0].sources[0][0]
    tied = [name for name in heads if config.tie_embeddings and name in weights.files]
    weights.check(wanted | dict.fromkeys(tied, wanted[embedding]), IGNORED)
    to = weights.dtypes[embedding] if dtype is None else NAMES[str(dtype).removeprefix("torch.")]
    state = {part.target: _read(part, weights, shapes[part.target], to) for part in found}
    table = state["embedding.weight"]
    for name in tied:
        pieces = weights.pieces(name)
        if not all(torch.equal(piece.to(to), table[start : start + len(piece)]) for start, piece in pieces):
            raise UserError(
                f"{weights.files[name]}: {name} differs from {embedding}, and tie_word_embeddings in {CONFIG} says "
                "that they are one; set it to false there if the head is to count"
            )
    model.load_state_dict(state, strict=False, assign=True)
    if config.tie_embeddings:
        model.head.weight = model.embedding.weight
    assert not any(p.is_meta for p in model.parameters())


def _read(part: Part, weights: Weights, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """One weight, of the tensors that it is made of."""
    tensor, before = torch.empty(shape, dtype=dtype), 0
    for name, rows in part.sources:
        together = 1 if part.by_head is None else rows // part.by_head  # rows of a head
        for start, piece in weights.pieces(name, together):
            if part.by_head is None:
                tensor[before + start : before + start + len(piece)] = piece
            else:
                heads = piece.unflatten(0, (-1, 3, together // 3)).transpose(0, 1)  # (3, some heads, d, ...)
                first = start // together
                tensor.unflatten(0, (3, part.by_head, -1))[:, first : first + heads.shape[1]] = heads
        before += rows
    return tensor
