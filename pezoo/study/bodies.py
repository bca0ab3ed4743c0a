"""A model of transformers as the body of a study: what a recipe says of it, and what planning has to know.

Nothing here imports transformers before such a model is asked for.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pezoo.data.material import Material
from pezoo.errors import UserError, brief
from pezoo.pretrained import source as sources
from pezoo.pretrained.source import Source
from pezoo.pretrained.with_own import with_own
from pezoo.results import LANGUAGE_MODELLING
from pezoo.scheme import Spec, parse
from pezoo.study.recipe import BodyConfig, Recipe

if TYPE_CHECKING:
    from pezoo.pretrained.body import Look

OWN = "own"
"""What recipes call the scheme that a model brings."""


@dataclass(frozen=True)
class Foreign:
    """A model of a trial that is not pezoo's."""

    source: Source
    look: "Look"

    @property
    def trained(self) -> bool:
        """Whether it comes with weights, so that the study does not train it."""
        return self.source.folder is not None

    def scheme(self, given: Any) -> Spec:
        """A scheme of the recipe, in which `rope` is the model's own rotation.

        Raises:
            UserError: if there is no such scheme, or it does not fit the model's layers.
        """
        return self.look.own if given == OWN else with_own(parse(given), self.look.layers)


def check(recipe: Recipe) -> None:
    """Refuse what does not go with somebody's model.

    Raises:
        UserError: naming the key.
    """
    given = recipe.model.from_
    if given is None:
        return
    if not isinstance(given, str | Mapping) or not given:
        raise UserError(
            f"model.from must be a folder, a name on the hub, or a config such as {{model_type: llama}}, "
            f"got {brief(given)}"
        )
    for key in dataclasses.fields(BodyConfig):
        value = getattr(recipe.model, key.name)
        if key.name != "from_" and value != key.default:
            raise UserError(f"model.{key.name}={value} has no effect beside model.from; leave it out")
    if recipe.form != "causal":
        raise UserError(f"form={recipe.form}: a model of model.from is a decoder; type form=causal")
    if recipe.backend != "auto":
        raise UserError(f"backend={recipe.backend} is not read beside model.from; type backend=auto")
    if isinstance(given, str) and recipe.tasks != [LANGUAGE_MODELLING]:
        raise UserError(
            f"tasks={recipe.tasks} are trained on, and {given} is trained already; put what it is asked into test.tasks"
        )
    if isinstance(given, str) and recipe.train.lrs:
        raise UserError(f"train.lrs={recipe.train.lrs} has no effect: {given} is trained already; leave it out")


def complete(recipe: Recipe, length_is_said: bool) -> None:
    """Fill in what follows from a trained model: the training length and the tokenizer, where they are not said.

    Args:
        recipe: with its parts; changed in place.
        length_is_said: whether somebody has set train.length.

    Raises:
        UserError: if there is no such model, or it is silent.
    """
    if isinstance(recipe.model.from_, str):
        check(recipe)
        if not length_is_said:
            recipe.train.length = _length(recipe.model.from_)
        if recipe.data.tokenizer is None:
            recipe.data.tokenizer = _tokenizer(recipe.model.from_)
    for part in recipe.parts.values():
        own = part.get("model") if isinstance(part, dict) else None
        given = own.get("from") if isinstance(own, dict) else None
        if not isinstance(given, str):
            continue
        groups = {name: part.setdefault(name, {}) for name in ("train", "data")}
        if not all(isinstance(group, dict) for group in groups.values()):
            continue  # refused elsewhere
        if not length_is_said and "length" not in groups["train"]:
            groups["train"]["length"] = _length(given)
        if recipe.data.tokenizer is None and "tokenizer" not in groups["data"]:
            groups["data"]["tokenizer"] = _tokenizer(given)


def _length(given: str) -> int:
    found = sources.stated_length(sources.find(given))
    if found is None:
        raise UserError(f"the config of {given} does not say how long its training texts were; type train.length=...")
    return found


def _tokenizer(given: str) -> str | None:
    """The tokenizer that a model was trained with; None is bytes."""
    folder = sources.find(given)
    if sources.holds_tokenizer(folder):
        return str(folder) if sources.is_here(given) else given
    size = sources.config_of(Source(str(folder))).get_text_config().vocab_size
    if size not in sources.BYTES:
        raise UserError(
            f"{given} holds no tokenizer, and its vocabulary of {size} is not bytes; type data.tokenizer=NAME_OR_FOLDER"
        )
    return None


def find_body(recipe: Recipe, material: Material, train_tokens: int) -> Foreign | None:
    """The model that a part of a recipe names by `model.from`; None where it is pezoo's Transformer.

    Raises:
        UserError: if it cannot be read, cannot take schemes, or does not fit the data or the training length.
    """
    given = recipe.model.from_
    if given is None:
        return None
    if isinstance(given, str):
        folder = sources.find(given)
        stated = sources.stated_length(folder)
        if stated not in (None, train_tokens):
            raise UserError(
                f"train.length={train_tokens}, but {given} was trained at {stated}, as its config states; "
                f"type train.length={stated}"
            )
        source = Source(str(folder), digest=sources.digest_of(folder))
    else:
        source = Source(config=sources.as_config(given, material.vocab_size, train_tokens))
    look = _look(json.dumps(dataclasses.asdict(source)), train_tokens)
    if look.vocab_size < material.vocab_size:
        raise UserError(
            f"the data has a vocabulary of {material.vocab_size}, and the model of model.from {look.vocab_size}; "
            "type data.tokenizer=... for the tokenizer that it was trained with"
        )
    sizes = {"parameters": look.parameters, "width": look.shape.d_model, "layers": look.shape.n_layers}
    return Foreign(dataclasses.replace(source, sizes=sizes), look)


@functools.lru_cache(maxsize=16)
def _look(source: str, train_length: int) -> "Look":
    """A look at a model, once in a process."""
    from pezoo.pretrained.body import look

    return look(Source(**json.loads(source)), train_length)
