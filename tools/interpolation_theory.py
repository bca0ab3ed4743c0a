"""Position Interpolation's theory, recomputed: do RoPE's scores blow up beyond training, and not in between?

The score of a fixed query and key at distance x, with RoPE's frequencies theta_k = base^(-2k/d), k < d/2:

    s(x) = sum_k a_k sin(x theta_k) + b_k cos(x theta_k) = Re sum_k h_k exp(i x theta_k)        h_k = b_k - i a_k

**Fits.** Chen et al. fit s to N(0, 1) targets at x = 0 ... L - 1 by least squares. They see |s| < 1 in the window,
between the integers as well, but thousands beyond it. Waves far longer than L are nearly constant in the window, so
that huge coefficients can cancel there. How huge is up to the solver's precision, since the problem is ill-conditioned;
a ridge settles it.

**Bounds.** For x between x1 and x2, with the chord through (x1, s(x1)) and (x2, s(x2)):

    stated     |s(x) - chord(x)| <= max|h| (x - x1)(x2 - x) d / (8 ln base)
    proved     |s(x) - chord(x)| <= max|h| (x - x1)(x2 - x) sum_k theta_k^2 / 2
    Abel       |s(x)| <= 2 max|h| B(x)        B(x) = sum_{k=1..d/2} |sum_{j<k} exp(i x theta_j)|
    triangle   |s(x)| <= max|h| d/2

The stated bound has d / (4 ln base) in place of sum_k theta_k^2. The paper's proof gets there by c^y <= 1 + y ln c,
which is the wrong way round, as c^y is convex. So the stated bound is too small: a score whose waves all have a crest
half-way between two integers exceeds it. The paper's "about 600 times smaller" compares Abel with stated.

Source: Chen, Wong, Chen and Tian (2023, arXiv 2306.15595), section 2.2, theorem 2.1, appendices A to C; Abel from Su et
al. (2021, arXiv 2104.09864), section 3.4.3. Run it with `python tools/interpolation_theory.py`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, DTypeLike, NDArray

from pezoo.errors import UserError, suggest
from pezoo.report.figure import PALETTE, save

Array = NDArray[np.floating]

SOLVERS = {
    "normal32": "normal equations, float32",
    "normal64": "normal equations, float64",
    "svd64": "singular values, float64",
}
RIDGES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
STEPS = 8
"""Points of the fine grid an interval between two integers."""
PIPE = "&#124;"  # a | that does not end a cell of a Markdown table


def frequencies(head_dim: int = 128, base: float = 10_000.0) -> Array:
    """RoPE's theta_k in radians per position, fastest first, (head_dim / 2,).

    >>> frequencies(4, base=100.0)
    array([1. , 0.1])
    """
    return base ** (-np.arange(0, head_dim, 2) / head_dim)


def features(x: ArrayLike, theta: Array, dtype: DTypeLike = np.float64) -> Array:
    """Sines, then cosines, of x theta_k in a precision: distances (n,) -> (n, d)."""
    angles = np.outer(np.asarray(x, dtype), theta.astype(dtype))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def fit(targets: Array, theta: Array, ridge: float = 0.0, solver: str = "svd64") -> Array:
    """Coefficients that minimise sum_x (s(x) - target_x)^2 + ridge |coefficients|^2 over x = 0 ... L - 1.

    Args:
        targets: (L, n), a column for each of n fits.
        theta: frequencies, (d / 2,).
        ridge: at 0, rounding errors decide the result where L is much less than the longest wavelengths.
        solver: one of `SOLVERS`. "normal32" is the paper's. "svd64" takes singular values below the largest times
            L times machine epsilon for zero.

    Returns:
        (d, n) in the solver's precision: a, then b.

    Raises:
        UserError: if the solver is unknown or the ridge negative.
    """
    if solver not in SOLVERS:
        raise UserError(f"no solver {solver!r}.{suggest(solver, SOLVERS)} Known: {', '.join(SOLVERS)}")
    if not ridge >= 0:
        raise UserError(f"the ridge must be 0 or more, got {ridge}")
    dtype = np.float32 if solver == "normal32" else np.float64
    x = features(np.arange(len(targets)), theta, dtype)
    y, eye = targets.astype(dtype), np.eye(2 * len(theta), dtype=dtype)
    if solver == "svd64":
        rows = np.concatenate([x, np.sqrt(ridge) * eye])
        return np.linalg.lstsq(rows, np.concatenate([y, np.zeros((len(eye), y.shape[1]))]), rcond=None)[0]
    return np.linalg.solve(x.T @ x + dtype(ridge) * eye, x.T @ y)


def largest_h(coefficients: Array) -> Array:
    """max_k |h_k| of each fit: (d, n) -> (n,)."""
    sines, cosines = np.split(coefficients, 2)
    return np.hypot(sines, cosines).max(axis=0)


def abel_sum(x: ArrayLike, theta: Array) -> Array:
    """B(x), the sum of the absolute values of the partial sums of exp(i x theta_j): (n,) -> (n,)."""
    return np.abs(np.exp(1j * np.outer(x, theta)).cumsum(axis=1)).sum(axis=1)


def grid(length: int) -> Array:
    """The integers 0 ... L - 1 and `STEPS` - 1 points between each two of them."""
    return np.arange((length - 1) * STEPS + 1) / STEPS


def deviation(scores: Array) -> Array:
    """|s - chord| between integers, from scores on `grid`: ((L - 1) STEPS + 1, n) -> (L - 1, STEPS - 1, n)."""
    left, right = scores[:-STEPS:STEPS, None], scores[STEPS::STEPS, None]
    part = (np.arange(1, STEPS) / STEPS)[:, None]
    between = scores[:-1].reshape(-1, STEPS, scores.shape[1])[:, 1:]
    return np.abs(between - left - part * (right - left))


def targets(length: int, seeds: int) -> Array:
    """N(0, 1), (L, seeds), each column from a seed of its own."""
    return np.stack([np.random.default_rng(seed).standard_normal(length) for seed in range(seeds)], axis=1)


def analyse(
    length: int = 2048,
    head_dim: int = 128,
    base: float = 10_000.0,
    ridges: Sequence[float] = RIDGES,
    solvers: Sequence[str] = tuple(SOLVERS),
    seeds: int = 10,
) -> pd.DataFrame:
    """Fit random targets, and see how large the score gets where.

    Args:
        length: the window x = 0 ... L - 1 of the targets.
        head_dim: d.
        base: of the frequencies.
        ridges: see `fit`.
        solvers: of `SOLVERS`.
        seeds: fits, each to targets of its own.

    Returns:
        A row for each (solver, ridge, seed): the largest |s| `inside` (integers of the window), `between` (a grid
        `STEPS` times as fine) and `outside` (L ... 2L - 1); `largest_h`, which is max|h|; the largest `deviation` from
        a chord, and the `proved` and the `stated` bound on it.

    Raises:
        UserError: if a solver is unknown or a number out of range.
    """
    _check(length, head_dim, base, seeds)
    theta, y = frequencies(head_dim, base), targets(length, seeds)
    frames = []
    for solver in solvers:
        for ridge in ridges:
            coefficients = fit(y, theta, ridge, solver)
            places = {"inside": np.arange(length), "between": grid(length), "outside": np.arange(length, 2 * length)}
            scores = {name: features(x, theta, coefficients.dtype) @ coefficients for name, x in places.items()}
            largest = largest_h(coefficients)
            found = {name: np.abs(score).max(axis=0) for name, score in scores.items()}
            found |= {"largest_h": largest, "deviation": deviation(scores["between"]).max(axis=(0, 1))}
            found |= {"proved": largest * proved(theta), "stated": largest * stated(theta, base)}
            frames.append(pd.DataFrame({"solver": solver, "ridge": ridge, "seed": range(seeds)} | found))
    return pd.concat(frames, ignore_index=True)


def stated(theta: Array, base: float) -> float:
    """The theorem's bound on |s - chord| over max|h|, between integers."""
    return 2 * len(theta) / (32 * np.log(base))


def proved(theta: Array) -> float:
    """The bound that the theorem's proof supports, over max|h|, between integers."""
    return float((theta**2).sum() / 8)


def bounds(length: int = 2048, head_dim: int = 128, base: float = 10_000.0) -> dict[str, float]:
    """The bounds, each over max|h|, and how they compare.

    Returns:
        `stated` and `proved`, for an interval between integers; over each of them `crests`, the deviation half-way
        between 0 and 1 of the score sum_k cos((x - 1/2) theta_k); `abel_least` and `abel_mean`, B(x) / d at
        x = 0 ... 2L - 1; and by how much the bounds on |s| exceed those on the deviation.

    Raises:
        UserError: if a number is out of range.
    """
    _check(length, head_dim, base, 1)
    theta = frequencies(head_dim, base)
    share = abel_sum(np.arange(2 * length), theta) / head_dim
    least, crests = 2 * share.min() * head_dim, (1 - np.cos(theta / 2)).sum()
    found = {
        "stated": stated(theta, base),
        "proved": proved(theta),
        "crests_over_stated": crests / stated(theta, base),
        "crests_over_proved": crests / proved(theta),
        "abel_least": share.min(),
        "abel_mean": share.mean(),
        "abel_over_stated": least / stated(theta, base),
        "abel_over_proved": least / proved(theta),
        "triangle_over_proved": head_dim / 2 / proved(theta),
    }
    return {name: float(value) for name, value in found.items()}


def _check(length: int, head_dim: int, base: float, seeds: int) -> None:
    if head_dim < 2 or head_dim % 2:
        raise UserError(f"head_dim must be even and at least 2, got {head_dim}")
    if not base > 1:
        raise UserError(f"base must be above 1, got {base:g}")
    if length < 2 or seeds < 1:
        raise UserError(f"length must be at least 2 and seeds at least 1, got {length} and {seeds}")


# ---- the report ---------------------------------------------------------------------------------


def table(scores: pd.DataFrame, length: int, head_dim: int, base: float) -> str:
    """Tables of `analyse` and `bounds`, and what to make of them, in Markdown."""
    found = bounds(length, head_dim, base)
    solvers = list(dict.fromkeys(scores["solver"]))
    outside = [f"outside: {SOLVERS[solver]}" for solver in solvers]

    def cell(values: pd.Series) -> str:
        return f"{values.median():.3g} [{values.min():.2g}, {values.max():.2g}]"

    lines = [
        "# Position Interpolation's theory, recomputed",
        "",
        f"`python tools/interpolation_theory.py` with d = {head_dim}, base {base:g}, L = {length}. The formulas "
        "stand in that file.",
        "",
        "## Scores fitted to noise",
        "",
        f"Least squares to N(0, 1) targets at 0 ... {length - 1}; {scores['seed'].nunique()} seeds. Largest |s| at the "
        f"integers of the window, on a grid {STEPS} times as fine, and at {length} ... {2 * length - 1}: median "
        "[least, largest] over seeds, and in the window over solvers as well.",
        "",
        f"| {' | '.join(['ridge', 'at integers', 'between them', *outside])} |",
        "|--:" * (3 + len(outside)) + "|",
    ]
    for ridge, group in scores.groupby("ridge"):
        columns = [group["inside"], group["between"]]
        columns += [group["outside"][group["solver"] == solver] for solver in solvers]
        lines.append(f"| {ridge:g} | {' | '.join(map(cell, columns))} |")
    rows = [
        ("d max|h| over the stated bound between integers", f"{head_dim / found['stated']:.2f}", "294.73"),
        ("d max|h| over the proved bound", f"{head_dim / found['proved']:.2f}", ""),
        (
            "deviation with all crests half-way, over the stated bound",
            f"{found['crests_over_stated']:.3f}",
            "at most 1",
        ),
        ("the same, over the proved bound", f"{found['crests_over_proved']:.3f}", ""),
        (f"B(x) / d at x = 0 ... {2 * length - 1}, least", f"{found['abel_least']:.3f}", "at least 1"),
        ("B(x) / d, mean", f"{found['abel_mean']:.2f}", ""),
        ("Abel's bound on |s| over the stated bound, least", f"{found['abel_over_stated']:.0f}", "about 600"),
        ("Abel's bound over the proved bound, least", f"{found['abel_over_proved']:.0f}", ""),
        ("triangle inequality's bound on |s| over the proved bound", f"{found['triangle_over_proved']:.0f}", ""),
    ]
    kept = [(scores["deviation"] <= scores[name]).sum() for name in ("proved", "stated")]
    lines += [
        "",
        "Where solvers agree, the number is RoPE's. Where they do not, the problem is ill-conditioned: the precision "
        f"and the linear-algebra library decide (here numpy {np.__version__}). The paper shows one draw, with float32 "
        "and ridge 0, that exceeds 8000 outside.",
        "",
        "## Bounds",
        "",
        "| | here | paper (d = 128, base 10000) |",
        "|---|--:|--:|",
        *(f"| {' | '.join(cell.replace('|', PIPE) for cell in row)} |" for row in rows),
        "",
        f"- Of the {len(scores)} fits, {kept[0]} keep the proved bound on their deviation from chords, and {kept[1]} "
        "the stated one.",
        "- The ratio of about 600 sets a bound on a deviation from a chord against a bound on the score itself.",
        "- The triangle inequality holds at every distance, too, and is the smaller bound on the score wherever "
        "B(x) > d / 4. It shows what a blow-up takes: coefficients much larger than the score in the window, which "
        "cancel there.",
    ]
    return "\n".join(lines) + "\n"


def draw(scores: pd.DataFrame, length: int, head_dim: int, base: float) -> Figure:
    """Four panels: the fit, what it does beyond the window and between integers, and what a ridge changes.

    Args:
        scores: what `analyse` returned.
        length: L.
        head_dim: d.
        base: of the frequencies.
    """
    theta, y = frequencies(head_dim, base), targets(length, 1)
    solvers = list(dict.fromkeys(scores["solver"]))
    colours = dict(zip(SOLVERS, PALETTE[1:], strict=False))
    fitted = fit(y, theta, 0.0, solvers[0])[:, 0]
    name = f"score, {SOLVERS[solvers[0]]}, ridge 0"
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    panels = figure.subplots(2, 2)
    figure.suptitle(
        f"RoPE's score fitted to noise: d = {head_dim}, base {base:g}, L = {length}", weight="bold", x=0.01, ha="left"
    )

    axes: Axes = panels[0, 0]
    axes.set_title("Inside the window: small", loc="left")
    inside = np.arange(length)
    axes.plot(inside, y[:, 0], ".", color="0.8", ms=2, rasterized=True, label="targets")
    axes.plot(inside, features(inside, theta, fitted.dtype) @ fitted, color=colours[solvers[0]], lw=0.8, label=name)
    axes.set(xlabel="distance x", ylabel="s(x)")

    axes = panels[0, 1]
    axes.set_title("Beyond it: what the solver makes of an ill-conditioned fit", loc="left")
    everywhere = np.arange(2 * length)
    width = max(1, length // 128)
    shown = [(solver, 0.0, colours[solver], "-") for solver in solvers] + [(solvers[-1], 1.0, "black", ":")]
    for solver, ridge, colour, dashes in shown:
        solution = fit(y, theta, ridge, solver)[:, 0]
        envelope = np.maximum.reduceat(np.abs(features(everywhere, theta) @ solution), everywhere[::width])
        label = f"{SOLVERS[solver]}, ridge {ridge:g}"
        axes.plot(everywhere[::width], envelope, color=colour, ls=dashes, lw=1.2, label=label)
    axes.axvline(length, color="0.35", lw=1.2, ls="--")
    axes.set_yscale("log")
    axes.set(xlabel="distance x", ylabel=f"largest |s| in {width} distances")

    axes = panels[1, 0]
    axes.set_title("Between integers: smooth", loc="left")
    first = min(25, max(0, length - 51))
    last = min(first + 50, length - 1)
    fine, whole = np.arange(first * STEPS, last * STEPS + 1) / STEPS, np.arange(first, last + 1)
    axes.plot(fine, features(fine, theta, fitted.dtype) @ fitted, color=colours[solvers[0]], lw=1.2, label=name)
    axes.plot(whole, features(whole, theta, fitted.dtype) @ fitted, "o", color="black", ms=3, label="at integers")
    axes.set(xlabel="distance x", ylabel="s(x)")

    axes = panels[1, 1]
    axes.set_title(f"A ridge removes it ({scores['seed'].nunique()} seeds: median, least and largest)", loc="left")
    ridges = sorted(set(scores["ridge"]))
    zero = min((r for r in ridges if r), default=1.0) / 10
    for solver in solvers:
        by_ridge = scores[scores["solver"] == solver].groupby("ridge")["outside"]
        at = [r or zero for r in by_ridge.groups]
        axes.plot(at, by_ridge.median(), "o-", color=colours[solver], ms=4, lw=1.2, label=f"outside, {SOLVERS[solver]}")
        axes.fill_between(at, by_ridge.min(), by_ridge.max(), color=colours[solver], alpha=0.15, lw=0)
    by_ridge = scores.groupby("ridge")["between"]
    axes.plot(
        [r or zero for r in by_ridge.groups], by_ridge.median(), "s--", color="black", ms=4, lw=1.2, label="window"
    )
    axes.set(xscale="log", yscale="log", xlabel="ridge", ylabel="largest |s|")
    ticks = [r for r in ridges if r][::2]
    axes.set_xticks([zero, *ticks], ["0", *(f"{r:g}" for r in ticks)])
    axes.set_xticks([], minor=True)

    for axes in panels.flat:
        axes.grid(color="0.92", lw=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    """Write scores.csv, table.md and interpolation_theory.svg and .png to a folder."""
    parser = argparse.ArgumentParser(
        prog="python tools/interpolation_theory.py",
        description=main.__doc__,
        epilog="examples:\n  python tools/interpolation_theory.py\n"
        "  python tools/interpolation_theory.py --head-dim 16 --length 64 --out small",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("runs/interpolation_theory"), help="folder (%(default)s)")
    parser.add_argument("--length", type=int, default=2048, help="training window L (%(default)s)")
    parser.add_argument("--head-dim", type=int, default=128, help="width of a head d (%(default)s)")
    parser.add_argument("--base", type=float, default=10_000.0, help="of the frequencies (%(default)g)")
    parser.add_argument("--seeds", type=int, default=10, help="fits of each kind (%(default)s)")
    args = parser.parse_args(argv)
    sizes = {"length": args.length, "head_dim": args.head_dim, "base": args.base}
    try:
        scores = analyse(**sizes, seeds=args.seeds)
    except UserError as error:
        parser.error(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    scores.to_csv(args.out / "scores.csv", index=False, float_format="%.6g")
    (args.out / "table.md").write_text(table(scores, **sizes), encoding="utf-8")
    save(draw(scores, **sizes), args.out / "interpolation_theory")
    print(f"wrote {args.out}/table.md, scores.csv, interpolation_theory.svg and .png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
