"""`pezoo check` and `pezoo new`."""

import shlex

from pezoo.cli.shared import (
    add_json,
    add_plugin,
    as_named,
    escape,
    load_plugins,
    make_console,
    make_parser,
    print_json,
    say,
)
from pezoo.errors import UserError, brief


def check(argv: list[str]) -> int:
    """Hold a member, a task, or a file of your own, to the conformance kit."""
    parser = make_parser(
        "check",
        check,
        "pezoo check rope",
        "pezoo check my_encoding.py",
        "pezoo check mqar:n_pairs=8",
        "pezoo check gemma3",
        "pezoo check yarn --only causal",
        note="One line per check: pass, known (a declared deviation), skip (nothing to look at) or FAIL.\n"
        "The exit code is 1 if a check fails. An extension is checked on one encoding of each kind.\n\n",
    )
    parser.add_argument("target", metavar="NAME|FILE.py", help="a member, a task, or a file that registers some")
    parser.add_argument("--only", metavar="CHECK", help="run one check")
    parser.add_argument("--slow", action="store_true", help="run torch.compile's check as well")
    add_json(parser)
    add_plugin(parser)
    args = parser.parse_args(argv)

    from pezoo import testing

    load_plugins(args.plugin)
    target = as_named(args.target)
    if "+" in target and not target.endswith(".py"):
        *_, last = target.split("+")
        raise UserError(f"{brief(target)} is a scheme, and members are checked; type pezoo check {last}")
    console = None if args.json else make_console()
    code, outcomes = testing.command(target, slow=args.slow, only=args.only, console=console)
    if args.json:
        print_json(outcomes)
    return code


def new(argv: list[str]) -> int:
    """Write a file to start an encoding, an extension or a task of your own from."""
    parser = make_parser(
        "new",
        new,
        "pezoo new my_encoding",
        "pezoo new my_extension --kind extension --out mine.py",
        "pezoo new my_task --kind task",
    )
    parser.add_argument("name", metavar="NAME", help="of the member: a-z, 0-9 and _")
    kinds = ("encoding", "extension", "task")
    parser.add_argument("--kind", choices=kinds, default="encoding", help="default: encoding")
    parser.add_argument("--out", metavar="FILE.py", help="default: NAME.py")
    args = parser.parse_args(argv)

    from pezoo.testing.templates import write

    path = write(args.name, args.kind, args.out)
    study = {
        "encoding": f"quickstart 'schemes=[{args.name},rope]'",
        "extension": f"quickstart 'schemes=[rope+{args.name},rope]'",
        "task": f"length_generalization 'tasks=[{args.name}]'",
    }
    file = shlex.quote(str(path))
    say(escape(f"wrote {path}; next:"))
    say(escape(f"  pezoo check {file}"))
    say(escape(f"  pezoo run {study[args.kind]} --plugin {file} --out runs/{args.name}"))
    return 0
