"""Other people's models: what configs say of positions, schemes inside models, and schemes told to transformers."""

from importlib.util import find_spec

from pezoo.errors import UserError


def need_transformers() -> None:
    """Raise a UserError if the library transformers is not installed; pezoo itself works without it."""
    if find_spec("transformers") is None:
        raise UserError("models of others need the package transformers: type `pip install 'pezoo[hf]'`")


def need_safetensors() -> None:
    """Raise a UserError if the library safetensors is not installed, which reads weights without transformers."""
    if find_spec("safetensors") is None:
        raise UserError("weights of others need the package safetensors: type `pip install 'pezoo[hf]'`")
