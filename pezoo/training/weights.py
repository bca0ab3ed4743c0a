"""Which weights a tuning moves: all, those of the scheme alone, or adapters of low rank beside frozen ones (LoRA).

As text, `all`, `scheme` or `lora:rank=16`. The scheme's own parameters are trained in each.
"""

import contextlib
import dataclasses
import importlib.util
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pezoo.errors import UserError, cut, suggest
from pezoo.model.transformer import Transformer
from pezoo.registry import checked_settings, setting
from pezoo.scheme import read_members


@dataclass
class All:
    """All weights."""


@dataclass
class SchemeAlone:
    """The scheme's own parameters; all else is frozen, as where HeadScale (arXiv 2404.12224) is fitted."""


@dataclass
class Lora:
    """Adapters: a frozen matrix W of a linear layer counts as W + (alpha / rank) B A, where A and B are trained.

    A is drawn, B is zero at first. Once tuned the sum stands in the model, and nothing else tells that it was tuned so.

    Source: Hu et al. 2021 (arXiv 2106.09685), by the library peft. LongLoRA (Chen et al. 2023, arXiv 2309.12307) trains
    embeddings and norms too, without which adapters do not reach the perplexity of a full tuning at long lengths.
    """

    rank: int = setting(8, "rows of A and columns of B", at_least=1)
    alpha: float = setting(16.0, "factor of the adapters, over the rank", above=0)
    dropout: float = setting(0.0, "probability of dropping what an adapter reads", at_least=0, at_most=0.99)
    layers: list[str] = setting(["attention"], "attention, all linear layers, or names such as q_proj")  # noqa: RUF009
    embeddings_and_norms: bool = setting(False, "train embeddings and norms too, as LongLoRA does")


Weights = All | SchemeAlone | Lora
ALL = All()
WAYS: dict[str, type[Weights]] = {"all": All, "scheme": SchemeAlone, "lora": Lora}


def parse_weights(text: str | Weights) -> Weights:
    """Read what is tuned.

    >>> parse_weights("lora:rank=4:layers=q_proj,v_proj").layers
    ['q_proj', 'v_proj']

    Args:
        text: such as "lora:rank=4".

    Raises:
        UserError: if it is malformed, or for an unknown way or setting or a value that the setting cannot take.
    """
    if isinstance(text, Weights):
        return text
    try:
        [(name, settings)] = read_members(text)
    except (UserError, ValueError):
        raise UserError(f"cannot read {cut(repr(text))} as weights to tune; write it like lora:rank=16") from None
    if name not in WAYS:
        raise UserError(f"no weights are called {cut(repr(name))}.{suggest(name, WAYS)} Choose from: {', '.join(WAYS)}")
    return checked_settings(name, WAYS[name], settings)


def stored_weights(weights: Weights) -> dict[str, Any]:
    """What is tuned as plain data, with every setting: part of what names a cell."""
    return {"weights": next(name for name, cls in WAYS.items() if cls is type(weights))} | dataclasses.asdict(weights)


def from_stored_weights(stored: dict[str, Any]) -> Weights:
    """What `stored_weights` was given."""
    return WAYS[stored["weights"]](**{name: value for name, value in stored.items() if name != "weights"})


def check_weights(weights: Weights, model: Transformer, key: str = "tune.weights") -> None:
    """Refuse what cannot be tuned in a model; `key` is where it is set.

    Raises:
        UserError: if the scheme has no parameters, peft is missing, or there is no such layer.
    """
    if isinstance(weights, SchemeAlone) and not any(True for _ in model.scheme.parameters()):
        raise UserError(f"{model.scheme.spec} has no parameters of its own to tune; type {key}=all, or lora")
    if isinstance(weights, Lora):
        if importlib.util.find_spec("peft") is None:
            raise UserError("adapters need the package peft: type `pip install 'pezoo[lora]'`")
        _targets(weights, model)


def count_trained(model: nn.Module) -> int:
    """Parameters of a model that are trained, each once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@contextlib.contextmanager
def tuned(model: Transformer, weights: Weights, seed: int) -> Iterator[None]:
    """While this holds, what is not tuned is frozen, and adapters are in the model; in the end they are merged into it.

    Args:
        model: what is tuned.
        weights: what of it.
        seed: of the adapters' first values.

    Raises:
        UserError: as `check_weights`.
    """
    check_weights(weights, model)
    if isinstance(weights, All):
        yield
        return
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    adapted = _adapted(model, weights, seed) if isinstance(weights, Lora) else contextlib.nullcontext()
    try:
        with adapted:
            model.scheme.requires_grad_(True)
            for parameter, required in before:
                if not required:  # such as a table of positions that has given way
                    parameter.requires_grad_(False)
            yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


@contextlib.contextmanager
def _adapted(model: Transformer, weights: Lora, seed: int) -> Iterator[None]:
    """While this holds, a frozen model has adapters."""
    with warnings.catch_warnings(), torch.random.fork_rng([]):
        warnings.simplefilter("ignore")  # of parts of transformers that peft looks for, and of GPT-2's layers
        import peft

        torch.manual_seed(seed)
        config = peft.LoraConfig(
            r=weights.rank,
            lora_alpha=weights.alpha,
            lora_dropout=weights.dropout,
            target_modules=_targets(weights, model),
        )
        adapters = peft.LoraModel(model, config, "default")
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ("lora_A", "lora_B"):
            _keep_exact(module)
        elif weights.embeddings_and_norms and _is_embedding_or_norm(module):
            module.requires_grad_(True)
    try:
        yield
    finally:
        if any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters()):
            model.float()  # where what was learned is not rounded away
        adapters.merge_and_unload()


def _is_embedding_or_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding) or "norm" in type(module).__name__.lower()


def _targets(weights: Lora, model: Transformer) -> list[str]:
    """Names of the linear layers that get adapters.

    Raises:
        UserError: if nothing is called as the settings say.
    """
    scheme = set(model.scheme.modules())
    kinds = ("Linear", "Conv1D")  # which is what GPT-2 calls them
    linear = [
        name
        for name, module in model.named_modules()
        if type(module).__name__ in kinds and re.search(r"\.\d+\.", name) and module not in scheme
    ]

    def named(wanted: str, name: str) -> bool:
        in_attention = wanted == "attention" and re.search(r"(attn|attention)[^.]*\.", name)
        return wanted == "all" or bool(in_attention) or f".{name}".endswith(f".{wanted}")

    for wanted in weights.layers:
        if not any(named(wanted, name) for name in linear):
            known = ", ".join(dict.fromkeys(["attention", "all", *(name.rpartition(".")[2] for name in linear)]))
            raise UserError(f"lora:layers: no linear layer is called {cut(repr(wanted))}. Choose from: {known}")
    return [name for name in linear if any(named(wanted, name) for wanted in weights.layers)]


def _keep_exact(module: nn.Module) -> None:
    """Let casts of the model around it leave a module in float32 at least: small steps would be rounded away."""
    usual = module._apply

    def apply(fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            least = torch.promote_types(moved.dtype, torch.float32)
            return moved if moved.dtype == least else tensor.to(moved.device, least)

        return usual(move, recurse)

    module._apply = apply
