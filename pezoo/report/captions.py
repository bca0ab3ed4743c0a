"""What stands above and below tables: what they show, under which conditions, and why a value is missing."""

import re

from pezoo.report.groups import WINDOWED, chance, window_overlap, words
from pezoo.report.statistics import (
    ACCURACIES,
    length_name,
    scale_of,
)
from pezoo.results import LANGUAGE_MODELLING, Result

MAKERS = ("pezoo", "torch", "python")


def metric_words(result: Result) -> str:
    """Return the metric at the beginning of a caption, after the part."""
    name = words(result.metric)
    return f"{result.part}: {name}" if result.part else name.capitalize()


def heading_of(name: str, what: str, *facts: str) -> str:
    """Return a table's heading: the group, what the table shows, and facts."""
    text = ", ".join([words(what), *facts])
    return f"{name}: {text}" if name else text[0].upper() + text[1:]


def length_words(length: int, kept: list[Result]) -> str:
    """Return a test length as a multiple of the training length, or as it is where training lengths differ."""
    trained = {r.train_length for r in kept}
    return str(length) if len(trained) > 1 else length_name(length, trained.pop())


def over_seeds(kept: list[Result]) -> str:
    """Return which mean and spread a table shows."""
    seeds = len({r.seed for r in kept})
    if seeds == 1:
        return "one seed"
    if scale_of(kept[0].metric) == "log":
        return f"geometric mean ± sample standard deviation of the loss over {seeds} seeds (1% is 0.01 nats)"
    return f"mean ± sample standard deviation over {seeds} seeds"


def made_with(results: list[Result]) -> str:
    """Return in one line which versions of what counts most made results."""
    found = {name: sorted({r.versions[name] for r in results if name in r.versions}) for name in MAKERS}
    return "Made with " + ", ".join(f"{name} {' and '.join(versions)}" for name, versions in found.items() if versions)


def caption_of(kept: list[Result]) -> str:
    """Return in one line what a table of one metric shows, and under which conditions."""
    one, trained = kept[0], {r.train_length for r in kept}
    unit = " tokens" if one.task == LANGUAGE_MODELLING else ""
    percent = " in percent" if one.metric in ACCURACIES else ""
    columns = (
        f"columns: tested length{' in tokens' if unit else ''}" if len(trained) > 1 else f"L = {trained.pop()}{unit}"
    )
    facts = [f"{metric_words(one)}{percent} on {one.corpus}", f"{one.protocol} protocol", columns]
    facts += [] if one.test_precision == "float32" else [f"tested in {one.test_precision}"]
    guessed = chance(one)
    facts += [] if guessed is None else [f"guessing gets {100 * guessed:.1f}"]
    return "; ".join([*facts, over_seeds(kept)])


def reasons(kept: list[Result]) -> list[str]:
    """Return a line for each reason why a scheme has no value, naming the lengths.

    Reasons that differ in numbers alone are one, told with those of the shortest length.
    """
    found: dict[tuple[str, str, str], tuple[str, dict[str, None]]] = {}
    for r in sorted(kept, key=lambda r: r.test_length):
        if r.status != "ok":
            alike = re.sub(r"\d+(\.\d+)?", "#", r.reason)
            _, lengths = found.setdefault((r.label, r.status.replace("_", " "), alike), (r.reason, {}))
            lengths[length_name(r.test_length, r.train_length)] = None
    return [
        f"{label}: {status} at {', '.join(lengths)}: {reason}"
        for (label, status, _), (reason, lengths) in found.items()
    ]


def rates(kept: list[Result]) -> list[str]:
    """Return a line for each learning rate, if they differ, or one is the lowest or highest that was tried."""
    found: dict[tuple[float, str], dict[str, None]] = {}
    for r in (r for r in kept if r.learning_rate):  # none where nothing was trained
        end = f", the {r.rate_is} that was tried" if r.rate_is else ""
        found.setdefault((r.learning_rate, end), {})[r.label.removesuffix(WINDOWED)] = None
    if len(found) == 1 and not any(end for _, end in found):
        return []
    return [f"learning rate {rate:g}{end}: {'; '.join(found[rate, end])}" for rate, end in sorted(found)]


def overlap(kept: list[Result]) -> list[str]:
    """Return a line on test windows that overlap, if they do so much that a reader should know."""
    overlap = window_overlap(kept)
    if overlap is None:
        return []
    return [
        f"test windows overlap: a token is in {overlap:.2g} of them on average, since the test text is too short for "
        "so many; fewer test.windows would say as much, more text would say more"
    ]
