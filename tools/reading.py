"""The table that `docs/start.md` explains: a few rows of the quickstart's own, with a note for each thing to read.

The notes quote the numbers that they explain, so both come from the published results.
"""

from collections.abc import Mapping

import pandas

from pezoo.escape import in_markdown
from pezoo.report.findings import BYTES, headline_results
from pezoo.report.finished import Finished
from pezoo.report.groups import groups
from pezoo.report.printed import BESIDE, best_cells
from pezoo.report.statistics import TOLERANCE, length_name
from pezoo.report.table import ranking

NUMBERS = "①②③④⑤⑥⑦"
TUNED = "steps @"


def block(study: Finished) -> str:
    """Return rows of a study's ranking with numbered notes, in Markdown.

    Args:
        study: whose foremost metric is perplexity.
    """
    table = ranking(study.results, study.baseline, study.losses)
    frame, best = table.frame, best_cells(table)
    first, last = (column for column in table.means.columns if column in frame)
    rows = _rows(list(frame.index), frame[BESIDE])
    marks = dict(zip([frame.index.name, *frame.columns], NUMBERS[1:], strict=False))
    lines = [f"> {NUMBERS[0]} {' '.join(map(in_markdown, study.answer[:2]))}"]
    head = [f"{name} {marks[name]}" for name in marks]
    lines += ["", f"| {' | '.join(head)} |", "|---" + "|---:" * len(frame.columns) + "|"]
    for row in rows:
        cells = [f"**{frame.loc[row, c]}**" if (row, c) in best else str(frame.loc[row, c]) for c in frame.columns]
        lines.append(f"| {' | '.join([f'`{in_markdown(row)}`', *cells])} |")
    notes = _notes(study, frame, rows, first, last)
    return "\n".join([*lines, "", *(f"- {mark} {note}" for mark, note in zip(NUMBERS, notes, strict=False))]) + "\n"


def _rows(labels: list[str], beside: Mapping[str, str]) -> list[str]:
    """Return the labels that show something: the best, the worst, a tuned one, a tie, the baseline."""
    wanted = [labels[0], labels[-1]]
    wanted += [label for label in labels if TUNED in label][:1]
    wanted += [label for label in labels if beside[label].endswith("=")][:1]
    wanted += [label for label in labels if beside[label] == "baseline"]
    return [label for label in labels if label in wanted]


def _notes(study: Finished, frame: pandas.DataFrame, rows: list[str], first: str, last: str) -> list[str]:
    """Return a note for the answer and for each column."""
    kept = headline_results(next(iter(groups(study.results).values())))
    one, top = kept[0], rows[0]
    near, far = frame.loc[top, first], frame.loc[top, last]
    value, _, spread = near.partition(" ± ")
    tuned = next((row for row in rows if TUNED in row), "")
    steps = ""
    if after := next((r for r in kept if r.label == tuned), None):
        at = length_name(after.finetune_length, one.train_length)
        steps = f" `{tuned}` was tuned: trained for {after.finetune_steps} more steps, on texts of {at}."
    baseline = next(row for row in rows if frame.loc[row, BESIDE] == "baseline")
    clear = next(row for row in rows if frame.loc[row, BESIDE].endswith(("better", "worse")))
    ratio, verdict = frame.loc[clear, BESIDE].split()
    tie = next((row for row in rows if frame.loc[row, BESIDE].endswith("=")), "")
    ties = (
        f" `=` is a tie, as in the row of `{tie}`: the interval holds 1, so either may be the better one."
        if tie
        else ""
    )
    guessed = f" A pure guess has {BYTES}." if one.tokenizer == "bytes" else ""
    side = "below" if verdict == "better" else "above"
    share, longest = f"{100 * TOLERANCE:g} %", max(r.test_length for r in kept)
    return [
        "**The answer**, in sentences made from the numbers. Every report begins with it. Read this first.",
        f"**A row is a scheme**: an encoding with its extensions.{steps}",
        f"**L is the training length**, {one.train_length} tokens here. The number is the perplexity there. `{top}` "
        f"predicts as if it had to choose among {value} equally likely tokens. Less is better.{guessed} **± is the "
        f"spread over seeds**, {spread} of the value here: so much another seed moves it. It is no interval, and no "
        "verdict rests on it. **Bold** is the best of a column.",
        f"**{last} is {last.removesuffix('L')} times the training length**, {longest:,} tokens. `{top}` goes from "
        f"{value} at L to {far.partition(' ± ')[0]} there.",
        f"**Against the baseline.** `{clear}` has {ratio.removeprefix('×')} times the perplexity of `{baseline}` at "
        f"{last}. *{verdict.capitalize()}* says that the whole 95 % interval of this ratio lies {side} 1.{ties} The "
        "intervals stand further down in the report.",
        f"**Good to** is how far a scheme stays within {share} of the *best* scheme's value at L. A dash says: not "
        "even at L.",
        f"**Stable to** is how far it stays within {share} of its *own* value at L, be that good or bad. Beware: a "
        "model that has learned nothing is perfectly stable.",
    ]
