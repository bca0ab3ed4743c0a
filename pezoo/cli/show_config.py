"""`pezoo show --config`: the rope settings of somebody's model as a scheme, and a scheme as such settings."""

import json
from pathlib import Path
from typing import Any

from pezoo.cli.shared import escape, make_console, print_json, shown, table_of, typed_length
from pezoo.errors import UserError


def show_config(file: str, scheme: str | None, length: int | None, as_json: bool) -> int:
    """Print what a config says of positions; with a scheme, what it must say for that, for texts of a length."""
    from pezoo.pretrained.rope_config import read_config

    config = read_json(file)
    read = read_config(config)
    facts: dict[str, Any] = {"scheme": read.scheme, **read.sizes, "remarks": list(read.remarks)}
    if scheme is not None:
        facts |= _told(scheme, length, config, read)
    if as_json:
        print_json(facts)
        return 0
    sizes = f"{read.n_layers} layers, {read.n_heads} heads of width {read.head_dim}, d_model {read.d_model}"
    said = {"scheme": read.scheme, "trained at": f"{read.train_length} tokens", "model": sizes}
    console = make_console()
    console.print(table_of(shown(file), said))
    for remark in read.remarks:
        console.print(f"[yellow]but[/yellow] {escape(shown(remark))}", soft_wrap=True)
    if scheme is not None:
        console.print(f"\nfor [bold]{escape(facts['told'])}[/bold] the config must say", soft_wrap=True)
        print_json(facts["settings"])
    return 0


def _told(scheme: str, length: int | None, config: Any, read: Any) -> dict[str, Any]:
    """A scheme, in which `rope` is the model's own, as settings of the config."""
    from pezoo.compose import build
    from pezoo.contract import Shape
    from pezoo.pretrained.rope_parameters import told
    from pezoo.pretrained.with_own import with_own
    from pezoo.scheme import parse

    spec = with_own(parse(scheme), [parse(rotation) for rotation in read.rotations])
    with typed_length():
        settings = told(build(spec, Shape(**read.sizes)), config, length).settings
    return {"told": str(spec), "settings": settings}


def read_json(file: str) -> Any:
    """The content of a config.json, or of the one in a folder.

    Raises:
        UserError: if it cannot be read.
    """
    path = Path(file)
    path = path / "config.json" if path.is_dir() else path
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {error}") from None
