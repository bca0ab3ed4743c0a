"""`pezoo evaluate`: schemes in somebody's trained model, tested long, without a recipe."""

import contextlib
import math
import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pezoo.cli.run import carry_out, refuse_dashes, refuse_windows
from pezoo.cli.shared import add_plugin, at_least_one, make_parser
from pezoo.errors import UserError, brief


def evaluate(argv: list[str]) -> int:
    """Test schemes in a trained model of transformers, past its training length."""
    parser = make_parser(
        "evaluate",
        evaluate,
        'pezoo evaluate PATH --schemes "rope, rope+pi, rope+yarn" --lengths 1x,2x,4x --data ~/books',
        "pezoo evaluate PATH --schemes own,rope+yarn --data ~/books --tune 200 --protocol sliding:stride=256",
        "pezoo evaluate PATH --schemes rope+yarn --data ~/books --tune 200 tune.weights=lora tune.checkpointing=true",
        "pezoo evaluate PATH --schemes rope+pi --data ~/books --windows 8 --dry-run",
        note="PATH is a folder with config.json and safetensors, or a name on the hub.\n"
        "rope is the model's own rotation; own is all that its config says, such as a scaling.\n"
        "It is a study like any other: what is finished is not done again, and pezoo report, generate\n"
        "and export read it. Tests read a tenth of the documents of --data, which tuning does not.\n"
        "Any key of a recipe can be set as well, such as tune.batch_size=1 or train.precision=bf16-mixed.\n\n",
    )
    parser.add_argument("model", metavar="PATH", help="the model")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="sets a key of the recipe")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="texts, or one text")
    parser.add_argument("--schemes", default="own, rope+pi, rope+yarn", metavar="LIST", help="default: %(default)s")
    parser.add_argument("--lengths", default="1x,2x,4x", metavar="LIST", help="tested; default: %(default)s")
    parser.add_argument("--tune", default="", metavar="LIST", help="also after so many steps of tuning")
    parser.add_argument("--lr", type=float, help=f"peak learning rate of tuning; default: {LR}")
    parser.add_argument("--tune-length", metavar="N", help="length of tuning; default: the longest tested")
    parser.add_argument("--protocol", action="append", default=[], metavar="NAME", help="repeatable; default: prefix")
    parser.add_argument("--tasks", default="", metavar="LIST", help="asked beside the text, such as passkey_text")
    parser.add_argument(
        "--windows", type=at_least_one, default=32, metavar="N", help="of text, for each length; default: 32"
    )
    parser.add_argument("--seeds", default="0", metavar="LIST", help="of tuning; default: 0")
    parser.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda or mps; default: auto")
    parser.add_argument("--out", metavar="DIR", help="folder of the study; default: runs/evaluate-<name of the model>")
    parser.add_argument("--replace", action="store_true", help="if the folder holds another study, replace it")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and how long it takes")
    add_plugin(parser)
    try:
        args = parser.parse_intermixed_args(argv)
    except UserError:
        refuse_dashes(argv, dotted=True)
        raise

    refuse_windows()
    from pezoo.registry import load_plugin
    from pezoo.study import Study

    for plugin in args.plugin:
        load_plugin(plugin)
    study = Study.prepare(recipe_of(args), args.overrides, args.out, args.plugin, args.replace)
    return carry_out(study, args.dry_run)


def recipe_of(args: Namespace) -> dict[str, Any]:
    """The recipe that the options stand for.

    Raises:
        UserError: if a list holds what it cannot.
    """
    lengths, steps = [as_length(text) for text in listed(args.lengths)], numbers("--tune", args.tune)
    idle = [name for name, value in {"--lr": args.lr, "--tune-length": args.tune_length}.items() if value is not None]
    if idle and not any(steps):
        raise UserError(f"{' and '.join(idle)}: no tuning is asked for; add --tune 200, or leave it out")
    name = re.sub(r"[^\w.-]+", "-", Path(args.model).name) or "model"
    length = longest(lengths) if args.tune_length is None else as_length(args.tune_length)
    if length is None and any(steps):
        raise UserError(f"--lengths {args.lengths} has tokens and multiples; say how long tuning is: --tune-length N")
    tune = {"steps": list(dict.fromkeys([0, *steps])), "length": lengths[-1] if length is None else length}
    if (least := min(filter(None, steps), default=WARM_UP + 1)) <= WARM_UP:
        tune["warmup_steps"] = least // 10
    from pezoo.pretrained.source import is_here

    return {
        "study": f"evaluate-{name}",
        "description": f"Which schemes carry {name} past its training length?",
        "model": {"from": str(Path(args.model).expanduser().absolute()) if is_here(args.model) else args.model},
        "data": {"corpus": "text", "path": str(Path(args.data).expanduser().absolute())},
        "schemes": schemes_of(args.schemes),
        "seeds": numbers("--seeds", args.seeds),
        "device": args.device,
        "tune": tune | {"lr": LR if args.lr is None else args.lr},
        "test": {
            "lengths": lengths,
            "protocols": args.protocol,
            "windows": args.windows,
            "tasks": listed(args.tasks),
        },
    }


LR = 2e-5
"""Peak learning rate of a tuning."""
WARM_UP = 10
"""Steps of warm-up of a tuning that is longer."""


def listed(text: str) -> list[str]:
    """Items between commas."""
    return [item.strip() for item in text.split(",") if item.strip()]


def as_length(text: str) -> int | str:
    """A length as recipes have it: tokens, or a multiple such as 4x."""
    return int(text) if text.isdecimal() else text


def longest(lengths: Sequence[int | str]) -> int | str | None:
    """The longest of lengths; None where some are tokens and some multiples of a length that is not known yet.

    >>> longest([2048, 512]), longest(["4x", "0.5x"]), longest(["4x", 512]), longest([])
    (2048, '4x', None, '1x')
    """
    if len({type(length) for length in lengths}) > 1:
        return None

    def size(length: int | str) -> float:
        with contextlib.suppress(ValueError):
            return float(str(length).removesuffix("x"))
        return math.inf  # it is none, as the recipe's checks say

    return max(lengths, key=size, default="1x")


def numbers(option: str, text: str) -> list[int]:
    """Whole numbers between commas.

    Raises:
        UserError: if there is anything else.
    """
    if not all(item.isdecimal() for item in listed(text)):
        raise UserError(f"{option} takes whole numbers such as 0,200, got {brief(text)}")
    return list(dict.fromkeys(int(item) for item in listed(text)))


def schemes_of(text: str) -> list[str]:
    """Schemes between commas; a comma within a list of settings does not part any.

    >>> schemes_of("rope, rope+random:at=train,test, own")
    ['rope', 'rope+random:at=train,test', 'own']
    """
    from pezoo.registry import entries

    found: list[str] = []
    for item in listed(text):
        inside = found and ":" in found[-1] and re.split(r"[+:]", item)[0] not in {"own", *entries()}
        if inside:
            found[-1] += f",{item}"
        else:
            found.append(item)
    return found
