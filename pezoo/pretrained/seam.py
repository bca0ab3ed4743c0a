"""Where transformers lets others in: the rotary module, the attention function, and the function that makes masks.

The rotary module is put aside, so that queries, keys and caches stay unrotated. The attention function gets them, and
asks what is attached to the model. The mask function is that of sdpa, which also says what the mask was made of.

Legend: B batch, H heads, L tokens, Lq queries, Lk keys, d head_dim.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from pezoo.errors import UserError

NAME = "pezoo"
"""What the attention function and the mask function are registered as."""
ATTACHED = "_pezoo_attached"
"""Where a layer's attention finds what is attached to its model; not an attribute that a module would register."""
VALID = "_pezoo_valid"
"""Where a mask (B, 1, Lq, Lk) keeps the mask of padding (B, L) that it was made of."""
TRAINED = "_pezoo_trained"
"""Where a table of positions that is put aside keeps whether it was trained."""

Attend = Callable[..., tuple[Tensor, None]]


def register() -> None:
    """Make the names known to transformers. Doing so again changes nothing."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)


def attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention of one layer by what is attached to its model: (B, Lq, H, d), and no weights."""
    attend: Attend = module.__dict__[ATTACHED].attention
    return attend(module, q, k, v, attention_mask, **kwargs)


def mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """The mask that sdpa would get, (B, 1, Lq, Lk), bool, or None; it remembers the padding."""
    made: Tensor | None = sdpa_mask(*args, attention_mask=attention_mask, **kwargs)
    if made is not None:
        made = made.contiguous()  # transformers would copy it, and lose what it remembers
        setattr(made, VALID, attention_mask)
    return made


class NoRotation(nn.Module):
    """Stands for a rotary module: turns by the angle 0, in tensors of the same shapes."""

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        self.rotary = rotary
        self.like: dict[Any, tuple[Tensor, ...]] = {}  # by kind of layer, one token of what the rotary module gives

    def __getattr__(self, name: str) -> Any:
        """What the model asks of its rotary module, such as its config."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("rotary"), name)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Cosines of 1 and sines of 0, or complex numbers of 1, for as many tokens as there are positions."""
        positions = kwargs.get("position_ids", args[0] if args else None)
        kind = kwargs.get("layer_type", args[1] if len(args) > 1 else None)
        if kind not in self.like:
            self.like[kind] = self._one_token(x, *args, **kwargs)

        def filled(like: Tensor, value: float) -> Tensor:
            dtype = like.dtype if like.is_complex() else x.dtype
            one = torch.full((1,), value, dtype=dtype, device=x.device)
            return one.expand(*positions.shape, like.shape[-1])

        made = tuple(filled(like, 1.0 - i) for i, like in enumerate(self.like[kind]))
        return made if len(made) > 1 else made[0]

    @torch.compiler.disable
    @torch.no_grad()
    def _one_token(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """What the rotary module, a copy that may remember it, gives for one token."""
        positions = kwargs.get("position_ids", args[1] if len(args) > 1 else None)
        found = copy.deepcopy(self.rotary)(*args, **kwargs)
        found = found if isinstance(found, tuple) else (found,)
        if any(t.shape[:-1] != positions.shape for t in found):
            raise UserError("its rotary module does not give one line of cosines and sines for each position")
        return tuple(t[:1, :1].cpu() for t in found)


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a model that reads tokens: embeddings, layers, no head."""
    found = model.get_decoder()
    found = found if isinstance(found, PreTrainedModel) else model.base_model
    inside = (child for child in model.children() if isinstance(child, PreTrainedModel))
    return next(inside, found) if found is model else found  # Llama 4 calls its decoder by another name


def rotary_modules(decoder: nn.Module) -> list[str]:
    """Names of the modules that make cosines and sines."""
    return [name for name, module in decoder.named_modules() if type(module).__name__.endswith("RotaryEmbedding")]


def put_aside(decoder: nn.Module, names: list[str]) -> None:
    """Have modules stand for the rotary ones that do not turn anything."""
    for name in names:
        decoder.set_submodule(name, NoRotation(decoder.get_submodule(name)))


def bring_back(decoder: nn.Module, names: list[str]) -> None:
    """Undo `put_aside`."""
    for name in names:
        stand_in = decoder.get_submodule(name)
        assert isinstance(stand_in, NoRotation)
        decoder.set_submodule(name, stand_in.rotary)


def clear_table(table: nn.Embedding) -> None:
    """Have a model's table of positions give zeros, whatever is looked up; it is not trained then."""
    table.__dict__["forward"] = partial(_zeros, table)
    table.__dict__[TRAINED] = table.weight.requires_grad
    table.weight.requires_grad_(False)


def restore_table(table: nn.Embedding) -> None:
    """Undo `clear_table`."""
    table.__dict__.pop("forward", None)
    table.weight.requires_grad_(table.__dict__.pop(TRAINED, table.weight.requires_grad))


def _zeros(table: nn.Embedding, *args: Any, **kwargs: Any) -> Tensor:
    return table.weight.new_zeros(1, 1, table.embedding_dim)


register()  # also where a model is unpickled that `attach` was called for elsewhere
