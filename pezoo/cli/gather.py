"""`pezoo gather`."""

from pezoo.cli.shared import make_parser


def gather(argv: list[str]) -> int:
    """Write the results of many studies into one Parquet file."""
    parser = make_parser(
        "gather",
        gather,
        "pezoo gather runs/quickstart runs/survey --out results.parquet",
        "pezoo gather experiments/results/* --out results.parquet",
        note="A row per result, with all that results.jsonl says, and the folder.\n"
        "pandas, DuckDB and Polars read it.\n\n",
    )
    parser.add_argument("folders", metavar="DIR", nargs="+", help="folder of a study, run here or published")
    parser.add_argument("--out", metavar="FILE", required=True, help="the Parquet file to write")
    args = parser.parse_args(argv)

    from pezoo.results.gathered import gather as write

    n_rows = write(args.folders, args.out)
    print(f"{args.out}: {n_rows} results of {len(args.folders)} {'study' if len(args.folders) == 1 else 'studies'}")
    return 0
