"""`pezoo generate`."""

from pezoo.cli.shared import add_plugin, at_least_one, load_plugins, make_parser


def generate(argv: list[str]) -> int:
    """Let a trained model write, past the length it was trained on."""
    parser = make_parser(
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
    parser.add_argument("--length", type=at_least_one, metavar="N", help=told)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--temperature", type=float, default=1.0, metavar="T", help="of sampling (default: 1)")
    how.add_argument("--greedy", action="store_true", help="always the likeliest token")
    parser.add_argument("--top-k", type=at_least_one, metavar="K", help="sample among the K likeliest (default: all)")
    nucleus = "sample among the likeliest that make up this share (default: 1, all)"
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help=nucleus)
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="another number, another text (default: 0)")
    add_plugin(parser)
    args = parser.parse_args(argv)

    import torch

    from pezoo.cli.page import note, show
    from pezoo.data.tokenizer import load_tokenizer
    from pezoo.model.decode import stream
    from pezoo.study.models import find_model, opening

    load_plugins(args.plugin)
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
    return show(found, prompt, steps, n_new, tokenizer.decoder())
