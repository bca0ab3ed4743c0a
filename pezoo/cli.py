"""The command line, and `pezoo.run`, which does from Python what `pezoo run` does.

Exit codes: 0 all went well (a scheme that is undefined or diverges is a result); 1 a cell failed;
2 the user's mistake, said in one message; 130 stopped with Ctrl-C, 143 with SIGTERM.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pezoo.errors import NeedsPlugins, UserError, brief, suggest
from pezoo.escape import in_terminal, use_plain_streams

if TYPE_CHECKING:
    from pezoo.registry import Entry
    from pezoo.results import Result
    from pezoo.study import Study

# As the survey orders them.
FAMILIES = (
    *("absolute", "relative", "bias", "interpolation", "randomized", "context"),
    *("regular", "deterministic context-free", "context-sensitive", "length generalisation", "recall"),
)
DESCRIPTION = "Trains one small Transformer under many positional encodings, and tests it long."


def run(
    recipe: str | Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    out: str | Path | None = None,
    plugins: Iterable[str | Path] = (),
    replace: bool = False,
) -> "list[Result]":
    """Run a recipe, or go on with it: train what is not trained, test it, write tables and figures.

    Args:
        recipe: path of a YAML file, bare name of one that comes with pezoo, folder of a study to go on with, or keys.
        overrides: `key=value` texts, such as "train.steps=100".
        out: folder of the study; default: that of the study to go on with, else runs/<study>, or runs/<study>-<size>
            for another size than cpu.
        plugins: Python files that register encodings, extensions or tasks.
        replace: whether another study in that folder may be replaced; its trained models stay.

    Returns:
        What `results.jsonl` holds.

    Raises:
        UserError: if the recipe, the data or the folder is wrong; nothing is then written.
    """
    _refuse_windows()
    from pezoo.study import Study

    return Study.prepare(recipe, overrides, out, plugins, replace).run(report=write_report)


def _refuse_windows() -> None:
    """Say where studies run; their processes need pipes and signals that Windows does not have."""
    if sys.platform == "win32":
        raise UserError("studies run on Linux and macOS; on Windows, run pezoo in WSL, the Windows Subsystem for Linux")


def write_report(study: "Study", results: "list[Result]") -> None:
    """Write the tables, figures and TensorBoard's extrapolation view of a study."""
    from pezoo.report.write import write_report as write

    write(results, study.out / "report", study.store.folder, study.out / "tensorboard")


# ---- pezoo list ---------------------------------------------------------------------------------


def list_members(argv: list[str]) -> int:
    """Every member and where it stands in the taxonomy."""
    parser = _parser(
        "list",
        list_members,
        "pezoo list",
        "pezoo list 'ro*'",
        "pezoo list --extensions",
        "pezoo list --tasks",
        "pezoo list --json",
    )
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="names, as in a shell: 'ro*'")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--encodings", action="store_true", help="encodings and literature names only")
    kinds.add_argument("--extensions", action="store_true", help="extensions only")
    kinds.add_argument("--tasks", action="store_true", help="tasks only")
    _add_json(parser)
    _add_plugin(parser)
    args = parser.parse_args(argv)

    from pezoo import registry

    _load_plugins(args.plugin)
    every = not (args.encodings or args.extensions or args.tasks)
    names = registry.list_encodings(args.pattern) if args.encodings or every else []
    names += registry.list_extensions(args.pattern) if args.extensions or every else []
    names += registry.list_tasks(args.pattern) if args.tasks or every else []
    if not names:
        known = list(registry.entries())
        raise UserError(f"nothing is called {brief(args.pattern)}.{suggest(args.pattern, known)} All: pezoo list")
    if args.json:
        _print_json([registry.describe(name) for name in names])
        return 0
    members, width = [registry.entry(name) for name in names], max(map(len, names))
    sections = {"encodings": ("encoding", "alias"), "extensions": ("extension",), "tasks": ("task",)}
    for title, kinds in sections.items():
        shown = [e for e in members if e.kind in kinds]
        families = {e.family for e in shown}
        if shown:
            _say(f"[bold]{title}[/bold]")
        for family in (*(f for f in FAMILIES if f in families), *sorted(families - set(FAMILIES))):
            _say(f"  [bold]{escape(family)}[/bold]")
            for entry in (e for e in shown if e.family == family):
                _say(f"    {_line(entry, width)}")
    return 0


def _line(entry: "Entry", width: int) -> str:
    title = escape(f"{entry.title}, {entry.year}" if entry.year else entry.title)
    stands = f" = {escape(entry.scheme)}" if entry.scheme else ""
    marks = f"  [dim]({', '.join(_marks(entry))})[/dim]" if _marks(entry) else ""
    return f"[cyan]{entry.name:<{width}}[/cyan] {title}{stands}{marks}"


def _marks(entry: "Entry") -> list[str]:
    traits = entry.traits
    if traits is None:
        return []
    marks = {
        "shift-invariant": traits.shift_invariant,
        "random": traits.random,
        "depends on total length": not traits.prefix_stable,
        "causal only": not traits.bidirectional,
    }
    return [mark for mark, holds in marks.items() if holds]


# ---- pezoo show ---------------------------------------------------------------------------------


def show(argv: list[str]) -> int:
    """Facts, equation and settings of a scheme and its members."""
    parser = _parser(
        "show",
        show,
        "pezoo show rope",
        "pezoo show rope+yarn:factor=8",
        "pezoo show shape",
        "pezoo show pi",
        "pezoo show rope+yarn --save yarn.svg",
    )
    parser.add_argument("scheme", metavar="SCHEME", help="a scheme such as rope+pi, or any name of `pezoo list`")
    parser.add_argument("--save", metavar="FILE", help="draw it too, to a .png, .svg or .pdf file")
    _add_json(parser)
    _add_plugin(parser)
    args = parser.parse_args(argv)

    from pezoo import registry
    from pezoo.scheme import parse

    _load_plugins(args.plugin)
    alone = registry.entries().get(args.scheme)
    if alone is not None and alone.kind in ("extension", "task"):
        spec, names = None, [alone.name]
    else:
        spec = parse(args.scheme)
        names = [*spec.encodings, *spec.extensions]
    scheme = None if spec is None else {"scheme": str(spec), "family": spec.family, "settings": spec.data}
    if scheme is not None:
        scheme |= {f"in {phase}ing": str(spec.at(phase)) for phase in ("train", "test")}
    if args.save:
        from pezoo.report import pictures

        print(f"picture: {pictures.save(pictures.picture(args.scheme), args.save)}", file=sys.stderr)
    if args.json:
        _print_json({"scheme": scheme, "members": [registry.describe(name) for name in names]})
        return 0
    console = _console()
    if alone is not None and alone.kind == "alias":
        console.print(f"[bold]{alone.name}[/bold]: {escape(alone.title)}, stands for {escape(alone.scheme)}\n")
    if spec is not None and (spec.extensions or len(names) > 1):
        acting = {
            "training": spec.at("train"),
            "tuning": spec.at("tune"),
            "testing": spec.at("test"),
        }
        console.print(_facts(str(spec), {"family": spec.family} | {f"in {k}": str(v) for k, v in acting.items()}))
    for name in names:
        entry = registry.entry(name)
        console.print(_member(entry))
    return 0


def _member(entry: "Entry") -> Table:
    source = f"{entry.authors} ({entry.year})" if entry.year else entry.authors
    facts = {
        "what": f"{entry.title}, {entry.kind}, {entry.family}",
        "": entry.summary,
        "source": source + (f", arXiv:{entry.arxiv}" if entry.arxiv else ""),
        "equation": entry.equation,
        "traits": ", ".join(_marks(entry)),
    }
    if entry.kind == "task":
        facts["example"] = _example(entry.name)
    facts |= {f":{name}": f"{_plain(p['default'])}  {p['help']}" for name, p in entry.parameters.items()}
    return _facts(entry.name, facts)


def _example(name: str) -> str:
    """A short question of a task with its answer, as text."""
    import torch

    from pezoo.task import make_task

    task = make_task(name)
    pairs = task.sample(1, task.least_length + 5, torch.Generator().manual_seed(0))
    question, answer = (task.text(ids) for ids in (pairs.inputs[0], task.ended(pairs.outputs[0])))
    return f"{' '.join(question.split())}  ->  {answer}"


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_plain, value))
    if value is None:
        return "unset"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _facts(title: str, facts: Mapping[str, str]) -> Table:
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=None, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        if fact:
            table.add_row(escape(name), escape(fact))
    return table


# ---- pezoo run ----------------------------------------------------------------------------------


def run_study(argv: list[str]) -> int:
    """Train short, test long; safe to stop and to run again."""
    parser = _parser(
        "run",
        run_study,
        "pezoo run quickstart",
        "pezoo run quickstart --dry-run",
        "pezoo run quickstart 'schemes=[rope, alibi]' 'seeds=[0]' train.steps=200 --out runs/mine",
        "pezoo run runs/mine train.steps=400",
        "pezoo run my_recipe.yaml data.corpus=text data.path=~/books --plugin my_encoding.py",
        note="Any key of the recipe can be set: dotted, list items by number (schemes.0=alibi).\n"
        "What is finished is not done again: a scheme that is added is done alone.\n"
        "Where the code of a plug-in changes, its schemes are trained anew.\n\n",
    )
    parser.add_argument(
        "recipe",
        metavar="RECIPE|DIR",
        help="a YAML file, the name of a recipe that comes with pezoo, or the folder of a study to go on with",
    )
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="sets a key of the recipe")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder of the study (default: runs/<study>, with -<size> for a size other than cpu)",
    )
    parser.add_argument("--replace", action="store_true", help="if the folder holds another study, replace it")
    parser.add_argument("--dry-run", action="store_true", help="show what would be done, and do nothing")
    _add_plugin(parser)
    args = parser.parse_intermixed_args(argv)

    _refuse_windows()
    from pezoo.study import Study

    study = Study.prepare(args.recipe, args.overrides, args.out, args.plugin, args.replace)
    if args.dry_run:
        _show_plan(study)
        return 0
    results = study.run(report=write_report)
    _show_results(study, results)
    return 1 if study.failures else 0


def _show_plan(study: "Study") -> None:
    plan, store, console = study.plan, study.store, _console()
    if line := study.changes():
        print(in_terminal(line), file=sys.stderr)
    table = Table(
        "cell",
        "",
        "state",
        title=escape(_shown(f"{plan.recipe.study} in {study.out}")),
        title_justify="left",
    )
    left: dict[str, int] = {}
    for key, cell in plan.cells.items():
        done = store.done(key)
        if not done:
            left[cell.kind] = left.get(cell.kind, 0) + 1
        table.add_row(key, escape(_shown(cell.title)), "done" if done else f"to {cell.kind}")
    console.print(table)
    todo = ", ".join(f"{n} to {kind}" for kind, n in left.items()) or "nothing"
    console.print(f"{len(plan.cells)} cells; left to do: {todo}")


def _show_results(study: "Study", results: "list[Result]") -> None:
    from pezoo.report import table
    from pezoo.report.tensorboard import ADDRESS

    for one in table.overview(results):
        one.show()
    lines = [f"results:     {study.results_path}", f"report:      {study.out / 'report'}"]
    for key, failure in study.failures.items():
        title = study.plan.cells[key].title
        lines.append(f"failed:      {title}: {failure.reason}; see {study.out / 'logs'}")
    lines.append(f"TensorBoard: {_tensorboard()} --logdir {shlex.quote(str(study.out / 'tensorboard'))}")
    lines.append(f"             then open {ADDRESS}")
    for line in lines:
        _say(escape(_shown(line)))


def _tensorboard() -> str:
    """The command as it can be typed here, with its folder if that is not on the path."""
    if shutil.which("tensorboard"):
        return "tensorboard"
    beside = Path(sys.executable).with_name("tensorboard")
    with_folder = os.path.relpath(beside) if Path.cwd() in beside.parents else str(beside)
    return with_folder if beside.exists() else f"{sys.executable} -m tensorboard.main"


# ---- pezoo generate -----------------------------------------------------------------------------


def generate(argv: list[str]) -> int:
    """Let a trained model write, past the length it was trained on."""
    parser = _parser(
        "generate",
        generate,
        "pezoo generate runs/quickstart alibi",
        "pezoo generate runs/quickstart 'rope+pi, 200 steps @ 8x' --tokens 600 --seed 1",
        "pezoo generate runs/quickstart rope --prompt 'def main(' --greedy > text.txt",
        note="Standard output is the text, prompt included, and nothing else. Standard error tells where the text\n"
        "passes the training length, and at the end, a line for each stretch of that length, how sure the model\n"
        "was and how much it repeated itself. A text ends early where the scheme has no value.\n\n",
    )
    parser.add_argument("folder", metavar="DIR", help="folder of a study")
    parser.add_argument("scheme", nargs="?", metavar="SCHEME", help="a row of its table; without it: which there are")
    parser.add_argument("--part", metavar="NAME", help="part of the recipe, if the row is in several")
    parser.add_argument("--seed", type=int, metavar="N", help="of the training (default: the recipe's first)")
    parser.add_argument("--prompt", metavar="TEXT", help="default: half a training length of a test document")
    parser.add_argument("--tokens", type=int, metavar="N", help="to write (default: 4 training lengths)")
    told = "total length that schemes which depend on it are told (default: the whole text)"
    parser.add_argument("--length", type=int, metavar="N", help=told)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--temperature", type=float, default=1.0, metavar="T", help="of sampling (default: 1)")
    how.add_argument("--greedy", action="store_true", help="always the likeliest token")
    parser.add_argument("--top-k", type=int, metavar="K", help="sample among the K likeliest (default: all)")
    nucleus = "sample among the likeliest that make up this share (default: 1, all)"
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help=nucleus)
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="another number, another text (default: 0)")
    _add_plugin(parser)
    args = parser.parse_args(argv)

    import torch

    from pezoo.data.tokenizer import load_tokenizer
    from pezoo.generate import find_model, note, opening, show, stream

    _load_plugins(args.plugin)
    found = find_model(args.folder, args.scheme, args.seed, args.part)
    inputs = found.inputs
    name, length = inputs["data"]["tokenizer"], inputs["train_length"]
    tokenizer = load_tokenizer(None if name == "bytes" else name)
    n_new = 4 * length if args.tokens is None else args.tokens
    if args.prompt is None:
        prompt, where = opening(args.folder, found, max(1, length // 2))
    else:
        prompt, where = torch.tensor(tokenizer.encode([args.prompt])[0].astype("int64"))[None], "as given"
    part = f"{found.part}, " if found.part else ""
    note(f"{part}{found.label}, seed {found.seed}; prompt: {where}")
    if found.changed:
        note("the code of this scheme has changed since the model was trained")
    steps = stream(
        found.model.to(inputs["device"] if torch.cuda.is_available() else "cpu"),
        prompt,
        n_new,
        length=args.length,
        temperature=0.0 if args.greedy else args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        generator=torch.Generator().manual_seed(args.sample),
    )
    return 0 if show(found, prompt, steps, n_new, tokenizer.decoder()) else 130


# ---- pezoo bench --------------------------------------------------------------------------------


def bench(argv: list[str]) -> int:
    """Speed and memory of every encoding and back-end, side by side."""
    from pezoo.bench import main as bench_main

    return bench_main(argv)


# ---- pezoo check, pezoo new ---------------------------------------------------------------------


def check(argv: list[str]) -> int:
    """Hold a member, a task, or a file of your own, to the conformance kit."""
    parser = _parser(
        "check",
        check,
        "pezoo check rope",
        "pezoo check my_encoding.py",
        "pezoo check mqar:n_pairs=8",
        "pezoo check yarn --only causal",
        note="A line a check: pass, known (a declared deviation), skip (nothing to look at) or FAIL.\n"
        "The exit code is 1 if a check fails. An extension is checked on one encoding of each kind.\n\n",
    )
    parser.add_argument("target", metavar="NAME|FILE.py", help="a member, a task, or a file that registers some")
    parser.add_argument("--only", metavar="CHECK", help="run one check")
    parser.add_argument("--slow", action="store_true", help="run torch.compile's check as well")
    _add_json(parser)
    _add_plugin(parser)
    args = parser.parse_args(argv)

    from pezoo import testing

    _load_plugins(args.plugin)
    console = None if args.json else _console()
    code, outcomes = testing.command(args.target, slow=args.slow, only=args.only, console=console)
    if args.json:
        _print_json(outcomes)
    return code


def new(argv: list[str]) -> int:
    """Write a file to start an encoding, an extension or a task of your own from."""
    parser = _parser(
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

    from pezoo.new import write

    path = write(args.name, args.kind, args.out)
    study = {
        "encoding": f"quickstart 'schemes=[{args.name},rope]'",
        "extension": f"quickstart 'schemes=[rope+{args.name},rope]'",
        "task": f"length_generalization 'tasks=[{args.name}]'",
    }
    file = shlex.quote(str(path))
    _say(escape(f"wrote {path}; next:"))
    _say(escape(f"  pezoo check {file}"))
    _say(escape(f"  pezoo run {study[args.kind]} --plugin {file}"))
    return 0


# ---- the command --------------------------------------------------------------------------------

COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "list": ("list [PATTERN] [--json]", list_members),
    "show": ("show SCHEME [--save FILE] [--json]", show),
    "run": ("run RECIPE|DIR [key=value ...] [--out DIR] [--plugin FILE.py] [--dry-run]", run_study),
    "generate": ("generate DIR SCHEME [--prompt TEXT] [--tokens N]", generate),
    "bench": ("bench [--json]", bench),
    "check": ("check NAME|FILE.py [--slow] [--json]", check),
    "new": ("new NAME [--kind extension|task] [--out FILE.py]", new),
}


def main(argv: list[str] | None = None) -> int:
    """The command `pezoo`; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    use_plain_streams()
    try:
        return _dispatch(argv)
    except NeedsPlugins as error:
        named = [part for file in error.files for part in ("--plugin", file)]
        _complain(UserError(f"{error.why}; type: {shlex.join(['pezoo', *argv, *named])}"))
        return 2
    except UserError as error:
        _complain(error)
        return 2
    except BrokenPipeError:  # `pezoo list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:  # a full disk and its like
        print(in_terminal(f"error: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(in_terminal(f"stopped; to go on: {shlex.join(['pezoo', *argv])}"), file=sys.stderr)
        return 128 + (error.args or (signal.SIGINT,))[0]


def _complain(error: UserError) -> None:
    print("\n".join(in_terminal(line) for line in f"error: {error}".split("\n")), file=sys.stderr)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0
    name, *rest = argv
    if name == "--version":
        import pezoo

        print(f"pezoo {pezoo.__version__}")
        return 0
    if name not in COMMANDS:
        raise UserError(f"no command {brief(name)}.{suggest(name, COMMANDS)} Commands: {', '.join(COMMANDS)}")
    return COMMANDS[name][1](rest)


def _overview() -> str:
    """What there is; a line for each command where the terminal is wide enough."""
    width, room = max(len(usage) for usage, _ in COMMANDS.values()), shutil.get_terminal_size().columns - 1
    lines = [f"  pezoo {usage:<{width}}  {work.__doc__}" for usage, work in COMMANDS.values()]
    if max(map(len, lines)) > room:
        lines = []
        for usage, work in COMMANDS.values():
            lines += _wrapped(f"pezoo {usage}", room, "  ", "      ") + _wrapped(work.__doc__, room, "    ", "    ")
    more = "pezoo COMMAND --help says more; pezoo --version says which pezoo this is."
    first = "To begin: pezoo run quickstart"
    return "\n".join([*_wrapped(DESCRIPTION, room), "", *lines, "", *_wrapped(more, room), first])


def _wrapped(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        max(20, width),
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
        break_long_words=False,
    )


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one message, like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        options = re.findall(r"--[a-z-]+", self.format_usage())
        hint = next((h for word in message.split() if (h := suggest(word, options))), "")
        raise UserError(f"{message}.{hint} See {self.prog} --help")


def _parser(command: str, work: Callable[..., int], *examples: str, note: str = "") -> _Parser:
    return _Parser(
        prog=f"pezoo {command}",
        description=work.__doc__,
        epilog="\n  ".join([f"{note}examples:", *examples]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print plain data")


def _add_plugin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE.py",
        help="file that registers members (repeatable)",
    )


def _load_plugins(paths: Iterable[str]) -> None:
    from pezoo.registry import load_plugin

    for path in paths:
        load_plugin(path)


def _console() -> Console:
    return Console(highlight=False)


def _shown(text: str) -> str:
    """A text of the user's, as standard output can show it."""
    return in_terminal(text, _console().encoding)


def _say(line: str) -> None:
    """A line on standard output, with markup, never folded."""
    _console().print(line, soft_wrap=True)


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=1, ensure_ascii=False, default=str))
