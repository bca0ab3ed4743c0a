"""`pezoo export`."""

from pezoo.cli.shared import add_plugin, at_least_one, load_plugins, make_parser, typed_length


def export(argv: list[str]) -> int:
    """Save a study's model for transformers, which then needs no pezoo."""
    parser = make_parser(
        "export",
        export,
        "pezoo export runs/evaluate-my_model 'rope+yarn, 200 steps @ 4x' my_model_4x",
        "pezoo export runs/evaluate-my_model rope+pi my_model_4x --length 8192",
        note="For studies of somebody's model (pezoo evaluate, or model.from in a recipe). The folder gets\n"
        "safetensors, a config whose rope_parameters say what the scheme does, and the model's tokenizer. A\n"
        "scheme that no config can say is refused, with the reason.\n\n",
    )
    parser.add_argument("folder", metavar="DIR", help="folder of a study")
    parser.add_argument("scheme", metavar="SCHEME", help="a row of its table")
    parser.add_argument("to", metavar="FOLDER", help="where to write; empty, or not there yet")
    parser.add_argument(
        "--length", type=at_least_one, metavar="N", help="of texts to come; for schemes that follow the length"
    )
    parser.add_argument("--part", metavar="NAME", help="part of the recipe, if the row is in several")
    parser.add_argument("--seed", type=int, metavar="N", help="of the tuning (default: the recipe's first)")
    add_plugin(parser)
    args = parser.parse_args(argv)

    from pezoo.study.export import export_model

    load_plugins(args.plugin)
    facts = {"length": args.length, "seed": args.seed, "part": args.part}
    with typed_length():
        label, seed = export_model(args.folder, args.scheme, args.to, **facts)
    print(f"{args.to}: {label}, seed {seed}; AutoModelForCausalLM.from_pretrained({args.to!r}) loads it")
    return 0
